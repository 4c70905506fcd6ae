"""Samples of tar files: from any sample on, whole or broken."""

import io
import pickle
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.storage import tars
from fgclip_jax.storage.errors import RecordError
from tests.helpers import standin, trees


def read(path, offset=0):
  """The key and files of every sample, and the error at which the tar file breaks, or None."""
  samples = []
  try:
    for _, sample in tars.scan(str(path), offset):
      samples.append((sample.key, {suffix: sample.read(suffix) for suffix in sample.parts}))
  except RecordError as error:
    return samples, error
  return samples, None


_names = st.text("abc0_é ", min_size=1, max_size=120)  # above 100 characters tar files need further headers
_parts = st.dictionaries(
  st.sampled_from(["jpg", "json", "txt", "seg.png"]), st.binary(max_size=1200), min_size=1
).filter(
  lambda parts: set(parts) != {"seg.png"}  # a name with a dot
)


@given(samples=st.dictionaries(_names, _parts), form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]))
def test_samples_are_read_from_any_one_on(tmp_path_factory, samples, form):
  path = tmp_path_factory.mktemp("tar") / "a.tar"
  with tarfile.open(path, "w", format=form) as archive:
    archive.addfile(tarfile.TarInfo("folder/.hidden"))
    for key, parts in samples.items():
      for suffix, data in parts.items():
        trees.add_member(archive, f"./folder/{key}.{suffix}", data)
  expected = [(f"folder/{key}", parts) for key, parts in samples.items()]
  assert read(path) == (expected, None)
  for index, (offset, sample) in enumerate(tars.scan(standin.remote(path))):
    assert read(path, offset) == (expected[index:], None)
    assert {suffix: pickle.loads(pickle.dumps(sample)).read(suffix) for suffix in sample.parts} == expected[index][1]


_SAMPLES = [trees.make_sample(f"00000000{index}", bytes([index]) * 700 * index) for index in range(4)]


@given(cut=st.integers(1, 16_000))
def test_what_lies_before_a_cut_is_kept(tmp_path_factory, cut):
  path = tmp_path_factory.mktemp("cut") / "a.tar"
  data = trees.write_tar(path, _SAMPLES)
  whole, error = read(path)
  assert ([key for key, _ in whole], error) == ([f"00000000{index}" for index in range(4)], None)
  starts = [offset for offset, _ in tars.scan(str(path))]
  with tarfile.open(path) as archive:
    end = list(archive) and archive.offset
  path.write_bytes(data[:cut])
  samples, error = read(path)
  if cut >= end + tarfile.BLOCKSIZE:
    assert (samples, error) == (whole, None)
    return
  assert samples == whole[: sum(start + tarfile.BLOCKSIZE <= cut for start in starts[1:])]
  assert error.kind == "tar_truncated"


@pytest.mark.parametrize("data", [b"<html>" * 200, b"\x1f\x8b" + bytes(2000), b"x"])
def test_what_is_no_tar_file_is_named(tmp_path, data):
  (tmp_path / "a.tar").write_bytes(data)
  samples, error = read(tmp_path / "a.tar")
  assert (samples, error.kind in ("tar_unreadable", "tar_truncated")) == ([], True)


def test_a_damaged_header_ends_the_file_with_an_error(tmp_path):
  path = tmp_path / "a.tar"
  data = bytearray(trees.write_tar(path, _SAMPLES))
  offset = [offset for offset, _ in tars.scan(str(path))][2]
  data[offset + 148] ^= 0xFF  # within its checksum
  path.write_bytes(data)
  samples, error = read(path)
  assert ([key for key, _ in samples], error.kind) == (["000000000"], "tar_unreadable")
  assert read(path, offset)[1].kind == "tar_unreadable"


def test_an_empty_tar_file_has_no_samples(tmp_path):
  trees.write_tar(tmp_path / "a.tar", [])
  assert read(tmp_path / "a.tar") == ([], None)
  (tmp_path / "b.tar").touch()
  assert read(tmp_path / "b.tar")[1].kind == "tar_truncated"


