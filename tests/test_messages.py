"""Laws of messages: a message is read back bit for bit, and no other bytes are accepted."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fedloom.params import Layout, Params, Part
from fedloom.wire import compression, framing
from fedloom.wire.messages import Assignment, Missing, Update, answer_from_bytes, in_codec

LAYOUT = Layout.of({"connector/w": (3, 2), "llm/q:lora_a": (9,), "llm/q:lora_b": (2,)})
OTHER = Layout.of({"connector/w": (2, 3), "llm/q:lora_a": (9,), "llm/q:lora_b": (2,)})
SIZE = LAYOUT.size

PARTS = st.none() | st.lists(st.booleans(), min_size=SIZE, max_size=SIZE).map(
    lambda mask: Part.of(torch.tensor(mask))
)
FLOATS = st.floats(width=32)  # NaN, infinities, both zeros and subnormal values too
SHAPES = st.lists(st.integers(0, 3), max_size=3) | st.just([SIZE])


def vector(numbers: st.SearchStrategy[float] = FLOATS) -> st.SearchStrategy[Tensor]:
    return st.lists(numbers, min_size=SIZE, max_size=SIZE).map(torch.tensor)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Draw a tensor of any dtype that can be sent: 0 to 3 dimensions, or as long as the layout; any bits."""
    dtype, shape = draw(st.sampled_from(list(framing.NAMES))), draw(SHAPES)
    count = int(torch.Size(shape).numel())
    if dtype == torch.bool:
        return torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=dtype).view(
            shape
        )
    data = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    return (torch.frombuffer(bytearray(data), dtype=dtype) if count else torch.empty(0, dtype=dtype)).view(
        shape
    )


@st.composite
def extras(draw: st.DrawFn, part: Part | None) -> dict[str, Tensor]:
    """Draw tensors with any names; some are vectors that are zero outside the part."""
    tensors_by_name = draw(st.dictionaries(st.text(max_size=4), tensors(), max_size=3))
    if draw(st.booleans()):
        tensors_by_name["control"] = (part or Part.whole(SIZE)).zero_outside(draw(vector()))
    return tensors_by_name


WORDS = st.text(max_size=8)
NUMBERS = st.integers(0, 2**40)


@st.composite
def assignments(draw: st.DrawFn) -> Assignment:
    down = draw(PARTS)
    flat = (down or Part.whole(SIZE)).zero_outside(draw(vector()))
    return Assignment(
        draw(WORDS),
        draw(NUMBERS),
        draw(NUMBERS),
        draw(NUMBERS),
        Params(LAYOUT, flat),
        draw(extras(down)),
        draw(st.integers(-1, 9)),
        tuple(draw(st.lists(st.integers(0, 9), max_size=3))),
        down,
        draw(PARTS),
    )


@st.composite
def updates(draw: st.DrawFn, numbers: st.SearchStrategy[float] = FLOATS) -> Update:
    up = draw(PARTS)
    return Update(
        draw(NUMBERS),
        Params(LAYOUT, (up or Part.whole(SIZE)).zero_outside(draw(vector(numbers)))),
        draw(st.floats()),
        draw(extras(up)),
        draw(st.dictionaries(WORDS, st.floats(), max_size=3)),
        up,
        draw(st.booleans()),
    )


def bits(value: Tensor) -> tuple[Any, ...]:
    row = torch.cat([value.reshape(-1)] * 2)  # a copy without odd strides
    return value.dtype, tuple(value.shape), row.view(torch.uint8).tolist() if value.numel() else []


def figure(value: float) -> tuple[Any, ...]:
    return bits(torch.tensor(value, dtype=torch.float64))


def whole_is_none(part: Part | None) -> Part | None:
    return None if part is None or part.is_whole else part


def content(one: Assignment | Update | Missing) -> dict[str, Any]:
    """Return what a message holds, comparable bit by bit; a whole part is the same as None."""
    if isinstance(one, Missing):
        return {"client": one.client, "reason": one.reason}
    own = {"extras": {name: bits(value) for name, value in one.extras.items()}, "up": whole_is_none(one.up)}
    if isinstance(one, Assignment):
        named = {key: getattr(one, key) for key in ("method", "stage", "round", "client", "since", "keep")}
        return own | named | {"params": bits(one.params.flat), "down": whole_is_none(one.down)}
    metrics = [(name, figure(value)) for name, value in one.metrics.items()]
    sent = {"client": one.client, "keeps": one.keeps, "weight": figure(one.weight), "metrics": metrics}
    return own | sent | {"delta": bits(one.delta.flat)}


