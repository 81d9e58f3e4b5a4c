"""Train the tokenizer and the decoder on words: what they mean, what they are kinds of, which go together.

The exercises are questions in the chat form of the finished model. Loss is full on answers and 0.3 on the
words of the question, so that glosses are also learnt as plain text.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedloom.data.shapes import MAKERS
from fedloom.seeds import stream
from pretrain import corpus

SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<user>", "<assistant>"]
CONFIG = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<user>' if message['role'] == 'user' else '<assistant>' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}"
    "{% endif %}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
STOP = set(
    "a an the of or and to in for with that is by as on used from at who which it one its not be are etc e g".split()
)


def build() -> LlamaForCausalLM:
    """Make the decoder with its own named initialisation."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return LlamaForCausalLM(LlamaConfig(**CONFIG))


def train_tokenizer(senses: list[corpus.Sense], work: Path) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on glosses, words and questions about scenes."""

    def texts():
        for sense in senses:
            yield from (f"{', '.join(sense.words)}: {sense.gloss}",) * (1 + min(3, sense.count // 5))
        for index in range(3000):
            for name, make in MAKERS.items():
                example = make(stream(0, f"tokenizer/{name}", step=index), "", "pretrain")
                yield f"{example.question} {example.answer}"
        for name, words in zip(*(lambda e: (e.names, e.words))(corpus.emoji()), strict=True):
            yield f"{name}: {', '.join(words)}"

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
    )
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(work / "tokenizer")
    return wrapped


def content_words(text: str) -> list[str]:
    """Words of a gloss that carry meaning."""
    return [word.strip("(),;:'`") for word in text.lower().split() if word.strip("(),;:'`") not in STOP]


def exercise(sense: corpus.Sense, rng: np.random.Generator) -> tuple[str, str]:
    """Make one question with its answer from one sense of a word."""
    likely = np.array(sense.counts) + 0.3
    word = sense.words[rng.choice(len(sense.words), p=likely / likely.sum())]
    pool = list(
        dict.fromkeys([word, *sense.words[:2], *content_words(sense.gloss)[:8], *sense.hypernyms[:2]])
    )
    count = min(len(pool), int(rng.integers(1, 7)))
    keywords = sorted(pool[k] for k in rng.permutation(len(pool))[:count])
    text = f"Text: {', '.join(keywords)}.\n"
    phrase = ("", "Given the text: ")[rng.integers(2)]
    kind = rng.random()
    if kind < 0.45:
        return f"{text}{phrase}What class is it?", sense.lexname
    if kind < 0.6 and sense.hypernyms:
        return f"{text}{phrase}What kind of thing is it?", ", ".join(
            sense.hypernyms[: int(rng.integers(1, 4))]
        )
    if kind < 0.75:
        return f"Text: {sense.gloss}.\n{phrase}Which word is it?", word
    if kind < 0.9:
        return f"What is {word}?", f"{sense.gloss} ({sense.lexname})"
    return f"Text: {word}.\n{phrase}Which words go with it?", ", ".join(
        key for key in keywords if key != word
    ) or word


def encode(
    tokenizer: PreTrainedTokenizerFast, question: str, answer: str, weight: float
) -> tuple[list[int], list[float]]:
    """Turn a question and answer into token ids and loss weights."""
    user = tokenizer(question, add_special_tokens=False)["input_ids"]
    reply = tokenizer(answer, add_special_tokens=False)["input_ids"]
    ids = [1, SPECIAL.index("<user>"), *user, SPECIAL.index("<assistant>"), *reply, 2]
    return ids[:96], [0.0, 0.0, *[weight] * len(user), 0.0, *[1.0] * (len(reply) + 1)][:96]


def pad(rows: list[tuple[list[int], list[float]]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pad token ids (with 0) and weights on the right."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([row + [0] * (width - len(row)) for row, _ in rows])
    return ids, torch.tensor([row + [0.0] * (width - len(row)) for _, row in rows])


def train(work: Path, minutes: float, steps: int = 10_000) -> None:
    """Train until `steps` or `minutes` are used up."""
    senses = corpus.wordnet()
    tokenizer = train_tokenizer(senses, work)
    nouns = np.array([sense.lexname in corpus.NOUN_CLASSES for sense in senses])
    weight = np.array([(sense.count + 0.3) ** 0.6 for sense in senses]) * np.where(nouns, 1.0, 0.35)
    cumulative = np.cumsum(weight / weight.sum())
    model = build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05, betas=(0.9, 0.98))
    begun, step, losses, hits = time.time(), 0, [], []
    while True:
        done = max(step / steps, (time.time() - begun) / 60 / minutes)
        if done >= 1:
            break
        if step % 4 == 0:  # four batches at a time, sorted by length, so that little is padded
            rng = stream(0, "language", step=step)
            drawn = [senses[min(k, len(senses) - 1)] for k in np.searchsorted(cumulative, rng.random(4 * 80))]
            rows = [encode(tokenizer, *exercise(sense, rng), 0.3) for sense in drawn]
            rows.sort(key=lambda row: len(row[0]))
            order = rng.permutation(4)
        batch = rows[80 * order[step % 4] : 80 * (order[step % 4] + 1)]
        ids, weights = pad(batch)
        optimizer.param_groups[0]["lr"] = (
            2e-3 * min(1, (step + 1) / 200) * (0.02 + 0.98 * (1 + math.cos(math.pi * done)) / 2)
        )
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, attention_mask=(ids != 0).long()).logits
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="none")
        scale = weights[:, 1:].flatten()
        loss = (loss * scale).sum() / scale.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss))
        answers = weights[:, 1:] == 1
        hits.append(float((logits[:, :-1].argmax(2) == ids[:, 1:])[answers].float().mean()))
        step += 1
        if step % 100 == 0:
            print(
                f"step {step} {(time.time() - begun) / 60:.1f} min ({done:.0%}) loss {np.mean(losses[-100:]):.3f} "
                f"answer tokens right {np.mean(hits[-100:]):.3f}",
                flush=True,
            )
        if step % 300 == 0:
            save(model, work)
    save(model, work)
    (work / "language.json").write_text(json.dumps({"steps": step, "minutes": (time.time() - begun) / 60}))


def save(model: LlamaForCausalLM, work: Path) -> None:
    """Keep the decoder, and the last one if the writing is cut short."""
    tensors = {name: value for name, value in model.state_dict().items() if name != "lm_head.weight"}
    temporary = work / "language.tmp"
    save_file(tensors, temporary)
    temporary.replace(work / "language.safetensors")


def trained(work: Path) -> LlamaForCausalLM:
    """Load the decoder that `train` kept."""
    model = build()
    model.load_state_dict({**load_file(work / "language.safetensors")}, strict=False)
    return model.eval()
