"""Render conversations with a chat template in a separate process with limited time and memory.

A template is a program that comes with a model. This process reads JSON, {"template", "requests": [[turns, whether a
generation prompt is added], …], "more", "seconds", "memory"}, and writes JSON, {"texts": […]} or {"error": reason}.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from math import ceil

LONGEST = 2**20
"""Characters that a rendered conversation may have."""


def limit_resources(seconds: int, memory: int) -> None:
    """Limit the further CPU seconds and bytes of memory of this process, where the operating system can.

    Elsewhere the caller ends the process.
    """
    with suppress(ImportError, OSError, ValueError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        most = ceil(used.ru_utime + used.ru_stime) + seconds  # rounded down, almost a second could be missing
        resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
        with open("/proc/self/statm", encoding="ascii") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))


def main() -> None:
    """Read a request from standard input and write the result to standard output."""
    request = json.load(sys.stdin)
    from transformers.utils.chat_template_utils import render_jinja_template

    limit_resources(request["seconds"], request["memory"])
    texts: list[str] = []
    try:
        for turns, prompt in request["requests"]:
            rendered, _ = render_jinja_template(
                conversations=[turns],
                chat_template=request["template"],
                add_generation_prompt=prompt,
                **request["more"],
            )
            if len(rendered[0]) > LONGEST:
                raise ValueError(f"it makes {len(rendered[0]):,} characters of a short question")
            texts.append(rendered[0])
    except BaseException as error:  # whatever a foreign program raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        json.dump({"error": f"{type(error).__name__}: {reason[:300]}"}, sys.stdout)
    else:
        json.dump({"texts": texts}, sys.stdout)


if __name__ == "__main__":
    main()
