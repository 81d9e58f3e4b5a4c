"""The wire codecs: error bounds, sizes, and refusal of all bytes that no encoder writes."""

from __future__ import annotations

import math
import struct
import tracemalloc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedloom.wire.compression import (
    CHECK,
    CODECS,
    HEAD,
    HEADER,
    INT4,
    INT8,
    LARGEST,
    MAGIC,
    SMALLEST,
    TOP,
    checksum,
    decode,
    encode,
)

CHOICES = st.sampled_from(sorted(CODECS))


@st.composite
def buffers(draw: st.DrawFn) -> Tensor:
    """Values of many sizes and magnitudes, with stretches of zeros; lengths around the block sizes."""
    count = draw(st.one_of(st.integers(1, 200), st.sampled_from([INT8 - 1, INT8, INT8 + 1, 3 * INT8 + 7])))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randn(count, generator=generator)
    size = draw(st.integers(-130, 110))
    spread = torch.randint(-6, 7, (count,), generator=generator)
    values = values * 2.0 ** (spread.double() + size).float()
    values[torch.rand(count, generator=generator) < draw(st.sampled_from([0.0, 0.3, 1.0]))] = 0.0
    return values.clamp(-LARGEST, LARGEST)


def largest(values: Tensor, size: int) -> Tensor:
    """The largest |value| of each value's block, shape [P]."""
    count = values.numel()
    padded = torch.nn.functional.pad(values.abs(), (0, -count % size))
    return padded.view(-1, size).amax(1).repeat_interleave(size)[:count].double()


@given(buffers())
def test_fp32_loses_nothing(values: Tensor) -> None:
    assert torch.equal(decode(encode(values, "fp32")).view(torch.int32), values.view(torch.int32))


@given(buffers())
def test_bf16_bound(values: Tensor) -> None:
    away = (decode(encode(values, "bf16")).double() - values.double()).abs()
    assert bool((away <= (values.double().abs() / 256).clamp(min=2.0**-126)).all())


@pytest.mark.parametrize(("codec", "size", "share"), [("int8", INT8, 252), ("int4", INT4, 13.8)])
@given(values=buffers())
def test_block_bound(codec: str, size: int, share: float, values: Tensor) -> None:
    decoded, most = decode(encode(values, codec)), largest(values, size)
    away = (decoded.double() - values.double()).abs()
    assert bool((away <= (most / share).clamp(min=SMALLEST)).all())
    assert bool((decoded[most < SMALLEST] == 0).all())


@given(buffers())
def test_top16_keeps_the_largest_of_each_sixteen(values: Tensor) -> None:
    decoded, most = decode(encode(values, "top16")), largest(values, TOP)
    padded = torch.nn.functional.pad(decoded, (0, -len(decoded) % TOP)).view(-1, TOP)
    assert int((padded != 0).sum(1).max()) <= 1
    kept = decoded != 0
    away = (decoded.double() - values.double()).abs()[kept]
    assert bool((away <= (values[kept].double().abs() / 256).clamp(min=2.0**-126)).all())
    assert bool((values[kept].double().abs() >= most[kept] * (1 - 2.0**-19)).all())


def test_int8_by_hand() -> None:
    # The scale of a block with largest value 127 is 1, so whole numbers come back as they are.
    values = torch.tensor([127.0, -127.0, 1.0, 0.4, -0.6, 0.0])
    assert decode(encode(values, "int8")).tolist() == [127.0, -127.0, 1.0, 0.0, -1.0, 0.0]


def test_int4_by_hand() -> None:
    values = torch.tensor([7.0, -7.0, 1.0, 0.4, -0.6, 0.0])
    assert decode(encode(values, "int4")).tolist() == [7.0, -7.0, 1.0, 0.0, -1.0, 0.0]


@pytest.mark.parametrize(
    ("codec", "most"), [("fp32", 1.001), ("bf16", 0.501), ("int8", 0.253), ("int4", 0.141), ("top16", 0.045)]
)
def test_sizes(codec: str, most: float) -> None:
    count = 100_000
    assert len(encode(torch.randn(count), codec)) <= most * 4 * count


