"""Digits: 1,797 handwritten digits of 8 × 8 pixels, without text; small enough to check an idea in seconds.

Reference: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
Repository, 1998 (the test set, as scikit-learn ships it). scripts/make_digits.py makes both files.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from fedloom.data.images import ZipImage
from fedloom.data.loading import FILES, divide
from fedloom.types import DataSet, Example

if TYPE_CHECKING:
    from fedloom.config.schema import Data

QUESTION = "Which digit is shown?"
DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def load_digits(settings: Data, seed: int) -> DataSet:
    """Load the digits; images with equal pixels are all in one part.

    Args:
        settings: `test_share` is used.
        seed: Seed of the division.
    """
    with open(FILES / "digits.jsonl", encoding="utf-8") as lines:
        examples = [_example(**json.loads(line)) for line in lines]
    keys = [(example.image.key,) if example.image else () for example in examples]
    train, test = divide(examples, keys, settings.test_share, seed)
    return DataSet("digits", train, test)


def _example(id: str, digit: int) -> Example:
    return Example(
        id=id,
        question=QUESTION,
        answer=DIGITS[digit],
        image=ZipImage(FILES / "digits.zip", f"{id}.png"),
        label=digit,
        group=DIGITS[digit],
        options=DIGITS,
    )
