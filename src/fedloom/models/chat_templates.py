"""Chat templates: the arguments they take, and a check of an unknown template before it is used.

A template is a program that comes with a model. It is tried on a few conversations in a separate process with limited
time and memory. Its output must be usable: it contains the user's text, the answer and every image once, and an answer
follows its prompt without changing it.
"""

from __future__ import annotations

import json
import os
import signal
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
"""A turn in the form that chat templates take: its role, and its content as a list of texts and images."""

TEMPLATE_SETTINGS: dict[str, Any] = {"enable_thinking": False}
"""Arguments of every template besides the date: models that can think before they answer (Qwen3, SmolLM3) do not."""

TODAY = "26 Jul 2024"
"""The date that templates get, so that a prompt does not depend on the day; the default of Llama 3.2."""

DATE_MACRO = "{%- macro strftime_now(format) -%}" + TODAY + "{%- endmacro -%}"
SECONDS, MEMORY = 10, 2**30
"""Seconds of CPU time and bytes of memory for a check; a usual template takes a thousandth of either."""
TIMEOUT = 300
"""Seconds after which a check ends where the operating system does not limit its CPU time."""
LIMIT_SIGNALS = [
    getattr(signal, name)
    for name in ("SIGXCPU", "SIGKILL", "SIGSEGV", "SIGABRT", "SIGBUS")
    if hasattr(signal, name)
]
"""Signals that end a process beyond its limits, or one that fails to get memory."""
ENDLESS = "it does not come to an end, or takes too much memory"

QUESTION, ANSWER, OTHER = "what is shown here", "a blue square", "the red one"


def with_fixed_date(template: str) -> str:
    """Return a template whose date is always `TODAY`."""
    return DATE_MACRO + template if "strftime_now" in template else template


def user_turns(user: str, images: int = 0, *, flat: bool = False, image: str = "") -> list[Turn]:
    """Return a conversation of one user turn, with images before the text.

    Args:
        user: The text.
        images: Number of images.
        flat: Whether the content is one text, as the templates of plain language models take it.
        image: The text of an image in a flat content.
    """
    if flat:
        return [{"role": "user", "content": f"{image}\n" * images + user}]
    content = [*({"type": "image"} for _ in range(images)), {"type": "text", "text": user}]
    return [{"role": "user", "content": content}]


def assistant_turn(answer: str, *, flat: bool = False) -> Turn:
    """Return the assistant's turn of a conversation."""
    return {"role": "assistant", "content": answer if flat else [{"type": "text", "text": answer}]}


def reply_after(prompt: str, so_far: str, whole: str, other: str) -> str | None:
    """Return the text that follows a prompt in a conversation with an answer: the answer and its end.

    A template may end a prompt with more text than it writes before a known answer, as Gemma 4's does with an empty
    thought. The reply then begins where conversations with different answers begin to differ.

    Args:
        prompt: The conversation with a generation prompt.
        so_far: The same conversation without a generation prompt.
        whole: The conversation with the answer.
        other: The conversation with an answer of another first letter.

    Returns:
        The text; None if the template changes what comes before the answer when there is one.
    """
    if whole.startswith(prompt):
        return whole[len(prompt) :]
    pairs = enumerate(zip(whole, other, strict=False))
    start = next((index for index, (left, right) in pairs if left != right), len(whole))
    before = whole[:start]
    return whole[start:] if prompt.startswith(before) and before.startswith(so_far) else None


def try_template(
    template: str, more: Mapping[str, Any], *, image: str | None = None, flat: bool = False, token: str = ""
) -> str | None:
    """Return what is wrong with a chat template, or None.

    Args:
        template: The template.
        more: Its arguments besides the turns: special tokens by name.
        image: The text that it must write for every image; None for a model without images.
        flat: Whether it takes contents as one text.
        token: The text of an image in a flat content.
    """
    if not isinstance(template, str) or len(template) > TEMPLATE:
        return f"it is not a string of at most {TEMPLATE:,} characters"
    if template == PLAIN or template in _bundled():
        return None
    counts = (0, 1, 2) if image else (0,)
    cases = [(user, count) for user in (QUESTION, f"{QUESTION} " * 200, "") for count in counts]
    requests: list[tuple[list[Turn], bool]] = []
    for user, count in cases:
        turns = user_turns(user, count, flat=flat, image=token)
        answered = ([*turns, assistant_turn(answer, flat=flat)] for answer in (ANSWER, OTHER))
        requests += [(turns, True), (turns, False), *((whole, False) for whole in answered)]
    texts = _rendered(template, json.dumps({"requests": requests, "more": dict(more)}))
    if isinstance(texts, str):
        return texts
    for number, (user, count) in enumerate(cases):
        prompt, so_far, whole, other = texts[4 * number : 4 * number + 4]
        reply = reply_after(prompt, so_far, whole, other)
        if user.strip() not in prompt:
            return "it leaves out what the user says"
        if image and prompt.count(image) != count:
            return f"it writes {image!r} {prompt.count(image)} times for {count} images"
        if reply is None:
            return "it changes the prompt once an answer follows it"
        if ANSWER not in reply:
            return "it leaves out the answer"
    return None


@lru_cache(maxsize=64)
def _rendered(template: str, request: str) -> Sequence[str] | str:
    """Render requests in a separate process; return the texts, or the reason of a failure."""
    command = [sys.executable, "-P", str(Path(__file__).with_name("chat_template_process.py"))]
    limits = {"seconds": SECONDS, "memory": MEMORY}
    content = json.dumps({"template": template, **limits, **json.loads(request)})
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command,
            input=content.encode(),
            capture_output=True,
            timeout=TIMEOUT,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return ENDLESS
    if -done.returncode in LIMIT_SIGNALS:
        return ENDLESS
    if done.returncode:  # it was interrupted, or could not begin
        last = (done.stderr.decode(errors="replace").strip().splitlines() or [""])[-1]
        return f"the process that tries it ended with code {done.returncode} ({last[:300]})"
    result = json.loads(done.stdout)
    return str(result["error"]) if "error" in result else [str(text) for text in result["texts"]]


@lru_cache(maxsize=1)
def _bundled() -> frozenset[str]:
    return frozenset(
        (folder / "chat_template.jinja").read_text(encoding="utf-8") for folder in BUNDLED.values()
    )


def check_template(key: str, name: str, template: str, more: Mapping[str, Any], **choices: Any) -> None:
    """Raise an error if a model's chat template cannot be used; see `try_template`.

    Raises:
        UserError: The template fails, does not end, or leaves out or changes the user's text or the answer.
    """
    reason = try_template(template, more, **choices)
    if reason is not None:
        raise UserError(f"{key}: the chat template of {name!r} cannot be used: {reason}")
