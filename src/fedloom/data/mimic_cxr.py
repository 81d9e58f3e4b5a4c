"""MIMIC-CXR: write the report of a chest X-ray.

The folder holds `mimic-cxr-2.0.0-split.csv` (or .csv.gz) with the columns dicom_id, study_id, subject_id and
split, the images as `files/p10/p10000032/s50414267/DICOM_ID.jpg`, and the reports as
`files/p10/p10000032/s50414267.txt`, or the same below `mimic-cxr-reports`. The image of a study is the first
listed one that can be used. The answer is the findings of the report, else the impression, else the last section
(or a report without headings) from its second paragraph on, in one line. A report with none of them is skipped, which
may require a `data.max_rejected` above its default.

Sections are recognized as by the owners' own parser: FINDINGS AND IMPRESSION and CONCLUSION are impressions, a
heading that only names the views (CHEST, TWO VIEWS) begins the findings, and words may have a wrong letter.
Unlike there, a heading that does not name a section of a report (PICC, LUNGS, HEART) is part of the text, and so is a
heading that names views inside the findings, which therefore stay complete.

Reference: A. E. W. Johnson et al., "MIMIC-CXR-JPG, a large publicly available database of labeled chest
radiographs", arXiv 1901.07042v5, and the owners' section parser (https://github.com/MIT-LCP/mimic-cxr); used by FedVLMBench (arXiv
2506.09638), which takes 8,000 and does not say which.
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
from fedloom.data.published_data_set import Count, RecordContext, Source, Table
from fedloom.data.record_fields import InvalidRecord, one_of, required
from fedloom.data.record_files import Record
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
    """Return the part that an image belongs to; see `fedloom.data.published_data_set.PartOf`."""
    return PARTS[one_of(row, "split", tuple(PARTS))]


def read(path: Path, name: str) -> Iterator[Record | Rejected]:
    """Yield the first row of every study, with all its images and the text of its report, or why there is none.

    Raises:
        UserError: The file is not readable CSV text.
    """
    studies: dict[str, tuple[int, dict[str, Any], list[str]]] = {}
    line = 0
    folders = (path.parent / "files", path.parent / "mimic-cxr-reports/files")
    try:
        with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
            rows = csv.DictReader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""), strict=True)
            for row in rows:
                line = rows.line_num
                study = row.get("study_id") or f"line {line}"
                _, _, images = studies.setdefault(study, (line, dict(row), []))
                images.append(row.get("dicom_id") or "")
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        where = (
            f", line {line + 1}" if isinstance(error, csv.Error) else ""
        )  # bytes are read far ahead of rows
        raise UserError(f"{path}{where}: not a readable CSV file ({error})") from None
    for number, row, images in studies.values():
        yield Record(name, "line", number, row | {"images": images, "report": _report(row, folders)})


def _report(row: dict[str, Any], folders: tuple[Path, ...]) -> str | InvalidRecord:
    """Return the text of a study's report, or why there is none."""
    try:
        name = f"{_patient(row)}/s{_number(row, 'study_id')}.txt"
    except InvalidRecord as reason:
        return reason
    try:
        path = next((folder / name for folder in folders if (folder / name).is_file()), None)
        if path is None:
            return InvalidRecord(f"the report {name} is missing")
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return InvalidRecord(f"the report {name} is unreadable ({error.strerror})")


def _number(row: dict[str, Any], key: str) -> str:
    value = required(row, key)
    if not value.isdecimal():
        raise InvalidRecord(f"{key} is {value!r}, not a number")
    return value


def _patient(row: dict[str, Any]) -> str:
    subject = _number(row, "subject_id")
    return f"p{subject[:2]}/p{subject}"


def make(record: Record, context: RecordContext) -> Example:
    """Make an example of a study; see `fedloom.data.published_data_set.Make`."""
    row = record.values
    study = _number(row, "study_id")
    folder = f"{_patient(row)}/s{study}"
    if isinstance(row["report"], InvalidRecord):
        raise row["report"]
    answer = findings_text(row["report"])
    if not answer:
        raise InvalidRecord(f"the report {folder}.txt has neither findings nor impression")
    image, *spare = _images(row, folder, context)
    return Example(
        id=study,
        question=QUESTION,
        answer=answer,
        image=image,
        task="caption",
        spare=tuple(spare),
    )


def _images(row: dict[str, Any], folder: str, context: RecordContext) -> list[FileImage]:
    """Return the usable images of a study; if there is none, raise the error of the first image."""
    images: list[FileImage] = []
    reasons: list[InvalidRecord] = []
    for name in row["images"]:
        try:
            images.append(context.find_image(f"{folder}/{required({'dicom_id': name}, 'dicom_id')}.jpg"))
        except InvalidRecord as reason:
            reasons.append(reason)
    if not images:
        raise reasons[0]
    return images


def findings_text(report: str) -> str | None:
    """Return the findings of a report in one line, else the impression, else the end of the last section; else None."""
    by_name = sections(report)
    if answer := by_name.get("findings") or by_name.get("impression"):
        return answer
    *_, (_, last) = _parts(report) or [("", report)]
    paragraphs = re.split(r"\n[ \t]*\n", last.strip())[1:]
    return " ".join(" ".join(paragraphs).split()) or None


def sections(report: str) -> dict[str, str]:
    """Split a report at its headings in capitals into sections of one line each.

    The keys are "findings", "impression", and the headings of other sections. Of several sections with one key the last
    nonempty one is kept.

    Example:
        >>> sections("EXAMINATION: CHEST\\n FINDINGS:\\n\\n Lungs are\\n clear.\\n PICC: in place.\\n\\n IMPRESSION: Normal.")
        {'EXAMINATION': 'CHEST', 'findings': 'Lungs are clear. PICC: in place.', 'impression': 'Normal.'}
    """
    by_name: dict[str, str] = {}
    for name, words in _parts(report):
        line = " ".join(words.split())
        if line or name not in by_name:
            by_name[name] = line
    return by_name


def _parts(report: str) -> list[tuple[str, str]]:
    """Return the name and the text of each section of a report, in order."""
    _, *pieces = _SECTION.split(report)
    parts: list[tuple[str, str]] = []
    for heading, words in zip(pieces[::2], pieces[1::2], strict=True):
        name = _name(" ".join(heading.split()), parts[-1][0] if parts else "")
        if name is not None:
            parts.append((name, words))
        elif parts:
            parts[-1] = parts[-1][0], f"{parts[-1][1]}{heading}:{words}"
    return parts


def _name(heading: str, current: str) -> str | None:
    """Return the name of the section that a heading begins, or None if it belongs to the text of the current section."""
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
