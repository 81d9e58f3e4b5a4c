"""The user's own folder: every record is either read, or skipped with a reason."""

import csv
import io
import json
import os
import sys
import tempfile
import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.data import load_data
from fedloom.data.own_folder import load_folder
from fedloom.data.python_data import examples_of as examples_of_folder
from fedloom.data.record_files import MAX_LINE
from fedloom.system.errors import UserError
from fedloom.types import Rejected

GOOD = {"question": "Which?", "answer": "yes", "text": "evidence"}


def line(**changes):
    """Return a good record with changes, as one line; a key that is set to ... is left out."""
    record = {key: value for key, value in (GOOD | changes).items() if value is not ...}
    return json.dumps(record).encode()


@pytest.fixture
def load(tmp_path, settings):
    """Return a function that writes lines to data.jsonl and loads the folder."""

    def loaded(*lines, **changes):
        (tmp_path / "data.jsonl").write_bytes(b"\n".join(lines))
        return load_folder(settings(root=tmp_path, **changes), 0)

    return loaded


def examples_of(data):
    return sorted((*data.train, *data.test), key=lambda example: example.id)


DEEP = b'{"question": "q", "answer": "a", "text": "t", "more": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
TYPES = [(5, "a number"), (True, "true or false"), ([], "a list"), ({}, "an object"), (0.5, "a number")]
UGLY = [
    (b'{"question": "q", "answer" "a"}', "bad JSON at column 28: Expecting ':' delimiter"),
    (b'{"question": "q"', "bad JSON at column 17: Expecting ',' delimiter"),
    (b"{} {}", "bad JSON at column 4: Extra data"),
    (b"\xff\xfe{}", "not UTF-8 text (byte 1)"),
    (b"[1, 2]", "a list instead of an object"),
    (b"null", "null instead of an object"),
    (b'"text"', "text instead of an object"),
    (b'{"question": NaN}', "bad JSON: NaN is not a JSON number"),
    (b'{"question": -Infinity}', "bad JSON: -Infinity is not a JSON number"),
    (b'{"id": %s}' % (b"9" * 5000), "bad JSON: a number of 5,000 digits; at most 308 are read"),
    (b'{"answer": "a", "answer": "b"}', "bad JSON: key 'answer' appears twice"),
    (DEEP, "bad JSON: nested too deeply"),
    (line(text="x" * MAX_LINE), "line is longer than 1,000,000 bytes"),
    (line(question=...), "question is missing"),
    (line(question=None), "question is missing"),
    (
        b'{"filename": "a.png", "label": "cat"}',
        "it has no question, answer, image or text, but 'filename', 'label'; rename its fields",
    ),
    (line(question=" \t"), "question is empty"),
    (line(answer=...), "answer is missing"),
    (line(answer=""), "answer is empty"),
    *[(line(answer=value), f"answer is {kind}, not text") for value, kind in TYPES if kind != "a number"],
    (
        line(answer=5),
        'answer is the number 5, not text; give the name of the class, or "5" if that is the answer',
    ),
    *[(line(image=value), f"image is {kind}, not text") for value, kind in TYPES if value not in ([], {})],
    (line(image={}), "image is an object without a path"),
    (
        line(image={"bytes": "iVBO", "path": None}),
        "image holds an image itself; put it into a file and name that",
    ),
    (
        line(image="data:image/png;base64,iVBO"),
        "image holds an image itself (a data: URI); put it into a file and name that",
    ),
    (line(text=["a"]), "text is a list, not text"),
    (line(text="half \ud83d"), "text holds half of a surrogate pair"),
    (line(id=1.5), "id is a number, not text"),
    (line(id=True), "id is true or false, not text"),
    (line(group=[1]), "group is a list, not text"),
    (line(split="dev"), 'split is \'dev\', not "train", "validation" or "test"'),
    (line(text=...), "neither image nor text"),
    (line(text="", image=""), "neither image nor text"),
    (line(options=5), "options is a number, not a list"),
    (line(options="yes"), "options must be at least two strings that differ in more than case and space"),
    (line(options=["yes"]), "options must be at least two strings that differ in more than case and space"),
    (
        line(options=["yes", "yes"]),
        "options must be at least two strings that differ in more than case and space",
    ),
    (line(options=["yes", 1]), "an option is a number, not text"),
    (line(options=["no", "maybe"]), "answer 'yes' is not among the options"),
    (line(image="absent.png"), "image 'absent.png' is missing"),
    (line(image="empty.png"), "image 'empty.png' is empty (0 bytes)"),
    (line(image="cut.png"), "image 'cut.png' is damaged or cut short"),
    (line(image="data.jsonl"), "image 'data.jsonl' is not a PNG, JPEG or WebP image"),
    (line(image="moving.gif"), "image 'moving.gif' is a GIF image, not a PNG, JPEG or WebP image"),
    (line(image="folder"), "image 'folder' is not a file"),
    (line(image="loop"), "image 'loop' is unreadable (Too many levels of symbolic links)"),
    (line(image="x" * 300), f"image '{'x' * 79}…' is unreadable (File name too long)"),
    (line(conversations=5), "conversations is not a list of objects"),
    (line(conversations=[], question=None), "it has no question with an answer to it"),
    (line(conversations=[{"from": "human"}]), "it has no question with an answer to it"),
    (line(conversations=[{"from": "human"}, {"from": "gpt"}]), "the question is empty"),
    (
        line(options=["yes", " YES "]),
        "options must be at least two strings that differ in more than case and space",
    ),
]
LINK = "leaves the folder through a link; only a link to a whole folder that is directly in it is followed"
ESCAPES = [
    ("{outside}", "is an absolute path"),
    ("../outside.png", "leaves the folder"),
    ("folder/../../outside.png", "leaves the folder"),
    ("..", "leaves the folder"),
    ("link.png", LINK),
    ("folder/linked/outside.png", LINK),
    ("hop/away/outside.png", LINK),
    ("..\\outside.png", "holds a backslash"),
    ("\\\\server\\share\\outside.png", "holds a backslash"),
    ("//server/share/outside.png", "is an absolute path"),
    ("C:/outside.png", "is a URL or names a drive"),
    ("file:///outside.png", "is a URL or names a drive"),
    ("https://example.org/outside.png", "is a URL or names a drive"),
    ("good.png\0.jpg", "holds a NUL character"),
]


