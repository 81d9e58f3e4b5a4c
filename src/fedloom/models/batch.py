"""From conversations to padded batches, and from batches to likelihoods of answers.

Shape legend: B conversations, L tokens in the longest, T image tokens per picture, D model width, O options,
N answer tokens in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.models.load import Vlm
from fedloom.types import Conversation, UserError


@dataclass(frozen=True, eq=False)
class Encoded:
    """Token ids of one conversation: the prompt up to where the answer starts, and possible answers.

    `prompt` holds one image placeholder per picture; `answers` end with the end-of-sequence token.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


def encode(vlm: Vlm, conversation: Conversation, answers: Sequence[str]) -> Encoded:
    """Put a conversation into the model's chat template and tokenise it.

    Raises:
        UserError: The chat template changes the prompt once an answer follows it.
    """
    key = (conversation.user, conversation.picture is None, tuple(answers))
    if key not in vlm.tokens:
        vlm.tokens[key] = _encode(vlm, conversation, answers)
    return vlm.tokens[key]


def _encode(vlm: Vlm, conversation: Conversation, answers: Sequence[str]) -> Encoded:
    content = [{"type": "text", "text": conversation.user}]
    if conversation.picture is not None:
        content.insert(0, {"type": "image"})
    turn = [{"role": "user", "content": content}]
    tokenizer = vlm.tokenizer
    prompt = vlm.processor.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    ends: list[tuple[int, ...]] = []
    for answer in answers:
        reply = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
        whole = vlm.processor.apply_chat_template([*turn, reply], tokenize=False)
        if not whole.startswith(prompt):
            raise UserError(f"the chat template of {vlm.name!r} changes the prompt once an answer follows it")
        ids = tokenizer(whole[len(prompt) :].rstrip("\n"), add_special_tokens=False)["input_ids"]
        ends.append((*ids, *(() if ids and ids[-1] == tokenizer.eos_token_id else (tokenizer.eos_token_id,))))
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    if tokenizer.bos_token_id is not None and (not ids or ids[0] != tokenizer.bos_token_id):
        ids = [tokenizer.bos_token_id, *ids]
    return Encoded(tuple(ids), tuple(ends))


def embed(vlm: Vlm, ids: Tensor, conversations: Sequence[Conversation]) -> Tensor:
    """Look up token embeddings and put connected image features where the placeholders are: [B, L, D]."""
    embeddings = vlm.model.get_input_embeddings()(ids)
    pictures = [one.picture for one in conversations if one.picture is not None]
    if pictures:
        tokens = vlm.family.connect(vlm.model, vlm.encode(pictures))  # [pictures, T, D]
        place = (ids == vlm.model.config.image_token_id)[..., None].expand_as(embeddings)
        embeddings = embeddings.masked_scatter(place, tokens.to(embeddings.dtype))
    return embeddings


def expand(vlm: Vlm, encoded: Encoded, conversation: Conversation) -> list[int]:
    """Repeat the image placeholder once for every image token."""
    if conversation.picture is None:
        return list(encoded.prompt)
    count = vlm.encode([conversation.picture]).shape[1]
    image = vlm.model.config.image_token_id
    if encoded.prompt.count(image) != 1:
        raise UserError(f"the prompt holds {encoded.prompt.count(image)} image placeholders for one picture")
    where = encoded.prompt.index(image)
    return [*encoded.prompt[:where], *[image] * count, *encoded.prompt[where + 1 :]]


