"""How far a text repeats a reference: BLEU, ROUGE-L and CIDEr-D, each for one reference.

Shape legend: N = number of texts.

References:
    BLEU: K. Papineni, S. Roukos, T. Ward, W. Zhu, "BLEU: a Method for Automatic Evaluation of Machine
    Translation", ACL 2002, Section 2. ROUGE-L: C. Lin, "ROUGE: A Package for Automatic Evaluation of
    Summaries", 2004, Section 3. CIDEr-D: R. Vedantam, C. Zitnick, D. Parikh, "CIDEr: Consensus-based Image
    Description Evaluation", arXiv 1411.5726v2, Section 5.

Differs from the papers: texts are split at white space after our own normalization, not by the Penn
Treebank tokenizer, which needs Java. Else figures are those of the public caption evaluation code.

Why our own: each text has one reference and may be missing, which no public library knows; none of them
computes all three; pycocoevalcap is installed with Java archives. Tests compare with pycocoevalcap, sacrebleu
and rouge-score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from math import exp, log, prod, sqrt

Words = Sequence[str]
Grams = Counter[tuple[str, ...]]
ORDER = 4
"""The longest run of words that is counted."""
BETA = 1.2
"""How many times as much recall counts as precision in ROUGE-L; what caption evaluation uses."""
SIGMA = 6.0
"""Spread of CIDEr-D's penalty on lengths that differ, in words."""


def grams(words: Words, order: int) -> Grams:
    """Count the runs of `order` words.

    Example:
        >>> grams("a b a b".split(), 2)
        Counter({('a', 'b'): 2, ('b', 'a'): 1})
    """
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def bleu(answers: Sequence[Words | None], references: Sequence[Words]) -> tuple[float | None, ...]:
    """Return the corpus BLEU-1 to BLEU-4, without smoothing.

    BLEU-n = min(1, e^(1 − r/c)) · (Π_{k≤n} matches_k / runs_k)^{1/n}, with r and c the numbers of words of
    all references and answers, and runs that occur in an answer more often than in its reference clipped.

    A missing answer (None) adds no words to c, and to runs_k as many as its reference has, none of them
    matched. So it never pays to say nothing instead of something no longer than the reference.

    Args:
        answers: Words of the answers, None where there is none; N of them.
        references: Words of the references, N of them.

    Returns:
        BLEU-1, …, BLEU-4; None where no reference has that many words.

    Example:
        >>> bleu(["the the the".split()], ["the cat".split()])[:2]
        (0.3333333333333333, 0.0)
    """
    matched, runs, most = [0] * ORDER, [0] * ORDER, [0] * ORDER
    for answer, reference in zip(answers, references, strict=True):
        for place in range(ORDER):
            right = grams(reference, place + 1)
            given = right if answer is None else grams(answer, place + 1)
            matched[place] += 0 if answer is None else (given & right).total()
            runs[place] += given.total()
            most[place] += right.total()
    length, wanted = sum(len(answer or ()) for answer in answers), sum(map(len, references))
    brevity = 0.0 if not length else min(1.0, exp(1 - wanted / length))
    shares = [hits / count if count else 0.0 for hits, count in zip(matched, runs, strict=True)]
    return tuple(
        brevity * prod(shares[:order]) ** (1 / order) if most[order - 1] else None
        for order in range(1, ORDER + 1)
    )


def rouge_l(answer: Words, reference: Words) -> float:
    """Return ROUGE-L: (1 + β²)·P·R / (R + β²·P), with P and R the longest common subsequence's shares.

    Example:
        >>> round(rouge_l("a red circle".split(), "a circle".split()), 4)  # P = 2/3, R = 1
        0.8299
    """
    common = longest_common(answer, reference)
    if not common:
        return float(not answer and not reference)
    precision, recall = common / len(answer), common / len(reference)
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def longest_common(first: Words, second: Words) -> int:
    """Return the length of the longest sequence of words that both hold in this order, gaps allowed."""
    row = [0] * (len(second) + 1)
    for word in first:
        longer = [0]
        for place, (corner, above) in enumerate(pairwise(row)):
            longer.append(corner + 1 if word == second[place] else max(above, longer[-1]))
        row = longer
    return row[-1]


def cider(answers: Sequence[Words | None], references: Sequence[Words]) -> list[float]:
    """Return CIDEr-D of each answer, 0..10; their mean is the score.

    10 · mean over n ≤ 4 of e^{−(l_a − l_r)²/2σ²} · Σ_g min(a_g, r_g)·r_g / (‖a‖·‖r‖), with a_g = count of the
    run g of n words in the answer times log(N / references that hold g), r_g likewise, l the numbers of
    words. Weights come from all N references, so a single text scores 0, and so does a missing answer.

    Args:
        answers: Words of the answers, None where there is none; N of them.
        references: Words of the references, N of them.
    """
    if not references:
        return []
    counted = [[grams(reference, order) for order in range(1, ORDER + 1)] for reference in references]
    holding = Counter(gram for reference in counted for counts in reference for gram in counts)
    total = log(len(references))

    def weigh(counts: Grams) -> dict[tuple[str, ...], float]:
        return {gram: count * (total - log(max(holding[gram], 1))) for gram, count in counts.items()}

    scores: list[float] = []
    for answer, reference, right in zip(answers, references, counted, strict=True):
        if answer is None:
            scores.append(0.0)
            continue
        similar = sum(
            _cosine(weigh(grams(answer, order)), weigh(counts)) for order, counts in enumerate(right, start=1)
        )
        # Lengths go by pairs of words, as in the public code: a text of one word is as long as an empty one.
        apart = max(len(answer) - 1, 0) - max(len(reference) - 1, 0)
        scores.append(10 * similar / ORDER * exp(-(apart**2) / (2 * SIGMA**2)))
    return scores


def _cosine(first: dict[tuple[str, ...], float], second: dict[tuple[str, ...], float]) -> float:
    """Multiply clipped weights and divide by both lengths."""
    norms = sqrt(sum(value**2 for value in first.values()) * sum(value**2 for value in second.values()))
    shared = sum(min(value, second[gram]) * second[gram] for gram, value in first.items() if gram in second)
    return shared / norms if norms else 0.0
