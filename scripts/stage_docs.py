"""Write the pages of the docs site to build/docs, from docs/, its notebooks and the pages that stand elsewhere in the repository.

The package's sources, from which the site takes docstrings, go to build/src.

Links between pages work in the repository as they are. On the site, all pages stand in one folder, so links that leave
docs/ are rewritten here, and other files that pages link to are copied.

Run it with `python scripts/stage_docs.py`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parent.parent
STAGE, SOURCES = ROOT / "build/docs", ROOT / "build/src"

ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "speed.md",
    "NOTICE": "notice.txt",
    "LICENSE": "license.txt",
    "CITATION.cff": "citation.txt",
}
"""File outside docs/ → its place on the site."""

LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")


def place_of(path: PurePosixPath) -> PurePosixPath:
    """Return where a file of the repository is on the site; a folder stands for its README."""
    if (ROOT / path).is_dir():
        path = next(one for name in ("README.md", "index.md") if (ROOT / (one := path / name)).exists())
    if str(path) in ELSEWHERE:
        return PurePosixPath(ELSEWHERE[str(path)])
    if path.is_relative_to("docs"):
        inside = path.relative_to("docs")
        return inside.with_suffix(".md") if inside.suffix == ".ipynb" else inside
    raise ValueError(f"{path} is not on the site; add it to ELSEWHERE in scripts/stage_docs.py")


def rewrite(text: str, page: PurePosixPath) -> str:
    """Return a page with the links that it needs on the site, and without the notes to the tests of its code.

    Args:
        text: The page as it is in the repository.
        page: Its path in the repository.

    Raises:
        ValueError: It links to a file that has no place on the site.
    """
    here = place_of(page).parent

    def link(match: re.Match[str]) -> str:
        target = match[2]
        if re.match(r"[a-z]+:", target):
            return match[0]
        there = place_of(PurePosixPath(os.path.normpath(page.parent / target)))
        return f"{match[1]}{os.path.relpath(there, here)}{match[3]}"

    return re.sub(r"^(```\w+) notest.*$", r"\1", LINK.sub(link, text), flags=re.MULTILINE)


def notebook_page(text: str, page: PurePosixPath) -> str:
    """Return a notebook as a page: its texts, and its cells of code as blocks."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
    shown = [source if kind == "markdown" else f"```python\n{source}\n```" for kind, source in cells]
    note = f"This page is the notebook `{page}` of the repository, without its output."
    return "\n\n".join([shown[0], note, *shown[1:]]) + "\n"


def pages() -> list[PurePosixPath]:
    """Return the paths of all files of the site in the repository."""
    docs = [path.relative_to(ROOT) for path in (ROOT / "docs").rglob("*") if path.is_file()]
    return sorted(map(PurePosixPath, [*docs, *(name for name in ELSEWHERE if (ROOT / name).exists())]))


def stage(folder: Path = STAGE) -> None:
    """Write all pages to a folder, which is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    for page in pages():
        there = folder / place_of(page)
        there.parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / page).read_text(encoding="utf-8") if page.suffix in (".md", ".ipynb") else None
        if text is not None:
            shown = notebook_page(text, page) if page.suffix == ".ipynb" else text
            there.write_text(rewrite(shown, page), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / page, there)


def stage_sources(folder: Path = SOURCES) -> None:
    """Copy the package to a folder, which is emptied first, with the heading under which the site's reader expects doctests."""
    shutil.rmtree(folder, ignore_errors=True)
    for file in sorted((ROOT / "src").rglob("*.py")):
        there = folder / file.relative_to(ROOT / "src")
        there.parent.mkdir(parents=True, exist_ok=True)
        text = file.read_text(encoding="utf-8")
        there.write_text(
            re.sub(r"^( +)Example:$", r"\1Examples:", text, flags=re.MULTILINE), encoding="utf-8"
        )


if __name__ == "__main__":
    stage()
    stage_sources()
