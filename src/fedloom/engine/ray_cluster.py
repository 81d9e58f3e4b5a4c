"""Connect to a Ray cluster, or start Ray on this machine for one run.

On this machine only processes that know a random token are served. Usage statistics and the dashboard are off.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fedloom.system.errors import UserError, first_line
from fedloom.system.temporary_folders import temporary_folder

CONNECT_SECONDS = 10.0
"""Seconds after which a cluster counts as not reached."""

SILENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


class ActorRequest(NamedTuple):
    """The actors that Ray is asked for.

    Attributes:
        actors: Number of actors; None is as many as the cluster has room for.
        threads: Threads of an actor, ≥ 1; it takes as many of Ray's CPUs.
        gpus: GPUs of an actor; a fraction shares one.
        address: A running cluster; None starts Ray on this machine.
    """

    actors: int | None
    threads: int = 1
    gpus: float = 0.0
    address: str | None = None


def import_ray(*, own: bool = False) -> Any:
    """Import Ray.

    Args:
        own: Whether Ray will be started for this process alone; a new token, which Ray reads when it is imported, keeps other
            processes out.

    Raises:
        UserError: It is not installed.
    """
    os.environ.update(SILENT)
    if own and "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError(
            "engine.backend: ray is not installed; install it with `pip install 'fedloom[ray]'`"
        ) from None
    return ray


@contextmanager
def connect(request: ActorRequest) -> Iterator[Any]:
    """Connect to a cluster, or start Ray on this machine, and yield the library; an existing connection is used.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    ray = import_ray(own=request.address is None)
    if ray.is_initialized():
        yield ray
        return
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM) if main else None
    with ExitStack() as live:
        try:
            if request.address:
                _reach(request.address)
                ray.init(address=request.address, log_to_driver=False, logging_level="ERROR")
            else:
                folder = live.enter_context(temporary_folder(Path(tempfile.gettempdir()), "fedloom-ray"))
                live.callback(ray.shutdown)
                _start(ray, request, folder)
        except Exception as error:
            where = "engine.backend: Ray does not start"
            if request.address:
                where = (
                    f"engine.address: cannot connect to a Ray cluster at {request.address}; if it asks for a token, set "
                    "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
                )
            raise UserError(f"{where} ({first_line(error)})") from error
        finally:
            if before is not None:  # Ray takes the signal for itself
                signal.signal(signal.SIGTERM, before)
        live.callback(ray.shutdown)
        yield ray


def _reach(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT, for which Ray would wait for minutes; other addresses are not checked."""
    host, _, port = address.rpartition(":")
    if host and "/" not in address and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


def _start(ray: Any, request: ActorRequest, folder: Path) -> None:
    ray.init(
        address="local",
        num_cpus=(request.actors or 1) * request.threads,
        num_gpus=None if request.gpus else 0,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        _temp_dir=str(folder),
    )


def actor_count(ray: Any, request: ActorRequest) -> int:
    """Return the number of actors to start in a cluster: the requested number, or as many as it has room for.

    Raises:
        UserError: It has no room for one.
    """
    resources = ray.cluster_resources()
    needed = {"CPU": request.threads, "GPU": request.gpus}
    possible = min(int(resources.get(name, 0) / each) for name, each in needed.items() if each)
    if not possible:
        needs = ", ".join(f"{each:g} {name}" for name, each in needed.items() if each)
        has = ", ".join(f"{resources.get(name, 0):g} {name}" for name in needed)
        raise UserError(f"engine.gpus: an actor needs {needs}, but the Ray cluster has {has} in all")
    return min(possible, request.actors or possible)


def in_actor() -> bool:
    """Return whether this process is one of Ray's actors."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized() and ray.get_runtime_context().get_actor_id() is not None
