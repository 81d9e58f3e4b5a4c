"""BLEU, ROUGE-L and CIDEr against the public libraries, and worked by hand."""

from __future__ import annotations

from math import exp, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU

from fedloom.tasks import TASKS, UNPARSED
from fedloom.tasks.text_overlap import bleu, cider, longest_common, rouge_l
from fedloom.types import Example

# Few different words, so that runs of them repeat.
sentences = st.lists(st.sampled_from("a red big circle and square".split()), min_size=1, max_size=9)
long_ones = st.lists(st.sampled_from("a red big circle".split()), min_size=4, max_size=12)
corpora = st.lists(st.tuples(sentences, sentences), min_size=1, max_size=8)
long_corpora = st.lists(st.tuples(long_ones, long_ones), min_size=1, max_size=8)


def columns(rows):
    return [answer for answer, _ in rows], [reference for _, reference in rows]


def coco(scorer, rows):
    answers = {place: [" ".join(answer)] for place, (answer, _) in enumerate(rows)}
    references = {place: [" ".join(reference)] for place, (_, reference) in enumerate(rows)}
    return scorer.compute_score(references, answers)


@given(long_corpora)
def test_bleu_is_that_of_the_caption_evaluation_code(rows):
    ours = bleu(*columns(rows))
    theirs, _ = coco(_Quiet(4), rows)
    for mine, other in zip(ours, theirs, strict=True):
        # Their precision of nothing is 1e-15 over the number of runs instead of 0, which a fourth root makes 1e-4.
        assert mine == pytest.approx(other, rel=1e-6, abs=2e-3)
        assert mine == 0 or mine == pytest.approx(other, rel=1e-6)


class _Quiet(Bleu):
    def compute_score(self, gts, res):
        return super().compute_score(gts, res, verbose=0)


@given(corpora)
def test_bleu_is_sacrebleus_without_smoothing(rows):
    answers, references = columns(rows)
    ours = bleu(answers, references)
    for order in range(1, 5):
        metric = BLEU(smooth_method="none", tokenize="none", force=True, max_ngram_order=order)
        theirs = metric.corpus_score(list(map(" ".join, answers)), [list(map(" ".join, references))]).score
        long_enough = any(len(reference) >= order for reference in references)
        assert ours[order - 1] == (pytest.approx(theirs / 100) if long_enough else None)


@given(corpora)
def test_rouge_l_is_that_of_the_caption_evaluation_code(rows):
    _, theirs = coco(Rouge(), rows)
    assert [rouge_l(*row) for row in rows] == pytest.approx(list(theirs))


@given(sentences, sentences)
def test_the_common_subsequence_is_rouge_scores(answer, reference):
    expected = RougeScorer(["rougeL"]).score(" ".join(reference), " ".join(answer))["rougeL"]
    common = longest_common(answer, reference)
    assert expected.precision == pytest.approx(common / len(answer))
    assert expected.recall == pytest.approx(common / len(reference))
    assert longest_common(reference, answer) == common


@given(corpora)
def test_cider_is_that_of_the_caption_evaluation_code(rows):
    total, each = coco(Cider(), rows)
    ours = cider(*columns(rows))
    assert ours == pytest.approx(list(each), abs=1e-9)
    assert sum(ours) / len(ours) == pytest.approx(total, abs=1e-9)


@given(corpora, st.data())
def test_no_answer_beats_the_right_one(rows, data):
    answers, references = columns(rows)
    place = data.draw(st.integers(0, len(rows) - 1))
    gold = [*answers[:place], references[place], *answers[place + 1 :]]
    for before, after in zip(cider(answers, references), cider(gold, references), strict=True):
        assert after >= before - 1e-9
    assert rouge_l(references[place], references[place]) == 1.0


