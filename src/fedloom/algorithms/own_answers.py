"""How clients choose their own answers: functions of an option's probabilities, and shares of an own model and the shared one.

Neither changes any training: what is sent, and the shared model with its answers, are those of the method without them.

Shape legend: C options of a question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Chances = NDArray[np.float64]
"""Probabilities of a question's options, shape [C]."""


class Known(NamedTuple):
    """What a client knows when it chooses between the options of a question.

    Attributes:
        counts: Number of its training examples that each option is the right answer of, shape [C].
        alone: Probabilities that the model gives which the client trained alone, shape [C]; None if there is no such model.
    """

    counts: NDArray[np.int64]
    alone: Chances | None = None


class OwnAnswers(NamedTuple):
    """A change of the probabilities between which a client chooses its answer.

    Questions without options, and answers that are generated, stay as they are.

    Attributes:
        choose: (probabilities of the client's model, what the client knows) → probabilities, shape [C] each.
        alone: Whether it needs the model that each client trains alone.
    """

    choose: Callable[[Chances, Known], Chances]
    alone: bool = False


def probabilities(scores: NDArray[np.float64]) -> Chances:
    """Return the probabilities whose logarithms are scores of shape [C], up to a constant; at least one score is finite."""
    values = np.exp(scores - scores.max())
    return values / values.sum()


def weight_of_local_model(weight: float) -> float:
    """Return the weight of the model that a client trains alone.

    Raises:
        ValueError: It is not from 0 to 1.
    """
    if not 0 <= weight <= 1:
        raise ValueError(f"weight is {weight}; it must be from 0 to 1")
    return weight


class Interpolation(NamedTuple):
    """Models between the shared one and each client's own, of which the client's validation part chooses one.

    Attributes:
        shares: The shares of the own model that are tried, each from 0 to 1.
        default: The share for a client without validation examples, and the nearest to it is taken of equally good ones.
    """

    shares: Sequence[float]
    default: float

    def best(self, scores: Sequence[float]) -> float:
        """Return the share with the best validation score; of several, the nearest to the default, then the smaller one.

        Args:
            scores: Each share's score.

        Example:
            >>> Interpolation((0.0, 0.5, 1.0), 0.5).best([0.7, 0.6, 0.7])
            0.0
        """
        top = max(scores)
        best = [share for share, score in zip(self.shares, scores, strict=True) if score == top]
        return min(best, key=lambda share: (abs(share - self.default), share))
