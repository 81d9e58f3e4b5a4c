"""Tab-separated files are read back as they were written, and an invalid row costs only itself."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.data.record_files import Record, read_records
from fedloom.system.errors import UserError
from fedloom.types import Rejected

cells = st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n"), max_size=12)
# A row of blanks alone is a blank line and no record.
rows = st.lists(st.tuples(cells, cells, cells).filter(lambda row: "".join(row).strip()), max_size=6)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("tsv") / "some.tsv"


@given(rows, st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_rows_are_read_back_as_they_were_written(path, rows, end, mark):
    lines = ["\t".join(row) for row in [("a", "b", "c"), *rows]]
    path.write_bytes(b"\xef\xbb\xbf" * mark + "".join(line + end for line in lines).encode())
    records = list(read_records(path))
    assert [tuple(raw.values.values()) for raw in records] == rows
    assert [raw.number for raw in records] == list(range(2, len(rows) + 2))


@given(st.binary(max_size=60))
def test_no_bytes_break_the_reader(path, content):
    path.write_bytes(b"a\tb\n" + content)
    for record in read_records(path):
        assert isinstance(record, Rejected) or set(record.values) == {"a", "b"}


def test_a_quotation_mark_means_itself(path):
    path.write_text('id\ttext\n1\t"he said\n2\tdone"\n3\t"a ""b"""\n')
    assert [raw.values["text"] for raw in read_records(path)] == ['"he said', 'done"', '"a ""b"""']


def test_a_row_of_another_width_is_reported(path):
    path.write_text("a\tb\n1\n1\t2\t3\n1\t2\n")
    narrow, wide, good = read_records(path, "there/some.tsv")
    assert str(narrow) == "there/some.tsv, line 2: 1 columns instead of 2"
    assert wide.reason == "3 columns instead of 2"
    assert good == Record("there/some.tsv", "line", 4, {"a": "1", "b": "2"})


def test_columns_of_one_name_are_refused(path):
    path.write_text("a\tb\ta\n")
    with pytest.raises(UserError, match=r"some\.tsv: the first line names a column twice"):
        list(read_records(path))
