"""Samples of tar files: from any sample on, whole or broken."""

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
_parts = st.dictionaries(st.sampled_from(["jpg", "json", "txt", "seg.png"]), st.binary(max_size=1200), min_size=1)


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
