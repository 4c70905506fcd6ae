"""Rows of CSV and TSV: quotation marks swallow no rows, nothing is lost without a count, reading starts at any row."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.storage import csv_rows, streams
from fgclip_jax.storage.errors import RecordError


def _write(folder, data: str, name: str = "a.csv") -> str:
  path = folder / name
  path.write_bytes(data.encode("utf-8", "surrogateescape"))
  return str(path)


def _read(path: str, offset: int = 0) -> list:
  """Returns the cells of each row behind the header, or the kind and field of its fault; notes follow in a list."""
  found = []
  for _, raw in streams.scan(path, offset):
    notes = []
    try:
      value = streams.load(raw, lambda scope, error, notes=notes: notes.append(error.kind))
      found.append([*value.values(), *([notes] if notes else [])])
    except RecordError as error:
      found.append((error.kind, error.field))
  for index, (place, _) in enumerate(streams.scan(path)):
    if not offset and index in (0, 1, len(found) - 1):
      assert _read(path, place) == found[index:]
  return found


HEAD = "image,short\n"
LAST = ["d.jpg", "last one"]


@pytest.mark.parametrize(
  ("rows", "expected"),
  [
    # a caption that begins with a quotation mark
    ('a.jpg,"says hi\nb.jpg,the pipe\n', [("quote_unclosed", "line 2"), ["b.jpg", "the pipe"]]),
    # another such caption closes the first one's cell, and text follows
    (
      'a.jpg,"hi\nb.jpg,one\nc.jpg,"ho\n',
      [("quote_misplaced", "line 2"), ["b.jpg", "one"], ("quote_unclosed", "line 4")],
    ),
    # or a mark at the end of a caption closes it, and what lies between looks like rows
    ('a.jpg,"hi\nb.jpg,she said "ho"\n', [("quote_misplaced", "line 2"), ["b.jpg", 'she said "ho"']]),
    ('a.jpg,"hi\nb.jpg,12"\n', [("quote_unclosed", "line 2"), ["b.jpg", '12"']]),
    ('"hi,a.jpg\nthe 5",b.jpg\n', [("quote_unclosed", "line 2"), ['the 5"', "b.jpg"]]),
    # text behind a closing mark
    ('a.jpg,"Hi" she said\nb.jpg,ok\n', [("quote_misplaced", "line 2"), ["b.jpg", "ok"]]),
    ('a.jpg,"Hi"" there" you\n', [("quote_misplaced", "line 2")]),
    # marks inside cells are text
    ('a.jpg,a 5" pipe\nb.jpg,6"\n', [["a.jpg", 'a 5" pipe'], ["b.jpg", '6"']]),
    # good quoting
    ('"a.jpg","a ""b"", c"\n', [["a.jpg", 'a "b", c']]),
    ('"a.jpg" , b\n', [["a.jpg", " b"]]),
    ('a.jpg,"one\ntwo"\n', [["a.jpg", "one\ntwo"]]),
    ('a.jpg,"one,\r\n two"\r\n', [["a.jpg", "one,\r\n two", ["quoted_line_break"]]]),
    ('a.jpg,"one ""\n"" two"\n', [["a.jpg", 'one "\n" two']]),
    ('a.jpg,""\n\n\nb.jpg,\n', [["a.jpg", ""], ["b.jpg", ""]]),
    # a wrong number of columns
    ('a.jpg\nb.jpg,c,d\n"x",y,"\n', [("row_wrong_width", "row")] * 2 + [("quote_unclosed", "line 4")]),
  ],
)
def test_quotation_marks_swallow_no_rows(tmp_path, rows, expected):
  assert _read(_write(tmp_path, HEAD + rows + "d.jpg,last one\n")) == [*expected, LAST]
  assert _read(_write(tmp_path, HEAD + rows + "d.jpg,last one", "b.csv")) == [*expected, LAST]


@pytest.mark.parametrize(
  ("rows", "expected"),
  [
    ('a.jpg\t"says hi\n', [["a.jpg", '"says hi', ["tsv_quotation_mark"]]]),
    ('a.jpg\t"Hi" she said\n', [["a.jpg", '"Hi" she said']]),
    ('a.jpg\tthe "pipe\n', [["a.jpg", 'the "pipe']]),
    ('a.jpg\t"quoted"\n', [["a.jpg", '"quoted"', ["tsv_quotation_mark"]]]),
    ('a.jpg\t"a ""b"" c"\n', [["a.jpg", 'a "b" c']]),
    ('a.jpg\t"one\ntwo"\n', [["a.jpg", '"one', ["tsv_quotation_mark"]], ("row_wrong_width", "row")]),
    ('a.jpg\t"\n\n', [["a.jpg", '"', ["tsv_quotation_mark"]]]),
  ],
)
def test_tsv_has_no_quoting(tmp_path, rows, expected):
  assert _read(_write(tmp_path, "image\tshort\n" + rows + "d.jpg\tlast one\n", "a.tsv")) == [*expected, LAST]


def test_tsv_of_a_program_that_quotes_every_cell_is_read(tmp_path):
  path = _write(tmp_path, '"image"\t"short"\n"a.jpg"\t"a ""b"""\n"d.jpg"\t"last one"\n', "a.tsv")
  assert _read(path) == [["a.jpg", 'a "b"'], LAST]


