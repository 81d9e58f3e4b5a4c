"""Render conversations with a model's chat template, and hold its tokenizer and image processor."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedloom.models.chat_templates import (
    TEMPLATE_SETTINGS,
    TODAY,
    Turn,
    assistant_turn,
    reply_after,
    with_fixed_date,
)
from fedloom.models.family_interface import PLAIN
from fedloom.models.hub import first_line
from fedloom.system.errors import UserError


@dataclass(frozen=True, eq=False)
class Processor:
    """A tokenizer and an image processor.

    The processors of transformers do more, but those that also take videos cannot be built without torchvision.

    Attributes:
        tokenizer: The tokenizer, with the chat template if the model has one.
        image_processor: Images → tensors; None for a language model without images.
        template: The chat template for a model that has none.
        image: The text of an image in a prompt.
        flat: Whether the chat template takes contents as one text, as those of plain language models do.
    """

    tokenizer: Any
    image_processor: Any
    template: str = PLAIN
    image: str = ""
    flat: bool = False

    @property
    def chat_template(self) -> str:
        """The chat template that is used."""
        return with_fixed_date(self.tokenizer.chat_template or self.template)

    @property
    def template_arguments(self) -> dict[str, Any]:
        """The arguments of the chat template besides the turns."""
        return {"image": self.image, "date_string": TODAY, **TEMPLATE_SETTINGS}

    def apply_chat_template(self, turns: Sequence[Turn], **choices: Any) -> str:
        """Render turns; choices are those of the tokenizer's method of this name.

        Special tokens in the text of a turn are escaped, see `escape_tokens`.

        Raises:
            UserError: The template fails.
        """
        turns = [{**turn, "content": [self._escaped(part) for part in turn["content"]]} for turn in turns]
        if self.flat:
            turns = [{**turn, "content": self._flat(turn["content"])} for turn in turns]
        try:
            return self.tokenizer.apply_chat_template(
                turns, chat_template=self.chat_template, **self.template_arguments, **choices
            )
        except Exception as error:  # a template is a program that comes with a model
            raise UserError(f"model: the chat template fails ({first_line(error)})") from error

    def build_prompt(self, turns: Sequence[Turn]) -> tuple[list[Turn], str]:
        """Return turns in the form that the chat template supports, and their prompt.

        If the template fails on a system turn or leaves it out, its text becomes the beginning of the first question.
        """
        first, *others = turns
        if first["role"] != "system":
            return [*turns], self._prompt(turns)
        if self.tokenizer.chat_template:
            try:
                prompt = self._prompt(turns)
            except UserError:  # templates raise errors of their own for unknown roles
                prompt = ""
            if self.escape_tokens(first["content"][0]["text"].strip()) in prompt:
                return [*turns], prompt
        start = {"type": "text", "text": first["content"][0]["text"] + "\n"}
        merged = [{**others[0], "content": [start, *others[0]["content"]]}, *others[1:]]
        return merged, self._prompt(merged)

    def reply(self, turns: Sequence[Turn], prompt: str, answer: str) -> str:
        """Return an answer and its end as the chat template writes them after a prompt.

        Args:
            turns: The turns of the prompt.
            prompt: The prompt from `build_prompt`.
            answer: The answer.

        Raises:
            UserError: The template changes the prompt when an answer follows it.
        """
        whole = self._with_answer(turns, answer)
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        other = self._with_answer(turns, "a" if answer.strip()[:1] != "a" else "b")
        reply = reply_after(prompt, self.apply_chat_template(turns, tokenize=False), whole, other)
        if reply is None:
            raise UserError("model: the chat template changes the prompt once an answer follows it")
        return reply

    def _with_answer(self, turns: Sequence[Turn], answer: str) -> str:
        return self.apply_chat_template([*turns, assistant_turn(answer)], tokenize=False)

    def escape_tokens(self, text: str) -> str:
        """Insert a space into everything that this tokenizer would read as a special token, so that it stays text.

        `fedloom.tasks.clean_text` does the same for common forms of special tokens; this method uses those of the tokenizer.
        """
        return escape_tokens(self._special, text)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return special_tokens(self.tokenizer, self.image)

    def _prompt(self, turns: Sequence[Turn]) -> str:
        return self.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def _escaped(self, part: dict[str, str]) -> dict[str, str]:
        return part if part["type"] == "image" else {**part, "text": self.escape_tokens(part["text"])}

    def _flat(self, content: Sequence[dict[str, str]]) -> str:
        return "".join(f"{self.image}\n" if part["type"] == "image" else part["text"] for part in content)


def special_tokens(tokenizer: Any, *more: str) -> re.Pattern[str]:
    """Return a pattern that matches a tokenizer's special tokens, added marks such as "|NEWLINE|", and more texts."""
    added = tokenizer.added_tokens_decoder.values()
    marks = [token.content for token in added if token.special or _is_mark(token.content)]
    names = {name.strip() for name in (*tokenizer.all_special_tokens, *marks, *more)}
    # A mark of one character could only be removed, but a text may contain it as a letter.
    listed = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, listed)) or r"(?!)")


def escape_tokens(pattern: re.Pattern[str], text: str) -> str:
    """Insert a space after the first character of each match of `special_tokens`, until there is no match."""
    while (escaped := pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)) != text:
        text = escaped
    return text


def _is_mark(name: str) -> bool:
    """Return whether an added token is a mark such as "|NEWLINE|" and not a word."""
    name = name.strip()
    return len(name) > 2 and not name[0].isalnum() and not name[-1].isalnum() and any(map(str.isalpha, name))
