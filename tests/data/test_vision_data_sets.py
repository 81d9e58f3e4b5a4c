"""FedVLMBench's data sets as their owners ship them: boxes, captions, classes, and invalid records."""

import gzip
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.data import load_data
from fedloom.data.bounding_boxes import in_fractions, in_pixels
from fedloom.data.fedvlmbench_client_folders import strip_frame
from fedloom.data.images import FileImage
from fedloom.data.mimic_cxr import findings_text, sections
from fedloom.data.record_fields import InvalidRecord
from fedloom.system.errors import UserError
from fedloom.tasks import TASKS, UNPARSED


@pytest.fixture
def load(settings, tmp_path):
    """Return a function that loads a data set from the temporary folder, with any number of invalid records."""

    def loaded(name, root=tmp_path, **changes):
        return load_data(settings(**{"name": name, "root": root, "max_rejected": 1.0} | changes), 0)

    return loaded


@pytest.fixture
def write(trees, encoded, tmp_path):
    """Return a function that writes a data set of a name into the temporary folder."""
    return lambda name: trees.write(name, tmp_path, encoded)


@pytest.fixture(scope="module")
def picture(tmp_path_factory, encoded):
    """Return an image 13 pixels wide and 12 high."""
    path = tmp_path_factory.mktemp("picture") / "a.png"
    path.write_bytes(encoded(1))
    return FileImage(path)


def reasons(data):
    return [bad.reason for bad in data.rejected]


@pytest.mark.parametrize(
    ("box", "answer"),
    [
        ([0, 0, 13, 12], "[0, 0, 12, 11]"),  # all of the image
        ([1, 2, 1, 1], "[1, 2, 1, 2]"),
        ([1.5, 2.5, 1, 1], "[1, 2, 2, 3]"),  # touches two columns and two rows
        ([1.0, 2.0, 3.0, 4.0], "[1, 2, 3, 5]"),
        ([0, 0, 13.005, 12.005], "[0, 0, 12, 11]"),  # rounding is forgiven
    ],
)
def test_a_box_in_pixels_holds_every_pixel_it_touches(box, answer, picture):
    assert picture.size == (13, 12)
    assert in_pixels(box, picture) == answer


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([-1, 0, 5, 5], "box [-1, 0, 5, 5] leaves the image of 13 by 12 pixels"),
        ([9, 0, 5, 5], "box [9, 0, 5, 5] leaves the image of 13 by 12 pixels"),
        ([0, 8, 5, 5], "box [0, 8, 5, 5] leaves the image of 13 by 12 pixels"),
        ([1, 1, 0, 5], "box [1, 1, 0, 5] has no area"),
        ([1, 1, 5, -5], "box [1, 1, 5, -5] has no area"),
        ([1, 1, 5], "box [1, 1, 5] is not four numbers"),
        ([1, 1, 5, "5"], 'box [1, 1, 5, "5"] is not four numbers'),
        ([1, 1, 5, True], "box [1, 1, 5, true] is not four numbers"),
        ("1, 1, 5, 5", 'box "1, 1, 5, 5" is not four numbers'),
        (None, "box null is not four numbers"),
    ],
)
def test_an_invalid_box_has_a_reason(box, reason, picture):
    with pytest.raises(InvalidRecord) as told:
        in_pixels(box, picture)
    assert str(told.value) == reason


edges = st.lists(st.floats(0, 12, allow_nan=False), min_size=2, max_size=2, unique=True).map(sorted)


@given(edges, edges)
def test_every_box_inside_parses_to_one_that_covers_it(picture, across, down):
    (x0, x1), (y0, y1) = across, down
    box = [x0, y0, x1 - x0, y1 - y0]
    if min(box[2:]) < 0.05:
        return
    a, b, c, d = json.loads(in_pixels(box, picture))
    assert 0 <= a <= c < 13
    assert 0 <= b <= d < 12
    # Ends belong to the box, so that its last pixel reaches one further; a hundredth may be rounded off.
    assert a <= x0 + 0.02
    assert c + 1 >= x1 - 0.02
    assert b <= y0 + 0.02
    assert d + 1 >= y1 - 0.02
    assert (c - a, d - b) <= (x1 - x0 + 1.02, y1 - y0 + 1.02)


