import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.config.yaml_document import MAX_DEPTH, Document, apply_override, dotted, read_document

plain = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cn", "Co")), max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
    | plain
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3)
)


@given(values)
def test_json_reads_as_json(value):
    document = read_document(json.dumps(value, ensure_ascii=False), "x.json")
    assert not document.mistakes
    assert document.value == value
    assert json.dumps(document.value) == json.dumps(value)  # also tells 1 from 1.0 and True


@given(values, st.sampled_from([None, 2, "\t", " \t "]))
def test_every_layout_of_json_reads_as_json(value, indent):
    escaped = json.dumps(value, indent=indent)  # characters such as emoji become surrogate pairs
    document = read_document(escaped, "x.json")
    assert not document.mistakes
    assert json.dumps(document.value) == json.dumps(value)


@pytest.mark.parametrize(
    "text",
    [
        "a:\t1",
        "a: 1\t",
        "a: 1\t# one",
        "a:\t# one\n  1",
        "a: 1 \t\n\t\n",
        "{a:\t1\t,\n\t}",
        "a\t: 1",
        '"a":\t1',
    ],
)
def test_tabs_may_separate_what_stands_in_a_line(text):
    document = read_document(text, "x.yaml")
    assert not document.mistakes
    assert document.value == {"a": 1}


def test_a_tab_inside_a_text_stays():
    assert read_document("a: b\tc \td\n", "x.yaml").value == {"a": "b\tc \td"}


@pytest.mark.parametrize("text", ["a:\n\tb: 1\n", "a:\n  \tb: 1\n", "a:\n\t- 1\n", "a: 1\n\tb: 2\n"])
def test_a_tab_for_indentation_is_named(text):
    (mistake,) = read_document(text, "x.yaml").mistakes
    assert "tab" in mistake.message and "spaces" in mistake.message
    assert mistake.place.line == 2


@given(st.text(max_size=60) | st.text("a0:-[]{},&*!?|>'\"#%@\n\t ", max_size=60))
def test_any_text_gives_a_document_without_an_exception(text):
    assert isinstance(read_document(text, "x.yaml"), Document)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("010", 10),
        ("1_000", "1_000"),
        ("yes", "yes"),
        ("off", "off"),
        ("2026-01-01", "2026-01-01"),
        ("12:30", "12:30"),
        ("~", None),
        ("True", True),
        ("'3'", "3"),
        ("", None),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    parsed = read_document(text, "x.yaml").value
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "line", "column", "word"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, 1, "twice"),
        ("a: &x 1\nb: *x\n", 1, 4, "anchors"),
        ("b: *x\n", 1, 4, "anchors"),
        ("a: !!python/object:os.system x\n", 1, 4, "python"),
        ("a: !!int x\n", 1, 4, "int"),
        ("a: [1, 2\nb: 3\n", 2, 2, "expected"),
        ("a:\n\t- 1\n", 2, 1, "tab"),
        ("a: 1\n? [1, 2]\n: 3\n", 2, 3, "single word"),
        ("a: 1\nb: \x07\n", 2, 4, "not allowed"),
        ("a: 1\n---\nb: 2\n", 2, 1, "document"),
    ],
)
def test_unreadable_text_is_located(text, line, column, word):
    mistakes = read_document(text, "x.yaml").mistakes
    assert len(mistakes) == 1
    assert mistakes[0].place == ("x.yaml", line, column)
    assert word in str(mistakes[0])


def test_depth_and_length_are_bounded():
    assert "deep" in str(read_document("[" * (MAX_DEPTH + 1), "x.yaml").mistakes[0])
    assert not read_document("[" * 15 + "]" * 15, "x.yaml").mistakes
    assert "characters" in str(read_document("#" * 1_000_001, "x.yaml").mistakes[0])


def test_every_key_and_value_has_its_place():
    document = read_document("a: 1\nb:\n  c: [x, yy]\n", "x.yaml")
    assert str(document.place(("b", "c", 1))) == "x.yaml:3:10"
    assert str(document.place(("b", "c"), of_key=True)) == "x.yaml:3:3"
    assert document.place(("b", "nowhere")) == document.place(("b",))


@given(st.lists(st.sampled_from(["train", "lr", "data", "p"]), min_size=1, max_size=3), scalars)
def test_an_override_sets_its_key_and_nothing_else(path, value):
    before = read_document("name: x\nseed: 3\n", "x.yaml")
    after = apply_override(
        before, f"{'.'.join(path)}={json.dumps(value, ensure_ascii=False)}", lambda _: False
    )
    inner = after.value
    assert {key: inner[key] for key in before.value} == before.value
    for part in path:
        inner = inner[part]
    assert inner == value
    assert str(after.place(tuple(path))) == f"--set {dotted(tuple(path))}"
    assert str(after.place(("seed",))) == "x.yaml:2:7"


def test_an_override_takes_the_place_of_what_it_replaces():
    document = apply_override(read_document("a:\n  b: 1\n", "x.yaml"), "a={c: 2}", lambda _: False)
    assert document.value == {"a": {"c": 2}}
    assert str(document.place(("a", "c"))) == "--set a"


@pytest.mark.parametrize("text", ["a", "=3", "a..b=3", "a.=1", "a=[", "a=&x 1", "seed.deeper=1"])
def test_an_override_that_cannot_be_read_is_a_mistake(text):
    document = apply_override(read_document("seed: 3\n", "x.yaml"), text, lambda _: False)
    assert document.value == {"seed": 3}
    assert len(document.mistakes) == 1
    assert str(document.mistakes[0]).startswith("--set ")


def test_an_override_of_text_needs_no_quotes():
    start = read_document("name: x\n", "x.yaml")
    assert apply_override(start, "name=2024", lambda path: path == ("name",)).value == {"name": "2024"}
    assert apply_override(start, "seed=2024", lambda path: path == ("name",)).value == {
        "name": "x",
        "seed": 2024,
    }
