"""Digests of the code of plug-ins: the file that defines something, and what that file imports of its own."""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

LIBRARIES = ("site-packages", "dist-packages")
"""Folders of installed packages."""

PROCESS = uuid4().hex
"""Names this process, for code without a known source, which may be another one in another process."""

UNKNOWN = f"without source, process {PROCESS}"
"""The digest of such code."""


def source_digest(value: Callable[..., Any]) -> str:
    """Return the SHA-256 of the file that defines a function and of what that imports of its own.

    A file's own imports are modules of the same package, and those beside a file that is in no package. Where there is no
    such file, or the function is a closure, whose values no file holds, the digest is valid in this process only.
    """
    plain = inspect.unwrap(value)
    try:
        file = Path(inspect.getsourcefile(plain) or "").resolve(strict=True)
    except (OSError, TypeError, ValueError):
        return UNKNOWN
    return file_code_digest(file) if file.is_file() and not getattr(plain, "__closure__", None) else UNKNOWN


def file_code_digest(file: Path) -> str:
    """Return the SHA-256 of a Python file and of what it imports of its own; see `source_digest`.

    Raises:
        OSError: The file cannot be read.
    """
    sha = hashlib.sha256()
    for name, text in sorted(_imported(file).items()):
        sha.update(f"{name}\n{len(text)}\n".encode() + text)
    return sha.hexdigest()


def _imported(file: Path) -> dict[str, bytes]:
    """Return a Python file and all of its own that it imports: path from the file's folder → content."""
    found: dict[str, bytes] = {}
    waiting, top = [file], _top(file)
    while waiting:
        one = waiting.pop()
        name = os.path.relpath(one, file.parent)
        if name not in found:
            found[name] = one.read_bytes()
            waiting += _own_imports(one, found[name], top)
    return found


def _top(file: Path) -> Path:
    """Return the folder that the outermost package of a file lies in; the file's folder, if it is in none."""
    top = file.parent
    while (top / "__init__.py").is_file():
        top = top.parent
    return top


def _own_imports(file: Path, content: bytes, top: Path) -> Iterator[Path]:
    """Yield the files that a file imports, if they are found from a folder, or from the file's own."""
    package = file.relative_to(_top(file)).parts[0]
    try:
        nodes = [*ast.walk(ast.parse(content))]
    except (SyntaxError, ValueError):  # nobody can import it
        return
    for node in nodes:
        starts = [top, _top(file), file.parent]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [module, *(f"{module}.{alias.name}".strip(".") for alias in node.names)]
            starts = [*file.parents][node.level - 1 : node.level] if node.level else starts
        else:
            continue
        for name in names:
            # Beside an installed package lie other people's.
            own = (
                start
                for start in dict.fromkeys(starts)
                if start.name not in LIBRARIES or name.split(".")[0] == package
            )
            for start in own:
                parts = name.split(".") if name else []
                places = (start.joinpath(*parts[:length]) for length in range(len(parts) + 1))
                for place in places:
                    both = (place / "__init__.py", place.parent / f"{place.name}.py")
                    yield from (one for one in both if one.is_file())
