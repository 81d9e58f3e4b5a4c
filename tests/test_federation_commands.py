"""Mistakes in the options of `fedloom server`, `fedloom site` and `fedloom doctor` are named before anything starts."""

from __future__ import annotations

import importlib.util

import pytest
from typer.testing import CliRunner

from fedloom.cli.federation_commands import is_loopback, parse_address
from fedloom.cli.run_commands import app
from fedloom.engine.server_check import join_address

SERVER = ["server", "smoke", "--out", "out"]
SITE = ["site", "--name", "north"]
HERE = ["--server", "127.0.0.1:8470", "--insecure"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([*SERVER], "give either --keys"),
        ([*SERVER, "--insecure", "--keys", "keys"], "give either --keys"),
        ([*SERVER, "--insecure", "--listen", "8470"], "--listen: '8470' is not HOST:PORT"),
        ([*SERVER, "--insecure", "--listen", "0.0.0.0:8470"], "--insecure: 0.0.0.0 is not this machine"),
        ([*SERVER, "--insecure", "--scores", "sites"], "give --sites"),
        (
            [*SERVER, "--insecure", "--superlink", "10.0.0.1:9092"],
            "--superlink: 10.0.0.1 is not this machine",
        ),
        ([*SERVER, "--insecure", "--superlink", "9092"], "--superlink: '9092' is not HOST:PORT"),
        ([*SITE, "--clients", "0"], "give either --server"),
        ([*SITE, "--clients", "0", *HERE, "--socket", "at"], "give either --server"),
        ([*SITE, "--clients", "0", "--socket", "at", "--insecure"], "leave --keys and --insecure out"),
        ([*SITE, *HERE], "give either --data"),
        ([*SITE, *HERE, "--data", "mine", "--clients", "0"], "give either --data"),
        ([*SITE, *HERE, "--clients", "a"], "--clients: 'a' is not a list of numbers"),
        ([*SITE[:2], "a/b", *HERE, "--clients", "0"], "--name: use at most 80 letters"),
        (["doctor", "--server", "8470"], "--server: '8470' is not HOST:PORT"),
        (["doctor", "--server", "fed.example.org"], "is not HOST:PORT"),
        (["doctor", "--server", "https://fed.example.org:8470"], "leave the scheme and the path out"),
        (["doctor", "--server", "::1"], "an IPv6 address is in brackets"),
        (["doctor", "--server", "fd00::7:8470"], "an IPv6 address is in brackets"),
        (["doctor", "--server", "[::1]:70000"], "is not HOST:PORT"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_mistake_is_named_and_exits_with_2(arguments: list[str], told: str) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2, result.output
    assert told in " ".join(result.output.split())


@pytest.mark.skipif(
    importlib.util.find_spec("flwr") is None,
    reason="Flower is not installed; `pip install 'fedloom[flower]'`",
)
@pytest.mark.parametrize("side", [[*SERVER], [*SITE, "--clients", "0", "--server", "fed.example.org:8470"]])
def test_missing_keys_are_named(side: list[str]) -> None:
    result = CliRunner().invoke(app, [*side, "--keys", "nowhere"])
    assert result.exit_code == 2
    assert "nowhere/ca.crt is missing" in " ".join(result.output.split())


@pytest.mark.skipif(
    importlib.util.find_spec("flwr") is None,
    reason="Flower is not installed; `pip install 'fedloom[flower]'`",
)
def test_missing_data_are_named_before_the_server_is_asked() -> None:
    runner = CliRunner()
    with runner.isolated_filesystem():
        result = runner.invoke(app, [*SITE, *HERE, "--data", "data/nroth"])
    assert result.exit_code == 2
    assert "--data: data/nroth does not exist" in " ".join(result.output.split())


@pytest.mark.parametrize(
    ("host", "here"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.8.0.1", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("fed.example.org", False),
        ("localhost.example.org", False),
    ],
)
def test_only_addresses_of_the_loopback_device_are_this_machine(host: str, here: bool) -> None:
    assert is_loopback(host) == here


@pytest.mark.parametrize("address", ["127.0.0.1:8470", "fed.example.org:1", "[::1]:8470", "[fd00::7]:65535"])
def test_an_address_is_what_its_parts_give(address: str) -> None:
    host, port = parse_address(address, "--server")
    assert join_address(host, port) == address
    assert "[" not in host, "the system knows no brackets"
