"""From conversations to padded batches, and from batches to likelihoods of answers.

Shape legend: K clients side by side, B conversations of each, L tokens in the longest, D model width, E encoder
width, O options, N answer tokens in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from fedloom.models.chat_templates import answered
from fedloom.models.decoder_inputs import (
    Connect,
    Rows,
    attention,
    connected,
    decoder_inputs,
    next_positions,
    slides,
)
from fedloom.models.family_interface import Grid
from fedloom.models.last_layer import reading
from fedloom.models.load_model import Vlm
from fedloom.system.errors import UserError
from fedloom.system.timing import Clock
from fedloom.types import Conversation, Turn

LOGITS = 2**26
"""Logits that are computed at once in training; more answer tokens go in pieces."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """Token ids of one conversation: the prompt up to where the answer starts, and possible answers.

    `prompt` holds an image token for every feature of a picture; `answers` end with the end-of-sequence token.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


def encode(vlm: Vlm, conversation: Conversation, answers: Sequence[str]) -> Encoded:
    """Put a conversation into the model's chat template and tokenize it.

    Raises:
        UserError: The chat template changes the prompt once an answer follows it, or does not show every
            image once.
    """
    key, known = _key(vlm, conversation, answers), vlm.memo.tokens
    if key not in known:
        known[key] = _encode(vlm, conversation, answers)
    return known[key]


def length(vlm: Vlm, conversation: Conversation) -> int:
    """Return how many tokens a conversation has with its longest answer; nothing is remembered."""
    found = _encode(vlm, conversation, conversation.options or (conversation.answer,))
    return len(found.prompt) + max(map(len, found.answers))


def image_tokens(vlm: Vlm, grid: Grid) -> int:
    """Return how many tokens an image of a grid takes in a prompt, with the marks around it."""
    text, known = _spelled(vlm, grid), vlm.memo.tokens
    key = ("image tokens", text)
    if key not in known:
        known[key] = len(vlm.tokenizer(text, add_special_tokens=False)["input_ids"])
    return known[key]


def _key(vlm: Vlm, one: Conversation, answers: Sequence[str]) -> tuple[Any, ...]:
    """Name everything that a conversation's tokens depend on."""
    turns = [(turn.user, turn.answer, turn.places) for turn in (*one.history, one.turn)]
    images = tuple(_spelled(vlm, grid) for grid in vlm.grids(one.pictures))
    return (tuple(turns[:-1]), one.user, one.turn.places, one.system, images, tuple(answers))


def _spelled(vlm: Vlm, grid: Grid) -> str:
    """Return the text that stands for an image; models with other connectors, and so digests, may have another."""
    key, known = ("spelled", vlm.digest, grid), vlm.memo.tokens
    if key not in known:
        known[key] = vlm.family.spell(vlm.model, vlm.tokenizer, grid)
    return known[key]


def _content(turn: Turn) -> list[dict[str, str]]:
    """Write a user turn as a chat template takes it: texts and images in their order."""
    parts: list[dict[str, str]] = []
    before = 0
    for place in turn.places:
        if place > before:
            parts.append({"type": "text", "text": turn.user[before:place]})
        parts.append({"type": "image"})
        before = place
    if turn.user[before:] or before == 0:
        parts.append({"type": "text", "text": turn.user[before:]})
    return parts


def _turns(conversation: Conversation) -> list[dict[str, Any]]:
    """Write a conversation up to its answer as a chat template takes it."""
    turns: list[dict[str, Any]] = []
    if conversation.system is not None:
        turns.append({"role": "system", "content": [{"type": "text", "text": conversation.system}]})
    for turn in conversation.history:
        turns += [{"role": "user", "content": _content(turn)}, answered(turn.answer)]
    return [*turns, {"role": "user", "content": _content(conversation.turn)}]


