"""Draw any number of scenes with exact answers, for four tasks.

A scene is a 64 px image with one to four objects on a 4 × 4 lattice of 16 px cells. An object has one of
eight shapes, eight colors and two sizes. Everything is drawn from named random streams, so scene number
i of a seed is always the same, and no file is needed. `data.variant` is the style: "filled", as in the scenes that the
bundled models saw in pretraining, or "outlined", lines on a green background, which neither has seen.

    task             question                         answer
    classification   Which shape is shown?            one of eight shapes (options)
    vqa              What color is the big circle?    red
    captioning       Describe the picture.            a big red circle in row 1, column 2
    grounding        Where is the red circle?         [18, 2, 30, 14]   (x0, y0, x1, y1 in pixels, ends included)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import cos, pi, sin
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from fedloom.seeds import stream
from fedloom.types import DataSet, Example

if TYPE_CHECKING:
    from fedloom.config.schema import Data

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star", "ring", "bar")
COLORS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 200),
    "yellow": (240, 210, 30),
    "orange": (255, 127, 14),
    "purple": (130, 70, 180),
    "brown": (120, 75, 50),
    "black": (20, 20, 20),
}
SIZES = ("small", "big")
RADIUS = {"small": 4, "big": 7}
SIDE, CELL, LATTICE = 64, 16, 4
STYLES = {"filled": (245, 245, 245), "outlined": (200, 215, 190)}
"""Style → color of the background."""


@dataclass(frozen=True, slots=True)
class Thing:
    """An object: its center in pixels, shape, color and size."""

    x: int
    y: int
    shape: str
    color: str
    size: str

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The outermost pixels (x0, y0, x1, y1), ends included."""
        r = RADIUS[self.size]
        half = r // 2 if self.shape == "bar" else r
        return self.x - r, self.y - half, self.x + r, self.y + half

    @property
    def cell(self) -> tuple[int, int]:
        """Row and column on the lattice, counted from 1."""
        return self.y // CELL + 1, self.x // CELL + 1

    @property
    def name(self) -> str:
        """Size, color and shape in words."""
        return f"{self.size} {self.color} {self.shape}"


@dataclass(frozen=True, slots=True)
class Scene:
    """An image that is drawn when its pixels are needed."""

    things: tuple[Thing, ...]
    style: str = "filled"

    @property
    def key(self) -> str:
        """A key that is equal for equal scenes; it ends alike for the same things in any style."""
        prefix = "scene" if self.style == "filled" else self.style
        return f"{prefix}-{hashlib.sha256(repr(self.things).encode()).hexdigest()[:32]}"

    def pixels(self) -> NDArray[np.uint8]:
        """Draw the scene, shape [64, 64, 3]."""
        zoom = 2  # drawn at twice the size and shrunk, for smooth edges
        canvas = Image.new("RGB", (SIDE * zoom, SIDE * zoom), STYLES[self.style])
        draw = ImageDraw.Draw(canvas)
        for thing in self.things:
            (_fill if self.style == "filled" else _outline)(draw, thing, zoom)
        return np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX))


def _fill(draw: ImageDraw.ImageDraw, thing: Thing, zoom: int) -> None:
    color, box = COLORS[thing.color], _zoomed(thing, zoom)
    x0, y0, x1, y1 = box
    cx, cy, r = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2
    if thing.shape == "circle":
        draw.ellipse(box, fill=color)
    elif thing.shape == "ring":
        draw.ellipse(box, outline=color, width=max(2, round(r / 2.5)))
    elif thing.shape in ("square", "bar"):
        draw.rectangle(box, fill=color)
    elif thing.shape == "cross":
        arm = r / 3
        draw.rectangle((cx - arm, y0, cx + arm, y1), fill=color)
        draw.rectangle((x0, cy - arm, x1, cy + arm), fill=color)
    else:
        draw.polygon(_corners(thing.shape, box), fill=color)


