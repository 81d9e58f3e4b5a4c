"""A local causal language model that answers prompts, for judging what others said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fedloom.models.chat_templates import SETTLED, TODAY, dated, trial
from fedloom.models.hub import Source
from fedloom.models.processor import plain, special
from fedloom.system.errors import UserError
from fedloom.tasks.llm_judge import Judge

BATCH_SIZE = 16
ROOM = 8
"""Tokens a verdict may take."""


def load_judge(path: str, device: torch.device | str = "cpu") -> Judge:
    """Load a causal language model from this machine as a judge that decodes greedily.

    A chat template is used where the tokenizer has one; else the prompt is continued after a line break.

    Args:
        path: A local folder in the Hugging Face layout, or a name in the local hub cache; never the network.
        device: Where it runs.

    Raises:
        UserError: There is no causal language model with safetensors weights at `path`.
    """
    from transformers import AutoModelForCausalLM

    source = Source("evaluate.judge", path, network=False)
    try:
        tokenizer = source.tokenizer()
        model: Any = source.model(AutoModelForCausalLM)
    except UserError as error:
        raise UserError(
            f"{error}; give a local folder with safetensors weights, or null for no judge"
        ) from error
    if tokenizer.chat_template is not None:
        trial(source.key, path, dated(tokenizer.chat_template), _given(tokenizer), flat=True)
    model.requires_grad_(False).eval().to(device)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    marks = special(tokenizer)  # a reply may hold what would end the judge's turn

    @torch.no_grad()
    def judge(prompts: Sequence[str]) -> list[str]:
        texts, said = [_framed(tokenizer, plain(marks, prompt)) for prompt in prompts], [""] * len(prompts)
        # Texts of like length together waste the least on padding.
        order = sorted(range(len(texts)), key=lambda place: (len(texts[place]), place))
        for start in range(0, len(order), BATCH_SIZE):
            places = order[start : start + BATCH_SIZE]
            inputs = tokenizer(
                [texts[place] for place in places],
                return_tensors="pt",
                padding=True,
                add_special_tokens=tokenizer.chat_template is None,  # a template writes them itself
            )
            inputs = inputs.to(device)
            ids = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=ROOM,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
            new = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for place, text in zip(places, new, strict=True):
                said[place] = text.strip()
        return said

    return judge


def _framed(tokenizer: Any, prompt: str) -> str:
    if tokenizer.chat_template is None:
        return f"{prompt}\n"
    turn = [{"role": "user", "content": prompt}]
    template = dated(tokenizer.chat_template)
    return tokenizer.apply_chat_template(
        turn, chat_template=template, tokenize=False, add_generation_prompt=True, date_string=TODAY, **SETTLED
    )


def _given(tokenizer: Any) -> dict[str, Any]:
    named = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    return {**named, "date_string": TODAY, **SETTLED}