@pytest.mark.parametrize(
    "box", [[0, 0, 1.2, 0.5], [-0.1, 0, 0.5, 0.5], [0.2, 0.2, 0.0, 0.1], [0.1, 0.1, 0.00001, 0.1]]
)
def test_an_invalid_box_in_fractions_has_a_reason(box):
    with pytest.raises(InvalidRecord, match=r"leaves the image|has no area"):
        in_fractions(box)


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("The answer to the question is liver.", ("liver", "vqa")),
        ("The classification is 707-320.", ("707-320", "vqa")),
        ("The variant of the aircraft is DC-3", ("DC-3", "vqa")),
        ("The caption is A man is on a mat.", ("A man is on a mat.", "caption")),
        ("The report is: No effusion.", ("No effusion.", "caption")),
        ("The coordinates are [1.0, 2.0, 3.0, 4.0]", ("[1.0, 2.0, 3.0, 4.0]", "grounding")),
        (
            "The coordinates of the left lung are {'lung': [0.1, 0.2, 0.3, 0.4]}.",
            ("{'lung': [0.1, 0.2, 0.3, 0.4]}", "grounding"),
        ),
        ("The heart is enlarged.", ("The heart is enlarged.", "vqa")),
        ("yes", ("yes", "vqa")),
        ("A cat. The caption is wrong.", ("A cat. The caption is wrong.", "vqa")),
    ],
)
def test_the_frame_of_an_answer_is_removed(said, left):
    assert strip_frame(said) == left


def test_prepared_clients(write, load):
    data = load("fedvlmbench-prepared", write("fedvlmbench-prepared"))
    assert [example.id for example in data.train] == [
        f"train-client_{c}-{n}" for c in range(2) for n in range(1, 5)
    ]
    assert Counter(example.group for example in data.train) == {"client_0": 4, "client_1": 4}
    assert [(example.answer, example.task) for example in data.test] == [
        ("liver", "vqa"),
        ("A cat sits on a mat.", "caption"),
        ("[1, 2, 4, 5]", "grounding"),
        ("dog", "vqa"),
    ]
    assert data.test[0].question == "What is it?"
    for example in data.test:
        assert TASKS[example.task].parse(example.answer, example, answer_form="text") is not UNPARSED


def test_a_test_file_for_each_task_takes_the_place_of_the_one_for_all(write, load, trees):
    root = write("fedvlmbench-prepared")
    whole = json.loads((root / "test/test.json").read_text())
    for number, record in enumerate(whole):
        trees.put(root / f"test/task_{number}.json", json.dumps([record]))
    data = load("fedvlmbench-prepared", root)
    assert [example.group for example in data.test] == [f"task_{number}" for number in range(4)]


def test_the_folder_above_the_clients_will_do(write, load):
    assert load("fedvlmbench-prepared", write("fedvlmbench-prepared").parent).train


def test_prepared_clients_ugly_records(write, load, trees):
    root = write("fedvlmbench-prepared")

    def record(answer, question="Where is it?", **changes):
        return {"id": 1, "image": "a/0.png", "conversations": trees.talk(question, answer)} | changes

    boxed = "The coordinates are "
    records = [
        record(boxed + "[0.1, 0.2, 0.5, 0.5]"),
        record(boxed + "{'lung': [0.0, 0.0, 1.0, 0.25]}"),
        record(boxed + "[[1.0, 1.0, 2.0, 2.0]]"),
        record(boxed + "[1.0, 1.0, 20.0, 2.0]"),
        record(boxed + "[0.5, 0.5, 0.6, 0.1]"),
        record(boxed + "[0.1, 0.2, 0.5]"),
        record(boxed + "nowhere"),
        record("The caption is "),
        record("yes", question=""),
        record("yes", image="a/absent.png"),
        record("yes", image=None),
        record("yes", conversations=[{"from": "human", "value": "only"}]),
        {
            "id": 2,
            "image": "a/0.png",
            "conversations_caption": trees.talk("Describe.", "The caption is a cell."),
        },
        {"id": 3, "image": "a/0.png"},
    ]
    trees.put(root / "train/client_0.json", json.dumps(records))
    data = load("fedvlmbench-prepared", root)
    first = [example for example in data.train if example.group == "client_0"]
    assert [example.answer for example in first] == [
        "[0.1000, 0.2000, 0.6000, 0.7000]",
        "[0.0000, 0.0000, 1.0000, 0.2500]",
        "[1, 1, 2, 2]",
        "a cell.",
    ]
    assert reasons(data) == [
        "entry 4: box [1.0, 1.0, 20.0, 2.0] leaves the image of 13 by 12 pixels",
        "entry 5: box [0.5, 0.5, 0.6, 0.1] leaves the image, which is 1 by 1",
        "entry 6: box [0.1, 0.2, 0.5] is not four numbers",
        "entry 7: the answer 'nowhere' is not a box",
        "entry 8: the answer is empty",
        "entry 9: the question is empty",
        "entry 10: image 'a/absent.png' is missing",
        "entry 11: image is missing",
        'entry 12: conversations is not one turn of "human" and one of "gpt"',
        "entry 14: conversations is not a list of objects",
    ]
    assert {bad.file for bad in data.rejected} == {"train/client_0.json"}


