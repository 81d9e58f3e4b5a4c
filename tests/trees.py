"""Small folders in exactly the layouts in which data sets are bundled, with generated content.

Each writer fills a root and takes what to change; `encoded` turns a number into a picture's bytes.
"""

import json
from pathlib import Path

COLUMNS = (
    "event_name tweet_id image_id tweet_text image label label_text label_image label_text_image".split()
)


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def as_lines(records) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def meme(number, **changes):
    return {
        "id": number,
        "img": f"img/{number:05}.png",
        "label": number % 2,
        "text": f"text {number}",
    } | changes


def hateful_memes(root, encoded, train=6, dev=2, test=4):
    numbers = {"train": range(train), "dev_seen": range(100, 100 + dev), "test_seen": range(200, 200 + test)}
    for part, its in numbers.items():
        put(root / f"{part}.jsonl", as_lines(meme(number) for number in its))
        for number in its:
            put(root / f"img/{number:05}.png", encoded(number))
    return root


def tweet(number, label="not_humanitarian", **changes):
    row = dict.fromkeys(COLUMNS, "x") | {
        "event_name": ("hurricane_maria", "iraq_iran_earthquake")[number % 2],
        "tweet_id": f"90{number}",
        "image_id": f"90{number}_0",
        "tweet_text": f"tweet {number} https://t.co/x{number}",
        "image": f"data_image/hurricane/10_9/90{number}_0.jpg",
        "label": "other_relevant_information",
        "label_image": label,
    }
    return row | changes


def as_tsv(rows, columns=COLUMNS, end="\n") -> str:
    return "".join(
        "\t".join(row[name] for name in columns) + end for row in [{name: name for name in columns}, *rows]
    )


def crisis_mmd(
    root, encoded, task="humanitarian", labels=("not_humanitarian", "vehicle_damage"), columns=COLUMNS
):
    for at, part in enumerate(("train", "dev", "test")):
        rows = [tweet(10 * at + n, labels[n % len(labels)]) for n in range(4)]
        if "label_image" not in columns:
            rows = [row | {"label": row["label_image"]} for row in rows]
        put(root / f"crisismmd_datasplit_all/task_{task}_text_img_{part}.tsv", as_tsv(rows, columns))
        for n, row in enumerate(rows):
            put(root / row["image"], encoded(10 * at + n, "JPEG"))
    return root


def radiology(number, phrase="freeform", **changes):
    return {
        "qid": number,
        "image_name": f"synpic{number % 3}.jpg",
        "image_organ": ("HEAD", "CHEST", "ABD")[number % 3],
        "question": f"Is there a finding {number}?",
        "answer": ("Yes", "no", " YES")[number % 3],
        "answer_type": ("CLOSED", "OPEN")[number % 2],
        "question_type": "PRES",
        "phrase_type": phrase,
    } | changes


def vqa_rad(root, encoded, folder="VQA_RAD Image Folder"):
    phrases = ("freeform", "para", "freeform", "para", "test_freeform", "test_para")
    entries = [radiology(number, phrase) for number, phrase in enumerate(phrases)]
    put(root / "VQA_RAD Dataset Public.json", json.dumps(entries))
    for number in range(3):
        put(root / folder / f"synpic{number}.jpg", encoded(number, "JPEG"))
    return root


def flashcards(root, cards=8):
    entries = [
        {"instruction": "Answer truthfully", "input": f"What is {n}?", "output": f"It is {n}."}
        for n in range(cards)
    ]
    put(root / "medical_meadow_wikidoc_medical_flashcards.json", json.dumps(entries))
    return root


def slake_entry(number, language, **changes):
    question, answer = {"en": ("Is the liver healthy?", "Yes"), "zh": ("肝脏健康吗?", "健康")}[language]
    return {
        "img_id": number,
        "img_name": f"xmlab{number}/source.jpg",
        "question": question,
        "answer": answer,
        "q_lang": language,
        "location": "Abdomen",
        "modality": ("CT", "MRI", "X-Ray")[number % 3],
        "answer_type": ("OPEN", "CLOSED")[number % 2],
        "base_type": "vqa",
        "content_type": "Organ",
        "triple": ["vhead", "_", "_"],
        "qid": number,
    } | changes


