"""Compute the overlap of texts with one reference each: BLEU, ROUGE-L and CIDEr-D.

Shape legend: N = number of texts.

References:
    BLEU: K. Papineni, S. Roukos, T. Ward, W. Zhu, "BLEU: a Method for Automatic Evaluation of Machine
    Translation", ACL 2002, Section 2. ROUGE-L: C. Lin, "ROUGE: A Package for Automatic Evaluation of
    Summaries", 2004, Section 3. CIDEr-D: R. Vedantam, C. Zitnick, D. Parikh, "CIDEr: Consensus-based Image
    Description Evaluation", arXiv 1411.5726v2, Section 5.

Differs from the papers: texts are split at white space after our own normalization, not by the Penn
Treebank tokenizer, which needs Java. Apart from that, scores are those of the public caption evaluation code.

There is an implementation of our own because each text has one reference and may be missing, which no public library
supports; none of them computes all three scores; and pycocoevalcap contains Java archives. Tests compare with
pycocoevalcap, sacrebleu and rouge-score.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from math import exp, log, prod, sqrt

Words = Sequence[str]
Ngrams = Counter[tuple[str, ...]]
ORDER = 4
"""The length of the longest n-grams."""
BETA = 1.2
"""The weight of recall relative to precision in ROUGE-L, as in caption evaluation."""
SIGMA = 6.0
"""Standard deviation of CIDEr-D's penalty on differing lengths, in words."""


def ngrams(words: Words, order: int) -> Ngrams:
    """Count the n-grams of `order` words.

    Example:
        >>> ngrams("a b a b".split(), 2)
        Counter({('a', 'b'): 2, ('b', 'a'): 1})
    """
    return Counter(tuple(words[start : start + order]) for start in range(len(words) - order + 1))


def bleu(answers: Sequence[Words | None], references: Sequence[Words]) -> tuple[float | None, ...]:
    """Return the corpus BLEU-1 to BLEU-4, without smoothing.

    BLEU-n = min(1, e^(1 − r/c)) · (Π_{k≤n} matches_k / ngrams_k)^{1/n}, with r and c the numbers of words of
    all references and answers; n-grams that occur in an answer more often than in its reference are clipped.

    A missing answer (None) adds no words to c, and to ngrams_k as many unmatched ones as its reference has. So a
    missing answer never scores higher than an answer that is no longer than the reference.

    Args:
        answers: Words of the answers, None for a missing one; N of them.
        references: Words of the references, N of them.

    Returns:
        BLEU-1, …, BLEU-4; None if no reference has that many words.

    Example:
        >>> bleu(["the the the".split()], ["the cat".split()])[:2]
        (0.3333333333333333, 0.0)
    """
    matched, runs, most = [0] * ORDER, [0] * ORDER, [0] * ORDER
    for answer, reference in zip(answers, references, strict=True):
        for place in range(ORDER):
            right = ngrams(reference, place + 1)
            given = right if answer is None else ngrams(answer, place + 1)
            matched[place] += 0 if answer is None else (given & right).total()
            runs[place] += given.total()
            most[place] += right.total()
    length, reference_length = sum(len(answer or ()) for answer in answers), sum(map(len, references))
    brevity = 0.0 if not length else min(1.0, exp(1 - reference_length / length))
    shares = [hits / count if count else 0.0 for hits, count in zip(matched, runs, strict=True)]
    return tuple(
        brevity * prod(shares[:order]) ** (1 / order) if most[order - 1] else None
        for order in range(1, ORDER + 1)
    )


def rouge_l(answer: Words, reference: Words) -> float:
    """Return ROUGE-L: (1 + β²)·P·R / (R + β²·P), with P and R the shares of the longest common subsequence.

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
    """Return the length of the longest common subsequence of two lists of words."""
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
    n-gram g in the answer times log(N / references that contain g), r_g likewise, l the numbers of
    words. Weights depend on all N references, so a single text scores 0, and so does a missing answer.

    Args:
        answers: Words of the answers, None for a missing one; N of them.
        references: Words of the references, N of them.
    """
    if not references:
        return []
    counted = [[ngrams(reference, order) for order in range(1, ORDER + 1)] for reference in references]
    containing = Counter(gram for reference in counted for counts in reference for gram in counts)
    total = log(len(references))

    def weigh(counts: Ngrams) -> dict[tuple[str, ...], float]:
        return {gram: count * (total - log(max(containing[gram], 1))) for gram, count in counts.items()}

    scores: list[float] = []
    for answer, reference, right in zip(answers, references, counted, strict=True):
        if answer is None:
            scores.append(0.0)
            continue
        similar = sum(
            _cosine(weigh(ngrams(answer, order)), weigh(counts))
            for order, counts in enumerate(right, start=1)
        )
        # Lengths are numbers of word pairs, as in the public code: a text of one word is as long as an empty one.
        difference = max(len(answer) - 1, 0) - max(len(reference) - 1, 0)
        scores.append(10 * similar / ORDER * exp(-(difference**2) / (2 * SIGMA**2)))
    return scores


def _cosine(first: dict[tuple[str, ...], float], second: dict[tuple[str, ...], float]) -> float:
    """Return the product of clipped weights divided by both lengths."""
    norms = sqrt(sum(value**2 for value in first.values()) * sum(value**2 for value in second.values()))
    shared = sum(min(value, second[gram]) * second[gram] for gram, value in first.items() if gram in second)
    return shared / norms if norms else 0.0