@pytest.mark.parametrize(("level", "count"), [(None, 3), ("variant", 3), ("family", 2), ("manufacturer", 3)])
def test_aircraft_at_each_level(level, count, write, load):
    data = load("fgvc-aircraft", write("fgvc-aircraft"), variant=level)
    assert (len(data.train), len(data.test)) == (8, 4)  # train and val are both to train
    assert {len(example.options) for example in data.train} == {count}
    if level == "manufacturer":
        assert data.train[2].answer == "de Havilland"  # a class may hold a space


def test_aircraft_ugly_lines(write, load, trees):
    root = write("fgvc-aircraft")
    lines = "\ufeff0000000 A300B4\r\n\r\n0000001 A400\r\n0000002\r\n9999999 A300B4\r\n"
    trees.put(root / "data/images_variant_train.txt", lines)
    data = load("fgvc-aircraft", root)
    assert [(bad.line, bad.reason) for bad in data.rejected] == [
        (3, "class is 'A400', not one of 707-320, A300B4, DH-82"),
        (4, "class is empty"),
        (5, "image '9999999.jpg' is missing"),
    ]
    (root / "data/variants.txt").unlink()
    with pytest.raises(UserError, match=r"variants\.txt is missing; it ships with the data set"):
        load("fgvc-aircraft", root)


def test_science_qa_captions_and_questions(write, load):
    root = write("science-qa")
    captions, questions = (load("science-qa", root, variant=variant) for variant in (None, "vqa"))
    assert all(example.answer == f"a drawing of {example.id}" for example in captions.test)
    assert {example.task for example in captions.train} == {"caption"}
    assert {example.group for example in captions.train} == {"biology", "physics"}
    assert (len(questions.train), len(captions.train)) == (8, 6)
    assert any(example.image is None for example in questions.train)
    assert {example.text for example in questions.train} == {"Look.", None}


def test_science_qa_ugly_problems(write, load, trees):
    root = write("science-qa")
    problems = {
        "1": trees.problem(0, "train"),
        "2": trees.problem(0, "train"),
        "3": trees.problem(0, "valid"),
        "4": trees.problem(0, "train", choices=["same", "same"]),
        "5": trees.problem(0, "train", answer=3),
        "6": [],
        "8": trees.problem(0, "test"),
    }
    trees.put(root / "problems.json", json.dumps(problems))
    trees.put(root / "captions.json", json.dumps({"captions": {"1": "a cell", "2": " ", "8": "a leaf"}}))
    data = load("science-qa", root)
    assert [example.id for example in data.train] == ["1"]
    assert reasons(data) == [
        "entry 2: caption is empty",
        "entry 3: split is 'valid', not one of train, val, test",
        "entry 4: caption is missing",
        "entry 5: caption is missing",
        "entry 6: a list instead of an object",
    ]
    assert reasons(load("science-qa", root, variant="vqa")) == [
        "entry 3: split is 'valid', not one of train, val, test",
        "entry 4: choices is not a list of at least two different texts",
        "entry 5: answer is not an index of choices, 0 to 2",
        "entry 6: a list instead of an object",
    ]


def test_coco_takes_the_first_caption_of_an_image(write, load, trees):
    write("coco-captions")
    data = load("coco-captions")
    assert [example.answer for example in data.train] == [
        "caption 0 of 0",
        "caption 0 of 1",
        "caption 0 of 2",
    ]
    with pytest.raises(UserError, match=r"it holds no annotations/captions_train2017\.json"):
        load("coco-captions", variant="2017")