@pytest.fixture
def filled(tmp_path, encoded):
    """Fill the folder with valid and invalid images."""
    (tmp_path / "good.png").write_bytes(encoded(1))
    (tmp_path / "cut.png").write_bytes(encoded(1)[:-40])
    (tmp_path / "moving.gif").write_bytes(encoded(1, "GIF"))
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


def test_each_ugly_line_gives_its_reason_and_no_other_is_lost(filled, load):
    lines, expected = [], []
    for content, reason in UGLY:
        lines += [line(id=f"before {len(lines)}"), content]
        expected.append(Rejected("data.jsonl", len(lines), reason))
    lines += [line(image="good.png", id="last"), line(id="last"), b"", b"  \r"]
    data = load(*lines)
    assert list(data.rejected) == expected
    assert len(examples_of(data)) == len(UGLY) + 2
    for rejected in data.rejected:
        str(rejected).encode()  # can be written to a log


OPENED: list[str] | None = None


def _watch(event, arguments):
    if event == "open" and OPENED is not None:
        OPENED.append(os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | Path) else "")


sys.addaudithook(_watch)


def test_paths_that_escape_are_never_opened(filled, load, tmp_path_factory, encoded, monkeypatch):
    outside = tmp_path_factory.mktemp("elsewhere") / "outside.png"
    outside.write_bytes(encoded(7))
    (filled.parent / "outside.png").write_bytes(encoded(7))
    (filled / "link.png").symlink_to(outside)
    (filled / "folder" / "linked").symlink_to(outside.parent)
    (outside.parent / "inner").mkdir()
    (filled / "hop").symlink_to(outside.parent / "inner")
    (outside.parent / "inner" / "away").symlink_to(outside.parent)
    names = [(name.format(outside=outside), reason) for name, reason in ESCAPES]
    monkeypatch.setattr(sys.modules[__name__], "OPENED", [])
    data = load(*(line(image=name) for name, _ in names), line(image="good.png"), line(image="./good.png"))
    opened = list(OPENED)
    monkeypatch.undo()
    for rejected, (number, (_, reason)) in zip(data.rejected, enumerate(names, 1), strict=True):
        assert rejected.line == number
        assert rejected.reason.endswith(f" {reason}")
    assert len(examples_of(data)) == 2
    assert any(name.endswith("good.png") for name in opened)
    assert not [name for name in opened if "outside" in name or "link" in name]


def test_a_link_that_stays_inside_is_followed(filled, load):
    (filled / "alias.png").symlink_to("good.png")
    data = load(line(image="alias.png"), line(image="good.png"))
    assert not data.rejected
    assert len({example.image.key for example in examples_of(data)}) == 1


