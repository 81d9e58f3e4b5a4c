"""Encode a client's update in a codec, and keep the codec's error for the client's next update.

    w = Δ + e,    sent: C(w),    e ← w − C(w)            e = 0 at the start of each stage

so that, after any number of rounds, what was sent and what is kept add up to the client's own changes:
Σ_t C(w_t) + e = Σ_t Δ_t. Without feedback e stays 0. The error e is part of the client's memory at its site, so a
refused update restores it too.

Reference: S. P. Karimireddy, Q. Rebjock, S. U. Stich, M. Jaggi, "Error Feedback Fixes SignSGD and other Gradient Compression
Schemes", arXiv 1901.09847v2, Algorithm 2, with the changes of a whole round in place of a step's gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fedloom.params import Part
from fedloom.wire.compression import LARGEST, Codecs
from fedloom.wire.messages import in_codec


class EncodedUpdate(NamedTuple):
    """A client's changes as they are sent, and the codec's error.

    Attributes:
        delta: The changes as the server decodes them, shape [P]; zero outside the reported part.
        coded: Their bytes; None for float32.
        lost: The error that the client adds to its next update, shape [P]; None if there is none.
    """

    delta: Tensor
    coded: bytes | None = None
    lost: Tensor | None = None


def encode_update(delta: Tensor, up: Part, codecs: Codecs, lost: Tensor | None) -> EncodedUpdate:
    """Encode a client's changes in the codec of its method.

    Args:
        delta: The changes, shape [P]; zero outside `up`.
        up: The part that the client reports.
        codecs: The codecs of the method.
        lost: The codec's error in its earlier updates, shape [P], or None.

    Returns:
        The encoded changes. Changes that are not finite, or beyond the codec's range, are returned unchanged, so that the
        server refuses them; `lost` is then kept.
    """
    if codecs.up == "fp32" or not up.count:
        return EncodedUpdate(delta)
    total = delta if lost is None else delta + lost
    if not float(torch.linalg.vector_norm(total)) <= LARGEST:  # NaN, too
        return EncodedUpdate(delta, lost=lost)
    decoded, coded = in_codec(up.zero_outside(total), up, codecs.up)
    return EncodedUpdate(decoded, coded, total - decoded if codecs.feedback else None)
