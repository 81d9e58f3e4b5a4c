"""Data sets as their owners ship them: what becomes of a record, and of every ugly one."""

import json
import re
from collections import Counter

import pytest

from fedloom.data import BUNDLED, DATASETS, Source, load_data, variants
from fedloom.data.crisis_mmd import OPTIONS, without_links
from fedloom.data.fedmllm_client_folders import parse_user_turn
from fedloom.system.errors import UserError

SOURCES = [name for name, load in DATASETS.items() if isinstance(load, Source)]


@pytest.fixture
def load(settings, tmp_path):
    """Return a function that loads a data set from the temporary folder, with any number of invalid records."""

    def loaded(name, root=tmp_path, **changes):
        return load_data(settings(**{"name": name, "root": root, "max_rejected": 1.0} | changes), 0)

    return loaded


@pytest.fixture
def roots(trees, encoded, tmp_path):
    """Return a function from a data set's name to a root that holds it, written in a place of its own."""

    return lambda name: trees.write(name, tmp_path / name, encoded)


def reasons(data):
    return [bad.reason for bad in data.rejected]


def by_id(data):
    return {example.id: example for example in (*data.train, *data.test)}


@pytest.mark.parametrize("name", SOURCES)
def test_every_published_data_set_keeps_the_contract(name, roots, load):
    data = load(name, roots(name))
    assert (data.name, data.rejected) == (name, ())
    assert data.train
    assert data.test
    examples = [*data.train, *data.test]
    assert len({example.id for example in examples}) == len(examples)
    for example in examples:
        assert (example.label is None) == (not example.options) == (example.task != "choice")
        assert example.image is None or example.image.pixels().shape == (12, 13, 3)
        if example.options:
            assert example.options[example.label] == example.answer


