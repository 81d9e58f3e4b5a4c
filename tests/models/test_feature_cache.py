"""Kept features are the computed ones, bounded, and never wrong without a word."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save

from fedloom.models import memory_cache
from fedloom.models.feature_cache import FeatureStore
from fedloom.models.load_model import Vlm, encoder_identity, load_vlm, why_not_storable, with_feature_store
from fedloom.models.memory_cache import Memo
from fedloom.system.errors import UserError

LIMIT = 2**24


@dataclass(frozen=True)
class Dots:
    """An image that may be asked for its pixels only as often as `left` says."""

    number: int
    left: list[int]

    @property
    def key(self) -> str:
        return f"dots-{self.number}"

    def pixels(self) -> NDArray[np.uint8]:
        self.left[0] -= 1
        assert self.left[0] >= 0, "encoded again"
        return np.random.default_rng(self.number).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def dots(count: int, left: int) -> list[Dots]:
    counter = [left]
    return [Dots(number, counter) for number in range(count)]


def cold(vlm: Vlm, folder: Path) -> Vlm:
    """Return a model that remembers nothing, and keeps its features below a folder."""
    return with_feature_store(replace(vlm, memo=Memo()), folder, LIMIT)


def seen(vlm: Vlm, images: list[Dots]) -> torch.Tensor:
    return torch.stack(vlm.image_features(images))


@pytest.fixture
def vlm(tiny_model: Path) -> Vlm:
    return load_vlm(str(tiny_model))


def test_another_process_reads_the_same_bits_and_encodes_nothing(vlm: Vlm, tmp_path: Path) -> None:
    plain = seen(vlm, dots(5, left=5))
    first = cold(vlm, tmp_path)
    first.image_features(dots(5, left=5))
    later = cold(vlm, tmp_path)
    assert not later.memo.missing(dots(5, left=0))
    assert torch.equal(seen(later, dots(5, left=0)), plain)


def test_shards_of_several_calls_are_all_found(vlm: Vlm, tmp_path: Path) -> None:
    stored = cold(vlm, tmp_path)
    images = dots(6, left=6)
    seen(stored, images[:2])
    seen(stored, images)
    later = cold(vlm, tmp_path)
    assert torch.equal(seen(later, images), seen(stored, images))


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="this system does not say what is mapped")
def test_features_in_memory_keep_no_file_mapped(vlm: Vlm, tmp_path: Path) -> None:
    """A mapping for each image would reach the system's limit (65,530) and look like damage."""
    cold(vlm, tmp_path).image_features(dots(5, left=5))
    later = cold(vlm, tmp_path)
    held = later.image_features(dots(5, left=0))
    assert len(held) == 5 and str(tmp_path) not in Path("/proc/self/maps").read_text()


@pytest.mark.parametrize("damage", ["flip", "truncate", "header"])
def test_damage_is_detected_reported_and_repaired(damage: str, vlm: Vlm, tmp_path: Path) -> None:
    stored = cold(vlm, tmp_path)
    right = seen(stored, dots(3, left=3))
    file = next(tmp_path.rglob("*.safetensors"))
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-1] ^= 64
    elif damage == "truncate":
        content = content[:-8]
    else:
        content[3] ^= 255
    file.write_bytes(content)
    later = cold(vlm, tmp_path)
    assert torch.equal(seen(later, dots(3, left=3)), right)
    assert later.memo.store is not None
    assert len(later.memo.store.damaged) == 1
    assert str(file) in later.memo.store.damaged[0]


