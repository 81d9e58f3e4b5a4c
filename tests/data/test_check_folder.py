"""Findings, messages and exit codes of `fedloom data check`."""

import json
import os
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedloom.cli.run_commands import app
from fedloom.data import BUNDLED, DATASETS, Source
from fedloom.data.check_folder import check
from fedloom.system.errors import UserError

SOURCES = [name for name, load in DATASETS.items() if isinstance(load, Source)]


def call(*arguments):
    return CliRunner().invoke(app, ["data", "check", *map(str, arguments)])


def numbers(report):
    return {(number.part, number.of): (number.found, number.published) for number in report.numbers}


@pytest.fixture
def memes(trees, encoded, tmp_path):
    """Return the folder of a small Hateful-Memes."""
    return trees.hateful_memes(tmp_path / "memes", encoded)


@pytest.mark.parametrize("name", SOURCES)
def test_published_counts_add_up(name):
    """Where every answer or kind of a part has a published number, they sum to the part's."""
    source = DATASETS[name]
    for variant in source.variants or ("",):
        counts = [count for count in source.counts if count.variant in (None, variant)]
        keys = [(count.part, count.of) for count in counts]
        assert len(set(keys)) == len(keys)
        for part in {count.part for count in counts}:
            whole = [count.number for count in counts if count.part == part and count.of is None]
            pieces = [count.number for count in counts if count.part == part and count.of is not None]
            assert len(whole) == 1
            assert not pieces or sum(pieces) == whole[0]


def test_slake_in_both_languages_is_the_sum_of_each():
    counts = {(count.part, count.of, count.variant): count.number for count in DATASETS["slake"].counts}
    for part, of in {(part, of) for part, of, _ in counts}:
        assert counts[part, of, "all"] == counts[part, of, "en"] + counts[part, of, "zh"]


def test_the_published_numbers_of_fedmllm():
    counts = {name: {(c.part, c.of, c.variant): c.number for c in DATASETS[name].counts} for name in SOURCES}
    memes, crisis = counts["hateful-memes"], counts["crisis-mmd"]
    assert [memes[part, None, None] for part in ("train", "dev", "test")] == [8500, 500, 1000]
    assert [memes["train", of, None] for of in ("not-hateful", "hateful")] == [5450, 3050]
    for task in ("humanitarian", "informative"):
        assert [crisis[part, None, task] for part in ("train", "dev", "test")] == [13608, 2237, 2237]
    assert counts["vqa-rad"]["train", None, None] == 1797


@pytest.mark.parametrize("name", ["emoji", "digits", "shapes"])
def test_a_bundled_data_set_is_never_said_to_be_in_a_folder(name, tmp_path):
    report = check(name, tmp_path)
    assert not report.usable and "leave out --root" in report.faults[0]


def test_a_good_folder_is_counted_and_compared(memes):
    report = check("hateful-memes", memes)
    assert report.usable
    assert numbers(report) == {
        ("train", None): (6, 8500),
        ("train", "not-hateful"): (3, 5450),
        ("train", "hateful"): (3, 3050),
        ("dev", None): (2, 500),
        ("dev", "not-hateful"): (1, None),
        ("dev", "hateful"): (1, None),
        ("test", None): (4, 1000),
        ("test", "not-hateful"): (2, None),
        ("test", "hateful"): (2, None),
    }
    assert (report.repeats, report.rejected) == ((), ())


def test_kinds_are_counted_where_answers_are_free(trees, encoded, tmp_path):
    report = check("vqa-rad", trees.vqa_rad(tmp_path, encoded))
    assert numbers(report)["test", "open"] == (1, 179)
    assert numbers(report)["train", "closed"] == (2, None)


def test_repeated_content_is_reported_with_both_places(trees, encoded, memes):
    trees.put(memes / "img/00201.png", encoded(3))
    again = [trees.meme(2), trees.meme(200, text="text 4"), trees.meme(201, text="text 200")]
    trees.put(memes / "test_seen.jsonl", trees.as_lines(again))
    trees.put(
        memes / "dev_seen.jsonl", trees.as_lines([trees.meme(100, text=""), trees.meme(101, text=None)])
    )
    report = check("hateful-memes", memes)
    assert [tuple(repeat) for repeat in report.repeats] == [
        ("id", "test", "test_seen.jsonl, line 1", "train", "train.jsonl, line 3"),
        ("text", "test", "test_seen.jsonl, line 2", "train", "train.jsonl, line 5"),
        ("image", "test", "test_seen.jsonl, line 3", "train", "train.jsonl, line 4"),
    ]
    assert [str(bad) for bad in report.rejected] == [
        "test_seen.jsonl, line 1: id '2' was used before (train.jsonl, line 3)"
    ]


