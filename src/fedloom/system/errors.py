"""The user's errors, and a sentence for any other error: what happened, where, and what would help."""

from __future__ import annotations

import errno
import os
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PACKAGE = Path(__file__).parent.parent
_PYTHON = Path(os.__file__).parent

_FULL = "no space is left on the disk; make room, or write elsewhere with --out"
_DENIED = "permission is denied; change its permissions, or write elsewhere with --out"
_UNREADABLE = "it cannot be read, because permission is denied; allow this user to read it"
_OPEN = "too many files are open; allow more with `ulimit -n`, or use fewer workers and jobs"
_MACHINE = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: "the disk quota is used up; make room, or write elsewhere with --out",
    errno.EFBIG: "the file is larger than this system allows",
    errno.EROFS: "this file system is read-only; write elsewhere with --out",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.ENOENT: "it does not exist, or no longer exists",
    errno.EEXIST: "it already exists and is not a folder; a folder is needed",
    errno.ENOTEMPTY: "the folder is not empty",
    errno.EISDIR: "it is a folder; a file is needed",
    errno.ENOTDIR: "a part of this path is a file; a folder is needed",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "its links form a circle",
    errno.EMFILE: _OPEN,
    errno.ENFILE: _OPEN,
    errno.ENXIO: "it is a pipe, a socket or a device; a file is needed",
    errno.EIO: "the disk, or the terminal, failed (input/output error)",
    errno.ESTALE: "the network disk lost it; try again when the disk is back",
    errno.EAGAIN: "the system allows no more processes or threads; use fewer workers and jobs",
}
_MEMORY = (
    "memory ran out; try train.micro_batch=1, engine.workers=1 and engine.side_by_side=1, or fewer --jobs"
)
_GPU_MEMORY = (
    "the memory of the accelerator ran out; try engine.recompute=always, engine.side_by_side=1, train.micro_batch=1, "
    "model.precision=auto where it is float32, model.quantize=nf4, a smaller model.max_tokens or model.pixels, or a smaller model"
)
_FOREIGN = re.compile(r"\(os error (\d{1,3})\)")
"""The system's error in messages of libraries that are written in Rust, such as safetensors and tokenizers."""
_NO_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
_NO_GPU_MEMORY = re.compile(
    r"\b(cuda|hip|mps|xpu)\b.*out of memory|\b(cu|hip|roc)\w+_alloc\w*_failed|_out_of_(device_memory|resources)"
)
"""What torch and its libraries say, in lower case, where an accelerator lacks memory: CUDA's runtime and its libraries,
Metal (`MPS backend out of memory`), and the runtimes of Intel's GPUs."""


class UserError(Exception):
    """A mistake of the user, reported in one message without a traceback: what is wrong, where, and what would be right."""


def user_message(error: BaseException) -> str | None:
    """Return a sentence for an error that the user can resolve, such as a full disk, and None for any other error.

    Example:
        >>> user_message(OSError(errno.ENOSPC, "No space left on device", "runs/a/result.json"))
        'runs/a/result.json: no space is left on the disk; make room, or write elsewhere with --out'
    """
    if isinstance(error, UserError):
        return str(error)
    if is_out_of_memory(error):
        return f"{_GPU_MEMORY if is_of_accelerator(error) else _MEMORY}{_detail(error)}"
    if isinstance(error, OSError):
        return _system_sentence(error)
    if foreign := _FOREIGN.search(str(error)):
        number = int(foreign[1])
        return _system_sentence(OSError(number, os.strerror(number)).with_traceback(error.__traceback__))
    if isinstance(error, UnicodeError):
        return f"a text is not UTF-8{_detail(error)}, {_last_own_line(error)}"
    if isinstance(error, RecursionError):
        return f"a value is nested too deeply to be read, {_last_own_line(error)}"
    return None


def error_sentence(error: BaseException) -> str:
    """Return a sentence for any error; for an internal error, its type, message and place.

    Example:
        >>> error_sentence(KeyError("round"))
        "internal error: KeyError: 'round'"
    """
    message = user_message(error)
    if message is not None:
        return message
    place = _last_own_line(error, "")
    return f"internal error: {_type_and_message(error)}{f' ({place})' if place else ''}"


