"""Turn conversations into padded batches, and batches into likelihoods of answers or generated answers.

Shape legend: K clients side by side, B conversations of each, L tokens in the longest, D model width, E encoder
width, O options, N answer tokens in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedloom.models.chat_templates import assistant_turn
from fedloom.models.decoder_inputs import (
    Connect,
    Rows,
    attention_mask,
    connect_images,
    decoder_inputs,
    has_sliding_window,
    next_positions,
    run_decoder,
)
from fedloom.models.family_interface import Grid
from fedloom.models.last_layer import last_layer_at
from fedloom.models.load_model import Vlm
from fedloom.models.logits import likeliest_of, token_losses
from fedloom.system.errors import UserError
from fedloom.system.timing import Clock
from fedloom.types import Conversation, Turn


@dataclass(frozen=True, eq=False)
class Encoded:
    """Token ids of one conversation: the prompt before the answer, and possible answers.

    `prompt` has one image token for each feature of an image; each of `answers` ends with the end-of-sequence token.
    """

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]


def encode(vlm: Vlm, conversation: Conversation, answers: Sequence[str]) -> Encoded:
    """Write a conversation with the model's chat template and tokenize it.

    Raises:
        UserError: The chat template changes the prompt when an answer follows it, or does not write every image once.
    """
    key, cache = _key(vlm, conversation, answers), vlm.memo.tokens
    if key not in cache:
        cache[key] = _encode(vlm, conversation, answers)
    return cache[key]


def count_tokens(vlm: Vlm, conversation: Conversation) -> int:
    """Count the tokens of a conversation with its longest answer, without using the cache."""
    encoded = _encode(vlm, conversation, conversation.options or (conversation.answer,))
    return len(encoded.prompt) + max(map(len, encoded.answers))


def image_tokens(vlm: Vlm, grid: Grid) -> int:
    """Return how many tokens an image with this grid takes in a prompt, including the marks around it."""
    text, cache = _image_text(vlm, grid), vlm.memo.tokens
    key = ("image tokens", text)
    if key not in cache:
        cache[key] = len(vlm.tokenizer(text, add_special_tokens=False)["input_ids"])
    return cache[key]


def _key(vlm: Vlm, conversation: Conversation, answers: Sequence[str]) -> tuple[Any, ...]:
    """Return everything that a conversation's tokens depend on, as a key of the cache."""
    history = tuple((turn.user, turn.answer, turn.places) for turn in conversation.history)
    images = tuple(_image_text(vlm, grid) for grid in vlm.grids(conversation.pictures))
    last = conversation.turn
    return (history, conversation.user, last.places, conversation.system, images, tuple(answers))


def _image_text(vlm: Vlm, grid: Grid) -> str:
    """Return the text that represents an image in a prompt; it may differ between connectors, hence the digest."""
    key, cache = ("spelled", vlm.digest, grid), vlm.memo.tokens
    if key not in cache:
        cache[key] = vlm.family.spell(vlm.model, vlm.tokenizer, grid)
    return cache[key]


def _content(turn: Turn) -> list[dict[str, str]]:
    """Return a user turn in the form that chat templates take: texts and images in order."""
    parts: list[dict[str, str]] = []
    before = 0
    for index in turn.places:
        if index > before:
            parts.append({"type": "text", "text": turn.user[before:index]})
        parts.append({"type": "image"})
        before = index
    if turn.user[before:] or before == 0:
        parts.append({"type": "text", "text": turn.user[before:]})
    return parts


def _turns(conversation: Conversation) -> list[dict[str, Any]]:
    """Return a conversation up to its answer in the form that chat templates take."""
    turns: list[dict[str, Any]] = []
    if conversation.system is not None:
        turns.append({"role": "system", "content": [{"type": "text", "text": conversation.system}]})
    for turn in conversation.history:
        turns += [{"role": "user", "content": _content(turn)}, assistant_turn(turn.answer)]
    return [*turns, {"role": "user", "content": _content(conversation.turn)}]


