"""Reading annotation files record by record, from any record on, whole or broken."""

import gzip
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.storage import streams
from fgclip_jax.storage.errors import RecordError
from tests.helpers import standin

_leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
_values = st.recursive(_leaves, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


def _write(tmp_path, name, data):
  path = tmp_path / name
  path.write_bytes(data if isinstance(data, bytes) else data.encode())
  return str(path)


def _read(path, offset=0):
  """All values, and the error at which the file breaks, or None."""
  values = []
  try:
    for _, raw in streams.scan(path, offset):
      values.append(streams.load(raw))
  except RecordError as error:
    return values, error
  return values, None


@given(values=st.lists(_values), ascii=st.booleans(), indent=st.sampled_from([None, 1]), chunk=st.integers(1, 40))
def test_a_list_is_read_from_any_record_on_whatever_the_chunk(tmp_path_factory, values, ascii, indent, chunk):
  text = json.dumps(values, ensure_ascii=ascii, indent=indent)
  path = _write(tmp_path_factory.mktemp("list"), "a.json", text.encode("utf-8", "surrogatepass"))
  if any("\ud800" <= char <= "\udfff" for char in text):
    return
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(streams, "CHUNK", chunk)
    offsets = [offset for offset, _ in streams.scan(path)]
    assert len(offsets) == len(values)
    for index, offset in [(0, 0), *enumerate(offsets)]:
      assert _read(path, offset) == (values[index:], None)


@given(cut=st.integers(0, 200), chunk=st.sampled_from([1, 7, 1 << 20]))
def test_records_before_the_break_of_a_truncated_list_are_kept(tmp_path_factory, cut, chunk):
  records = [{"caption": 'a "café"\n' + "x" * 20, "box": [0.25, True, None, -1e-3]} for _ in range(3)]
  data = json.dumps(records, ensure_ascii=False).encode()
  cut = min(cut, len(data) - 1)
  path = _write(tmp_path_factory.mktemp("cut"), "a.json", data[:cut])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(streams, "CHUNK", chunk)
    values, error = _read(path)
  assert values == records[: len(values)]
  assert len(values) == data[:cut].count(b"}")
  assert error.kind == "annotation_truncated"
  assert error.field.startswith("byte ")


@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize(
  ("data", "kept", "kind", "message"),
  [
    ('[{"a": 1}, {"a": oops}, {"a": "more text"}]', 1, "annotation_not_json", "byte 17: Expecting value"),
    ('[{"a": 1} {"a": 2}]', 1, "annotation_not_json", "needs ',' or ']'"),
    ('[{"a": 1}] and more', 1, "annotation_not_json", "more text after the end"),
    ("<html>not found</html>", 0, "annotation_not_json", "neither a JSON list nor JSON lines"),
    ('{\n"f_path": "a.jpg"\n}', 0, "annotation_not_json", "neither a JSON list nor JSON lines"),
    ("[" * 200_000, 0, "annotation_not_json", "nested too deeply"),
    ("[]".encode("utf-16-le"), 0, "annotation_not_utf8", "UTF-16"),
    ("", 0, "annotation_truncated", "empty"),
    ("  \n", 0, "annotation_truncated", "empty"),
  ],
)
def test_what_is_not_json_is_an_error_that_says_where(tmp_path, monkeypatch, chunk, data, kept, kind, message):
  if len(data) > 1000 and chunk == 1:
    chunk = 1000
  monkeypatch.setattr(streams, "CHUNK", chunk)
  values, error = _read(_write(tmp_path, "a.json", data))
  assert len(values) == kept
  assert error.kind == kind
  assert message in str(error)


def test_a_record_larger_than_the_limit_ends_the_file(tmp_path, monkeypatch):
  monkeypatch.setattr(streams, "CHUNK", 16)
  monkeypatch.setattr(streams, "MAX_RECORD", 100)
  values, error = _read(_write(tmp_path, "a.json", json.dumps(["a", "b" * 5000, "c"])))
  assert (values, error.kind) == (["a"], "annotation_not_json")


def test_nan_a_byte_order_mark_and_control_characters_are_read(tmp_path):
  values, error = _read(_write(tmp_path, "a.json", b'\xef\xbb\xbf [{"a": [NaN, -Infinity]}, "tab\there"]'))
  assert error is None
  assert math.isnan(values[0]["a"][0])
  assert values[0]["a"][1] == -math.inf
  assert values[1] == "tab\there"


def test_json_lines_go_on_after_a_bad_line(tmp_path):
  lines = [b'\xef\xbb\xbf{"a": 1}', b"", b'{"a": ', b'{"a": "caf\xe9"}', b'{"a": 1' + b"0" * 5000 + b"}", b'{"a": 2}']
  path = _write(tmp_path, "a.jsonl", b"\r\n".join(lines))
  kinds = []
  for _, raw in streams.scan(path):
    try:
      kinds.append(streams.load(raw)["a"])
    except RecordError as error:
      kinds.append(error.kind)
  assert kinds == [1, "record_not_json", "record_not_utf8", "record_not_json", 2]
  offset = [offset for offset, _ in streams.scan(path)][4]
  assert _read(path, offset) == ([{"a": 2}], None)


def test_lines_in_a_json_file_and_a_list_in_a_jsonl_file_are_read(tmp_path):
  assert _read(_write(tmp_path, "a.json", '{"a": 1}\n{"a": 2}\n')) == ([{"a": 1}, {"a": 2}], None)
  assert _read(_write(tmp_path, "a.jsonl", '[{"a": 1}]')) == ([{"a": 1}], None)
  assert _read(_write(tmp_path, "b.jsonl", "")) == ([], None)


def test_unclosed_quotation_marks_in_long_files_are_counted(tmp_path):
  path = _write(tmp_path, "a.csv", 'image,short\na.jpg,"' + "x,y\n" * 200)
  assert [error.kind for error in map(_error, streams.scan(path)) if error] == ["quote_unclosed"]


def _error(scanned):
  try:
    streams.load(scanned[1])
  except RecordError as error:
    return error
  return None


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.tsv", "a.jsonl.gz", "a.csv.gz"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_encodings_and_ends_of_lines_do_not_change_the_records(tmp_path, name, encoding, end):
  values = [
    {"image": "é.jpg", "short": "a 🐕\u2028\x85 b"},
    {"image": "b.jpg", "short": "it's"},
    {"image": "c", "short": "d"},
  ]
  tab = "\t" if ".tsv" in name else ","
  if ".json" in name:
    lines = [json.dumps(value, ensure_ascii=False) for value in values]
    lines = [f"[{lines[0]},", f"{lines[1]},", f"{lines[2]}]"] if name == "a.json" else lines
  else:
    lines = [tab.join(("image", "short")), *(tab.join(value.values()) for value in values)]
  data = "".join(line + end for line in lines).encode(encoding)
  path = _write(tmp_path, name, gzip.compress(data) if name.endswith(".gz") else data)
  assert _read(path) == (values, None)
  for index, (offset, _) in enumerate(streams.scan(path)):
    assert _read(path, offset) == (values[index:], None)


def test_latin_1_is_named(tmp_path):
  for name, data in (("a.jsonl", '{"short": "café"}\n'), ("a.json", '[{"short": "café"}]')):
    error = _error(next(streams.scan(_write(tmp_path, name, data.encode("latin-1")))))
    assert error.kind == "record_not_utf8"
    assert "Windows-1252" in str(error)


def _walk(path):
  """All names and values, and the error at which the file breaks, or None."""
  values = []
  try:
    for name, raw in streams.walk(path):
      values.append((name, streams.load(raw)))
  except RecordError as error:
    return values, error
  return values, None


@given(value=st.dictionaries(st.text(), _values) | st.lists(_values), chunk=st.integers(1, 40))
def test_an_object_is_walked_list_by_list_whatever_the_chunk(tmp_path_factory, value, chunk):
  path = _write(tmp_path_factory.mktemp("walk"), "a.json", json.dumps(value))
  members = value.items() if isinstance(value, dict) else [("", value)]
  expected = [(name, entry) for name, member in members for entry in (member if isinstance(member, list) else [member])]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(streams, "CHUNK", chunk)
    assert _walk(path) == (expected, None)


@given(cut=st.integers(0, 200), chunk=st.sampled_from([1, 7, 1 << 20]))
def test_what_lies_before_the_break_of_an_object_is_walked(tmp_path_factory, cut, chunk):
  value = {"info": {"a": 1}, "images": [{"id": 1}, {"id": 2}], "annotations": [{"id": 3, "box": [0.5, 1]}], "url": "x"}
  expected = [
    ("info", {"a": 1}),
    ("images", {"id": 1}),
    ("images", {"id": 2}),
    ("annotations", {"id": 3, "box": [0.5, 1]}),
  ]
  data = json.dumps(value).encode()
  cut = min(cut, len(data) - 1)
  path = _write(tmp_path_factory.mktemp("cut"), "a.json", data[:cut])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(streams, "CHUNK", chunk)
    values, error = _walk(path)
  assert values[: len(expected)] == expected[: data[:cut].count(b"}")]
  assert error.kind == "annotation_truncated"


@pytest.mark.parametrize(
  ("data", "kind"),
  [
    ("{1: 2}", "annotation_not_json"),
    ('{"a" 2}', "annotation_not_json"),
    ('{"a": 2 "b": 3}', "annotation_not_json"),
    ('{"a": 2} more', "annotation_not_json"),
    ('{"a": [1 2]}', "annotation_not_json"),
    ("a,b", "annotation_not_json"),
    (" ", "annotation_truncated"),
  ],
)
def test_what_is_no_object_cannot_be_walked(tmp_path, data, kind):
  assert _walk(_write(tmp_path, "a.json", data))[1].kind == kind


def test_compressed_files_are_read_and_broken_ones_named(tmp_path):
  data = gzip.compress(b'{"a": 1}\n{"a": 2}\n')
  path = _write(tmp_path, "a.jsonl.gz", data)
  assert _read(path) == ([{"a": 1}, {"a": 2}], None)
  offset = [offset for offset, _ in streams.scan(path)][1]
  assert _read(path, offset) == ([{"a": 2}], None)
  assert _read(_write(tmp_path, "b.jsonl.gz", data[:-9]))[1].kind == "annotation_truncated"
  assert _read(_write(tmp_path, "c.jsonl.gz", b"no gzip"))[1].kind == "annotation_not_gzip"
  assert _walk(_write(tmp_path, "d.json.gz", gzip.compress(b'{"a": [1]}'))) == ([("a", 1)], None)


def test_files_in_storage_are_read_from_any_record_on(tmp_path):
  path = standin.remote(_write(tmp_path, "a.json", '[{"a": 1}, {"a": 2}]'))
  assert _read(path) == ([{"a": 1}, {"a": 2}], None)
  offset = [offset for offset, _ in streams.scan(path)][1]
  assert _read(path, offset) == ([{"a": 2}], None)


def test_a_packed_file_may_begin_with_much_white_space(tmp_path):
  path, space = tmp_path / "a.json.gz", b" " * (3 * streams.CHUNK + 5)
  path.write_bytes(gzip.compress(space + b'[{"a": 1}, {"a": 2}]'))
  assert [streams.load(raw) for _, raw in streams.scan(str(path))] == [{"a": 1}, {"a": 2}]
  assert [place for place, _ in streams.scan(str(path))] == [len(space) + 1, len(space) + 11]


@pytest.mark.parametrize("blank", [b"\n", b" \n", b"\r\n", b" "])
def test_long_runs_of_blank_lines_are_passed_over_at_once(tmp_path, monkeypatch, blank):
  monkeypatch.setattr("fgclip_jax.storage.text.CHUNK", 1000)
  data = b'{"a": 1}\n' + blank * 5001 + b'\n{"a": 2}\n' + blank * 3000
  path = _write(tmp_path, "a.jsonl.gz", gzip.compress(data))
  found = list(streams.scan(path))
  assert [place for place, _ in found] == [0, data.index(b'{"a": 2}')]
  assert [streams.load(raw) for _, raw in found] == [{"a": 1}, {"a": 2}]
  assert [place for place, _ in streams.scan(path, found[1][0])] == [found[1][0]]
