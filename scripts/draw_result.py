"""Draw the accuracy of a run's methods as an SVG, such as the picture in README.

Run it with `python scripts/draw_result.py runs/quickstart-1a2b3c4d docs/figures/quickstart.svg`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from html import escape
from pathlib import Path

from fedloom.report.tables import label

SLICES = {"both": "#1f4e8c", "image": "#4f93d2", "text": "#e0a33a"}
"""Slice of the test questions → its color."""

NAMES = {"both": "image and text", "image": "image only", "text": "text only"}

LEFT, WIDE, ROW, BAR = 370, 440, 54, 13
"""Pixels: where bars begin, how wide 100 % is, the height of a method and of a bar."""


def accuracies(result: Mapping[str, object]) -> dict[str, dict[str, float]]:
    """Return method → slice → accuracy in percent, from the content of a run's result.json."""
    scores = result["scores"]
    assert isinstance(scores, dict)
    return {
        label(method): {name: 100 * of["slices"][name]["accuracy"] for name in SLICES if name in of["slices"]}
        for method, of in scores.items()
    }


def draw(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Return an SVG with three bars for each method."""
    width, height = LEFT + WIDE + 60, 50 + ROW * len(rows) + 40
    title = "Accuracy of each method, in percent"
    about = "; ".join(
        f"{method}: " + ", ".join(f"{NAMES[name]} {value:.1f}" for name, value in of.items())
        for method, of in rows.items()
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-labelledby="t d" font-family="system-ui, sans-serif" font-size="14" fill="#1f2430">',
        f'<title id="t">{title}</title>',
        f'<desc id="d">{escape(about)}</desc>',
        f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
    ]
    for number, (name, color) in enumerate(SLICES.items()):
        x = LEFT + 150 * number
        parts.append(f'<rect x="{x}" y="20" width="12" height="12" fill="{color}"/>')
        parts.append(f'<text x="{x + 18}" y="31" font-size="13">{NAMES[name]}</text>')
    for tick in range(0, 101, 25):
        x = LEFT + WIDE * tick / 100
        parts.append(f'<line x1="{x}" y1="44" x2="{x}" y2="{height - 34}" stroke="#d5dae3"/>')
        parts.append(
            f'<text x="{x}" y="{height - 16}" text-anchor="middle" font-size="12" fill="#4a5260">{tick} %</text>'
        )
    for number, (method, of) in enumerate(rows.items()):
        top = 52 + ROW * number
        parts.append(f'<text x="{LEFT - 12}" y="{top + 26}" text-anchor="end">{escape(method)}</text>')
        for place, (name, value) in enumerate(of.items()):
            y, length = top + (BAR + 1) * place, WIDE * value / 100
            parts.append(
                f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{BAR}" fill="{SLICES[name]}"/>'
            )
            parts.append(
                f'<text x="{LEFT + length + 6:.1f}" y="{y + 11}" font-size="11" fill="#4a5260">{value:.1f}</text>'
            )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    run, out = map(Path, sys.argv[1:])
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    out.write_text(draw(accuracies(result)), encoding="utf-8")
