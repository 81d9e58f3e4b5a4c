"""Small folders in exactly the layouts in which data sets are shipped, with generated content.

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