def _encode(vlm: Vlm, conversation: Conversation, answers: Sequence[str]) -> Encoded:
    turns, grids, tokenizer = _turns(conversation), vlm.grids(conversation.pictures), vlm.tokenizer
    turns, prompt = vlm.processor.framed(turns)
    ends: list[tuple[int, ...]] = []
    for answer in answers:
        written = vlm.processor.reply(turns, prompt, answer).rstrip("\n")
        ids = tokenizer(written, add_special_tokens=False)["input_ids"]
        ends.append((*ids, *(() if ids and ids[-1] == tokenizer.eos_token_id else (tokenizer.eos_token_id,))))
    placeholder = vlm.family.placeholder(vlm.model, tokenizer)
    before, *after = prompt.split(placeholder) if placeholder else [prompt]
    if len(after) != len(grids):
        raise UserError(
            f"the chat template of {vlm.name!r} writes {placeholder!r} {len(after)} times for {len(grids)} images"
        )
    spelled = [_spelled(vlm, grid) + text for grid, text in zip(grids, after, strict=True)]
    text = vlm.family.tidy(tokenizer, before + "".join(spelled))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.bos_token_id is not None and tokenizer.bos_token_id not in ids:
        ids = [tokenizer.bos_token_id, *ids]
    return Encoded(tuple(ids), tuple(ends))


@dataclass(frozen=True, eq=False)
class Batch:
    """What one training step of one or several clients needs.

    Attributes:
        ids: Token ids, shape [K·B, L], padded on the right; a client with fewer than B conversations has
            rows of padding, which bear no loss.
        mask: 1 on tokens that are seen, shape [K·B, L].
        features: Each client's encoder features, picture by picture, [*grid, E] each.
        lengths: Tokens of each row's prompt; 0 in rows of padding.
        grids: Grids of each row's pictures.
        row: Row of each answer token, shape [N].
        column: Position before each answer token, whose state predicts it, shape [N].
        weight: What each answer token counts in its client's loss, shape [N].
        sizes: Number of answer tokens of each client.
        reads: Positions of each client's answer states in the batch, as `reading` wants them, shape [K, n].
    """

    ids: Tensor
    mask: Tensor
    features: tuple[tuple[Tensor, ...], ...]
    lengths: tuple[int, ...]
    grids: tuple[tuple[Grid, ...], ...]
    row: Tensor
    column: Tensor
    weight: Tensor
    sizes: tuple[int, ...]
    reads: Tensor


def collate(vlm: Vlm, groups: Sequence[Sequence[Conversation]], clock: Clock | None = None) -> Batch:
    """Encode the conversations of one training step, each client's as one group."""
    clock = clock or Clock()
    features = tuple(
        tuple(vlm.look([picture for one in group for picture in one.pictures])) for group in groups
    )
    clock.lap("vision")
    height = max(len(group) for group in groups)
    rows: list[list[int]] = []
    lengths: list[int] = []
    grids: list[tuple[Grid, ...]] = []
    row, column, weight, sizes = [], [], [], []
    for group in groups:
        before = len(row)
        for conversation in group:
            one = encode(vlm, conversation, [conversation.answer])
            prompt, answer = one.prompt, one.answers[0]
            row += [len(rows)] * len(answer)
            column += range(len(prompt) - 1, len(prompt) - 1 + len(answer))
            weight += [1 / (len(answer) * len(group))] * len(answer)
            rows.append([*prompt, *answer])
            lengths.append(len(prompt))
            grids.append(vlm.grids(conversation.pictures))
        spare = height - len(group)
        rows, lengths, grids = rows + [[vlm.filler]] * spare, lengths + [0] * spare, grids + [()] * spare
        sizes.append(len(row) - before)
    ids, mask = pad(vlm, rows)
    rows_of, columns_of = torch.tensor(row), torch.tensor(column)
    places = (rows_of * ids.shape[1] + columns_of).split(sizes)
    reads = pad_sequence(list(places), batch_first=True, padding_value=ids.numel())
    batch = Batch(
        vlm.send(ids),
        vlm.send(mask),
        features,
        tuple(lengths),
        tuple(grids),
        vlm.send(rows_of),
        vlm.send(columns_of),
        vlm.send(torch.tensor(weight)),
        tuple(sizes),
        vlm.send(reads),
    )
    clock.lap("data")
    return batch