def test_a_linked_folder_directly_in_the_root_is_followed(filled, load, tmp_path_factory, encoded):
    store = tmp_path_factory.mktemp("store")
    (store / "deep").mkdir()
    (store / "deep" / "7.png").write_bytes(encoded(7))
    (filled / "pictures").symlink_to(store)
    data = load(line(image="pictures/deep/7.png"), line(image="pictures/../../data.jsonl"))
    (example,) = examples_of(data)
    assert example.image.path == store / "deep" / "7.png"
    assert [one.reason.split("' ")[1] for one in data.rejected] == ["leaves the folder"]


@pytest.mark.parametrize(("written", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_names_are_found_in_either_unicode_form(filled, load, encoded, written, stored):
    folder = filled / unicodedata.normalize(stored, "Bilder é")
    folder.mkdir()
    (folder / unicodedata.normalize(stored, "Größe ü.png")).write_bytes(encoded(7))
    data = load(
        line(image=unicodedata.normalize(written, "Bilder é/Größe ü.png")), line(image="Bilder/ü.png")
    )
    assert len(examples_of(data)) == 1
    assert [one.reason for one in data.rejected] == ["image 'Bilder/ü.png' is missing"]


def test_a_name_that_is_there_in_two_unicode_forms_is_not_guessed(filled, load, encoded):
    for form in ("NFC", "NFD"):
        (filled / unicodedata.normalize(form, "ế.png")).write_bytes(encoded(7))
    mixed = "ê" + "\u0301.png"  # neither of the two
    (bad,) = load(line(image=mixed), line()).rejected
    assert bad.reason.endswith("is there 2 times, in several Unicode forms of its name")
    assert len(examples_of(load(line(image=unicodedata.normalize("NFD", "ế.png"))))) == 1


FRAGMENTS = st.one_of(
    st.binary(max_size=40),
    st.sampled_from(
        [line(), line(id=1), line(answer=...), b"{", b"[]", b"", b"\r", b"\xef\xbb\xbf", b"NaN", b"\x0b"]
    ),
    st.builds(
        lambda record: json.dumps(record).encode(),
        st.dictionaries(
            st.sampled_from(["question", "answer", "text", "image", "options", "group", "id", "split"]),
            st.one_of(
                st.none(), st.text(max_size=5), st.integers(), st.floats(), st.lists(st.text(max_size=2))
            ),
        ),
    ),
)


@given(st.lists(FRAGMENTS), st.booleans())
def test_arbitrary_bytes_never_crash_and_every_line_is_accounted_for(settings, fragments, marked):
    content = b"\n".join(fragments)
    lines = [part for part in content.removeprefix(b"\xef\xbb\xbf").split(b"\n") if part.strip()]
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "data.jsonl").write_bytes(
            b"\xef\xbb\xbf" * (marked and content[:3] != b"\xef\xbb\xbf") + content
        )
        data = load_folder(settings(root=Path(root)), 0)
    assert len(data.train) + len(data.test) + len(data.rejected) == len(lines)
    assert len({example.id for example in examples_of(data)}) == len(examples_of(data))
    for rejected in data.rejected:
        str(rejected).encode()


def test_mark_and_windows_line_ends_are_no_fault(load):
    data = load(b"\xef\xbb\xbf" + line(id="a") + b"\r", line(id="b") + b"\r", b"\r", line(id=3))
    assert [example.id for example in examples_of(data)] == ["3", "a", "b"]
    assert not data.rejected


def test_the_longest_line_is_read_and_one_byte_more_is_not(load):
    room = MAX_LINE - len(line(text=""))
    data = load(line(text="x" * room), line(text="x" * (room + 1)), line(text="x" * (3 * MAX_LINE)), line())
    assert [rejected.line for rejected in data.rejected] == [2, 3]
    assert [example.id for example in examples_of(data)] == ["data.jsonl:1", "data.jsonl:4"]


def test_options_of_a_record_give_its_label(load):
    data = load(*(line(answer=answer, options=["no", "yes", "maybe"]) for answer in ("yes", "no", "maybe")))
    assert [(e.answer, e.label, e.group, e.task) for e in examples_of(data)] == [
        ("yes", 1, "yes", "choice"), ("no", 0, "no", "choice"), ("maybe", 2, "maybe", "choice")
    ]  # fmt: skip


def test_few_answers_make_a_closed_question(load):
    data = load(
        *(
            line(answer=answer, group=group)
            for answer, group in (("no", 1), ("yes", "site b"), (" no ", None))
        )
    )
    assert [(e.answer, e.options, e.label, e.group, e.task) for e in examples_of(data)] == [
        ("no", ("no", "yes"), 0, "1", "choice"),
        ("yes", ("no", "yes"), 1, "site b", "choice"),
        ("no", ("no", "yes"), 0, "no", "choice"),
    ]


@pytest.mark.parametrize(
    ("answers", "closed"),
    [([str(n) for n in range(50)], True), ([str(n) for n in range(51)], False), (["same"] * 3, False)],
)
def test_many_answers_or_a_single_one_are_free(load, answers, closed):
    for example in examples_of(load(*(line(answer=answer) for answer in answers))):
        if closed:
            assert (example.options, example.task) == (tuple(sorted(answers)), "choice")
        else:
            assert (example.options, example.label, example.task, example.group) == ((), None, "vqa", None)


def test_a_record_without_options_among_others_is_free(load):
    with_options, free = examples_of(load(line(options=["yes", "no"]), line(answer="because")))
    assert (with_options.label, with_options.task) == (0, "choice")
    assert (free.label, free.task) == (None, "vqa")


def test_records_with_the_same_image_stay_in_one_part(tmp_path, load, encoded):
    for number in range(40):  # every image lies there twice, under two names
        for copy in "ab":
            (tmp_path / f"{number}{copy}.png").write_bytes(encoded(number))
    names = [f"{number}{copy}.png" for number in range(40) for copy in "aab"]
    data = load(*(line(image=name, answer=str(at % 2)) for at, name in enumerate(names)))
    train, test = ({example.image.key for example in part} for part in (data.train, data.test))
    assert not train & test
    assert len(train | test) == 40
    assert len(data.test) == 30


def test_split_of_records_decides_and_leaks_are_skipped(tmp_path, load, encoded):
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(encoded(number))
    (tmp_path / "copy.png").write_bytes(encoded(0))
    data = load(
        line(split="train", image="0.png"),
        line(split="test", image="1.png"),
        line(split="test", image="copy.png"),
        line(split="train", image="0.png"),
        line(),
    )
    assert [example.id for example in data.train] == ["data.jsonl:1", "data.jsonl:4"]
    assert [example.id for example in data.test] == ["data.jsonl:2"]
    assert data.rejected == (
        Rejected("data.jsonl", 3, "its image is also in the training set"),
        Rejected("data.jsonl", 5, "split is missing, though other records have one"),
    )


def test_files_named_train_and_test_decide(tmp_path, settings):
    (tmp_path / "train.jsonl").write_bytes(line(id="a") + b"\n" + line(id="b", split="test"))
    (tmp_path / "test.jsonl").write_bytes(line(id="c") + b"\n" + line(id="a"))
    (tmp_path / "data.jsonl").write_bytes(line(id="not read"))
    data = load_folder(settings(root=tmp_path), 0)
    assert [[example.id for example in part] for part in (data.train, data.test)] == [
        ["a", "b"], ["c", "a@test.jsonl:2"]
    ]  # fmt: skip
    assert not data.rejected


def write(folder, **files):
    for name, lines in files.items():
        (folder / f"{name}.jsonl").write_bytes(b"\n".join(lines))


def ids_of(data):
    return [[example.id for example in part] for part in (data.train, data.validation, data.test)]


def answered(*names, answers=("yes", "no"), **changes):
    return [
        line(id=name, answer=answers[at % len(answers)], text=f"evidence {name}", **changes)
        for at, name in enumerate(names)
    ]


FORMS = {
    "three files": {
        "train": answered("a", "b"),
        "test": answered("c", "d"),
        "validation": answered("x", "y"),
    },
    "data and validation": {"data": answered(*"abcd"), "validation": answered("x", "y")},
    "train and validation": {"train": answered(*"abcd"), "validation": answered("x", "y")},
    "splits": {
        "data": [
            *answered("a", "b", split="train"),
            *answered("x", "y", split=" validation"),
            *answered("c", "d", split="test"),
        ]
    },
    "some splits": {"data": [*answered(*"abcd"), *answered("x", "y", split="validation")]},
    "file and splits": {
        "data": [*answered(*"abcd"), *answered("x", split="validation")],
        "validation": answered("y", answers=("no",)),
    },
}


@pytest.mark.parametrize("form", FORMS)
def test_the_validation_part_is_read_on_request_and_does_not_change_other_parts(form, tmp_path, settings):
    write(tmp_path, **FORMS[form])
    plain, asked = (load_folder(settings(root=tmp_path, validation=one), 0) for one in (0.0, "published"))
    assert (asked.train, asked.test) == (plain.train, plain.test)
    assert ids_of(plain)[1] == []
    assert ids_of(asked)[1] == ["x", "y"]
    assert [one.label for one in asked.validation] == [1, 0]
    assert {one.options for one in asked.examples} == {("no", "yes")}
    assert sorted(ids_of(plain)[0] + ids_of(plain)[2]) == list("abcd")
    assert not plain.rejected
    assert not asked.rejected


def test_validation_records_that_others_share_an_image_with_or_answer_otherwise_are_skipped(
    tmp_path, settings, encoded
):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encoded(number))
    (tmp_path / "copy.png").write_bytes(encoded(1))
    write(
        tmp_path,
        train=[line(image="0.png"), line(answer="no")],
        test=[line(image="1.png"), line(answer="no")],
        validation=[
            line(image="0.png"),
            line(image="2.png", answer=" YES "),
            line(image="copy.png"),
            line(answer="perhaps"),
            line(answer=...),
            line(answer="perhaps", options=["perhaps", "never"]),
            b"{",
        ],
    )
    data = load_folder(settings(root=tmp_path, validation="published"), 0)
    assert [(one.answer, one.options) for one in data.validation] == [
        ("yes", ("no", "yes")),
        ("perhaps", ("perhaps", "never")),
    ]
    assert {(bad.line, bad.reason) for bad in data.rejected} == {
        (1, "its image is also in the training set"),
        (3, "its image is also in the test set"),
        (4, "its answer 'perhaps' does not occur in the training and test sets"),
        (5, "answer is missing"),
        (7, "bad JSON at column 2: Expecting property name enclosed in double quotes"),
    }
    assert not load_folder(settings(root=tmp_path), 0).rejected