def test_a_file_that_shrank_meanwhile_is_told(tmp_path):
  path = tmp_path / "a.tar"
  data = trees.write_tar(path, _SAMPLES)
  sample = [sample for _, sample in tars.scan(str(path))][3]
  path.write_bytes(data[: sample.parts["jpg"][0] + 10])
  with pytest.raises(RecordError, match="has 10 of its 2100 bytes"):
    sample.read("jpg")
  assert sample.find_image() == "jpg"


def _pack(path, members, **options):
  """Writes members: names with their bytes, or `TarInfo` with bytes."""
  with tarfile.open(path, "w", **options) as archive:
    for member, data in members:
      info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return path


def _keys(path):
  """The keys and endings of all samples; reading from each of them gives the same."""
  found = [(offset, sample.key, [*sample.parts]) for offset, sample in tars.scan(str(path))]
  for index, (offset, *_) in enumerate(found):
    assert [(sample.key, [*sample.parts]) for _, sample in tars.scan(str(path), offset)] == [
      tuple(rest) for _, *rest in found[index:]
    ]
  return {key: " ".join(endings) for _, key, endings in found}


@pytest.mark.parametrize(
  ("names", "expected"),
  [
    ("IMG.001.jpg IMG.001.txt IMG.002.jpg IMG.002.txt", {"IMG.001": "jpg txt", "IMG.002": "jpg txt"}),
    ("IMG.001.jpg IMG.002.jpg IMG.003.JPG", {"IMG.001": "jpg", "IMG.002": "jpg", "IMG.003": "jpg"}),
    ("a.b.1.jpg a.b.1.txt a.c.1.jpg a.c.1.txt", {"a.b.1": "jpg txt", "a.c.1": "jpg txt"}),
    ("IMG.001.txt IMG.002.jpg IMG.002.txt", {"IMG.001": "txt", "IMG.002": "jpg txt"}),
    ("IMG.001.jpg IMG.001.txt IMG.002.json", {"IMG.001": "jpg txt", "IMG.002": "json"}),
    (
      "s0.input.jpg s0.outputs.txt s1.input.jpg s1.outputs.txt",
      {"s0": "input.jpg outputs.txt", "s1": "input.jpg outputs.txt"},
    ),
    ("0.depth.png 0.seg.png 0.jpg 0.txt 1.jpg 1.seg.png", {"0": "depth.png seg.png jpg txt", "1": "jpg seg.png"}),
    ("0.jpg 0.cls.txt 0.txt", {"0": "jpg cls.txt txt"}),
    ("./a/0.JPG ./a/0.TXT ./b/0.jpg", {"a/0": "jpg txt", "b/0": "jpg"}),
    ("._0.jpg 0.jpg ._0.txt 0.txt __MACOSX/0.jpg .cache/0.jpg", {"0": "jpg txt"}),
    ("a.b/0.jpg a.b/0.txt", {"a.b/0": "jpg txt"}),
  ],
)
def test_names_with_dots_are_parted_where_samples_are(tmp_path, names, expected):
  assert _keys(_pack(tmp_path / "a.tar", [(name, b"x") for name in names.split()])) == expected


def test_a_member_that_comes_twice_is_named(tmp_path):
  path = _pack(tmp_path / "a.tar", [("0.jpg", b"one"), ("0.jpg", b"two"), ("0.txt", b"text"), ("1.jpg", b"1")])
  (_, sample), (_, other) = tars.scan(str(path))
  assert [(fault.kind, fault.field) for fault in sample.faults] == [("tar_member_twice", "0.jpg")]
  assert (sample.read("jpg"), other.faults) == (b"two", ())
  assert [*map(str, pickle.loads(pickle.dumps(sample)).faults)] == [*map(str, sample.faults)]


