"""Content is the same if its pixels are equal, or its texts up to case, white space and Unicode form."""

import io
import json
import unicodedata

import pytest
from PIL import Image

from fedloom.data.check_folder import check
from fedloom.data.duplicates import normalized_text
from fedloom.data.own_folder import load_folder
from fedloom.tasks.task import clean_text


def variants(text):
    return [text, text.upper(), f"  {text}\n", unicodedata.normalize("NFD", text), text.replace(" ", "\t ")]


@pytest.mark.parametrize("text", ["größe klein", "ANGSTRÖM", "yes", "İstanbul é", "ﬁn", "ǅ"])
def test_spellings_of_one_text_are_alike(text):
    assert {normalized_text(one) for one in variants(text)} == {normalized_text(text)}
    assert normalized_text(text) != normalized_text(f"{text}x")


@pytest.mark.parametrize("text", ["<5 mm", "< 5 mm", "<<a", "[INST] x", "[1, 2]", "<image>", "a <b> [c]"])
def test_texts_that_prompts_show_alike_are_alike(text):
    """Otherwise they would be two options of which a model cannot tell which is which."""
    assert normalized_text(clean_text(text)) == normalized_text(text)
    assert normalized_text(text) != normalized_text(text.replace("<", ">").replace("[", "("))


@pytest.mark.parametrize("mark", ["\u200b", "\u2060", "\ufeff"])
def test_classes_do_not_differ_in_what_nobody_sees(mark, tmp_path, settings):
    answers = ["cat", f"{mark}cat", "cat", f"cat{mark}", f"c{mark}at", "dog", f"dog{mark}", "dog"]
    records = [{"text": f"{n}", "question": "Which?", "answer": one} for n, one in enumerate(answers)]
    data = load(tmp_path, records, settings)
    assert {(example.answer, example.options) for example in data.examples} == {
        ("cat", ("cat", "dog")),
        ("dog", ("cat", "dog")),
    }
    # Signs that join letters or pictures are a part of them.
    assert normalized_text("👩\u200d🚀") != normalized_text("👩🚀")


def load(root, records, settings, **changes):
    (root / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    return load_folder(settings(root=root, **changes), 0)


def test_records_with_equal_content_are_in_one_part(tmp_path, settings):
    records = [
        {"text": spelled, "question": "Which?", "answer": str(n % 2)}
        for n in range(30)
        for spelled in variants(f"ticket é {n}")[: 1 + n % 3]
    ]
    data = load(tmp_path, records, settings)
    train, test = ({normalized_text(e.text) for e in part} for part in (data.train, data.test))
    assert test and not train & test and len(train | test) == 30


def test_a_text_that_nearly_all_records_have_is_ignored(tmp_path, settings):
    records = [{"text": "none", "question": f"Which {n}?", "answer": str(n % 2)} for n in range(40)]
    data = load(tmp_path, records, settings)
    assert (len(data.train), len(data.test)) == (30, 10)


def test_one_image_in_two_formats_is_one_image(tmp_path, settings, encoded):
    records = []
    for n in range(20):
        with Image.open(io.BytesIO(encoded(n))) as image:
            image.save(tmp_path / f"{n}.png")
            image.save(tmp_path / f"{n}.webp", lossless=True)
        records += [{"image": f"{n}.{end}", "question": "?", "answer": str(n % 2)} for end in ("png", "webp")]
    data = load(tmp_path, records, settings)
    train, test = ({e.image.path.stem for e in part} for part in (data.train, data.test))
    assert test and not train & test and len(train | test) == 20
    split = [
        {**record, "split": "train" if record["image"].endswith("png") else "test"} for record in records
    ]
    data = load(tmp_path, [*split, {"text": "t", "question": "?", "answer": "1", "split": "test"}], settings)
    assert {one.reason for one in data.rejected} == {"its image is also in the training set"}
    assert len(data.rejected) == 20


def test_options_and_answers_are_the_same_up_to_spelling(tmp_path, settings):
    records = [
        {"text": "a", "question": "?", "answer": " GRÜN", "options": ["rot", "grün"]},
        {"text": "b", "question": "?", "answer": "rot", "options": ["rot", "Rot "]},
    ]
    data = load(tmp_path, records, settings)
    (example,) = (*data.train, *data.test)
    assert (example.answer, example.label) == ("grün", 1)
    assert [one.reason for one in data.rejected] == [
        "options must be at least two strings that differ in more than case and space"
    ]


def test_few_answers_are_spelled_as_most_records_spell_them(tmp_path, settings):
    answers = ["Yes", "yes", "yes ", "no", "NO", "no"]
    data = load(
        tmp_path, [{"text": str(n), "question": "?", "answer": a} for n, a in enumerate(answers)], settings
    )
    assert {e.options for e in (*data.train, *data.test)} == {("no", "yes")}


def test_the_check_names_what_a_division_of_the_user_repeats(tmp_path, settings):
    records = [
        {"text": text, "question": "?", "answer": "a", "split": split}
        for text, split in (("One thing", "train"), ("one  THING", "test"), ("other", "test"))
    ]
    load(tmp_path, records, settings)
    (repeat,) = check("folder", tmp_path).repeats
    assert (repeat.what, repeat.place, repeat.before) == ("text", "data.jsonl, line 2", "data.jsonl, line 1")