MESSAGES = st.one_of(assignments(), updates())


def again(one: Assignment | Update) -> Assignment | Update:
    return type(one).from_bytes(one.to_bytes(), LAYOUT)


@given(MESSAGES)
def test_messages_survive_bit_for_bit(one: Assignment | Update) -> None:
    copy = again(one)
    assert content(copy) == content(one)
    assert list(copy.extras) == list(one.extras)
    assert copy.to_bytes() == one.to_bytes()  # equal messages have equal bytes


@pytest.mark.parametrize("rows", [3, 3000])
def test_the_first_columns_of_a_matrix_take_few_bytes_more_than_their_values(rows: int) -> None:
    """The part of 2 of 8 columns is as long in a message whatever the number of rows is, but for its digits."""
    layout = Layout.of({"llm/q:lora_b": (rows, 8)})
    part = Part.of((torch.arange(8) < 2).repeat(rows))
    one = Update(0, Params(layout, part.zero_outside(torch.ones(layout.size))), 1.0, up=part)
    copy = Update.from_bytes(one.to_bytes(), layout)
    assert copy.up == part and torch.equal(copy.delta.flat, one.delta.flat)
    whole = replace(one, up=None).to_bytes()
    assert len(one.to_bytes()) - 4 * part.count <= len(whole) - 4 * layout.size + 24
    assert one.length == len(one.to_bytes())


@given(MESSAGES)
def test_the_length_is_that_of_the_bytes(one: Assignment | Update) -> None:
    assert one.length == len(one.to_bytes())


@given(WORDS, NUMBERS)
def test_a_missing_client_survives(reason: str, client: int) -> None:
    one = Missing(client, reason)
    assert answer_from_bytes(one.to_bytes(), LAYOUT) == one


@given(updates())
def test_an_answer_is_an_update_too(one: Update) -> None:
    copy = answer_from_bytes(one.to_bytes(), LAYOUT)
    assert content(copy) == content(one)


@given(updates(), st.floats(), st.floats())
def test_the_length_does_not_depend_on_the_values_of_metrics(one: Update, left: float, right: float) -> None:
    both = [replace(one, metrics={"seconds": seconds, "loss": 0.5}) for seconds in (left, right)]
    assert both[0].length == both[1].length


@pytest.mark.parametrize("codec", compression.CODECS)
@given(updates(st.floats(-1000, 1000, width=32)))
def test_codecs_change_the_values_of_the_part_alone(codec: str, one: Update) -> None:
    """These go through the codec; everything else is read as it was."""
    flat, coded = in_codec(one.delta.flat, one.up, codec)
    encoded = replace(one, delta=Params(LAYOUT, flat), coded=coded)
    message, part = encoded.to_bytes(), one.up or Part.whole(SIZE)
    copy, sent = Update.from_bytes(message, LAYOUT), part.take(one.delta.flat)
    expected = compression.decode(compression.encode(sent, codec)) if part.count else sent
    assert torch.equal(part.take(copy.delta.flat), expected)
    assert torch.equal(copy.delta.flat, flat)
    assert part.is_zero_outside(copy.delta.flat)
    assert content(replace(copy, delta=one.delta)) == content(one)
    assert encoded.length == len(message) == copy.length
    assert copy.to_bytes() == message


@given(MESSAGES)
def test_fp32_changes_no_byte(one: Assignment | Update) -> None:
    if isinstance(one, Assignment):
        flat, coded = in_codec(one.params.flat, one.down, "fp32")
        same = replace(one, params=Params(LAYOUT, flat), coded=coded)
    else:
        flat, coded = in_codec(one.delta.flat, one.up, "fp32")
        same = replace(one, delta=Params(LAYOUT, flat), coded=coded)
    assert same.to_bytes() == one.to_bytes()


@pytest.mark.parametrize("codec", compression.CODECS)
@given(assignments())
def test_an_assignment_in_a_codec_is_read_as_its_site_in_this_process_has_it(
    codec: str, one: Assignment
) -> None:
    numbers = torch.linspace(-1, 1, SIZE)
    flat, coded = in_codec(numbers, one.down, codec)
    encoded = replace(one, params=Params(LAYOUT, flat), coded=coded)
    message, part = encoded.to_bytes(), one.down or Part.whole(SIZE)
    copy = Assignment.from_bytes(message, LAYOUT)
    assert torch.equal(copy.params.flat, part.zero_outside(flat))
    assert encoded.length == len(message) == copy.length


