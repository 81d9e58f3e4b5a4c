"""Model folders that must be refused with one sentence, and unusual ones that must load.

Each builder takes a folder with a tiny LLaVA and changes it. No test framework is needed, so a campaign can use the
builders too.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

Build = Callable[[Path], object]

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{% for part in message['content'] %}"
    "{{ '<image>' if part['type'] == 'image' else part['text'] }}{% endfor %}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class Trap:
    """What a pickle of this runs when it is opened."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os._exit, ("opened",)


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Build:
    """Change the tensors of the weights."""

    def build(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        change(held)
        save_file(held, folder / WEIGHTS, metadata={"format": "pt"})

    return build


def key_like(held: dict[str, torch.Tensor], ending: str) -> str:
    return next(name for name in sorted(held) if name.endswith(ending))


def document(file: str, change: Callable[[dict[str, Any]], object]) -> Build:
    """Change a file that holds a JSON object; make it where there is none."""

    def build(folder: Path) -> None:
        path = folder / file
        held = json.loads(path.read_text()) if path.exists() else {}
        change(held)
        path.write_text(json.dumps(held))

    return build


def config(**values: Any) -> Build:
    """Set values of the configuration; a_b__c stands for c within a_b."""

    def change(held: dict[str, Any]) -> None:
        for name, value in values.items():
            *above, last = name.split("__")
            place = held
            for one in above:
                place = place[one]
            place[last] = value

    return document("config.json", change)


def content(file: str, value: bytes | str) -> Build:
    """Replace a file."""
    return lambda folder: (folder / file).write_bytes(value if isinstance(value, bytes) else value.encode())


def without(*files: str) -> Build:
    """Remove files."""
    return lambda folder: [(folder / file).unlink() for file in files]


def both(*builds: Build) -> Build:
    """Change a folder in several ways."""
    return lambda folder: [build(folder) for build in builds]


def index(*names: Any) -> Build:
    """Replace the weights by an index that names these files."""

    def build(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).rename(folder / "a.safetensors")
        named = {tensor: names[number % len(names)] for number, tensor in enumerate(held)}
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": named}))
        outside = folder.parent / f"{folder.name}-outside"
        outside.mkdir(exist_ok=True)
        for place in (folder / "b.bin", outside / "b.bin", outside / "c.safetensors"):
            place.write_bytes(pickle.dumps(Trap()))

    return build


def link(file: str, target: Callable[[Path], Path]) -> Build:
    """Replace a file by a link."""

    def build(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(target(folder))

    return build


def elsewhere(name: str) -> Callable[[Path], Path]:
    """Name a file outside the folder, which holds a pickle."""

    def place(folder: Path) -> Path:
        outside = folder.parent / f"{folder.name}-outside"
        outside.mkdir(exist_ok=True)
        (outside / name).write_bytes(pickle.dumps(Trap()))
        return outside / name

    return place


def pipe(file: str) -> Build:
    """Replace a file by a pipe that nobody writes to."""

    def build(folder: Path) -> None:
        (folder / file).unlink(missing_ok=True)
        os.mkfifo(folder / file)

    return build


def header(value: bytes, length: int | None = None, rest: bytes = b"") -> Build:
    """Replace the weights by a file with this header, which may lie about its length."""
    announced = struct.pack("<Q", len(value) if length is None else length)
    return content(WEIGHTS, announced + value + rest)


def one_tensor(**claims: Any) -> Build:
    """Replace the weights by one tensor of four bytes, of which the header claims something else."""
    row = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **claims}
    return header(json.dumps({"lm_head.weight": row}).encode(), rest=b"\0" * 4)


def template(text: str) -> Build:
    return content("chat_template.jinja", text)


def templates(
    *, file: str | None = None, tokenizer: Any = None, processor: Any = None, json_file: Any = None
) -> Build:
    """Keep chat templates in some of the places that transformers reads them from, and in no other."""

    def build(folder: Path) -> None:
        (folder / "chat_template.jinja").unlink()
        document("tokenizer_config.json", lambda held: held.pop("chat_template", None))(folder)
        if file is not None:
            template(file)(folder)
        places = {
            "tokenizer_config.json": tokenizer,
            "processor_config.json": processor,
            "chat_template.json": json_file,
        }
        for name, value in places.items():
            if value is not None:
                document(name, partial(dict.update, chat_template=value))(folder)

    return build


def named(**values: str) -> list[dict[str, str]]:
    """Return several chat templates as a list of named ones."""
    return [{"name": name, "template": value} for name, value in values.items()]


def experts(folder: Path) -> None:
    """Put a mixture of experts into the place of the decoder."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    held = json.loads((folder / "config.json").read_text())
    dense = {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size"}
    decoder = {name: value for name, value in held["text_config"].items() if name in dense}
    held["text_config"] = {
        **decoder,
        "model_type": "granitemoe",
        "num_key_value_heads": 2,
        "num_local_experts": 2,
    }
    (folder / "config.json").write_text(json.dumps(held))
    model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    for file in folder.glob("*.safetensors"):
        file.unlink()
    model.save_pretrained(folder)


LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
DOUBLE = "{% set n = namespace(x='ab') %}{% for a in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
DEEP = 100_000

BAD: dict[str, tuple[Build, str]] = {
    # weights
    "no tensors": (tensors(dict.clear), r"tensors lm_head\.weight, .* and \d+ more are missing"),
    "a tensor missing": (tensors(lambda held: held.pop(key_like(held, "q_proj.weight"))), r"tensor .*q_proj\.weight is missing"),
    "an extra tensor": (tensors(lambda held: held.update(extra=torch.zeros(1))), r"tensor extra is unknown"),
    "a transposed tensor": (
        tensors(lambda held: held.update({(k := key_like(held, "gate_proj.weight")): held[k].T.contiguous()})),
        r"gate_proj\.weight \[16, 24\] instead of \[24, 16\]",
    ),
    "embeddings cut": (
        tensors(lambda held: held.update({(k := key_like(held, "embed_tokens.weight")): held[k][:9].clone()})),
        r"embed_tokens\.weight \[9, 16\] instead of",
    ),
    "fewer layers than weights": (config(text_config__num_hidden_layers=2), r"layers\.2\..* are unknown"),
    "more layers than weights": (config(text_config__num_hidden_layers=4), r"layers\.3\..* are missing"),
    "another width": (config(text_config__hidden_size=32, text_config__head_dim=16), r"another shape"),
    "weights cut off": (lambda f: content(WEIGHTS, (f / WEIGHTS).read_bytes()[:-99])(f), "model.safetensors is damaged"),
    "weights cut in the header": (lambda f: content(WEIGHTS, (f / WEIGHTS).read_bytes()[:99])(f), "is damaged"),
    "no bytes": (content(WEIGHTS, b""), "is damaged"),
    "a header of exabytes": (header(b"{}", 2**62), "is damaged"),
    "a header of gigabytes": (header(b"{}", 2**32), "is damaged"),
    "a header that is no JSON": (header(b"{" * 64), "is damaged"),
    "a shape beyond its bytes": (one_tensor(shape=[10**9, 10**9]), "is damaged"),
    "a shape that overflows": (one_tensor(shape=[2**40, 2**40]), "is damaged"),
    "bytes beyond the file": (one_tensor(data_offsets=[0, 10**12]), "is damaged"),
    "an unknown type": (one_tensor(dtype="F99"), "is damaged"),
    "whole numbers": (
        tensors(lambda held: held.update({(k := key_like(held, "q_proj.weight")): held[k].to(torch.int8)})),
        r"q_proj\.weight holds I8",
    ),
    "a pickle": (both(without(WEIGHTS), content("pytorch_model.bin", pickle.dumps(Trap()))), "no model.safetensors"),
    "a pickle named safetensors": (content(WEIGHTS, pickle.dumps(Trap())), "is damaged"),
    "an index that leaves": (index("../outside/b.bin"), r"names '\.\./outside/b\.bin'"),
    "an index that leaves for safetensors": (index("../outside/c.safetensors"), "inside the folder"),
    "an index with a whole path": (index("/etc/c.safetensors"), "inside the folder"),
    "an index with a folder": (index("sub/c.safetensors"), "inside the folder"),
    "an index to a pickle": (index("a.safetensors", "b.bin"), r"names 'b\.bin'"),
    "an index to a number": (index(7), "names '7'"),
    "an index to nothing": (index("a.safetensors", "none.safetensors"), r"none\.safetensors is missing"),
    "an index with dots": (index(".."), "inside the folder"),
    "a damaged index": (both(index("a.safetensors"), content(INDEX, '{"weight_map": {')), "index.json is damaged"),
    "an index of a list": (both(index("a.safetensors"), content(INDEX, "[]")), "index.json is damaged"),
    "an empty index": (both(index("a.safetensors"), content(INDEX, '{"weight_map": {}}')), "index.json is damaged"),
    "weights of a pipe": (pipe(WEIGHTS), "model.safetensors is not a regular file"),
    "weights of a device": (link(WEIGHTS, lambda _: Path("/dev/zero")), "not a regular file"),
    "weights linked to a pickle": (link(WEIGHTS, elsewhere("x.bin")), r"link to x\.bin, which is outside"),
    "weights linked to nothing": (link(WEIGHTS, lambda f: f / "none.safetensors"), "No such file"),
    "weights linked in a circle": (link(WEIGHTS, lambda f: f / WEIGHTS), "model.safetensors: "),
    "weights of a folder": (both(without(WEIGHTS), lambda f: (f / WEIGHTS).mkdir()), "not a regular file"),
    "an adapter": (content("adapter_config.json", '{"base_model_name_or_path": "/"}'), "holds an adapter"),
    "shards of a distributed run": (
        lambda f: (f / WEIGHTS).rename(f / "shard-00001-model-00001-of-00001.safetensors"), "distributed run",
    ),
    "weights under another name": (config(transformers_weights="b.bin"), "transformers_weights"),
    "quantized weights": (config(quantization_config={"quant_method": "bitsandbytes"}), "quantization_config"),
    "attention from a hub": (config(text_config__attn_implementation="x/y"), "attn_implementation is 'x/y'"),
    # configuration
    "no configuration": (without("config.json"), "no config.json"),
    "a configuration cut off": (lambda f: content("config.json", (f / "config.json").read_bytes()[:200])(f), "config.json is damaged"),
    "a configuration of a list": (content("config.json", "[]"), "config.json is damaged"),
    "a configuration of nothing": (content("config.json", "{}"), "model_type"),
    "a configuration in no encoding": (content("config.json", b'{"a": "\xff\xfe"}'), "config.json is damaged"),
    "a deep configuration": (content("config.json", '{"a":' + "[" * DEEP + "]" * DEEP + "}"), "config.json is damaged"),
    "a configuration of a pipe": (pipe("config.json"), "config.json is not a regular file"),
    "a configuration of a device": (link("config.json", lambda _: Path("/dev/zero")), "config.json is not a regular file"),
    "a configuration of gigabytes": (lambda f: os.truncate(f / "config.json", 3 * 2**30), "config.json has 3,221,225,472 bytes"),
    "another family": (config(model_type="bert"), "of family 'bert'"),
    "an unknown family with code": (
        both(
            config(model_type="mine", auto_map={"AutoConfig": "mine.Config"}),
            content("mine.py", "import os\nos._exit(3)\n"),
        ),
        "cannot load",
    ),
    "a billion layers": (config(text_config__num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    "a billion layers in the encoder": (config(vision_config__num_hidden_layers=10**9), "num_hidden_layers is 1000000000"),
    "a thousand layers": (config(text_config__num_hidden_layers=1000), "far larger model"),
    "a width of a billion": (config(text_config__hidden_size=10**9), "."),
    "a wide middle": (config(text_config__intermediate_size=10**12), "far larger model"),
    "a vocabulary of a trillion": (config(text_config__vocab_size=10**12), "far larger model"),
    "a billion labels": (config(num_labels=10**9), "num_labels is 1000000000"),
    "images a billion wide": (config(vision_config__image_size=10**9), "far larger model|cannot load"),
    "a number beyond all": (config(text_config__hidden_size=10**400), "hidden_size is 1000"),
    "a negative width": (config(text_config__intermediate_size=-1), "cannot load"),
    "a width in words": (config(text_config__hidden_size="wide"), "cannot load"),
    "no heads": (config(text_config__num_attention_heads=0), "cannot load"),
    "an unknown activation": (config(text_config__hidden_act="wobble"), "cannot load"),
    "a decoder of nothing": (config(text_config={}), "."),
    "a decoder of a list": (config(text_config=[]), "cannot load"),
    "features of no layer": (config(vision_feature_layer=-9), r"layer -9 \(vision_feature_layer\)"),
    "experts": (experts, "mixture of experts"),
    **{
        f"an end of {value!r}": (
            document("generation_config.json", partial(dict.update, eos_token_id=value)), r"generation_config\.json: eos_token_id is",
        )
        for value in ("</s>", [5, "2"], 5.0, [[5]], True)
    },
    "padding beyond the vocabulary": (config(text_config__pad_token_id=10**6), "pad_token_id is 1000000, but the vocabulary has"),
    # tokenizer
    "no tokenizer": (without("tokenizer.json"), "cannot load|no image token|end token"),
    "a damaged tokenizer": (content("tokenizer.json", '{"model": '), "cannot load"),
    "a tokenizer of a pipe": (pipe("tokenizer.json"), "tokenizer.json is not a regular file"),
    "a damaged tokenizer configuration": (content("tokenizer_config.json", "{"), "tokenizer_config.json is damaged"),
    "no end token": (document("tokenizer_config.json", lambda held: held.pop("eos_token")), "no end token"),
    "no image token": (config(image_token_index=10**6), "no image token"),
    "more tokens than embeddings": (
        document(
            "tokenizer.json",
            lambda held: held["added_tokens"].append(
                {**held["added_tokens"][-1], "id": 900, "content": "<more>"}
            )
            or held["model"]["vocab"].update({"<more>": 900}),
        ),
        "without an embedding, such as '<more>'",
    ),
    # image processor
    "no image processor": (without("preprocessor_config.json"), "cannot load"),
    "a damaged image processor": (content("preprocessor_config.json", "nothing"), "preprocessor_config.json is damaged"),
    "images of another size": (
        document("preprocessor_config.json", lambda held: held["crop_size"].update(width=24)),
        "makes images of 24 × 16 pixels, but the encoder takes 16 × 16",
    ),
    "images that are cut to nothing": (
        document("preprocessor_config.json", lambda held: held["crop_size"].update(width=-4)), "image processor|cannot load",
    ),
    **{
        f"images with {name} of {value!r}": (
            document("preprocessor_config.json", partial(dict.update, **{name: value})), rf"preprocessor_config\.json: {name} is .*; expected finite",
        )
        for name, value in (("image_std", 0), ("image_std", [0.5, 0.0, 0.5]), ("rescale_factor", 0), ("image_mean", [0.5, float("nan"), 0.5]), ("image_std", 10**400))
    },
    "an unknown image processor": (document("preprocessor_config.json", lambda held: held.update(image_processor_type="X")), "cannot load"),
    "images of terabytes": (document("preprocessor_config.json", lambda held: held.update(crop_size={"height": 10**7, "width": 10**7})), "height is 10000000"),
    # chat template
    "a template with a slip": (template("{% for %}"), "chat template"),
    "an endless template": (template(LOOP + TEMPLATE), "does not come to an end"),
    "a template that grows": (template(DOUBLE + TEMPLATE), "chat template"),
    "a template of a long range": (template("{% for a in range(10**9) %}{% endfor %}" + TEMPLATE), "chat template"),
    "a template of a power": (template("{% set a = 9**(9**9) %}" + TEMPLATE), "chat template"),
    "a template of a long word": (template("{{ 'a' * (10**11) }}" + TEMPLATE), "chat template"),
    "a template that calls itself": (template("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}" + TEMPLATE), "chat template"),
    "a template that raises": (template("{{ raise_exception('no') }}"), "no"),
    "a template that looks inside": (template("{{ ''.__class__.__mro__ }}" + TEMPLATE), "chat template"),
    "a template without the user": (template(TEMPLATE.replace("part['text']", "''")), "leaves out what the user says"),
    "a template without images": (template(TEMPLATE.replace("<image>", "")), r"writes '<image>' 0 times for 1 images"),
    "a template that changes the prompt": (template("{{ messages | length }}" + TEMPLATE), "changes the prompt"),
    "a template without the answer": (
        template("{% for message in messages if message['role'] == 'user' %}" + TEMPLATE.split("%}", 1)[1]), "answer",
    ),
    "a template of megabytes": (template(TEMPLATE + "{# " + "a" * 2**21 + " #}"), "at most"),
    "a template of gigabytes": (both(template(""), lambda f: os.truncate(f / "chat_template.jinja", 3 * 2**30)), "3,221,225,472"),
    "a template of a pipe": (pipe("chat_template.jinja"), "not a regular file"),
    "a template that is no text": (
        both(without("chat_template.jinja"), content("chat_template.json", '{"chat_template": 7}')), "chat template|cannot load",
    ),
    "templates without a default": (templates(tokenizer=named(rag=TEMPLATE, chat=TEMPLATE)), r"'default' \(the tokenizer has chat, rag\)"),
    "an object without a default": (templates(json_file={"rag": TEMPLATE}), r"'default' \(chat_template\.json has rag\)"),
    "a default that is no text": (templates(processor={"default": 7}), r"is not a string \(processor_config\.json\)"),
}  # fmt: skip
"""Name → how the folder is changed, and what the message says."""


def hub_cache(folder: Path) -> None:
    """Lay the files out as the hub's cache does: links from a snapshot to blobs."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / ("0" * 40)
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        blob, link = blobs / f"{number:040x}", snapshot / file.relative_to(folder)
        file.rename(blob)
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))