def test_links_and_sparse_files_are_named(tmp_path):
  link, hard, sparse, old = (tarfile.TarInfo(f"{number}.jpg") for number in range(4))
  link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
  hard.type, hard.linkname = tarfile.LNKTYPE, "9.jpg"
  sparse.pax_headers = {
    "GNU.sparse.major": "1",
    "GNU.sparse.minor": "0",
    "GNU.sparse.name": "2.jpg",
    "GNU.sparse.realsize": "1",
  }
  old.type = tarfile.GNUTYPE_SPARSE
  members = [(link, b""), (hard, b""), (sparse, b"x"), ("3.txt", b"text"), ("9.jpg", b"9")]
  samples = [sample for _, sample in tars.scan(str(_pack(tmp_path / "a.tar", members, format=tarfile.PAX_FORMAT)))]
  assert [(sample.key, [fault.kind for fault in sample.faults]) for sample in samples] == [
    ("0", ["tar_member_link"]),
    ("1", ["tar_member_link"]),
    ("2", ["tar_member_sparse"]),
    ("3", []),
    ("9", []),
  ]
  assert samples[2].missing_image().kind == "tar_member_sparse"
  (_, sample), (_, last) = tars.scan(str(_pack(tmp_path / "b.tar", [(old, b"x" * 600), ("4.jpg", b"4")])))
  assert ([fault.kind for fault in sample.faults], last.read("jpg")) == (["tar_member_sparse"], b"4")


def _long_name(size, kind=b"L"):
  entry = tarfile.TarInfo("././@LongLink")
  entry.type, entry.size = kind, size
  return entry.tobuf(tarfile.GNU_FORMAT)


def test_thousands_of_long_names_are_passed_over(tmp_path):
  name = _long_name(512) + b"a" * 512
  whole = _pack(tmp_path / "a.tar", [("0.jpg", b"0")]).read_bytes()
  (tmp_path / "b.tar").write_bytes(name * 3000 + whole)
  assert read(tmp_path / "b.tar") == ([], None)  # the name has no ending
  (tmp_path / "c.tar").write_bytes(name * 3000)
  assert read(tmp_path / "c.tar")[1].kind == "tar_truncated"


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_headers_that_claim_gigabytes_are_refused(tmp_path, kind):
  path = tmp_path / "a.tar"
  with open(path, "wb") as file:
    file.write(_long_name(6 << 30, kind))
    file.truncate(8 << 30)
  assert read(path)[1].kind == "tar_unreadable"


@pytest.mark.parametrize(
  "content",
  [b"abc", b"12 path=a", b"9999999999 path=a\n", b"-5 path=a\n", b"0 path=a\n", b"1 ", b"7 path\n", b"\xff 3\n"],
)
def test_damaged_headers_of_names_are_named(tmp_path, content):
  (tmp_path / "a.tar").write_bytes(_long_name(len(content), b"x") + content.ljust(512, b"\0") + bytes(1024))
  assert read(tmp_path / "a.tar")[1].kind == "tar_unreadable"


@given(
  changes=st.lists(st.tuples(st.integers(0, 1535), st.binary(min_size=1, max_size=12)), max_size=4),
  form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
)
def test_odd_headers_never_raise_anything_else(tmp_path_factory, changes, form):
  path = _pack(tmp_path_factory.mktemp("odd") / "a.tar", [("é" * 80 + ".jpg", b"x" * 700), ("0.txt", b"")], format=form)
  data = bytearray(path.read_bytes())
  for place, value in changes:
    data[place : place + len(value)] = value
    for start in range(0, 1536, 512):  # so that the change is no damage, but meant
      header = data[start : start + 512]
      total = sum(header[:148]) + sum(header[156:]) + 8 * 32
      if header[257:262] == b"ustar":
        data[start + 148 : start + 156] = b"%06o\0 " % total
  path.write_bytes(data)
  try:
    for _, sample in tars.scan(str(path)):
      sample.read(next(iter(sample.parts))) if sample.parts else None
  except RecordError as error:
    assert error.kind in ("tar_unreadable", "tar_truncated")


def test_names_that_are_not_utf8_stay_apart(tmp_path):
  members = [("caf\udce9.jpg", b"1"), ("caf\udce8.jpg", b"2")]
  assert [key for key, _ in read(_pack(tmp_path / "a.tar", members, errors="surrogateescape", format=1))[0]] == [
    "caf\ufffd"
  ] * 2
