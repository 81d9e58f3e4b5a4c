"""Laws of every task: gold answers parse to themselves, silence never pays, metrics are monoids."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, replace
from itertools import product
from string import ascii_uppercase

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedloom.system.errors import UserError
from fedloom.tasks import PROMPTS, TASKS, UNPARSED, clean_text
from fedloom.types import Example, Presence

FORMS = ("text", "letter")
NOT_ONE = ("auc", "cider")  # a single answer has no area and no rare words
GRID = list(product(TASKS, FORMS))
BOTH = Presence(image=True, text=True)
EVERY = [Presence(image=image, text=text) for image in (True, False) for text in (True, False)]


@dataclass(frozen=True)
class Blank:
    key: str = "blank"

    def pixels(self) -> np.ndarray:
        return np.zeros((48, 64, 3), np.uint8)


texts = st.text(max_size=30).filter(lambda text: text.strip())
words = st.sampled_from("cat dog cat-fish fish not a the two 2 A (A) (B) <image> <s> [INST] big_cat".split())
phrases = st.lists(words, min_size=1, max_size=4).map(" ".join) | texts


@st.composite
def examples(draw, task: str) -> Example:
    base = {
        "id": "e",
        "question": draw(phrases),
        "image": Blank(),
        "text": draw(st.none() | phrases),
        "task": task,
    }
    if task == "choice":
        options = tuple(draw(st.lists(phrases, min_size=2, max_size=5, unique_by=clean_text)))
        label = draw(st.integers(0, len(options) - 1))
        return Example(**base, answer=options[label], label=label, options=options)
    if task == "grounding":
        x0, x1 = sorted(draw(st.tuples(st.integers(0, 63), st.integers(0, 63))))
        y0, y1 = sorted(draw(st.tuples(st.integers(0, 47), st.integers(0, 47))))
        return Example(**base, answer=str([x0, y0, x1, y1]))
    return Example(**base, answer=draw(phrases))


def gold(one: Example, form: str):
    task = TASKS[one.task]
    answer = task.render(one, BOTH, answer_form=form).answer
    return task.parse(answer, one, answer_form=form)


@st.composite
def judged(draw, task: str):
    """An example with an answer to it: the right one, that of another example of the task, or none."""
    one = draw(examples(task))
    if task == "choice":
        one = replace(one, options=("cat", "dog", "fox"), label=one.label % 3)
        answer = draw(st.integers(0, 2))
    else:
        answer = gold(draw(st.just(one) | examples(task)), "text")
    answer = draw(st.just(answer) | st.just(UNPARSED))
    scores = (
        np.array(draw(st.lists(st.integers(0, 9), min_size=3, max_size=3))) / 9 if task == "choice" else None
    )
    return one, answer, scores


def total(task: str, rows):
    metrics = TASKS[task].metrics
    state = metrics.zero
    for row in rows:
        state = metrics.add(state, *row)
    return state


@pytest.mark.parametrize(("task", "form"), GRID)
@given(data=st.data())
def test_the_gold_answer_parses_to_itself_and_scores_best(task, form, data):
    one = data.draw(examples(task))
    answer = gold(one, form)
    assert answer is not UNPARSED
    if task == "choice":
        assert answer == one.label
    metrics = TASKS[task].metrics
    scores = metrics.result(metrics.add(metrics.zero, one, answer, None))
    assert scores.pop("unparsed") == 0.0
    assert all(score == 1.0 for name, score in scores.items() if score is not None and name not in NOT_ONE)


@pytest.mark.parametrize("task", TASKS)
@given(data=st.data())
def test_an_unparsed_answer_never_raises_a_score(task, data):
    rows = data.draw(st.lists(judged(task), min_size=1, max_size=8))
    place = data.draw(st.integers(0, len(rows) - 1))
    silent = [*rows[:place], (rows[place][0], UNPARSED, rows[place][2]), *rows[place + 1 :]]
    result = TASKS[task].metrics.result
    before, after = result(total(task, rows)), result(total(task, silent))
    assert after.pop("unparsed") >= before.pop("unparsed")
    names = [name for name in before if not name.startswith("bleu")]  # see test_overlap
    assert all(after[name] is None or after[name] <= before[name] + 1e-12 for name in names)


@pytest.mark.parametrize("task", TASKS)
@given(data=st.data())
def test_merge_is_associative_with_zero(task, data):
    metrics = TASKS[task].metrics
    a, b, c = (total(task, data.draw(st.lists(judged(task), max_size=4))) for _ in range(3))
    assert metrics.merge(metrics.merge(a, b), c) == metrics.merge(a, metrics.merge(b, c))
    assert metrics.merge(metrics.zero, a) == a == metrics.merge(a, metrics.zero)


@pytest.mark.parametrize("task", TASKS)
@given(data=st.data())
def test_parts_merge_to_the_whole(task, data):
    metrics = TASKS[task].metrics
    first, second = (data.draw(st.lists(judged(task), max_size=4)) for _ in range(2))
    merged = metrics.merge(total(task, first), total(task, second))
    assert metrics.result(merged) == metrics.result(total(task, first + second))


@pytest.mark.parametrize("task", TASKS)
@given(data=st.data())
def test_scores_are_means_of_the_answers_scores(task, data):
    metrics = TASKS[task].metrics
    state = total(task, data.draw(st.lists(judged(task), min_size=1, max_size=8)))
    each, scores = metrics.each(state), metrics.result(state)
    assert {"accuracy", metrics.headline} <= set(each)
    for name, values in each.items():
        assert len(values) == len(state)
        assert scores[name] == pytest.approx(sum(values) / len(values))


@pytest.mark.parametrize("task", TASKS)
@given(data=st.data())
def test_published_scores_are_labeled_and_take_any_reply(task, data):
    published = data.draw(
        st.sampled_from([TASKS[task].published, TASKS[task].multitask or TASKS[task].published])
    )
    state = published.metrics.zero
    for _ in range(data.draw(st.integers(1, 4))):
        one = data.draw(examples(task))
        reply = data.draw(st.text() | phrases | st.just(one.answer))
        answer = published.parse(reply, one, answer_form=data.draw(st.sampled_from(FORMS)))
        state = published.metrics.add(state, one, answer, None)
    scores = published.metrics.result(state)
    assert all(name.endswith("_published") for name in scores)
    assert published.metrics.headline in scores


@pytest.mark.parametrize("task", TASKS)
def test_adding_never_changes_what_others_hold(task):
    rows = {"choice": (EXAMPLE, 1, None), "grounding": (BOXED, (0, 0, 1, 1), None)}
    metrics, row = TASKS[task].metrics, rows.get(task, (replace(EXAMPLE, task=task), "dog", None))
    states = [metrics.zero]
    for _ in range(4):
        states.append(metrics.add(states[-1], *row))
    branch = metrics.add(states[2], *row)
    assert [len(state) for state in states] == [0, 1, 2, 3, 4]
    assert branch == states[3] and branch is not states[3]
    assert metrics.merge(states[2], states[2]) == states[4]


def test_a_hundred_thousand_answers_take_a_hundred_thousand_steps():
    """Counted, not timed: rows are appended to one list and never copied."""

    class Counting(list):
        copied = 0

        def __getitem__(self, place):
            Counting.copied += len(self) if isinstance(place, slice) else 0
            return super().__getitem__(place)

    metrics = TASKS["vqa"].metrics
    one = replace(EXAMPLE, task="vqa")
    state = metrics.add(metrics.zero, one, "dog", None)
    state._shared = Counting(state._shared)
    for _ in range(100_000):
        state = metrics.add(state, one, "dog", None)
    assert len(state) == 100_001 and isinstance(state._shared, Counting)
    assert Counting.copied == 0


@pytest.mark.parametrize("task", TASKS)
def test_no_answers_have_no_scores(task):
    scores = TASKS[task].metrics.result(TASKS[task].metrics.zero)
    assert {"accuracy", "unparsed"} <= set(scores)
    assert set(scores.values()) == {None}


@pytest.mark.parametrize(("task", "form"), GRID)
@given(data=st.data(), reply=st.text() | phrases)
def test_parse_takes_any_reply(task, form, data, reply):
    one = data.draw(examples(task))
    answer = TASKS[task].parse(reply, one, answer_form=form)
    assert answer is UNPARSED or task != "choice" or 0 <= answer < len(one.options)


BOXED = Example("e", "Where?", "[0, 0, 1, 1]", task="grounding")
EXAMPLE = Example("e", "Which group?", "dog", Blank(), "a barking pet", 1, options=("cat", "dog"))


@pytest.mark.parametrize(("task", "form"), GRID)
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("present", EVERY)
def test_what_is_absent_is_not_shown(task, form, prompt, present):
    said = TASKS[task].render(EXAMPLE, present, clause=PROMPTS[prompt], answer_form=form)
    assert ("a barking pet" in said.user) == present.text
    assert said.picture == (EXAMPLE.image if present.image else None)
    bare = TASKS[task].render(
        replace(EXAMPLE, image=None, text=None), present, clause=PROMPTS[prompt], answer_form=form
    )
    assert bare.picture is None
    assert "Text:" not in bare.user


def users(task: str, form: str, clause: str | None) -> set[str]:
    """Return the prompts for all cases of presence, without the text of the example."""
    said = [TASKS[task].render(EXAMPLE, present, clause=clause, answer_form=form) for present in EVERY]
    return {one.user.replace("Text: a barking pet\n", "") for one in said}


@pytest.mark.parametrize(("task", "form"), GRID)
def test_only_the_ordinary_prompt_tells_what_is_present(task, form):
    asked = {name: users(task, form, clause) for name, clause in PROMPTS.items()}
    assert len(asked.pop("present")) == 4
    assert all(len(said) == 1 for said in asked.values())
    # No two variants of the ablation ask alike, so that each row of it is a case of its own.
    assert len(set.union(*asked.values())) == len(asked) == 5


@pytest.mark.parametrize(("task", "form"), GRID)
@pytest.mark.parametrize("prompt", ["original", "relaxed", "agnostic", "strict"])
def test_a_clause_replaces_every_phrase_about_modalities(task, form, prompt):
    (asked,) = users(task, form, PROMPTS[prompt])
    assert asked.count(PROMPTS[prompt]) == (2 if (task, form) == ("choice", "letter") else 1)
    assert all(PROMPTS[prompt] not in user for user in users(task, form, PROMPTS["none"]))


@pytest.mark.parametrize("task", ["vqa", "caption", "grounding"])
@pytest.mark.parametrize("image", [True, False])
def test_without_a_clause_a_free_question_is_unchanged(task, image):
    said = TASKS[task].render(EXAMPLE, Presence(image, False), clause=PROMPTS["none"], answer_form="text")
    assert (said.user, said.answer) == (EXAMPLE.question, EXAMPLE.answer)


@pytest.mark.parametrize("present", EVERY)
def test_the_letter_form_has_the_published_parts_in_their_order(present):
    said = TASKS["choice"].render(EXAMPLE, present, answer_form="letter")
    instruction, *text, question, head, first, second, reply = said.user.split("\n")
    assert "best of the options" in instruction
    assert text == (["Text: a barking pet"] if present.text else [])
    assert question.endswith("Which group?")
    assert (head, first, second) == ("Options:", "(A) cat", "(B) dog")
    assert "letter" in reply
    assert said.answer == "(B) dog"
    # The same words name the modalities in both places; without modalities there are none.
    named = {
        (True, True): "the picture and the text",
        (True, False): "the picture",
        (False, True): "the text",
    }
    phrase = named.get((present.image, present.text))
    for line in (instruction, question):
        assert ("Given" in line) == (phrase is not None)
        assert phrase is None or f"Given {phrase}" in line


def test_options_of_a_choice_are_what_is_compared():
    for form, wanted in (("text", ("cat", "dog")), ("letter", ("(A) cat", "(B) dog"))):
        said = TASKS["choice"].render(EXAMPLE, BOTH, answer_form=form)
        assert said.options == wanted
        assert said.answer == wanted[1]
        assert all((option in said.user) == (form == "letter") for option in wanted)


TOKENS = [
    "<image>",
    "<s>",
    "</s>",
    "<|im_end|>",
    "<<SYS>>",
    "[INST]",
    "[/INST]",
    "<image_soft_token>",
    "[IMG]",
]


@given(st.lists(st.sampled_from(TOKENS) | st.text(max_size=4), max_size=8).map("".join))
def test_user_text_never_holds_a_special_token(text):
    clean = clean_text(text)
    assert not any(token in clean for token in TOKENS)
    assert clean == clean_text(clean)
    assert "".join(clean.split()) == "".join(text.split())
    assert "\n" not in clean


@pytest.mark.parametrize(("task", "form"), GRID)
@given(data=st.data())
def test_conversations_never_hold_a_special_token(task, form, data):
    said = TASKS[task].render(data.draw(examples(task)), BOTH, answer_form=form)
    assert not any(token in part for token in TOKENS for part in (said.user, said.answer, *said.options))


FOUR = Example("e", "Which?", "fish", label=1, options=("cat", "fish", "cat-fish", "A1"))


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("fish", 1),
        (" FISH. ", 1),
        ("It is a fish!", 1),
        ("a cat  fish, I think", 2),  # the longest option, not the two inside it
        ("cat fish cat fish", 2),
        ("cat or fish", None),
        ("catfish", None),  # another word
        ("fishes", None),
        ("", None),
        ("?", None),
        ("a dog", None),
    ],
)
def test_a_text_answer_is_the_only_option_named(reply, label):
    answer = TASKS["choice"].parse(reply, FOUR, answer_form="text")
    assert answer == label if label is not None else answer is UNPARSED


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("(B) fish", 1),
        ("(B)", 1),
        ("B", 1),
        ("B.", 1),
        ("The answer is C", 2),
        ("Answer: (D), not the others", 3),
        ("(A) or (B)", None),
        ("A or B", None),
        ("(Z)", None),
        ("E", None),  # there are four options
        ("Because it barks", None),  # a capital inside a word
        ("BC", None),
        ("A cat is shown", None),  # an article
        ("A is right and B is wrong", None),
        ("A.", 0),
        ("fish", None),
        ("", None),
    ],
)
def test_a_letter_answer_is_the_only_letter_in_range(reply, label):
    answer = TASKS["choice"].parse(reply, FOUR, answer_form="letter")
    assert answer == label if label is not None else answer is UNPARSED


def test_options_that_differ_only_in_punctuation_are_distinguished_by_exact_match():
    one = Example("e", "Which?", "C", label=0, options=("C", "C++"))
    parse = TASKS["choice"].parse
    assert [parse(reply, one, answer_form="text") for reply in ("C", "C++", "c", "it is C")] == [
        0,
        1,
        UNPARSED,
        UNPARSED,
    ]


def test_letters_run_out():
    options = tuple(map(str, range(len(ascii_uppercase) + 1)))
    one = Example("e", "Which?", "0", label=0, options=options)
    TASKS["choice"].render(one, BOTH, answer_form="text")
    with pytest.raises(UserError, match="27 options"):
        TASKS["choice"].render(one, BOTH, answer_form="letter")


@pytest.mark.parametrize("one", [replace(EXAMPLE, label=2), replace(EXAMPLE, label=None, answer="fox")])
def test_an_answer_that_is_not_an_option_is_refused(one):
    with pytest.raises(UserError, match="not one of its options: cat, dog"):
        TASKS["choice"].render(one, BOTH, answer_form="text")


def test_a_missing_label_follows_from_the_answer():
    assert gold(replace(EXAMPLE, label=None), "text") == 1


@pytest.mark.parametrize(
    ("reply", "box"),
    [
        ("[1, 2, 3, 4]", (1, 2, 3, 4)),
        ("It is at [1,2,3,4].", (1, 2, 3, 4)),
        ("[0, 0, 63, 47]", (0, 0, 63, 47)),
        ("[0, 0, 64, 47]", None),  # outside the image, which is 64 wide and 48 high
        ("[0, 0, 63, 48]", None),
        ("[3, 2, 1, 4]", None),
        ("[1, 4, 3, 2]", None),
        ("[-1, 2, 3, 4]", None),
        ("[1, 2, 3]", None),
        ("[1.5, 2, 3, 4]", None),
        ("[1, 2, 3, 4] or [5, 6, 7, 8]", None),
        ("[1, 2, 3, 99999999999999999999]", None),
        ("1, 2, 3, 4", None),
    ],
)
def test_a_box_is_four_whole_numbers_inside_the_image(reply, box):
    one = Example("e", "Where?", "[0, 0, 1, 1]", Blank(), task="grounding")
    answer = TASKS["grounding"].parse(reply, one, answer_form="text")
    assert answer == box if box else answer is UNPARSED


@pytest.mark.parametrize(
    ("reply", "box"),
    [
        ("[0.1, 0.2, 0.3, 0.4]", (0.1, 0.2, 0.3, 0.4)),
        ("It is at [0, 0, 1, 1.0].", (0, 0, 1, 1)),
        ("[0.1, 0.2, 0.3, 1.1]", None),
        ("[0.1, 0.2, 0.1, 0.4]", None),  # no area
        ("[0.3, 0.2, 0.1, 0.4]", None),
        ("[10, 20, 30, 40]", None),  # pixels where fractions are asked for
        ("[0.1, 0.2, 0.3]", None),
    ],
)
def test_a_box_in_fractions_is_between_zero_and_one(reply, box):
    one = Example("e", "Where?", "[0.0, 0.0, 0.5, 0.5]", Blank(), task="grounding")
    answer = TASKS["grounding"].parse(reply, one, answer_form="text")
    assert answer == box if box else answer is UNPARSED


def test_a_gold_box_outside_the_image_is_refused():
    one = Example("e", "Where?", "[0, 0, 99, 1]", Blank(), task="grounding")
    with pytest.raises(UserError, match="not a box inside its image"):
        total("grounding", [(one, (0, 0, 1, 1), None)])


@given(phrases, phrases)
def test_letter_case_and_punctuation_do_not_matter_to_free_answers(first, second):
    assume(first.isascii() and second.isascii())
    for task in ("vqa", "caption"):
        one = Example("e", "What?", f"{first} {second} it", task=task)
        reply = f"{first.upper()}  {second.upper()} IT!"
        assert TASKS[task].parse(reply, one, answer_form="text") == gold(one, "text")


# Words of several scripts, each followed by one that differs in a vowel sign or an accent only.
SIGNS = [
    ("हिन्दी", "हन्दा"),  # Hindi
    ("มา", "มี"),  # Thai
    ("কি", "কা"),  # Bengali
    ("كَتَبَ", "كُتِبَ"),  # Arabic with vowels
    ("שָׁלוֹם", "שִׁלוּם"),  # Hebrew with vowels
    ("cafe\u0301", "cafe"),  # French, decomposed
    ("tiếng", "tiêng"),  # Vietnamese
]


@pytest.mark.parametrize("task", ["vqa", "caption", "choice"])
@pytest.mark.parametrize(("word", "other"), SIGNS)
def test_vowel_signs_and_accents_are_parts_of_words(task, word, other):
    options = (other, word) if task == "choice" else ()
    one = Example("e", "Which?", word, task=task, options=options, label=1 if options else None)
    parse, each = TASKS[task].parse, TASKS[task].metrics.each

    def accuracy(reply: str) -> float:
        answer = parse(reply, one, answer_form="text")
        return each(total(task, [(one, answer, None)]))["accuracy"][0]

    for form in ("NFC", "NFD"):
        assert accuracy(unicodedata.normalize(form, f"“{word}”!")) == 1.0
        assert accuracy(unicodedata.normalize(form, other)) == 0.0
    if task != "choice":
        assert len(str(parse(f"{word} {word}", one, answer_form="text")).split()) == 2


@pytest.mark.parametrize("task", ["vqa", "caption"])
def test_the_style_of_a_symbol_is_no_part_of_a_word(task):
    one = Example("e", "Which?", "1", task=task)
    for reply in ("1\ufe0f\u20e3", "❤\ufe0f 1", "1 \u2764\ufe0f!"):
        assert TASKS[task].parse(reply, one, answer_form="text") == "1"
