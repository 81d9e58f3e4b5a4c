"""What the bundled model is pretrained on holds no emoji that clients train or test on, in whatever style."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fedloom.data.emoji import pool
from pretrain import corpus


def test_an_emoji_of_the_federated_pool_is_left_out_of_every_style(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    monkeypatch.setattr(
        corpus, "_drawn", lambda svg: seen.append(svg) or np.zeros((64, 64, 3), dtype=np.uint8)
    )
    names = {which: corpus.slug(pool(which)[0]["name"]) for which in ("pretrain", "federated")}
    for style in corpus.STYLES:
        folder = tmp_path / "node_modules/@iconify-json" / style
        folder.mkdir(parents=True)
        icons = {name: {"body": f"<g id='{name}'/>"} for name in names.values()}
        (folder / "icons.json").write_text(json.dumps({"width": 36, "height": 36, "icons": icons}))
    drawn = corpus.styles(tmp_path)
    assert drawn.names == [pool("pretrain")[0]["name"]] * len(corpus.STYLES)
    assert drawn.pixels.shape == (len(corpus.STYLES), 64, 64, 3)
    assert len(seen) == len(corpus.STYLES)
    assert all(names["federated"] not in svg for svg in seen)
    seen.clear()
    assert corpus.styles(tmp_path).texts == drawn.texts  # from the file, without drawing again
    assert not seen


@pytest.mark.parametrize(
    ("name", "slug"),
    [("red apple", "red-apple"), ("flag: Côte d’Ivoire", "flag-c-te-d-ivoire"), ("UP! button", "up-button")],
)
def test_names_are_written_as_icon_sets_do(name: str, slug: str) -> None:
    assert corpus.slug(name) == slug


def test_an_image_has_the_meaning_of_the_last_noun_of_its_name() -> None:
    car = corpus.Sense(("car",), (5,), "artifact", "a vehicle", ("motor vehicle",))
    wheel = corpus.Sense(("wheel",), (3,), "artifact", "a round thing", ("machine",))
    meanings = corpus.Meanings([car, wheel])
    assert meanings.head("car wheel") is wheel
    assert meanings.head("car with a wheel") is car
    assert meanings.head("zebra") is None