def test_ids_of_the_other_parts_come_first(tmp_path, settings):
    write(
        tmp_path,
        data=[
            line(id="a", split="validation"),
            line(id="a", split="train"),
            line(id="b", split="train"),
            line(id="a", split="test"),
        ],
    )
    for asked, validation in (("published", ["a@data.jsonl:1"]), (0.0, [])):
        data = load_folder(settings(root=tmp_path, validation=asked), 0)
        assert ids_of(data) == [["a", "b"], validation, ["a@data.jsonl:4"]]


@pytest.mark.parametrize("names", [["train", "test"], ["data"], ["validation"]])
def test_a_validation_part_that_is_not_there_is_named(names, tmp_path, settings):
    write(tmp_path, **{name: answered(*"abcdefgh") for name in names})
    assert load_folder(settings(root=tmp_path), 0).train
    message = r"data\.validation is published, but .* holds no validation\.jsonl, no record with the split"
    with pytest.raises(UserError, match=message):
        load_folder(settings(root=tmp_path, validation="published"), 0)


def test_a_validation_part_of_which_nothing_is_left_or_that_is_there_twice_is_named(tmp_path, settings):
    write(tmp_path, data=answered(*"abcdefgh"), validation=[line(answer=...)])
    asked = settings(root=tmp_path, validation="published", max_rejected=1.0)
    with pytest.raises(UserError, match="no validation example is left"):
        load_data(asked, 0)
    (tmp_path / "validation.json").write_text("[]")
    with pytest.raises(UserError, match=r"holds validation\.jsonl, validation\.json; keep one"):
        load_data(asked, 0)
    assert load_data(settings(root=tmp_path), 0).train


