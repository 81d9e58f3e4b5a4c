"""Train the tokenizer and the decoder on words: their meanings, their hypernyms, and related words.

Exercises are questions in the chat form of the finished model, about WordNet's senses. Answers come from WordNet, and
from a sentence encoder that knows which words are near each other (`pretrain.teacher`); its vectors are also a target
of their own for the state from which the answer follows. Token embeddings start from its vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from fedloom.data.drawn_shapes import MAKERS
from fedloom.models.family_table import FAMILIES
from fedloom.models.load_model import Processor, Vlm
from fedloom.seeds import stream
from fedloom.types import Conversation
from pretrain import corpus
from pretrain.fit import Budget, Exercise, fit
from pretrain.teacher import Teacher, embed

SPECIAL = ["<pad>", "<s>", "</s>", "<image>", "<user>", "<assistant>"]
CONFIG = {
    "vocab_size": 6144,
    "hidden_size": 256,
    "intermediate_size": 640,
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
BATCH = 96
HEAD = "language.meaning.safetensors"
"""What this stage's head for meanings is kept as."""

GENERAL = 700
"""How many of the most used nouns are the general words from which the teacher chooses."""

CLASS = ("What class is it?", "Which class does it have?", "Which category is it in?")
KIND = ("What kind of thing is it?", "What sort of thing is it?", "What is it a kind of?")
TOPIC = (
    "What is it about?",
    "Which topic does it belong to?",
    "Which theme is it?",
    "Which word fits it best?",
)
RELATED = ("Which words go with it?", "Which words are related to it?")


