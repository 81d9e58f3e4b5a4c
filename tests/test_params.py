"""Flat buffers and layouts."""

from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedloom.params import Layout, Params, Part

SHAPES = st.dictionaries(
    st.text(min_size=1, max_size=12),
    st.lists(st.integers(1, 4), max_size=3).map(tuple),
    min_size=1,
    max_size=6,
)


def values(shapes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(prod(shape), generator=generator).view(shape) for name, shape in shapes.items()}


@given(SHAPES)
def test_slices_follow_one_another_and_cover_the_buffer(shapes):
    layout = Layout.of(shapes)
    end = 0
    for name in layout.names:
        part = layout.slice(name)
        assert part.start == end and part.stop - part.start == prod(shapes[name])
        end = part.stop
    assert end == layout.size == sum(prod(shape) for shape in shapes.values())


@given(SHAPES, st.randoms(use_true_random=False))
def test_a_layout_does_not_depend_on_insertion_order(shapes, rng):
    items = list(shapes.items())
    rng.shuffle(items)
    assert Layout.of(dict(items)) == Layout.of(shapes)


@given(SHAPES)
def test_a_layout_survives_json(shapes):
    layout = Layout.of(shapes)
    again = Layout.from_json(layout.to_json())
    assert again == layout and again.to_json() == layout.to_json()


@given(SHAPES)
def test_named_tensors_survive_flattening(shapes):
    tensors = values(shapes)
    params = Params.of(tensors)
    views = dict(params.items())
    assert list(views) == sorted(tensors)
    for name, tensor in tensors.items():
        assert torch.equal(views[name], tensor) and torch.equal(params[name], tensor)
        assert views[name].shape == tensor.shape
    again = Params.of(views)
    assert torch.equal(again.flat, params.flat) and again.digest() == params.digest()


@given(SHAPES, st.integers(1, 3))
def test_a_cohort_is_viewed_row_by_row(shapes, clients):
    rows = [Params.of(values(shapes, seed)) for seed in range(clients)]
    stack = Params(rows[0].layout, torch.stack([row.flat for row in rows]))
    for name, view in stack.items():
        assert view.shape == (clients, *shapes[name])
        assert torch.equal(view, torch.stack([row[name] for row in rows]))


@given(SHAPES)
def test_masks_of_a_name_and_of_the_others_add_up_to_one(shapes):
    layout = Layout.of(shapes)
    chosen = layout.names[0]
    inside, outside = layout.mask(lambda name: name == chosen), layout.mask(lambda name: name != chosen)
    assert inside.dtype == torch.float32 and inside.sum() == prod(shapes[chosen])
    assert torch.equal(inside + outside, torch.ones(layout.size))
    assert inside[layout.slice(chosen)].all()


def test_a_name_is_a_view_and_a_new_buffer_is_a_copy():
    source = {"a": torch.zeros(2, 2), "b": torch.zeros(3)}
    params = Params.of(source)
    params["a"][1, 1] = 5.0
    assert params.flat.tolist() == [0, 0, 0, 5, 0, 0, 0]
    assert not source["a"].any()
    single = torch.zeros(3)
    Params.of({"only": single}).flat.fill_(1.0)
    assert not single.any()


def test_with_flat_keeps_the_layout_and_leaves_the_original():
    params = Params.of({"a": torch.zeros(3)})
    other = params.with_flat(torch.ones(3))
    assert other.layout is params.layout and other["a"].tolist() == [1, 1, 1]
    assert not params.flat.any()


@pytest.mark.parametrize(
    ("names", "shapes"), [(("b", "a"), ((1,), (1,))), (("a", "a"), ((1,), (1,))), (("a",), ((1,), (1,)))]
)
def test_bad_layouts_are_refused(names, shapes):
    with pytest.raises(ValueError, match=r"names must be sorted|1 names but 2 shapes"):
        Layout(names, shapes)


@pytest.mark.parametrize(
    "flat", [torch.zeros(4), torch.zeros(1, 1, 3), torch.zeros(3).double(), torch.zeros(3, 1)]
)
def test_bad_buffers_are_refused(flat):
    with pytest.raises(ValueError, match="buffer"):
        Params(Layout.of({"a": (3,)}), flat)


