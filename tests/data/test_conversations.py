"""Conversations in other trainers' formats give the same turns, with images in place and every answer once."""

import json
from collections import Counter

import pytest

from fedloom.data.own_folder import load_folder
from fedloom.tasks import TASKS
from fedloom.types import Presence, Turn


@pytest.fixture
def read(tmp_path, settings, encoded):
    """Return a function that writes records and returns what comes of them, by id."""
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(encoded(ord(name)))

    def loaded(*records, rejected=()):
        (tmp_path / "data.json").write_text(json.dumps(records))
        data = load_folder(settings(root=tmp_path, max_rejected=1.0), 0)
        assert [one.reason for one in data.rejected] == [f"entry {number}: {why}" for number, why in rejected]
        return {example.id: example for example in (*data.train, *data.test)}

    return loaded


def names(example):
    return [[picture.path.name for picture in turn.pictures] for turn in example.turns]


TURNS = [("What is <image>?", "A cat."), ("And <image> here?", "A dog.")]
NAMES = ["a.png", "b.png"]


def llava(first, last):
    turns = [one for question, answer in TURNS for one in ((first, question), (last, answer))]
    return [{"from": role, "value": words} for role, words in turns]


def openai():
    def parts(question, name):
        before, after = question.split("<image>")
        image = {"type": "image_url", "image_url": {"url": name}}
        return [{"type": "text", "text": before}, image, {"type": "text", "text": after}]

    asked = [
        {"role": "user", "content": parts(turn[0], name)} for turn, name in zip(TURNS, NAMES, strict=True)
    ]
    said = [{"role": "assistant", "content": turn[1]} for turn in TURNS]
    return [asked[0], said[0], asked[1], said[1]]