@pytest.mark.parametrize("name", SOURCES)
def test_the_message_about_a_missing_or_wrong_folder_names_the_missing_files(name, roots, load, tmp_path):
    with pytest.raises(UserError, match=f"data.root: the data set {name} needs the path of its folder"):
        load(name, None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    other = "slake" if name != "slake" else "vqa-rad"
    for root in (tmp_path / "empty", roots(other)):
        with pytest.raises(
            UserError, match=rf"is not the folder of {name}: it holds no .*\. .*(https|clients)"
        ):
            load(name, root)
    with pytest.raises(UserError, match="file is not a folder"):
        load(name, tmp_path / "file")


@pytest.mark.parametrize("name", [name for name in DATASETS if name not in BUNDLED and not variants(name)])
def test_data_sets_without_variants_refuse_a_variant(name, roots, load):
    if name in SOURCES:
        with pytest.raises(UserError, match=r"data\.variant is 'en', but for .* it can only be null"):
            load(name, roots(name), variant="en")


def test_hateful_memes(roots, load):
    data = load("hateful-memes", roots("hateful-memes"))
    assert [example.id for example in data.train] == [str(n) for n in range(6)]  # the order of the file
    assert [example.label for example in data.train] == [0, 1] * 3
    assert data.train[1].answer == data.train[1].group == "hateful"
    assert data.train[1].text == "text 1"
    assert len(data.test) == 4  # the dev part is neither trained nor tested on


def test_hateful_memes_ugly_lines(trees, roots, load):
    root = roots("hateful-memes")
    meme = trees.meme
    ugly = [
        meme(0),
        meme(0, text="again"),
        meme(1, img="img/absent.png"),
        meme(1, img="../outside.png"),
        meme(1, img=None),
        meme(1, label=None),
        meme(1, label=2),
        meme(1, label="1", text=""),
        meme(2, id=None),
        meme(3, text="zwölf Boxkämpfer 你好"),
    ]
    text = trees.as_lines(ugly).replace("\n", "\r\n")
    trees.put(root / "train.jsonl", b"\xef\xbb\xbf" + text.encode() + b"\r\n{]\r\n")
    data = load("hateful-memes", root)
    assert [(bad.line, bad.reason) for bad in data.rejected] == [
        (2, "id '0' was used before (train.jsonl, line 1)"),
        (3, "image 'absent.png' is missing"),
        (4, "image '../outside.png' leaves the folder"),
        (5, "img is missing"),
        (6, "label is missing; this is the copy without labels"),
        (7, "label is '2', not 0 or 1"),
        (9, "id is missing"),
        (12, "bad JSON at column 2: Expecting property name enclosed in double quotes"),
    ]
    assert {bad.file for bad in data.rejected} == {"train.jsonl"}
    assert [(example.id, example.text) for example in data.train] == [
        ("0", "text 0"),
        ("1", None),
        ("3", "zwölf Boxkämpfer 你好"),
    ]


def test_a_test_file_without_labels_stops_the_run_and_says_so(trees, roots, load):
    root = roots("hateful-memes")
    unlabeled = [
        {key: value for key, value in trees.meme(n + 200).items() if key != "label"} for n in range(4)
    ]
    trees.put(root / "test_seen.jsonl", trees.as_lines(unlabeled))
    with pytest.raises(
        UserError, match=r"test_seen\.jsonl, line 1: label is missing; this is the copy without"
    ):
        load("hateful-memes", root, max_rejected=0.01)


def test_a_test_record_with_an_id_of_the_training_part_is_skipped(trees, roots, load):
    root = roots("hateful-memes")
    trees.put(root / "test_seen.jsonl", trees.as_lines([trees.meme(1), trees.meme(200)]))
    data = load("hateful-memes", root)
    assert reasons(data) == ["id '1' was used before (train.jsonl, line 2)"]
    assert [example.id for example in data.test] == ["200"]


def test_loading_skips_files_that_are_not_images_and_leaves_damaged_images_to_the_check(
    trees, encoded, roots, load
):
    root = roots("hateful-memes")
    trees.put(root / "img/00000.png", encoded(0)[:-40])
    trees.put(root / "img/00001.png", "this is text")
    trees.put(root / "img/00002.png", "")
    data = load("hateful-memes", root)
    assert reasons(data) == [
        "image '00001.png' is not a PNG, JPEG or WebP image",
        "image '00002.png' is empty (0 bytes)",
    ]
    with pytest.raises(UserError, match=r"00000\.png: the image is damaged"):
        by_id(data)["0"].image.pixels()


def test_a_missing_folder_of_images_is_reported_once(roots, load):
    root = roots("hateful-memes")
    (root / "img").rename(root / "images")
    with pytest.raises(UserError, match="holds no folder img with the images of hateful-memes"):
        load("hateful-memes", root)


def test_crisis_mmd_answers_with_the_label_of_the_image(roots, load):
    data = load("crisis-mmd", roots("crisis-mmd"))
    assert [example.answer for example in data.train] == ["not_humanitarian", "vehicle_damage"] * 2
    assert data.train[0].label == 7  # the last of the published order
    assert data.train[0].text == "tweet 0"
    assert data.train[1].group == "iraq_iran_earthquake"
    assert data.train[0].id == "900_0"


@pytest.mark.parametrize("task", variants("crisis-mmd"))
@pytest.mark.parametrize("folder", ["crisismmd_datasplit_all", "crisisMMD_datasplit_all", "."])
def test_crisis_mmd_has_three_tasks_in_folders_of_several_names(task, folder, trees, encoded, load, tmp_path):
    columns = trees.COLUMNS[:6] if task == "damage" else trees.COLUMNS
    trees.crisis_mmd(tmp_path, encoded, task, OPTIONS[task][:2], columns)
    if folder != "crisismmd_datasplit_all":
        for path in sorted((tmp_path / "crisismmd_datasplit_all").iterdir()):
            trees.put(tmp_path / folder / path.name, path.read_bytes())
            path.unlink()
    data = load("crisis-mmd", variant=task)
    assert [example.options for example in data.test] == [OPTIONS[task]] * 4
    assert Counter(example.answer for example in data.train) == dict.fromkeys(OPTIONS[task][:2], 2)


def test_crisis_mmd_without_the_image_label_is_refused_if_it_is_needed(trees, encoded, load, tmp_path):
    trees.crisis_mmd(tmp_path, encoded, columns=trees.COLUMNS[:6])
    with pytest.raises(UserError, match="label_image is missing"):
        load("crisis-mmd", max_rejected=0.01)


def test_crisis_mmd_ugly_rows(trees, encoded, load, tmp_path):
    trees.crisis_mmd(tmp_path, encoded)
    rows = [
        trees.tweet(0, tweet_text='"Stay safe," they said: 5" of rain'),
        trees.tweet(1, tweet_text='"unpaired'),
        trees.tweet(2, tweet_text="http://t.co/only"),
        trees.tweet(3, label="not_relevant_or_cant_judge"),
        trees.tweet(3, image="data_image/absent.jpg"),
        trees.tweet(3, tweet_text="taken\tapart"),
        trees.tweet(3, tweet_text="  Überschwemmung 洪水 https://t.co/a  ", event_name=""),
        trees.tweet(3),
    ]
    text = trees.as_tsv(rows, end="\r\n")
    file = "crisismmd_datasplit_all/task_humanitarian_text_img_train.tsv"
    trees.put(tmp_path / file, b"\xef\xbb\xbf" + text.encode() + b"\r\n\xff\xfe\r\n")
    data = load("crisis-mmd")
    assert [(example.id, example.text, example.group) for example in data.train] == [
        ("900_0", '"Stay safe," they said: 5" of rain', "hurricane_maria"),
        ("901_0", '"unpaired', "iraq_iran_earthquake"),
        ("902_0", None, "hurricane_maria"),
        ("903_0", "Überschwemmung 洪水", None),
    ]
    assert [(bad.file, bad.line) for bad in data.rejected] == [(file, line) for line in (5, 6, 7, 9, 11)]
    told = reasons(data)
    assert told[0].startswith(
        "label_image is 'not_relevant_or_cant_judge', not one of affected_individuals, "
    )
    assert told[1:] == [
        "image 'absent.jpg' is missing",
        "10 columns instead of 9",
        f"id '903_0' was used before ({file}, line 8)",
        "not UTF-8 text (byte 1)",
    ]


@pytest.mark.parametrize(
    ("tweet", "left"),
    [
        ("a http://t.co/x b", "a  b"),  # as published: the spaces on both sides stay
        ("https://t.co/x", ""),
        ("httpS is a word", "is a word"),
        ("no link at all ", "no link at all"),
        ("two\nhttp://t.co/x\tlines", "two\n\tlines"),
    ],
)
def test_links_are_taken_out_of_tweets(tweet, left):
    assert without_links(tweet) == left


def test_vqa_rad_is_divided_by_phrase_type(roots, load):
    data = load("vqa-rad", roots("vqa-rad"))
    assert [example.id for example in data.train] == ["0", "1", "2", "3"]
    assert [example.id for example in data.test] == ["4", "5"]
    assert [example.kind for example in data.train] == ["closed", "open"] * 2
    assert [example.answer for example in data.train] == ["Yes", "no", "YES", "Yes"]  # as written, no space
    assert [example.group for example in data.test] == ["CHEST", "ABD"]


def test_vqa_rad_ugly_entries(trees, roots, load):
    root = roots("vqa-rad")
    entry = trees.radiology
    ugly = [
        entry(0, answer=3, answer_type="open "),
        entry(1, answer=1.5),
        entry(2, answer=None),
        entry(3, answer_type="YES/NO"),
        entry(4, phrase_type="spoken"),
        entry(5, image_name="absent.jpg"),
        entry(6, phrase_type="test_para", question=" "),
        "not an object",
        entry(7, phrase_type="test_para"),
    ]
    content = json.dumps(ugly, indent=1).replace("\n", "\r\n").encode()
    trees.put(root / "VQA_RAD Dataset Public.json", b"\xef\xbb\xbf" + content)
    data = load("vqa-rad", root)
    assert [(example.answer, example.kind) for example in data.train] == [("3", "open"), ("1.5", "open")]
    assert [example.id for example in data.test] == ["7"]
    assert reasons(data) == [
        "entry 3: answer is missing",
        "entry 4: answer_type is 'YES/NO', not OPEN or CLOSED",
        "entry 5: phrase_type is 'spoken', not one of freeform, para, test_freeform, test_para",
        "entry 6: image 'absent.jpg' is missing",
        "entry 7: question is empty",
        "entry 8: text instead of an object",
    ]


def test_flashcards_have_only_questions_and_some_are_held_out(roots, load):
    data = load("flashcards", roots("flashcards"), test_share=0.25)
    assert (len(data.train), len(data.test)) == (6, 2)
    card = by_id(data)["card-1"]
    assert (card.question, card.answer, card.image, card.text) == ("What is 0?", "It is 0.", None, None)


def test_flashcards_with_one_question_stay_in_one_part_and_empty_ones_are_reported(trees, load, tmp_path):
    cards = [{"input": f"What is {n // 4}?", "output": f"It is {n}."} for n in range(16)]
    cards += [
        {"input": "", "output": "an answer"},
        {"input": "a question", "output": " "},
        {"input": "a question"},
    ]
    trees.put(tmp_path / "medical_meadow_wikidoc_medical_flashcards.json", json.dumps(cards))
    data = load("flashcards")
    assert not {example.question for example in data.train} & {example.question for example in data.test}
    assert reasons(data) == [
        "entry 17: input is empty",
        "entry 18: output is empty",
        "entry 19: output is missing",
    ]


@pytest.mark.parametrize(("variant", "count"), [(None, 6), ("all", 6), ("en", 3), ("zh", 3)])
def test_slake_in_either_language_or_both(variant, count, roots, load):
    data = load("slake", roots("slake"), variant=variant)
    assert (len(data.train), len(data.test), data.rejected) == (count, count, ())
    chinese = [example for example in data.test if example.answer == "健康"]
    assert len(chinese) == {3: 3 * (variant == "zh"), 6: 3}[count]
    assert {example.group for example in data.test} == {"CT", "MRI", "X-Ray"}


def test_slake_refuses_a_language_it_does_not_have(roots, load):
    with pytest.raises(
        UserError, match=r"data\.variant is 'de', but for slake it can only be one of all, en, zh"
    ):
        load("slake", roots("slake"), variant="de")


def test_slake_in_another_language_is_a_bad_record(trees, roots, load):
    root = roots("slake")
    trees.put(
        root / "train.json", json.dumps([trees.slake_entry(0, "en"), trees.slake_entry(1, "en", q_lang="de")])
    )
    assert reasons(load("slake", root)) == ["entry 2: q_lang is 'de', not one of en, zh"]


def test_medical_trains_on_two_sources_and_tests_on_either(roots, load):
    root = roots("medical")
    inside, outside = (load("medical", root, variant=variant) for variant in ("vqa-rad", "slake"))
    assert inside.train == outside.train
    assert Counter(example.group for example in inside.train) == {"vqa-rad": 4, "flashcards": 8}
    assert {example.group for example in inside.test} == {"vqa-rad"}
    assert {example.group for example in outside.test} == {"slake"}
    assert all((example.image is None) == (example.group == "flashcards") for example in inside.train)
    assert load("medical", root) == inside


def test_prepared_clients_are_parsed(roots, load):
    data = load("fedmllm-prepared", roots("fedmllm-prepared"))
    examples = by_id(data)
    assert Counter(example.group for example in examples.values()) == dict.fromkeys(
        ("client_0", "client_1", "client_10"), 4
    )
    for number, example in ((int(id), example) for id, example in examples.items()):
        assert example.question == "Is the content hateful?"
        assert example.options == ("not-hateful", "hateful")
        assert example.label == number % 2
        assert (example.image is None) == (number % 4 == 1)
        assert example.text == (None if number % 4 == 2 else f"text {number}\nover two lines")


def test_prepared_clients_come_in_the_order_of_their_numbers(roots, load, trees):
    root = roots("fedmllm-prepared")
    trees.put(root / "test.json", json.dumps([trees.prepared_record(5000, image=False)]))
    data = load("fedmllm-prepared", root)
    assert list(dict.fromkeys(example.group for example in data.train)) == [
        "client_0",
        "client_1",
        "client_10",
    ]
    assert [example.id for example in data.test] == ["5000"]


def test_prepared_ugly_records(roots, load, trees):
    root = roots("fedmllm-prepared")
    good = trees.prepared_record(0)

    def spoken(question, answer, **changes):
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return {"id": 1, "image": None, "conversations": turns} | changes

    choice = good["conversations"][0]["content"]
    records = [
        good,
        good | {"id": 2, "image": {"<image_00>": "a.png", "<image_01>": "b.png"}},
        good | {"id": 3, "image": "/elsewhere/img/00000.png"},
        good | {"id": 4, "conversations": None},
        good | {"id": 5, "conversations": good["conversations"][:1]},
        spoken(choice, "(C) maybe", id=6),
        spoken("<image>\n", "no", id=7),
        spoken("<image>\nIs there a fracture?", "No", id=8),
    ]
    trees.put(root / "client_0.json", json.dumps(records))
    data = load("fedmllm-prepared", root)
    assert reasons(data) == [
        "entry 2: image is an object; only records with one image can be used",
        "entry 3: image '/elsewhere/img/00000.png' is an absolute path",
        "entry 4: conversations is not a list of objects",
        'entry 5: conversations is not one turn of "user" and one of "assistant"',
        "entry 6: the answer '(C) maybe' is not among the options".replace("(C) ", ""),
        "entry 7: the question is empty",
    ]
    assert (by_id(data)["8"].question, by_id(data)["8"].task) == ("Is there a fracture?", "vqa")


@pytest.mark.parametrize(
    "clause",
    ["", " based on the text", " based on the image", " based on the text and image", ", whatever there is"],
)
@pytest.mark.parametrize("text", ["", "a line\n", "a line\nOptions:\nand more?\n"])
def test_a_prepared_question_is_the_same_with_and_without_a_phrase_about_modalities(clause, text):
    content = f"Choose{clause}.\n{text}What is it{clause}?\nOptions:\n(A) one\n(B) two (2)\n(C) 三\nReply: "
    assert parse_user_turn(content) == ("What is it?", text.strip() or None, ("one", "two (2)", "三"))


def test_the_limit_and_the_cap_hold_for_published_data_sets(roots, load):
    data = load("crisis-mmd", roots("crisis-mmd"), limit=2)
    assert sorted(example.answer for example in data.train) == ["not_humanitarian", "vehicle_damage"]
    assert len(data.test) == 4


def test_a_file_without_a_list_is_refused(trees, roots, load):
    root = roots("vqa-rad")
    path = trees.put(root / "VQA_RAD Dataset Public.json", '{"qid": 1}')
    with pytest.raises(
        UserError, match=re.escape(f"{path}: a .json file holds a list of entries, not an object")
    ):
        load("vqa-rad", root)


def test_the_folder_of_images_may_be_a_link_but_an_image_must_not_lead_out_of_it(
    roots, load, encoded, tmp_path
):
    root = roots("hateful-memes")
    (root / "img").rename(tmp_path / "elsewhere")
    (root / "img").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "outside.png").write_bytes(encoded(1))
    (tmp_path / "elsewhere/00001.png").unlink()
    (tmp_path / "elsewhere/00001.png").symlink_to(tmp_path / "outside.png")
    data = load("hateful-memes", root)
    (reason,) = reasons(data)
    assert reason.startswith("image '00001.png' leaves the folder through a link;")
    assert len(data.train) == 5


def test_images_are_searched_in_every_existing_folder(roots, load):
    root = roots("vqa-rad")
    (root / "images").mkdir()
    (root / "VQA_RAD Image Folder/synpic0.jpg").rename(root / "images/synpic0.jpg")
    data = load("vqa-rad", root)
    assert data.rejected == ()
    assert {example.image.path.parent.name for example in data.train} == {"images", "VQA_RAD Image Folder"}
