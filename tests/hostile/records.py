"""Bad and odd images and records, as builders: those of real folders, and those that an attacker may add.

`IMAGES` and `RECORDS` map a name to a `Case` with the required result: used, with the right pixels, or skipped, with words
of its reason. Nothing here needs pytest, so scripts can use it too.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

PNG = b"\x89PNG\r\n\x1a\n"
SIDE = 16
DAMAGED = "damaged or cut short"
OTHER = "not a PNG, JPEG or WebP image"


@dataclass(frozen=True)
class Case:
    """A hostile image or record, and the required result.

    Attributes:
        build: Makes the bytes of a file, or of a record's line.
        reason: Words that the reason for skipping must hold; None where it must be used.
        size: Width and height that the used image must have; None asks nothing.
    """

    build: Callable[[], bytes]
    reason: str | None = None
    size: tuple[int, int] | None = (SIDE, SIDE)


def pixels(seed: int = 0, height: int = SIDE, width: int = SIDE, channels: int = 3) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return values if channels > 1 else values[..., 0]


def encoded(image: Image.Image | None = None, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    (Image.fromarray(pixels()) if image is None else image).save(buffer, format, **options)
    return buffer.getvalue()


def jpeg(**options: Any) -> bytes:
    return encoded(None, "JPEG", quality=90, **options)


def chunk(name: bytes, data: bytes, crc: int | None = None) -> bytes:
    crc = zlib.crc32(name + data) if crc is None else crc
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", crc)


def header(width: int, height: int, depth: int = 8, color: int = 2) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))


def with_chunk(extra: bytes, content: bytes | None = None) -> bytes:
    """Put a chunk right behind a PNG's header."""
    content = content or encoded()
    return content[:33] + extra + content[33:]


def segment(mark: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, mark, len(data) + 2) + data


def with_segment(mark: int, data: bytes, content: bytes | None = None) -> bytes:
    """Put a segment right behind a JPEG's beginning."""
    content = content or jpeg()
    return content[:2] + segment(mark, data) + content[2:]


def exif(
    entries: list[tuple[int, int, int, bytes]], order: str = "<", count: int | None = None, tail: bytes = b""
) -> bytes:
    """Write EXIF by hand: (tag, type, count, the four bytes of the value)."""
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8)
    listed = b"".join(struct.pack(f"{order}HHI", *entry[:3]) + entry[3] for entry in entries)
    number = len(entries) if count is None else count
    return (
        b"Exif\0\0" + start + struct.pack(f"{order}H", number) + listed + struct.pack(f"{order}I", 0) + tail
    )


def turned(kind: int, value: bytes, order: str = "<") -> bytes:
    """Return a lying photograph, 16 x 8, whose EXIF says in some way that it must be turned by a quarter."""
    image = Image.fromarray(pixels(0, 8, 16))
    return with_segment(0xE1, exif([(0x0112, kind, 1, value)], order), encoded(image, "JPEG", quality=90))


def cmyk() -> Image.Image:
    return Image.fromarray(pixels(0, SIDE, SIDE, 4), "CMYK")


def animated(format: str) -> bytes:
    frames = [Image.fromarray(pixels(seed)) for seed in range(3)]
    more = {"lossless": True} if format == "WEBP" else {}
    return encoded(frames[0], format, save_all=True, append_images=frames[1:], duration=50, **more)


def texts(size: int, count: int) -> bytes:
    info = PngImagePlugin.PngInfo()
    for number in range(count):
        info.add_text(f"note{number}", "x" * size, zip=True)
    return encoded(None, pnginfo=info)


def idat(content: bytes) -> tuple[int, int]:
    """Return where the data of a PNG's first pixel chunk begin and end."""
    start = content.index(b"IDAT") + 4
    return start, start + struct.unpack_from(">I", content, start - 8)[0]