def _outline(draw: ImageDraw.ImageDraw, thing: Thing, zoom: int) -> None:
    color, box, width = COLORS[thing.color], _zoomed(thing, zoom), 3  # 1.5 px once shrunk
    x0, y0, x1, y1 = box
    cx, cy, r = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2
    if thing.shape in ("circle", "ring"):
        draw.ellipse(box, outline=color, width=width)
        if thing.shape == "ring":
            draw.ellipse((cx - r / 2, cy - r / 2, cx + r / 2, cy + r / 2), outline=color, width=width - 1)
    elif thing.shape in ("square", "bar"):
        draw.rectangle(box, outline=color, width=width)
    elif thing.shape == "cross":
        draw.line([(cx, y0), (cx, y1)], fill=color, width=width)
        draw.line([(x0, cy), (x1, cy)], fill=color, width=width)
    else:
        corners = _corners(thing.shape, (x0 + 1, y0 + 1, x1 - 1, y1 - 1))  # a line is as wide to either side
        draw.line([*corners, corners[0]], fill=color, width=width)


def _zoomed(thing: Thing, zoom: int) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = (value * zoom for value in thing.box)
    return x0, y0, x1 + zoom - 1, y1 + zoom - 1


def _corners(shape: str, box: tuple[int, int, int, int]) -> list[tuple[float, float]]:
    """Return the corners of a triangle, a diamond or a star."""
    x0, y0, x1, y1 = box
    cx, cy, r = (x0 + x1) / 2, (y0 + y1) / 2, (x1 - x0) / 2
    if shape == "triangle":
        return [(cx, y0), (x1, y1), (x0, y1)]
    if shape == "diamond":
        return [(cx, y0), (x1, cy), (cx, y1), (x0, cy)]
    angles = [(k * pi / 5, r if k % 2 == 0 else 0.42 * r) for k in range(10)]
    return [(cx + d * sin(a), cy - d * cos(a)) for a, d in angles]


def draw_scene(rng: np.random.Generator, count: int, pool: str) -> Scene:
    """Draw a scene of a pool, with `count` objects of different shapes or colors in different cells.

    A scene's key decides its pool: half of all scenes belong to "pretrain" and half to "federated", so that
    the bundled model has never seen a scene that a federated run trains or tests on.
    """
    while True:
        scene = _draw_any(rng, count)
        if pool == ("pretrain" if scene.key[-1] in "01234567" else "federated"):
            return scene


def _draw_any(rng: np.random.Generator, count: int) -> Scene:
    cells = rng.permutation(LATTICE * LATTICE)[:count]
    things: list[Thing] = []
    for cell in cells:
        while True:
            shape = SHAPES[rng.integers(len(SHAPES))]
            color = list(COLORS)[rng.integers(len(COLORS))]
            size = SIZES[rng.integers(len(SIZES))]
            if all((thing.shape, thing.color) != (shape, color) for thing in things):
                break
        jitter = rng.integers(-1, 1, size=2)  # a big object still stays inside its cell
        x = int(cell) % LATTICE * CELL + CELL // 2 + int(jitter[0])
        y = int(cell) // LATTICE * CELL + CELL // 2 + int(jitter[1])
        things.append(Thing(x, y, shape, color, size))
    return Scene(tuple(things))


def _pick(rng: np.random.Generator, scene: Scene) -> Thing:
    return scene.things[rng.integers(len(scene.things))]


def _is_unique(scene: Scene, **values: str) -> bool:
    return (
        sum(all(getattr(thing, key) == value for key, value in values.items()) for thing in scene.things) == 1
    )


def classification(rng: np.random.Generator, name: str, pool: str = "federated") -> Example:
    """Ask for the shape of a single object; the group is its color."""
    scene = draw_scene(rng, 1, pool)
    thing = scene.things[0]
    label = SHAPES.index(thing.shape)
    return Example(
        name, "Which shape is shown?", thing.shape, scene, None, label, thing.color, SHAPES, "choice"
    )


