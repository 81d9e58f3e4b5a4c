"""Check an installation: versions against the floors in the package's metadata, devices, cache and disk."""

from __future__ import annotations

import os
import platform
import re
import shutil
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from fedloom.system.file_hashes import cache_folder

ENOUGH_DISK = 10**9
"""Bytes that a working folder should have left."""


OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
"""Environment variables that keep libraries from asking a hub."""


class Check(NamedTuple):
    """The outcome of one check.

    Attributes:
        passed: True, False for a fault, or None for something optional that is not there.
        text: What was found, in one line.
    """

    passed: bool | None
    text: str


def installation_checks(folder: Path) -> list[Check]:
    """Check this installation.

    Args:
        folder: A folder in which runs would be written.
    """
    return [
        *_python(),
        *_devices(),
        *_packages(),
        _offline(),
        _writable("cache", cache_folder()),
        _disk(folder),
    ]


def _python() -> list[Check]:
    fields = metadata.metadata("fedloom")
    wanted = fields["Requires-Python"] if "Requires-Python" in fields else ""
    version = platform.python_version()
    system = f"{platform.system()} {platform.machine()}"
    return [Check(satisfies(version, wanted), f"Python {version} ({system}); needed: {wanted}")]


def _devices() -> list[Check]:
    import torch

    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    names = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    found = ", ".join(names) if names else "no GPU"
    return [
        Check(True, f"torch {torch.__version__}, built for {build}; {torch.get_num_threads()} threads"),
        Check(True if names else None, f"devices: {found}; without one, models run on the CPU"),
    ]


def _offline() -> Check:
    """Check whether environment variables keep libraries offline; fedloom itself uses the network only where a flag allows it."""
    told = [name for name in OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    found = f"{', '.join(told)} set" if told else f"{' and '.join(OFFLINE)} not set"
    return Check(
        True if told else None, f"offline: {found}; fedloom uses the network only where a flag allows it"
    )


def _packages() -> list[Check]:
    checks = list[Check]()
    for line in metadata.requires("fedloom") or ():
        requirement, _, condition = line.partition(";")
        extra = re.search(r"""extra\s*==\s*["']([\w-]+)["']""", condition)
        match = re.match(r"\s*([\w.-]+)(?:\[[^]]*\])?\s*\(?([^)]*)\)?", requirement)
        if match is None or (extra is not None and extra[1] in ("dev", "bench")):
            continue
        name, wanted = match[1], match[2].strip()
        kind = f" (extra {extra[1]})" if extra else ""
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            advice = f"install fedloom[{extra[1]}] to use it" if extra else "install it"
            checks.append(Check(None if extra else False, f"{name} is not installed{kind}; {advice}"))
            continue
        checks.append(Check(satisfies(version, wanted), f"{name} {version}{kind}; needed: {wanted or 'any'}"))
    return sorted(checks, key=lambda check: "(extra" in check.text)


def satisfies(version: str, wanted: str) -> bool:
    """Return whether a version meets bounds such as ">=1.41,<1.43".

    Example:
        >>> satisfies("1.42.0", ">=1.41,<1.43"), satisfies("1.9", ">=1.10"), satisfies("2.10.0+cpu", ">=2.10")
        (True, False, True)
    """
    have = _numbers(version)
    for sign, number in re.findall(r"(>=|<=|==|<|>)\s*([\w.]+)", wanted):
        bound = _numbers(number)
        length = max(len(have), len(bound))
        left, right = (one + (0,) * (length - len(one)) for one in (have, bound))
        holds = {
            ">=": left >= right,
            "<=": left <= right,
            "==": left == right,
            "<": left < right,
            ">": left > right,
        }
        if not holds[sign]:
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, release[0].split("."))) if release else (0,)


def _writable(what: str, folder: Path) -> Check:
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    can = above.is_dir() and os.access(above, os.W_OK)
    return Check(can, f"{what}: {folder} {'can' if can else 'cannot'} be written to")


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    return Check(free >= ENOUGH_DISK, f"disk: {free / 1e9:,.1f} GB left in {folder.absolute()}")
