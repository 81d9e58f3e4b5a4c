"""Import a plug-in, a Python file, by its path, so that no other code can import it by name."""

from __future__ import annotations

import ast
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import cache
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import CodeType, ModuleType

from fedloom.plugins.code_digest import LIBRARIES, file_code_digest
from fedloom.system.errors import UserError

_LOCK = threading.Lock()
"""Only one file is imported at a time, because imports change state that all threads share."""


class _Fresh(SourceFileLoader):
    """A loader that always compiles the source, because cached code may be old where a file changed within a second."""

    def get_code(self, fullname: str) -> CodeType:
        """Return the compiled source."""
        del fullname
        return self.source_to_code(self.get_data(self.path), self.path)


def import_file(path: Path) -> tuple[ModuleType, str]:
    """Import a file, or return the module if the same content was imported before.

    At its top, the file may import modules next to it. These belong to it alone: a module of the same name next to another
    file is a different one.

    Args:
        path: An absolute path.

    Returns:
        The module, and the SHA-256 of the file and of the modules next to it that it imports.

    Raises:
        UserError: There is no such file, it is not valid Python, or it raises an exception.
    """
    if not path.is_file():
        raise UserError(f"{path} is {'a folder, not a Python file' if path.is_dir() else 'missing'}")
    try:
        digest = file_code_digest(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    with _LOCK:
        return _import(path, digest), digest


@cache
def _import(path: Path, digest: str) -> ModuleType:
    name = f"fedloom_plugin_{digest[:16]}_{path.stem}"
    spec = spec_from_file_location(name, path, loader=_Fresh(name, str(path)))
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up their module
    try:
        with _from_beside(path.parent), redirect_stdout(sys.stderr):
            spec.loader.exec_module(module)
    except SyntaxError as error:
        del sys.modules[name]
        line = "" if error.lineno is None else f", line {error.lineno}"
        raise UserError(f"{error.filename or path}{line}: it is not valid Python: {error.msg}") from None
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UserError(f"{_last_place(error, path)}: {type(error).__name__}: {error}") from error
    return module


@contextmanager
def _from_beside(folder: Path) -> Iterator[None]:
    """Import modules from a folder before all others, and remove them from `sys.modules` afterward; write no bytecode."""
    beside = {file.stem for file in folder.glob("*.py")} | {
        file.parent.name for file in folder.glob("*/__init__.py")
    }
    before, writes = dict(sys.modules), sys.dont_write_bytecode
    hidden = [
        name for name, module in before.items() if name.partition(".")[0] in beside and _no_library(module)
    ]
    for name in hidden:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] in beside and name not in before]:
            del sys.modules[name]
        sys.modules.update({name: before[name] for name in hidden})


def _no_library(module: ModuleType) -> bool:
    """Return whether a module belongs neither to Python, nor to an installed package, nor to fedloom."""
    name, file = module.__name__.partition(".")[0], getattr(module, "__file__", None)
    excluded = name in sys.stdlib_module_names or name in ("__main__", "fedloom")
    return bool(file) and not excluded and not any(part in Path(file or "").parts for part in LIBRARIES)


def _last_place(error: BaseException, path: Path) -> str:
    """Return the last file and line of the user's code at which an import failed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if path.parent in Path(frame.filename).parents]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else str(path)


def find_line(path: Path, name: str, key: str | None = None) -> int | None:
    """Return the line of a module's dict, or of a key in it; None if there is no such line.

    Args:
        path: The module's file.
        name: The dict's name.
        key: A key that is a literal text in it; None is the dict itself.
    """
    try:
        nodes = ast.parse(path.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return None
    for node in nodes:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            value = getattr(node, "value", None)
            for literal in value.keys if isinstance(value, ast.Dict) and key is not None else ():
                if isinstance(literal, ast.Constant) and literal.value == key:
                    return literal.lineno
            return node.lineno
    return None
