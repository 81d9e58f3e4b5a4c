"""The sections of an experiment: each key with its allowed values, its default and a description."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import PurePath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    model_validator,
)

from fedloom.config.old_spellings import current_keys, current_name
from fedloom.config.validation_errors import choice_error

MOST_NUMBERS = 100_000
"""Most entries of an argument that is a list."""

MOST_NAMES = 100
"""Most methods of an experiment, most algorithms with arguments, and most arguments of one algorithm."""


def _argument(value: Any) -> Any:
    """Return a valid argument; a list is returned as a tuple."""
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if (
        isinstance(value, list | tuple)
        and len(value) <= MOST_NUMBERS
        and not any(isinstance(inner, list | tuple) for inner in value)
    ):
        return tuple(map(_argument, value))
    raise choice_error("an argument must be a finite number, text, true, false, or a list of these")


def valid_path(path: str) -> str:
    """Return a path, which must be valid in a file system; ~ is the user's home folder."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise choice_error("a path cannot contain half of a surrogate pair") from None
    if "\0" in path:
        raise choice_error("a path cannot contain a null character")
    return os.path.expanduser(path)


def _not_too_many(names: Any) -> Any:
    if isinstance(names, list | tuple) and len(names) > MOST_NAMES:
        raise choice_error(f"at most {MOST_NAMES} methods can be compared, not {len(names):,}")
    return names


Count = Annotated[int, Field(strict=True, ge=1)]
Index = Annotated[int, Field(strict=True, ge=0)]
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True, min_length=1)]
PathText = Annotated[
    Text,
    BeforeValidator(lambda path: os.fspath(path) if isinstance(path, PurePath) else path),
    AfterValidator(valid_path),
]
FewNames = BeforeValidator(_not_too_many)
"""Refuses a list of names that is too long."""

Number = Annotated[float, Field(strict=True)]
Positive = Annotated[Number, Field(gt=0)]
NotNegative = Annotated[Number, Field(ge=0)]
Share = Annotated[Number, Field(ge=0, le=1)]
Wording = Literal["present", "original", "relaxed", "agnostic", "strict", "none"]
Scalar = bool | int | float | str
Argument = Annotated[Any, PlainValidator(_argument, json_schema_input_type=Scalar | tuple[Scalar, ...])]
Arguments = Annotated[Mapping[Text, Argument], Field(max_length=MOST_NAMES)]


ModelName = Annotated[PathText, BeforeValidator(current_name)]
CurrentName = Annotated[Text, BeforeValidator(current_name)]