def test_a_list_holds_conversations_and_plain_records(filled, settings):
    def talk(*values):
        return [{"from": ("human", "gpt")[at % 2], "value": value} for at, value in enumerate(values)]

    entries = [
        {"id": 7, "image": "good.png", "conversations": talk("<image>\nWhat is it?", "a cat")},
        {"id": "x", "image": "good.png", "conversations": talk("Where?\n<image>", "here", "Why?", "because")},
        {"image": "good.png", "conversations": talk("<image>A?", "b", "<image>", "d")},
        {"id": "y", "conversations": talk("What is it?", "a cat")},
        {"id": "z", "image": "good.png", "conversations": talk("What is it?")},
        {"id": "plain", "text": "evidence", "question": "q", "answer": "a"},
        "none",
    ]
    (filled / "any.json").write_text(json.dumps(entries, indent=1))
    data = load_folder(settings(root=filled), 0)
    assert [(e.id, e.question, e.answer, len(e.turns)) for e in examples_of(data)] == [
        ("7", "What is it?", "a cat", 0),
        ("plain", "q", "a", 0),
        ("x#1", "Where?", "here", 1),
        ("x#2", "Why?", "because", 2),
        ("y", "What is it?", "a cat", 0),
    ]
    assert data.rejected == (
        Rejected("any.json", None, "entry 3: the question of turn 2 is empty"),
        Rejected("any.json", None, "entry 5: it has no question with an answer to it"),
        Rejected("any.json", None, "entry 7: text instead of an object"),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[\n{,}]", r"any\.json: bad JSON at line 2, column 2"),
        ('{"a": 1}', r"any\.json: a \.json file holds a list of entries, not an object"),
        ("[" * 200_000, "nested too deeply"),
    ],
)
def test_a_json_file_that_cannot_be_read_is_named(tmp_path, settings, content, message):
    (tmp_path / "any.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_folder(settings(root=tmp_path), 0)


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
@pytest.mark.parametrize("form", ["lines", "list", "list over lines"])
def test_lines_and_lists_are_read_whatever_the_file_is_called(tmp_path, settings, name, form):
    records = [json.loads(line(id=str(n))) for n in range(3)]
    lines = "\n".join(map(json.dumps, records))
    content = {"lines": lines, "list": json.dumps(records), "list over lines": json.dumps(records, indent=1)}
    (tmp_path / name).write_text(content[form])
    data = load_folder(settings(root=tmp_path), 0)
    assert [example.id for example in examples_of(data)] == ["0", "1", "2"] and not data.rejected


def test_a_bad_entry_loses_no_other(tmp_path, settings):
    good = json.dumps({"text": "t", "question": "q", "answer": "a"})
    bad = ['{"a": 1, "a": 2}', '{"text": NaN}', '{"text": "t", "more": [{"b": [{"c": 1, "c": 1}]}]}', "NaN"]
    bad.append('{"id": -%s}' % ("1" * 400))
    (tmp_path / "any.json").write_text(f"[{good}, {', '.join(bad)}, {good}]")
    data = load_folder(settings(root=tmp_path), 0)
    assert len(examples_of(data)) == 2
    assert [one.reason for one in data.rejected] == [
        "entry 2: bad JSON: key 'a' appears twice",
        "entry 3: bad JSON: NaN is not a JSON number",
        "entry 4: bad JSON: key 'c' appears twice",
        "entry 5: bad JSON: NaN is not a JSON number",
        "entry 6: bad JSON: a number of 400 digits; at most 308 are read",
    ]


def test_missing_and_ambiguous_files_are_named(tmp_path, settings):
    with pytest.raises(UserError, match=r"data\.root: the data set folder needs"):
        load_folder(settings(), 0)
    with pytest.raises(UserError, match=r"data\.root: .*absent is not a folder"):
        load_folder(settings(root=tmp_path / "absent"), 0)
    with pytest.raises(UserError, match=r"holds neither a file of records .* nor folders of images by class"):
        load_folder(settings(root=tmp_path), 0)
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_bytes(line(id=name))
    with pytest.raises(UserError, match=r"holds a\.jsonl, b\.jsonl; rename one to data\.jsonl"):
        load_folder(settings(root=tmp_path), 0)
    (tmp_path / "data.jsonl").write_bytes(line(id="chosen"))
    assert [example.id for example in examples_of(load_folder(settings(root=tmp_path), 0))] == ["chosen"]


@pytest.mark.parametrize(
    ("names", "advice"),
    [
        (["data.jsonl", "test.jsonl"], "keep only data.jsonl"),
        (["data.jsonl", "train.jsonl"], "keep only data.jsonl"),
        (["data.jsonl", "test.json"], "keep only data.jsonl"),
        (["data.jsonl", "val.jsonl"], "keep only data.jsonl"),
        (["data.jsonl", "dev.json"], "keep only data.jsonl"),
        (["data.json", "Test.json"], "keep only data.json"),
        (["train.jsonl", "val.jsonl"], "validation.jsonl for a validation set"),
        (["train.jsonl", "valid.json"], "validation.jsonl for a validation set"),
        (["records.jsonl", "test.json"], "keep only data.jsonl"),
        (["data.jsonl", "data.json"], "keep one file of each name"),
        (["train.jsonl", "train.json"], "keep one file of each name"),
        (["records.jsonl", "data.jsonl", "test.jsonl"], "keep only data.jsonl"),
    ],
)
@pytest.mark.parametrize("with_validation", [False, True])
def test_no_file_of_records_is_left_out_silently(names, advice, with_validation, tmp_path, settings):
    for name in names + ["validation.jsonl"] * with_validation:
        content = b"\n".join(answered(*(f"{name}{at}" for at in range(8))))
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_folder(settings(root=tmp_path), 0)
    message = str(caught.value)
    assert message.startswith(f"data.root: {tmp_path} holds ") and advice in message
    assert all(name in message for name in names)


@pytest.mark.parametrize(
    "names",
    [["records.jsonl"], ["data.json"], ["train.jsonl", "test.jsonl"], ["data.jsonl", "validation.jsonl"]],
)
@pytest.mark.parametrize("hidden", ["._{}", ".{}"])
def test_hidden_files_are_no_records(names, hidden, tmp_path, settings):
    for name in names:
        (tmp_path / name).write_bytes(b"\n".join(answered(*(f"{name}{at}" for at in range(8)))))
        plain = hidden.format(name)
        (tmp_path / plain).write_bytes(b"\0\5\x16\7 resource")
    (tmp_path / hidden.format("other.jsonl")).write_bytes(b"\0\5\x16\7 resource")
    data = load_folder(settings(root=tmp_path), 0)
    assert len(data.examples) == (16 if "test.jsonl" in names else 8)
    assert not data.rejected


@pytest.mark.parametrize("names", [["data.jsonl", "classes.json"], ["data.jsonl", "a.jsonl", "b.jsonl"]])
def test_a_file_named_data_is_chosen_among_files_of_other_names(names, tmp_path, settings):
    for name in names:
        (tmp_path / name).write_bytes(line(id=name))
    assert [one.id for one in load_folder(settings(root=tmp_path), 0).examples] == ["data.jsonl"]


ROWS = [
    {"id": f"{at}", "question": 'Which, "a" or b;\nno?', "text": f"number {at}", "group": f"site {at % 2}"}
    | {"image": "good.png" if at else None, "answer": "ab"[at % 2], "options": ["a", "b"]}
    for at in range(8)
]


def _table(rows, separator):
    """Return rows as a spreadsheet saves them; a cell of a tab-separated file holds neither tabs nor ends of lines."""
    file = io.StringIO()
    kind = {"quoting": csv.QUOTE_NONE, "quotechar": None} if separator == "\t" else {}
    writer = csv.DictWriter(file, list(rows[0]), delimiter=separator, **kind)
    writer.writeheader()
    writer.writerows({**row, "options": " | ".join(row["options"])} for row in rows)
    return file.getvalue().encode()


def _as_file(rows, suffix):
    if suffix == ".json":
        return json.dumps(rows).encode()
    if suffix == ".jsonl":
        return "\n".join(map(json.dumps, rows)).encode()
    return _table(rows, {".csv": ",", ".tsv": "\t", ".CSV": ";"}[suffix])


@pytest.mark.parametrize("suffix", [".json", ".csv", ".CSV", ".tsv"])
@pytest.mark.parametrize(
    "names",
    [["data"], ["records"], ["train", "test"], ["train", "test", "validation"], ["data", "validation"]],
)
def test_records_are_the_same_in_files_of_any_kind(names, suffix, settings, tmp_path, encoded):
    found = []
    for ending in (".jsonl", suffix):
        folder = tmp_path / ending[1:]
        folder.mkdir()
        (folder / "good.png").write_bytes(encoded(1))
        for number, name in enumerate(names):
            rows = [{**row, "id": f"{number} {row['id']}"} for row in ROWS]
            if suffix == ".tsv":
                rows = [{**row, "question": "Which?"} for row in rows]
            if name in ("test", "validation"):  # no image that is in another part
                rows = [{**row, "image": None} for row in rows]
            (folder / f"{name}{ending}").write_bytes(_as_file(rows, ending))
        data = load_folder(settings(root=folder, validation="published" if "validation" in names else 0.0), 0)
        assert not data.rejected
        parts = (data.train, data.test, data.validation)
        shown = [[replace(one, image=None, place="") for one in part] for part in parts]
        found.append((shown, [[bool(one.image) for one in part] for part in parts]))
    assert found[0] == found[1]
    assert sum(map(len, found[0][0])) == 8 * len(names)


def test_a_table_next_to_a_file_of_json_does_not_count_unless_it_has_a_usual_name(tmp_path, settings):
    (tmp_path / "records.json").write_bytes(_as_file(ROWS[:1], ".json"))
    (tmp_path / "sizes.csv").write_text("name,width\na,3\n")
    assert [one.id for one in load_folder(settings(root=tmp_path), 0).examples] == ["0"]
    (tmp_path / "test.csv").write_bytes(_as_file(ROWS, ".csv"))
    with pytest.raises(UserError, match=r"holds records\.json, test\.csv, and which of them"):
        load_folder(settings(root=tmp_path), 0)


def test_all_records_of_a_folder_are_test_examples_where_a_model_is_scored_on_it(tmp_path, encoded):
    (tmp_path / "good.png").write_bytes(encoded(1))
    for name in ("train", "test", "validation"):
        rows = [{**row, "id": f"{name} {row['id']}", "image": "good.png"} for row in ROWS]
        (tmp_path / f"{name}.jsonl").write_bytes(_as_file(rows, ".jsonl"))
    data = examples_of_folder(tmp_path)
    assert len(data.test) == 24 and not data.train and not data.rejected


@pytest.mark.parametrize("place", ["folder", "folder/deep"])
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (OSError(5, "Input/output error"), "Input/output error"),
    ],
)
def test_a_folder_that_cannot_be_read_costs_its_records_only(place, error, reason, filled, load, monkeypatch):
    (filled / place).mkdir(parents=True, exist_ok=True)
    closed, list_names = os.path.realpath(filled / place), os.listdir

    def listed(folder="."):
        if os.fspath(folder) == closed:
            raise error
        return list_names(folder)

    monkeypatch.setattr(os, "listdir", listed)
    lines = [line(id="a", image="good.png"), line(image=f"{place}/x.png"), line(image=f"{place}/more/y.png")]
    data = load(*lines, line(id="b"), max_rejected=1.0)
    assert [one.id for one in examples_of(data)] == ["a", "b"]
    assert [(one.line, one.reason) for one in data.rejected] == [
        (2, f"image '{place}/x.png' is unreadable ({reason})"),
        (3, f"image '{place}/more/y.png' is unreadable ({reason})"),
    ]