def broken_pixels() -> bytes:
    content = bytearray(encoded())
    start, end = idat(bytes(content))
    content[(start + end) // 2] ^= 0xFF
    return bytes(content)


def split_pixels() -> bytes:
    """Write the pixels in many chunks, between which others stand."""
    content = encoded()
    start, end = idat(content)
    pieces = [content[at : min(at + 40, end)] for at in range(start, end, 40)]
    return content[: start - 8] + b"".join(chunk(b"IDAT", piece) for piece in pieces) + chunk(b"IEND", b"")


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    body = b"".join(
        name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def lossless() -> bytes:
    return encoded(None, "WEBP", lossless=True)


def extended_webp(exif_data: bytes) -> bytes:
    content = lossless()
    size = struct.unpack_from("<I", content, 16)[0]
    flags = b"\x08\0\0\0" + struct.pack("<I", SIDE - 1)[:3] * 2
    return riff((b"VP8X", flags), (b"VP8L", content[20 : 20 + size]), (b"EXIF", exif_data))


def mode(name: str) -> Image.Image:
    base = Image.fromarray(pixels())
    if name == "I;16":
        return Image.fromarray(np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 257)
    return base.convert(name)


def palette_with_holes() -> bytes:
    return encoded(Image.fromarray(pixels()).quantize(8), transparency=b"\0\x80\xff")


def apple() -> bytes:
    """Write a PNG as Apple's tools do for phones: compressed data without their header and checksum."""
    content = encoded()
    start, end = idat(content)
    data = chunk(b"IDAT", content[start + 2 : end - 4]) + chunk(b"IEND", b"")
    return PNG + chunk(b"CgBI", b"\x50\0\x20\2") + content[8:33] + data


def interlaced() -> bytes:
    """Write the pixels in the seven passes of Adam7."""
    passes = (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    )
    rows = b"".join(
        b"\0" + row.tobytes() for x, y, right, down in passes for row in pixels()[y::down, x::right]
    )
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 1))
    return PNG + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


