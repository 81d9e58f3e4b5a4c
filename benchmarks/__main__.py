"""Run benchmarks: `python -m benchmarks [NAME …] [--results FILE]`; names are rows (P4-T16) or groups (P4)."""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import sys
import time
import warnings
from pathlib import Path

from benchmarks.harness import HEAD, RESULTS, THREADS, Bench, chosen, line, machine, measured, save

ENVIRONMENT = {
    # One thread, set before torch is loaded: what CPU time can be compared on.
    **dict.fromkeys(THREADS, "1"),
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
GROUPS = (
    "p01_overhead",
    "p02_seeds",
    "p03_flower",
    "p03_pfl",
    "p04_cohort",
    "p05_cache",
    "p06_aggregation",
    "p07_growth",
    "p08_evaluation",
    "p09_startup",
    "p10_head",
    "p11_wire",
    "p12_padding",
    "p13_lora",
    "p14_last_layer",
    "p15_compile",
    "p16_ray",
    "p17_real_size",
    "headline",
)


def benches() -> dict[str, Bench]:
    """Gather the rows of all groups, in the table's order."""
    modules = [importlib.import_module(f"benchmarks.{group}") for group in GROUPS]
    return {key: bench for module in modules for key, bench in module.ROWS.items()}


def main(arguments: list[str] | None = None) -> int:
    """Run the chosen rows, print the table and update the results file; return 1 if a row misses its gate."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("only", nargs="*", help="rows or groups; all but the headline if none is named")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON file to update")
    options = parser.parse_args(arguments)
    os.environ.update(ENVIRONMENT)
    warnings.simplefilter("ignore", FutureWarning)
    tests = benches()
    keys = chosen(tests, options.only)
    about = machine()
    print(
        f"{about['date']}  {about['cores']} cores, load {about['load']}, 1 thread: "
        f"{about['gemm_gflops']} GFLOP/s, {about['read_gbps']} GB/s read"
    )
    print("  ".join(f"{name} {version}" for name, version in about["versions"].items()))
    print(HEAD, flush=True)
    missed: list[str] = []
    for key in keys:
        begun = time.perf_counter()
        row = measured(tests[key])
        print(line(key, row), flush=True)
        if row.detail:
            print(f"    {row.detail} ({time.perf_counter() - begun:.0f} s)", flush=True)
        save({key: row}, about, options.results)
        if not row.passed:
            missed.append(key)
        gc.collect()
    if missed:
        print(f"below the gate: {', '.join(missed)}", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
