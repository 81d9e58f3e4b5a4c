"""Tables are read back as they were written, and an invalid row costs only itself."""

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedloom.data.record_files import MAX_LINE, Record, read_records
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
    with pytest.raises(UserError, match=r"some\.tsv: the first line names a column twice: 'a'"):
        list(read_records(path))


HEAD = "image,question,answer\n"


@pytest.fixture
def table(tmp_path):
    """Return a function that reads a `.csv` file: the values of its records, and its rejections by line."""

    def read(content):
        path = tmp_path / "t.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        records = list(read_records(path))
        good = [tuple(one.values.values()) for one in records if isinstance(one, Record)]
        return good, {one.line: one.reason for one in records if isinstance(one, Rejected)}

    return read


def rows_of(*rows):
    return "".join(",".join(row) + "\n" for row in rows)


GOOD = [(f"p{number}.png", "Is it red?", "no") for number in range(4)]


@pytest.mark.parametrize(
    ("broken", "column", "reason"),
    [
        ('p.png,Is it red?,"yes\n', "answer", "the quotation mark that opens in line 3 is never closed"),
        ('p.png,"Is it red?,yes\n', "question", "the quotation mark that opens in line 3 is never closed"),
        ('"p.png,Is it red?,yes\n', "image", "the quotation mark that opens in line 3 is never closed"),
        ('p.png,Is it red?,yes,"\n', "column 4", "the quotation mark that opens in line 3 is never closed"),
        ('p.png,Is it red?,"yes""\n', "answer", "the quotation mark that opens in line 3 is never closed"),
        ('p.png,"Is it" red?,yes\n', "question", "text follows the closing quotation mark"),
        ('p.png,"Is the 5" screen red?,yes\n', "question", "text follows the closing quotation mark"),
        ('p.png,"Is it \\"red\\"?",yes\n', "question", "text follows the closing quotation mark"),
        ('p.png,"Is it red?" ,yes\n', "question", "text follows the closing quotation mark"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_wrong_quotation_mark_costs_its_row_only(table, broken, column, reason, end):
    content = HEAD + rows_of(GOOD[0]) + broken + rows_of(*GOOD[1:])
    good, rejected = table(content.replace("\n", end))
    assert good == GOOD
    assert list(rejected) == [3] and rejected[3].startswith(f"{column}: {reason}")


@pytest.mark.parametrize("next_row", ['p4.png,"Is it, red?",no\n', '"p4.png","Is it, red?","no"\n'])
def test_an_open_quotation_mark_does_not_end_in_that_of_a_later_row(table, next_row):
    content = HEAD + 'p3.png,Is it red?,"yes\n' + rows_of(*GOOD) + next_row + 'p5.png,Is it red?,"no\n'
    good, rejected = table(content)
    assert good == [*GOOD, ("p4.png", "Is it, red?", "no")]
    assert list(rejected) == [2, 8]
    assert "opens in line 2 is not closed before the one in line 7" in rejected[2]


@pytest.mark.parametrize(
    "cell",
    ['"One,\ntwo, three, four\nand "five" or six"', '"One\nand "two" or three"', '"a, b, c\n\nx, "y", z"'],
)
def test_lines_of_a_broken_cell_are_not_taken_for_rows(table, cell):
    good, rejected = table(HEAD + f"{cell},Is it red?,yes\n" + rows_of(*GOOD))
    last = 2 + cell.count("\n")
    assert good == GOOD
    assert list(rejected) == [2] and rejected[2].endswith(f"; lines 2 to {last} are skipped")


def test_a_last_row_without_an_end_is_read_and_an_open_one_is_reported(table):
    assert table(HEAD + "p.png,Is it red?,yes")[0] == [("p.png", "Is it red?", "yes")]
    assert table(HEAD + 'p.png,Is it red?,"yes')[1] == {
        2: "answer: the quotation mark that opens in line 2 is never closed"
    }


# A single "\r" is left out: before Python 3.13 the writer does not quote it.
csv_cells = st.lists(st.sampled_from([*'ab ",;\n\té\0', "\r\n"]), max_size=6).map("".join)


@given(st.lists(st.tuples(csv_cells, csv_cells, csv_cells).filter(lambda row: "".join(row).strip()), max_size=5),
       st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]), st.sampled_from(["\n", "\r\n"]), st.sampled_from(",;"),
       st.booleans())  # fmt: skip
def test_rows_that_python_wrote_are_read_back(path, rows, quoting, end, delimiter, mark):
    text = io.StringIO()
    writer = csv.writer(text, quoting=quoting, lineterminator=end, delimiter=delimiter)
    writer.writerows([("a", "b", "c"), *rows])
    file = path.with_suffix(".csv")
    file.write_bytes(b"\xef\xbb\xbf" * mark + text.getvalue().encode())
    records = list(read_records(file))
    assert [tuple(one.values.values()) for one in records] == rows
    number = 2
    for row, record in zip(rows, records, strict=True):
        assert record.number == number, "the line where the row begins"
        number = record.number + 1 + sum(len(re.findall("\r\n|\r|\n", cell)) for cell in row)


@given(st.text(st.sampled_from('a",;\n\r\0'), max_size=40).map(str.encode) | st.binary(max_size=60))
def test_no_bytes_break_the_reader_of_tables(path, content):
    file = path.with_suffix(".csv")
    file.write_bytes(b"a,b\n" + content)
    for record in read_records(file):
        assert isinstance(record, Rejected) or set(record.values) == {"a", "b"}


@pytest.mark.parametrize("width", [131_073, MAX_LINE - 20])
@pytest.mark.parametrize("form", ["{}", '"{}"', '"\n{}"'])
def test_a_cell_may_be_as_long_as_a_line_of_json(table, width, form):
    good, rejected = table(HEAD + f"p.png,{form.format('x' * width)},yes\n" + rows_of(*GOOD))
    assert len(good) == 5 and rejected == {}


@pytest.mark.parametrize(
    ("letter", "form"), [("x", "{}"), ("x", '"{}"'), ("é", "{}"), ("é", '"{}"'), ("x\n", '"{}"')]
)
def test_a_longer_row_costs_itself_only(table, letter, form):
    limit = csv.field_size_limit()
    cell = form.format(letter * (MAX_LINE // len(letter.encode())))
    good, rejected = table(HEAD + f"p.png,{cell},yes\n" + rows_of(*GOOD))
    assert good == GOOD and rejected == {2: "row is longer than 1,000,000 bytes"}
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize(("separator", "what"), [("\t", "tabs"), ("|", r'"\|"')])
def test_another_separator_is_named_once(table, separator, what):
    with pytest.raises(UserError, match=rf't\.csv, line 1: its columns are separated by {what}, not by ","'):
        table((HEAD + rows_of(*GOOD)).replace(",", separator))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json"])
def test_utf_16_is_named_with_and_without_its_mark(tmp_path, encoding, suffix):
    path = tmp_path / f"t{suffix}"
    path.write_bytes((HEAD + rows_of(*GOOD)).encode(encoding))
    with pytest.raises(UserError, match="it is UTF-16 text; save it as UTF-8"):
        list(read_records(path))


def test_columns_without_names_at_the_end_may_be_empty_only(table):
    rows = "p0.png,Is it red?,no,,\np1.png,Is it red?,no\np2.png,Is it red?,no,,x\np3.png,Is it red?,no,\n"
    good, rejected = table("image,question,answer,,\n" + rows)
    assert good == GOOD[:2]
    assert rejected == {4: "it has the value 'x' in a column without a name", 5: "4 columns instead of 3"}


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("a,b,a", "the first line names a column twice: 'a'"),
        ("a,b, a", "the first line names a column twice: 'a'"),
        (",a,,b", "the first line has no names for columns 1 and 3"),
        ('a,"b', r"line 1: the names of the columns cannot be read: the quotation mark that opens in line 1"),
        ('"a"b,c', r"line 1: the names of the columns cannot be read: text follows"),
    ],
)
def test_names_of_columns_that_cannot_be_used_are_refused(table, head, message):
    with pytest.raises(UserError, match=message):
        table(head + "\n1,2,3\n")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (b"p.png,Caf\xe9?,yes\n", "not UTF-8 text (byte 10); save the file as UTF-8"),
        ("é.png,Caf".encode() + b"\xe9?,yes\n", "not UTF-8 text (byte 11); save the file as UTF-8"),
        (b'p.png,"One\nCaf\xe9?",yes\n', "not UTF-8 text (byte 4 of line 402); save the file as UTF-8"),
    ],
)
def test_a_byte_that_is_not_utf_8_is_named_by_its_line_and_costs_its_row(table, row, reason):
    content = (
        (HEAD + rows_of(*GOOD * 99)).encode() + rows_of(*GOOD[:3]).encode() + row + rows_of(*GOOD).encode()
    )
    good, rejected = table(content)
    assert len(good) == 99 * 4 + 7
    assert rejected == {401: reason}
