"""Imports go down only, and a third-party library is used behind its own door."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

from fedloom.algorithms import PLACES
from rooms import arrows_of, imports, modules_of, own_imports, room_of

SOURCE = Path(__file__).parent.parent / "src/fedloom"

PUBLISHED = SOURCE / "scenarios/published_draws.py"  # draws as a published code did, with old generators

FLOORS = (
    {"params", "seeds", "system", "version"},
    {"config", "run_log", "types"},
    {"data", "old_module_names", "tasks", "wire"},
    {"algorithms", "models", "scenarios"},
    {"plugins", "report", "tuning"},
    {"client", "experiment", "report.sweeps", "testing"},
    {"engine"},
    {"runs"},
    {"cli", "__init__"},
    {"__main__"},
)
"""Rooms, which are packages and modules right below fedloom, from the ground up; each imports only from floors below its own."""

FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}

# library → the modules that may import it; all others may not.
DOORS = {
    "PIL": {"data"},
    "transformers": {"models", "runs"},
    "gguf": {"models"},
    "bitsandbytes": {"models"},
    "accelerate": {"models"},
    "tokenizers": {"models"},
    "peft": {"tuning"},
    "sklearn": {"tasks"},
    "pydantic": {"config", "experiment"},
    "yaml": {"config"},
    "typer": {"cli"},
    "rich": {"system"},
    "jinja2": {"report"},
    "pickle": set(),
    "flwr": {"engine"},
    "cryptography": {"engine"},
    "ray": {"engine"},
    "pandas": {"runs"},
    "pyarrow": {"data"},
}


def files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def top(path: Path) -> str:
    """The module or package right below fedloom that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


MODULES = modules_of(SOURCE)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imported() -> dict[str, set[str]]:
    """Return module → the modules of the package that it imports."""
    return {name: own_imports(name, MODULES) for name in MODULES}


def test_every_room_has_a_floor_and_every_floor_its_rooms() -> None:
    assert {room_of(name) for name in MODULES} == set(FLOOR_OF)


def test_imports_go_down_a_floor() -> None:
    for name, others in imported().items():
        here = room_of(name)
        for other in others:
            there = room_of(other)
            assert there == here or FLOOR_OF[there] < FLOOR_OF[here], f"{name} imports {other}"


def test_every_room_is_right_above_its_imports() -> None:
    """No room could be on a lower floor."""
    for room, below in arrows_of(MODULES).items():
        assert FLOOR_OF[room] == 1 + max((FLOOR_OF[there] for there in below), default=-1), room


def test_no_modules_import_each_other_in_a_circle() -> None:
    """Circles inside a room and imports for types count too."""
    left = dict(imported())
    while free := [name for name, needed in left.items() if not needed & set(left)]:
        for name in free:
            del left[name]
    assert not left, "these, or some of them, form a circle"


def test_libraries_stay_behind_their_doors() -> None:
    for path in files():
        for name in imports(path):
            library = name.split(".")[0]
            assert library not in DOORS or top(path) in DOORS[library], f"{path} imports {library}"


def test_the_report_needs_no_torch() -> None:
    for path in (SOURCE / "report").rglob("*.py"):
        assert "torch" not in {name.split(".")[0] for name in imports(path)}


def test_nothing_is_unpickled_or_evaluated() -> None:
    refused = {"torch.load", "torch.save", "eval", "exec", "np.load", "pickle.loads"}
    for path in files():
        for node in ast.walk(tree(path)):
            assert not isinstance(node, ast.Call) or ast.unparse(node.func) not in refused, (
                path,
                node.lineno,
            )


def test_no_global_random_state_is_read() -> None:
    refused = ("np.random.seed", "np.random.rand", "torch.manual_seed", "random.random(", "import random")
    for path in files():
        found = {drawn for drawn in refused if drawn in path.read_text(encoding="utf-8")}
        assert found <= ({"import random"} if path == PUBLISHED else set()), path


def test_published_draws_come_from_generators_of_their_own() -> None:
    """The one module that may import `random` uses nothing of it, and of np.random, but seeded generators."""
    used = {
        ast.unparse(node)
        for node in ast.walk(tree(PUBLISHED))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("random", "np.random")
    }
    assert used == {"random.Random", "np.random.RandomState"}


def test_files_and_functions_stay_short() -> None:
    for path in files():
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 80, (path, node.name)


def test_everything_that_is_installed_for_users_is_imported() -> None:
    """What only tests or benchmarks import belongs to the extras `dev` and `bench`."""
    project = tomllib.loads((SOURCE.parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["eval"]]
    names = {re.split(r"[\[<>=~! ]", one)[0].lower() for one in asked}
    known = packages_distributions()
    used = {name.partition(".")[0] for path in files() for name in imports(path)}
    bounded = {"click"}  # which typer imports; a version of it is ruled out
    assert names - {one.lower() for name in used for one in known.get(name, [])} == bounded


def test_no_other_room_branches_on_the_name_of_an_algorithm_or_a_part() -> None:
    """Everything about an algorithm is in its entry; the names of a few are defaults and examples."""
    allowed = {"methods.py": {"fedavg", "fedadam"}, "sections.py": {"prompt"}}
    for path in files():
        if top(path) == "algorithms":
            continue
        compared = {
            node.value
            for one in ast.walk(tree(path))
            if isinstance(one, ast.Compare)
            for node in ast.walk(one)
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        keys = {
            key.value
            for one in ast.walk(tree(path))
            if isinstance(one, ast.Dict)
            for key in one.keys
            if isinstance(key, ast.Constant) and isinstance(key.value, str)
        }
        names = (compared | keys) & set(PLACES)
        assert names <= allowed.get(path.name, set()) | {"prompt", "clip", "median", "dp"}, (path.name, names)
