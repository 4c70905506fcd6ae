"""The reader of text files: marks, encodings, ends of lines, packed files, and errors that name the byte."""

import codecs
import gzip

import pytest

from fgclip_jax.storage import text
from fgclip_jax.storage.errors import RecordError

TEXT = "image,short\ncafé.jpg,a “dog”\n🐕.jpg,naïve\u2028text\x0c\x1c\x85end\n"


def _write(folder, data: bytes, name: str = "a.txt") -> str:
  path = folder / name
  path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
  return str(path)


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
@pytest.mark.parametrize(
  "encode",
  [
    str.encode,
    lambda value: value.encode("utf-8-sig"),
    lambda value: value.encode("utf-16"),
    lambda value: codecs.BOM_UTF16_BE + value.encode("utf-16-be"),
  ],
  ids=["utf8", "utf8_mark", "utf16_le", "utf16_be"],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_marks_encodings_and_ends_do_not_change_the_lines(tmp_path, name, encode, end):
  path = _write(tmp_path, encode(TEXT.replace("\n", end)), name)
  assert list(text.lines(path)) == TEXT.split("\n")[:-1]
  assert text.read(path) == TEXT.replace("\n", end)


def test_lines_are_those_of_the_text_wherever_its_chunks_end(tmp_path, monkeypatch):
  data = "a\r\nb\rc\n\r\n\r\rd\n\ne\r"
  path = _write(tmp_path, data.encode())
  for chunk in range(1, 18):
    monkeypatch.setattr(text, "CHUNK", chunk)
    assert list(text.lines(path)) == ["a", "b", "c", "", "", "", "d", "", "e"]
    with text.open(path) as file:
      assert b"".join(text.split(file, carriage=False)) == data.encode()
      assert file.seek(0) == 0
      assert [line.count(b"\n") for line in text.split(file, carriage=False)] == [1, 1, 1, 1, 1, 0]


def test_positions_of_utf16_are_those_of_its_text_as_utf8(tmp_path, monkeypatch):
  monkeypatch.setattr(text, "CHUNK", 7)
  path = _write(tmp_path, TEXT.encode("utf-16"))
  for place in (30, 12, 0, 17, 12):
    with text.open(path) as file:
      file.seek(place)
      assert file.tell() == place
      assert file.read(9) == TEXT.encode()[place : place + 9]
      file.seek(3)
      assert file.read(9) == TEXT.encode()[3:12]


def test_an_empty_file_has_no_line(tmp_path):
  for number, data in enumerate((b"", codecs.BOM_UTF8, codecs.BOM_UTF16_LE)):
    assert list(text.lines(_write(tmp_path, data, f"{number}.txt"))) == []


@pytest.mark.parametrize(
  ("data", "kind", "message"),
  [
    ("short\ncafé au lait\n".encode("latin-1"), "text_not_utf8", r"byte 9 \(0xe9, in .*café au.*Windows-1252.*iconv"),
    ("“quoted”\n".encode("cp1252"), "text_not_utf8", r"byte 0 \(0x93"),
    ("a\nb\n".encode("utf-16-le"), "text_not_utf8", "looks like UTF-16 text without a byte-order mark"),
    ("a\nb\n".encode("utf-16-be"), "text_not_utf8", "looks like UTF-16"),
    ("a\nb\n".encode("utf-32"), "text_not_utf8", "is UTF-32"),
    (codecs.BOM_UTF16_LE + b"a\0b", "text_not_utf8", "is no whole UTF-16 text"),
    (codecs.BOM_UTF16_LE + b"\x00\xd8a\x00", "text_not_utf8", "is no whole UTF-16 text"),
  ],
)
def test_another_encoding_is_named(tmp_path, data, kind, message):
  path = _write(tmp_path, data)
  for function in (text.read, lambda path: list(text.lines(path))):
    with pytest.raises(RecordError, match=message) as caught:
      function(path)
    assert (caught.value.kind, caught.value.field) == (kind, path)
    assert "\n" not in str(caught.value)


def test_a_damaged_gzip_file_is_an_error_that_names_it(tmp_path):
  data = gzip.compress(TEXT.encode() * 100)
  cut, other = tmp_path / "cut.txt.gz", tmp_path / "other.txt.gz"
  cut.write_bytes(data[:-20])
  other.write_bytes(b"no gzip file")
  for path, kind in ((cut, "text_truncated"), (other, "text_not_gzip")):
    with pytest.raises(RecordError) as caught:
      list(text.lines(str(path)))
    assert (caught.value.kind, caught.value.field) == (kind, str(path))


def test_memory_is_bounded(tmp_path, monkeypatch):
  monkeypatch.setattr(text, "MAX_TEXT", 1000)
  monkeypatch.setattr(text, "MAX_LINE", 1000)
  monkeypatch.setattr(text, "CHUNK", 100)
  path = _write(tmp_path, b"a" * 5000, "bomb.txt.gz")
  with pytest.raises(RecordError, match="longer than 1,000 bytes"):
    text.read(path)
  with pytest.raises(RecordError, match="a line of more than 1,000 bytes"):
    list(text.lines(path))


@pytest.mark.parametrize(
  "data", [codecs.BOM_UTF8 * 2 + b"a\nb", "\ufeff\ufeffa\nb".encode("utf-16"), codecs.BOM_UTF8 * 2]
)
@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_marks_that_conversion_doubled_are_dropped(tmp_path, data, name):
  """As `iconv -t UTF-16` leaves them behind its own, and joined files of Windows."""
  expected = ["a", "b"] if len(data) > 6 else []
  assert list(text.lines(_write(tmp_path, data, name))) == expected
  assert text.read(_write(tmp_path, data, name)) == text.decode_marked(data) == "\n".join(expected)