@given(corpora, st.data())
def test_silence_in_place_of_an_answer_that_is_not_longer_than_the_right_one_never_raises_bleu(rows, data):
    answers, references = columns(rows)
    place = data.draw(st.integers(0, len(rows) - 1))
    answers[place] = answers[place][: len(references[place])]
    silent = [*answers[:place], None, *answers[place + 1 :]]
    for before, after in zip(bleu(answers, references), bleu(silent, references), strict=True):
        assert (before is None) == (after is None)
        assert before is None or after <= before + 1e-12


def test_bleu_by_hand():
    # Five words, four of them right; runs of two: 2 of 4; of three: 1 of 3; of four: 0 of 2; one word short.
    answer, reference = "a red circle is big".split(), "a red circle and a big square".split()
    scores = bleu([answer], [reference])
    brevity = exp(1 - 7 / 5)
    assert scores[:3] == pytest.approx(
        [brevity * 4 / 5, brevity * sqrt(4 / 5 * 2 / 4), brevity * (4 / 5 * 2 / 4 * 1 / 3) ** (1 / 3)]
    )
    assert scores[3] == 0


def test_rouge_by_hand():
    # "red circle" of three words given and four right ones.
    precision, recall, beta = 2 / 3, 2 / 4, 1.2**2
    wanted = (1 + beta) * precision * recall / (recall + beta * precision)
    assert rouge_l("big red circle".split(), "red and circle square".split()) == pytest.approx(wanted)


def test_cider_by_hand():
    # Of two references "cat" is in one (weight log 2) and "a" in both (weight 0). First answer: the runs
    # "cat" and "a cat" are right, there are none of three and four: 10 · (1 + 1 + 0 + 0) / 4.
    references = ["a cat".split(), "a dog".split()]
    assert cider(["a cat".split(), "a cat".split()], references) == pytest.approx([5.0, 0.0])
    # "cat cat": of two times log 2 only one is shared: cosine 1/2 for single words, nothing for longer runs.
    assert cider(["cat cat".split(), None], references) == pytest.approx([10 * 0.5 / 4, 0.0])
    assert cider([], []) == []


def caption(text: str) -> Example:
    return Example("e", "Describe.", text, task="caption")


def test_captions_are_compared_without_case_and_punctuation_and_silence_scores_nothing():
    metrics = TASKS["caption"].metrics
    rights = ("A big, red circle on top.", "A small blue square below it.")
    state = metrics.zero
    for right, reply in zip(rights, ("a big red CIRCLE on top", ""), strict=True):
        one = caption(right)
        answer = TASKS["caption"].parse(reply, one, answer_form="text")
        assert (answer is UNPARSED) == (not reply)
        state = metrics.add(state, one, answer, None)
    scores = metrics.result(state)
    assert scores["cider"] == pytest.approx(5.0)  # 10 for the first, 0 for the second
    assert scores["rouge_l"] == scores["token_f1"] == scores["accuracy"] == scores["unparsed"] == 0.5
    # Six of twelve words, and as many as if one answer were missing for brevity.
    assert scores["bleu_1"] == pytest.approx(exp(1 - 12 / 6) * 6 / 12)


def test_published_captions_drop_replies_without_is():
    published = TASKS["caption"].published
    state = published.metrics.zero
    for right, reply in (
        ("The caption is a red circle on top.", "The caption is a red circle on top."),
        ("The caption is a blue square below it.", "The caption is a blue square below it."),
        ("The caption is nothing at all to see.", "who knows"),
    ):
        one = caption(right)
        state = published.metrics.add(state, one, published.parse(reply, one, answer_form="text"), None)
    scores = published.metrics.result(state)
    assert scores["cider_published"] == pytest.approx(10.0)
    assert scores["bleu_4_published"] == scores["rouge_l_published"] == 1.0
    # Without that form nothing but silence is left out.
    assert published.parse("a cat", caption("a dog"), answer_form="text") == "a cat"
    assert published.parse("", caption("a dog"), answer_form="text") is UNPARSED