def test_a_repeated_question_about_the_same_image_is_reported_and_a_repeated_question_without_image_is_not(
    trees, encoded, tmp_path
):
    root = trees.vqa_rad(tmp_path, encoded)
    entries = [
        trees.radiology(0, question="Which organ?"),
        trees.radiology(1, question="Is it large?"),
        trees.radiology(3, "test_para", question="Which organ?"),
        trees.radiology(2, "test_para", question="Is it large?"),
    ]
    trees.put(root / "VQA_RAD Dataset Public.json", json.dumps(entries))
    report = check("vqa-rad", root)
    assert [(repeat.what, repeat.place[-7:], repeat.before[-7:]) for repeat in report.repeats] == [
        ("image", "entry 3", "entry 1"),
        ("question about the same image", "entry 3", "entry 1"),
    ]


def test_every_image_is_decoded_to_its_last_pixel(trees, encoded, memes):
    trees.put(memes / "img/00200.png", encoded(200)[:-40])
    trees.put(memes / "img/00100.png", encoded(100)[:-40])
    report = check("hateful-memes", memes)
    assert [str(bad) for bad in report.rejected] == [
        "dev_seen.jsonl, line 1: image '00100.png' is damaged or cut short",
        "test_seen.jsonl, line 1: image '00200.png' is damaged or cut short",
    ]
    assert not report.usable  # two of twelve are more than a run allows
    assert check("hateful-memes", memes, max_rejected=0.2).usable


def test_the_validation_part_of_a_folder_is_counted_and_compared(tmp_path):
    for name, numbered in (("train", range(4)), ("test", range(4, 6)), ("validation", (5, 6, 7))):
        lines = [{"question": "Which?", "answer": "ab"[at % 2], "text": f"evidence {at}"} for at in numbered]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    report = check("folder", tmp_path)
    assert [(one.part, one.found) for one in report.numbers] == [("train", 4), ("dev", 3), ("test", 2)]
    assert [tuple(one)[:2] for one in report.repeats] == [("text", "test")]
    (tmp_path / "validation.jsonl").unlink()
    assert [one.part for one in check("folder", tmp_path).numbers] == ["train", "test"]


def test_a_test_file_without_labels_cannot_be_used(trees, memes):
    lines = [{key: value for key, value in trees.meme(200 + n).items() if key != "label"} for n in range(4)]
    trees.put(memes / "test_seen.jsonl", trees.as_lines(lines))
    report = check("hateful-memes", memes)
    assert "no test record can be used" in report.faults
    assert {bad.reason for bad in report.rejected} == {"label is missing; this is the copy without labels"}


@pytest.mark.parametrize("name", SOURCES)
def test_the_folder_of_another_data_set_is_named(name, trees, encoded, tmp_path):
    other = "slake" if name != "slake" else "vqa-rad"
    getattr(trees, other.replace("-", "_"))(tmp_path, encoded)
    report = check(name, tmp_path)
    assert not report.usable
    assert f"is not the folder of {name}" in report.faults[0]
    assert report.faults[1] == f"{tmp_path} looks like the folder of {other}"


@pytest.mark.parametrize("name", SOURCES)
def test_an_empty_folder_and_none_say_where_to_get_it(name, tmp_path):
    for arguments in ((name, "--root", tmp_path), (name, "--root", tmp_path / "absent"), (name,)):
        result = call(*arguments)
        assert result.exit_code == 1
        assert DATASETS[name].home.split()[0] in result.stdout
        assert "https://" in result.stdout
        assert result.stderr == ""


@pytest.mark.parametrize("name", BUNDLED)
def test_shipped_data_sets_need_nothing(name):
    result = call(name)
    assert result.exit_code == 0
    assert "no download is needed" in result.stdout


