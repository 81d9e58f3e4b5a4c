"""Write conversations with a chat template, as a process of its own whose time and memory are bounded.

A template is a program that came with a model. It reads JSON, {"template", "requests": [[turns, whether a reply is asked
for], …], "more", "seconds", "memory"}, and writes JSON, {"texts": […]} or {"error": reason}.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress

LONGEST = 2**20
"""Characters that a conversation may become."""


def bound(seconds: int, memory: int) -> None:
    """Let the operating system end this process when it takes so much more time or memory; where it cannot, our caller does."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        most = int(used.ru_utime + used.ru_stime) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))
        with open("/proc/self/statm", encoding="ascii") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + memory, mapped + memory))


def main() -> None:
    """Answer the request on standard input."""
    asked = json.load(sys.stdin)
    from transformers.utils.chat_template_utils import render_jinja_template

    bound(asked["seconds"], asked["memory"])
    texts: list[str] = []
    try:
        for turns, reply in asked["requests"]:
            written, _ = render_jinja_template(
                conversations=[turns],
                chat_template=asked["template"],
                add_generation_prompt=reply,
                **asked["more"],
            )
            if len(written[0]) > LONGEST:
                raise ValueError(f"it makes {len(written[0]):,} characters of a short question")
            texts.append(written[0])
    except BaseException as error:  # whatever a foreign program raises
        told = (str(error).strip().splitlines() or [type(error).__name__])[0]
        json.dump({"error": f"{type(error).__name__}: {told[:300]}"}, sys.stdout)
    else:
        json.dump({"texts": texts}, sys.stdout)


if __name__ == "__main__":
    main()