def answer_loss(vlm: Vlm, conversations: Sequence[Conversation]) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens, each conversation counting alike.

    The head is applied at answer positions only; question, padding and image tokens carry no loss.
    """
    encoded = [encode(vlm, one, [one.answer]) for one in conversations]
    prompts = [
        expand(vlm, one, conversation) for one, conversation in zip(encoded, conversations, strict=True)
    ]
    rows = [[*prompt, *one.answers[0]] for prompt, one in zip(prompts, encoded, strict=True)]
    ids, mask = pad(vlm, rows)
    states = vlm.decoder(inputs_embeds=embed(vlm, ids, conversations), attention_mask=mask, use_cache=False)[
        0
    ]
    row = torch.cat([torch.full((len(one.answers[0]),), k) for k, one in enumerate(encoded)])  # [N]
    column = torch.cat(
        [
            torch.arange(len(prompt) - 1, len(prompt) - 1 + len(one.answers[0]))
            for prompt, one in zip(prompts, encoded, strict=True)
        ]
    )
    logits = vlm.model.get_output_embeddings()(states[row, column])  # [N, vocabulary]
    losses = F.cross_entropy(logits.float(), ids[row, column + 1], reduction="none")
    lengths = torch.tensor([len(one.answers[0]) for one in encoded])
    return (losses / lengths[row]).sum() / len(conversations)


def pad(vlm: Vlm, rows: Sequence[Sequence[int]], *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Pad token ids on the right (or left): ids [B, L] and mask [B, L] with 1 on real tokens."""
    width = max(len(row) for row in rows)
    filler = (
        vlm.tokenizer.pad_token_id if vlm.tokenizer.pad_token_id is not None else vlm.tokenizer.eos_token_id
    )
    ids = torch.full((len(rows), width), filler)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, where] = torch.tensor(row)
        mask[index, where] = 1
    return ids, mask


@torch.no_grad()
def option_scores(vlm: Vlm, conversations: Sequence[Conversation]) -> Tensor:
    """Score every option by the log-likelihood of its tokens after the prompt, shape [B, O].

    One forward pass: a prompt is followed by all its options, and the attention mask lets an option see the
    prompt and itself only, with positions counted as if it stood there alone. That gives what one pass
    per option would give, at the cost of one prompt.
    """
    encoded = [encode(vlm, one, one.options) for one in conversations]
    prompts = [
        expand(vlm, one, conversation) for one, conversation in zip(encoded, conversations, strict=True)
    ]
    rows = [[*p, *(t for answer in e.answers for t in answer)] for p, e in zip(prompts, encoded, strict=True)]
    ids, _ = pad(vlm, rows)
    width = ids.shape[1]
    segment = torch.full((len(rows), width), -1)  # −1 padding, 0 prompt, 1… option
    position = torch.zeros(len(rows), width, dtype=torch.long)
    before = torch.zeros(len(rows), width, dtype=torch.long)  # the token whose state predicts this one
    for index, (prompt, one) in enumerate(zip(prompts, encoded, strict=True)):
        start = len(prompt)
        segment[index, :start] = 0
        position[index, :start] = torch.arange(start)
        for number, answer in enumerate(one.answers, 1):
            stop = start + len(answer)
            segment[index, start:stop] = number
            position[index, start:stop] = torch.arange(len(answer)) + len(prompt)
            before[index, start:stop] = torch.tensor([len(prompt) - 1, *range(start, stop - 1)])
            start = stop
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    seen = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])  # [B, L, L]
    allowed = (causal & seen & (segment[:, None, :] >= 0)) | torch.eye(width, dtype=torch.bool)
    bias = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    states = vlm.decoder(
        inputs_embeds=embed(vlm, ids, conversations),
        attention_mask=bias[:, None],
        position_ids=position,
        use_cache=False,
    )[0]
    row, column = torch.nonzero(segment > 0, as_tuple=True)  # [N]
    logits = vlm.model.get_output_embeddings()(states[row, before[row, column]])
    gained = -F.cross_entropy(logits.float(), ids[row, column], reduction="none")
    options = max(len(one.answers) for one in encoded)
    scores = torch.zeros(len(rows), options).index_put_(
        (row, segment[row, column] - 1), gained, accumulate=True
    )
    return scores


@torch.no_grad()
def generate(vlm: Vlm, conversations: Sequence[Conversation], *, max_tokens: int = 32) -> list[str]:
    """Answer each conversation greedily, in one padded batch with a key-value cache."""
    encoded = [encode(vlm, one, []) for one in conversations]
    prompts = [
        expand(vlm, one, conversation) for one, conversation in zip(encoded, conversations, strict=True)
    ]
    ids, mask = pad(vlm, prompts, left=True)
    replies = vlm.model.generate(
        inputs_embeds=embed(vlm, ids, conversations),
        attention_mask=mask,
        max_new_tokens=max_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=vlm.tokenizer.pad_token_id,
    )
    return [text.strip() for text in vlm.tokenizer.batch_decode(replies, skip_special_tokens=True)]