IMAGES: dict[str, Case] = {
    # whole pixels, something wrong beside them
    "png": Case(encoded),
    "jpeg": Case(jpeg),
    "webp": Case(lossless),
    "orientation as text": Case(lambda: turned(2, b"6\0\0\0"), size=(8, 16)),
    "orientation as byte": Case(lambda: turned(1, b"\x06\0\0\0"), size=(8, 16)),
    "orientation as long": Case(lambda: turned(4, b"\x06\0\0\0"), size=(8, 16)),
    "orientation as signed long": Case(lambda: turned(9, b"\x06\0\0\0"), size=(8, 16)),
    "orientation as short, big end": Case(lambda: turned(3, b"\0\x06\0\0", ">"), size=(8, 16)),
    "orientation 0": Case(lambda: turned(3, b"\0\0\0\0"), size=(16, 8)),
    "orientation 99": Case(lambda: turned(3, b"\x63\0\0\0"), size=(16, 8)),
    "exif that is empty": Case(lambda: with_segment(0xE1, b"Exif\0\0")),
    "exif that is noise": Case(lambda: with_segment(0xE1, b"Exif\0\0" + bytes(range(256)))),
    "exif cut short": Case(lambda: with_segment(0xE1, exif([(0x0112, 3, 1, b"\1\0\0\0")])[:20])),
    "exif of too many entries": Case(
        lambda: with_segment(0xE1, exif([(0x0112, 3, 1, b"\1\0\0\0")], count=60000))
    ),
    "exif that points to itself": Case(lambda: with_segment(0xE1, exif([(0x8769, 4, 1, b"\x08\0\0\0")]))),
    "exif that points outside": Case(lambda: with_segment(0xE1, exif([(0x8769, 4, 1, b"\xff\xff\xff\x7f")]))),
    "exif of unknown types": Case(lambda: with_segment(0xE1, exif([(0x0100, 77, 9, b"\1\0\0\0")]))),
    "exif resolution over zero": Case(
        lambda: with_segment(
            0xE1, exif([(0x011A, 5, 1, struct.pack("<I", 26))], tail=struct.pack("<II", 72, 0))
        )
    ),
    "exif resolution as text": Case(
        lambda: with_segment(0xE1, exif([(0x011A, 2, 4, b"abc\0"), (0x0128, 2, 1, b"x\0\0\0")]))
    ),
    "exif in png, noise": Case(lambda: with_chunk(chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"))),
    "exif in webp, noise": Case(lambda: extended_webp(b"II*\0\xff\xff\xff\xff")),
    "profile that is noise": Case(lambda: with_segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(99))),
    "profile of missing parts": Case(lambda: with_segment(0xE2, b"ICC_PROFILE\0\2\7" + bytes(9))),
    "profile without a number": Case(lambda: with_segment(0xE2, b"ICC_PROFILE\0")),
    "profile in png, noise": Case(lambda: with_chunk(chunk(b"iCCP", b"name\0\0not compressed"))),
    "profile in png, bomb": Case(
        lambda: with_chunk(chunk(b"iCCP", b"n\0\0" + zlib.compress(bytes(2**22), 9)))
    ),
    "text in png, bomb": Case(lambda: texts(2**21, 1)),
    "texts in png, together a bomb": Case(lambda: texts(2**19, 140)),
    "ancillary chunk with a wrong checksum": Case(lambda: with_chunk(chunk(b"tEXt", b"a\0b", 1))),
    "physical size of a wrong length": Case(lambda: with_chunk(chunk(b"pHYs", b"\1"))),
    "gamma of a wrong length": Case(lambda: with_chunk(chunk(b"gAMA", b""))),
    "transparency of a wrong length": Case(lambda: with_chunk(chunk(b"tRNS", b"\1\2\3"))),
    "unknown chunk": Case(lambda: with_chunk(chunk(b"abCd", bytes(50)))),
    "animation header cut short": Case(lambda: with_chunk(chunk(b"acTL", b"\0\0"))),
    "animation of no frames": Case(lambda: with_chunk(chunk(b"acTL", bytes(8)))),
    "pixels in many chunks": Case(split_pixels),
    "pixel chunk with a wrong checksum": Case(
        lambda: (lambda c: c[: idat(c)[1]] + b"\0\0\0\0" + c[idat(c)[1] + 4 :])(encoded())
    ),
    "interlaced": Case(interlaced),
    "interlaced, without its end": Case(lambda: interlaced()[:-12]),
    "png without its end": Case(lambda: encoded()[:-12]),
    "png with half its end": Case(lambda: encoded()[:-6]),
    "png with more behind": Case(lambda: encoded() + b"more" * 999),
    "jpeg without its end": Case(lambda: jpeg()[:-2]),
    "jpeg with half its end": Case(lambda: jpeg()[:-1]),
    "jpeg with more behind": Case(lambda: jpeg() + b"\0" * 5000),
    "jpeg with a comment of noise": Case(lambda: with_segment(0xFE, bytes(range(256)))),
    "jpeg with bytes between segments": Case(lambda: (lambda c: c[:2] + b"\xff\xff\xff" + c[3:])(jpeg())),
    "jpeg, progressive": Case(lambda: jpeg(progressive=True)),
    "webp with more behind": Case(lambda: lossless() + b"more"),
    "animated png": Case(lambda: animated("PNG")),
    "animated webp": Case(lambda: animated("WEBP")),
    "several frames in a jpeg": Case(lambda: animated("MPO")),
    "several frames, the second cut": Case(lambda: animated("MPO")[:-300]),
    "cmyk jpeg": Case(lambda: encoded(cmyk(), "JPEG")),
    "cmyk jpeg, no Adobe mark": Case(
        lambda: (lambda c, at: c[: at - 2] + c[at + 14 :])(
            encoded(cmyk(), "JPEG"), encoded(cmyk(), "JPEG").index(b"\0\x0eAdobe")
        )
    ),
    "gray with transparency": Case(lambda: encoded(mode("LA"))),
    "palette with transparency": Case(palette_with_holes),
    "one bit": Case(lambda: encoded(mode("1"))),
    "sixteen bits of gray": Case(lambda: encoded(mode("I;16"))),
    "one pixel": Case(lambda: encoded(Image.new("RGB", (1, 1))), size=(1, 1)),
    # damaged
    "empty file": Case(lambda: b"", "empty (0 bytes)"),
    "pixels damaged": Case(broken_pixels, DAMAGED),
    "png cut in its pixels": Case(lambda: encoded()[: idat(encoded())[1] - 30], DAMAGED),
    "jpeg cut in its pixels": Case(lambda: jpeg()[:-60], DAMAGED),
    "jpeg, progressive and cut": Case(lambda: jpeg(progressive=True)[:-60], DAMAGED),
    "jpeg without a scan": Case(lambda: jpeg()[: jpeg().index(b"\xff\xda")], DAMAGED),
    "webp cut": Case(lambda: lossless()[:-40], DAMAGED),
    "signature of png alone": Case(lambda: PNG, DAMAGED),
    "signature of jpeg alone": Case(lambda: b"\xff\xd8\xff", DAMAGED),
    "png of no height": Case(
        lambda: PNG + header(16, 0) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""), DAMAGED
    ),
    "png with fewer rows than it says": Case(
        lambda: PNG + header(16, 16) + chunk(b"IDAT", zlib.compress(bytes(49 * 8))) + chunk(b"IEND", b""),
        DAMAGED,
    ),
    "png without a palette": Case(
        lambda: PNG + header(4, 4, 8, 3) + chunk(b"IDAT", zlib.compress(bytes(20))) + chunk(b"IEND", b""),
        DAMAGED,
    ),
    "png with a header of a wrong checksum": Case(
        lambda: encoded()[:29] + b"\0\0\0\0" + encoded()[33:], DAMAGED
    ),
    # too large
    "bomb of pixels": Case(
        lambda: PNG + header(60000, 60000) + chunk(b"IDAT", zlib.compress(bytes(999))), "too large"
    ),
    "bomb of one row": Case(
        lambda: PNG + header(2**31 - 1, 1) + chunk(b"IDAT", zlib.compress(bytes(999))), "too large"
    ),
    # something else
    "gif": Case(lambda: encoded(None, "GIF"), "a GIF image"),
    "bmp": Case(lambda: encoded(None, "BMP"), "a BMP image"),
    "tiff": Case(lambda: encoded(None, "TIFF"), "a TIFF image"),
    "icon": Case(lambda: encoded(None, "ICO"), "an icon"),
    "heic": Case(lambda: b"\0\0\0\x18ftypheic" + bytes(40), "a HEIC image"),
    "avif": Case(lambda: b"\0\0\0\x18ftypavif" + bytes(40), "an AVIF image"),
    "pdf": Case(lambda: b"%PDF-1.7\n" + bytes(40), "a PDF file"),
    "svg": Case(lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
    "web page": Case(lambda: b"<!DOCTYPE html><html>404</html>", "a web page"),
    "pointer": Case(lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
    "zeros": Case(lambda: bytes(5000), "filled with zeros"),
    "text": Case(lambda: b"image.png", OTHER),
    "sound": Case(lambda: b"RIFF\x24\0\0\0WAVEfmt " + bytes(40), OTHER),
    "apple's png": Case(apple, "CgBI"),
    "jpeg of twelve bits": Case(
        lambda: jpeg().replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), "12 bits"
    ),
    "jpeg, lossless": Case(lambda: jpeg().replace(b"\xff\xc0\0\x11", b"\xff\xc3\0\x11"), "lossless"),
}


def record(**changes: Any) -> bytes:
    """Return a good record with changes, as a line; a key that is ... is left out."""
    good = {"question": "Which?", "answer": "yes", "text": "evidence"}
    return json.dumps({key: value for key, value in (good | changes).items() if value is not ...}).encode()


def said(*turns: tuple[str, Any], **more: Any) -> bytes:
    return json.dumps(
        {"messages": [{"role": role, "content": content} for role, content in turns], **more}
    ).encode()


ASKED, TOLD = ("user", "Which?"), ("assistant", "This.")
RECORDS: dict[str, Case] = {
    "good": Case(record),
    "id that is used twice": Case(lambda: record(id="same")),
    "id that is used twice, again": Case(lambda: record(id="same")),
    "marks of special tokens": Case(
        lambda: record(text="<image></s><|im_end|>[INST]<s><|endoftext|>", question="<image>?")
    ),
    "templates in the text": Case(
        lambda: record(text="{{ 7 * 7 }} {% for a in b %}", question="{{ bos_token }}")
    ),
    "escapes of a terminal": Case(lambda: record(text="\x1b[31mred\x07")),
    "letters of all kinds": Case(lambda: record(text="größe 大 \U0001f600 \u202e rtl \u200b")),
    "answer spelled as no option is": Case(lambda: record(answer=" YES", options=["yes", "no"])),
    "conversation": Case(lambda: said(ASKED, TOLD)),
    "conversation of many turns": Case(lambda: said(*[ASKED, TOLD] * 3)),
    "conversation with a system turn": Case(lambda: said(("system", "Be short."), ASKED, TOLD)),
    "conversation that begins with an answer": Case(lambda: said(TOLD, ASKED, TOLD)),
    "conversation that ends with a question": Case(lambda: said(ASKED, TOLD, ASKED)),
    "contents in parts": Case(lambda: said(("user", [{"type": "text", "text": "Which?"}]), TOLD)),
    "pairs of ms-swift": Case(lambda: json.dumps({"query": "Which?", "response": "This."}).encode()),
    "a pair of Alpaca": Case(
        lambda: json.dumps({"instruction": "Sum up.", "input": "a", "output": "b"}).encode()
    ),
    "no JSON": Case(lambda: b"question: which", "bad JSON"),
    "cut JSON": Case(lambda: record()[:-5], "bad JSON"),
    "two objects": Case(lambda: record() + b" " + record(), "bad JSON"),
    "a list": Case(lambda: b"[]", "a list instead of an object"),
    "a number": Case(lambda: b"5", "a number instead of an object"),
    "not UTF-8": Case(lambda: b'{"question": "\xff"}', "not UTF-8"),
    "UTF-16": Case(lambda: '{"question": "a"}'.encode("utf-16-le"), "bad JSON"),
    "a key twice": Case(lambda: b'{"answer": "a", "answer": "b"}', "appears twice"),
    "not a number": Case(lambda: b'{"question": NaN}', "NaN"),
    "nested deeply": Case(lambda: b'{"a": ' + b"[" * 99_999 + b"]" * 99_999 + b"}", "nested too deeply"),
    "a long line": Case(lambda: record(text="x" * 1_000_001), "longer than"),
    "no question": Case(lambda: record(question=...), "question is missing"),
    "empty question": Case(lambda: record(question=" "), "question is empty"),
    "no answer": Case(lambda: record(answer=None), "answer is missing"),
    "answer of a wrong kind": Case(lambda: record(answer=5), "answer is the number 5"),
    "no evidence": Case(lambda: record(text=...), "neither image nor text"),
    "half a character": Case(lambda: b'{"question": "q", "answer": "a", "text": "\\ud83d"}', "surrogate"),
    "one option": Case(lambda: record(options=["yes"]), "options must be at least two"),
    "options that are the same": Case(
        lambda: record(options=["yes", "YES "]), "options must be at least two"
    ),
    "answer that is no option": Case(lambda: record(options=["no", "maybe"]), "not among the options"),
    "image that is missing": Case(lambda: record(image="none.png"), "is missing"),
    "image outside": Case(lambda: record(image="../x.png"), "leaves the folder"),
    "image outside, hidden": Case(lambda: record(image="a/../../x.png"), "leaves the folder"),
    "image of the system": Case(lambda: record(image="/etc/passwd"), "absolute path"),
    "image on the web": Case(lambda: record(image="https://example.org/x.png"), "URL"),
    "image on a drive": Case(lambda: record(image="C:\\x.png"), "backslash"),
    "image in the record": Case(lambda: record(image="data:image/png;base64,iVBO"), "put it into a file"),
    "image as bytes": Case(lambda: record(image={"bytes": "iVBO"}), "put it into a file"),
    "image that is a folder": Case(lambda: record(image="."), "not a file"),
    "image with a NUL": Case(lambda: record(image="a\0.png"), "NUL"),
    "image of a long name": Case(lambda: record(image="x" * 5000), "unreadable"),
    "image that is the list itself": Case(lambda: record(image="data.jsonl"), OTHER),
    "turns of nobody": Case(lambda: said(("narrator", "Once"), ASKED, TOLD), "a turn is of 'narrator'"),
    "turns without an answer": Case(lambda: said(ASKED), "no question with an answer"),
    "turns that are no list": Case(lambda: b'{"conversations": {"from": "human"}}', "not a list of objects"),
    "turns with tools": Case(lambda: said(ASKED, TOLD, tools=[{"name": "f"}]), "tools"),
    "turns with a video": Case(lambda: said(ASKED, TOLD, videos=["a.mp4"]), "videos"),
    "marks without images": Case(lambda: said(("user", "<image><image>?"), TOLD), "marks for 0 images"),
    "parts of a wrong kind": Case(lambda: said(("user", [{"type": "audio"}]), TOLD), "not text or image"),
    "an empty turn": Case(lambda: said(("user", ""), TOLD), "question is empty"),
}


def fill(root: Path) -> tuple[list[str], list[str]]:
    """Write a folder with every image and record, between good ones.

    Returns:
        The names of the cases in the order of the lines of `data.jsonl`, of images and of records; a good record stands
        before each of them.
    """
    lines: list[bytes] = []
    for number, (name, case) in enumerate(IMAGES.items()):
        file = f"{number}.{name.split()[0]}.png"  # the extension is wrong for most
        (root / file).write_bytes(case.build())
        lines += [record(text=f"good {len(lines)}"), record(image=file, text=...)]
    for case in RECORDS.values():
        lines += [record(text=f"good {len(lines)}"), case.build()]
    (root / "data.jsonl").write_bytes(b"\n".join(lines))
    return list(IMAGES), list(RECORDS)