@pytest.mark.parametrize("delimiter", ["\t", ";", "|"])
def test_other_delimiters_are_seen_in_the_first_line(tmp_path, delimiter):
  path = _write(tmp_path, f'image{delimiter}short\na.jpg{delimiter}"b, ""c"""\nd.jpg{delimiter}last one\n')
  assert _read(path) == [["a.jpg", 'b, "c"'], LAST]
  assert streams.columns(path) == ["image", "short"]


def test_excels_own_first_line_names_the_delimiter(tmp_path):
  assert _read(_write(tmp_path, "sep=;\r\nimage;short, too\r\nd.jpg;last one\r\n")) == [LAST]


@pytest.mark.parametrize(
  ("name", "data", "kind", "message"),
  [
    ("a.csv", "", "annotation_truncated", "empty"),
    ("a.csv", "\na,b\n", "annotation_not_csv", "first line must name the columns"),
    ("a.csv", 'image,"short\n', "annotation_not_csv", "line 1: in the names of the columns"),
    ("a.tsv", "image,short\na,b\n", "annotation_not_csv", "end the file's name in .csv"),
  ],
)
def test_a_header_that_names_no_columns_is_an_error(tmp_path, name, data, kind, message):
  with pytest.raises(RecordError, match=message) as caught:
    list(streams.scan(_write(tmp_path, data, name)))
  assert caught.value.kind == kind


def test_the_file_is_read_on_behind_a_cell_that_is_too_long(tmp_path, monkeypatch):
  monkeypatch.setattr(csv_rows, "MAX_ROW", 100)
  path = _write(tmp_path, HEAD + 'a.jpg,"' + "x,y\n" * 100 + "d.jpg,last one\n")
  assert _read(path) == [("quote_unclosed", "line 2"), *[["x", "y"]] * 99, LAST]


_cell = st.text(st.sampled_from("ab\",; \n\r\t'é"), max_size=6)


@given(
  rows=st.lists(st.lists(_cell, min_size=2, max_size=2), max_size=6),
  style=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_what_csv_writes_is_read_or_counted(tmp_path_factory, rows, style):
  stream = io.StringIO()
  csv.writer(stream, quoting=style).writerows([["image", "short"], *rows])
  found = _read(_write(tmp_path_factory.mktemp("csv"), stream.getvalue()))
  assert [row[:2] for row in found] == rows


@given(
  lines=st.lists(st.text(st.sampled_from('ab",\té'), min_size=1, max_size=9), max_size=8),
  name=st.sampled_from(["a.csv", "a.tsv"]),
)
def test_every_line_is_a_row_a_part_of_one_or_counted(tmp_path_factory, lines, name):
  tab = "\t" if name == "a.tsv" else ","
  path = _write(tmp_path_factory.mktemp("any"), f"image{tab}short\n" + "".join(line + "\n" for line in lines), name)
  found = _read(path)
  inside = sum(cell.count("\n") for row in found if isinstance(row, list) for cell in row if isinstance(cell, str))
  counted = len(lines) - len(found) - inside
  wide = sum(row == ("row_wrong_width", "row") for row in found)
  assert counted == 0 or wide  # of a row of another width, the cells are not seen here


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_long_runs_of_empty_lines_are_passed_over_at_once(tmp_path, monkeypatch, end):
  """In a cell between quotation marks they are part of the text."""
  monkeypatch.setattr("fgclip_jax.storage.text.CHUNK", 1000)
  rows = ["image,short", "0.png,a", end * 5000, "1.png,b", f'2.png,"c{end * 5000}d"', "3.png,e", end * 3000]
  path = tmp_path / "a.csv"
  path.write_bytes(end.join(rows).encode())
  found = [streams.load(raw) for _, raw in streams.scan(str(path))]
  assert [row["image"] for row in found] == [f"{number}.png" for number in range(4)]
  assert found[2]["short"] == f"c{end * 5000}d"


def test_a_cell_of_nothing_but_ends_of_lines_is_given_up_in_time(tmp_path, monkeypatch):
  monkeypatch.setattr(csv_rows, "MAX_ROW", 100)
  path = tmp_path / "a.csv"
  path.write_text('image,short\n0.png,"' + "\n" * 300 + "1.png,a\n")
  rows = [raw for _, raw in streams.scan(str(path))]
  assert isinstance(rows[0], RecordError) and rows[0].kind == "quote_unclosed"
  assert streams.load(rows[1]) == {"image": "1.png", "short": "a"}
