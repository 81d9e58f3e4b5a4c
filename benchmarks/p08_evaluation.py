"""P8: choosing among options by one batched forward pass, against generating an answer sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from benchmarks.harness import Bench, Measured, agree, pairs
from benchmarks.models import SMALL, conversation, tuned_model
from fedloom.models.batches import encode, option_scores
from fedloom.models.load_model import Vlm
from fedloom.types import Conversation

SAMPLES, TOKENS, NEW = 16, 96, 8
OPTIONS = ("cat", "dog", "red sun", "blue tree")


def reference(vlm: Vlm, one: Conversation) -> int:
    """Choose an option by one forward pass for each of them, without padding or shared prompts."""
    encoded = encode(vlm, one, one.options)
    scores = []
    for answer in encoded.answers:
        ids = torch.tensor([[*encoded.prompt, *answer]])
        logits = vlm.model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        places = torch.arange(len(encoded.prompt), ids.shape[1])
        scores.append(float(logits[places - 1, ids[0, places]].sum()))
    return int(torch.tensor(scores).argmax())


def against_generation(*, cache: bool) -> Callable[[], Measured]:
    """Compare with generating eight tokens one sample at a time, as published evaluations do."""

    @torch.no_grad()
    def measure() -> Measured:
        vlm = tuned_model(SMALL).vlm
        asked = [conversation(vlm, TOKENS + 4, 4, k, options=OPTIONS) for k in range(SAMPLES)]
        chosen = option_scores(vlm, asked).argmax(1)
        expected = torch.tensor([reference(vlm, one) for one in asked])
        agree("chosen options", float((chosen != expected).sum()), 0)
        prompts = [torch.tensor([encode(vlm, one, []).prompt]) for one in asked]
        count = 9 if cache else 5
        times = pairs(lambda: option_scores(vlm, asked), lambda: _generate(vlm, prompts, cache), count)
        return times.gain, times.summary(rival="generation", per=SAMPLES) + " a sample"

    return measure


def _generate(vlm: Vlm, prompts: Sequence[Tensor], cache: bool) -> None:
    for ids in prompts:
        vlm.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            use_cache=cache,
            pad_token_id=0,
        )


ROWS = {
    "P8-cached": Bench("vs generation, KV cache", 2.7, 2, against_generation(cache=True)),
    "P8-uncached": Bench("vs generation, no cache", 7.5, 5, against_generation(cache=False)),
}