def test_a_digest_depends_on_values_names_and_shapes():
    base = {"a": torch.tensor([1.0, 2.0])}
    digests = {
        Params.of(tensors).digest()
        for tensors in (
            base,
            {"b": base["a"]},
            {"a": base["a"].view(1, 2)},
            {"a": torch.tensor([1.0, 2.0000002])},
            {"a": base["a"][:1], "b": base["a"][1:]},
        )
    }
    assert len(digests) == 5
    assert Params.of(base).digest() == Params.of({"a": base["a"].clone()}).digest()


# Parts ------------------------------------------------------------------------------------------------


@st.composite
def columns(draw):
    """Draw masks of matrices one after the other, of each of which the first columns are taken."""
    rows = draw(
        st.lists(st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(0, 4)), min_size=1, max_size=4)
    )
    return torch.cat([(torch.arange(width).repeat(count) < taken) for count, width, taken in rows])


MASKS = st.lists(st.booleans(), min_size=1, max_size=40).map(torch.tensor) | columns()


def places_of(part):
    """Return the places that the entries of a part list, by their definition."""
    places = []
    for start, stop, *more in part.stretches:
        step, count = more or (0, 1)
        places += [place + step * k for k in range(count) for place in range(start, stop)]
    return places


def two_masks(size):
    one = st.lists(st.booleans(), min_size=size, max_size=size).map(torch.tensor)
    return st.tuples(one, one)


@given(MASKS)
def test_a_part_is_that_of_its_mask(mask):
    part = Part.of(mask)
    assert torch.equal(part.mask, mask)
    assert (part.size, part.count, part.is_whole) == (len(mask), int(mask.sum()), bool(mask.all()))
    assert Part.of(mask.float() * 7) == Part.of(part.mask) == Part(part.size, part.stretches) == part
    assert places_of(part) == [place for place, inside in enumerate(mask.tolist()) if inside]


def entries(size):
    """Draw one entry of a part of `size` values, most of them impossible."""
    number = st.integers(-1, size + 1)
    return st.tuples(number, number) | st.tuples(number, number, st.integers(0, size), st.integers(0, size))


@given(st.integers(1, 14).flatmap(lambda size: st.tuples(st.just(size), st.lists(entries(size), max_size=4))))
def test_entries_are_those_of_their_mask_or_refused(drawn):
    """No two parts with the same values differ, so equal parts have equal bytes."""
    size, listed = drawn
    try:
        part = Part(size, tuple(listed))
    except ValueError:
        return
    mask = torch.zeros(size, dtype=torch.bool)
    mask[places_of(part)] = True
    assert part == Part.of(mask)
    assert part.count == len(places_of(part)) == int(mask.sum())


@pytest.mark.parametrize("rows", [1, 2, 3, 50_000])
@pytest.mark.parametrize("taken", [1, 3])
def test_the_first_columns_of_a_matrix_are_few_entries(rows, taken):
    """A matrix of 4 columns with 5 values before and after it, of which the last 5 are taken, too."""
    mask = torch.zeros(rows, 4, dtype=torch.bool)
    mask[:, :taken] = True
    part = Part.of(
        torch.cat([torch.zeros(5, dtype=torch.bool), mask.flatten(), torch.ones(5, dtype=torch.bool)])
    )
    one = (
        ((5, 5 + taken, 4, rows),) if rows > 2 else tuple((5 + 4 * k, 5 + 4 * k + taken) for k in range(rows))
    )
    assert part.stretches == (*one, (5 + 4 * rows, 10 + 4 * rows))
    assert part.count == rows * taken + 5
    flat = torch.arange(float(part.size))
    assert torch.equal(part.take(flat)[:-5].view(rows, taken), flat[5:-5].view(rows, 4)[:, :taken])
    assert part.complement.complement == part


def test_entries_come_from_the_first_stretch_on():
    """A stretch that could belong to two entries belongs to the first that has three; two stretches are no entry."""
    assert Part.of(torch.tensor([1, 0, 0, 1, 0, 0, 1, 0, 1, 0, 1])).stretches == (
        (0, 1, 3, 3),
        (8, 9),
        (10, 11),
    )
    assert Part.of(torch.tensor([1, 0, 1, 0, 0, 1])).stretches == ((0, 1), (2, 3), (5, 6))
    assert Part.of(torch.tensor([1, 0, 1, 0, 0, 1, 0, 0, 1])).stretches == ((0, 1), (2, 3, 3, 3))


