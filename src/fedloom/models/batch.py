"""From conversations to padded batches, and from batches to likelihoods of answers.

Shape legend: K clients side by side, B conversations of each, L tokens in the longest, T image tokens per picture, D model width, O options,
N answer tokens in the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fedloom.models.load import Vlm
from fedloom.record import Clock
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


Connect = Callable[[Tensor], Tensor]
"""Encoder features [B, T, E] → token embeddings [B, T, D]: the model's connector, or one client's."""


def embed(
    vlm: Vlm, ids: Tensor, features: Sequence[Tensor | None], connects: Sequence[Connect] | None = None
) -> Tensor:
    """Look up token embeddings and put connected image features where the placeholders are: [B, L, D].

    Args:
        vlm: The model.
        ids: Token ids, shape [B, L], the rows of one client after those of the other.
        features: Each client's encoder features [pictures, T, E], or None where it shows no picture.
        connects: Each client's connector; None is the model's own for all.
    """
    embeddings = vlm.model.get_input_embeddings()(ids)
    connects = connects or [vlm.connect] * len(features)
    tokens = [connect(some) for connect, some in zip(connects, features, strict=True) if some is not None]
    if tokens:
        place = (ids == vlm.model.config.image_token_id)[..., None].expand_as(embeddings)
        embeddings = embeddings.masked_scatter(place, torch.cat(tokens).to(embeddings.dtype))
    return embeddings


def see(vlm: Vlm, conversations: Sequence[Conversation]) -> Tensor | None:
    """Return encoder features of the pictures shown, shape [pictures, T, E], or None without any."""
    pictures = [one.picture for one in conversations if one.picture is not None]
    return vlm.encode(pictures).to(vlm.device) if pictures else None


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


@dataclass(frozen=True, eq=False)
class Batch:
    """What one training step of one or several clients needs.

    Attributes:
        ids: Token ids, shape [K·B, L], padded on the right; a client with fewer than B conversations has
            rows of padding, which bear no loss.
        mask: 1 on tokens that are seen, shape [K·B, L].
        features: Each client's encoder features, or None.
        row: Row of each answer token, shape [N].
        column: Position before each answer token, whose state predicts it, shape [N].
        weight: What each answer token counts in its client's loss, shape [N].
        sizes: Number of answer tokens of each client.
    """

    ids: Tensor
    mask: Tensor
    features: tuple[Tensor | None, ...]
    row: Tensor
    column: Tensor
    weight: Tensor
    sizes: tuple[int, ...]


def collate(vlm: Vlm, groups: Sequence[Sequence[Conversation]], clock: Clock | None = None) -> Batch:
    """Encode the conversations of one training step, each client's as one group."""
    clock = clock or Clock()
    features = tuple(see(vlm, group) for group in groups)
    clock.lap("vision")
    height = max(len(group) for group in groups)
    rows: list[list[int]] = []
    row, column, weight, sizes = [], [], [], []
    for group in groups:
        before = len(row)
        for conversation in group:
            one = encode(vlm, conversation, [conversation.answer])
            prompt, answer = expand(vlm, one, conversation), one.answers[0]
            row += [len(rows)] * len(answer)
            column += range(len(prompt) - 1, len(prompt) - 1 + len(answer))
            weight += [1 / (len(answer) * len(group))] * len(answer)
            rows.append([*prompt, *answer])
        rows += [[vlm.filler]] * (height - len(group))
        sizes.append(len(row) - before)
    ids, mask = pad(vlm, rows)
    where = vlm.device
    batch = Batch(
        ids.to(where),
        mask.to(where),
        features,
        torch.tensor(row, device=where),
        torch.tensor(column, device=where),
        torch.tensor(weight, device=where),
        tuple(sizes),
    )
    clock.lap("data")
    return batch


def answer_losses(vlm: Vlm, batch: Batch, connects: Sequence[Connect] | None = None) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens for each client, shape [K].

    A client's conversations count alike, whatever the length of their answers. The head is applied at
    answer positions only; question, padding and image tokens carry no loss.
    """
    embeddings = embed(vlm, batch.ids, batch.features, connects)
    states = vlm.decoder(inputs_embeds=embeddings, attention_mask=batch.mask, use_cache=False)[0]
    logits = vlm.model.get_output_embeddings()(states[batch.row, batch.column])  # [N, vocabulary]
    losses = F.cross_entropy(logits.float(), batch.ids[batch.row, batch.column + 1], reduction="none")
    return torch.stack([part.sum() for part in (losses * batch.weight).split(batch.sizes)])


def answer_loss(vlm: Vlm, conversations: Sequence[Conversation]) -> Tensor:
    """Mean negative log-likelihood of the answers of one client's conversations, a scalar."""
    return answer_losses(vlm, collate(vlm, [conversations]))[0]


def pad(vlm: Vlm, rows: Sequence[Sequence[int]], *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Pad token ids on the right (or left): ids [B, L] and mask [B, L] with 1 on real tokens."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), vlm.filler)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for index, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        ids[index, where] = torch.tensor(row)
        mask[index, where] = 1
    return ids, mask


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
    features = [see(vlm, conversations)] * len(connects)
    conversations = [*conversations] * len(connects)
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
    where, dtype = vlm.device, vlm.precision
    bias = torch.zeros(allowed.shape, dtype=dtype).masked_fill(~allowed, torch.finfo(dtype).min).to(where)
    ids, position, segment, before = (one.to(where) for one in (ids, position, segment, before))
    states = vlm.decoder(
        inputs_embeds=embed(vlm, ids, features, connects),
        attention_mask=bias[:, None],
        position_ids=position,
        use_cache=False,
    )[0]
    row, column = torch.nonzero(segment > 0, as_tuple=True)  # [N]
    logits = vlm.model.get_output_embeddings()(states[row, before[row, column]])
    gained = -F.cross_entropy(logits.float(), ids[row, column], reduction="none")
    options = max(len(one.answers) for one in encoded)
    scores = torch.zeros(len(rows), options, device=where)
    return scores.index_put_((row, segment[row, column] - 1), gained, accumulate=True).cpu()


@torch.no_grad()
def generate(
    vlm: Vlm,
    conversations: Sequence[Conversation],
    connects: Sequence[Connect] | None = None,
    *,
    max_tokens: int = 32,
) -> list[str]:
    """Answer each conversation greedily, in one padded batch with a key-value cache; see `option_scores`."""
    connects = connects or [vlm.connect]
    features = [see(vlm, conversations)] * len(connects)
    conversations = [*conversations] * len(connects)
    encoded = [encode(vlm, one, []) for one in conversations]
    prompts = [
        expand(vlm, one, conversation) for one, conversation in zip(encoded, conversations, strict=True)
    ]
    ids, mask = pad(vlm, prompts, left=True)
    ids, mask = ids.to(vlm.device), mask.to(vlm.device)
    replies = vlm.model.generate(
        inputs_embeds=embed(vlm, ids, features, connects),
        attention_mask=mask,
        max_new_tokens=max_tokens,
        do_sample=False,
        use_cache=True,
        pad_token_id=vlm.tokenizer.pad_token_id,
    )
    return [text.strip() for text in vlm.tokenizer.batch_decode(replies, skip_special_tokens=True)]
