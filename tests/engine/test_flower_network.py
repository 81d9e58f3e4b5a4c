"""Faults of the network between sites and their server: slow, broken and silent connections, and a partition.

The first three go through a relay, which works on any machine. The others need network namespaces, which only the
administrator of a Linux machine can make, and loss of packets needs a part of its kernel that many lack.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.faulty_relay import FaultyRelay
from tests.federated import FederatedRun, require_equal, undisturbed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("flwr") is None,
        reason="Flower is not installed; `pip install 'fedloom[flower]'`",
    ),
]

SITES = {"north": "0", "south": "1"}
SILENCE = 60.0


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return undisturbed(tmp_path_factory.mktemp("network"), tiny_model, 3)


@pytest.mark.parametrize("faults", [{"delay": 2.0}, {"broken": 0.3}], ids=str)
def test_a_slow_or_broken_network_changes_no_byte(
    tmp_path: Path, experiment: Path, faults: dict[str, float]
) -> None:
    run = FederatedRun(tmp_path, experiment, SITES)
    with FaultyRelay(run.port, **faults) as relay:
        run.ports["south"] = relay.port
        with run:
            assert run.wait() == [0, 0, 0], run.told()
        require_equal(run, experiment)
        assert not [one for one in run.events("round") if one.get("missing")]
        assert relay.counts["whole"] > 0
        assert (relay.counts["reset"] > 0) == ("broken" in faults)


def test_connections_that_fall_silent_are_given_up(tmp_path: Path, experiment: Path) -> None:
    """Both ends believe for a minute that they are connected; neither waits for ever, and nothing counts twice."""
    run = FederatedRun(tmp_path, experiment, SITES)
    with FaultyRelay(run.port) as relay:
        run.ports["south"] = relay.port
        with run:
            run.after_round(1)
            relay.silent = True
            time.sleep(SILENCE)
            relay.silent = False
            assert run.wait() == [0, 0, 0], run.told()
        require_equal(run, experiment)
        assert relay.counts["silent"] > 0


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(
            f"this machine allows no network of its own: {done.stderr.strip() or done.stdout.strip()}"
        )


@contextmanager
def namespace() -> Iterator[tuple[str, str]]:
    """Make a network namespace that is connected to this one; yield its name and the name of the link to it."""
    if shutil.which("ip") is None or os.geteuid():
        pytest.skip("network namespaces need `ip` and the rights of an administrator")
    name, link = f"fedloom-{os.getpid()}", f"fl{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("link", "add", link, "type", "veth", "peer", "name", f"{link}b", "netns", name)
        ip("address", "add", "10.213.77.1/30", "dev", link)
        ip("link", "set", link, "up")
        ip("-n", name, "address", "add", "10.213.77.2/30", "dev", f"{link}b")
        ip("-n", name, "link", "set", f"{link}b", "up")
        ip("-n", name, "link", "set", "lo", "up")
        yield name, link
    finally:
        subprocess.run(["ip", "link", "delete", link], capture_output=True, check=False)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)


@contextmanager
def across(tmp_path: Path, experiment: Path) -> Iterator[tuple[FederatedRun, str]]:
    """Run south in a namespace of its own, with TLS; yield the run, which has begun, and the name of the link."""
    from fedloom.engine.federation_keys import make_keys

    keys = tmp_path / "keys"
    make_keys(keys, ["10.213.77.1"], list(SITES))
    with namespace() as (name, link):
        around = {"south": ["ip", "netns", "exec", name]}
        run = FederatedRun(tmp_path, experiment, SITES, keys=keys, host="10.213.77.1", around=around)
        with run:
            yield run, link


def test_a_partition_is_waited_for(tmp_path: Path, experiment: Path) -> None:
    with across(tmp_path, experiment) as (run, link):
        run.after_round(1)
        ip("link", "set", link, "down")
        time.sleep(SILENCE)
        ip("link", "set", link, "up")
        assert run.wait() == [0, 0, 0], run.told()
        require_equal(run, experiment)
        assert run.told("south").count("the model is loaded") == 1


def test_lost_packets_change_no_byte(tmp_path: Path, experiment: Path) -> None:
    with across(tmp_path, experiment) as (run, link):
        lossy = ["tc", "qdisc", "add", "dev", link, "root", "netem", "loss", "30%", "delay", "100ms"]
        done = (
            subprocess.run(lossy, capture_output=True, text=True, check=False) if shutil.which("tc") else None
        )
        if done is None or done.returncode:
            pytest.skip(f"packets cannot be lost: {done.stderr.strip() if done else 'there is no `tc`'}")
        assert run.wait() == [0, 0, 0], run.told()
        require_equal(run, experiment)
