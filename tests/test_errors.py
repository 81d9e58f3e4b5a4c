"""Errors in one sentence: what happened, where, what would help, and whether the error is internal."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from fedloom.params import Layout
from fedloom.system.errors import (
    UserError,
    error_sentence,
    is_of_accelerator,
    is_out_of_memory,
    reading,
    user_errors,
    user_message,
)

SYSTEM = [
    (errno.ENOSPC, "no space is left"),
    (errno.EROFS, "read-only"),
    (errno.EACCES, "permission is denied"),
    (errno.ENOENT, "does not exist"),
    (errno.EISDIR, "is a folder"),
    (errno.ENAMETOOLONG, "too long"),
    (errno.EMFILE, "too many files are open"),
    (errno.EDQUOT, "quota"),
    (errno.ETXTBSY, os.strerror(errno.ETXTBSY)),
]


@pytest.mark.parametrize(("number", "said"), SYSTEM)
def test_errors_of_the_system_name_the_file(number: int, said: str) -> None:
    text = user_message(OSError(number, os.strerror(number), "runs/a/result.json"))
    assert text is not None
    assert text.startswith("runs/a/result.json: ")
    assert said in text


@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM])
@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("readable", [False, True])
def test_advice_on_a_lack_of_permission_is_about_what_was_tried(
    number: int, kind: str, readable: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "some"
    path.mkdir() if kind == "folder" else path.touch()
    monkeypatch.setattr(os, "access", lambda *_: readable)  # tests may run as root, who may read everything
    text = user_message(PermissionError(number, "denied", path)) or ""
    assert text.startswith(f"{path}: ") and "permission is denied" in text
    assert ("--out" in text) is readable
    assert ("allow this user to read it" in text) is not readable


@pytest.mark.parametrize("named", [True, False])
def test_what_is_only_read_has_advice_about_reading(named: bool, tmp_path: Path) -> None:
    error = PermissionError(errno.EACCES, "denied", str(tmp_path)) if named else PermissionError("denied")
    with pytest.raises(UserError, match="allow this user to read it") as caught, reading(tmp_path):
        raise error
    assert str(caught.value).startswith(f"{tmp_path}: ") and "--out" not in str(caught.value)
    with pytest.raises(FileNotFoundError), reading(tmp_path):
        raise FileNotFoundError


def test_a_real_error_has_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        (tmp_path / "none").read_text()
    assert error_sentence(caught.value).startswith(f"{tmp_path / 'none'}: ")


def test_too_little_memory_is_recognized_in_every_library() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert "memory ran out" in (user_message(caught.value) or "")
    assert "memory ran out" in (user_message(MemoryError()) or "")
    assert "memory ran out" in (user_message(OSError(errno.ENOMEM, "Cannot allocate memory")) or "")
    card = user_message(torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"))
    assert "memory of the accelerator ran out" in (card or "")


class AcceleratorError(RuntimeError):
    """Has the name of torch's, which needs a device to be made."""


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        torch.OutOfMemoryError("XPU out of memory. Tried to allocate 2.00 GiB."),
        AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("HIP error: out of memory"),
        RuntimeError("CUDA driver error: out of memory"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.9 GB, max allowed: 18.1 GB)."),
        RuntimeError("XPU out of memory. Tried to allocate 2.00 GiB (GPU 0; 15.00 GiB total capacity)"),
        RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
        RuntimeError("level_zero backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)"),
        RuntimeError("Native API failed. Native API returns: -5 (PI_ERROR_OUT_OF_RESOURCES)"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling `cusolverDnCreate(handle)`"),
    ],
)
def test_every_way_in_which_an_accelerator_lacks_memory_gives_its_advice(error: RuntimeError) -> None:
    assert is_out_of_memory(error) and is_of_accelerator(error)
    assert "memory of the accelerator ran out; try engine.recompute" in (user_message(error) or "")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("cuda"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: device-side assert triggered"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED"),
        ValueError("CUDA out of memory"),
    ],
)
def test_other_errors_are_not_those_of_an_accelerator_without_memory(error: Exception) -> None:
    assert not is_of_accelerator(error)
    assert "accelerator" not in (user_message(error) or "")


@pytest.mark.parametrize(
    "error", [KeyError("x"), RuntimeError("shapes differ"), AssertionError(), ZeroDivisionError("by zero")]
)
def test_an_internal_error_is_not_the_users(error: Exception) -> None:
    assert user_message(error) is None
    assert error_sentence(error).startswith(f"internal error: {type(error).__name__}")
    assert "\n" not in error_sentence(error)
    with pytest.raises(type(error)), user_errors():
        raise error


def test_an_internal_error_names_its_place() -> None:
    with pytest.raises(ValueError) as caught:
        Layout.from_json('[{"a": 1}]')
    assert "fedloom/params.py:" in error_sentence(caught.value)


def test_a_full_disk_is_a_user_error_in_python_too() -> None:
    with pytest.raises(UserError, match="no space") as caught, user_errors():
        raise OSError(errno.ENOSPC, "No space left on device", "x")
    assert isinstance(caught.value.__cause__, OSError)
    mistake = UserError("as it was")
    with pytest.raises(UserError) as same, user_errors():
        raise mistake
    assert same.value is mistake


@pytest.mark.parametrize(
    "text", ["Error while serializing: I/O error: No space left on device (os error 28)", "(os error 28)"]
)
def test_a_full_disk_is_recognized_in_every_library(text: str) -> None:
    assert "no space is left on the disk" in (user_message(RuntimeError(text)) or "")
    assert user_message(RuntimeError("(os error 28000000000000)")) is None
