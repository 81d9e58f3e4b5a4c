"""What every data set has in common: checks and the limit."""

import json
import re
from collections import Counter

import pytest

from fedloom.data import BUNDLED, load_data
from fedloom.system.errors import UserError


def write(root, good, bad=0, answers=("yes", "no")):
    record = {"question": "Which?", "text": "evidence"}
    lines = [json.dumps(record | {"answer": answers[n % len(answers)]}) for n in range(good)] + ["{}"] * bad
    (root / "data.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("name", BUNDLED)
def test_shipped_data_sets_keep_the_contract(settings, name):
    data = load_data(settings(name=name, limit=90), 0)
    assert data.name == name
    assert len(data.train) == 90
    ids = [example.id for example in (*data.train, *data.test)]
    assert len(set(ids)) == len(ids)
    assert not {e.image.key for e in data.train} & {e.image.key for e in data.test}
    for example in (*data.train[:20], *data.test[:20]):
        assert (example.label is None) == (not example.options)
        if example.options:
            assert example.options[example.label] == example.answer


def test_the_limit_reduces_only_training_examples_and_evenly(settings):
    whole, part = (load_data(settings(name="digits", limit=limit), 2) for limit in (None, 200))
    assert part.test == whole.test
    assert set(part.train) < set(whole.train)
    share = 200 / len(whole.train)
    total, kept = (Counter(example.answer for example in data.train) for data in (whole, part))
    assert all(abs(kept[answer] - share * size) <= 1 for answer, size in total.items())
    assert part.train != load_data(settings(name="digits", limit=200), 3).train


def test_a_limit_above_the_number_changes_nothing(settings, tmp_path):
    write(tmp_path, 20)
    assert load_data(settings(root=tmp_path, limit=1000), 0) == load_data(settings(root=tmp_path), 0)


def test_an_unknown_name_is_answered_with_the_known_ones(settings):
    with pytest.raises(
        UserError, match=r"data\.name: .*'emojis'.*emoji, emoji-styles, digits, shapes, fashion-mnist, folder"
    ):
        load_data(settings().model_copy(update={"name": "emojis"}), 0)


def test_too_many_bad_records_stop_the_run_and_name_the_first_five(settings, tmp_path):
    write(tmp_path, good=92, bad=8)
    message = (
        "data.max_rejected: 8 of 100 records (8.0%) are invalid, more than the 5.0% allowed:"
        + "".join(f"\n  data.jsonl, line {n}: question is missing" for n in range(93, 98))
        + "\n  and 3 more\n"
    )
    with pytest.raises(UserError, match="^" + re.escape(message)):
        load_data(settings(root=tmp_path, max_rejected=0.05), 0)


@pytest.mark.parametrize("bad", [0, 1, 7, 29, 57])
def test_the_cap_itself_is_allowed(settings, tmp_path, bad):
    write(tmp_path, 100 - bad, bad)
    data = load_data(settings(root=tmp_path, max_rejected=bad / 100), 0)
    assert (len(data.train) + len(data.test), len(data.rejected)) == (100 - bad, bad)


@pytest.mark.parametrize(("good", "part"), [(0, "training"), (1, "test")])
def test_nothing_to_train_or_test_on_stops_the_run(settings, tmp_path, good, part):
    write(tmp_path, good)
    with pytest.raises(UserError, match=f"no {part} example is left of {re.escape(str(tmp_path))}"):
        load_data(settings(root=tmp_path), 0)


def test_if_all_records_are_invalid_the_message_names_invalid_records(settings, tmp_path):
    write(tmp_path, good=0, bad=3)
    with pytest.raises(UserError, match=r"data\.max_rejected: 3 of 3 records \(100\.0%\)"):
        load_data(settings(root=tmp_path), 0)
