"""The emoji data set: nothing seen in pretraining or training is tested, by a reading of its own."""

import hashlib
import importlib.util
import json
import re
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from fedloom.data import load_data
from fedloom.data.emoji import GROUPS, image_of, pool
from fedloom.data.loading import FILES

SCRIPT = Path(__file__).resolve().parents[2] / "scripts/make_emoji.py"
SEEDS = range(5)

# Written from the Unicode charts, apart from scripts/make_emoji.py. A variant of an emoji has the same SET
# of parts once skin, gender and number of people are disregarded.
ADULT, CHILD, OLD = "adult", "child", "old"
PARTS = {
    "👨": {ADULT}, "👩": {ADULT}, "🧑": {ADULT},
    "👦": {CHILD}, "👧": {CHILD}, "🧒": {CHILD},
    "👴": {OLD}, "👵": {OLD}, "🧓": {OLD},
    "👪": {ADULT, CHILD},
    "💑": {ADULT, "❤"}, "💏": {ADULT, "❤", "💋"},
    "👫": {ADULT, "🤝"}, "👬": {ADULT, "🤝"}, "👭": {ADULT, "🤝"},
    "🤴": {"crown"}, "👸": {"crown"}, "🫅": {"crown"},
    "🕺": {"dance"}, "💃": {"dance"},
    "🎅": {"claus"}, "🤶": {"claus"},
    "🤰": {"pregnant"}, "🫃": {"pregnant"}, "🫄": {"pregnant"},
}  # fmt: skip
IGNORED = set("♀♂\u200d\ufe0f") | {chr(tone) for tone in range(0x1F3FB, 0x1F400)}
PEOPLE_WORDS = re.compile(r"\b(man|woman|men|women|person|people|and)\b|[^a-z ]")


def code_form(identifier):
    characters = [chr(int(code, 16)) for code in identifier.split("-")]
    kept = [character for character in characters if character not in IGNORED]
    if characters[0] == "\U0001f3f4" or "\U0001f1e6" <= characters[0] <= "\U0001f1ff":
        return tuple(kept)  # flags are spelt in letters, whose order and number matter
    return frozenset(part for character in kept for part in PARTS.get(character, {character}))


def name_form(record):
    if record["group"] != "person":
        return record["name"]
    return " ".join(PEOPLE_WORDS.sub(" ", record["name"].lower()).split())


@pytest.fixture(scope="module")
def records():
    with open(FILES / "emoji.jsonl", encoding="utf-8") as lines:
        return {record["id"]: record for record in map(json.loads, lines)}


@pytest.fixture(scope="module")
def pixels(records):
    return {id: hashlib.sha256(image_of(r).pixels().tobytes()).digest() for id, r in records.items()}


@pytest.fixture(scope="module")
def splits(settings):
    return [load_data(settings(name="emoji"), seed) for seed in SEEDS]


def test_the_forms_join_what_they_should():
    assert code_form("1f468-200d-1f469-200d-1f466") == code_form("1f46a")
    assert code_form("1f9d1-200d-1f680") == code_form("1f469-1f3fd-200d-1f680") != code_form("1f680")
    assert code_form("1f1e6-1f1fa") != code_form("1f1fa-1f1e6")
    name = "woman in steamy room"
    assert name_form({"group": "person", "name": name}) == name_form({"group": "person", "name": name[2:]})


def test_no_variant_and_no_equal_image_is_in_two_parts(splits, records, pixels):
    forms = (code_form, lambda id: name_form(records[id]), pixels.__getitem__)
    pretrained = [record["id"] for record in pool("pretrain")]
    for data in splits:
        sides = (pretrained, [e.id for e in data.train], [e.id for e in data.test])
        for form in forms:
            pretrain, train, test = ({form(id) for id in side} for side in sides)
            assert not train & test
            assert not pretrain & (train | test)


def test_every_example_appears_once_and_none_is_lost(splits, records, pixels):
    pretrained = {pixels[record["id"]] for record in pool("pretrain")}
    federated = [id for id, record in records.items() if record["pool"] == "federated"]
    expected = [id for id in federated if pixels[id] not in pretrained]
    assert len(expected) > 0.99 * len(federated)
    for data in splits:
        assert sorted(example.id for example in (*data.train, *data.test)) == sorted(expected)


def test_seeds_divide_differently_and_again_the_same(splits, settings):
    assert len({frozenset(example.id for example in data.test) for data in splits}) == len(splits)
    assert load_data(settings(name="emoji"), 3) == splits[3]


def test_groups_are_alike_on_both_sides(splits):
    for data in splits:
        total = Counter(example.group for example in (*data.train, *data.test))
        held = Counter(example.group for example in data.test)
        assert abs(len(data.test) - 0.25 * total.total()) <= 1
        for group in GROUPS:
            # Families of up to four variants, and one of 26, may leave a group short or over by a few.
            assert abs(held[group] / total[group] - 0.25) < 0.04


def test_examples_have_the_fields_of_their_records(splits, records):
    for example in splits[0].train:
        record = records[example.id]
        assert example.text == ", ".join(record["keywords"])
        assert example.answer == example.group == example.options[example.label] == record["group"]
        assert example.options == GROUPS
        assert example.image.pixels().shape == (64, 64, 3)


def test_pool_are_copies(records):
    first = pool("pretrain")
    assert {r["id"] for r in first} == {id for id, r in records.items() if r["pool"] == "pretrain"}
    first[0]["group"] = "changed"
    assert pool("pretrain")[0]["group"] != "changed"


def script():
    pytest.importorskip("PIL.ImageFont")
    spec = importlib.util.spec_from_file_location("make_emoji", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_regenerating_gives_the_shipped_files(tmp_path, monkeypatch, records):
    """Drawing some of the emoji again gives the same bytes of records and the same pixels."""
    make = script()
    sources = (
        make.FONT,
        make.EMOJI_TEST,
        make.CLDR / "annotations/en.xml",
        make.CLDR / "annotationsDerived/en.xml",
    )
    if not all(path.exists() for path in sources):
        pytest.skip("the font and Unicode's tables are not installed")
    if "# Version: 15.0" not in make.EMOJI_TEST.read_text(encoding="utf-8"):
        pytest.skip("another version of Unicode is installed")
    chosen = make.rows()[::40]
    monkeypatch.setattr(make, "rows", lambda: chosen)
    monkeypatch.setattr(make, "FILES", tmp_path)
    make.main()
    bundled = (FILES / "emoji.jsonl").read_text(encoding="utf-8").splitlines()
    again = (tmp_path / "emoji.jsonl").read_text(encoding="utf-8").splitlines()
    assert again and again == [line for line in bundled if line in set(again)]
    with zipfile.ZipFile(tmp_path / "emoji.zip") as archive:
        for member in archive.namelist():
            before = image_of(records[member.removesuffix(".png")])
            (tmp_path / member).write_bytes(archive.read(member))
            after = type(before)(tmp_path / "emoji.zip", member)
            assert (after.pixels() == before.pixels()).all()