@given(assignments())
def test_values_outside_the_part_are_not_sent(one: Assignment) -> None:
    everywhere = replace(one, params=Params(LAYOUT, torch.full((SIZE,), 7.0)))
    copy, part = again(everywhere), one.down or Part.whole(SIZE)
    assert torch.equal(copy.params.flat, 7.0 * part.mask)


def test_only_the_values_of_a_part_take_bytes() -> None:
    """40 of 1,000 values are sent, of the parameters and of an extra that is zero elsewhere, but not of other extras."""
    layout, part = Layout.of({"x": (1000,)}), Part(1000, ((100, 140),))
    flat, ones = (
        part.zero_outside(torch.randn(1000, generator=torch.Generator().manual_seed(0))),
        torch.ones(1000),
    )

    def length(extra: Tensor, up: Part | None) -> int:
        return Update(0, Params(layout, flat), 1.0, {"control": extra}, up=up).length

    everything, heads = length(flat, None), 64  # the stretches and counts in the head differ by some bytes
    assert abs(everything - length(flat, part) - 2 * 960 * 4) < heads
    assert abs(everything - length(ones, part) - 960 * 4) < heads


def test_a_negative_zero_is_sent() -> None:
    part = Part(SIZE, ((0, 2),))
    control = torch.zeros(SIZE)
    control[5] = -0.0
    one = Update(0, Params.zeros(LAYOUT), 1.0, {"control": control}, up=part)
    assert bits(again(one).extras["control"]) == bits(control)


@given(tensors(), st.integers(0, 2))
def test_extras_may_be_views(value: Tensor, cut: int) -> None:
    held = torch.stack([value, value], -1)[..., min(cut, 1)]
    one = Assignment(
        "m", 0, 0, 0, Params.zeros(LAYOUT), {"x": held, "t": held.T if held.dim() == 2 else held}
    )
    assert content(again(one)) == content(one)


# What is not read -------------------------------------------------------------------------------------

EXAMPLES: dict[str, Assignment | Update | Missing] = {
    "assignment": Assignment(
        "fedavg",
        1,
        2,
        3,
        Params(LAYOUT, Part(SIZE, ((0, 6), (8, 9))).zero_outside(torch.linspace(-1, 1, SIZE))),
        {"control": torch.ones(SIZE)},
        4,
        (1, 2),
        Part(SIZE, ((0, 6), (8, 9))),
        Part(SIZE, ((0, 6),)),
    ),
    "update": Update(
        3,
        Params(LAYOUT, torch.linspace(-1, 1, SIZE)),
        5.0,
        {"on": torch.tensor([True, True]), "steps": torch.tensor(3.0)},
        {"loss": 0.5, "seconds": 1.5},
    ),
    "missing": Missing(3, "it did not answer"),
}


def read(message: bytes, kind: str) -> Any:
    if kind == "assignment":
        return Assignment.from_bytes(message, LAYOUT)
    return answer_from_bytes(message, LAYOUT)


