"""Rewrite an encoded image with its pixels alone: bytes to bytes, without a decoder.

Cameras, phones and editors add metadata to the pixels (EXIF, color profiles, comments, text, further frames), often
incorrectly. If a decoder fails on them, it gets the pixels alone. This module checks that these are complete: the
checksum of a PNG's compressed data, and the data of a JPEG up to its last block.

References: PNG specification, third edition (W3C, 2025); ITU-T T.81 (JPEG); WebP container specification; TIFF 6.0.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

PNG, JPEG, WEBP = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF"
ORIENTATION = 0x0112
_KEPT = (b"IHDR", b"PLTE", b"tRNS", b"IDAT")
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PIECE = 2**20

_KINDS = (
    (rb"GIF8[79]a", "a GIF image"),
    (rb"BM.{12}", "a BMP image"),
    (rb"II\*\x00|MM\x00\*", "a TIFF image"),
    (rb".{4}ftyp(?:heic|heix|mif1|msf1|hevc)", "a HEIC image"),
    (rb".{4}ftypavi[fs]", "an AVIF image"),
    (rb"\x00\x00\x01\x00", "an icon"),
    (rb"8BPS", "a Photoshop file"),
    (rb"%PDF", "a PDF file"),
    (rb"\s*<svg|\s*<\?xml[^>]*>\s*<svg", "an SVG drawing"),
    (rb"\s*<(?:!doctype )?html", "a web page"),
    (rb"version https://git-lfs", "a pointer of Git LFS, whose file was not fetched"),
    (rb"\x00{64}", "filled with zeros"),
)


def other_format(content: bytes) -> str | None:
    """Return in words what a file is that is not a usual PNG, JPEG or WebP image, or None if that is unknown."""
    for pattern, name in _KINDS:
        if re.match(pattern, content[:512], re.DOTALL | re.IGNORECASE):
            return name
    if content.startswith(JPEG):
        return _unusual_jpeg(content)
    if content.startswith(PNG) and content[12:16] == b"CgBI":
        return "a PNG in the form that Apple's tools make for phones (CgBI)"
    return None


def decodable_versions(content: bytes) -> Iterator[bytes]:
    """Yield versions to decode instead of an image that a decoder refused, if its pixels are complete."""
    if content.startswith(PNG):
        yield from _png(content)
    elif content.startswith(JPEG):
        yield from _jpeg(content)
    elif content.startswith(WEBP):
        yield from _webp(content)


def orientation(content: bytes) -> int | None:
    """Return the orientation from an image's EXIF, 1..8, even if the rest of it is invalid; None if there is none."""
    if content.startswith(JPEG):
        blocks = [
            part[6:] for mark, part in _segments(content) if mark == 0xE1 and part.startswith(b"Exif\0")
        ]
    elif content.startswith(PNG):
        blocks = [data for name, data, _ in _chunks(content) if name == b"eXIf"]
    else:
        blocks = [data.removeprefix(b"Exif\0\0") for name, data in _riff(content[12:]) if name == b"EXIF"]
    return next((value for block in blocks if (value := _orientation_tag(block)) is not None), None)


def _orientation_tag(exif: bytes) -> int | None:
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 10:
        return None
    start = struct.unpack_from(f"{order}I", exif, 4)[0]
    if start + 2 > len(exif):
        return None
    for number in range(struct.unpack_from(f"{order}H", exif, start)[0]):
        place = start + 2 + 12 * number
        if place + 12 > len(exif):
            return None
        tag, kind = struct.unpack_from(f"{order}HH", exif, place)
        if tag == ORIENTATION:
            # Programs write a byte, a short, a long, or a digit as text; all of them are stored in the entry itself.
            form = {1: "B", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i"}.get(kind, "H")
            value = (
                exif[place + 8] - ord("0")
                if kind == 2
                else struct.unpack_from(order + form, exif, place + 8)[0]
            )
            return value if 1 <= value <= 8 else None
    return None


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes, bool]]:
    """Yield name, data (perhaps cut short) and validity of the checksum of each of a PNG's chunks."""
    place = len(PNG)
    while place + 8 <= len(content):
        size, name = struct.unpack_from(">I4s", content, place)
        data = content[place + 8 : place + 8 + size]
        check = content[place + 8 + size : place + 12 + size]
        yield name, data, check == struct.pack(">I", zlib.crc32(name + data))
        if name == b"IEND":
            return
        place += 12 + size


def _png(content: bytes) -> Iterator[bytes]:
    """Yield a PNG with size, palette, transparency and pixels only, if the compressed data end with their checksum."""
    kept = [(name, data, right) for name, data, right in _chunks(content) if name in _KEPT]
    if not kept or kept[0][0] != b"IHDR" or len(kept[0][1]) != 13:
        return
    if not all(right for name, _, right in kept if name in (b"IHDR", b"PLTE")):
        return
    pixels = [data for name, data, _ in kept if name == b"IDAT"]
    if not _whole(pixels, _raw_size(kept[0][1])):
        return
    others = [(name, data) for name, data, right in kept if name != b"IDAT" and right]
    for names in (_KEPT, (b"IHDR", b"PLTE")):  # the transparency may be invalid
        chunks = [(name, data) for name, data in others if name in names]
        yield PNG + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in (*chunks, (b"IDAT", b"".join(pixels)), (b"IEND", b""))
        )


def has_all_rows(content: bytes) -> bool:
    """Return whether a PNG holds all pixels that its header declares, which decoders do not check; True for other formats."""
    if not content.startswith(PNG):
        return True
    head, pixels = b"", list[bytes]()
    for name, data, _ in _chunks(content):
        head = data if name == b"IHDR" else head
        pixels += [data] * (name == b"IDAT")
    return len(head) == 13 and _whole(pixels, _raw_size(head))