@pytest.mark.parametrize("closed", ["the folder", "its file"])
def test_records_that_may_not_be_read_give_advice_about_reading(closed, tmp_path, settings, monkeypatch):
    (tmp_path / "data.jsonl").write_bytes(line())

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    if closed == "the folder":
        monkeypatch.setattr(os, "listdir", refuse)
    else:
        monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(UserError, match="allow this user to read it") as caught:
        load_folder(settings(root=tmp_path), 0)
    assert str(tmp_path) in str(caught.value) and "--out" not in str(caught.value)


def test_loading_does_not_depend_on_the_path_of_the_folder(tmp_path, settings):
    data_sets = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.jsonl").write_bytes(b"\n".join(line(answer=str(n % 3)) for n in range(30)))
        data_sets.append(load_data(settings(root=tmp_path / name), 1))
    assert data_sets[0] == data_sets[1]


def test_train_and_test_are_found_whatever_their_suffixes(tmp_path, settings):
    (tmp_path / "train.jsonl").write_bytes(line(id="learned"))
    (tmp_path / "test.json").write_bytes(b"[" + line(id="asked") + b"]")
    data = load_folder(settings(root=tmp_path), 0)
    assert ([one.id for one in data.train], [one.id for one in data.test]) == (["learned"], ["asked"])
    (tmp_path / "test.jsonl").write_bytes(line(id="other"))
    with pytest.raises(UserError, match=r"test\.jsonl, test\.json; keep one file of each name"):
        load_folder(settings(root=tmp_path), 0)


