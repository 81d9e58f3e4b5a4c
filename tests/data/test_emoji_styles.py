"""Emoji as several vendors draw them: what the files hold, how they are divided, and what the questions give away."""

import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedloom.cli.run_commands import app
from fedloom.data import load_data
from fedloom.data.emoji import image_of, pool
from fedloom.data.emoji_styles import KINDS, is_distractor, with_article
from fedloom.data.loading import FILES
from fedloom.data.openmoji import add_openmoji
from fedloom.experiment.recipes import load_experiment
from fedloom.report.client_charts import name_of
from fedloom.scenarios import build_plan
from fedloom.scenarios.plan_file import plan_to_json
from fedloom.system.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SEEDS = range(3)
RECORDS = {record["id"]: record for record in pool("federated")}
LISTED = json.loads((FILES / "emoji-styles.json").read_text(encoding="utf-8"))
DOT = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><circle cx="4" cy="4" r="3"/></svg>'
BAR = b'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9"><rect x="1" y="4" width="7" height="2"/></svg>'


def script(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def codes_of(example):
    vendor_and_codes = example.id.rsplit("-", 1)[0]
    return vendor_and_codes.removeprefix(example.group.lower().replace(" ", "-") + "-")


@pytest.fixture(scope="module")
def all_tasks(settings):
    return [load_data(settings(name="emoji-styles", task="all"), seed) for seed in SEEDS]


def test_each_vendor_names_its_license_and_package():
    for one in LISTED:
        assert one["license"] in ("CC-BY-4.0", "MIT", "Apache-2.0")
        assert one["title"] in (ROOT / "NOTICE").read_text(encoding="utf-8")
        assert (
            re.fullmatch(r"[0-9a-f]{64}", one["sha256"]) and one["package"] and one["author"] and one["home"]
        )


def test_files_hold_federated_emoji_only_and_no_image_twice_under_two_bases():
    with zipfile.ZipFile(FILES / "emoji-styles.zip") as archive:
        members = {f"{one['vendor']}/{codes}.webp" for one in LISTED for codes in one["icons"]}
        assert members == set(archive.namelist())
        for one in LISTED:
            assert set(one["icons"]) <= set(RECORDS)
            bases = {}
            for codes in one["icons"]:
                content = archive.read(f"{one['vendor']}/{codes}.webp")
                bases.setdefault(content, set()).add(RECORDS[codes]["base"])
            assert all(len(of_drawing) == 1 for of_drawing in bases.values())


def test_no_drawing_is_one_that_pretraining_chooses(monkeypatch, tmp_path):
    """The corpus draws icons by their names: it must choose none that a vendor's federated emoji has."""
    corpus = pytest.importorskip("pretrain.corpus")
    chosen = []
    monkeypatch.setattr(corpus, "icon_sets", lambda sets, file, wanted: chosen.append(wanted) or (None, []))
    monkeypatch.setattr(corpus, "described", lambda pixels, records: None)
    corpus.styles(tmp_path)
    (wanted,) = chosen
    assert len(wanted) > 100
    assert not wanted & {corpus.slug(record["name"]) for record in RECORDS.values()}
    for one in LISTED:
        assert not wanted & set(one["icons"].values())


def test_a_base_is_on_one_side_for_all_vendors_and_on_that_of_the_data_set_emoji(all_tasks, settings):
    for seed, data in zip(SEEDS, all_tasks, strict=True):
        emoji = load_data(settings(name="emoji"), seed)
        for mine, theirs in ((data.train, emoji.train), (data.test, emoji.test)):
            assert {codes_of(one) for one in mine} == {one.id for one in theirs}
        bases = [{RECORDS[codes_of(one)]["base"] for one in part} for part in (data.train, data.test)]
        assert not bases[0] & bases[1]
        looks = [{(one.group, one.image.key) for one in part} for part in (data.train, data.test)]
        assert not looks[0] & looks[1]


def test_ids_are_unique_and_the_group_is_the_vendor(all_tasks):
    for data in all_tasks:
        examples = (*data.train, *data.test)
        assert len({one.id for one in examples}) == len(examples)
        assert {one.group for one in examples} == {"Noto", *(one["title"] for one in LISTED)}


def test_vendors_draw_other_things():
    """Microsoft draws no flags of countries; the others do, and Twemoji nearly all that Noto has."""
    flags = {one["title"]: [c for c in one["icons"] if RECORDS[c]["group"] == "flag"] for one in LISTED}
    assert not any(re.match("1f1[ef]", codes) for codes in flags["Fluent"])
    assert any(re.match("1f1[ef]", codes) for codes in flags["EmojiOne"])
    sizes = {one["title"]: len(one["icons"]) for one in LISTED}
    assert sizes["Twemoji"] > sizes["Fluent"] > sizes["EmojiOne"] > sizes["FxEmoji"] > 100


def test_half_of_the_answers_are_yes_for_each_vendor_and_side(all_tasks):
    for data in all_tasks:
        for part in (data.train, data.test):
            counts = Counter((one.group, one.answer) for one in part if one.task == "vqa")
            for vendor in {one.group for one in part}:
                assert abs(counts[vendor, "yes"] - counts[vendor, "no"]) <= 1


def test_questions_are_true_or_certainly_false_and_half_of_the_false_ones_name_the_same_group(all_tasks):
    by_question = {}
    for record in RECORDS.values():
        by_question.setdefault(f"Is it {with_article(record['name'])}?", []).append(record)
    assert all(len(answers) == 1 for answers in by_question.values())
    for data in all_tasks:
        for part in (data.train, data.test):
            here = {(one.group, codes_of(one)) for one in part}
            near = Counter()
            for one in part:
                if one.task != "vqa":
                    continue
                (asked,), shown = by_question[one.question], RECORDS[codes_of(one)]
                assert (one.group, asked["id"]) in here
                assert (one.answer == "yes") == (asked["id"] == shown["id"])
                if one.answer == "no":
                    assert asked["base"] != shown["base"]
                    near[one.group, asked["group"] == shown["group"]] += 1
            for vendor in {one.group for one in part}:
                assert abs(near[vendor, True] - near[vendor, False]) <= 0.15 * (
                    near[vendor, True] + near[vendor, False]
                )


def test_only_the_group_task_shows_text(all_tasks):
    for one in (*all_tasks[0].train, *all_tasks[0].test):
        assert (one.text is not None) == (one.task == "choice")
        record = RECORDS[codes_of(one)]
        right = {"choice": record["group"], "caption": record["name"]}
        assert one.answer == right.get(one.task, one.answer)


def test_a_longer_name_of_the_same_is_no_distractor():
    cat = {"base": "a", "name": "cat", "keywords": ["cat", "pet"]}
    face = {"base": "b", "name": "cat face", "keywords": ["cat", "face", "pet"]}
    dog = {"base": "c", "name": "dog", "keywords": ["dog", "pet"]}
    assert not is_distractor(cat, face) and not is_distractor(face, cat) and is_distractor(dog, cat)
    assert not is_distractor({**dog, "base": "a"}, cat)


BY_NAME = {record["name"]: record for record in RECORDS.values()}


@pytest.mark.parametrize(
    "seen, asked",
    [
        ("dodo", "bird"),
        ("taxi", "automobile"),
        ("church", "place of worship"),
        ("houses", "house"),
        ("clinking beer mugs", "beer mug"),
        ("busts in silhouette", "bust in silhouette"),
        ("beaming face with smiling eyes", "grinning face with smiling eyes"),
        ("hamburger", "sandwich"),
    ],
)
def test_a_name_that_is_also_right_is_not_a_distractor(seen, asked):
    assert not is_distractor(BY_NAME[asked], BY_NAME[seen])


@pytest.mark.parametrize(
    "seen, asked", [("dodo", "owl"), ("bird", "dodo"), ("taxi", "bus"), ("house", "church"), ("fox", "wolf")]
)
def test_a_wrong_name_is_a_distractor(seen, asked):
    known = {**BY_NAME, "owl": {"base": "1f989", "name": "owl", "keywords": ["bird of prey", "owl", "wise"]}}
    assert is_distractor(known[asked], known[seen])


def test_kinds_are_names_of_emoji_of_other_bases_that_no_keyword_gives_away():
    for kind, names in KINDS.items():
        for name in names:
            assert BY_NAME[name]["base"] != BY_NAME[kind]["base"]
            assert kind not in BY_NAME[name]["keywords"]


def test_each_task_by_itself_is_a_part_of_all(all_tasks, settings):
    for task, kind in (("classification", "choice"), ("captioning", "caption"), ("vqa", "vqa")):
        alone = load_data(settings(name="emoji-styles", task=task), SEEDS[0])
        assert set(alone.train) == {one for one in all_tasks[0].train if one.task == kind}
        assert set(alone.test) == {one for one in all_tasks[0].test if one.task == kind}
    assert len({tuple(one.answer for one in data.test) for data in all_tasks}) == len(all_tasks)


@pytest.mark.skipif(
    "EMOJI_PACKAGES" not in os.environ, reason="EMOJI_PACKAGES names no folder of npm packages"
)
def test_the_list_says_what_the_packages_hold():
    make = script("make_emoji_styles")
    pretrain, federated = make.usable()
    for one in LISTED:
        package = make.opened(
            Path(os.environ["EMOJI_PACKAGES"]), one["package"], one["version"], one["sha256"]
        )
        icons = make.matched(package, [*federated, *pretrain])
        assert set(one["icons"].items()) <= {(codes, icon) for codes, (icon, _) in icons.items()}
        if package["chars"]:  # each drawing with code points is that of its code points
            by_codes = {codes.replace("-fe0f", ""): icon for codes, icon in package["chars"].items()}
            aliases = package["icons"].get("aliases", {})
            for codes, icon in one["icons"].items():
                named = by_codes.get(codes.replace("-fe0f", ""))
                assert named is None or icon == aliases.get(named, {}).get("parent", named)


def package(**members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue(), hashlib.sha256(buffer.getvalue()).hexdigest()


@pytest.fixture
def rsvg():
    if shutil.which("rsvg-convert") is None:
        pytest.skip("rsvg-convert is not installed")


def test_openmoji_is_added_from_its_package(rsvg, tmp_path, settings):
    content, digest = package(
        **{
            "package/color/svg/1F604.svg": DOT,
            "package/black/svg/1F604.svg": BAR,
            "package/color/svg/1F600.svg": DOT,  # of the pretraining pool
            "package/color/svg/../../../1F607.svg": DOT,
            "package/color/svg/1F602.svg": b"no drawing",
            "package/black/svg/1F1E6-1F1F1.svg": DOT,  # flags that are equal as lines
            "package/black/svg/1F1E6-1F1F8.svg": DOT,
        }
    )
    assert RECORDS.keys() >= {"1f604", "1f602", "1f1e6-1f1f1", "1f1e6-1f1f8"} and "1f600" not in RECORDS
    assert add_openmoji(content, tmp_path / "new", digest) == {"OpenMoji": 1, "OpenMoji line": 1}
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["openmoji.json", "openmoji.zip"]
    data = load_data(settings(name="emoji-styles", root=tmp_path / "new"), 0)
    drawings = {one.group: one for one in (*data.train, *data.test) if "OpenMoji" in one.group}
    assert set(drawings) == {"OpenMoji", "OpenMoji line"}
    assert drawings["OpenMoji"].image.pixels().shape == (64, 64, 3)
    assert drawings["OpenMoji"].image.key != drawings["OpenMoji line"].image.key
    assert all(codes_of(one) == "1f604" for one in drawings.values())


def test_another_package_is_refused(tmp_path):
    content, digest = package(**{"package/color/svg/1F604.svg": DOT})
    with pytest.raises(UserError, match=f"SHA-256 is {digest}"):
        add_openmoji(content, tmp_path)
    if not shutil.which("rsvg-convert"):
        pytest.skip("rsvg-convert is not installed")
    for broken in (b"", b"no archive", content[: len(content) // 2]):
        with pytest.raises(UserError, match=r"damaged|no drawing"):
            add_openmoji(broken, tmp_path, hashlib.sha256(broken).hexdigest())
    assert list(tmp_path.iterdir()) == []


def test_without_rsvg_one_message_says_what_to_install(tmp_path, monkeypatch):
    content, digest = package(**{"package/color/svg/1F604.svg": DOT})
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="librsvg2-bin"):
        add_openmoji(content, tmp_path, digest)


@pytest.mark.parametrize(
    "listing", ["", "[]", "[]x", "{}", "[1]", '[{"title": "a", "vendor": "b", "icons": {"1f604": ""}}]']
)
def test_a_damaged_folder_gives_one_message(listing, tmp_path, settings):
    (tmp_path / "openmoji.json").write_text(listing)
    with zipfile.ZipFile(tmp_path / "openmoji.zip", "w") as archive:
        archive.writestr("b/1f6ff.webp", b"")
    with pytest.raises(UserError, match="damaged"):
        load_data(settings(name="emoji-styles", root=tmp_path), 0)


def test_a_list_of_another_archive_is_noticed(rsvg, tmp_path, settings):
    """As after a process was killed between the two files when another version was added."""
    for version in ("1F604", "1F602"):
        content, digest = package(**{f"package/color/svg/{version}.svg": DOT})
        add_openmoji(content, tmp_path / version, digest)
        assert load_data(settings(name="emoji-styles", root=tmp_path / version), 0)
    with_all = {f"package/color/svg/{codes}.svg": DOT for codes in ("1F604",)}
    content, digest = package(**with_all, **{"package/black/svg/1F602.svg": BAR})
    add_openmoji(content, tmp_path / "new", digest)
    shutil.copyfile(tmp_path / "new/openmoji.zip", tmp_path / "1F604/openmoji.zip")
    with pytest.raises(UserError, match="`fedloom data add openmoji` writes both anew"):
        load_data(settings(name="emoji-styles", root=tmp_path / "1F604"), 0)


def test_both_files_or_none_are_written(rsvg, tmp_path, monkeypatch):
    content, digest = package(**{"package/color/svg/1F604.svg": DOT})

    def full(path, *_):
        if path.name == "openmoji.json":
            raise OSError(28, "No space left on device")
        path.write_bytes(b"half")

    monkeypatch.setattr("fedloom.data.svg_drawing.write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        add_openmoji(content, tmp_path, digest)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("given", [(), ("--package", "x.tgz", "--network")])
def test_a_package_or_the_network_is_given_not_both(given):
    result = CliRunner().invoke(app, ["data", "add", "openmoji", *given])
    assert result.exit_code == 2 and "give either --package FILE" in result.stderr


def test_a_folder_without_openmoji_says_how_to_add_it(tmp_path, settings):
    with pytest.raises(UserError, match="fedloom data add openmoji"):
        load_data(settings(name="emoji-styles", root=tmp_path), 0)


def test_noto_is_that_of_the_data_set_emoji(all_tasks):
    noto = [one for one in all_tasks[0].train if one.group == "Noto" and one.task == "choice"]
    assert all(one.image == image_of(RECORDS[codes_of(one)]) for one in noto)


def test_by_group_gives_each_client_a_vendor_whose_name_the_report_shows(all_tasks):
    experiment = load_experiment("emoji-styles", ())
    train = [one for one in all_tasks[0].train if one.task == "choice"]
    for seed in SEEDS:
        rows = plan_to_json(build_plan(train, experiment.scenario, seed), train)["clients"]
        assert {row["group"] for row in rows} == {"Noto", *(one["title"] for one in LISTED)}
        for row in rows:
            assert {train[place].group for place in row["indices"]} == {row["group"]}
            assert name_of(row) == f"{row['id']} {row['group']}"
    mixed = build_plan(train, load_experiment("emoji-styles", ["scenario.partition=iid"]).scenario, 0)
    assert all("group" not in row for row in plan_to_json(mixed, train)["clients"])
