"""The sections of an experiment about how its work is done: where clients train, and how messages are encoded."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedloom.config.schema import Count, Flag, NotNegative, Positive, Section, Text


class Engine(Section):
    """How the work is done; changes the speed of a run and the rounding of its numbers, not what it computes."""

    side_by_side: Count | Literal["auto"] = Field(
        default="auto",
        description="Number of clients trained at once over the shared model; auto depends on the work and the kind of machine.",
    )
    workers: Count | Literal["auto"] = Field(
        default="auto",
        description="Processes that train a cohort's clients and answer questions at once, on NVIDIA GPUs one for each; auto is "
        "one per thread where rounds are long, or one GPU.",
    )
    backend: Literal["auto", "in-process", "workers", "ray"] = Field(
        default="auto",
        description="Where clients train: in-process is one after another, or side by side, in this process; workers is in "
        "copies of it, or in a process for each of several GPUs; ray is in Ray's actors; auto is the first two as workers says.",
    )
    address: Text | None = Field(
        default=None,
        description="Address of a running Ray cluster, such as head:6379; null starts Ray on this machine.",
    )
    gpus: NotNegative | None = Field(
        default=None,
        description="GPUs of a Ray actor, where a fraction shares one; null is 1 where the model is on a GPU, else 0.",
    )
    recompute: Literal["auto", "always", "never"] = Field(
        default="auto",
        description="Whether the backward pass recomputes layers to save memory; auto does so where memory is short.",
    )
    compile: Flag = Field(
        default=False,
        description="Whether layers are compiled for training, which takes about a minute and makes small steps "
        "faster.",
    )
    deterministic: Flag = Field(
        default=False,
        description="Whether an accelerator uses deterministic kernels only, and attention without fused kernels, so that equal "
        "runs give equal numbers; slower and with more memory; CPUs do so always.",
    )
    cache: Flag = Field(
        default=True, description="Whether the frozen encoder's image features are cached between runs."
    )
    cache_gigabytes: Positive = Field(
        default=4.0, description="Most disk space for the cache, over all models and runs."
    )


class Communication(Section):
    """How parameters are encoded in messages; in every backend, clients and server use the decoded values."""

    up: Literal["fp32", "bf16", "int8", "int4", "top16"] = Field(
        default="fp32",
        description="Codec of clients' updates; all but fp32 lose precision, and top16 sends the largest of every 16 values.",
    )
    down: Literal["fp32", "bf16", "int8", "int4"] = Field(
        default="fp32", description="Codec of the parameters that the server sends."
    )
    feedback: Flag = Field(
        default=True,
        description="Whether a client keeps the codec's error in its update and adds it to its next one.",
    )