def answer_states(vlm: Vlm, batch: Batch, connects: Sequence[Connect] | None = None) -> Tensor:
    """Return the hidden states that predict the answers' tokens, shape [N, D]."""
    tokens = connected(vlm, batch.features, connects)
    rows = Rows(batch.ids, batch.mask, batch.lengths, batch.grids)
    with reading(vlm, batch.reads):
        states = vlm.decoder(**decoder_inputs(vlm, rows, tokens), use_cache=False)[0]
    return states[batch.row, batch.column]


def answer_losses(vlm: Vlm, batch: Batch, connects: Sequence[Connect] | None = None) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens for each client, shape [K].

    A client's conversations count alike, whatever the length of their answers. The head is applied at
    answer positions only; question, padding and image tokens carry no loss.
    """
    states, targets = (
        answer_states(vlm, batch, connects),
        batch.ids[batch.row, batch.column + 1],
    )  # [N, D], [N]
    size = max(1, LOGITS // vlm.model.get_input_embeddings().num_embeddings)
    if len(targets) <= size:
        losses = _token_losses(vlm, states, targets)
    else:  # the backward pass computes each piece's logits again, so that only one piece's are there at a time
        losses = torch.cat(
            [
                checkpoint(partial(_token_losses, vlm), *piece, use_reentrant=False, preserve_rng_state=False)
                for piece in zip(states.split(size), targets.split(size), strict=True)
            ]
        )
    return torch.stack([part.sum() for part in (losses * batch.weight).split(batch.sizes)])


def _token_losses(vlm: Vlm, states: Tensor, targets: Tensor) -> Tensor:  # [N, D], [N] → [N]
    logits = vlm.family.head(vlm.model, states)  # [N, vocabulary]
    return F.cross_entropy(logits.float(), targets, reduction="none")


def answer_loss(vlm: Vlm, conversations: Sequence[Conversation]) -> Tensor:
    """Mean negative log-likelihood of the answers of one client's conversations, a scalar."""
    return answer_losses(vlm, collate(vlm, [conversations]))[0]


