"""The license of a data set, as far as fedloom or the data's folder states it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from fedloom.data.record_files import Record, read_records
from fedloom.data.record_folder import record_files
from fedloom.system.errors import UserError

BUNDLED_LICENSES = {
    "emoji": "pictures of Noto Color Emoji: SIL Open Font License 1.1, artwork sources Apache-2.0; names and keywords: Unicode "
    "License",
    "emoji-styles": "Twemoji and EmojiOne 2: CC BY 4.0; FxEmoji: Apache-2.0; Fluent Emoji: MIT; OpenMoji, if it was added: "
    "CC BY-SA 4.0",
    "digits": "CC BY 4.0 (E. Alpaydin and C. Kaynak, UCI Machine Learning Repository)",
    "shapes": "Apache-2.0, as fedloom, which draws them",
}
"""Bundled data set → its licenses, as the file NOTICE of fedloom states them."""

FILES = ("LICENSE", "LICENCE", "COPYING")
"""Beginnings of the names of files with a license, in capitals."""

FIELD = "license"
"""The field of a record in the user's own folder that states its license."""


def license_of(name: str, root: Path | None) -> str:
    """Return a sentence about the license of a data set.

    Args:
        name: The data set; "folder" is the user's own, whose records may have a field `license`.
        root: Its folder, or None.
    """
    if name in BUNDLED_LICENSES:
        return f"{BUNDLED_LICENSES[name]} (see fedloom's NOTICE)"
    if root is None or not root.is_dir():
        return "its owners state it; fedloom does not know it"
    stated = [text for text in (_of_records(root) if name == "folder" else "", _of_file(root)) if text]
    return "; ".join(stated) or "none is stated in the folder; its owners decide what it may be used for"


def _of_file(root: Path) -> str:
    """Return the name and the first line of a license file."""
    for file in sorted(root.iterdir()):
        if file.is_file() and file.name.upper().startswith(FILES):
            with file.open(encoding="utf-8", errors="replace") as text:
                first = next((line.strip() for line in text if line.strip()), "empty")
            return f"file {file.name}: {first[:100]}"
    return ""


def _of_records(root: Path) -> str:
    """Return the licenses that records state, with numbers of records."""
    try:
        files = record_files(root, validation=True)
        records = [one for _, path in files for one in read_records(path) if isinstance(one, Record)]
    except UserError:  # it holds images by class, or the check itself reports what is wrong
        return ""
    counts = Counter(str(record.values.get(FIELD) or "") for record in records)
    if not any(counts):
        return ""
    texts = [f"{license[:100] or 'none'} ({count:,})" for license, count in counts.most_common()]
    return f"records state {', '.join(texts)}"
