"""The parsing and scores of published code, compared with hand-worked values, restated rules and public libraries."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from fedloom.tasks import TASKS, UNPARSED
from fedloom.tasks.published_scoring import FAILED, first_letter
from fedloom.tasks.score_answers import Answers, score
from fedloom.types import Example

CHOICE = TASKS["choice"].published


def asked(label: int, options: int) -> Example:
    return Example("e", "Which?", str(label), label=label, options=tuple(map(str, range(options))))


def scores_of(rows, options):
    state = CHOICE.metrics.zero
    for label, answer in rows:
        state = CHOICE.metrics.add(state, asked(label, options), UNPARSED if answer < 0 else answer, None)
    return CHOICE.metrics.result(state)


def rows_of(options):
    return st.lists(
        st.tuples(st.integers(0, options - 1), st.integers(-1, options - 1)), min_size=1, max_size=40
    )


@given(rows_of(2))
def test_the_published_auc_is_scikit_learns_on_hard_labels_with_failures_as_two(rows):
    truth, given_ = (np.array(column) for column in zip(*rows, strict=True))
    hard = np.where(given_ < 0, 2, given_)
    wanted = pytest.approx(roc_auc_score(truth, hard)) if len(set(truth.tolist())) == 2 else None
    assert scores_of(rows, 2)["auc_published"] == wanted
    if wanted is not None and (given_ >= 0).all():
        assert balanced_accuracy_score(truth, given_) == wanted


@given(rows_of(5))
def test_the_published_f1_is_scikit_learns_with_failures_as_class_two(rows):
    truth, given_ = (np.array(column) for column in zip(*rows, strict=True))
    wanted = f1_score(truth, np.where(given_ < 0, 2, given_), average="macro", zero_division=0.0)
    scores = scores_of(rows, 5)
    assert scores["macro_f1_published"] == pytest.approx(wanted)
    assert scores["auc_published"] is None


def test_silence_pays_where_failures_rank_highest():
    # By hand: of four pairs (negative, positive) the first ranking has 2 ties and 2 wins, the second 4 wins.
    assert scores_of([(0, 0), (0, 0), (1, 0), (1, 1)], 2)["auc_published"] == 0.75
    assert scores_of([(0, 0), (0, 0), (1, -1), (1, 1)], 2)["auc_published"] == 1.0
    assert scores_of([(0, 0), (0, -1), (1, 1), (1, 1)], 2)["auc_published"] == 0.5
    ours = TASKS["choice"].metrics
    state = ours.add(ours.add(ours.zero, asked(1, 2), UNPARSED, None), asked(0, 2), 0, None)
    assert ours.result(state)["accuracy"] == 0.5


def letter_of(reply, letters, looked_for):
    """Read a letter as the evaluation scripts of FedMLLM do."""
    matches = re.findall(rf"[( ]*[{looked_for}][) ]*", reply.replace("answer", "").replace("Answer", ""))
    try:
        return letters.index(matches[0].strip().strip("()"))
    except (IndexError, ValueError):
        return 2


HATEFUL, CRISIS = ("AB", "A-G"), ("ABCDEFGH", "A-H")
LETTERS = st.lists(
    st.sampled_from([*"ABCGHTab() .:", "answer", "Answer", "ANSWER", "(B)", "( A )", "option ", "is "]),
    max_size=8,
).map("".join)


@given(LETTERS)
def test_a_letter_is_read_as_the_scripts_of_fedmllm_read_it(reply):
    for letters, looked_for in (HATEFUL, CRISIS):
        wanted = letter_of(reply, letters, looked_for)
        one = asked(0, len(letters))
        assert first_letter(reply, len(letters)) == wanted
        assert CHOICE.parse(reply, one, answer_form="letter") == wanted


@pytest.mark.parametrize(
    ("reply", "of_two", "of_eight"),
    [
        ("Clearly (A)", 2, 2),  # the C comes first
        ("Definitely", 2, 3),
        ("Given the text (B)", 2, 6),
        ("( A )", 2, 2),  # a space inside the brackets
        ("ANSWER B", 0, 0),  # only "answer" and "Answer" are left out
        ("answer B", 1, 1),
        ("Answer: B", 1, 1),
        ("(B) hateful", 1, 1),
        ("((A))", 0, 0),
        (" B ", 1, 1),
        ("H", 2, 7),  # not looked for where there are two options
        ("yes", 2, 2),
        ("", 2, 2),
    ],
)
def test_letters_of_hateful_memes_and_crisis_mmd_by_hand(reply, of_two, of_eight):
    for (letters, looked_for), label in zip((HATEFUL, CRISIS), (of_two, of_eight), strict=True):
        assert first_letter(reply, len(letters)) == letter_of(reply, letters, looked_for) == label


@given(st.lists(st.tuples(st.integers(0, 1), LETTERS), min_size=1, max_size=30))
def test_the_published_auc_is_that_of_the_script_of_hateful_memes(rows):
    examples = [asked(label, 2) for label, _ in rows]
    replies = tuple(reply for _, reply in rows)
    judged = Answers((UNPARSED,) * len(rows), (None,) * len(rows), replies, "letter")
    truth = [label for label, _ in rows]
    wanted = [letter_of(reply, *HATEFUL) for reply in replies]
    scores = score(examples, judged)
    if len(set(truth)) == 2:
        assert scores["auc_published"] == pytest.approx(roc_auc_score(truth, wanted))
    assert scores["accuracy_published"] == pytest.approx(np.mean(np.equal(truth, wanted)))


@given(st.lists(st.tuples(st.integers(0, 7), LETTERS), min_size=1, max_size=30))
def test_the_published_f1_is_that_of_the_script_of_crisis_mmd(rows):
    examples = [asked(label, 8) for label, _ in rows]
    replies = tuple(reply for _, reply in rows)
    judged = Answers((UNPARSED,) * len(rows), (None,) * len(rows), replies, "letter")
    wanted = [letter_of(reply, *CRISIS) for reply in replies]
    theirs = f1_score([label for label, _ in rows], wanted, average="macro", zero_division=0.0)
    assert score(examples, judged)["macro_f1_published"] == pytest.approx(theirs)


def test_a_failure_is_class_two_even_where_that_is_a_real_class():
    one = asked(2, 8)
    state = CHOICE.metrics.add(CHOICE.metrics.zero, one, first_letter("who knows", 8), None)
    assert FAILED == 2
    assert CHOICE.metrics.result(state)["accuracy_published"] == 1.0


def sentences(label, reply, skip, stop=None):
    """Cut a right answer and a reply after the first "is" as FedVLMBench's scripts do; None where there is none.

    Their sentences end in ".</s>", which is what their last five characters are.
    """
    cut = []
    for text in (f"{label}.</s>", f"{reply}.</s>"):
        place = text.find("is")
        cut.append(None if place < 0 else text[place + skip : -5 if stop is None else place + stop])
    return cut


def right_text(label, reply):
    """Return whether the script of FGVC-Aircraft counts a reply as right."""
    wanted, spoken = sentences(label, reply, 3)
    return None not in (wanted, spoken) and wanted == spoken and wanted != " "


def right_start(label, reply):
    """Return whether the multi-task scripts count a reply as right."""
    wanted, spoken = sentences(label, reply, 3, 4)
    return None not in (wanted, spoken) and wanted == spoken and wanted != " "


NAMES = st.sampled_from(
    ["707-320", "747-100", "British Aerospace", "Cessna", "liver", "lung", "yes", "this one"]
)
FRAMES = st.sampled_from(["The variant is ", "The disease is ", "This answer to the question is "])
HOSTILE = st.one_of(
    st.tuples(FRAMES, NAMES).map("".join),
    st.lists(
        st.sampled_from(["is", " is ", "this ", "The ", "variant", "l", "7", "707-320", "are", ":"]),
        max_size=6,
    ).map("".join),
)


@given(FRAMES, NAMES, HOSTILE)
def test_sentences_are_compared_as_the_scripts_of_fedvlmbench_compare_them(frame, name, reply):
    one = Example("e", "Which?", f"{frame}{name}.", task="vqa")
    other = Example("f", "Where?", "[0, 0, 9, 9]", task="grounding")

    def scores(*examples):
        replies = (f"{reply}.", "")[: len(examples)]
        nothing = (None,) * len(examples)
        return score(examples, Answers((UNPARSED,) * len(examples), nothing, replies))["tasks"]["vqa"]

    assert scores(one)["accuracy_published"] == right_text(frame + name, reply)
    assert scores(one, other)["accuracy_published"] == right_start(frame + name, reply)


AIRCRAFT = ("707-320", "747-100", "British Aerospace", "Cessna")


@pytest.mark.parametrize(
    ("reply", "alone", "beside_other_tasks"),
    [
        ("707-320", 0, 0),
        ("747-100", 1, 0),  # begins as the right one does
        ("7", UNPARSED, 0),
        ("British Aerospace", 2, 2),  # whose "is" is no frame's
        ("The variant is 707-320.", 0, 0),
        ("The variant is 747-100.", 1, 0),
        ("Cessna", 3, 3),
        ("707-321", UNPARSED, 0),
        ("cessna", UNPARSED, UNPARSED),
        ("", UNPARSED, UNPARSED),
    ],
)
def test_an_aircraft_is_compared_by_its_full_name(reply, alone, beside_other_tasks):
    one = Example("e", "Which variant?", AIRCRAFT[0], label=0, options=AIRCRAFT)
    assert CHOICE.parse(reply, one, answer_form="text") == alone
    assert TASKS["choice"].multitask.parse(reply, one, answer_form="text") == beside_other_tasks
    other = Example("f", "Where?", "[0, 0, 9, 9]", task="grounding")
    only = Answers((UNPARSED,), (None,), (reply,))
    assert score([one], only)["accuracy_published"] == (alone == 0)
    both = Answers((UNPARSED,) * 2, (None,) * 2, (reply, ""))
    assert score([one, other], both)["tasks"]["choice"]["accuracy_published"] == (beside_other_tasks == 0)


def test_options_with_the_same_first_character_are_alike_to_the_multi_task_scripts():
    one = Example("e", "Which?", "smile", label=1, options=("sun", "smile", "fox"))
    parse = TASKS["choice"].multitask.parse
    labels = [parse(reply, one, answer_form="text") for reply in ("sun", "fox", "It is stone", "zoo")]
    assert labels == [1, 2, 1, UNPARSED]


def test_a_first_character_is_enough_beside_other_tasks():
    one = Example("e", "What?", "The organ is the liver.", task="vqa")
    task = TASKS["vqa"]
    for reply, ours, alone, beside in (
        ("The organ is the lung.", 0.0, 0.0, 1.0),
        ("The organ is the liver.", 1.0, 1.0, 1.0),
        ("It is a liver.", 0.0, 0.0, 0.0),
        ("the liver", 0.0, 0.0, 0.0),  # a reply without "is" is never right
    ):
        for published, wanted in ((task.published, alone), (task.multitask, beside)):
            answer = published.parse(reply, one, answer_form="text")
            state = published.metrics.add(published.metrics.zero, one, answer, None)
            assert published.metrics.result(state)["accuracy_published"] == wanted
        state = task.metrics.add(task.metrics.zero, one, task.parse(reply, one, answer_form="text"), None)
        assert task.metrics.result(state)["accuracy"] == ours


CAPTION = TASKS["caption"].published
CAPTION_FRAME = "The image caption is: "
WORDS = st.lists(
    st.sampled_from("A woman is riding this Horse, on grass".split()), min_size=1, max_size=9
).map(" ".join)


def caption_scores(rows):
    state = CAPTION.metrics.zero
    for right, reply in rows:
        one = Example("e", "Describe.", right, task="caption")
        state = CAPTION.metrics.add(state, one, CAPTION.parse(reply, one, answer_form="text"), None)
    return CAPTION.metrics.result(state)


class _Quiet(Bleu):
    def compute_score(self, gts, res):
        return super().compute_score(gts, res, verbose=0)


@given(st.lists(st.tuples(WORDS, st.booleans(), WORDS), min_size=1, max_size=8))
def test_captions_are_scored_as_the_multi_task_scripts_score_them(rows):
    framed = [
        (CAPTION_FRAME + right, CAPTION_FRAME + said if named else said.replace("is", ""))
        for right, named, said in rows
    ]
    kept = [cut for row in framed if None not in (cut := sentences(*row, 4))]
    scores = caption_scores([(f"{right}.", f"{reply}.") for right, reply in framed])
    if not kept:
        assert scores["cider_published"] is None
        return
    rights, said = ({place: [row[side]] for place, row in enumerate(kept)} for side in (0, 1))
    assert scores["cider_published"] == pytest.approx(Cider().compute_score(rights, said)[0], abs=1e-9)
    assert scores["rouge_l_published"] == pytest.approx(Rouge().compute_score(rights, said)[0])
    assert scores["bleu_1_published"] == pytest.approx(_Quiet(4).compute_score(rights, said)[0][0], rel=1e-6)
    # Ours are without the frame. Nothing else is different.
    plain = [(row[0], row[1]) for row in kept]
    assert caption_scores(plain) == scores


@pytest.mark.parametrize(
    ("right", "reply", "heard"),
    [
        ("A man on a horse", "The image caption is A woman is riding a horse", "A woman is riding a horse"),
        ("The image caption is A man.", "The image caption is A woman is here.", "A woman is here"),
        ("The image caption is A man.", "A woman on a horse", None),  # no "is"
        ("The image caption is A man.", "", None),
        ("A woman is riding a horse", "A woman is riding a horse", "A woman is riding a horse"),
        ("A woman is riding a horse", "A dog, on GRASS.", "A dog, on GRASS"),
        ("A woman is riding a horse", "", None),
    ],
)
def test_a_caption_is_cut_at_the_is_of_its_frame(right, reply, heard):
    one = Example("e", "Describe.", right, task="caption")
    answer = CAPTION.parse(reply, one, answer_form="text")
    assert answer is UNPARSED if heard is None else answer == heard


def test_published_captions_differ_by_case_and_punctuation():
    rights = ("A big red circle on top", "A small blue square below it")
    exact, other = ([(right, change(right)) for right in rights] for change in (str, str.lower))
    assert caption_scores(exact)["cider_published"] == pytest.approx(10.0)
    assert caption_scores(other)["cider_published"] < 10.0
    assert caption_scores(other)["bleu_1_published"] == pytest.approx(10 / 12)  # all words but the first ones


@pytest.mark.parametrize(
    ("reply", "box"),
    [
        ("[0.1, 0.2, 0.5, 0.5]", (0.1, 0.2, 0.5, 0.5)),
        ("The coordinates are [0.1, 0.2, 0.5, 0.5].", (0.1, 0.2, 0.5, 0.5)),
        ("The coordinates are [0.1, 0.2, 0.5, 7.5]", (0.1, 0.2, 0.5, 7.5)),  # no box inside the image
        ("The coordinates are near [0.1, 0.2, 0.5, 0.5].", None),
        ("The coordinates are [0.1, 0.2, 0.5, 0.5] or so.", None),
        ("[0.1, 0.2, 0.5, 0.5], [0.1, 0.2, 0.5, 0.5]", None),
        ("The coordinates are [0.1, 0.2, 0.5].", None),
        ("The coordinates are", None),
        ("", None),
    ],
)
def test_a_published_box_is_all_that_follows_are(reply, box):
    one = Example("e", "Where?", "[0.0, 0.2, 0.5, 0.5]", task="grounding")
    answer = TASKS["grounding"].published.parse(reply, one, answer_form="text")
    assert answer == (UNPARSED if box is None else box)


def test_published_boxes_that_cannot_be_read_are_left_out():
    task, one = TASKS["grounding"], Example("e", "Where?", "[0, 0, 9, 9]", task="grounding")
    ours, published = task.metrics.zero, task.published.metrics.zero
    for reply in ("[0, 0, 9, 4]", "nowhere", "[0, 0, 9, 9] or [1, 1, 2, 2]", "[0, 0, 9, 9]"):
        ours = task.metrics.add(ours, one, task.parse(reply, one, answer_form="text"), None)
        answer = task.published.parse(reply, one, answer_form="text")
        published = task.published.metrics.add(published, one, answer, None)
    assert task.metrics.result(ours)["iou"] == pytest.approx((0.5 + 1) / 4)
    assert task.published.metrics.result(published) == {
        "iou_published": pytest.approx((0.5 + 1) / 2),
        "dropped_published": pytest.approx(2 / 4),
    }
