"""Models that can think before they answer are asked to answer at once, in the words of their own templates.

The templates have the structure of their owners': Qwen3's and SmolLM3's take `enable_thinking` and think unless it is
false, Gemma 4's ends a prompt by an empty thought that it leaves out of answers that are given.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.answer_loss import answer_loss

from fedloom.models.batches import Encoded, encode
from fedloom.models.load_model import Vlm, load_vlm
from fedloom.models.memory_cache import Memo
from fedloom.system.errors import UserError
from fedloom.types import Conversation, Turn

from .tiny import save

EMPTY = "<think>\n\n</think>\n"
QWEN3 = (
    "{%- set ns = namespace(last=0) -%}"
    "{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- for m in messages -%}"
    "{%- if m.role == 'assistant' and loop.index0 > ns.last -%}"
    "{{- '<assistant>\n<think>\n\n</think>\n\n' + m.content.lstrip('\n') -}}"
    "{%- else -%}{{- '<' + m.role + '>\n' + m.content -}}{%- endif -%}{{- '<end>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<assistant>\n' -}}"
    "{%- if enable_thinking is defined and enable_thinking is false -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}"
    "{%- endif -%}"
)
SMOLLM3 = (
    "{%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}"
    "{%- set mode = '/think' if enable_thinking else '/no_think' -%}"
    "{{- '<s>Today Date: ' ~ strftime_now('%d %B %Y') ~ '\nReasoning Mode: ' + mode + '\n' -}}"
    "{%- for m in messages -%}"
    "{%- if m.role == 'assistant' -%}{% generation %}{{- '<assistant>\n' -}}"
    "{%- if mode == '/no_think' -%}{{- '<think>\n\n</think>\n' -}}{%- endif -%}"
    "{{- m.content.lstrip('\n') + '<end>\n' -}}{% endgeneration %}"
    "{%- else -%}{{- '<user>\n' + m.content + '<end>\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<assistant>\n' -}}"
    "{%- if mode == '/no_think' -%}{{- '<think>\n\n</think>\n' -}}{%- endif -%}{%- endif -%}"
)
GEMMA4 = (
    "{{- bos_token -}}{%- for m in messages -%}"
    "{{- '<' + m.role + '>\n' -}}"
    "{%- if m.content is string -%}{{- m.content -}}{%- else -%}{%- for part in m.content -%}"
    "{{- '<|image|>' if part.type == 'image' else part.text -}}{%- endfor -%}{%- endif -%}"
    "{{- '<end>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<assistant>\n' -}}"
    "{%- if not enable_thinking | default(false) -%}{{- '<thought\n>' -}}{%- endif -%}{%- endif -%}"
)
ASKED = Conversation("Which?", "yes", history=(Turn("Is it?", "no"),))
SETTINGS = "<s>Today Date: 26 Jul 2024\nReasoning Mode: /no_think\n"
CASES = {
    "Qwen3": (
        "qwen3", QWEN3, "<s><user>\nIs it?<end>\n<assistant>\nno<end>\n<user>\nWhich?<end>\n<assistant>\n" + EMPTY + "\n",
    ),
    "SmolLM3": (
        "smollm3", SMOLLM3,
        f"{SETTINGS}<user>\nIs it?<end>\n<assistant>\n{EMPTY}no<end>\n<user>\nWhich?<end>\n<assistant>\n{EMPTY}",
    ),
    "Gemma 4": (
        "gemma4", GEMMA4, "<s><user>\nIs it?<end>\n<assistant>\nno<end>\n<user>\nWhich?<end>\n<assistant>\n<thought\n>",
    ),
}  # fmt: skip

Loaded = Callable[[str, str], Vlm]


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    def load(family: str, template: str) -> Vlm:
        folder = save(family, tmp_path / "model")
        (folder / "chat_template.jinja").write_text(template)
        return load_vlm(str(folder))

    return load


def words(vlm: Vlm, encoded: Encoded) -> tuple[str, list[str]]:
    return vlm.tokenizer.decode(encoded.prompt), [vlm.tokenizer.decode(one) for one in encoded.answers]


@pytest.mark.parametrize("name", CASES)
def test_the_prompt_ends_where_an_answer_without_a_thought_begins(loaded: Loaded, name: str) -> None:
    family, template, expected = CASES[name]
    vlm = loaded(family, template)
    prompt, answers = words(vlm, encode(vlm, ASKED, ["yes", "<no", "a way"]))
    assert prompt == expected
    assert answers == ["yes<end>", "<no<end>", "a way<end>"]
    assert answer_loss(vlm, [ASKED]).isfinite()


def test_a_template_that_changes_earlier_turns_is_refused(loaded: Loaded) -> None:
    vlm = loaded("gemma4", GEMMA4)
    changed = "{{ messages | length }}" + GEMMA4
    vlm.tokenizer.chat_template = changed
    with pytest.raises(UserError, match="changes the prompt once an answer follows it"):
        encode(replace(vlm, memo=Memo()), ASKED, ["yes"])
    with pytest.raises(UserError, match="changes the prompt once an answer follows it"):
        loaded("gemma4", changed)