def _encode(vlm: Vlm, conversation: Conversation, answers: Sequence[str]) -> Encoded:
    turns, grids, tokenizer = _turns(conversation), vlm.grids(conversation.pictures), vlm.tokenizer
    turns, prompt = vlm.processor.build_prompt(turns)
    ends: list[tuple[int, ...]] = []
    for answer in answers:
        reply = vlm.processor.reply(turns, prompt, answer).rstrip("\n")
        ids = tokenizer(reply, add_special_tokens=False)["input_ids"]
        ends.append((*ids, *(() if ids and ids[-1] == tokenizer.eos_token_id else (tokenizer.eos_token_id,))))
    placeholder = vlm.family.placeholder(vlm.model, tokenizer)
    before, *after = prompt.split(placeholder) if placeholder else [prompt]
    if len(after) != len(grids):
        raise UserError(
            f"the chat template of {vlm.name!r} writes {placeholder!r} {len(after)} times for {len(grids)} images"
        )
    images = [_image_text(vlm, grid) + text for grid, text in zip(grids, after, strict=True)]
    text = vlm.family.tidy(tokenizer, before + "".join(images))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    if tokenizer.bos_token_id is not None and tokenizer.bos_token_id not in ids:
        ids = [tokenizer.bos_token_id, *ids]
    return Encoded(tuple(ids), tuple(ends))


@dataclass(frozen=True, eq=False)
class Batch:
    """The inputs of one training step of one or several clients, or of a part of one.

    Attributes:
        ids: Token ids, shape [K·B, L], padded on the right, on the CPU; a client with fewer than B conversations has
            rows of padding, which add nothing to the loss.
        mask: 1 on real tokens, 0 on padding, shape [K·B, L], on the processor.
        features: Each client's encoder features, [*grid, E] for each image.
        lengths: Tokens of each row's prompt; 0 in rows of padding.
        grids: Grids of each row's images.
        row: Row of each answer token, shape [N].
        column: Position before each answer token, whose hidden state predicts the token, shape [N].
        target: Each answer token, shape [N].
        weight: Weight of each answer token in its client's loss, shape [N].
        sizes: Number of answer tokens of each client.
        reads: Positions of each client's answer states in the batch, as `last_layer_at` wants them, shape [K, n].
    """

    ids: Tensor
    mask: Tensor
    features: tuple[tuple[Tensor, ...], ...]
    lengths: tuple[int, ...]
    grids: tuple[tuple[Grid, ...], ...]
    row: Tensor
    column: Tensor
    target: Tensor
    weight: Tensor
    sizes: tuple[int, ...]
    answer_positions: Tensor


def collate(
    vlm: Vlm, groups: Sequence[Sequence[Conversation]], clock: Clock | None = None, wholes: Sequence[int] = ()
) -> Batch:
    """Build a batch from the conversations of each client, one group per client.

    Where groups are a part of a step, `wholes` are the sizes of whole groups, so that the losses of all parts add up to the mean.
    """
    wholes = wholes or [len(group) for group in groups]
    clock = clock or Clock()
    features = tuple(
        tuple(vlm.image_features([image for conversation in group for image in conversation.pictures]))
        for group in groups
    )
    clock.lap("vision")
    height = max(len(group) for group in groups)
    rows: list[list[int]] = []
    lengths: list[int] = []
    grids: list[tuple[Grid, ...]] = []
    row, column, weight, sizes = [], [], [], []
    for group, whole in zip(groups, wholes, strict=True):
        before = len(row)
        for conversation in group:
            encoded = encode(vlm, conversation, [conversation.answer])
            prompt, answer = encoded.prompt, encoded.answers[0]
            row += [len(rows)] * len(answer)
            column += range(len(prompt) - 1, len(prompt) - 1 + len(answer))
            weight += [1 / (len(answer) * whole)] * len(answer)
            rows.append([*prompt, *answer])
            lengths.append(len(prompt))
            grids.append(vlm.grids(conversation.pictures))
        spare = height - len(group)
        rows, lengths, grids = (
            rows + [[vlm.padding_token]] * spare,
            lengths + [0] * spare,
            grids + [()] * spare,
        )
        sizes.append(len(row) - before)
    ids, mask = pad(vlm, rows)
    rows_of, columns_of = torch.tensor(row), torch.tensor(column)
    positions = (rows_of * ids.shape[1] + columns_of).split(sizes)
    answer_positions = pad_sequence(list(positions), batch_first=True, padding_value=ids.numel())
    batch = Batch(
        ids,
        mask,
        features,
        tuple(lengths),
        tuple(grids),
        vlm.send(rows_of),
        vlm.send(columns_of),
        vlm.send(ids[rows_of, columns_of + 1]),
        vlm.send(torch.tensor(weight)),
        tuple(sizes),
        vlm.send(answer_positions),
    )
    clock.lap("data")
    return batch


