"""Fine-tuning strategies: which parts of a model are trained, and how.

    connector   the connector, in full                       (F-C of FedVLMBench, arXiv 2506.09638)
    lora        low-rank adapters on the language model      (F-L)
    both        connector and adapters at once               (F-CL)

Parts that a strategy does not name are frozen and never leave the server.
"""

from __future__ import annotations

from dataclasses import dataclass

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Full:
    """Train every parameter of a part."""


@dataclass(frozen=True, slots=True)
class LoRA:
    """Train low-rank adapters on a part's linear layers (Hu et al., arXiv 2106.09685v2, eq. 3).

    Attributes:
        rank: Rank r of the update B·A, ≥ 1.
        alpha: Scale: the update is multiplied by alpha / rank.
        targets: Last names of the linear layers that get an adapter.
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = LINEARS


@dataclass(frozen=True)
class Stage:
    """How each trained part is trained; parts not named are frozen."""

    train: dict[str, Full | LoRA]

    @property
    def lora(self) -> LoRA | None:
        """The adapters' settings, or None where no part has adapters."""
        return next((how for how in self.train.values() if isinstance(how, LoRA)), None)


def stage(name: str, lora: LoRA) -> Stage:
    """Make the stage of a strategy by its name in `STRATEGIES`."""
    return Stage({part: lora if how == "lora" else Full() for part, how in STRATEGIES[name].items()})


STRATEGIES: dict[str, dict[str, str]] = {
    "connector": {"connector": "full"},
    "lora": {"llm": "lora"},
    "both": {"connector": "full", "llm": "lora"},
}