def client_failure(error: BaseException) -> str:
    """Return a sentence that explains why a client sent no update: what failed, in which file and line.

    The line is the innermost one of the user's own code, if there is any.

    Example:
        >>> client_failure(UserError("cat.png is damaged"))
        'cat.png is damaged'
    """
    message = user_message(error)
    if message is not None:
        return message
    frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in frames if _is_of_user(Path(frame.filename))] or frames
    place = f", {Path(frames[-1].filename).name}, line {frames[-1].lineno}" if frames else ""
    return f"{_type_and_message(error)}{place}"


def _is_of_user(file: Path) -> bool:
    """Return whether a file belongs neither to fedloom, nor to Python, nor to an installed package."""
    installed = {"site-packages", "dist-packages"} & set(file.parts)
    return not installed and file.is_absolute() and not any(map(file.is_relative_to, (_PACKAGE, _PYTHON)))


@contextmanager
def user_errors() -> Iterator[None]:
    """Raise a `UserError` in place of an error that the user can resolve; the original stays its cause.

    Used as a `with` block, or as the decorator `@user_errors()`.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        raise UserError(message) from error


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise a `UserError` with advice about reading a file or folder in place of a `PermissionError`, whose advice is about writing.

    Args:
        path: The file or folder, which the message names if the error does not.
    """
    try:
        yield
    except PermissionError as error:
        raise UserError(f"{' → '.join(_names(error)) or path}: {_UNREADABLE}") from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out; on a CPU, torch raises a plain RuntimeError."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM  # a fork's
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or is_of_accelerator(error)
        or (isinstance(error, RuntimeError) and any(words in text for words in _NO_MEMORY))
    )


def is_of_accelerator(error: BaseException) -> bool:
    """Return whether an error says that memory of an accelerator ran out, without importing torch.

    Besides torch's OutOfMemoryError, these are a RuntimeError, or an AcceleratorError, with the words of the device's libraries.
    """
    if not isinstance(error, RuntimeError):
        return False
    return type(error).__name__ == "OutOfMemoryError" or bool(_NO_GPU_MEMORY.search(str(error).lower()))


def _system_sentence(error: OSError) -> str:
    names = _names(error)
    reason = _MACHINE.get(error.errno or 0) or error.strerror
    if reason == _DENIED and names and _is_unreadable(names[0]):
        reason = _UNREADABLE
    where = f"{' → '.join(names)}: " if names else ""
    if reason is None:  # raised by a library with a text of its own
        return f"{where}{first_line(error) or type(error).__name__}, {_last_own_line(error)}"
    return f"{where}{reason}" if names else f"{reason}, {_last_own_line(error)}"


def _names(error: OSError) -> list[str]:
    """Return the names of the files that an error of the system is about."""
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return names + [str(name) for name in (error.filename,) if isinstance(name, os.PathLike)]


def _is_unreadable(name: str) -> bool:
    """Return whether a file or folder exists and may not be read: an error does not say what was tried, but this does."""
    needed = os.R_OK | os.X_OK if os.path.isdir(name) else os.R_OK
    return os.path.lexists(name) and not os.access(name, needed)


def _type_and_message(error: BaseException) -> str:
    return f"{type(error).__name__}{_detail(error, ': {}')}"


def _detail(error: BaseException, form: str = " ({})") -> str:
    text = first_line(error)
    return form.format(text) if text else ""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text that is not blank, cut to 300 characters."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return line if len(line) <= 300 else f"{line[:299]}…"


def _last_own_line(error: BaseException, otherwise: str = "while fedloom was running") -> str:
    """Return the innermost line of fedloom in an error's traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        file = Path(frame.filename)
        if file.is_relative_to(_PACKAGE):
            return f"noticed at {file.relative_to(_PACKAGE.parent)}:{frame.lineno}"
    return otherwise
