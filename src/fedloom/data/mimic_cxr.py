"""MIMIC-CXR: write the report of a chest X-ray.

The folder holds `mimic-cxr-2.0.0-split.csv` (or .csv.gz) with the columns dicom_id, study_id, subject_id and
split, the pictures as `files/p10/p10000032/s50414267/DICOM_ID.jpg`, and the reports as
`files/p10/p10000032/s50414267.txt`, or the same below `mimic-cxr-reports`. The first listed image of each
study that can be used is used. The answer is the findings of the report, else the impression, else the paragraphs
behind the first of its last section, or of the whole report where nothing is headed, on one line; a report with none of them is skipped, which may take more than the default of `data.max_rejected`.

Sections are found as the owners' own parser finds them: FINDINGS AND IMPRESSION and CONCLUSION are impressions, a
heading that only names the views (CHEST, TWO VIEWS) begins the findings, and words are recognized with a letter wrong.
Other than there, a heading that names no section of a report (PICC, LUNGS, HEART) is part of the text, and so is one
that names views inside the findings: findings stay whole.

Reference: A. E. W. Johnson et al., "MIMIC-CXR-JPG, a large publicly available database of labeled chest
radiographs", arXiv 1901.07042v5, and the owners' section parser (https://github.com/MIT-LCP/mimic-cxr); used by FedVLMBench (arXiv 2506.09638), which uses 8,000 and does not say
which.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedloom.data.images import FileImage
from fedloom.data.published_data_set import Count, Reading, Source, Table
from fedloom.data.record_fields import Bad, needed, one_of
from fedloom.data.record_files import Raw
from fedloom.system.errors import UserError
from fedloom.types import Example, Rejected

QUESTION = "Describe the findings in the chest X-ray."
PARTS = {"train": "train", "validate": "dev", "test": "test"}
_SECTION = re.compile(r"^[ \t]*([A-Z][A-Z ,/&()-]*):", re.MULTILINE)
_WORDS = {
    "FINDINGS": "findings",
    "FINDING": "findings",
    "IMPRESSION": "impression",
    "CONCLUSION": "impression",
}
_OTHERS = re.compile(
    r"HISTORY|INDICATIONS?\b|COMPARISONS?\b|TECHNIQUE|\bEXAM|REASON FOR|CLINICAL|NOTIFICATION|RECOMMENDATION|ADDENDUM"
    r"|COMMENTS?$|WET ?READ|^DATE|^PFI$|^STUDY|^PROCEDURE|^REFERENCE|^CONTRAST|^DOSE|^DLP|REPORT$|^ORDER|^ACCESSION"
)
_VIEWS = re.compile(
    r"CHEST|PORTABLE|RADIOGRAPH|X-RAY|\bVIEWS?\b|\b(?:PA|AP|FRONTAL)\b.*\bLAT|\bLATERAL AND\b|UPRIGHT|BONE WINDOW|RIBS"
)


def part_of(row: dict[str, Any]) -> str:
    """Return the part a picture belongs to; see `fedloom.data.published_data_set.PartOf`."""
    return PARTS[one_of(row, "split", tuple(PARTS))]


def read(path: Path, name: str) -> Iterator[Raw | Rejected]:
    """Yield the first row of every study, with all its images and the text of its report, None if there is no file.

    Raises:
        UserError: The file is no CSV text.
    """
    studies: dict[str, tuple[int, dict[str, Any], list[str]]] = {}
    folders = (path.parent / "files", path.parent / "mimic-cxr-reports/files")
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            rows = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
            for row in rows:
                study = row.get("study_id") or f"line {rows.line_num}"
                _, _, images = studies.setdefault(study, (rows.line_num, dict(row), []))
                images.append(row.get("dicom_id") or "")
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a readable CSV file ({error})") from None
    for line, row, images in studies.values():
        yield Raw(name, "line", line, row | {"images": images, "report": _report(row, folders)})


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
    """Make an example of a study; see `fedloom.data.published_data_set.Make`."""
    row = raw.values
    study = _number(row, "study_id")
    folder = f"{_patient(row)}/s{study}"
    if row["report"] is None:
        raise Bad(f"the report {folder}.txt is missing")
    answer = described(row["report"])
    if not answer:
        raise Bad(f"the report {folder}.txt has neither findings nor impression")
    image, *spare = _images(row, folder, reading)
    return Example(
        id=study,
        question=QUESTION,
        answer=answer,
        image=image,
        task="caption",
        spare=tuple(spare),
    )


def _images(row: dict[str, Any], folder: str, reading: Reading) -> list[FileImage]:
    """Return the usable images of a study, at least one; without one, the error is that of the first image."""
    found: list[FileImage] = []
    reasons: list[Bad] = []
    for name in row["images"]:
        try:
            found.append(reading.picture(f"{folder}/{needed({'dicom_id': name}, 'dicom_id')}.jpg"))
        except Bad as bad:
            reasons.append(bad)
    if not found:
        raise reasons[0]
    return found


def described(report: str) -> str | None:
    """Return what a report says of its images, on one line: findings, else impression, else the last paragraph."""
    found = sections(report)
    if answer := found.get("findings") or found.get("impression"):
        return answer
    *_, (_, last) = _parts(report) or [("", report)]
    paragraphs = re.split(r"\n[ \t]*\n", last.strip())[1:]
    return " ".join(" ".join(paragraphs).split()) or None


def sections(report: str) -> dict[str, str]:
    """Divide a report at its headings in capitals; each section is on one line, under "findings" or "impression".

    Sections of other names stand under their own. Of several of one name the last that says anything counts.

    Example:
        >>> sections("EXAMINATION: CHEST\\n FINDINGS:\\n\\n Lungs are\\n clear.\\n PICC: in place.\\n\\n IMPRESSION: Normal.")
        {'EXAMINATION': 'CHEST', 'findings': 'Lungs are clear. PICC: in place.', 'impression': 'Normal.'}
    """
    found: dict[str, str] = {}
    for name, words in _parts(report):
        said = " ".join(words.split())
        if said or name not in found:
            found[name] = said
    return found


def _parts(report: str) -> list[tuple[str, str]]:
    """Return the sections of a report in order, each with its name and text."""
    _, *pieces = _SECTION.split(report)
    found: list[tuple[str, str]] = []
    for heading, words in zip(pieces[::2], pieces[1::2], strict=True):
        name = _name(" ".join(heading.split()), found[-1][0] if found else "")
        if name is not None:
            found.append((name, words))
        elif found:
            found[-1] = found[-1][0], f"{found[-1][1]}{heading}:{words}"
    return found


def _name(heading: str, current: str) -> str | None:
    """Return the section that a heading begins, or None for one that belongs to the text of the current section."""
    close = difflib.get_close_matches(heading, [*_WORDS, "INDICATION", "COMPARISON", "EXAMINATION"], 1, 0.85)
    whole = close[0] if close else heading
    for word in ("IMPRESSION", "CONCLUSION", "FINDING"):
        if word in whole:
            return _WORDS[word]
    if whole != heading or _OTHERS.search(heading):
        return heading
    return "findings" if current != "findings" and _VIEWS.search(heading) else None


_FILES = ("mimic-cxr-2.0.0-split.csv", "mimic-cxr-2.0.0-split.csv.gz")

MIMIC_CXR = Source(
    name="mimic-cxr",
    title="MIMIC-CXR: write the report of a chest X-ray.",
    home=(
        "Become a credentialed user at https://physionet.org and get MIMIC-CXR-JPG 2.1.0 and, from MIMIC-CXR "
        "2.1.0, mimic-cxr-reports.zip; unpack the reports inside the folder of the first. The root is the "
        "folder with mimic-cxr-2.0.0-split.csv and files."
    ),
    tables=(Table(part_of, _FILES, make, ("files",), read=read, dev=True),),
    counts=(Count("train", 222758), Count("dev", 1808), Count("test", 3269)),
)