class Section(BaseModel):
    """The base of all sections of an experiment: a frozen model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())

    OLD_KEYS: ClassVar[Mapping[str, str]] = {}
    """Old → new spelling of a key."""

    @model_validator(mode="before")
    @classmethod
    def _in_current_spelling(cls, value: Any) -> Any:
        return current_keys(value, cls.OLD_KEYS)


class Data(Section):
    """Which examples are used."""

    name: Text = Field(default="emoji", description="Data set, as listed by `fedloom list datasets`.")
    root: PathText | None = Field(
        default=None,
        description="Folder of the data; required for every data set that is not bundled with fedloom.",
    )
    test_share: Annotated[Number, Field(gt=0, lt=1)] = Field(
        default=0.25, description="Share of examples held out for testing."
    )
    validation: Annotated[Number, Field(ge=0, lt=1)] | Literal["published"] = Field(
        default=0.0,
        description="Share of each client's training examples that is held out to choose rounds, rates and methods; "
        "published uses the owners' own validation set.",
    )
    limit: Count | None = Field(
        default=None, description="At most this many training examples; null takes all."
    )
    max_rejected: Share = Field(
        default=0.01, description="Largest share of invalid records; above it, a run does not start."
    )
    too_long: Literal["skip", "cut"] = Field(
        default="skip",
        description="Whether an example with more tokens than the model accepts is skipped, or the end of its text is "
        "cut.",
    )
    task: Literal["classification", "vqa", "captioning", "grounding", "all"] = Field(
        default="classification", description="Kind of question asked about shapes or emoji-styles."
    )
    variant: CurrentName | None = Field(
        default=None,
        description="Task or language of a published data set, or the style of shapes; null is the first.",
    )


class Scenario(Section):
    """Which client holds which example, and which of its modalities."""

    mode: Literal["corrected", "published"] = Field(
        default="corrected",
        description="Draws from the experiment's seed, or exactly those of FedMLLM's published code.",
    )
    clients: Count = Field(default=5, description="Number of clients.")
    partition: Literal["iid", "dirichlet", "by_group", "by_source"] = Field(
        default="iid", description="Who holds which example; in published mode the default is dirichlet."
    )
    alpha: Positive = Field(
        default=0.5, description="Concentration of dirichlet; smaller values make clients differ more."
    )
    repair: Literal["each", "first"] | None = Field(
        default=None,
        description="Labels of which every client gets an example in published mode: each, the first, or null, "
        "which is what was published for the data set.",
    )
    pattern: Literal["aligned", "missing", "cross", "hybrid"] = Field(
        default="aligned", description="Which modalities clients see of their examples."
    )
    rate: Share = Field(
        default=0.3, description="Share of examples that lose a modality under missing, per modality."
    )
    lose_all: Flag = Field(
        default=False,
        description="Whether an example may lose both modalities under missing; in published mode it may.",
    )
    image_clients: Index | None = Field(
        default=None,
        description="Number of clients that hold only images under cross, while the others hold only text; null is half.",
    )
    p: Share = Field(default=0.7, description="Probability that a client holds a modality under hybrid.")

    @model_validator(mode="before")
    @classmethod
    def _published_by_label(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("mode") == "published":
            return {"partition": "dirichlet", **value}
        return value


class Model(Section):
    """Which vision-language model is fine-tuned."""

    path: ModelName = Field(
        default="bundled",
        description="The model: bundled, bundled-free, one that `fedloom models add` adds, a folder, or a name on a "
        "model hub.",
    )
    encoder: ModelName | None = Field(
        default=None,
        description="CLIP, SigLIP or EfficientNet encoder of an assembled model, or a model that has one; used "
        "in place of path.",
    )
    llm: PathText | None = Field(default=None, description="Language model of an assembled model.")
    connector: Literal["linear", "mlp2", "mlp6", "resampler"] | None = Field(
        default=None,
        description="New connector in place of the model's own; null keeps the model's own, and is mlp2 in an assembled model.",
    )
    connector_weights: PathText | None = Field(
        default=None,
        description="Pretrained weights of that connector: a safetensors file, or real-laptop; null initializes it at "
        "random.",
    )
    queries: Count = Field(
        default=16, description="Number of image tokens that the connector resampler gives."
    )
    max_tokens: Count | None = Field(
        default=None,
        description="Most tokens of an example, images and answer included, at most the model's own limit; null "
        "is 8192.",
    )
    pixels: Count | None = Field(
        default=None,
        description="Most pixels of an image, for families that encode images in their own size: larger ones are made smaller; "
        "null leaves the model's own bound.",
    )
    network: Flag = Field(default=False, description="Whether a model hub may be contacted.")
    device: Literal["auto", "cpu", "cuda", "mps", "xpu"] = Field(
        default="auto",
        description="Device of the model; auto is cuda where available; mps and xpu have never been tested.",
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Precision of the frozen language model, while adapters are always float32; auto is float32 on "
        "CPUs, and on GPUs bfloat16, or float16 where a GPU lacks it.",
    )
    quantize: Literal["nf4", "int8"] | None = Field(
        default=None,
        description="Format of the weights of the frozen decoder's linear layers: nf4 takes about 4 bits a weight and int8 8; "
        "null keeps those of precision; needs the extra quantized.",
    )
    device_map: Literal["auto"] | None = Field(
        default=None,
        description="auto divides the decoder's layers among all NVIDIA GPUs and the host's memory, for a model that is larger "
        "than a GPU, and is slow; null keeps it on one GPU.",
    )
    threads: Count | None = Field(
        default=None, description="Number of CPU threads; null leaves the choice to torch."
    )


class Strategy(Section):
    """Which parts of the model are trained."""

    name: Literal["lora", "connector", "both", "two-stage", "share-connector", "share-lora"] = Field(
        default="both",
        description="Parts that are trained, their order, and which of them clients keep to themselves.",
    )
    stage_rounds: Annotated[tuple[Count, ...], Field(min_length=1)] | None = Field(
        default=None,
        description="Rounds of each stage of a strategy with several stages; null divides train.rounds evenly.",
    )
    rank: Count = Field(default=8, description="Rank of the LoRA matrices.")
    alpha: Positive = Field(
        default=16.0, description="Scale of LoRA; the adapter is multiplied by alpha / rank."
    )
    targets: Annotated[tuple[Text, ...], Field(min_length=1)] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        description="Linear layers of the language model that get LoRA, by last name, or by the last parts of "
        "the name, such as layers.27.self_attn.q_proj.",
    )
    dropout: Annotated[Number, Field(ge=0, lt=1)] = Field(
        default=0.0, description="Dropout rate of the inputs of LoRA during training."
    )


class Train(Section):
    """How clients train, and how often."""

    rounds: Count = Field(default=6, description="Number of rounds.")
    cohort: Count | None = Field(default=None, description="Clients in each round; null is all of them.")
    sampler: Literal["corrected", "published"] = Field(
        default="corrected",
        description="Whether cohorts are drawn by seed, or as in FedMLLM's published code, the same for every seed.",
    )
    epochs: Count = Field(default=1, description="Passes of a client over its examples per round.")
    batch_size: Count = Field(default=8, description="Examples per optimizer step.")
    micro_batch: Count | None = Field(
        default=None,
        description="Most examples of a client in one forward and backward pass; gradients add up to those of the whole batch, "
        "which null computes in one pass.",
    )
    batches: Literal["shuffled", "bucketed"] = Field(
        default="shuffled",
        description="Random batches, or batches of examples of similar modality and length, which need less padding.",
    )
    lr: Positive = Field(default=1e-3, description="Learning rate of the clients.")
    schedule: Literal["cosine", "constant", "published"] = Field(
        default="cosine",
        description="Learning-rate schedule over the rounds; published is FedMLLM's, which is too high in its first round.",
    )
    local_schedule: Literal["constant", "cosine", "published"] = Field(
        default="constant",
        description="Learning-rate schedule over a client's steps, restarted in each round; published is FedMLLM's, "
        "whose first step has a rate of zero.",
    )
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="Optimizer of the clients.")
    beta2: Annotated[Number, Field(ge=0, lt=1)] = Field(
        default=0.999, description="Decay rate of adamw's mean of squared gradients (β₂)."
    )
    weight_decay: NotNegative = Field(default=0.0, description="Weight decay of the clients' optimizer.")
    clip: Positive | None = Field(default=1.0, description="Largest gradient norm; null does not clip.")
    repeat: Index = Field(
        default=0,
        description="Number of the training: with the same seed, others have the same data and clients but different batches, "
        "cohorts, dropout and first LoRA weights.",
    )


class Evaluate(Section):
    """How answers are generated and scored."""

    answer: Literal["text", "letter"] = Field(
        default="text", description="Answer with the option or with its letter."
    )
    prompt: Wording = Field(
        default="present",
        description="What prompts say about an example's modalities: present names those it has; `+prompt` describes the others.",
    )
    scoring: Literal["likelihood", "generate", "teacher-forced"] = Field(
        default="likelihood",
        description="Compare the options' likelihoods, parse generated text, or parse teacher-forced text.",
    )
    linear_text: Literal["words", "minilm"] = Field(
        default="words",
        description="Text features of the linear baseline: weights of words, or sentence embeddings of the model "
        "that `fedloom models add minilm` adds.",
    )
    judge: PathText | None = Field(
        default=None,
        description="Folder of a local language model that also judges free-form answers at the end; null is none.",
    )
    metrics: tuple[Text, ...] | None = Field(
        default=None,
        description="Additional scores, by the names that plug-ins or installed packages give them; null uses all scores of "
        "the experiment's plug-ins.",
    )
    every: Index = Field(default=1, description="Rounds between evaluations; 0 evaluates only at the end.")
    round: Literal["last", "best"] = Field(
        default="last",
        description="Round whose scores and adapter are reported: the last one, or the one with the best validation score.",
    )


class Report(Section):
    """What reports show; changes no result."""

    images: Flag = Field(
        default=True,
        description="Whether the report's page of answers shows images of the test set; false keeps them out of it.",
    )


class Aggregate(Section):
    """How clients' updates are combined, whatever the algorithm."""

    over: Literal["cohort", "reporters"] = Field(
        default="cohort",
        description="Whether a client without images counts in the mean of the connector, which it cannot train: cohort "
        "counts all clients that took part, reporters only those that hold images.",
    )


class Limits(Section):
    """Which client updates are refused."""

    max_norm: Positive | None = Field(
        default=None,
        description="Largest norm of an update; null derives a bound on honest updates from the settings.",
    )
    max_ratio: Positive = Field(
        default=20.0,
        description="Largest norm as a multiple of the median norm of accepted updates, or of a typical honest update's norm.",
    )


class Published(Section):
    """Published figures of others, which the report of a sweep shows next to ours."""

    source: Text = Field(description="Source of the figures.")
    metric: Literal["accuracy", "macro_f1", "auc", "macro_f1_published", "auc_published"] = Field(
        default="accuracy",
        description="Score of the figures, in percent, by fedloom's name for it.",
    )
    scores: Mapping[Text, Mapping[CurrentName, Number]] = Field(
        description="Label of an axis → method → figure in percent."
    )
