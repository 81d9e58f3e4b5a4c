"""Personal layers: each client trains all values, sends some of them, and keeps the others from round to round.

    client k   trains (u, v_k) from the shared u and its own v_k
    server     u ← u + Σ_k (n_k / n) Δu_k

with v_k the values whose names match one of the patterns `names`, in which `*` stands for any text. Client k is evaluated with
(u, v_k). With `connector/*` it is the strategy `share-lora`, with `llm/*` it is `share-connector`, to the last bit.

References: M. G. Arivazhagan, V. Aggarwal, A. K. Singh, S. Choudhary, "Federated Learning with Personalization Layers",
arXiv 1912.00818. K. Pillutla, K. Malik, A. Mohamed, M. Rabbat, M. Sanjabi, L. Xiao, "Federated Learning with Partial Model
Personalization", arXiv 2204.03809, FedSim.

Differs from the papers: the server is that of the algorithm that the part is added to; all v_k begin with the same values,
which are also those of the shared model that is scored on everybody's questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from fedloom.algorithms.entry import Entry
from fedloom.params import Layout, Part


class PersonalValues(NamedTuple):
    """The trainable parameters that each client keeps to itself.

    Attributes:
        names: Patterns of their names, in which `*` stands for any text, and `?` for any character.
    """

    names: Sequence[str]

    def part(self, layout: Layout) -> Part:
        """Return the values of a layout whose names match a pattern.

        Raises:
            ValueError: A pattern matches nothing, or all values of the layout match.

        Example:
            >>> layout = Layout.of({"connector/w": (2,), "llm/layers.0.q:lora_a": (3,)})
            >>> PersonalValues(("connector/*",)).part(layout).stretches
            ((0, 2),)
        """
        for pattern in self.names:
            if not any(fnmatchcase(name, pattern) for name in layout.names):
                raise ValueError(
                    f"nothing that is trained has a name like {pattern}, so clients cannot keep it"
                )
        part = Part.of(layout.mask(lambda name: any(fnmatchcase(name, one) for one in self.names)))
        if part.is_whole:
            raise ValueError("clients keep all that is trained, so nothing is shared")
        return part


def personal_layers(*, names: Sequence[str] = ("connector/*",)) -> PersonalValues:
    """Make the choice of values that clients keep.

    Args:
        names: Patterns of their names, such as `connector/*`, `llm/*layers.3.*` or `*:lora_b`; at least one.

    Raises:
        ValueError: There is none.
    """
    if not names:
        raise ValueError("names is empty; it must list patterns such as connector/*")
    return PersonalValues(names)


ENTRIES = {
    "personal-layers": Entry(
        personal_layers,
        "personal",
        "personal layers",
        "Each client keeps some of the trained layers to itself, by default the connector, and shares the others.",
        traits=frozenset({"own model"}),
    )
}