def linked_weights(folder: Path) -> None:
    """Keep the weights elsewhere and link them."""
    place = folder.parent / f"{folder.name}-kept.safetensors"
    (folder / WEIGHTS).rename(place)
    (folder / WEIGHTS).symlink_to(place)


def shards(folder: Path) -> None:
    """Split the weights in two files with an index."""
    held = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    named = {
        name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(sorted(held))
    }
    for file in set(named.values()):
        part = {name: value for name, value in held.items() if named[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": named}))


MARKED = TEMPLATE + "{# marked #}"
"""A chat template that can be told from `TEMPLATE` and writes the same."""

TEXT_ONLY = TEMPLATE.replace("<image>", "")
"""The chat template of the language model alone, which writes no images."""

TEMPLATES: dict[str, Build] = {
    "a file": templates(file=MARKED),
    "the tokenizer": templates(tokenizer=MARKED),
    "a list of the tokenizer": templates(tokenizer=named(rag=TEMPLATE, default=MARKED)),
    "the processor": templates(processor=MARKED),
    "the processor's own file": templates(json_file=MARKED),
    "an object in the processor's own file": templates(json_file={"default": MARKED, "rag": TEMPLATE}),
    "the processor beside another of the tokenizer": templates(processor=MARKED, tokenizer=TEXT_ONLY),
    "the processor's own file beside another of the tokenizer": templates(
        json_file=MARKED, tokenizer=TEXT_ONLY
    ),
    "the processor beside another file": templates(processor=MARKED, file=TEXT_ONLY),
}
"""Place → how the chat template `MARKED` gets there, in which transformers finds it for a model that sees images."""

GOOD: dict[str, Build] = {
    "as it is": lambda folder: None,
    "weights linked from elsewhere": linked_weights,
    "two shards": shards,
    "a pickle beside": content("pytorch_model.bin", pickle.dumps(Trap())),
    "ends beyond the vocabulary": document(
        "generation_config.json", partial(dict.update, eos_token_id=[5, 10**6, None])
    ),
    "half precision": tensors(lambda held: held.update({name: one.half() for name, one in held.items()})),
    "buffers that are computed again": tensors(
        lambda held: held.update(
            {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}
        )
    ),
    "code that is not needed": both(
        config(auto_map={"AutoConfig": "mine.Config"}), content("mine.py", "import os\nos._exit(3)\n")
    ),
    "a template with the date": template("{{ strftime_now('%Y') }}" + TEMPLATE),
}
"""Name → how the folder is changed; it must load, and be the model that it was."""