def test_coco_passes_over_an_empty_caption_for_a_later_one(write, load, trees, tmp_path):
    write("coco-captions")
    path = tmp_path / "annotations/captions_train2014.json"
    value = json.loads(path.read_text())
    value["annotations"] = [
        {"id": 1, "image_id": 0, "caption": " "},
        {"id": 2, "image_id": 1, "caption": "one"},
        {"id": 3, "image_id": 0, "caption": "zero"},
        {"id": 4, "image_id": 0, "caption": "later"},
    ]
    path.write_text(json.dumps(value))
    data = load("coco-captions")
    assert [example.answer for example in data.train] == ["zero", "one"] and not data.rejected


REPORTS = [
    (" FINDINGS:\n\n Clear.\n PICC: in place.\n\n IMPRESSION:\n Normal.", "Clear. PICC: in place."),
    (" FINDINGS AND IMPRESSION:\n\n Clear.", "Clear."),
    (" CONCLUSION:  Clear.", "Clear."),
    (" COMPARISON:  None.\n\n CHEST, TWO VIEWS:\n\n Clear.", "Clear."),
    (" PA AND LATERAL CHEST RADIOGRAPHS:  Clear.", "Clear."),
    (" INDICATION:  Cough.\n\n FINDNGS:  Clear.", "Clear."),
    (" INDICATION:  Cough.\n\n IMPRESSON:  Clear.\n\n RECOMMENDATION(S):  None.", "Clear."),
    (
        " FINDINGS:\n\n CHEST:  Clear.\n BONES:  Whole.\n\n NOTIFICATION:  Told.",
        "CHEST: Clear. BONES: Whole.",
    ),
    (" FINDINGS:\n\n IMPRESSION:  Clear.", "Clear."),
    (" EXAMINATION:  CHEST\n\n Clear on both sides.\n\n No effusion.", "Clear on both sides. No effusion."),
    (" EXAMINATION:  CHEST\n", None),
    ("No heading at all", None),
]


@pytest.mark.parametrize(("report", "said"), REPORTS)
def test_reports_are_parsed_as_by_the_owners_parser(report, said):
    assert findings_text(f"                                 FINAL REPORT\n{report}\n") == said


def test_coco_ugly_captions(write, load, trees, tmp_path):
    write("coco-captions")
    path = tmp_path / "annotations/captions_train2014.json"
    value = json.loads(path.read_text())
    value["annotations"] = [
        {"id": 1, "image_id": 0, "caption": " "},
        {"id": 2, "image_id": 1, "caption": "fine"},
        {"id": 3, "image_id": 77, "caption": "of no picture"},
        "not an object",
    ]
    path.write_text(json.dumps(value))
    assert reasons(load("coco-captions")) == [
        "annotation 1: caption is empty",
        "annotation 3: file_name is missing",
        "annotation 4: text instead of an object",
    ]
    path.write_text("[]")
    with pytest.raises(UserError, match="holds no list 'images'; it is not an annotation file of COCO"):
        load("coco-captions")


def test_coco_qa_finds_photographs_in_two_folders(write, load):
    write("coco-qa")
    data = load("coco-qa")
    assert [example.kind for example in data.train] == ["object", "number", "color", "location"]
    assert [example.image.path.parent.name for example in data.train] == ["train2014", "val2014"] * 2
    assert [example.id for example in (data.train[0], data.test[3])] == ["train-1", "test-4"]


def test_coco_qa_ugly_lines(write, load, trees, tmp_path):
    write("coco-qa")
    trees.put(tmp_path / "train/types.txt", "0\n4\n2\n3\n")
    trees.put(tmp_path / "train/img_ids.txt", "0\n1\nx\n555\n")
    assert [(bad.line, bad.reason) for bad in load("coco-qa", test_share=0.5).rejected] == [
        (2, "types is '4', not one of 0, 1, 2, 3"),
        (3, "img_ids is 'x', not a number of at most 12 digits"),
        (4, "image 'COCO_val2014_000000000555.jpg' is missing"),
    ]
    trees.put(tmp_path / "train/img_ids.txt", f"0\n1\n{'9' * 5000}\n555\n")
    assert load("coco-qa", test_share=0.5).rejected[1].reason.endswith("not a number of at most 12 digits")
    trees.put(tmp_path / "train/types.txt", "0\n")
    with pytest.raises(
        UserError, match=r"the files differ in their number of lines \(questions 4, answers 4, types 1"
    ):
        load("coco-qa")
    (tmp_path / "train/types.txt").unlink()
    with pytest.raises(UserError, match=r"types\.txt is missing; it ships with the data set"):
        load("coco-qa")