def test_a_list_in_a_file_of_lines_loses_only_what_is_no_record(tmp_path, settings):
    (tmp_path / "data.jsonl").write_bytes(b"[\n" + line(id="a") + b",\nnull,\n" + line(id="b") + b"]")
    data = load_folder(settings(root=tmp_path, max_rejected=1.0), 0)
    assert {one.id for one in examples_of(data)} == {"a", "b"}
    assert [one.reason for one in data.rejected] == ["entry 2: null instead of an object"]


def test_a_folder_is_listed_once_however_many_images_are_missing(load, tmp_path, monkeypatch):
    listed = []
    list_names = os.listdir
    monkeypatch.setattr(os, "listdir", lambda place: listed.append(place) or list_names(place))
    data = load(*[line(image=f"absent{number}.png") for number in range(50)], max_rejected=1.0)
    assert len(data.rejected) == 50
    assert listed.count(os.path.realpath(tmp_path)) == 1


def test_an_invalid_first_line_costs_only_itself_whatever_the_suffix(tmp_path, settings):
    (tmp_path / "data.json").write_bytes(b"\n".join([b'{"question":', line(id="a"), line(id="b")]))
    data = load_folder(settings(root=tmp_path, max_rejected=1.0), 0)
    assert {one.id for one in examples_of(data)} == {"a", "b"}
    assert [(one.line, one.reason) for one in data.rejected] == [
        (1, "bad JSON at column 13: Expecting value")
    ]


@pytest.mark.parametrize("coding", ["utf-16", "utf-16-be"])
def test_utf_16_is_named(tmp_path, settings, coding):
    text = line().decode()
    (tmp_path / "data.jsonl").write_bytes((text if coding == "utf-16" else f"\ufeff{text}").encode(coding))
    with pytest.raises(UserError, match=r"data\.jsonl: it is UTF-16 text; save it as UTF-8"):
        load_folder(settings(root=tmp_path), 0)
