"""Connectors: what turns features of an encoder into token embeddings of a decoder.

    linear      one linear layer
    mlp2        two, with a GELU between them (LLaVA 1.5; the connector of the bundled model has this form)
    mlp6        six, with GELUs between them
    resampler   learned queries that attend to the features, so that a picture takes a fixed number of tokens

Reference: W. Zheng et al., "FedVLMBench", arXiv 2506.09638, compares the first three from CLIP ViT-B/32 (width
768) to LLaMA-3.2-3B (width 3,072): 2,362,368, 11,802,624 and 49,563,648 parameters. The resampler follows J. Bai et
al., "Qwen-VL", arXiv 2308.12966v3, section 2.1, and MiniCPM-V.

Differs from the paper: the resampler's positions are sines of the place in a row of features, not of row and column,
and its heads are 128 wide or, where D is no multiple of that, as little wider as divides D.

Shape legend: B pictures, T features of a picture, E encoder width, D language-model width, Q queries, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from fedloom.seeds import torch_stream
from fedloom.system.errors import UserError

TRAINED = {
    name: Path(__file__).parent / "bundled-connectors" / name / "connector.safetensors"
    for name in ("real-laptop",)
}
"""Trained connectors that come with fedloom, name → file; the card beside it says from what to what."""


class Resampler(nn.Module):
    """Give Q tokens for any number of features: one layer of attention from learned queries.

    Args:
        inputs: Width E of the features.
        outputs: Width D of the tokens.
        queries: Number Q of tokens, ≥ 1.
    """

    def __init__(self, inputs: int, outputs: int, queries: int) -> None:
        super().__init__()
        self.heads = next(count for count in range(max(1, outputs // 128), 0, -1) if outputs % count == 0)
        self.queries = nn.Parameter(torch.empty(queries, outputs))
        self.features = nn.Linear(inputs, outputs, bias=False)
        self.norm_features, self.norm_queries, self.norm = (nn.LayerNorm(outputs) for _ in range(3))
        self.query, self.key, self.value, self.out = (nn.Linear(outputs, outputs) for _ in range(4))

    def forward(self, features: Tensor) -> Tensor:  # [B, T, E] → [B, Q, D]
        """Let the queries attend to the features."""
        seen = self.norm_features(self.features(features))  # [B, T, D]
        asked = self.query(self.norm_queries(self.queries)).expand(len(features), -1, -1)
        keys = self.key(seen + places(seen.shape[1], seen.shape[2]).to(seen))
        query, key, value = (
            one.unflatten(-1, (self.heads, -1)).transpose(1, 2) for one in (asked, keys, self.value(seen))
        )  # [B, H, …, D / H]
        found = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.out(self.norm(found))


def places(count: int, width: int) -> Tensor:
    """Return sines and cosines of places in a row, shape [count, width]."""
    rates = torch.exp(torch.arange(0, width, 2) * (-torch.log(torch.tensor(10_000.0)) / width))
    angles = torch.arange(count)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1)[:, :width]


def mlp(inputs: int, outputs: int, queries: int, *, layers: int) -> nn.Module:
    """Make a perceptron of linear layers with GELUs between them; every layer but the first is D × D."""
    del queries  # a token for each feature
    found: list[nn.Module] = [nn.Linear(inputs, outputs)]
    for _ in range(layers - 1):
        found += [nn.GELU(), nn.Linear(outputs, outputs)]
    return nn.Sequential(*found)


CONNECTORS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "linear": partial(mlp, layers=1),
    "mlp2": partial(mlp, layers=2),
    "mlp6": partial(mlp, layers=6),
    "resampler": Resampler,
}
"""(E, D, Q) → a module that turns [B, T, E] into [B, T, D], or [B, Q, D] from a resampler."""


def fresh(name: str, inputs: int, outputs: int, seed: int, queries: int = 16) -> nn.Module:
    """Make a connector whose weights depend on the seed only.

    Matrices are drawn uniformly in ±1/√(inputs of the layer), as torch draws a linear layer; biases are zero.

    Args:
        name: A key of `CONNECTORS`.
        inputs: Encoder width E.
        outputs: Language-model width D.
        seed: Names the random streams.
        queries: Tokens of a resampler.
    """
    connector = CONNECTORS[name](inputs, outputs, queries)
    with torch.no_grad():
        for key, value in connector.named_parameters():
            if value.dim() == 2:
                bound = 1 / sqrt(value.shape[1])
                generator = torch_stream(seed, f"connector/{key}")
                value.copy_(torch.rand(value.shape, generator=generator) * 2 * bound - bound)
            elif key.endswith("bias"):
                value.zero_()
    return connector.requires_grad_(False)


def trained_file(weights: str) -> Path:
    """Return the file of a trained connector: a name in `TRAINED` or a path.

    Raises:
        UserError: There is no such file.
    """
    found = TRAINED.get(weights, Path(weights))
    if not found.is_file():
        raise UserError(
            f"model.connector_weights: there is no file {weights!r}; give a safetensors file, or one of "
            f"{', '.join(TRAINED)}"
        )
    return found


@torch.no_grad()
def put_trained(connector: nn.Module, name: str, weights: str) -> None:
    """Copy the values of a trained connector into a connector of the same form.

    Args:
        connector: Made by `fresh`; changed in place.
        name: The key of `CONNECTORS` it was made by, for messages.
        weights: A name in `TRAINED`, or a safetensors file with a tensor for each parameter of `connector`.

    Raises:
        UserError: The file is missing or damaged, or holds a connector of another form.
    """
    try:
        found = load_file(trained_file(weights))
    except (OSError, SafetensorError) as error:
        raise UserError(f"model.connector_weights: {weights!r} is damaged ({error})") from error
    wanted = dict(connector.named_parameters())
    held = {key: list(value.shape) for key, value in found.items()}
    needed = {key: list(value.shape) for key, value in wanted.items()}
    for key in sorted({*held, *needed}):
        if held.get(key) != needed.get(key):
            raise UserError(
                f"model.connector_weights: {weights!r} does not fit: the connector {name} between these parts has "
                f"{key} {needed.get(key, 'not at all')}, the file {held.get(key, 'not at all')}"
            )
    for key, value in wanted.items():
        if not found[key].is_floating_point() or not bool(found[key].isfinite().all()):
            raise UserError(
                f"model.connector_weights: {weights!r} holds values of {key} that are not finite numbers"
            )
        value.copy_(found[key])


def tokens_out(model: Any, features: int) -> int:
    """Return how many tokens a model makes of so many features: as many, or a resampler's number."""
    resamplers = [one for one in model.modules() if isinstance(one, Resampler)]
    return resamplers[0].queries.shape[0] if resamplers else features
