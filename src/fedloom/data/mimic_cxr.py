"""MIMIC-CXR: write the report of a chest X-ray.

The folder holds `mimic-cxr-2.0.0-split.csv` (or .csv.gz) with the columns dicom_id, study_id, subject_id and
split, the pictures as `files/p10/p10000032/s50414267/DICOM_ID.jpg`, and the reports as
`files/p10/p10000032/s50414267.txt`, or the same below `mimic-cxr-reports`. The first listed picture of each
study is used. The answer is the section FINDINGS of the report, else IMPRESSION, on one line; a report with
neither is set aside, which may take more than the default of `data.max_rejected`.

Reference: A. E. W. Johnson et al., "MIMIC-CXR-JPG, a large publicly available database of labeled chest
radiographs", arXiv 1901.07042v5; used by FedVLMBench (arXiv 2506.09638), which uses 8,000 and does not say
which.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedloom.data.fields import Bad, needed, one_of
from fedloom.data.records import Raw
from fedloom.data.source import Count, Reading, Source, Table
from fedloom.types import Example, Rejected, UserError

QUESTION = "Describe the findings in the chest X-ray."
PARTS = {"train": "train", "validate": "dev", "test": "test"}
_SECTION = re.compile(r"^[ \t]*([A-Z][A-Z ,/&()-]*):", re.MULTILINE)


def part_of(row: dict[str, Any]) -> str:
    """Return the part a picture belongs to; see `fedloom.data.source.PartOf`."""
    return PARTS[one_of(row, "split", tuple(PARTS))]


def read(path: Path, name: str) -> Iterator[Raw | Rejected]:
    """Yield the first row of every study, with the text of its report, None if there is no file.

    Raises:
        UserError: The file is no CSV text.
    """
    studies: set[str] = set()
    folders = (path.parent / "files", path.parent / "mimic-cxr-reports/files")
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            rows = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
            for row in rows:
                study = row.get("study_id") or f"line {rows.line_num}"
                if study not in studies:
                    studies.add(study)
                    yield Raw(name, "line", rows.line_num, dict(row) | {"report": _report(row, folders)})
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable CSV file ({error})") from None


def _report(row: dict[str, Any], folders: tuple[Path, ...]) -> str | None:
    try:
        place = f"{_patient(row)}/s{_number(row, 'study_id')}.txt"
    except Bad:
        return None  # `make` tells
    found = [folder / place for folder in folders if (folder / place).is_file()]
    return found[0].read_text(encoding="utf-8", errors="replace") if found else None


def _number(row: dict[str, Any], key: str) -> str:
    value = needed(row, key)
    if not value.isdecimal():
        raise Bad(f"{key} is {value!r}, not a number")
    return value


def _patient(row: dict[str, Any]) -> str:
    subject = _number(row, "subject_id")
    return f"p{subject[:2]}/p{subject}"


def make(raw: Raw, reading: Reading) -> Example:
    """Make an example of a study; see `fedloom.data.source.Make`."""
    row = raw.values
    study = _number(row, "study_id")
    folder = f"{_patient(row)}/s{study}"
    if row["report"] is None:
        raise Bad(f"the report {folder}.txt is missing")
    found = sections(row["report"])
    answer = found.get("FINDINGS") or found.get("IMPRESSION")
    if not answer:
        raise Bad(f"the report {folder}.txt has neither findings nor impression")
    return Example(
        id=study,
        question=QUESTION,
        answer=answer,
        image=reading.picture(f"{folder}/{needed(row, 'dicom_id')}.jpg"),
        task="caption",
    )


def sections(report: str) -> dict[str, str]:
    """Divide a report at its headings in capitals; each section is on one line.

    Example:
        >>> sections("EXAMINATION: CHEST\\n FINDINGS:\\n\\n Lungs are\\n clear.\\n\\n IMPRESSION: Normal.")
        {'EXAMINATION': 'CHEST', 'FINDINGS': 'Lungs are clear.', 'IMPRESSION': 'Normal.'}
    """
    _, *parts = _SECTION.split(report)
    return {name: " ".join(words.split()) for name, words in zip(parts[::2], parts[1::2], strict=True)}


_FILES = ("mimic-cxr-2.0.0-split.csv", "mimic-cxr-2.0.0-split.csv.gz")

MIMIC_CXR = Source(
    name="mimic-cxr",
    title="MIMIC-CXR: write the report of a chest X-ray.",
    home=(
        "Become a credentialed user at https://physionet.org and get MIMIC-CXR-JPG 2.1.0 and, from MIMIC-CXR "
        "2.1.0, mimic-cxr-reports.zip; unpack the reports inside the folder of the first. The root is the "
        "folder with mimic-cxr-2.0.0-split.csv and files."
    ),
    tables=(Table(part_of, _FILES, make, ("files",), read=read),),
    counts=(Count("train", 222758), Count("dev", 1808), Count("test", 3269)),
)