@pytest.fixture(params=EXAMPLES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_changed_bit_is_found(kind: str) -> None:
    message = EXAMPLES[kind].to_bytes()
    assert content(read(message, kind)) == content(EXAMPLES[kind])
    for place in range(8 * len(message)):
        changed = bytearray(message)
        changed[place // 8] ^= 1 << place % 8
        with pytest.raises(ValueError, match=r"message|checksum"):
            read(bytes(changed), kind)


def test_a_message_cut_short_or_too_long_is_refused(kind: str) -> None:
    message = EXAMPLES[kind].to_bytes()
    for length in range(len(message)):
        with pytest.raises(ValueError, match="message"):
            read(message[:length], kind)
    for more in (b"\0", bytes(8), message):
        with pytest.raises(ValueError, match="message"):
            read(message + more, kind)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(data: bytes) -> None:
    for one in (data, framing.MAGIC + data):
        for kind in EXAMPLES:
            with pytest.raises(ValueError, match="message"):
                read(one, kind)


def test_another_kind_is_refused() -> None:
    sent = {name: one.to_bytes() for name, one in EXAMPLES.items()}
    for name, message in sent.items():
        if name != "assignment":
            with pytest.raises(ValueError, match="of kind"):
                Assignment.from_bytes(message, LAYOUT)
        if name != "update":
            with pytest.raises(ValueError, match="of kind"):
                Update.from_bytes(message, LAYOUT)
    with pytest.raises(ValueError, match="of kind"):
        answer_from_bytes(sent["assignment"], LAYOUT)


def test_another_layout_is_refused() -> None:
    assert OTHER.size == SIZE
    for one in (EXAMPLES["assignment"], EXAMPLES["update"]):
        assert not isinstance(one, Missing)
        with pytest.raises(ValueError, match="another model or strategy"):
            type(one).from_bytes(one.to_bytes(), OTHER)


def test_values_that_cannot_be_sent_are_refused() -> None:
    one = EXAMPLES["update"]
    assert isinstance(one, Update)
    with pytest.raises(ValueError, match="there is no codec 'int3'"):
        in_codec(one.delta.flat, None, "int3")
    with pytest.raises(ValueError, match=r"x holds torch\.int16"):
        replace(one, extras={"x": torch.zeros(2, dtype=torch.int16)}).to_bytes()
    with pytest.raises(ValueError, match="at most 64"):
        replace(one, extras={str(k): torch.zeros(1) for k in range(64)}).to_bytes()
    with pytest.raises(ValueError, match="finite"):
        in_codec(torch.full((SIZE,), torch.nan), None, "bf16")


# Forged messages --------------------------------------------------------------------------------------


def taken_apart(message: bytes) -> tuple[int, dict[str, Any], bytes]:
    """Return the kind, the head and the tensors of a message."""
    _, kind, start, _ = framing.FIXED.unpack_from(message)
    body = message[framing.HEADER :]
    return kind, json.loads(body[:start]), body[start:]


def forged(kind: int, head: bytes, payload: bytes, align: bool = True) -> bytes:
    """Return a message whose checksum is right."""
    head += b" " * (-len(head) % 8 if align else 0)
    fixed = framing.FIXED.pack(framing.MAGIC, kind, len(head), len(payload))
    body = torch.frombuffer(bytearray(head + payload), dtype=torch.uint8)
    return fixed + framing.CHECK.pack(compression.checksum(body, fixed)) + head + payload


def refuse(message: bytes, kind: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read(message, kind)
    assert type(caught.value) is ValueError
    assert len(str(caught.value)) < 500


def test_a_message_put_together_again_is_read(kind: str) -> None:
    """Forgeries below are therefore refused for what they change, not for the way in which they are built."""
    number, head, payload = taken_apart(EXAMPLES[kind].to_bytes())
    copy = read(forged(number, json.dumps(head).encode(), payload), kind)
    assert content(copy) == content(EXAMPLES[kind])


HUGE = [2**31, 2**40, 2**63, 2**64, 10**4000]
NONSENSE: list[Any] = [
    None, True, -2, 0.5, 1e308, float("nan"), float("inf"), "", "x", [], {}, [[]], [None], ["a", "a"], [-1], [1.5],
    ["1"], [True], [[0]], [[0, 1, 2]], [["0", "1"]], [[0.0, 1.0]], [[True, 2]], [[2, 1]], [[0, 2], [1, 3]],
    [[0, 2], [2, 3]], [[0, 1, 2, 2]], [[0, 1, 1, 3]], [[0, 1, 2, SIZE]], [[0, 1, -2, 3]], [[0, 1, 2.0, 3]],
    [[0, 1, 2, True]], [[0, 1], [2, 3], [4, 5]], [[0, 1, 2, 3], [6, 7]], [[-1, 2]], [[0, SIZE + 1]], *HUGE, *[[huge] for huge in HUGE], *[[[0, huge]] for huge in HUGE],
    *[[[0, 1, 2, huge]] for huge in HUGE], *[[[0, 1, huge, 3]] for huge in HUGE],
    {"0": 1}, [{"a": 1}],
]  # fmt: skip
FITTING: dict[str, Callable[[Any], bool]] = {
    # Valid values of a key besides the one that it had: the rest of NONSENSE is refused.
    "stage": lambda value: type(value) is int and 0 <= value < 2**63,
    "round": lambda value: type(value) is int and 0 <= value < 2**63,
    "client": lambda value: type(value) is int and 0 <= value < 2**63,
    "since": lambda value: type(value) is int and -1 <= value < 2**63,
    "method": lambda value: isinstance(value, str),
    "reason": lambda value: isinstance(value, str),
    "keep": lambda value: isinstance(value, list) and all(FITTING["client"](one) for one in value),
    "keeps": lambda value: value is True,
}


def test_nonsense_in_a_head_is_refused(kind: str) -> None:
    number, head, payload = taken_apart(EXAMPLES[kind].to_bytes())
    for key in head:
        refuse(
            forged(number, json.dumps({k: v for k, v in head.items() if k != key}).encode(), payload), kind
        )
        for value in NONSENSE:
            if key == "up" and kind == "assignment" and value in (None, []):
                continue  # valid parts, too
            if not (FITTING[key](value) if key in FITTING else value == head[key]):
                refuse(forged(number, json.dumps(head | {key: value}).encode(), payload), kind)


@pytest.mark.parametrize("stretches", [[[0, 6]], [[0, 7], [9, 10]], [[0, SIZE]], [], None])
def test_a_part_other_than_that_of_the_values_is_refused(stretches: Any) -> None:
    number, head, payload = taken_apart(EXAMPLES["assignment"].to_bytes())
    assert head["down"] != stretches
    refuse(forged(number, json.dumps(head | {"down": stretches}).encode(), payload), "assignment")


def test_nonsense_in_a_list_of_tensors_is_refused(kind: str) -> None:
    number, head, payload = taken_apart(EXAMPLES[kind].to_bytes())
    for which, entry in enumerate(head["tensors"]):
        for place in range(len(entry)):
            for value in NONSENSE:
                changed = [*entry[:place], value, *entry[place + 1 :]]
                if (place == 0 and isinstance(value, str)) or json.dumps(changed) == json.dumps(entry):
                    continue  # an extra may have any name
                listed = [*head["tensors"][:which], changed, *head["tensors"][which + 1 :]]
                refuse(forged(number, json.dumps(head | {"tensors": listed}).encode(), payload), kind)
        for value in [*NONSENSE, entry[:-1], [*entry, 0]]:
            listed = [*head["tensors"][:which], value, *head["tensors"][which + 1 :]]
            refuse(forged(number, json.dumps(head | {"tensors": listed}).encode(), payload), kind)


@pytest.mark.parametrize(
    "head",
    [
        *(b" ", b"{", b"[]", b"1", b"null", b'"tensors"', b"\xff\xfe", b"{}", b'{"tensors":[]}'),
        *(b"[" * 100_000, b'{"a":' * 100_000, b'{"client":' + b"9" * 5000 + b"}"),
        '{"tensors":[]}'.encode("utf-16"),
    ],
    ids=range(13),
)
def test_bytes_that_are_no_head_are_refused(head: bytes, kind: str) -> None:
    number, _, payload = taken_apart(EXAMPLES[kind].to_bytes())
    refuse(forged(number, head, payload), kind)
    refuse(forged(number, head, b""), kind)


def test_heads_of_odd_length_are_refused(kind: str) -> None:
    number, head, payload = taken_apart(EXAMPLES[kind].to_bytes())
    text = json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    refuse(forged(number, text + b" ", payload, align=False), kind)


def test_tensors_that_do_not_fill_the_message_are_refused(kind: str) -> None:
    number, head, payload = taken_apart(EXAMPLES[kind].to_bytes())
    text = json.dumps(head).encode()
    refuse(forged(number, text, payload + bytes(8)), kind)
    if payload:
        refuse(forged(number, text, payload[:-8]), kind)


def update_of(*listed: list[Any], payload: bytes, **other: Any) -> bytes:
    """Forge an update with other tensors."""
    number, head, _ = taken_apart(EXAMPLES["update"].to_bytes())
    return forged(number, json.dumps(head | {"tensors": listed, **other}).encode(), payload)


DELTA, FIGURES = ["", "float32", [SIZE], "fp32", False], ["figures", "float64", [3], "fp32", False]
PLAIN = bytes(SIZE * 4 + 4) + bytes(24)  # 17 values, four bytes to the next multiple of 8, three figures


@pytest.mark.parametrize(
    ("more", "payload"),
    [
        ([["a", "uint8", [1], "fp32", False], ["a", "uint8", [1], "fp32", False]], bytes(16)),
        ([["a", "bool", [2], "fp32", False]], b"\1\2" + bytes(6)),
        ([["a", "uint8", [2], "fp32", False]], b"\0\0\1" + bytes(5)),
        ([["a", "float32", [SIZE], "fp32", True]], bytes(SIZE * 4 + 4)),  # the message has no part
        ([["a", "uint8", [0, 2**39, 2**39, 2**39], "fp32", False]], b""),
        ([["a", "float32", [2], "bf16", False]], bytes(40)),
        ([["a", "int32", [2], "bf16", False]], compression.encode(torch.ones(2), "bf16") + bytes(4)),
        ([["a", "float32", [3], "bf16", False]], compression.encode(torch.ones(2), "bf16") + bytes(2)),
        (
            [["a", "float32", [63], "int4", False]],
            compression.encode(torch.ones(64), "int4") + bytes(6),
        ),  # as long
        (
            [[str(k), "uint8", [], "fp32", False] for k in range(framing.MOST - 1)],
            bytes(8 * framing.MOST - 8),
        ),
    ],
    ids=range(10),
)
def test_forged_extras_are_refused(more: list[list[Any]], payload: bytes) -> None:
    assert read(update_of(DELTA, FIGURES, payload=PLAIN), "update").extras == {}
    refuse(update_of(DELTA, FIGURES, *more, payload=PLAIN + payload), "update")


def test_updates_without_what_every_update_has_are_refused() -> None:
    refuse(update_of(payload=b""), "update")
    refuse(update_of(DELTA, payload=PLAIN[:-24]), "update")
    refuse(update_of(FIGURES, DELTA, payload=bytes(24) + PLAIN[:-24]), "update")
    refuse(update_of(DELTA, ["figures", "int64", [3], "fp32", False], payload=PLAIN), "update")
    refuse(update_of(DELTA, ["figures", "float64", [3, 1], "fp32", False], payload=PLAIN), "update")
    refuse(update_of(DELTA, ["figures", "float64", [], "fp32", False], payload=PLAIN[:-16]), "update")
    refuse(update_of(DELTA, FIGURES, payload=PLAIN, metrics=["a", "b", "c"]), "update")


class Largest(TorchDispatchMode):
    """A mode that records the bytes of the largest tensor that any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.bytes = max(
            [self.bytes, *(one.nbytes for one in tree_leaves(result) if isinstance(one, Tensor))]
        )
        return result


def test_forged_sizes_take_no_memory() -> None:
    """Sizes in a head are checked against the bytes that came before any tensor of that size is made."""
    number, head, payload = taken_apart(EXAMPLES["assignment"].to_bytes())
    coded = bytearray(compression.encode(torch.ones(SIZE), "top16") + bytes(6))
    coded[8:16] = (2**33).to_bytes(8, "little")
    forgeries = [
        *(
            update_of(["", "float32", shape, codec, False], FIGURES, payload=PLAIN)
            for shape in ([2**28], [2**33], [2**39], [2**13, 2**13])
            for codec in compression.CODECS
        ),
        *(
            update_of(DELTA, FIGURES, ["a", name, [2**28], "fp32", False], payload=PLAIN)
            for name in framing.DTYPES
        ),
        update_of(["", "float32", [SIZE], "top16", False], FIGURES, payload=bytes(coded) + bytes(24)),
        forged(number, json.dumps(head | {"down": [[0, 2**33]]}).encode(), payload),
        framing.FIXED.pack(framing.MAGIC, number, 2**31, 2**39) + bytes(64),
    ]
    with Largest() as made:
        for message in forgeries:
            refuse(message, "assignment" if message[4] == number else "update")
    assert made.bytes < 2**16
    layout = Layout.of({"x": (2**18,)})
    honest = Update(0, Params.zeros(layout), 1.0, up=Part(2**18, ((0, 2**10),))).to_bytes()
    with Largest() as made:
        Update.from_bytes(honest, layout)
    assert made.bytes == 2**20  # so a tensor that is made is noticed


@given(st.data())
def test_forged_bytes_are_a_message_or_a_value_error(data: st.DataObject) -> None:
    """Whatever replaces a stretch of a head, under a right checksum, the message is read or refused with a ValueError."""
    kind = data.draw(st.sampled_from(list(EXAMPLES)))
    message = EXAMPLES[kind].to_bytes()
    _, number, start, _ = framing.FIXED.unpack_from(message)
    body = message[framing.HEADER :]
    head, payload = body[:start].rstrip(), body[start:]
    begin = data.draw(st.integers(0, len(head)))
    end = data.draw(st.integers(begin, min(len(head), begin + 6)))
    with_ = data.draw(st.text('0123456789-.eE[]{},:"truefalsn', max_size=6).map(str.encode))
    try:
        result = read(forged(number, head[:begin] + with_ + head[end:], payload), kind)
    except ValueError:
        return
    assert content(read(result.to_bytes(), kind)) == content(result)
