"""Write a client's update in fewer bits, and keep what is lost of it for its next one.

    w = Δ + e,    sent: C(w),    e ← w − C(w)            e = 0 at the start of each stage

so that, after any number of rounds, what was sent and what is kept add up to the client's own changes:
Σ_t C(w_t) + e = Σ_t Δ_t. Without feedback e stays 0. The error e is part of the client's memory at its site, so a
refused update takes it back too.

Reference: S. P. Karimireddy, Q. Rebjock, S. U. Stich, M. Jaggi, "Error Feedback Fixes SignSGD and other Gradient Compression
Schemes", arXiv 1901.09847v2, Algorithm 2, with the changes of a whole round in place of a step's gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fedloom import wire
from fedloom.messages import in_codec
from fedloom.params import Part


class Sent(NamedTuple):
    """What leaves a client, and what stays.

    Attributes:
        delta: Its changes as the server reads them, shape [P]; zero outside what it reports.
        coded: Their bytes; None for float32.
        lost: What the client adds to its next update, shape [P]; None for nothing.
    """

    delta: Tensor
    coded: bytes | None = None
    lost: Tensor | None = None


def in_fewer_bits(delta: Tensor, up: Part, codecs: wire.Codecs, lost: Tensor | None) -> Sent:
    """Write a client's changes in the codec of its method.

    Args:
        delta: Its changes, shape [P]; zero outside `up`.
        up: The part that it reports.
        codecs: The codecs of the method.
        lost: What was lost of its earlier changes, shape [P]; None for nothing.

    Returns:
        What leaves it and what stays. Changes that are not finite, or beyond the codec's range, are left as they are, for
        the server to refuse; then nothing of `lost` is used up.
    """
    if codecs.up == "fp32" or not up.count:
        return Sent(delta)
    wanted = delta if lost is None else delta + lost
    if not float(torch.linalg.vector_norm(wanted)) <= wire.LARGEST:  # NaN, too
        return Sent(delta, lost=lost)
    read, coded = in_codec(up.only(wanted), up, codecs.up)
    return Sent(read, coded, wanted - read if codecs.feedback else None)