def test_refcoco_asks_for_each_sentence(write, load):
    write("refcoco")
    data = load("refcoco")
    assert [example.question for example in data.train] == [
        "Where is the thing 0?",
        "Where is the thing 1?",
    ] * 2
    assert {example.answer for example in data.train} == {"[1, 2, 6, 8]"}
    assert [example.kind for example in data.test] == ["testA"] * 2 + ["testB"] * 2
    for example in data.test:
        assert TASKS["grounding"].parse(example.answer, example, answer_form="text") == (1, 2, 6, 8)


def test_refcoco_ugly_boxes(trees, encoded, load, tmp_path):
    trees.refcoco(tmp_path, encoded, boxes={0: [9, 9, 20, 20], 3: None})
    assert reasons(load("refcoco")) == [
        *["entry 1: box [9, 9, 20, 20] leaves the image of 13 by 12 pixels"] * 2,
        *["entry 4: instances.json has no box of its ann_id"] * 2,
    ]
    (tmp_path / "instances.json").unlink()
    with pytest.raises(UserError, match=r"instances\.json is missing; it ships with RefCOCO"):
        load("refcoco")


def test_a_pickle_is_never_read_and_the_message_shows_the_conversion(trees, encoded, load, tmp_path):
    trees.refcoco(tmp_path, encoded)
    (tmp_path / "refs(unc).json").rename(tmp_path / "refs(unc).p")
    with pytest.raises(UserError, match=r"it holds no refs\(unc\)\.json\..*json\.dump\(pickle\.load"):
        load("refcoco")


def test_mimic_cxr_uses_the_findings_and_one_image_of_a_study(write, load):
    write("mimic-cxr")
    data = load("mimic-cxr")
    assert [example.id for example in (*data.train, *data.test)] == [
        "50000000",
        "50000001",
        "50000002",
        "50000004",
    ]
    assert data.train[1].answer == "The lungs of 1 are clear. There is no effusion."


