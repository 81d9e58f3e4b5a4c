"""Encode flat buffers as bytes, in full precision or in fewer bits, and decode them.

    codec   bytes per value   error, m being the largest |value| of a block
    fp32    4                 none
    bf16    2                 at most |value| / 256
    int8    1 + 2/1024        at most m / 252 (blocks of 1024)
    int4    1/2 + 2/64        at most m / 13.8 (blocks of 64)
    top16   5/32              15 of 16 values become zero; the largest loses at most |value| / 256

int8 and int4 scale a block so that its largest value gets the largest level; the scale is rounded up to bf16,
so nothing is clipped. A block whose m is below 2⁻¹⁰⁰ becomes zeros, and bf16 loses up to 2⁻¹²⁶ of values as small
as that. top16 keeps the largest of each 16 values; it distinguishes values that differ by 2⁻¹⁹ of their size.

    header = magic "FLW1" · codec (1 byte) · 3 zero bytes · P (8) · payload bytes (8) · checksum (8), little-endian

The checksum is a CRC-32 over the header before it and one 64-bit number for every 512 bytes of payload:
Σ_j w_j · g^j mod 2⁶⁴ over their 64 words w_j, for an odd g. Any change within one word changes this number. The
checksum detects accidental damage at the speed of memory, which SHA-256 does not reach. It is no defense against
forgery, which is the task of the transport. Forged bytes with a right checksum are accepted only if `encode` could have
written them: scales are finite and not negative, a block uses its largest level, and the padding of a block is zero.
Decoding them takes no more memory than their own values.

Shape legend: P values, B blocks, S values in a block.

Reference: block-wise scales as in T. Dettmers, M. Lewis, S. Shleifer, L. Zettlemoyer, "8-bit Optimizers via
Block-wise Quantization", arXiv 2110.02861v2, section 2.1.

Differs from the paper: levels are evenly spaced, not dynamic, and blocks are smaller.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

MAGIC = b"FLW1"
HEAD = struct.Struct("<4sB3xQQ")
CHECK = struct.Struct("<Q")
HEADER = HEAD.size + CHECK.size  # bytes before the payload
LARGEST = 2.0**120  # largest |value| in fewer bits, whose scaled level stays finite
SMALLEST = 2.0**-100  # smallest m of a block that is not zero; below it a scale would lose its own bits
INT8, INT4, TOP = 1024, 64, 16  # values in a block
PIECE = 2**17  # values packed at a time, so that intermediate results fit a cache; a multiple of every block
WORDS = 64  # words of 8 bytes in a row of the checksum
MULTIPLIER = 6364136223846793005  # odd, so that a changed word always changes its row's number


@dataclass(frozen=True)
class Codec:
    """An encoding of values.

    Attributes:
        code: Its number in the header.
        size: Function P → bytes of payload.
        pack: Function values [P] → payload, uint8.
        unpack: Function (payload, P) → values [P], float32.
        loss: Largest norm of the error, as a share of the norm of the values, in [0, 1).
    """

    code: int
    size: Callable[[int], int]
    pack: Callable[[Tensor], Tensor]
    unpack: Callable[[Tensor, int], Tensor]
    loss: float


class Codecs(NamedTuple):
    """The codecs of a method's messages.

    Attributes:
        up: The codec of updates.
        down: The codec of the parameters that the server sends.
        feedback: Whether a client adds to its update the codec's error in its earlier ones.
    """

    up: str = "fp32"
    down: str = "fp32"
    feedback: bool = True

    @property
    def gain(self) -> float:
        """The largest norm of what a client sends, as a multiple of the largest norm D of its own changes so far.

        With c the codec's loss, the error that a client keeps has at most the norm c (D + c (D + …)) = D c / (1 − c), and the
        decoded update at most 1 + c times the norm of the encoded values.
        """
        lost = CODECS[self.up].loss
        return (1 + lost) / (1 - lost) if self.feedback else 1 + lost


FP32 = Codecs()
"""The codecs of messages without loss."""


def encode(flat: Tensor, codec: str = "fp32") -> bytes:
    """Encode a flat buffer as bytes that `decode` reads.

    Args:
        flat: float32 values, shape [P], P ≥ 1, finite, and at most 2¹²⁰ unless the codec is "fp32".
        codec: A key of `CODECS`.

    Raises:
        ValueError: Another dtype or shape, no values, values out of range, or an unknown codec.

    Example:
        >>> decode(encode(torch.tensor([1.0, -2.0]), "bf16"))
        tensor([ 1., -2.])
    """
    if codec not in CODECS:
        raise ValueError(f"there is no codec {codec!r}; the codecs are {', '.join(CODECS)}")
    if flat.dtype != torch.float32 or flat.dim() != 1 or not flat.numel():
        raise ValueError(
            f"a flat buffer is float32 of shape [P], P ≥ 1, not {flat.dtype} of {tuple(flat.shape)}"
        )
    values = flat.detach().cpu().contiguous()
    low, high = (float(value) for value in torch.aminmax(values))
    limit = torch.finfo(torch.float32).max if codec == "fp32" else LARGEST
    if not (-limit <= low and high <= limit):  # also true of NaN
        raise ValueError(f"values from {low} to {high}: {codec} takes finite values up to {limit:.4g}")
    encoding = CODECS[codec]
    payload = encoding.pack(values)
    head = HEAD.pack(MAGIC, encoding.code, values.numel(), payload.numel())
    return b"".join((head, CHECK.pack(checksum(payload, head)), payload.numpy().data))


def decode(data: bytes | bytearray | memoryview) -> Tensor:
    """Decode bytes that `encode` returned, to float32 values of shape [P].

    With "fp32" the values are a view of `data` if it is writable (a bytearray), else a copy.

    Raises:
        ValueError: The bytes are too short, too long, damaged, of another format, or not as `encode` writes them.
    """
    if len(data) < HEADER:
        raise ValueError(f"an encoded buffer has at least {HEADER} bytes, not {len(data)}")
    magic, code, count, length = HEAD.unpack_from(data)
    encoding = next((candidate for candidate in CODECS.values() if candidate.code == code), None)
    if magic != MAGIC or any(data[5:8]) or encoding is None:
        raise ValueError("these bytes do not begin as an encoded buffer does")
    if not count or length != encoding.size(count):
        raise ValueError(f"the header is damaged: {count} values do not take {length} bytes")
    if len(data) != HEADER + length:
        raise ValueError(f"{len(data) - HEADER} bytes follow the header, which announces {length}")
    # torch needs writable memory; a copy keeps immutable bytes immutable.
    buffer = bytearray(data) if memoryview(data).readonly else data
    payload = torch.frombuffer(buffer, dtype=torch.uint8, offset=HEADER)
    if checksum(payload, bytes(data[: HEAD.size])) != CHECK.unpack_from(data, HEAD.size)[0]:
        raise ValueError("the checksum does not match: the bytes were damaged in transit")
    values = encoding.unpack(payload, count)
    low, high = (float(value) for value in torch.aminmax(values))
    # A scale is rounded up, so a decoded value may be a little larger than the largest that is encoded.
    limit = torch.finfo(torch.float32).max if encoding.code == 0 else LARGEST * (1 + 2**-7)
    _expect(-limit <= low and high <= limit, "values that are not finite or too large")
    return values


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(f"the payload is not one that `encode` writes: it holds {otherwise}")


def codec_of(data: bytes) -> str:
    """Return the name of the codec of bytes that `encode` wrote."""
    return next(name for name, one in CODECS.items() if one.code == data[4])


def checksum(payload: Tensor, head: bytes) -> int:
    """Compute the checksum of a payload, uint8 of shape [n], and of the header before it."""
    whole = payload.numel() // (8 * WORDS) * 8 * WORDS
    rows = payload[:whole].view(torch.int64).view(-1, WORDS)
    tail = F.pad(payload[whole:], (0, 8 * WORDS - (payload.numel() - whole))).view(torch.int64)
    figures = torch.cat([torch.mv(rows, _POWERS), (tail * _POWERS).sum()[None]])
    return zlib.crc32(figures.numpy().data, zlib.crc32(head))


def _powers() -> Tensor:
    power, powers = 1, []
    for _ in range(WORDS):
        powers.append(power - 2**64 if power >= 2**63 else power)  # as int64 reads the same bits
        power = power * MULTIPLIER % 2**64
    return torch.tensor(powers)


_POWERS = _powers()


def _blocks(values: Tensor, size: int) -> Tensor:
    """Pad values with zeros to whole blocks: [P] → [B, S]."""
    missing = -values.numel() % size
    return (F.pad(values, (0, missing)) if missing else values).view(-1, size)


def _count(values: int, size: int) -> int:
    return -(-values // size)


def _scaled(values: Tensor, size: int, levels: int, pack: Callable[[Tensor], Tensor]) -> Tensor:
    """Divide blocks by their scales, round, and return all scales as bf16, then all packed levels, as uint8."""
    scales: list[Tensor] = []
    packed: list[Tensor] = []
    for piece in values.split(PIECE):
        blocks = _blocks(piece, size)
        largest = torch.maximum(-blocks.amin(1), blocks.amax(1))  # several times faster than aminmax
        # Adding 0xFFFF before the lower half of the bits is cut off rounds a positive float32 up to bf16.
        bits = (largest / levels).view(torch.int32).add_(0xFFFF).bitwise_right_shift_(16)
        scale = torch.where(largest < SMALLEST, 0, bits).to(torch.int16).view(torch.bfloat16)
        divisor = torch.where(largest < SMALLEST, torch.inf, scale.float())
        scales.append(scale.view(torch.uint8))
        packed.append(pack((blocks / divisor[:, None]).round_()))
    return torch.cat([*scales, *packed])


def _fp32(values: Tensor) -> Tensor:
    return values.view(torch.uint8)


def _from_fp32(payload: Tensor, count: int) -> Tensor:
    return payload.view(torch.float32)


def _bf16(values: Tensor) -> Tensor:
    return values.to(torch.bfloat16).view(torch.uint8)


def _from_bf16(payload: Tensor, count: int) -> Tensor:
    return payload.view(torch.bfloat16).float()


def _int8(values: Tensor) -> Tensor:
    encoded = _scaled(values, INT8, 127, lambda levels: levels.to(torch.int8).view(torch.uint8).view(-1))
    return encoded[: values.numel() + 2 * _count(values.numel(), INT8)]


def _from_int8(payload: Tensor, count: int) -> Tensor:
    ends = 2 * _count(count, INT8)
    levels = _blocks(payload[ends:].view(torch.int8).float(), INT8)
    # The scale is rounded up by up to 1/128, so the largest level may end as 126.
    return _times(levels, payload[:ends].view(torch.bfloat16), 126, 127).view(-1)[:count]


def _times(blocks: Tensor, scales: Tensor, least: int, most: int) -> Tensor:
    """Multiply blocks of levels, [B, S], by their scales, [B], bf16, in place, and check the largest levels."""
    largest = torch.maximum(-blocks.amin(1), blocks.amax(1))
    used = torch.where(scales >= SMALLEST / most, (largest >= least) & (largest <= most), largest == 0)
    fitting = (scales.view(torch.int16) >= 0) & ((scales == 0) | (scales >= SMALLEST / most))
    _expect(bool((used & fitting).all()), "a scale that does not match its block")
    return blocks.mul_(scales.float()[:, None])


def _int4(values: Tensor) -> Tensor:
    return _scaled(values, INT4, 7, _nibbles)


def _nibbles(levels: Tensor) -> Tensor:
    """Pack two levels in a byte: a block's first half in the lower four bits, its second in the upper."""
    halves = levels.add_(8).to(torch.uint8).view(-1, 2, INT4 // 2)
    return (halves[:, 0] | (halves[:, 1] << 4)).view(-1)


def _from_int4(payload: Tensor, count: int) -> Tensor:
    blocks = _count(count, INT4)
    scales = payload[: 2 * blocks].view(torch.bfloat16)
    nibbles = payload[2 * blocks :].view(blocks, INT4 // 2)
    levels = torch.empty(blocks, 2, INT4 // 2)
    levels[:, 0] = nibbles & 15
    levels[:, 1] = nibbles >> 4
    values = _times(levels.sub_(8).view(blocks, INT4), scales, 7, 7).view(-1)
    _expect(not values[count:].any(), "values beyond the last")
    return values[:count]


def _top16(values: Tensor) -> Tensor:
    """Return the kept values as bf16, then their places of four bits, two a byte."""
    blocks = _blocks(values, 2 * TOP).view(-1, TOP)
    # The bits of |value| have the order of the values; the place replaces the last four.
    keys = blocks.view(torch.int32).bitwise_and(0x7FFFFFF0).bitwise_or_(torch.arange(TOP, dtype=torch.int32))
    places = keys.amax(1).bitwise_and_(TOP - 1)
    kept = blocks.gather(1, places[:, None].long()).to(torch.bfloat16).add_(0)  # −0 becomes 0
    places.masked_fill_(kept.view(-1) == 0, TOP - 1)  # also where bf16 rounds a value to zero
    pairs = places.to(torch.uint8).view(-1, 2)
    return torch.cat([kept.view(torch.uint8).view(-1), pairs[:, 0] | (pairs[:, 1] << 4)])


def _from_top16(payload: Tensor, count: int) -> Tensor:
    blocks = 2 * _count(count, 2 * TOP)
    kept = payload[: 2 * blocks].view(torch.bfloat16).float()
    pairs = payload[2 * blocks :]
    places = torch.stack([pairs & 15, pairs >> 4], 1).view(-1, 1).long()
    empty = (places.view(-1) == TOP - 1) & ~kept.signbit()
    _expect(bool(((kept != 0) | empty).all()), "a place of a value that is zero")
    values = torch.zeros(blocks, TOP).scatter_(1, places, kept[:, None]).view(-1)
    _expect(not values[count:].any(), "values beyond the last")
    return values[:count]


CODECS: dict[str, Codec] = {
    "fp32": Codec(0, lambda count: 4 * count, _fp32, _from_fp32, 0.0),
    "bf16": Codec(1, lambda count: 2 * count, _bf16, _from_bf16, 1 / 256),
    # Every value of a block may be off by the bound of the table, and the block's norm is at least m.
    "int8": Codec(2, lambda count: count + 2 * _count(count, INT8), _int8, _from_int8, sqrt(INT8) / 252),
    "int4": Codec(
        3, lambda count: (INT4 // 2 + 2) * _count(count, INT4), _int4, _from_int4, sqrt(INT4) / 13.8
    ),
    # The largest of 16 values has at least a 16th of their sum of squares, and is kept to 1/256.
    "top16": Codec(
        4, lambda count: 5 * _count(count, 2 * TOP), _top16, _from_top16, sqrt(1 - (1 - 2**-15) / TOP)
    ),
}
"""Name → codec; codes in headers never change their meaning."""
