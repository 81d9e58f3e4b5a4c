"""A model's tokenizer and image processor, and how a conversation becomes the text of its chat template."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fedloom.models.chat_templates import SETTLED, TODAY, Turn, answered, continued, dated
from fedloom.models.family_interface import PLAIN
from fedloom.models.hub import first_line
from fedloom.system.errors import UserError


@dataclass(frozen=True, eq=False)
class Processor:
    """A tokenizer and an image processor.

    transformers' own processors do the same and more, but those that also take videos cannot be made without
    torchvision.

    Attributes:
        tokenizer: With the chat template, if the model has one.
        image_processor: Images to tensors; None for a language model without images.
        template: The chat template of a model that has none.
        image: What stands for a picture in a prompt.
        flat: Whether the chat template takes text only, as those of plain language models do.
    """

    tokenizer: Any
    image_processor: Any
    template: str = PLAIN
    image: str = ""
    flat: bool = False

    @property
    def chat_template(self) -> str:
        """The chat template that is used."""
        return dated(self.tokenizer.chat_template or self.template)

    @property
    def given(self) -> dict[str, Any]:
        """What the chat template is given besides the turns."""
        return {"image": self.image, "date_string": TODAY, **SETTLED}

    def apply_chat_template(self, turns: Sequence[Turn], **choices: Any) -> str:
        """Write turns as text; choices are those of the tokenizer's method of this name.

        What a turn says stays text: see `plain`.

        Raises:
            UserError: The template fails.
        """
        turns = [{**turn, "content": [self._plain(part) for part in turn["content"]]} for turn in turns]
        if self.flat:
            turns = [{**turn, "content": self._flat(turn["content"])} for turn in turns]
        try:
            return self.tokenizer.apply_chat_template(
                turns, chat_template=self.chat_template, **self.given, **choices
            )
        except Exception as error:  # a template is a program that came with a model
            raise UserError(f"model: the chat template fails ({first_line(error)})") from error

    def framed(self, turns: Sequence[Turn]) -> tuple[list[Turn], str]:
        """Return turns as the chat template takes them, and the prompt they make.

        A system turn that the template refuses or leaves out becomes the beginning of the first question.
        """
        first, *rest = turns
        if first["role"] != "system":
            return [*turns], self._prompt(turns)
        if self.tokenizer.chat_template:
            try:
                written = self._prompt(turns)
            except UserError:  # templates raise errors of their own for roles that they do not know
                written = ""
            if self.plain(first["content"][0]["text"].strip()) in written:
                return [*turns], written
        start = {"type": "text", "text": first["content"][0]["text"] + "\n"}
        merged = [{**rest[0], "content": [start, *rest[0]["content"]]}, *rest[1:]]
        return merged, self._prompt(merged)

    def reply(self, turns: Sequence[Turn], prompt: str, answer: str) -> str:
        """Return an answer and its end as the chat template writes them after a prompt.

        Args:
            turns: The turns that make the prompt.
            prompt: What `framed` gives for them.
            answer: The answer.

        Raises:
            UserError: The template changes the prompt once an answer follows it.
        """
        whole = self._written(turns, answer)
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        other = self._written(turns, "a" if answer.strip()[:1] != "a" else "b")
        rest = continued(prompt, self.apply_chat_template(turns, tokenize=False), whole, other)
        if rest is None:
            raise UserError("model: the chat template changes the prompt once an answer follows it")
        return rest

    def _written(self, turns: Sequence[Turn], answer: str) -> str:
        return self.apply_chat_template([*turns, answered(answer)], tokenize=False)

    def plain(self, text: str) -> str:
        """Put a space into whatever this tokenizer would take for a special token, so that a user's text stays text.

        `fedloom.tasks.clean_text` does the same for the forms that most tokenizers have; this knows those of one.
        """
        return plain(self._special, text)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return special(self.tokenizer, self.image)

    def _prompt(self, turns: Sequence[Turn]) -> str:
        return self.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)

    def _plain(self, part: dict[str, str]) -> dict[str, str]:
        return part if part["type"] == "image" else {**part, "text": self.plain(part["text"])}

    def _flat(self, content: Sequence[dict[str, str]]) -> str:
        return "".join(f"{self.image}\n" if part["type"] == "image" else part["text"] for part in content)


def special(tokenizer: Any, *more: str) -> re.Pattern[str]:
    """Return a pattern of everything that a tokenizer, or whoever reads its text, takes for more than text."""
    added = tokenizer.added_tokens_decoder.values()
    marks = [one.content for one in added if one.special or _is_mark(one.content)]
    names = {name.strip() for name in (*tokenizer.all_special_tokens, *marks, *more)}
    # A mark of one character could only be taken out; a text may hold it as a letter.
    listed = sorted((name for name in names if len(name) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, listed)) or r"(?!)")


def plain(pattern: re.Pattern[str], text: str) -> str:
    """Put a space behind the first character of whatever a pattern of `special` finds, until it finds nothing."""
    while (found := pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", text)) != text:
        text = found
    return text


def _is_mark(name: str) -> bool:
    """Return whether an added token has the form of a mark ("|NEWLINE|") and is no word of a language."""
    name = name.strip()
    return len(name) > 2 and not name[0].isalnum() and not name[-1].isalnum() and any(map(str.isalpha, name))