def test_mimic_cxr_may_be_packed_and_its_reports_elsewhere(write, load, tmp_path):
    write("mimic-cxr")
    path = tmp_path / "mimic-cxr-2.0.0-split.csv"
    (tmp_path / "mimic-cxr-2.0.0-split.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    for report in sorted(tmp_path.glob("files/*/*/*.txt")):
        moved = tmp_path / "mimic-cxr-reports" / report.relative_to(tmp_path)
        moved.parent.mkdir(parents=True, exist_ok=True)
        report.rename(moved)
    assert len(load("mimic-cxr").train) == 3


def test_mimic_cxr_one_bad_image_does_not_lose_its_study(write, load, tmp_path, encoded):
    write("mimic-cxr")
    with open(tmp_path / "mimic-cxr-2.0.0-split.csv", "a") as file:
        file.write("extra,50000001,10000001,train\n")
    before = load("mimic-cxr")
    (example,) = (one for one in before.train if one.id == "50000001")
    (example.image.path.parent / "extra.jpg").write_bytes(encoded(5, "JPEG"))
    example.image.path.write_bytes(b"no image")
    after = load("mimic-cxr")
    (example,) = (one for one in after.train if one.id == "50000001")
    assert example.image.path.name == "extra.jpg" and len(after.rejected) == len(before.rejected)


def test_mimic_cxr_ugly_studies(write, load, trees, tmp_path):
    write("mimic-cxr")
    folder = tmp_path / "files/p10"
    trees.put(folder / "p10000000/s50000000.txt", " FINAL REPORT\n Nothing more.\n")
    trees.put(folder / "p10000001/s50000001.txt", " IMPRESSION: Normal.\n")
    (folder / "p10000002/s50000002.txt").unlink()
    with open(tmp_path / "mimic-cxr-2.0.0-split.csv", "a") as file:
        file.write("d9,59,../../x,test\nd9,60,10000000,tset\nd9,,10000000,test\n")
    data = load("mimic-cxr")
    assert [(example.id, example.answer) for example in data.train] == [("50000001", "Normal.")]
    assert [(bad.line, bad.reason) for bad in data.rejected] == [
        (2, "the report p10/p10000000/s50000000.txt has neither findings nor impression"),
        (6, "the report p10/p10000002/s50000002.txt is missing"),
        (12, "subject_id is '../../x', not a number"),
        (13, "split is 'tset', not one of train, validate, test"),
        (14, "study_id is empty"),
    ]


def test_a_report_that_cannot_be_read_costs_its_study_only(write, load, monkeypatch):
    write("mimic-cxr")
    before, read_text = load("mimic-cxr"), Path.read_text

    def read(path, *arguments, **more):
        if path.name == "s50000001.txt":
            raise PermissionError(13, "Permission denied", str(path))
        return read_text(path, *arguments, **more)

    monkeypatch.setattr(Path, "read_text", read)
    after = load("mimic-cxr")
    assert [bad.reason for bad in after.rejected] == [
        "the report p10/p10000001/s50000001.txt is unreadable (Permission denied)"
    ]
    assert {one.id for one in before.examples} - {one.id for one in after.examples} == {"50000001"}


def test_a_report_without_headings_has_no_sections():
    assert sections("FINAL REPORT\nNo heading, though a colon: here") == {}


def test_a_report_without_headings_is_what_follows_its_first_paragraph():
    """As the owners' parser has it, which then calls the whole report one section."""
    assert (
        findings_text(" FINAL REPORT\n \n Lungs are\n clear.\n \n Heart: normal.\n")
        == "Lungs are clear. Heart: normal."
    )
    assert findings_text("FINAL REPORT\nNo heading, though a colon: here") is None


@pytest.mark.parametrize("added", [b"\xff\xfe\x00", b'x1,"50,10000032,train\nx2,51,10000032,train\n'])
def test_a_file_that_is_not_csv_is_refused(added, write, load, tmp_path):
    write("mimic-cxr")
    with open(tmp_path / "mimic-cxr-2.0.0-split.csv", "ab") as file:
        file.write(added)
    lines = (tmp_path / "mimic-cxr-2.0.0-split.csv").read_bytes().removesuffix(added).count(b"\n")
    where = "" if b"\xff" in added else f", line {lines + 1}"
    with pytest.raises(UserError, match=rf"split\.csv{where}: not a readable CSV file"):
        load("mimic-cxr")


def test_nature_has_three_tasks_over_the_same_photographs(write, load):
    write("nature")
    data = load("nature")
    assert Counter((example.group, example.task) for example in data.train) == {
        ("caption", "caption"): 3,
        ("grounding", "grounding"): 4,
        ("vqa", "vqa"): 4,
    }
    assert {example.id.rsplit("-", 1)[0] for example in data.test if example.task == "vqa"} == {
        "coco-qa-test"
    }
    assert {example.image.path.parent.parent.name for example in data.train} == {
        data.train[0].image.path.parent.parent.name
    }


def test_radiology_joins_questions_of_two_sources_and_reports(write, load):
    write("radiology")
    data = load("radiology")
    assert Counter(example.group for example in data.train) == {"vqa": 3 + 4, "report": 3}
    assert {example.kind for example in data.test if example.group == "vqa"} == {"open", "closed"}
    assert all(example.answer != "健康" for example in data.train)  # SLAKE in English alone


def test_ids_that_are_no_ids_break_nothing(write, load, trees, tmp_path):
    write("refcoco")
    value = json.loads((tmp_path / "instances.json").read_text())
    value["images"].append({"id": [1], "file_name": {}})
    value["annotations"] += [{"id": {"a": 1}, "bbox": 5}, None]
    (tmp_path / "instances.json").write_text(json.dumps(value))
    references = [
        trees.reference(0, "train", ann_id=[]),
        trees.reference(1, "train", image_id={}, sentences=5),
    ]
    references += [
        trees.reference(2, "train"),
        trees.reference(3, "testA", sentences=[{"sent_id": 1}]),
        "text",
    ]
    (tmp_path / "refs(unc).json").write_text(json.dumps([*references, trees.reference(4, "testB")]))
    assert reasons(load("refcoco")) == [
        *["entry 1: instances.json has no box of its ann_id"] * 2,
        "entry 2: sentences is not a list of objects",
        "entry 4: sent is missing",
        "entry 5: text instead of an object",
    ]


def test_captions_of_another_form_are_missing_captions(write, load, tmp_path):
    root = write("science-qa")
    for wrong in ('{"captions": []}', '{"1": "a cell"}', '{"captions": {"1": ["a cell"]}}'):
        (tmp_path / "captions.json").write_text(wrong)
        with pytest.raises(UserError, match="no training example is left"):
            load("science-qa", root)
    (tmp_path / "captions.json").write_text("[]")
    with pytest.raises(UserError, match=r"captions\.json: holds a list instead of an object"):
        load("science-qa", root)
