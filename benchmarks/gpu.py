"""Measure one GPU: utilization, gain from training side by side, evaluation, memory against prediction.

    python -m benchmarks.gpu [--models 0.25B 2B] [--tiny]

Models have the shapes of real language models and random weights made on the device; nothing is downloaded.
Text only: an image's features would come from the cache. `--tiny` runs the same code on a CPU with a
tiny model, as a test.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import RESULTS, machine
from benchmarks.models import Size, conversation, random_vlm
from benchmarks.work import Clients, train_settings
from fedloom.client.local_training import train
from fedloom.engine.machine_choices import saved_bytes
from fedloom.models.batches import option_scores
from fedloom.models.compiled_layers import compiling
from fedloom.system.json_files import write_json
from fedloom.tuning.adapters import Tuned, prepare
from fedloom.tuning.strategies import LoRA, stage

SHAPES = {
    # language models of SmolVLM-256M, SmolVLM-500M, Qwen2-VL-2B, LLaVA-1.5-7B
    "0.25B": Size(576, 30, 49_280, heads=9, key_heads=3, inner=1536),
    "0.5B": Size(960, 32, 49_280, heads=15, key_heads=5, inner=2560),
    "2B": Size(1536, 28, 151_936, heads=12, key_heads=2, inner=8960),
    "7B": Size(4096, 32, 32_064, heads=32, key_heads=32, inner=11_008),
}
TINY = {"tiny": Size(64, 2)}
OPTIONS = ("cat", "dog", "red sun", "blue tree")


def on_device(size: Size, device: str, dtype: torch.dtype) -> Tuned:
    """Build a model with adapters on a device."""
    return prepare(random_vlm(size, device, dtype), stage("lora", LoRA()), seed=0)


def clients_of(tuned: Tuned, count: int, tokens: int, steps: int) -> Clients:
    """Build clients with batches of one conversation."""
    held = {
        client: [conversation(tuned.vlm, tokens, 4, client * steps + k) for k in range(steps)]
        for client in range(count)
    }
    return Clients(tuned, held, train_settings(1))


def seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """Return the shortest time of a call, with the device's queue emptied before and after."""
    times = []
    for _ in range(repeats + 1):  # the first warms up
        _wait(device)
        begun = time.perf_counter()
        work()
        _wait(device)
        times.append(time.perf_counter() - begun)
    return min(times[1:])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_flops(device: str, dtype: torch.dtype) -> float:
    """Measure the operations per second of one large matrix product, the reference of utilization."""
    n = 8192 if device == "cuda" else 512
    a, b = (torch.randn(n, n, dtype=dtype, device=device) for _ in range(2))
    return 2 * n**3 / seconds(lambda: a @ b, device, 5)


def step_flops(tuned: Tuned, size: Size, tokens: int) -> float:
    """Return the operations of one client-step: forward and the gradient of activations through frozen weights.

    4 · P · n + 6 · layers · width · n² with P the decoder's weights in matrix products and n tokens; the head,
    at four answer tokens only, and the adapters are left out. The last layer counts as if all of it were computed.
    """
    weights = sum(
        one.numel() for name, one in tuned.vlm.decoder.named_parameters() if name.endswith("proj.weight")
    )
    weights += sum(
        one.numel() for name, one in tuned.vlm.decoder.named_parameters() if name.endswith("base.weight")
    )
    return 4 * weights * tokens + 6 * size.layers * size.width * tokens**2


def measure(
    name: str,
    size: Size,
    device: str,
    dtype: torch.dtype,
    tokens: int,
    rows: Sequence[int],
    *,
    compiled: bool = False,
) -> dict[str, Any]:
    """Measure one model: training at several numbers of rows, memory, evaluation."""
    tuned = on_device(size, device, dtype)
    steps, peak = 2, peak_flops(device, dtype)
    result: dict[str, Any] = {"model": name, "tokens": tokens, "peak_tflops": peak / 1e12, "rows": {}}
    weights = sum(one.numel() * one.element_size() for one in tuned.vlm.model.parameters())
    made = clients_of(tuned, max(rows), tokens, steps)
    jobs = [made.job(client) for client in made.held]
    kept = saved_bytes(tuned, jobs[0])
    for count in rows:
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with compiling(tuned.vlm, compiled):
            took = seconds(lambda count=count: train(tuned, jobs[:count]), device, 3) / (count * steps)
        # Weights, what forward keeps for each row, and four vectors a row: values, gradients, two slots.
        predicted = weights + count * (kept + 16 * tuned.layout.size)
        used = torch.cuda.max_memory_allocated() if device == "cuda" else None
        result["rows"][str(count)] = {
            "ms_per_client_step": took * 1e3,
            "utilization": step_flops(tuned, size, tokens) / took / peak,
            "predicted_bytes": predicted,
            "peak_bytes": used,
        }
    asked = [conversation(tuned.vlm, tokens, 4, k, options=OPTIONS) for k in range(32)]
    result["evaluations_per_second"] = len(asked) / seconds(
        lambda: option_scores(tuned.vlm, asked), device, 3
    )
    return result


def table(results: Sequence[dict[str, Any]]) -> str:
    """Write the results as lines of at most 80 columns."""
    lines = [
        f"{'model':<8}{'tokens':>7}{'rows':>6}{'ms':>9}{'gain':>7}{'util':>7}{'GB':>7}{'predicted':>10}{'eval/s':>9}"
    ]
    for one in results:
        alone = one["rows"]["1"]["ms_per_client_step"]
        for count, row in one["rows"].items():
            used = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.2f}"
            lines.append(
                f"{one['model']:<8}{one['tokens']:>7}{count:>6}{row['ms_per_client_step']:>9.2f}"
                f"{alone / row['ms_per_client_step']:>7.2f}{row['utilization']:>7.2f}{used:>7}"
                f"{row['predicted_bytes'] / 1e9:>10.2f}{one['evaluations_per_second']:>9.1f}"
            )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Measure the chosen models, print the table and write gpu.json next to the other results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--tokens", type=int, nargs="+", default=[128, 640])
    parser.add_argument("--compile", action="store_true", help="train through compiled layers")
    parser.add_argument("--tiny", action="store_true", help="test the script on a processor")
    parser.add_argument("--results", type=Path, default=RESULTS.with_name("gpu.json"))
    options = parser.parse_args(arguments)
    if not options.tiny and not torch.cuda.is_available():
        print("no GPU here; --tiny tests the script without one", file=sys.stderr)
        return 2
    device = "cpu" if options.tiny else "cuda"
    dtype = torch.float32 if options.tiny else torch.bfloat16
    shapes = TINY if options.tiny else {name: SHAPES[name] for name in options.models}
    rows = (1, 4) if options.tiny else (1, 8, 16)
    card = torch.cuda.get_device_name() if device == "cuda" else "processor, --tiny"
    about = {**machine(), "card": card, "compiled": options.compile}
    results = []
    for name, size in shapes.items():
        for tokens in [32] if options.tiny else options.tokens:
            results.append(measure(name, size, device, dtype, tokens, rows, compiled=options.compile))
            write_json(options.results, {"machine": about, "models": results})
    print(f"{about['date']}  {card}  torch {about['versions']['torch']}")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