@given(MASKS)
def test_taken_values_are_put_back(mask):
    part, size = Part.of(mask), len(mask)
    flat, under = torch.arange(1.0, size + 1), -torch.arange(1.0, size + 1)
    assert torch.equal(part.take(flat), flat[mask])
    result = part.put(part.take(flat), under)
    assert torch.equal(result, torch.where(mask, flat, under))
    assert torch.equal(part.take(result), part.take(flat))
    assert torch.equal(part.complement.take(result), part.complement.take(under))
    assert torch.equal(part.put(part.take(under), result), under)
    assert torch.equal(under, -torch.arange(1.0, size + 1))  # as it was


@given(MASKS)
def test_values_outside_a_part_are_zero(mask):
    part, flat = Part.of(mask), torch.arange(1.0, len(mask) + 1)
    result = part.zero_outside(flat)
    assert torch.equal(result, torch.where(mask, flat, 0.0))
    assert part.is_zero_outside(result)
    assert part.is_zero_outside(flat) == part.is_whole
    assert torch.equal(part.zero_outside(flat) + part.complement.zero_outside(flat), flat)
    for strange in (torch.nan, torch.inf):
        assert part.is_zero_outside(torch.where(mask, 0.0, strange)) == part.is_whole
        assert torch.equal(part.zero_outside(torch.where(mask, 1.0, strange)), mask.float())


@given(st.integers(1, 30).flatmap(two_masks))
def test_parts_are_sets_of_places(masks):
    left, right = map(Part.of, masks)
    assert torch.equal((left & right).mask, masks[0] & masks[1])
    assert torch.equal((left | right).mask, masks[0] | masks[1])
    assert left.complement.complement == left
    assert (left & right).complement == left.complement | right.complement
    assert left | left.complement == Part.whole(left.size)
    assert (left & left.complement).count == 0
    assert ((left & right) == left) == bool((masks[0] <= masks[1]).all())


def test_a_whole_part_gives_the_buffer_itself():
    part, flat = Part.whole(3), torch.arange(3.0)
    assert part.is_whole and part.stretches == ((0, 3),)
    assert part.take(flat) is flat and part.zero_outside(flat) is flat
    assert Params.zeros(Layout.of({"a": (3,)})).whole == part
    assert Part.whole(0).stretches == () and Part.whole(0).is_whole


@pytest.mark.parametrize(
    "stretches",
    [
        ((-1, 2),),
        ((2, 2),),
        ((3, 2),),
        ((0, 7),),
        ((7, 8),),
        ((0, 2), (1, 3)),
        ((0, 2), (2, 3)),  # they touch, and would be one
        ((3, 4), (0, 1)),
        ((0, 1), (0, 1)),
        ((0, 1, 2, 1),),  # one is (0, 1), and two are two entries
        ((0, 1, 2, 2),),
        ((0, 1, 2, 0),),
        ((0, 2, 2, 3),),
        ((0, 1, 0, 3),),
        ((0, 1, 3, 3),),
        ((0, 1, 2, 2**62),),
        ((0, 1, 2, 3), (5, 6)),
    ],
)
def test_bad_stretches_are_refused(stretches):
    with pytest.raises(ValueError, match="a part of 6 values has no stretch"):
        Part(6, stretches)


@pytest.mark.parametrize(
    "stretches",
    [
        ((0, 1), (2, 3), (4, 5)),
        ((0, 1), (2, 3, 2, 3)),
        ((0, 1, 2, 3), (6, 7)),
        ((0, 1, 2, 3), (6, 7, 2, 3)),
        ((0, 1), (2, 3), (4, 5, 3, 3)),
    ],
)
def test_entries_that_could_be_longer_are_refused(stretches):
    with pytest.raises(ValueError, match="belong in one entry"):
        Part(20, stretches)


@pytest.mark.parametrize("part", [Part(3, ((0, 1), (2, 3))), Part.whole(3)])
def test_buffers_and_parts_of_another_size_are_refused(part):
    count = part.count
    for attempt in (
        lambda: part.take(torch.zeros(4)),
        lambda: part.take(torch.zeros(1, 3)),
        lambda: part.put(torch.zeros(1), torch.zeros(3)),  # would be spread over all
        lambda: part.put(torch.zeros(count + 1), torch.zeros(3)),
        lambda: part.put(torch.zeros(count), torch.zeros(4)),
        lambda: part & Part.whole(1),
        lambda: part | Part.whole(4),
    ):
        with pytest.raises(ValueError, match="a part of 3 values"):
            attempt()