def vqa(rng: np.random.Generator, name: str, pool: str = "federated") -> Example:
    """Ask for color, shape, size, number, place or presence; every question has exactly one right answer."""
    scene = draw_scene(rng, int(rng.integers(1, 5)), pool)
    thing = _pick(rng, scene)
    kind = ("color", "shape", "size", "count", "where", "exist")[rng.integers(6)]
    row, column = thing.cell
    if kind == "color" and _is_unique(scene, shape=thing.shape):
        question, answer = f"What color is the {thing.shape}?", thing.color
    elif kind == "shape" and _is_unique(scene, color=thing.color):
        question, answer = f"What shape is the {thing.color} object?", thing.shape
    elif kind == "size":
        question, answer = f"What size is the {thing.color} {thing.shape}?", thing.size
    elif kind == "where":
        question, answer = (
            f"In which row and column is the {thing.color} {thing.shape}?",
            f"row {row}, column {column}",
        )
    elif kind == "exist":
        if rng.integers(2):
            other = thing
        else:
            other = draw_scene(rng, 1, pool).things[0]
        there = any((thing.shape, thing.color) == (other.shape, other.color) for thing in scene.things)
        question, answer = f"Is there a {other.color} {other.shape}?", "yes" if there else "no"
    else:
        kind, question, answer = "count", "How many objects are there?", str(len(scene.things))
    answer_type = "closed" if answer in ("yes", "no") else "open"
    return Example(name, question, answer, scene, None, None, kind, (), "vqa", answer_type)


def captioning(rng: np.random.Generator, name: str, pool: str = "federated") -> Example:
    """Ask for a description: the objects in reading order, each with row and column."""
    scene = draw_scene(rng, int(rng.integers(1, 4)), pool)
    things = sorted(scene.things, key=lambda thing: thing.cell)
    phrases = [f"a {thing.name} in row {thing.cell[0]}, column {thing.cell[1]}" for thing in things]
    return Example(
        name,
        "Describe the picture.",
        " and ".join(phrases),
        scene,
        None,
        None,
        str(len(things)),
        (),
        "caption",
    )


def grounding(rng: np.random.Generator, name: str, pool: str = "federated") -> Example:
    """Ask for the box around one object."""
    scene = draw_scene(rng, int(rng.integers(1, 5)), pool)
    thing = _pick(rng, scene)
    question = f"Where is the {thing.color} {thing.shape}?"
    return Example(name, question, str(list(thing.box)), scene, None, None, thing.shape, (), "grounding")


MAKERS: dict[str, Callable[..., Example]] = {
    "classification": classification,
    "vqa": vqa,
    "captioning": captioning,
    "grounding": grounding,
}


def load_shapes(settings: Data, seed: int) -> DataSet:
    """Draw `limit` training scenes (default 1,000) and `test_share` / (1 − `test_share`) as many test scenes.

    With task "all" the four tasks alternate, and the group is the task, so that the partition by_group gives
    each of four clients one task. No test scene equals a training scene.
    """
    count_train = settings.limit or 1000
    tests = max(1, round(count_train * settings.test_share / (1 - settings.test_share)))
    kinds = list(MAKERS) if settings.task == "all" else [settings.task]
    style = settings.variant or next(iter(STYLES))
    seen: set[str] = set()

    def draw(part: str, count: int) -> tuple[Example, ...]:
        examples: list[Example] = []
        number = 0
        while len(examples) < count:
            kind = kinds[len(examples) % len(kinds)]
            example = MAKERS[kind](stream(seed, f"shapes/{part}", step=number), f"shapes-{part}-{number}")
            number += 1
            assert isinstance(example.image, Scene)
            scene = replace(example.image, style=style)
            group = example.task if len(kinds) > 1 else example.group
            if part == "train" or scene.key not in seen:
                examples.append(replace(example, image=scene, group=group))
            if part == "train":
                seen.add(scene.key)
        return tuple(examples)

    return DataSet("shapes", draw("train", count_train), draw("test", tests))