def pad(vlm: Vlm, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Pad token ids on the right: ids [B, L] and mask [B, L] with 1 on real tokens."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), vlm.filler)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        ids[index, : len(row)] = torch.tensor(row)
        mask[index, : len(row)] = 1
    return ids, mask


def _rows(
    vlm: Vlm,
    ids: Tensor,
    mask: Tensor,
    prompts: Sequence[Sequence[int]],
    conversations: Sequence[Conversation],
) -> Rows:
    lengths = tuple(len(prompt) for prompt in prompts)
    return Rows(ids, mask, lengths, tuple(vlm.grids(one.pictures) for one in conversations))


@torch.no_grad()
def option_scores(
    vlm: Vlm, conversations: Sequence[Conversation], connects: Sequence[Connect] | None = None
) -> Tensor:
    """Score every option by the log-likelihood of its tokens after the prompt, shape [K·B, O].

    One forward pass: a prompt is followed by all its options, and the attention mask lets an option see the
    prompt and itself only, with positions counted as if it stood there alone. That gives what one pass
    per option would give, at the cost of one prompt. With K clients' adapters side by side each of them
    answers every conversation, in the same pass.

    Args:
        vlm: The model.
        conversations: B of them, with options.
        connects: The K clients' connectors; None stands for the model as it is, K = 1.
    """
    connects = connects or [vlm.connect]
    features = [vlm.look([picture for one in conversations for picture in one.pictures])] * len(connects)
    conversations = [*conversations] * len(connects)
    encoded = [encode(vlm, one, one.options) for one in conversations]
    prompts = [one.prompt for one in encoded]
    rows = [[*one.prompt, *(token for answer in one.answers for token in answer)] for one in encoded]
    ids, mask = pad(vlm, rows)
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
    allowed = causal & seen & (segment[:, None, :] >= 0)
    ids, mask, position, segment, before, allowed = (
        vlm.send(one) for one in (ids, mask, position, segment, before, allowed)
    )
    padded = _rows(vlm, ids, mask, prompts, conversations)
    tokens = connected(vlm, features, connects)
    inputs = decoder_inputs(vlm, padded, tokens, allowed=allowed, position=position)
    row, column = torch.nonzero(segment > 0, as_tuple=True)  # [N]
    place = row * width + before[row, column]
    with reading(vlm, place.unique().view(len(connects), -1)):
        states = vlm.decoder(**inputs, use_cache=False)[0]
    logits = vlm.family.head(vlm.model, states.flatten(0, 1)[place])
    gained = -F.cross_entropy(logits.float(), ids[row, column], reduction="none")
    options = max(len(one.answers) for one in encoded)
    scores = torch.zeros(len(rows), options, device=vlm.device)
    return scores.index_put_((row, segment[row, column] - 1), gained, accumulate=True).cpu()


@torch.no_grad()
def generate(
    vlm: Vlm,
    conversations: Sequence[Conversation],
    connects: Sequence[Connect] | None = None,
    *,
    max_tokens: int = 32,
) -> list[str]:
    """Answer each conversation greedily, in one padded batch with a key-value cache; see `option_scores`.

    Prompts are padded on the right: new tokens follow the padding in the cache, which no token sees, and are
    counted on from their prompt's end.
    """
    from transformers import DynamicCache

    connects = connects or [vlm.connect]
    features = [vlm.look([picture for one in conversations for picture in one.pictures])] * len(connects)
    conversations = [*conversations] * len(connects)
    prompts = [encode(vlm, one, []).prompt for one in conversations]
    ids, mask = (vlm.send(one) for one in pad(vlm, prompts))
    rows, cache = _rows(vlm, ids, mask, prompts, conversations), DynamicCache()
    inputs = decoder_inputs(vlm, rows, connected(vlm, features, connects))
    place = torch.arange(len(prompts), device=vlm.device) * ids.shape[1] + mask.sum(1) - 1
    with reading(vlm, place.view(len(connects), -1)):
        states = vlm.decoder(**inputs, past_key_values=cache, use_cache=True)[0]
    states = states.flatten(0, 1)[place]  # [B, D]
    later, position = vlm.family.later(inputs), next_positions(vlm, inputs, rows)
    places = torch.arange(ids.shape[1], device=vlm.device).expand(
        len(prompts), -1
    )  # [B, L], in tokens; of padding any
    ends = torch.tensor(_ends(vlm), device=vlm.device)
    tokens, done = [], torch.zeros(len(prompts), dtype=torch.bool, device=vlm.device)
    while True:
        token = vlm.family.head(vlm.model, states).argmax(1)  # [B]
        done |= torch.isin(token, ends)
        tokens.append(token.masked_fill(done, int(ends[0])))
        if bool(done.all()) or len(tokens) == max_tokens:
            break
        places = torch.cat((places, mask.sum(1, keepdim=True)), 1)
        mask = torch.cat((mask, mask.new_ones(len(prompts), 1)), 1)
        seen = attention(vlm, mask[:, None].bool(), places) if slides(vlm) else mask
        embeddings = vlm.model.get_input_embeddings()(token[:, None])
        given = vlm.family.place(vlm.model, token[:, None], embeddings, [])
        step = {**given, "attention_mask": seen, "position_ids": position, **later}
        states = vlm.decoder(**step, past_key_values=cache, use_cache=True)[0][:, 0]
        position = position + 1
    replies = torch.stack(tokens, 1)
    return [text.strip() for text in vlm.tokenizer.batch_decode(replies, skip_special_tokens=True)]


def _ends(vlm: Vlm) -> list[int]:
    """Return the tokens that end an answer: those of the model's generation settings and the tokenizer's."""
    known = vlm.model.generation_config.eos_token_id
    listed = known if isinstance(known, list) else [known]
    return list(dict.fromkeys(one for one in (vlm.tokenizer.eos_token_id, *listed) if one is not None))