@pytest.mark.parametrize(
    ("shape", "keys", "digests"),
    [
        ((2, 2, 3), "[[1], [2]]", '["a", "b"]'),
        ((2, 2, 3), "[1, 2]", '["a", "b"]'),
        ((2, 2, 3), '["k", "l"]', '[{"a": 1}, null]'),
        ((2, 2, 3), "[" * 100_000, '["a", "b"]'),
        ((2,), '["k", "l"]', '["a", "b"]'),
        ((), "[]", "[]"),
    ],
)
def test_a_shard_of_another_form_is_damaged_and_ends_nothing(
    shape: tuple[int, ...], keys: str, digests: str, tmp_path: Path
) -> None:
    folder = FeatureStore(tmp_path, {}, LIMIT).folder
    folder.mkdir()
    content = save({"features": torch.zeros(shape)}, metadata={"keys": keys, "sha256": digests})
    (folder / "other.safetensors").write_bytes(content)
    store = FeatureStore(tmp_path, {}, LIMIT)
    assert len(store.damaged) == 1 and "other.safetensors" in store.damaged[0] and store.read("k") is None
    store.write({"k": torch.ones(2, 3)})
    assert torch.equal(store.read("k"), torch.ones(2, 3))  # type: ignore[arg-type]


def test_the_store_stays_within_its_limit(tmp_path: Path) -> None:
    limit = 20_000
    for number in range(10):
        store = FeatureStore(tmp_path, {"encoder": number % 2}, limit)
        store.write({f"{number}-{k}": torch.full((4, 32), float(k)) for k in range(10)})
        assert sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors")) <= limit
        assert torch.equal(store.read(f"{number}-3"), torch.full((4, 32), 3.0))