def _raw_size(header: bytes) -> int:
    """Return the number of bytes of a PNG's pixels before compression."""
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS.get(color, 4)
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for x, y, across, down in passes:
        columns, rows = -(-max(width - x, 0) // across), -(-max(height - y, 0) // down)
        total += rows * (1 + -(-columns * bits // 8)) if columns and rows else 0
    return total


def _whole(pieces: list[bytes], size: int) -> bool:
    """Return whether compressed data are valid to their end and hold `size` bytes, decompressing piece by piece."""
    decoder, count = zlib.decompressobj(), 0
    try:
        for piece in pieces:
            while piece and not decoder.eof and count <= size:
                count += len(decoder.decompress(piece, _PIECE))
                piece = decoder.unconsumed_tail
    except zlib.error:
        return False
    return count > size or (decoder.eof and count == size)


def _segments(content: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield a JPEG's markers with their data; the first scan comes last, with everything after it."""
    place = 2
    while place + 4 <= len(content):
        if content[place] != 0xFF:
            place += 1  # some programs leave bytes between segments
            continue
        mark = content[place + 1]
        if mark in (0xFF, 0x01) or 0xD0 <= mark <= 0xD8:
            place += 1 if mark == 0xFF else 2
            continue
        size = struct.unpack_from(">H", content, place + 2)[0]
        if mark == 0xDA:
            yield mark, content[place + 2 :]
            return
        yield mark, content[place + 4 : place + 2 + size]
        place += 2 + max(size, 2)


def _frame(content: bytes) -> tuple[int, bytes] | None:
    """Return the marker and data of a JPEG's frame header."""
    frames = (
        segment
        for segment in _segments(content)
        if 0xC0 <= segment[0] <= 0xCF and segment[0] not in (0xC4, 0xC8, 0xCC)
    )
    return next(frames, None)


def _unusual_jpeg(content: bytes) -> str | None:
    frame = _frame(content)
    if frame is None or not frame[1]:
        return None
    mark, data = frame
    if data[0] != 8:
        return f"a JPEG of {data[0]} bits"
    if mark not in (0xC0, 0xC1, 0xC2):
        return "a JPEG of a kind that hardly any program reads (lossless, hierarchical or arithmetic coding)"
    return None


def _jpeg(content: bytes) -> Iterator[bytes]:
    """Yield a JPEG with the segments that a decoder needs only, and with an end marker if it lacks one.

    A file without an end marker may lack blocks: `with_other_ending` is for checking that none is missing. Such files
    are repaired only if they have a single scan, since missing scans cannot be detected.
    """
    frame, segments = _frame(content), list(_segments(content))
    if frame is None or not segments or segments[-1][0] != 0xDA:
        return
    kept = [(mark, data) for mark, data in segments[:-1] if not (0xE0 <= mark <= 0xEF or mark == 0xFE)]
    colors = [(mark, data) for mark, data in segments[:-1] if mark == 0xEE and data.startswith(b"Adobe")]
    plain = [(mark, data) for mark, data in segments[:-1] if mark == 0xE0 and data.startswith(b"JFIF\0")]
    head = JPEG[:2] + b"".join(
        struct.pack(">BBH", 0xFF, mark, len(data) + 2) + data
        for mark, data in (*plain[:1], *colors[:1], *kept)
    )
    scan = b"\xff\xda" + segments[-1][1]
    if b"\xff\xd9" in scan:
        yield head + scan
    elif frame[0] != 0xC2 and scan[4:5] == frame[1][5:6]:  # all components are in this scan
        scan = scan.removesuffix(b"\xff")
        yield head + scan + b"\xff\xd9"


def with_other_ending(version: bytes) -> bytes:
    """Return a JPEG whose end marker was added, with other bytes before that marker.

    If a decoder gives the same pixels for both, no block is missing. A decoder skips bytes up to the next restart
    marker if one is due, so all of these follow in their order.
    """
    due = len(re.findall(rb"\xff[\xd0-\xd7]", version[version.rindex(b"\xff\xda") :]))
    more = b"".join(b"\xff" + bytes([0xD0 + (due + number) % 8]) + b"\x55\xaa" * 256 for number in range(16))
    return version[:-2] + b"\x55\xaa" * 4096 + more + version[-2:]


def has_end(content: bytes) -> bool:
    """Return whether an image has an end marker of its own; only for a JPEG may one be added."""
    return not content.startswith(JPEG) or b"\xff\xd9" in content


def _riff(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place + 8 <= len(content):
        name, size = struct.unpack_from("<4sI", content, place)
        data = content[place + 8 : place + 8 + size]
        if len(data) < size:
            return
        yield name, data
        place += 8 + size + size % 2


def _webp(content: bytes) -> Iterator[bytes]:
    """Yield a WebP image with the pixels of the image, or of its first frame, and their transparency only."""
    parts = list(_riff(content[12:]))
    frame = next((data for name, data in parts if name == b"ANMF"), None)
    if frame is not None:
        parts = list(_riff(frame[16:]))
    pixels = next(((name, data) for name, data in parts if name in (b"VP8 ", b"VP8L")), None)
    if pixels is None:
        return
    body = pixels[0] + struct.pack("<I", len(pixels[1])) + pixels[1] + b"\0" * (len(pixels[1]) % 2)
    alpha = next((data for name, data in parts if name == b"ALPH"), None)
    if alpha is not None and pixels[0] == b"VP8 " and len(pixels[1]) >= 10:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", pixels[1], 6))
        size = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
        extended = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + size
        body = extended + b"ALPH" + struct.pack("<I", len(alpha)) + alpha + b"\0" * (len(alpha) % 2) + body
    yield b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body
