"""Text on a terminal: text from outside is shown and controls nothing."""

from __future__ import annotations

import json
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from fedloom.config.yaml_document import Mistake, Place
from fedloom.system.terminal import WIDEST_LINE, one_line, printable, printable_json, safe_message
from fedloom.types import Rejected

TEXTS = st.text(st.characters(), max_size=30)


@given(TEXTS)
def test_nothing_shown_controls_a_terminal(text: str) -> None:
    for shown in (printable(text), one_line(text), safe_message(text)):
        for character in shown:
            assert unicodedata.category(character) not in ("Cs", "Zl", "Zp")
            assert unicodedata.category(character) != "Cc" or character in "\n\t"
            assert unicodedata.bidirectional(character) not in (
                *("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"),
            )
        shown.encode()
        assert printable(shown) == shown
    assert "\n" not in one_line(text)


@given(st.text(st.characters(categories=("L", "N", "P", "S")), max_size=40))
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert one_line(text) == printable(text) == text


def test_names_of_many_scripts_stay_as_they_are() -> None:
    for name in ("Ärzte-Befund.png", "写真　1.png", "می‌خواهم.txt", "👩‍⚕️.png", "Foto 3.45\u202fPM.png"):
        assert one_line(name) == name


@given(st.recursive(TEXTS, lambda inner: st.dictionaries(TEXTS, inner, max_size=3), max_leaves=5))
def test_printed_json_is_equal(value: object) -> None:
    text = printable_json(json.dumps(value, indent=2, ensure_ascii=False))
    assert json.loads(text) == value
    assert printable(text) == text


@given(TEXTS, TEXTS)
def test_a_mistake_and_an_invalid_record_take_one_line(name: str, reason: str) -> None:
    for line in (str(Mistake(Place(name, 1, 1), reason)), str(Rejected(name, 3, reason))):
        assert "\n" not in line
        assert printable(line) == line


def test_a_long_line_loses_its_middle() -> None:
    line = one_line("a" * 10**6 + "b")
    assert len(line) <= WIDEST_LINE
    assert line.startswith("aaa") and line.endswith("ab")