@given(buffers(), CHOICES)
def test_length_is_that_of_the_codec(values: Tensor, codec: str) -> None:
    assert len(encode(values, codec)) == HEADER + CODECS[codec].size(values.numel())


REFUSED = r"an encoded buffer|these bytes|header|checksum"
"""What every refusal of ours says, and no error of a library that was handed damaged bytes."""


@given(buffers(), CHOICES, st.data())
def test_truncated_bytes_are_refused(values: Tensor, codec: str, data: st.DataObject) -> None:
    encoded = encode(values, codec)
    with pytest.raises(ValueError, match=REFUSED):
        decode(encoded[: data.draw(st.integers(0, len(encoded) - 1))])
    with pytest.raises(ValueError, match=REFUSED):
        decode(encoded + b"\0")


@given(buffers(), CHOICES, st.data())
def test_damaged_bytes_are_refused(values: Tensor, codec: str, data: st.DataObject) -> None:
    encoded = bytearray(encode(values, codec))
    place = data.draw(st.integers(0, len(encoded) - 1))
    encoded[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ValueError, match=REFUSED):
        decode(encoded)


def test_every_bit_of_the_header_counts() -> None:
    # Two values take as many bytes in bf16 as in int8, and 5 values as many in int4 as 6.
    for codec, count in (("bf16", 2), ("int8", 2), ("int4", 5), ("top16", 5)):
        encoded = encode(torch.ones(count), codec)
        for place in range(8 * HEADER):
            damaged = bytearray(encoded)
            damaged[place // 8] ^= 1 << place % 8
            with pytest.raises(ValueError, match=REFUSED):
                decode(damaged)


def test_a_header_of_another_codec_is_refused() -> None:
    encoded = bytearray(encode(torch.ones(2), "bf16"))
    encoded[4] = CODECS["int8"].code
    with pytest.raises(ValueError, match="checksum"):
        decode(encoded)


def test_swapped_words_are_refused() -> None:
    encoded = bytearray(encode(torch.arange(1.0, 401.0), "fp32"))
    words = memoryview(encoded)[HEADER:].cast("B")
    for first, second in ((0, 8), (0, 800)):
        before = bytes(words[first : first + 8]), bytes(words[second : second + 8])
        words[first : first + 8], words[second : second + 8] = before[1], before[0]
        with pytest.raises(ValueError, match="checksum"):
            decode(encoded)
        words[first : first + 8], words[second : second + 8] = before
    assert decode(encoded)[0] == 1.0


def test_checksum_by_its_definition() -> None:
    import zlib

    from fedloom.wire.compression import MULTIPLIER

    payload = torch.arange(1000, dtype=torch.int64).to(torch.uint8)
    raw = bytes(payload.tolist()) + bytes(-1000 % 512)
    words = struct.unpack(f"<{len(raw) // 8}Q", raw)
    figures = [
        sum(word * pow(MULTIPLIER, place, 2**64) for place, word in enumerate(words[start : start + 64]))
        % 2**64
        for start in range(0, len(words), 64)
    ]
    assert checksum(payload, b"head") == zlib.crc32(b"head" + struct.pack(f"<{len(figures)}Q", *figures))


@pytest.mark.parametrize("codec", CODECS)
def test_long_buffers_are_coded_block_by_block(codec: str) -> None:
    # Blocks know nothing of each other, so a long buffer decodes to what its stretches decode to.
    stretch = 64 * INT8
    values = torch.randn(5 * stretch + 3, generator=torch.Generator().manual_seed(0))
    parts = [decode(encode(part, codec)) for part in values.split(stretch)]
    assert torch.equal(decode(encode(values, codec)), torch.cat(parts))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(codec: str, bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        encode(torch.tensor([1.0, bad]), codec)


def test_what_cannot_be_encoded() -> None:
    with pytest.raises(ValueError, match="no codec"):
        encode(torch.ones(2), "zip")
    for wrong in (torch.ones(2, 2), torch.ones(2).double(), torch.ones(0)):
        with pytest.raises(ValueError, match="float32"):
            encode(wrong)
    with pytest.raises(ValueError, match="up to"):
        encode(torch.tensor([2.0**121]), "int8")


def test_a_view_only_of_bytes_that_can_be_written() -> None:
    encoded = encode(torch.ones(3))
    decode(encoded).zero_()
    assert decode(encoded).tolist() == [1.0, 1.0, 1.0]
    writable = bytearray(encoded)
    decode(writable).zero_()
    with pytest.raises(ValueError, match="checksum"):
        decode(writable)


def forged(data: bytearray) -> bytearray:
    """Return bytes with the right checksum."""
    payload = torch.frombuffer(data, dtype=torch.uint8, offset=HEADER)
    data[HEAD.size : HEADER] = CHECK.pack(checksum(payload, bytes(data[: HEAD.size])))
    return data


@given(buffers(), CHOICES, st.data())
def test_forged_bytes_are_refused_or_are_what_their_values_are_written_as(
    values: Tensor, codec: str, data: st.DataObject
) -> None:
    encoded = bytearray(encode(values, codec))
    length = len(encoded) - HEADER
    for _ in range(data.draw(st.integers(1, 4))):
        place = HEADER + data.draw(st.integers(0, length - 1))
        encoded[place] = data.draw(st.one_of(st.integers(0, 255), st.sampled_from([0, 0x7F, 0x80, 0xFF])))
    try:
        decoded = decode(bytes(forged(encoded)))
    except ValueError as error:
        assert "encode" in str(error)
        return
    assert decoded.shape == values.shape
    assert bool(torch.isfinite(decoded).all())
    # Another block may be written with a smaller scale, where rounding up left its largest level at 126.
    if codec != "int8" or 126 not in levels_of(encoded, len(values)):
        assert encode(decoded.clamp(-LARGEST, LARGEST) if codec != "fp32" else decoded, codec) == bytes(
            encoded
        )


def levels_of(encoded: bytearray, count: int) -> set[int]:
    """The largest level of each int8 block."""
    levels = torch.frombuffer(encoded, dtype=torch.int8, offset=HEADER)[-count:].int().abs()
    return {int(block.max()) for block in levels.split(INT8)}


@pytest.mark.parametrize(
    ("codec", "place", "byte"),
    [
        ("fp32", 3, 0x7F),  # with 0x80 before it: infinity
        ("bf16", 1, 0xFF),
        ("int8", 1, 0x7F),  # the scale is infinite
        ("int8", 1, 0x80 | 0x3C),  # the scale is negative
        ("int8", 2, 0x80),  # the level -128
        ("int8", 2, 3),  # the block does not use its largest level
        ("int4", 2, 0x80),  # the level -8
        ("int4", 33, 0x87),  # a value beyond the last
        ("top16", 4, 0xF7),  # the largest stands beyond the last
        ("top16", 3, 0x3F),  # another one in a block of nothing
    ],
)
def test_payloads_that_encode_never_writes_are_refused(codec: str, place: int, byte: int) -> None:
    encoded = bytearray(encode(torch.tensor([1.0, 0.5]), codec))
    if codec in ("fp32", "bf16"):
        encoded[HEADER + place - 1] = 0x80
    encoded[HEADER + place] = byte
    with pytest.raises(ValueError, match="not one that `encode` writes"):
        decode(forged(encoded))


@given(st.binary(max_size=200), st.integers(2**16, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 255))
def test_hostile_headers_take_no_memory(rest: bytes, count: int, length: int, code: int) -> None:
    for announced in (length, len(rest), CODECS["int4"].size(count) % 2**64):
        head = HEAD.pack(MAGIC, code, count, announced)
        tracemalloc.start()
        try:
            with pytest.raises(ValueError):
                decode(forged(bytearray(head + bytes(CHECK.size) + rest)) if rest else head)
            assert tracemalloc.get_traced_memory()[1] < 2**20
        finally:
            tracemalloc.stop()


@given(st.binary(max_size=300))
def test_any_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode(data)
