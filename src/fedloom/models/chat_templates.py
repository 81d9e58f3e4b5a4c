"""Chat templates: what they are asked for, and a trial of a foreign one before it is used.

A template came with a model and is a program. It is tried on a few conversations in a process of its own, whose time and
memory are bounded, and what it writes must be usable: the user's text and the answer stand in it, every image once, and
an answer follows its prompt without changing it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from fedloom.models.family_interface import PLAIN
from fedloom.models.folder_checks import BUNDLED, TEMPLATE
from fedloom.system.errors import UserError

Turn = dict[str, Any]
"""A turn as chat templates take it: its role, and its content as a list of texts and images."""

SETTLED: dict[str, Any] = {"enable_thinking": False}
"""What every template is given besides dates: models that can think before they answer (Qwen3, SmolLM3) answer at once."""

TODAY = "26 Jul 2024"
"""The date that templates are given, so that a prompt does not depend on the day; Llama 3.2's own default."""

DATED = "{%- macro strftime_now(format) -%}" + TODAY + "{%- endmacro -%}"
SECONDS, MEMORY = 10, 2**30
"""Seconds of processor time and bytes of memory for a trial; a usual template takes a thousandth of either."""
WAIT = 300
"""Seconds after which a trial is given up where the operating system does not bound its processor time."""

QUESTION, ANSWER, OTHER = "what is shown here", "a blue square", "the red one"


def dated(template: str) -> str:
    """Return a template that takes `TODAY` for the date whenever it is used."""
    return DATED + template if "strftime_now" in template else template


def asked(user: str, images: int = 0, *, flat: bool = False, image: str = "") -> list[Turn]:
    """Return the user's turn of a conversation, with images before the text.

    Args:
        user: The text.
        images: How many images.
        flat: Whether the content is one text, as templates of plain language models want it.
        image: What stands for an image in it then.
    """
    if flat:
        return [{"role": "user", "content": f"{image}\n" * images + user}]
    content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": user}]
    return [{"role": "user", "content": content}]


def answered(answer: str, *, flat: bool = False) -> Turn:
    """Return the model's turn of a conversation."""
    return {"role": "assistant", "content": answer if flat else [{"type": "text", "text": answer}]}


def continued(prompt: str, so_far: str, whole: str, other: str) -> str | None:
    """Return what follows a prompt where an answer is given: the answer and its end.

    A template may end a prompt by more than stands before an answer that is given, as Gemma 4's does by an empty thought:
    what follows then begins where conversations with different answers part.

    Args:
        prompt: What asks for the answer.
        so_far: The same conversation without a request for an answer.
        whole: The conversation with the answer.
        other: The conversation with an answer of another first letter.

    Returns:
        The text; None where the template writes what comes before the answer differently once it is there.
    """
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    pairs = enumerate(zip(whole, other, strict=False))
    start = next((place for place, (one, two) in pairs if one != two), len(whole))
    before = whole[:start]
    return whole[start:] if prompt.startswith(before) and before.startswith(so_far) else None


def try_template(
    template: str, more: Mapping[str, Any], *, image: str | None = None, flat: bool = False, token: str = ""
) -> str | None:
    """Return what is wrong with a chat template, or None.

    Args:
        template: The template.
        more: What it is given besides the turns: special tokens by name.
        image: What it must write for every image; None asks for no images.
        flat: Whether it takes contents as one text.
        token: What stands for an image in a flat content.
    """
    if not isinstance(template, str) or len(template) > TEMPLATE:
        return f"it is no text of at most {TEMPLATE:,} characters"
    if template == PLAIN or template in _bundled():
        return None
    counts = (0, 1, 2) if image else (0,)
    cases = [(user, count) for user in (QUESTION, f"{QUESTION} " * 200, "") for count in counts]
    requests: list[tuple[list[Turn], bool]] = []
    for user, count in cases:
        turns = asked(user, count, flat=flat, image=token)
        given = ([*turns, answered(one, flat=flat)] for one in (ANSWER, OTHER))
        requests += [(turns, True), (turns, False), *((one, False) for one in given)]
    found = _rendered(template, json.dumps({"requests": requests, "more": dict(more)}))
    if isinstance(found, str):
        return found
    for number, (user, count) in enumerate(cases):
        prompt, so_far, whole, other = found[4 * number : 4 * number + 4]
        rest = continued(prompt, so_far, whole, other)
        if user.strip() not in prompt:
            return "it leaves out what the user says"
        if image and prompt.count(image) != count:
            return f"it writes {image!r} {prompt.count(image)} times for {count} images"
        if rest is None:
            return "it changes the prompt once an answer follows it"
        if ANSWER not in rest:
            return "it leaves out the answer"
    return None


@lru_cache(maxsize=64)
def _rendered(template: str, request: str) -> Sequence[str] | str:
    """Return what a template writes, or why it fails, from a process of its own."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("chat_template_process.py"))]
    limits = {"seconds": SECONDS, "memory": MEMORY}
    given = json.dumps({"template": template, **limits, **json.loads(request)})
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, input=given.encode(), capture_output=True, timeout=WAIT, env=environment, check=False
        )
        written = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, ValueError):
        return "it does not come to an end, or takes too much memory"
    return str(written["error"]) if "error" in written else [str(text) for text in written["texts"]]


@lru_cache(maxsize=1)
def _bundled() -> frozenset[str]:
    return frozenset(
        (folder / "chat_template.jinja").read_text(encoding="utf-8") for folder in BUNDLED.values()
    )


def trial(key: str, name: str, template: str, more: Mapping[str, Any], **choices: Any) -> None:
    """Refuse a model whose chat template cannot be used; see `try_template`.

    Raises:
        UserError: It fails, does not end, or leaves out or changes what it is given.
    """
    reason = try_template(template, more, **choices)
    if reason is not None:
        raise UserError(f"{key}: the chat template of {name!r} cannot be used: {reason}")