FORMS = {
    "llava": {"image": NAMES, "conversations": llava("human", "gpt")},
    "sharegpt": {"images": NAMES, "conversations": llava("user", "assistant"), "tools": ""},
    "messages": {
        "images": [{"path": name, "bytes": None} for name in NAMES],
        "messages": [{"role": turn["from"], "content": turn["value"]} for turn in llava("user", "assistant")],
    },
    "pairs": {"images": NAMES, "conversation": [{"human": one, "assistant": two} for one, two in TURNS]},
    "swift": {"images": NAMES, "query": TURNS[1][0], "response": TURNS[1][1], "history": [TURNS[0]]},
    "alpaca": {
        "images": NAMES,
        "instruction": TURNS[1][0],
        "input": "",
        "output": "A dog.",
        "history": [TURNS[0]],
    },
    "openai": {"messages": openai()},
    "qwen": {
        "conversations": [
            {
                "from": role["from"],
                "value": role["value"].replace("<image>", f"<img>{NAMES[number // 2]}</img>"),
            }
            for number, role in enumerate(llava("user", "assistant"))
        ]
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_comes_to_the_same_conversation(read, form):
    examples = read({**FORMS[form], "id": "x"})
    assert set(examples) == {"x#1", "x#2"}
    first, second = examples["x#1"], examples["x#2"]
    assert (first.answer, second.answer) == ("A cat.", "A dog.")
    assert [" ".join(turn.user.split()) for turn in second.turns] == ["What is ?", "And here?"]
    assert names(second) == [["a.png"], ["b.png"]] and names(first) == [["a.png"]]
    for turn in second.turns:
        assert turn.user[: turn.places[0]].strip() in ("What is", "And")
    shown = TASKS["vqa"].render(second, Presence(True, True), answer_form="text")
    assert [turn.answer for turn in shown.history] == ["A cat."]
    assert [picture.path.name for picture in shown.pictures] == NAMES
    assert shown.user[: shown.turn.places[0]].endswith("And")
    blind = TASKS["vqa"].render(second, Presence(False, True), answer_form="text")
    assert blind.pictures == () and [turn.answer for turn in blind.history] == ["A cat."]


def test_ids_of_llava_name_images(read):
    """Records about one image share its id; all are used, each under a name of its own."""
    records = [
        {"id": "7", "image": "a.png", "conversations": [{"from": "human", "value": f"<image>\nQ{n}?"},
                                                       {"from": "gpt", "value": f"A{n}"}]}
        for n in range(5)
    ]  # fmt: skip
    examples = read(*records)
    assert len(examples) == 5
    assert Counter(one.answer for one in examples.values()) == Counter(f"A{n}" for n in range(5))


def test_system_turns_and_several_users_in_a_row(read):
    turns = [
        {"role": "system", "content": "Be short."}, {"role": "user", "content": "One."},
        {"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Left open"},
    ]  # fmt: skip
    example = read({"id": "x", "messages": turns})["x"]
    assert (example.system, example.question, example.answer) == ("Be short.", "One.\nTwo?", "Yes.")


def test_answers_that_are_not_to_be_learned_are_only_context(read):
    turns = [
        {"role": "user", "content": "A?"}, {"role": "assistant", "content": "a", "weight": 0},
        {"role": "user", "content": "B?"}, {"role": "assistant", "content": "b"},
    ]  # fmt: skip
    (example,) = read({"messages": turns}).values()
    assert [(turn.user, turn.answer) for turn in example.turns] == [("A?", "a"), ("B?", "b")]


def test_images_without_marks_come_before_the_first_question(read):
    talk = [{"from": "human", "value": "Which?"}, {"from": "gpt", "value": "This."}]
    example = read({"id": "x", "images": NAMES, "conversations": talk})["x"]
    assert example.turns == (Turn("Which?", "This.", example.turns[0].pictures, (0, 0)),)
    assert names(example) == [NAMES]


def test_plain_records_may_have_several_images(read):
    example = read({"id": "x", "image": NAMES, "question": "Is <image> like <image>?", "answer": "no"})["x"]
    assert (example.question, example.turns[0].places) == ("Is  like ?", (3, 9))


def say(*turns):
    return [{"role": role, "content": content} for role, content in turns]


BAD = [
    ({"messages": "text"}, "messages is not a list of objects"),
    ({"messages": []}, "it has no question with an answer to it"),
    ({"messages": say(("assistant", "Hello!"))}, "it has no question with an answer to it"),
    ({"messages": say(("user", "Q?"), ("assistant", ""))}, "the answer is empty"),
    ({"messages": say(("user", ""), ("assistant", "A"))}, "the question is empty"),
    ({"messages": say(("user", "Q?"), ("tool", "{}"), ("assistant", "A"))},
     "a turn is of 'tool', not one of human, user, gpt, assistant, model, bot, chatgpt, bard, ai, system, developer"),
    ({"messages": say(("user", "Q?"), ("assistant", "A")), "tools": [{"name": "f"}]},
     "it has tools (tools), which cannot be used"),
    ({"messages": say(("user", "Q?"), ("assistant", "A")), "videos": ["v.mp4"]},
     "it has videos (videos), which cannot be used"),
    ({"messages": say(("user", "<image>Q?"), ("assistant", "A"))},
     "its questions have 1 <image> marks for 0 images"),
    ({"messages": say(("user", "<image>Q?"), ("assistant", "A")), "images": NAMES},
     "its questions have 1 <image> marks for 2 images"),
    ({"messages": say(("user", [{"type": "audio"}]), ("assistant", "A"))},
     "a part of content is 'audio', not text or image"),
    ({"messages": say(("user", [{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}]),
                      ("assistant", "A"))},
     "image 'https://example.org/a.png' is a URL or names a drive"),
    ({"messages": say(("user", [{"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBO"}}]),
                      ("assistant", "A"))},
     "image_url holds an image itself (a data: URI); put it into a file and name that"),
    ({"messages": [{"content": "Q?"}]}, "a turn has neither from nor role"),
    ({"query": "Q?", "response": "A", "history": ["one"]}, "history is not a list of pairs"),
    ({"messages": say(("user", "Q?"), ("assistant", "A")), "image": "a.png", "images": ["b.png"]},
     "it has both image and images"),
    ({"messages": say(("user", 5), ("assistant", "A"))}, "content is a number, not text"),
]  # fmt: skip


def test_invalid_records_have_a_reason_and_cost_no_others(read):
    good = {"text": "t", "question": "q", "answer": "a"}
    records = [one for record, _ in BAD for one in (record, good)]
    examples = read(*records, rejected=[(2 * at + 1, why) for at, (_, why) in enumerate(BAD)])
    assert len(examples) == len(BAD)


def unified(**given):
    """Return a record as tables write it whose rows all have the same columns."""
    columns = (
        "conversations",
        "messages",
        "conversation",
        "question",
        "answer",
        "query",
        "response",
        "image",
        "images",
    )
    return dict.fromkeys(columns) | given


@pytest.mark.parametrize(
    "record",
    [
        unified(
            messages=[{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "yes"}],
            image="a.png",
        ),
        unified(query="Which?", response="yes", images=["a.png"], conversations=[]),
        unified(question="Which?", answer="yes", image="a.png", messages=[]),
        unified(question="<image>\nWhich?", answer="yes", image="a.png"),
        unified(question="Which?", answer="yes", image="a.png", images=["a.png"]),
        unified(query="Which?", response="yes", images=["a.png"], objects={"ref": [], "bbox": [[]]}),
        unified(
            image="a.png",
            conversations=[
                {"from": "human", "role": None, "value": "Which?", "content": None},
                {"from": None, "role": "assistant", "value": None, "content": "yes"},
            ],
        ),
        unified(
            messages=[
                {
                    "role": "user",
                    "content": [
                        {"type": None, "text": None, "image": "a.png"},
                        {"type": "text", "text": "Which?", "image": None},
                    ],
                },
                {"role": "assistant", "content": [{"text": "yes", "image": None}]},
            ]
        ),
        unified(
            images=["a.png", "b.png"],
            messages=[
                {"role": "user", "content": "<image>Which?"},
                {"role": "assistant", "content": "yes"},
                {"role": "user", "content": "<image>And here?"},
            ],
        ),
    ],
)
def test_null_and_empty_mean_absent_and_no_image_is_lost_or_moved(read, record):
    example = read({"id": 7.0, **record})["7"]
    assert (example.question, example.answer, example.turns) == ("Which?", "yes", ())
    assert [picture.path.name for picture in example.pictures] == ["a.png"]


@pytest.mark.parametrize("role", ["system", "assistant"])
@pytest.mark.parametrize(
    "shown",
    [
        [{"type": "image", "image": "a.png"}, {"type": "text", "text": "Well."}],
        [{"type": "text", "text": "Well <image>."}],
        ["Well <image>."],
        "Well <image>.",
        "Well <img>a.png</img>.",
    ],
)
@pytest.mark.parametrize("keys", [("messages", "role", "content"), ("conversations", "from", "value")])
def test_an_image_that_no_question_shows_makes_its_record_invalid(read, role, shown, keys):
    said = {"user": "Which?", "assistant": "yes", "system": "Be brief."} | {role: shown}
    turns = [{keys[1]: one, keys[2]: said[one]} for one in ("system", "user", "assistant")]
    why = f"a turn of the {role} shows an image or holds an <image> mark, which only questions can"
    assert read({"id": "x", "image": "a.png", keys[0]: turns}, rejected=[(1, why)]) == {}


OUTSIDE = " shows an image or holds an <image> mark, which only questions can"


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({"messages": say(("user", "Q?"), ("assistant", "A")), "system": "See <image>."}, "a system text" + OUTSIDE),
        ({"query": "Q?", "response": "A <image>"}, "a turn of the assistant" + OUTSIDE),
        ({"query": "Q?", "response": "A", "history": [["Q?", "<image>"]]}, "a turn of the assistant" + OUTSIDE),
        ({"instruction": "Q?", "input": "", "output": "<image>"}, "a turn of the assistant" + OUTSIDE),
        ({"question": "Q?", "answer": "<image>"}, "answer holds an <image> mark, which only the question can"),
        ({"question": "<image>Q?", "answer": "<image>"}, "answer holds an <image> mark, which only the question can"),
    ],
)  # fmt: skip
def test_a_mark_outside_of_questions_makes_its_record_invalid(read, record, why):
    assert read({"id": "x", "image": "a.png", **record}, rejected=[(1, why)]) == {}


