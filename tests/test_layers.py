"""Imports go down only, and a third-party library is used behind its own door."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from fedloom.algorithms import PLACES

SOURCE = Path(__file__).parent.parent / "src/fedloom"

PUBLISHED = SOURCE / "scenarios/published.py"  # draws as a published code did, with old generators

LAYERS = {
    0: {
        "types",
        "params",
        "seeds",
        "record",
        "progress",
        "document",
        "mistakes",
        "wire",
        "framing",
        "messages",
    }
    | {"failures", "hashes", "interrupts", "manifest", "processes", "scratch", "startup", "terminal"}
    | {"plugin_import", "code_digest"},
    1: {"algorithms", "scenarios", "data", "methods", "sections"},
    2: {"tasks", "models", "tuning"},
    3: {"client"},
    4: {"engine", "measure"},
    5: {"report", "conflicts", "answering", "experiment", "axes", "grid", "folder", "identity"}
    | {"plugin_section", "plugins"}
    | {"setting", "sites", "backends", "training", "outcomes", "runner", "sweep", "verify"}
    | {"federated_run", "site_run", "allow", "departures"},
    6: {"cli", "cli_data", "cli_models", "cli_options", "cli_split", "cli_sweep", "__init__", "__main__"}
    | {"cli_list", "cli_federation", "testing"},
}
LAYER_OF = {module: layer for layer, modules in LAYERS.items() for module in modules}

# library → the modules that may import it; all others may not.
DOORS = {
    "PIL": {"data"},
    "transformers": {"models", "runner"},
    "gguf": {"models"},
    "tokenizers": {"models"},
    "peft": {"tuning"},
    "sklearn": {"tasks"},
    "pydantic": {"mistakes", "sections", "plugin_section", "experiment", "allow"},
    "yaml": {"document"},
    "typer": {
        "cli",
        "cli_data",
        "cli_federation",
        "cli_list",
        "cli_models",
        "cli_options",
        "cli_split",
        "cli_sweep",
    },
    "rich": {"progress"},
    "jinja2": {"report"},
    "pickle": set(),
    "flwr": {"engine"},
    "cryptography": {"engine"},
}


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def top(path: Path) -> str:
    """The module or package right below fedloom that a file belongs to."""
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            if node.module == "fedloom":
                yield from (f"fedloom.{alias.name}" for alias in node.names)


def test_every_module_has_a_layer() -> None:
    assert {top(path) for path in files()} <= set(LAYER_OF)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_down(path: Path) -> None:
    here = LAYER_OF[top(path)]
    for name in imports(path):
        if name.startswith("fedloom."):
            other = name.split(".")[1]
            if other in LAYER_OF:  # a name such as fedloom.__version__ is no module
                assert LAYER_OF[other] <= here, f"{path.name} (layer {here}) imports {name}"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_libraries_stay_behind_their_doors(path: Path) -> None:
    for name in imports(path):
        library = name.split(".")[0]
        if library in DOORS:
            assert top(path) in DOORS[library], f"{path.name} imports {library}"


def test_the_report_needs_no_torch() -> None:
    for path in (SOURCE / "report").glob("*.py"):
        assert "torch" not in {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_nothing_is_unpickled_or_evaluated(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in {"torch.load", "torch.save", "eval", "exec", "np.load", "pickle.loads"}, (
                called
            )


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_global_random_state_is_read(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for drawn in ("np.random.seed", "np.random.rand", "torch.manual_seed", "random.random(", "import random"):
        assert drawn not in text or (path == PUBLISHED and drawn == "import random")


def test_published_draws_come_from_generators_of_their_own() -> None:
    """The one module that may import `random` uses nothing of it, and of np.random, but seeded generators."""
    used = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(PUBLISHED.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("random", "np.random")
    }
    assert used == {"random.Random", "np.random.RandomState"}


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_files_and_functions_stay_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 80, node.name


def test_everything_that_is_installed_for_users_is_imported() -> None:
    """What only tests or benchmarks import belongs to the extras `dev` and `bench`."""
    project = tomllib.loads((SOURCE.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["eval"]]
    names = {re.split(r"[\[<>=~! ]", one)[0].lower() for one in asked}
    known = packages_distributions()
    used = {name.partition(".")[0] for path in files() for name in imports(path)}
    assert names - {one.lower() for name in used for one in known.get(name, [])} == set()


def test_no_other_room_branches_on_the_name_of_an_algorithm_or_a_part() -> None:
    """What is known of one stands in its entry; the names of a few are defaults and examples."""
    allowed = {"methods.py": {"fedavg", "fedadam"}, "sections.py": {"prompt"}}
    for path in files():
        if top(path) == "algorithms":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        compared = {
            node.value
            for one in ast.walk(tree)
            if isinstance(one, ast.Compare)
            for node in ast.walk(one)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        keys = {
            key.value
            for one in ast.walk(tree)
            if isinstance(one, ast.Dict)
            for key in one.keys
            if isinstance(key, ast.Constant) and isinstance(key.value, str)
        }
        found = (compared | keys) & set(PLACES)
        assert found <= allowed.get(path.name, set()) | {"prompt", "clip", "median", "dp"}, (path.name, found)
