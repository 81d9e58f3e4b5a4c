"""Images that are refused, with their reasons, and the pixels of accepted ones."""

import hashlib
import io
import multiprocessing
import os
import struct
import zipfile
import zlib
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from fedloom.data.images import (
    LIMITS,
    FileImage,
    Limits,
    ZipImage,
    _content,
    _decode,
    _Refused,
    quick_check,
)
from fedloom.system.errors import UserError

DAMAGED = "damaged or cut short"
UNKNOWN = "not a PNG, JPEG or WebP image"
TOO_MANY = "too large (more than 50,000,000 pixels)"


def check_image(source, limits=LIMITS):
    """Return the reason why an image, or the file that holds it, cannot be used, or None."""
    try:
        _decode(source if isinstance(source, bytes) else _content(source, limits), limits)
    except _Refused as refused:
        return str(refused)
    return None


def png_header(width, height):
    """Return a PNG that declares a size and holds hardly any data."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def saved(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_the_three_formats_are_read(tmp_path, encoded, format):
    content = encoded(1, format)
    path = tmp_path / "picture"
    path.write_bytes(content)
    assert check_image(content) is None
    assert check_image(path) is None
    pixels = FileImage(path).pixels()
    with Image.open(io.BytesIO(content)) as image:
        np.testing.assert_array_equal(pixels, np.asarray(image.convert("RGB")))
    assert (pixels.shape, pixels.dtype, pixels.flags.writeable) == ((12, 13, 3), np.uint8, True)


OTHERS = {
    "GIF": "a GIF image, ",
    "BMP": "a BMP image, ",
    "TIFF": "a TIFF image, ",
    "PPM": "",
    "ICO": "an icon, ",
}


@pytest.mark.parametrize("format", OTHERS)
def test_other_formats_are_named(encoded, format):
    assert check_image(encoded(1, format)) == OTHERS[format] + UNKNOWN


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_every_truncation_is_found(encoded, format):
    """A truncated file is refused, unless only its end is missing and all pixels are there."""
    content = encoded(2, format, side=16)
    with Image.open(io.BytesIO(content)) as image:
        whole = image.convert("RGB").tobytes()
    used = []
    for cut in range(1, len(content)):
        reason = check_image(content[:cut])
        if reason is None:
            assert _decode(content[:cut], LIMITS).tobytes() == whole
            used.append(cut)
        else:
            assert reason == (DAMAGED if cut > 16 else reason)
    # A PNG ends with a checksum of four bytes and an end mark of twelve; a JPEG with a mark of two.
    assert used == {"PNG": [*range(len(content) - 16, len(content))], "JPEG": used, "WEBP": []}[format]
    assert format != "JPEG" or set(used) >= {len(content) - 2, len(content) - 1}


@pytest.mark.parametrize("seed", [None, 0])
def test_every_truncation_between_restart_markers_is_found(seed):
    """Cameras mark every few blocks of a JPEG; a decoder goes on at the next mark, with what lies between left gray."""
    noise = np.random.default_rng(seed or 0).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    image = Image.fromarray(noise if seed is not None else np.full_like(noise, (10, 200, 30)))
    stored = io.BytesIO()
    image.save(stored, "JPEG", restart_marker_blocks=2)
    content = stored.getvalue()
    whole = _decode(content, LIMITS).tobytes()
    first = content.rindex(b"\xff\xda")
    used = [cut for cut in range(first, len(content)) if check_image(content[:cut]) is None]
    assert {_decode(content[:cut], LIMITS).tobytes() for cut in used} == {whole}
    assert set(used) >= {len(content) - 2, len(content) - 1}


def test_a_jpeg_that_lost_the_scans_of_its_colors_is_refused():
    """Hand-made: 8 x 8, three components in scans of their own; every code is one bit, DC difference 0 or 1, then end."""

    def segment(mark, data):
        return struct.pack(">BBH", 0xFF, mark, len(data) + 2) + data

    frame = segment(
        0xC0, struct.pack(">BHHB", 8, 8, 8, 3) + b"".join(bytes((one, 0x11, 0)) for one in (1, 2, 3))
    )
    direct = segment(0xC4, bytes((0x00, 0, 2, *[0] * 14, 0, 6)))  # 00: no difference; 01: one of six bits
    other = segment(0xC4, bytes((0x10, 1, *[0] * 15, 0)))  # 0: end of the block
    tables = segment(0xDB, bytes((0, *[16] * 64))) + direct + other
    # 01, six bits of a difference of 63, 0, and ones up to the byte's end.
    scans = [segment(0xDA, bytes((1, one, 0, 0, 63, 0))) + b"\x7f\x7f" for one in (1, 2, 3)]
    start, end = b"\xff\xd8" + tables + frame, b"\xff\xd9"
    assert check_image(start + b"".join(scans) + end) is None
    for count in (1, 2):
        assert check_image(start + b"".join(scans[:count])) == DAMAGED


def test_every_flipped_bit_of_png_data_is_found(encoded):
    content = encoded(3, side=8)
    data = content.index(b"IDAT") + 4
    for at in range(data, len(content) - 16):
        broken = bytearray(content)
        broken[at] ^= 1
        assert check_image(bytes(broken)) == DAMAGED


@pytest.mark.parametrize("size", [(30_000, 30_000), (12_500, 8_000), (10_000, 6_000)])
def test_bombs_are_refused_before_decoding(monkeypatch, size):
    """The three sizes are an error of Pillow's, a warning of Pillow's, and below both."""
    decoded = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: decoded.append(image))
    assert check_image(png_header(*size)) == TOO_MANY
    assert not decoded


def test_a_larger_limit_does_not_lift_pillows_bound():
    reason = check_image(png_header(12_500, 8_000), Limits(pixels=10**9))
    assert reason == f"too large (more than {Image.MAX_IMAGE_PIXELS:,} pixels)"


def test_limits_are_exact(encoded, tmp_path):
    content = encoded(4)  # 12 × 13 pixels
    file = tmp_path / "image.png"
    file.write_bytes(content)
    assert check_image(content, Limits(pixels=156)) is None
    assert check_image(content, Limits(pixels=155)) == "too large (more than 155 pixels)"
    size = len(content)
    assert check_image(file, Limits(bytes=size)) is None
    assert check_image(file, Limits(bytes=size - 1)) == f"too large (more than {size - 1:,} bytes)"


def test_paths_that_are_not_usable_files(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello")
    os.mkfifo(tmp_path / "pipe")  # opening it would never return
    assert check_image(tmp_path / "absent.png") == "missing"
    assert check_image(tmp_path / "nul\0.png") == "missing"
    assert check_image(tmp_path / "empty") == "empty (0 bytes)"
    assert check_image(tmp_path / "text") == UNKNOWN
    assert check_image(tmp_path / "pipe") == "not a file"
    assert check_image(tmp_path) == "not a file"
    assert check_image(tmp_path / ("x" * 5000)).startswith("unreadable")


@given(
    st.binary(max_size=200),
    st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x10\0\0\0WEBP"]),
)
def test_arbitrary_bytes_never_crash(content, signature):
    assert check_image(signature + content) is not None


def test_transparency_becomes_white(tmp_path):
    values = np.array([[[255, 0, 0, 0], [255, 0, 0, 255], [0, 0, 0, 51]]], np.uint8)
    path = tmp_path / "clear.png"
    path.write_bytes(saved(Image.fromarray(values)))
    # 51 / 255 is a fifth: black at a fifth on white leaves four fifths of 255.
    assert FileImage(path).pixels().tolist() == [[[255, 255, 255], [255, 0, 0], [204, 204, 204]]]
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([9, 9, 9])
    path.write_bytes(saved(palette, transparency=0))
    assert FileImage(path).pixels().tolist() == [[[255, 255, 255]]]


def test_exif_orientation_is_applied(tmp_path):
    values = np.zeros((2, 3, 3), np.uint8)
    values[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90° clockwise to see it upright
    path = tmp_path / "turned.png"
    path.write_bytes(saved(Image.fromarray(values), exif=exif))
    np.testing.assert_array_equal(FileImage(path).pixels(), np.rot90(values, k=-1))


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_animations_show_their_first_frame(tmp_path, format):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue", "green")]
    path = tmp_path / "moving"
    path.write_bytes(saved(frames[0], format, save_all=True, append_images=frames[1:], lossless=True))
    assert FileImage(path).pixels().reshape(-1, 3).tolist() == [[255, 0, 0]] * 16


def test_sixteen_bit_gray_is_scaled_not_clipped(tmp_path):
    path = tmp_path / "deep.png"
    path.write_bytes(saved(Image.fromarray(np.array([[0, 257, 65535 // 2, 65535]], np.uint16))))
    assert FileImage(path).pixels()[0, :, 0].tolist() == [0, 1, 127, 255]


@pytest.mark.parametrize("clear", [0, 300, 65535])
def test_the_transparent_value_of_sixteen_bit_gray_becomes_white(tmp_path, clear):
    values = np.array([[0, 300, 301, 65535]], np.uint16)
    path = tmp_path / "deep.png"
    path.write_bytes(saved(Image.fromarray(values), transparency=clear))
    expected = np.where(values == clear, 255, values // 257)
    assert FileImage(path).pixels()[0, :, 0].tolist() == expected[0].tolist()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / "picture.png"
    path.write_bytes(saved(Image.new(mode, (3, 2))))
    assert check_image(path) is None
    assert FileImage(path).pixels().shape == (2, 3, 3)


def test_cmyk_jpeg_becomes_rgb(tmp_path):
    path = tmp_path / "print.jpg"
    path.write_bytes(saved(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"))
    assert FileImage(path).pixels().tolist() == [[[255, 255, 255]] * 8] * 8


def test_keys_are_equal_for_equal_files_only(tmp_path, encoded):
    for name, number in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).write_bytes(encoded(number))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "a", "inside.png")
    a, b, c = (FileImage(tmp_path / name) for name in "abc")
    assert a.key == b.key == ZipImage(tmp_path / "all.zip", "inside.png").key
    assert a.key != c.key


def test_the_message_names_an_image_that_became_unreadable(tmp_path):
    picture = FileImage(tmp_path / "scan.png")
    with pytest.raises(UserError, match=r"scan\.png: the image is missing"):
        picture.pixels()
    (tmp_path / "scan.png").write_text("no picture")
    with pytest.raises(UserError, match=r"scan\.png: the image is not a PNG"):
        picture.pixels()


def digest(picture):
    return hashlib.sha256(picture.pixels().tobytes()).hexdigest()


def test_forked_processes_read_one_archive_at_once(tmp_path, encoded):
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for number in range(60):
            archive.writestr(f"{number}.png", encoded(number))
    pictures = [ZipImage(tmp_path / "all.zip", f"{number % 60}.png") for number in range(240)]
    expected = [digest(picture) for picture in pictures]  # leaves the archive open in this process
    with ProcessPoolExecutor(3, multiprocessing.get_context("fork")) as pool:
        assert list(pool.map(digest, pictures, chunksize=5)) == expected


def test_the_quick_check_finds_files_that_cannot_be_images_and_nothing_more(tmp_path, encoded):
    whole, cut, other, empty = (
        tmp_path / name for name in ("whole.png", "cut.png", "other.png", "empty.png")
    )
    whole.write_bytes(encoded(1))
    cut.write_bytes(encoded(1)[:-40])
    other.write_bytes(b"GIF89a and more")
    empty.touch()
    assert [quick_check(path) for path in (whole, cut)] == [None, None]
    assert [check_image(path) for path in (whole, cut)] == [None, "damaged or cut short"]
    for path in (other, empty, tmp_path, tmp_path / "absent.png"):
        assert quick_check(path) == check_image(path) is not None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_size_from_the_header_is_that_of_the_pixels(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    Image.new("RGB", (24, 16)).save(path, exif=exif)
    picture = FileImage(path)
    height, width = picture.pixels().shape[:2]
    assert picture.size == (width, height)


def test_the_size_of_a_file_that_is_not_an_image_is_refused(tmp_path):
    (tmp_path / "a.png").write_text("text")
    with pytest.raises(UserError, match=r"a\.png: the image is not a PNG, JPEG or WebP image"):
        _ = FileImage(tmp_path / "a.png").size
