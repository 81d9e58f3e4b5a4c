"""The list of all that left a site: `left-this-site.jsonl` with a line for each message, and a page to read it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fedloom.algorithms.compose import settable_arguments
from fedloom.experiment.experiment import Experiment
from fedloom.params import Layout
from fedloom.run_log import RunLog
from fedloom.runs.site_permissions import parameter_names
from fedloom.system.json_files import write_atomic
from fedloom.wire.compression import codec_of
from fedloom.wire.messages import Missing, Update, answer_from_bytes
from fedloom.wire.site_messages import SiteMessage

NAME = "left-this-site"

PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>What left {site}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root{{color-scheme:light dark;--ink:#1b1f24;--mute:#5b6470;--line:#d8dce2;--back:#fff}}
@media (prefers-color-scheme:dark){{:root{{--ink:#e8eaed;--mute:#a3abb5;--line:#353b43;--back:#14171b}}}}
body{{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);max-width:1140px;margin:0 auto;padding:20px}}
h1{{font-size:1.6rem;line-height:1.2;margin:0 0 8px;overflow-wrap:anywhere}}
p{{max-width:44em;margin:0 0 20px}}
code{{font-size:85%}}
.wide{{overflow-x:auto}}
table{{border-collapse:collapse;width:100%;font-size:.9rem}}
th{{color:var(--mute);font-weight:400;font-size:.8rem}}
td,th{{text-align:left;padding:6px 16px 6px 0;vertical-align:top;border-bottom:1px solid var(--line)}}
td:nth-child(2),td:nth-child(4),td:nth-child(5),th:nth-child(2),th:nth-child(4),th:nth-child(5){{text-align:right;white-space:nowrap}}
td:last-child{{overflow-wrap:anywhere}}
@media (max-width:700px){{
thead{{display:none}}table,tbody{{display:block}}
tr{{display:flex;flex-wrap:wrap;gap:0 14px;padding:10px 0;border-bottom:1px solid var(--line)}}
td{{border:0;padding:0}}td:empty{{display:none}}td:last-child{{flex-basis:100%;color:var(--mute)}}
td:nth-child(2)::before{{content:"round "}}td:nth-child(4)::before{{content:"client "}}td:nth-child(5)::after{{content:" bytes"}}
}}
</style></head><body>
<h1>What left {site}</h1>
<p>{count} messages with {total:,} bytes left this site. No example, image or text is among them, unless a line below names
replies. Each message is listed with its SHA-256 in <code>{name}.jsonl</code>.</p>
<div class="wide"><table>
<thead><tr><th>What</th><th>Round</th><th>Method</th><th>Client</th><th>Bytes</th><th>Holds</th></tr></thead>
<tbody>
{rows}
</tbody></table></div></body></html>
"""


def noise_at_site(experiment: Experiment) -> dict[str, dict[str, dict[str, Any]]]:
    """Return method → its parts that add noise to what clients report → their arguments, such as the noise multiplier.

    Noise that the server adds, as `dp` does, is not among them: what leaves a site is without it.
    """
    noise = dict[str, dict[str, dict[str, Any]]]()
    for name in experiment.methods:
        for part in experiment.method(name).parts:
            entry = experiment.entries[part]
            if entry.kind in ("rule", "pass") and "noise" in entry.traits:
                arguments = {**settable_arguments(entry.make), **experiment.arguments(part)}
                noise.setdefault(name, {})[part] = arguments
    return noise


class DepartureLog:
    """The list of the messages that left a site.

    Args:
        folder: The site's folder.
        site: Its name.
    """

    def __init__(self, folder: Path, site: str) -> None:
        self._folder, self._site = folder, site
        self._record = RunLog(folder / f"{NAME}.jsonl")

    def add(
        self, request: SiteMessage, answer: SiteMessage, layout: Layout | None, noise: Mapping[str, Any]
    ) -> None:
        """Append an answer to the list before it leaves.

        Args:
            request: The server's request.
            answer: The answer.
            layout: Names and shapes of the exchanged parameters; None before a run is open.
            noise: What `noise_at_site` returns.
        """
        content = answer.to_bytes()
        method = str(request.head.get("method", ""))
        line = {
            "asked": request.kind,
            "round": request.head.get("round"),
            "method": method,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "values": {key: value for key, value in answer.head.items() if key != "judged"},
            "replies": len(answer.head.get("judged", ())),
            "parts": [] if layout is None else [_part(one, layout) for one in answer.parts],
            "noise": noise.get(method, {}) if request.kind == "train" else {},
        }
        self._record.append("left", line)

    def write_page(self) -> None:
        """Write the page beside the list."""
        lines = list(self._record)
        page = PAGE.format(
            site=escape(self._site),
            count=len(lines),
            total=sum(line["bytes"] for line in lines),
            name=NAME,
            rows="\n".join(row for line in lines for row in _rows(line)),
        )
        write_atomic(self._folder / f"{NAME}.html", page.encode())


def _part(content: bytes, layout: Layout) -> dict[str, Any]:
    """Describe an update, or the reason why there is none."""
    size: dict[str, Any] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    answer = answer_from_bytes(content, layout)
    if isinstance(answer, Missing):
        return {**size, "client": answer.client, "reason": answer.reason}
    shapes = dict(zip(layout.names, layout.shapes, strict=True))
    return {
        **size,
        "client": answer.client,
        "tensors": {name: list(shapes[name]) for name in parameter_names(answer.up, layout)},
        "values": layout.size if answer.up is None else answer.up.count,
        "extras": _extras(answer),
        "figures": {"weight": answer.weight, **answer.metrics},
        "codec": "fp32" if answer.coded is None else codec_of(answer.coded),
    }


def _extras(update: Update) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in update.extras.items()}


def _rows(line: Mapping[str, Any]) -> list[str]:
    head = [line["asked"], line["round"], line["method"]]
    if not line["parts"]:
        content = f"{line['replies']} replies" if line["replies"] else ", ".join(line["values"])
        return [_row([*head, "", f"{line['bytes']:,}", content])]
    noise = "; ".join(
        f"noise of {part}: " + ", ".join(f"{key} {value}" for key, value in arguments.items())
        for part, arguments in line["noise"].items()
    )
    return [
        _row([*head, part["client"], f"{part['bytes']:,}", "; ".join(filter(None, (_content(part), noise)))])
        for part in line["parts"]
    ]


def _content(part: Mapping[str, Any]) -> str:
    if "reason" in part:
        return f"no update: {part['reason']}"
    extras = "".join(f", {name} {shape}" for name, shape in part["extras"].items())
    names = list(part["tensors"])
    if not names:
        return f"no parameters{extras}; {', '.join(part['figures'])}"
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return f"{part['values']:,} values of {len(names)} parameters ({shown}){extras} in {part['codec']}; {', '.join(part['figures'])}"


def _row(cells: Sequence[Any]) -> str:
    return "<tr>" + "".join(f"<td>{'' if one is None else escape(str(one))}</td>" for one in cells) + "</tr>"
