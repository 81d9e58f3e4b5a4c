"""Compute digests of the code of plug-ins: of the defining file, and of the files of its own that it imports."""

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
"""An identifier of this process, for code without a known source, which may differ in another process."""

UNKNOWN = f"without source, process {PROCESS}"
"""The digest of such code."""


def source_digest(value: Callable[..., Any]) -> str:
    """Return the SHA-256 of the file that defines a function, and of the files of its own that it imports.

    A file's own imports are modules of the same package, or modules next to a file that is in no package. Without such a
    file, or for a closure, whose values are in no file, the digest is valid in this process only.
    """
    plain = inspect.unwrap(value)
    try:
        file = Path(inspect.getsourcefile(plain) or "").resolve(strict=True)
    except (OSError, TypeError, ValueError):
        return UNKNOWN
    return file_code_digest(file) if file.is_file() and not getattr(plain, "__closure__", None) else UNKNOWN


def file_code_digest(file: Path) -> str:
    """Return the SHA-256 of a Python file and of the files of its own that it imports; see `source_digest`.

    Raises:
        OSError: The file cannot be read.
    """
    sha = hashlib.sha256()
    for name, text in sorted(_imported(file).items()):
        sha.update(f"{name}\n{len(text)}\n".encode() + text)
    return sha.hexdigest()


def _imported(file: Path) -> dict[str, bytes]:
    """Return path from the file's folder → content, for a Python file and all files of its own that it imports."""
    contents: dict[str, bytes] = {}
    waiting, top = [file], _top(file)
    while waiting:
        current = waiting.pop()
        name = os.path.relpath(current, file.parent)
        if name not in contents:
            contents[name] = current.read_bytes()
            waiting += _own_imports(current, contents[name], top)
    return contents


def _top(file: Path) -> Path:
    """Return the folder that contains the outermost package of a file, or the file's folder if it is in no package."""
    top = file.parent
    while (top / "__init__.py").is_file():
        top = top.parent
    return top


def _own_imports(file: Path, content: bytes, top: Path) -> Iterator[Path]:
    """Yield the files that a file imports from the folder `top`, or from its own folder."""
    package = file.relative_to(_top(file)).parts[0]
    try:
        nodes = [*ast.walk(ast.parse(content))]
    except (SyntaxError, ValueError):  # Python cannot import it either
        return
    for node in nodes:
        starts = [top, _top(file), file.parent]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            names = [source, *(f"{source}.{alias.name}".strip(".") for alias in node.names)]
            starts = [*file.parents][node.level - 1 : node.level] if node.level else starts
        else:
            continue
        for name in names:
            # Packages next to an installed one belong to others.
            own = (
                start
                for start in dict.fromkeys(starts)
                if start.name not in LIBRARIES or name.split(".")[0] == package
            )
            for start in own:
                parts = name.split(".") if name else []
                modules = (start.joinpath(*parts[:length]) for length in range(len(parts) + 1))
                for module in modules:
                    candidates = (module / "__init__.py", module.parent / f"{module.name}.py")
                    yield from (candidate for candidate in candidates if candidate.is_file())