def test_a_folder_of_ones_own_is_checked_by_loading_it(tmp_path):
    lines = [
        json.dumps({"question": "Which?", "text": "t", "answer": "yes no".split()[n % 2]}) for n in range(8)
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    good = call("folder", "--root", tmp_path)
    (tmp_path / "data.jsonl").write_text("\n".join([*lines, "{}"]))
    bad = call("folder", "--root", tmp_path)
    assert (good.exit_code, bad.exit_code) == (0, 1)
    assert "data.jsonl, line 9: question is missing" in bad.stdout


@pytest.mark.parametrize("more", [[], ["--json"]])
@pytest.mark.parametrize("name", ["folder", "emoji", SOURCES[0]])
@pytest.mark.parametrize("there", [True, False])
def test_a_path_that_is_not_utf_8_gives_one_message(name, more, there, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xff"))
    if there:
        folder.mkdir()
        line = json.dumps({"question": "Which?", "text": "t", "answer": "yes"})
        (folder / "data.jsonl").write_text(f"{line}\n" * 8)
    result = call(name, "--root", folder, *more)
    assert result.exit_code == 2, result.output
    assert "r\\xff is not UTF-8 text; rename the folder" in result.output.replace("\\\\", "\\")
    assert "internal" not in result.output
    assert not more or json.loads(result.output)


def test_json_holds_everything(trees, memes):
    trees.put(
        memes / "test_seen.jsonl", trees.as_lines([trees.meme(200, text="text 4"), trees.meme(0, label=7)])
    )
    result = call("hateful-memes", "--root", memes, "--json")
    report = json.loads(result.stdout)
    assert result.exit_code == 1
    assert report["usable"] is False
    assert (report["name"], report["root"], report["variant"]) == ("hateful-memes", str(memes), "")
    assert {"part": "train", "of": "hateful", "found": 3, "published": 3050} in report["numbers"]
    assert report["repeats"][-1]["before"] == "train.jsonl, line 5"
    assert report["rejected"] == [
        {"file": "test_seen.jsonl", "line": 2, "reason": "label is '7', not 0 or 1"}
    ]
    assert report["faults"]
    assert "ai.meta.com" in report["home"]


@pytest.mark.parametrize("name", SOURCES)
def test_text_fits_a_terminal(name, trees, encoded, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = trees.write(name, tmp_path, encoded)
    result = call(name, "--root", root.relative_to(tmp_path))
    assert result.exit_code == 0
    long = [line for line in result.stdout.splitlines() if len(line) > 80]
    assert [
        line for line in long if " " in line.strip() and str(root.relative_to(tmp_path)) not in line
    ] == []


def test_bad_records_are_listed_up_to_five(trees, memes):
    trees.put(memes / "train.jsonl", trees.as_lines(trees.meme(n, label=None) for n in range(9)))
    result = call("hateful-memes", "--root", memes)
    assert result.stdout.count("- train.jsonl, line ") == 5
    assert "- and 4 more; --json lists all" in result.stdout


def test_an_unknown_name_or_variant_is_a_user_error(memes):
    for arguments, words in (
        (("hateful-mems",), "Did you mean hateful-memes?"),
        (("hateful-memes", "--root", memes, "--variant", "en"), "data.variant is 'en'"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2
        assert words in result.stderr
        assert result.stdout == ""


def test_python_refuses_an_unknown_variant_as_the_command_does(memes):
    with pytest.raises(UserError, match=r"data\.variant"):
        check("slake", memes, "fr")


def test_many_classes_without_published_numbers_are_left_to_json(trees, encoded, tmp_path):
    trees.fgvc_aircraft(tmp_path, encoded)
    names = [f"class-{n}" for n in range(40)]
    trees.put(tmp_path / "data/variants.txt", "\n".join(names))
    for number in range(40):
        trees.put(tmp_path / f"data/images/{number:07}.jpg", encoded(number, "JPEG"))
    trees.put(tmp_path / "data/images_variant_train.txt", "".join(f"{n:07} class-{n}\n" for n in range(40)))
    trees.put(tmp_path / "data/images_variant_val.txt", "")
    trees.put(tmp_path / "data/images_variant_test.txt", "0000200 class-1\n")
    told, listed = (call("fgvc-aircraft", "--root", tmp_path, *more).stdout for more in ((), ("--json",)))
    assert "class-7" not in told
    assert "class-1" in told  # of the test set, which has one class
    assert '"class-7"' in listed


def test_the_page_lists_every_published_data_set_with_its_variants():
    page = (Path(__file__).parent.parent.parent / "docs/data-sets.md").read_text(encoding="utf-8")
    table = page.split("\n## ")[0]
    rows = {line.split("`")[1]: line for line in table.splitlines() if line.startswith("| `")}
    assert set(rows) == set(SOURCES)
    for name, row in rows.items():
        assert re.findall("`([^`]*)`", row.split("|")[3]) == list(DATASETS[name].variants)


NOTICE = Path(__file__).parents[2] / "NOTICE"


@pytest.mark.parametrize("name", BUNDLED)
def test_the_licenses_of_bundled_data_are_those_of_the_notice(name):
    report = check(name, None)
    assert "NOTICE" in report.license
    named = {"SIL Open Font License", "Unicode License", "CC BY 4.0", "MIT"}
    files = [part for part in NOTICE.read_text().split("\n\nsrc/") if f"data/files/{name}.zip" in part]
    for license in named & {one for one in named if one in report.license}:
        assert any(license in part for part in files), license


def write_folder(root, licenses):
    """Write a folder with a training and a test record for each license."""
    root.mkdir()
    for part in ("train", "test"):
        rows = [
            {
                "text": f"{part} {k}",
                "question": "Which?",
                "answer": "ab"[k % 2],
                **({"license": one} if one else {}),
            }
            for k, one in enumerate(licenses)
        ]
        (root / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_the_license_of_a_folder_is_what_its_records_and_its_file_state(tmp_path):
    stated = write_folder(tmp_path / "stated", ["CC BY 4.0", "CC BY 4.0", None])
    assert check("folder", stated).license == "records state CC BY 4.0 (4), none (2)"
    silent = write_folder(tmp_path / "silent", [None, None])
    assert "none is stated" in check("folder", silent).license
    (silent / "LICENSE.txt").write_text("\n\nMIT License\n\nPermission is …")
    assert check("folder", silent).license == "file LICENSE.txt: MIT License"
    shown = call("folder", "--root", silent)
    assert "License: file LICENSE.txt: MIT License" in shown.stdout
    assert (
        json.loads(call("folder", "--root", silent, "--json").stdout)["license"]
        == check("folder", silent).license
    )


def test_the_license_of_a_published_set_is_not_invented(memes):
    assert "none is stated in the folder" in check("hateful-memes", memes).license
    assert "does not know it" in check("hateful-memes", None).license