A, B = ({"type": "image", "image": name} for name in NAMES)
HERE = {"type": "image"}


def words(content):
    return {"type": "text", "text": content}


@pytest.mark.parametrize(
    ("asked", "images", "expected"),
    [
        ([[words("Is <image> like"), B]], ["a.png"], [["a.png", "b.png"]]),
        ([[B, words("like <image>?")]], ["a.png"], [["b.png", "a.png"]]),
        ([["Is <image> like", B]], ["a.png"], [["a.png", "b.png"]]),
        ([[HERE, words("like"), B]], ["a.png"], [["a.png", "b.png"]]),
        ([[B, words("<image>"), HERE]], ["a.png", "b.png"], [["b.png", "a.png", "b.png"]]),
        ([[words("<img>b.png</img> or <image>"), A]], ["b.png"], [["b.png", "b.png", "a.png"]]),
        (["Is <image> like", [B]], ["a.png"], [["a.png", "b.png"]]),
        ([[A], "and <image>?"], ["b.png"], [["a.png", "b.png"]]),
        ([[words("<image> <image>"), B]], ["a.png"], [["a.png", "b.png"]]),
        ([[B, words("<image>")], None, "And <image>, <img>b.png</img>?"], ["a.png"], [["b.png", "a.png"], ["b.png"]]),
    ],
)  # fmt: skip
def test_a_mark_without_a_name_takes_the_next_image_of_the_record(read, asked, images, expected):
    turns = [("assistant", "Yes.") if content is None else ("user", content) for content in asked]
    examples = read({"id": "x", "images": images, "messages": say(*turns, ("assistant", "No."))})
    example = list(examples.values())[-1]
    assert names(example) == expected
    assert "<im" not in "".join(turn.user for turn in example.turns)
    assert all(len(turn.places) == len(turn.pictures) for turn in example.turns)


def test_images_are_at_the_places_of_their_own_marks(read):
    asked = [words("One <image> two"), B, words("three <image> four")]
    example = read({"id": "x", "images": ["a.png"], "messages": say(("user", asked), ("assistant", "A"))})[
        "x"
    ]
    (turn,) = example.turns
    assert (turn.user, names(example)) == ("One  two\n\nthree  four", [["a.png", "b.png"]])
    assert turn.places == (4, 9)


def test_a_mark_that_ends_in_another_part_makes_its_record_invalid(read):
    turns = say(("user", [words("<img>a"), A, words("</img>?")]), ("assistant", "A"))
    why = "a mark <img>…</img> begins in one part of a question and ends in another"
    assert read({"id": "x", "messages": turns}, rejected=[(1, why)]) == {}


def test_a_part_that_is_both_text_and_image_makes_its_record_invalid(read):
    parts = [{"text": "Which?", "image": "a.png"}]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "yes"}]
    assert read({"messages": turns}, rejected=[(1, "a part of content is both text and image")]) == {}
