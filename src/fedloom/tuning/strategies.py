"""Fine-tuning strategies: which parts of a model are trained, how and in which order, and what clients keep.

    connector         the connector, in full                              (F-C of FedVLMBench, arXiv 2506.09638)
    lora              low-rank adapters on the language model             (F-L)
    both              connector and adapters at once                      (F-CL)
    two-stage         the connector first, then adapters                  (F-2stage)
    share-connector   both at once; each client keeps its own adapters
    share-lora        both at once; each client keeps its own connector

Parts that a stage does not name are frozen and never leave the server; personal parts never leave their client. A strategy is
a sequence of stages, each with its own rounds and a fresh state of the server.
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
        targets: Which linear layers get an adapter, by the ends of their dotted names: `q_proj` names that of
            every layer, `layers.27.self_attn.q_proj` that of one.
        dropout: Share of an adapter's inputs that a training step drops, in [0, 1).
    """

    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = LINEARS
    dropout: float = 0.0

    def adapts(self, name: str) -> bool:
        """Return whether a linear layer gets an adapter.

        Example:
            >>> lora = LoRA(targets=("7.self_attn.q_proj",))
            >>> lora.adapts("model.layers.7.self_attn.q_proj"), lora.adapts("model.layers.27.self_attn.q_proj")
            (True, False)
        """
        return any(f".{name}".endswith(f".{target}") for target in self.targets)


@dataclass(frozen=True)
class Stage:
    """How each trained part is trained; parts not named are frozen.

    Attributes:
        train: Part → how.
        personal: The trained parts that each client keeps to itself.
    """

    train: dict[str, Full | LoRA]
    personal: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.personal) - set(self.train)):
            raise ValueError(f"personal parts that are not trained: {', '.join(unknown)}")
        if set(self.personal) == set(self.train):
            raise ValueError("nothing is exchanged: every trained part is personal")

    @property
    def lora(self) -> LoRA | None:
        """The adapters' settings, or None where no part has adapters."""
        return next((how for how in self.train.values() if isinstance(how, LoRA)), None)


def stage(name: str, lora: LoRA) -> Stage:
    """Return the stage with a name in `STRATEGIES`."""
    return Stage({part: lora if how == "lora" else Full() for part, how in STRATEGIES[name].items()})


STRATEGIES: dict[str, dict[str, str]] = {
    "connector": {"connector": "full"},
    "lora": {"llm": "lora"},
    "both": {"connector": "full", "llm": "lora"},
}

SEQUENCES: dict[str, tuple[tuple[str, tuple[str, ...]], ...]] = {
    **{name: ((name, ()),) for name in STRATEGIES},
    "two-stage": (("connector", ()), ("lora", ())),
    "share-connector": (("both", ("llm",)),),
    "share-lora": (("both", ("connector",)),),
}
"""Strategy → its stages in order: what is trained (a key of `STRATEGIES`), and which parts of it are personal."""

Strategy = tuple[Stage, ...]


def strategy(name: str, lora: LoRA) -> Strategy:
    """Return the strategy with a name in `SEQUENCES`.

    Example:
        >>> [tuple(stage.train) for stage in strategy("two-stage", LoRA())]
        [('connector',), ('llm',)]
    """
    return tuple(Stage(stage(what, lora).train, personal) for what, personal in SEQUENCES[name])


def merged_stage(strategy: Strategy) -> Stage:
    """Return one stage with all parts that a strategy trains in any of its stages, which gives the layout of a run."""
    return Stage({part: how for stage in strategy for part, how in stage.train.items()})