def build() -> LlamaForCausalLM:
    """Build the decoder with its own named initialization."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return LlamaForCausalLM(LlamaConfig(**CONFIG))


def train_tokenizer(senses: list[corpus.Sense], work: Path) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE on glosses, words and questions about scenes, once."""
    if (work / "tokenizer").exists():
        return AutoTokenizer.from_pretrained(work / "tokenizer")

    def texts() -> Iterator[str]:
        for sense in senses:
            yield from (f"{', '.join(sense.words)}: {sense.gloss}",) * (1 + min(3, sense.count // 5))
            yield from sense.examples
        for index in range(3000):
            for name, make in MAKERS.items():
                example = make(stream(0, f"tokenizer/{name}", step=index), "", "pretrain")
                yield f"{example.question} {example.answer}"
        for source in corpus.pictured(work):
            for name, words in zip(source.names, source.words, strict=True):
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
    """Return the words of a gloss that carry meaning."""
    return [word.strip("(),;:'`") for word in text.lower().split() if word.strip("(),;:'`") not in STOP]


def teacher(senses: list[corpus.Sense], work: Path) -> Teacher:
    """Gather every phrase that a lesson can be about, and the general words."""
    phrases = {word for sense in senses for word in (*sense.words, *sense.hypernyms)}
    phrases |= {word for sense in senses for word in content_words(sense.gloss)[:8]}
    for source in corpus.pictured(work):
        phrases |= {*source.names, *(word for words in source.words for word in words)}
        phrases |= {phrase for text in source.texts for phrase in text.split(", ")}
    used: dict[str, int] = {}
    for sense in senses:
        if sense.lexname in corpus.NOUN_CLASSES:
            for word, count in zip(sense.words, sense.counts, strict=True):
                used[word] = used.get(word, 0) + count
    general = sorted(used, key=lambda word: (-used[word], word))[:GENERAL]
    return Teacher(phrases - {""}, sorted({*general, *corpus.NOUN_CLASSES}), work)


@dataclass(frozen=True)
class Lessons:
    """The source of exercises: senses, their cumulative probabilities, and the teacher."""

    senses: list[corpus.Sense]
    cumulative: np.ndarray
    teacher: Teacher

    def draw(self, rng: np.random.Generator) -> Exercise:
        """Draw a sense and write an exercise about it."""
        place = int(np.searchsorted(self.cumulative, rng.random()))
        return exercise(self.senses[min(place, len(self.senses) - 1)], self.teacher, rng)


def lessons(work: Path) -> Lessons:
    """Read WordNet; frequent senses and nouns have larger probabilities."""
    senses = corpus.wordnet()
    nouns = np.array([sense.lexname in corpus.NOUN_CLASSES for sense in senses])
    weight = np.array([(sense.count + 0.3) ** 0.6 for sense in senses]) * np.where(nouns, 1.0, 0.35)
    return Lessons(senses, np.cumsum(weight / weight.sum()), teacher(senses, work))


def one_of(phrases: Sequence[str], rng: np.random.Generator) -> str:
    """Draw one of several wordings."""
    return phrases[int(rng.integers(len(phrases)))]


def exercise(sense: corpus.Sense, teacher: Teacher, rng: np.random.Generator) -> Exercise:
    """Write one question with its answer about one sense of a word."""
    likely = np.array(sense.counts) + 0.3
    word = sense.words[rng.choice(len(sense.words), p=likely / likely.sum())]
    pool = list(
        dict.fromkeys([word, *sense.words[:2], *content_words(sense.gloss)[:8], *sense.hypernyms[:2]])
    )
    count = min(len(pool), int(rng.integers(1, 7)))
    keywords = sorted(pool[k] for k in rng.permutation(len(pool))[:count])
    text = f"Text: {', '.join(keywords)}\n"
    phrase = ("", "Given the text: ")[rng.integers(2)]
    meaning = teacher.mean([*keywords, word])
    kind = rng.random()
    if kind < 0.22:
        return Exercise(Conversation(f"{text}{phrase}{one_of(CLASS, rng)}", sense.lexname), meaning)
    if kind < 0.36 and sense.hypernyms:
        above = ", ".join(sense.hypernyms[: int(rng.integers(1, 4))])
        return Exercise(Conversation(f"{text}{phrase}{one_of(KIND, rng)}", above), meaning)
    if kind < 0.60:
        return Exercise(
            Conversation(f"{text}{phrase}{one_of(TOPIC, rng)}", teacher.topic(meaning, rng)), meaning
        )
    if kind < 0.72:
        return Exercise(
            Conversation(f"Text: {sense.gloss}.\n{phrase}Which word is it?", word), teacher.mean([word])
        )
    if kind < 0.76 and sense.examples:
        return Exercise(
            Conversation(f"Text: {one_of(sense.examples, rng)}.\n{phrase}What is it about?", word), None
        )
    if kind < 0.80 and sense.examples:
        return Exercise(Conversation(f"How is {word} used?", one_of(sense.examples, rng)), None)
    if kind < 0.90:
        return Exercise(
            Conversation(f"What is {word}?", f"{sense.gloss} ({sense.lexname})"), teacher.mean([word])
        )
    others = ", ".join(key for key in keywords if key != word) or word
    return Exercise(
        Conversation(f"Text: {word}\n{phrase}{one_of(RELATED, rng)}", others), teacher.mean([word])
    )


def assemble(work: Path) -> Vlm:
    """Build a new decoder for the tokenizer; a token that is a word starts from the teacher's vector of the word."""
    tokenizer = train_tokenizer(corpus.wordnet(), work)
    model = build()
    pieces = [tokenizer.decode([k]).strip().lower() for k in range(len(tokenizer))]
    words = [k for k, piece in enumerate(pieces) if k >= len(SPECIAL) and len(piece) > 1 and piece.isalpha()]
    vectors = embed([pieces[k] for k in words], work)
    vectors = vectors - vectors.mean(0)
    directions = torch.linalg.svd(vectors, full_matrices=False).Vh[: CONFIG["hidden_size"]]
    known = vectors @ directions.T
    with torch.no_grad():
        model.get_input_embeddings().weight[words] = known * (0.02 / known.std())
    model.requires_grad_(False).eval()
    return Vlm("language", model, Processor(tokenizer, None), FAMILIES["llama"], "")


def batches(work: Path) -> Callable[[int], list[Exercise]]:
    """Return the batch of each step."""
    drawn = lessons(work)

    def batch(step: int) -> list[Exercise]:
        rng = stream(0, "language", step=step)
        return [drawn.draw(rng) for _ in range(BATCH)]

    return batch


def train(work: Path, minutes: float, steps: int = 6000) -> None:
    """Train until `steps` or `minutes` are used up."""
    vlm = assemble(work)
    groups = [{"params": list(vlm.model.parameters()), "peak": 2e-3}]
    fit(vlm, groups, batches(work), (work, "language"), Budget(minutes, steps))


def trained(work: Path) -> LlamaForCausalLM:
    """Load the decoder that `train` saved."""
    model = build()
    model.load_state_dict({**load_file(work / "language.safetensors")}, strict=False)
    return model.eval()