def test_a_full_store_writes_nothing_says_so_once_and_keeps_a_fixed_subset(
    vlm: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every image is encoded once if it was stored, and otherwise whenever it is needed; nothing is ever replaced."""
    monkeypatch.setattr(memory_cache, "MEMORY_LIMIT", 0)
    size = sum(value.nbytes for value in vlm.image_features(dots(1, left=1)))
    stored = with_feature_store(replace(vlm, memo=Memo()), tmp_path, 3 * size)
    images = dots(4, left=2 + 2 * 5)
    for image in images:
        stored.image_features([image])
    files = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")}
    store = stored.memo.store
    assert len(files) == 2 and store is not None and "engine.cache_gigabytes" in (store.full or "")
    for _ in range(4):
        for image in images:
            stored.image_features([image])
    assert {file: file.stat().st_mtime_ns for file in tmp_path.rglob("*.safetensors")} == files
    assert [image.key in store for image in images] == [True, True, False, False]
    assert images[0].left == [0] and not store.damaged


class Encoder:
    """Gives every image features of its own, and notes the batches and how many earlier features are still in memory."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.held: list[int] = []
        self._made: list[weakref.ref[torch.Tensor]] = []

    def __call__(self, images: Sequence[Any]) -> dict[str, torch.Tensor]:
        self.held.append(sum(one() is not None for one in self._made))
        self.batches.append([image.number for image in images])
        made = {image.key: torch.full((4, 32), float(image.number)) for image in images}
        self._made += map(weakref.ref, made.values())
        return made


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> int:
    """Let files hold the features of three images, and no features stay in memory; return the bytes of one image's."""
    size = 4 * 32 * 4
    for name, value in {"ENCODE_BATCH": 4, "SHARD_BYTES": 3 * size, "MEMORY_LIMIT": 0}.items():
        monkeypatch.setattr(memory_cache, name, value)
    return size


def test_a_store_without_room_for_all_holds_the_images_that_come_first(
    small_files: int, tmp_path: Path
) -> None:
    """Although they are asked for in one call; batches are those without a store."""
    images, encoder, size = dots(20, left=0), Encoder(), small_files
    memo = Memo(store=FeatureStore(tmp_path, {}, 10 * size))
    values = torch.stack(memo.image_features(images, encoder))
    assert values[:, 0, 0].tolist() == [*range(20)]
    assert encoder.batches == [[*range(start, start + 4)] for start in range(0, 20, 4)]
    later = FeatureStore(tmp_path, {}, 10 * size)
    stored = [image.key in later for image in images]
    assert 3 <= sum(stored) < 20 and stored == sorted(stored, reverse=True)
    for file in tmp_path.rglob("*.safetensors"):
        with safe_open(file, "pt") as shard:
            assert shard.get_tensor("features").nbytes <= 3 * size
    for image, value in zip(images[: sum(stored)], values, strict=False):
        kept = later.read(image.key)
        assert kept is not None and torch.equal(kept, value)


@pytest.mark.usefixtures("small_files")
def test_computing_features_never_has_all_of_them_in_memory(tmp_path: Path) -> None:
    encoder, images = Encoder(), dots(80, left=0)
    memo = Memo(store=FeatureStore(tmp_path, {}, LIMIT))
    memo.compute(images, encoder)
    assert max(encoder.held) <= 8  # two batches
    assert not memo.missing(images) and len(memo.known_grids) == 80


def test_what_another_process_uses_is_not_removed(tmp_path: Path) -> None:
    rows = {f"{k}": torch.full((4, 32), float(k)) for k in range(10)}
    first = FeatureStore(tmp_path, {"encoder": 0}, 10_000)
    later = FeatureStore(tmp_path, {"encoder": 1}, 10_000)
    first.write(rows)
    later.write(rows)
    assert first.read("3") is not None and later.read("3") is None and later.full


def test_features_larger_than_the_limit_are_not_stored(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, {}, 100)
    store.write({"a": torch.zeros(100)})
    assert store.read("a") is None
    assert not list(tmp_path.rglob("*.safetensors"))


def test_everything_that_changes_features_changes_the_identity(vlm: Vlm) -> None:
    before = encoder_identity(vlm)
    name = vlm.family.parts.split(name for name, _ in vlm.model.named_parameters())["encoder"][0]
    with torch.no_grad():
        vlm.model.get_parameter(name).flatten()[0] += 1
    assert encoder_identity(vlm)["encoder"] != before["encoder"]
    vlm.processor.image_processor.image_mean = [0.1, 0.1, 0.1]
    assert encoder_identity(vlm)["processor"] != before["processor"]


def test_a_trained_encoder_is_refused_with_the_reason(vlm: Vlm, tmp_path: Path) -> None:
    assert why_not_storable(vlm) is None
    name = vlm.family.parts.split(name for name, _ in vlm.model.named_parameters())["encoder"][0]
    vlm.model.get_parameter(name).requires_grad_(True)
    with pytest.raises(UserError, match=f"the encoder is trained .{name}"):
        with_feature_store(vlm, tmp_path, LIMIT)


def test_dropout_is_refused_with_the_reason(vlm: Vlm, tmp_path: Path) -> None:
    tower = vlm.model.get_submodule(vlm.family.parts.encoder[0])
    tower.add_module("drop", torch.nn.Dropout(0.1))
    tower.train()
    with pytest.raises(UserError, match="drops values at random"):
        with_feature_store(vlm, tmp_path, LIMIT)


def test_a_full_disk_is_reported_and_ends_nothing(
    vlm: Vlm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fedloom.models.feature_cache.write_atomic", full)
    plain = seen(vlm, dots(5, left=5))
    stored = cold(vlm, tmp_path)
    assert torch.equal(seen(stored, dots(3, left=3)), plain[:3])
    assert torch.equal(seen(stored, dots(5, left=2)), plain)
    assert stored.memo.store is not None
    (message,) = stored.memo.store.damaged
    assert message.endswith("no features are kept (No space left on device)")


@pytest.mark.parametrize("place", ["a file", "below a file", "closed"])
def test_a_folder_that_cannot_be_used_ends_nothing(place: str, vlm: Vlm, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "closed").mkdir(mode=0o500)
    folder = (
        tmp_path / {"a file": "file", "below a file": "file/features", "closed": "closed/features"}[place]
    )
    stored = cold(vlm, folder)
    assert torch.equal(seen(stored, dots(3, left=3)), seen(vlm, dots(3, left=3)))


def test_the_grid_of_stored_features_is_read_without_them(vlm: Vlm, tmp_path: Path) -> None:
    images = dots(3, left=3)
    stored = cold(vlm, tmp_path)
    shapes = [value.shape[:-1] for value in stored.image_features(images)]
    later = cold(vlm, tmp_path)
    assert list(later.grids(images)) == [tuple(shape) for shape in shapes] and not later.memo.features
