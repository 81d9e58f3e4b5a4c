"""Connectors: modules that turn features of an encoder into token embeddings of a decoder.

    linear      one linear layer
    mlp2        two linear layers with a GELU between them (LLaVA 1.5 and the bundled model)
    mlp6        six linear layers with GELUs between them
    resampler   learned queries that attend to the features, so that an image takes a fixed number of tokens

Reference: W. Zheng et al., "FedVLMBench", arXiv 2506.09638, compares the first three from CLIP ViT-B/32 (width
768) to LLaMA-3.2-3B (width 3,072): 2,362,368, 11,802,624 and 49,563,648 parameters. The resampler follows J. Bai et
al., "Qwen-VL", arXiv 2308.12966v3, section 2.1, and MiniCPM-V.

Differs from the paper: the resampler's positions are sines of the index of a feature, not of its row and column,
and its heads are 128 wide or, where D is not a multiple of 128, have the next larger width that divides D.

Shape legend: B images, T features of an image, E encoder width, D language-model width, Q queries, H heads.
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

BUNDLED_CONNECTORS = {
    name: Path(__file__).parent / "bundled-connectors" / name / "connector.safetensors"
    for name in ("real-laptop",)
}
"""Trained connectors that are bundled, name → file; the model card next to it names encoder and language model."""


class Resampler(nn.Module):
    """A connector that turns any number of features into Q tokens: one attention layer with learned queries.

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
        """Compute the tokens of features: the queries attend to them."""
        states = self.norm_features(self.features(features))  # [B, T, D]
        queries = self.query(self.norm_queries(self.queries)).expand(len(features), -1, -1)
        keys = self.key(states + sinusoidal_positions(states.shape[1], states.shape[2]).to(states))
        query, key, value = (
            tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for tensor in (queries, keys, self.value(states))
        )  # [B, H, …, D / H]
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return self.out(self.norm(attended))


def sinusoidal_positions(count: int, width: int) -> Tensor:
    """Return sines and cosines of the positions 0 … count − 1, shape [count, width]."""
    rates = torch.exp(torch.arange(0, width, 2) * (-torch.log(torch.tensor(10_000.0)) / width))
    angles = torch.arange(count)[:, None] * rates
    return torch.cat((angles.sin(), angles.cos()), dim=1)[:, :width]


def mlp(inputs: int, outputs: int, queries: int, *, layers: int) -> nn.Module:
    """Build a perceptron of linear layers with GELUs between them; every layer but the first is D × D."""
    del queries  # there is one token for each feature
    modules: list[nn.Module] = [nn.Linear(inputs, outputs)]
    for _ in range(layers - 1):
        modules += [nn.GELU(), nn.Linear(outputs, outputs)]
    return nn.Sequential(*modules)


CONNECTORS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "linear": partial(mlp, layers=1),
    "mlp2": partial(mlp, layers=2),
    "mlp6": partial(mlp, layers=6),
    "resampler": Resampler,
}
"""(E, D, Q) → a module that turns [B, T, E] into [B, T, D], or [B, Q, D] from a resampler."""


def new_connector(name: str, inputs: int, outputs: int, seed: int, queries: int = 16) -> nn.Module:
    """Build a connector whose random weights depend only on the seed.

    Matrices are drawn uniformly in ±1/√(inputs of the layer), as torch draws a linear layer; biases are zero.

    Args:
        name: A key of `CONNECTORS`.
        inputs: Encoder width E.
        outputs: Language-model width D.
        seed: Seed of the random streams.
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
    """Return the file of a trained connector.

    Args:
        weights: A name in `BUNDLED_CONNECTORS` or a path.

    Raises:
        UserError: There is no such file.
    """
    file = BUNDLED_CONNECTORS.get(weights, Path(weights))
    if not file.is_file():
        raise UserError(
            f"model.connector_weights: there is no file {weights!r}; give a safetensors file, or one of "
            f"{', '.join(BUNDLED_CONNECTORS)}"
        )
    return file


@torch.no_grad()
def load_trained(connector: nn.Module, name: str, weights: str) -> None:
    """Copy the values of a trained connector into a connector of the same form.

    Args:
        connector: A connector from `new_connector`; changed in place.
        name: Its key of `CONNECTORS`, for messages.
        weights: A name in `BUNDLED_CONNECTORS`, or a safetensors file with a tensor for each parameter of `connector`.

    Raises:
        UserError: The file is missing or damaged, or holds a connector of another form.
    """
    try:
        values = load_file(trained_file(weights))
    except (OSError, SafetensorError) as error:
        raise UserError(f"model.connector_weights: {weights!r} is damaged ({error})") from error
    parameters = dict(connector.named_parameters())
    stored = {key: list(value.shape) for key, value in values.items()}
    expected = {key: list(value.shape) for key, value in parameters.items()}
    for key in sorted({*stored, *expected}):
        if stored.get(key) != expected.get(key):
            raise UserError(
                f"model.connector_weights: {weights!r} does not fit: the connector {name} between these parts has "
                f"{key} {expected.get(key, 'not at all')}, the file {stored.get(key, 'not at all')}"
            )
    for key, parameter in parameters.items():
        if not values[key].is_floating_point() or not bool(values[key].isfinite().all()):
            raise UserError(
                f"model.connector_weights: {weights!r} holds values of {key} that are not finite numbers"
            )
        parameter.copy_(values[key])


def tokens_out(model: Any, features: int) -> int:
    """Return how many tokens a model makes of a number of features: the same number, or a resampler's own."""
    resamplers = [module for module in model.modules() if isinstance(module, Resampler)]
    return resamplers[0].queries.shape[0] if resamplers else features