def answer_states(vlm: Vlm, batch: Batch, connects: Sequence[Connect] | None = None) -> Tensor:
    """Return the hidden states that predict the answers' tokens, shape [N, D]."""
    tokens = connect_images(vlm, batch.features, connects)
    rows = Rows(batch.ids, batch.mask, batch.lengths, batch.grids)
    with last_layer_at(vlm, batch.answer_positions):
        states = run_decoder(vlm, decoder_inputs(vlm, rows, tokens), use_cache=False)
    return states[batch.row, batch.column]


def answer_losses(vlm: Vlm, batch: Batch, connects: Sequence[Connect] | None = None) -> Tensor:
    """Compute the mean negative log-likelihood of the answers' tokens for each client, shape [K].

    All conversations of a client have the same weight, whatever the length of their answers. The head is applied at
    answer positions only; question, padding and image tokens add nothing to the loss.
    """
    losses = token_losses(vlm, answer_states(vlm, batch, connects), batch.target)
    return torch.stack([part.sum() for part in (losses * batch.weight).split(batch.sizes)])


def pad(vlm: Vlm, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Pad token ids on the right; return ids [B, L] and a mask [B, L] with 1 on real tokens."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), vlm.padding_token)
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
    return Rows(ids, mask, lengths, tuple(vlm.grids(conversation.pictures) for conversation in conversations))


@torch.no_grad()
def option_scores(
    vlm: Vlm, conversations: Sequence[Conversation], connects: Sequence[Connect] | None = None
) -> Tensor:
    """Score every option by the log-likelihood of its tokens after the prompt, shape [K·B, O].

    One forward pass scores all options: they follow the prompt one after another, the attention mask lets an option see
    only the prompt and itself, and its positions are counted as if it followed the prompt directly. The scores are those
    of one pass per option, at the cost of one prompt. With K clients' adapters side by side, each of them answers every
    conversation in the same pass.

    Args:
        vlm: The model.
        conversations: B conversations with options.
        connects: The K clients' connectors; None for the model's own, K = 1.
    """
    connects = connects or [vlm.connect]
    images = [image for conversation in conversations for image in conversation.pictures]
    features = [vlm.image_features(images)] * len(connects)
    conversations = [*conversations] * len(connects)
    encoded = [encode(vlm, conversation, conversation.options) for conversation in conversations]
    prompts = [row.prompt for row in encoded]
    rows = [[*row.prompt, *(token for answer in row.answers for token in answer)] for row in encoded]
    ids, mask = pad(vlm, rows)
    width = ids.shape[1]
    segment = torch.full((len(rows), width), -1)  # −1 padding, 0 prompt, 1… option
    position = torch.zeros(len(rows), width, dtype=torch.long)
    before = torch.zeros(len(rows), width, dtype=torch.long)  # the position whose state predicts this token
    for index, (prompt, options) in enumerate(zip(prompts, encoded, strict=True)):
        start = len(prompt)
        segment[index, :start] = 0
        position[index, :start] = torch.arange(start)
        for number, answer in enumerate(options.answers, 1):
            stop = start + len(answer)
            segment[index, start:stop] = number
            position[index, start:stop] = torch.arange(len(answer)) + len(prompt)
            before[index, start:stop] = torch.tensor([len(prompt) - 1, *range(start, stop - 1)])
            start = stop
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    seen = (segment[:, None, :] == 0) | (segment[:, None, :] == segment[:, :, None])  # [B, L, L]
    allowed = causal & seen & (segment[:, None, :] >= 0)
    row, column = torch.nonzero(segment > 0, as_tuple=True)  # [N]
    predicting = row * width + before[row, column]
    used, option = predicting.unique().view(len(connects), -1), segment[row, column] - 1
    padded = _rows(vlm, ids, mask, prompts, conversations)
    tokens = connect_images(vlm, features, connects)
    inputs = decoder_inputs(vlm, padded, tokens, allowed=allowed, position=position)
    with last_layer_at(vlm, vlm.send(used)):
        states = run_decoder(vlm, inputs, use_cache=False)
    states = states.flatten(0, 1)[vlm.send(predicting)]
    likelihoods = -token_losses(vlm, states, vlm.send(ids[row, column]))
    most = max(len(options.answers) for options in encoded)
    scores = torch.zeros(len(rows), most)
    return scores.index_put_((row, option), likelihoods.cpu(), accumulate=True)


@torch.no_grad()
def generate(
    vlm: Vlm,
    conversations: Sequence[Conversation],
    connects: Sequence[Connect] | None = None,
    *,
    max_tokens: int = 32,
) -> list[str]:
    """Generate an answer to each conversation greedily, in one padded batch with a key-value cache.

    The arguments are those of `option_scores`. Prompts are padded on the right: new tokens follow the padding in the
    cache, which no token sees, and their positions continue from the end of their prompt. An answer ends where the model's
    logits are not finite.
    """
    from transformers import DynamicCache

    connects = connects or [vlm.connect]
    images = [image for conversation in conversations for image in conversation.pictures]
    features = [vlm.image_features(images)] * len(connects)
    conversations = [*conversations] * len(connects)
    prompts = [encode(vlm, conversation, []).prompt for conversation in conversations]
    ids, mask = pad(vlm, prompts)
    rows, cache = _rows(vlm, ids, mask, prompts, conversations), DynamicCache()
    inputs = decoder_inputs(vlm, rows, connect_images(vlm, features, connects))
    mask = vlm.send(mask)
    last = torch.arange(len(prompts), device=vlm.device) * ids.shape[1] + mask.sum(1) - 1
    with last_layer_at(vlm, last.view(len(connects), -1)):
        states = run_decoder(vlm, inputs, past_key_values=cache, use_cache=True)
    states = states.flatten(0, 1)[last]  # [B, D]
    later, position = vlm.family.later(inputs), next_positions(vlm, inputs, rows)
    # Positions [B, L], counted in tokens; those of padding have no meaning.
    along = torch.arange(ids.shape[1], device=vlm.device).expand(len(prompts), -1)
    ends = vlm.send(torch.tensor(_ends(vlm)))
    tokens, done = [], torch.zeros(len(prompts), dtype=torch.bool, device=vlm.device)
    while True:
        token, certain = likeliest_of(vlm.family.head(vlm.model, states))  # [B]
        done |= torch.isin(token, ends) | ~certain
        tokens.append(torch.where(done, ends[0], token))
        if bool(done.all()) or len(tokens) == max_tokens:
            break
        along = torch.cat((along, mask.sum(1, keepdim=True)), 1)
        mask = torch.cat((mask, mask.new_ones(len(prompts), 1)), 1)
        seen = attention_mask(vlm, mask[:, None].bool(), along) if has_sliding_window(vlm) else mask
        embeddings = vlm.model.get_input_embeddings()(token[:, None])
        arguments = vlm.family.place(vlm.model, token[:, None], embeddings, [])
        step = {**arguments, "attention_mask": seen, "position_ids": position, **later}
        states = vlm.decoder(**step, past_key_values=cache, use_cache=True)[0][:, 0]
        position = position + 1
    replies = torch.stack(tokens, 1)
    return [text.strip() for text in vlm.tokenizer.batch_decode(replies, skip_special_tokens=True)]


def _ends(vlm: Vlm) -> list[int]:
    """Return the tokens that end an answer: the tokenizer's, and those of the model's generation settings."""
    configured = vlm.model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(token for token in (vlm.tokenizer.eos_token_id, *ends) if token is not None))