def slake(root, encoded):
    for at, part in enumerate(("train", "validate", "test")):
        numbers = range(1000 * at, 1000 * at + 6)
        entries = [slake_entry(number, ("en", "zh")[number // 3 % 2]) for number in numbers]
        put(root / f"{part}.json", json.dumps(entries, ensure_ascii=False))
        for number in numbers:
            put(root / f"imgs/xmlab{number}/source.jpg", encoded(number, "JPEG"))
    return root


def medical(root, encoded):
    vqa_rad(root, encoded, "images")
    flashcards(root)
    slake(root / "Slake1.0", encoded)
    return root


def prepared_record(number, *, image=True, text=True):
    words = f"text {number}\nover two lines\n" if text else ""
    evidence = " and ".join([*["text"] * text, *["image"] * image])
    based = f" based on the {evidence}" if evidence else ""
    mark = "<image>\n" if image else ""
    content = (
        f"{mark}Choose the best answer{based}.\n{words}Is the content hateful{based}?\n"
        "Options:\n(A) not-hateful\n(B) hateful\nAnswer with the letter: "
    )
    return {
        "id": number,
        "image": f"/home/someone/data/hateful_memes/raw_data/img/{number:05}.png" if image else None,
        "conversations": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": ("(A) not-hateful", "(B) hateful")[number % 2]},
        ],
    }


def prepared(root, encoded):
    """Write data/hateful_memes and return the folder of clients inside it."""
    home = root / "data/hateful_memes"
    clients = home / "minicpmv_data/modality-missing/mrate-0.3/partition-alpha0.5-clt10"
    for client in (0, 1, 10):
        numbers = range(100 * client, 100 * client + 4)
        records = [prepared_record(number, image=number % 4 != 1, text=number % 4 != 2) for number in numbers]
        put(clients / f"client_{client}.json", json.dumps(records, indent=4))
        for number in numbers:
            put(home / f"raw_data/img/{number:05}.png", encoded(number))
    return clients


def talk(question, answer):
    return [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]


SAID = (
    ("What is it?", "The answer to the question is liver."),
    ("Describe it.", "The caption is A cat sits on a mat."),
    ("Where is it?", "The coordinates are [1.0, 2.0, 4.0, 3.5]"),
    ("Which class?", "The classification is dog."),
)


def fedvlmbench_prepared(root, encoded):
    """Write a data set and return its folder of clients."""
    numbers = iter(range(100))
    for name in ("train/client_0", "train/client_1", "test/test"):
        records = []
        for question, answer in SAID:
            number = next(numbers)
            put(root / f"images/a/{number}.png", encoded(number))
            records.append({"id": 7, "image": f"a/{number}.png", "conversations": talk(question, answer)})
        put(root / f"clients/{name}.json", json.dumps(records))
    return root / "clients"


def fgvc_aircraft(root, encoded):
    classes = {"variant": ["707-320", "A300B4", "DH-82"], "family": ["A300", "Boeing 707"]}
    classes["manufacturer"] = ["Airbus", "Boeing", "de Havilland"]
    plural = {"variant": "variants", "family": "families", "manufacturer": "manufacturers"}
    for level, names in classes.items():
        put(root / f"data/{plural[level]}.txt", "\n".join(names) + "\n")
        for at, part in enumerate(("train", "val", "test")):
            lines = [f"{100 * at + n:07} {names[n % len(names)]}\n" for n in range(4)]
            put(root / f"data/images_{level}_{part}.txt", "".join(lines))
    for number in (100 * at + n for at in range(3) for n in range(4)):
        put(root / f"data/images/{number:07}.jpg", encoded(number, "JPEG"))


def problem(number, split, **changes):
    return {
        "question": f"Which is {number}?",
        "choices": ["this one", "that one", "neither"],
        "answer": number % 3,
        "hint": "Look." if number % 2 else "",
        "image": None if number % 4 == 3 else "image.png",
        "task": "closed choice",
        "grade": "grade4",
        "subject": "natural science",
        "topic": ("biology", "physics")[number % 2],
        "category": "c",
        "skill": "s",
        "lecture": "",
        "solution": "",
        "split": split,
    } | changes


def science_qa(root, encoded):
    splits = {number: ("train", "val", "test")[number // 4 % 3] for number in range(1, 25)}
    problems = {str(number): problem(number, split) for number, split in splits.items()}
    put(root / "problems.json", json.dumps(problems))
    captions = {pid: f"a drawing of {pid}" for pid, one in problems.items() if one["image"]}
    put(root / "captions.json", json.dumps({"captions": captions}))
    for pid in captions:
        put(root / f"images/{splits[int(pid)]}/{pid}/image.png", encoded(int(pid)))


def photograph(number, split):
    return f"COCO_{split}2014_{number:012}.jpg"


def coco_captions(root, encoded):
    for at, split in enumerate(("train", "val")):
        numbers = [10 * at + n for n in range(3)]
        images = [{"id": n, "file_name": photograph(n, split), "height": 12, "width": 13} for n in numbers]
        captions = [
            {"id": 100 * n + which, "image_id": n, "caption": f"caption {which} of {n}"}
            for which in range(2)
            for n in numbers
        ]
        put(
            root / f"annotations/captions_{split}2014.json",
            json.dumps({"info": {}, "images": images, "annotations": captions}),
        )
        for n in numbers:
            put(root / f"{split}2014/{photograph(n, split)}", encoded(n, "JPEG"))


def coco_qa(root, encoded):
    for at, part in enumerate(("train", "test")):
        numbers = [10 * at + n for n in range(4)]
        columns = {
            "questions": [f"what is in {n} ?" for n in numbers],
            "answers": ["cat", "two", "red", "kitchen"],
            "types": ["0", "1", "2", "3"],
            "img_ids": [str(n) for n in numbers],
        }
        for name, lines in columns.items():
            put(root / f"{part}/{name}.txt", "".join(f"{line}\n" for line in lines))
        for n in numbers:
            split = ("train", "val")[n % 2]
            put(root / f"{split}2014/{photograph(n, split)}", encoded(n, "JPEG"))


def reference(number, split, **changes):
    sentences = [
        {"sent_id": 2 * number + n, "sent": f"the thing {n}", "raw": "", "tokens": []} for n in range(2)
    ]
    return {
        "ref_id": number,
        "ann_id": 50 + number,
        "image_id": number,
        "file_name": f"COCO_train2014_{number:012}_7.jpg",
        "category_id": 1,
        "split": split,
        "sentences": sentences,
        "sent_ids": [],
    } | changes


def refcoco(root, encoded, boxes=None):
    splits = ("train", "train", "val", "testA", "testB")
    put(root / "refs(unc).json", json.dumps([reference(n, split) for n, split in enumerate(splits)]))
    images = [{"id": n, "file_name": photograph(n, "train")} for n in range(len(splits))]
    annotations = [
        {"id": 50 + n, "bbox": (boxes or {}).get(n, [1.5, 2, 5, 6.25])} for n in range(len(splits))
    ]
    put(root / "instances.json", json.dumps({"images": images, "annotations": annotations}))
    for n in range(len(splits)):
        put(root / f"train2014/{photograph(n, 'train')}", encoded(n, "JPEG"))


REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 FINDINGS:

 The lungs of {} are clear.  There is
 no effusion.

 IMPRESSION:

 No acute process.
"""


def mimic_cxr(root, encoded):
    rows = ["dicom_id,study_id,subject_id,split"]
    for number, split in enumerate(("train", "train", "train", "validate", "test")):
        subject, study = 10000000 + number, 50000000 + number
        rows += [f"d{number}-{view},{study},{subject},{split}" for view in range(2)]
        put(root / f"files/p10/p{subject}/s{study}.txt", REPORT.format(number))
        put(root / f"files/p10/p{subject}/s{study}/d{number}-0.jpg", encoded(number, "JPEG"))
    put(root / "mimic-cxr-2.0.0-split.csv", "\n".join(rows) + "\n")


def nature(root, encoded):
    coco_captions(root, encoded)
    for name, writer in (("refcoco", refcoco), ("cocoqa", coco_qa)):
        writer(root / name, encoded)
        for split in ("train2014", "val2014"):
            for photo in sorted((root / name / split).glob("*.jpg")):
                put(root / split / photo.name, photo.read_bytes())
                photo.unlink()


def radiology_tasks(root, encoded):
    for name, writer in (("slake", slake), ("vqa-rad", vqa_rad), ("mimic-cxr", mimic_cxr)):
        writer(root / name, encoded)


WRITERS = {"fedmllm-prepared": prepared, "radiology": radiology_tasks}


def write(name, root, encoded):
    """Write the data set of a name below `root` and return the folder to load."""
    if name == "flashcards":
        return flashcards(root)
    writer = WRITERS.get(name) or globals()[name.replace("-", "_")]
    return writer(root, encoded) or root
