"""Compute digests of the code of plug-ins: of the defining file, and of the files of its own that it imports."""

from __future__ import annotations

import ast
import hashlib
import inspect
import os
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

LIBRARIES = ("site-packages", "dist-packages")
"""Folders of installed packages."""

PLAIN = (bool, int, float, str, type(None))
"""Types of arguments that are equal in every process if they look the same."""


def source_digest(value: Callable[..., Any]) -> str:
    """Return the SHA-256 of the file that defines a function, and of the files of its own that it imports.

    A file's own imports are modules of the same package, or modules next to a file that is in no package. Defaults of
    arguments count as well, since one `def` can make functions with several. Without such a file, or for a function that
    holds other values (a closure, a method of an object), the digest is `value_digest`.
    """
    chain: list[Any] = [value]
    while hasattr(chain[-1], "__wrapped__"):
        chain.append(chain[-1].__wrapped__)
    try:
        file = Path(inspect.getsourcefile(chain[-1]) or "").resolve(strict=True)
        holds = any(_holds_values(function, chain) for function in chain)
    except (OSError, TypeError, ValueError):
        return value_digest(value)
    defaults = [one for function in chain for one in _defaults(function)]
    plain = all(isinstance(one, PLAIN) for default in defaults for one in _items(default))
    if not file.is_file() or holds or not plain:
        return value_digest(value)
    digest = file_code_digest(file)
    return hashlib.sha256(f"{digest} {defaults}".encode()).hexdigest() if defaults else digest


def _defaults(function: Any) -> list[Any]:
    """Return the defaults of a function's arguments."""
    return [
        *(getattr(function, "__defaults__", None) or ()),
        *(getattr(function, "__kwdefaults__", None) or {}).items(),
    ]


def _items(value: Any) -> Iterator[Any]:
    """Yield the values in a tuple, however deep, or the value itself."""
    if not isinstance(value, tuple):
        yield value
        return
    for one in cast("tuple[Any, ...]", value):
        yield from _items(one)


def _holds_values(function: Any, chain: Sequence[Any]) -> bool:
    """Return whether a function is a method of an object, or a closure over anything but the function that it wraps.

    Raises:
        ValueError: It is a closure over a variable without a value yet.
    """
    cells = getattr(function, "__closure__", None) or ()
    return inspect.ismethod(function) or any(
        all(cell.cell_contents is not one for one in chain) for cell in cells
    )


def value_digest(value: Any) -> str:
    """Return a digest of code whose source is not known: in this process that of the same value, and no other's anywhere."""
    try:
        number = _number(value)
    except TypeError:  # it cannot be hashed, and so cannot be recognized
        number = uuid4().hex
    return f"without source, value {number}"


@lru_cache(maxsize=1024)
def _number(value: Hashable) -> str:
    return uuid4().hex


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
