"""Load a local causal language model that judges the answers of other models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fedloom.models.chat_templates import TEMPLATE_SETTINGS, TODAY, check_template, with_fixed_date
from fedloom.models.hub import Source
from fedloom.models.processor import escape_tokens, special_tokens
from fedloom.system.errors import UserError
from fedloom.tasks.llm_judge import Judge

BATCH_SIZE = 16
VERDICT_TOKENS = 8
"""The most tokens of a verdict."""


def load_judge(path: str, device: torch.device | str = "cpu", precision: str = "float32") -> Judge:
    """Load a causal language model from this machine as a judge that decodes greedily.

    The tokenizer's chat template is used if it has one; otherwise the model continues the prompt after a line break.

    Args:
        path: A local folder in the Hugging Face layout, or a name in the local hub cache; the network is never used.
        device: Where the model runs.
        precision: The data type of its weights there: "float32", "bfloat16" or "float16".

    Raises:
        UserError: There is no causal language model with safetensors weights at `path`.
    """
    from transformers import AutoModelForCausalLM

    source = Source("evaluate.judge", path, network=False)
    try:
        tokenizer = source.tokenizer()
        model: Any = source.model(AutoModelForCausalLM, lean=precision != "float32")
    except UserError as error:
        raise UserError(
            f"{error}; give a local folder with safetensors weights, or null for no judge"
        ) from error
    if tokenizer.chat_template is not None:
        check_template(
            source.key, path, with_fixed_date(tokenizer.chat_template), _arguments(tokenizer), flat=True
        )
    model.requires_grad_(False).eval().to(device, getattr(torch, precision))
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    special = special_tokens(tokenizer)  # an answer may contain a token that would end the judge's turn

    @torch.no_grad()
    def judge(prompts: Sequence[str]) -> list[str]:
        texts = [_with_template(tokenizer, escape_tokens(special, prompt)) for prompt in prompts]
        verdicts = [""] * len(prompts)
        # Batches of texts of similar length need the least padding.
        order = sorted(range(len(texts)), key=lambda index: (len(texts[index]), index))
        for start in range(0, len(order), BATCH_SIZE):
            batch = order[start : start + BATCH_SIZE]
            inputs = tokenizer(
                [texts[index] for index in batch],
                return_tensors="pt",
                padding=True,
                add_special_tokens=tokenizer.chat_template is None,  # a template writes them itself
            )
            inputs = inputs.to(device)
            ids = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=VERDICT_TOKENS,
                do_sample=False,
                pad_token_id=tokenizer.pad_token_id,
            )
            new = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for index, text in zip(batch, new, strict=True):
                verdicts[index] = text.strip()
        return verdicts

    return judge


def _with_template(tokenizer: Any, prompt: str) -> str:
    if tokenizer.chat_template is None:
        return f"{prompt}\n"
    turn = [{"role": "user", "content": prompt}]
    template = with_fixed_date(tokenizer.chat_template)
    return tokenizer.apply_chat_template(
        turn,
        chat_template=template,
        tokenize=False,
        add_generation_prompt=True,
        date_string=TODAY,
        **TEMPLATE_SETTINGS,
    )


def _arguments(tokenizer: Any) -> dict[str, Any]:
    named = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    return {**named, "date_string": TODAY, **TEMPLATE_SETTINGS}
