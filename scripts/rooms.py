"""Count the rooms of the package, the floors on which they stand, and the imports between them.

    python scripts/rooms.py [FOLDER] [--list]

A room is a package or a module right below FOLDER (src/fedloom unless given), and `report/sweeps`. Imports inside functions
and for types count. A room stands one floor above the highest room that it imports; rooms in a circle share a floor.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path


def room_of(module: str) -> str:
    """Return the room of a module by its dotted name below the package."""
    return "report.sweeps" if module.startswith("report.sweeps") else module.split(".")[0]


def modules_of(folder: Path) -> dict[str, Path]:
    """Return dotted name below the package, such as "engine.rounds" → file; the name of a package is "engine"."""
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return modules


def imports(path: Path) -> Iterator[str]:
    """Yield what a file imports, at the top, inside functions and for types."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(name: str, modules: Mapping[str, Path]) -> set[str]:
    """Return the modules that a module imports, by their dotted names; a package counts if nothing below it is named."""
    named = {one.removeprefix("fedloom.") for one in imports(modules[name]) if one.startswith("fedloom.")}
    known = named & modules.keys()
    return {one for one in known if not any(other.startswith(f"{one}.") for other in known)} - {name}


def arrows_of(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """Return room → the other rooms that it imports."""
    arrows: dict[str, set[str]] = {room_of(name): set() for name in modules}
    for name in modules:
        arrows[room_of(name)] |= {room_of(other) for other in own_imports(name, modules)} - {room_of(name)}
    return arrows


def floors_of(arrows: dict[str, set[str]]) -> dict[str, int]:
    """Return room → floor, counted from 1."""
    reached = {room: set(below) for room, below in arrows.items()}
    for _ in arrows:
        for below in reached.values():
            below |= {further for room in tuple(below) for further in reached[room]}
    floors: dict[str, int] = {}
    for room in sorted(arrows, key=lambda room: len(reached[room] | {room})):
        circle = {other for other in reached[room] if room in reached[other]} | {room}
        lower = {below for member in circle for below in arrows[member]} - circle
        floor = 1 + max((floors[below] for below in lower), default=0)
        floors |= dict.fromkeys(circle, floor)
    return floors


def main() -> None:
    """Print the three figures, and with --list the rooms of each floor."""
    given = [word for word in sys.argv[1:] if not word.startswith("-")]
    arrows = arrows_of(modules_of(Path(given[0]) if given else Path(__file__).parent.parent / "src/fedloom"))
    floors = floors_of(arrows)
    print(f"{len(arrows)} rooms, {max(floors.values())} floors, {sum(map(len, arrows.values()))} arrows")
    if "--list" in sys.argv:
        for floor in range(1, max(floors.values()) + 1):
            print(f"{floor:>3}  {', '.join(sorted(room for room, at in floors.items() if at == floor))}")


if __name__ == "__main__":
    main()
