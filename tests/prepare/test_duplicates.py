"""Duplicates: what is found equals comparing every image with every earlier one, however the work is cut."""

import io
import itertools
import tempfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from fgclip_jax.prepare import duplicates
from fgclip_jax.prepare.duplicates import EXACT, NEAR, Hashes, Search

# hashes that are often a few bits apart, and now and then equal
CLUSTERED = st.builds(
  lambda base, bits: base ^ sum(1 << bit for bit in bits),
  st.sampled_from([0xDEADBEEF01234567, 0x0123456789ABCDEF, (1 << 64) - 1]),
  st.sets(st.integers(0, 63), max_size=5),
)


@pytest.fixture
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("hashes")


def search_all(search, images, monkeypatch, workers=1):
  """All duplicates among (bytes, perceptual hash) of each shard's images."""
  monkeypatch.setattr(duplicates, "hash_image", lambda data: values.pop(0))
  values = []
  for shard, (begin, end) in enumerate(itertools.pairwise(search.starts)):
    hashes = Hashes(search)
    for number in range(begin, end):
      data, value = images[number]
      values.append(value)
      hashes.add(number, data)
      values.clear()
    hashes.save(shard)
  duplicates.forget(search)
  duplicates.find(search, workers)
  found = {}
  for shard, (begin, end) in enumerate(itertools.pairwise(search.starts)):
    part = duplicates.load(search, shard).by_number()
    assert all(begin <= number < end for number in part)
    found |= part
  return found


def compare_all(images, near):
  """The same by comparing each image with every earlier one."""
  found = {}
  for number, (data, value) in enumerate(images):
    same = [other for other in range(number) if images[other][0] == data]
    close = [] if near is None or not value else range(number)
    close = [other for other in close if images[other][1] and (images[other][1] ^ value).bit_count() <= near]
    if same:
      found[number] = (EXACT, same[0])
    elif close:
      found[number] = (NEAR, close[0])
  return found


@given(
  st.lists(st.tuples(st.integers(0, 30).map(lambda value: b"%d" % value), CLUSTERED | st.just(0)), max_size=40),
  st.none() | st.integers(0, duplicates.MAX_BITS),
  st.lists(st.integers(0, 40), max_size=4),
  st.sampled_from([1 << 22, 10, 3]),
)
def test_what_is_found_equals_comparing_all_with_all(images, near, cuts, partition_rows):
  with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
    patch.setattr(duplicates, "_BLOCK", 16)
    starts = (0, *sorted(min(cut, len(images)) for cut in cuts), len(images))
    found = search_all(Search(folder, len(images), starts, near, partition_rows), images, patch)
    assert found == compare_all(images, near)


@given(st.lists(CLUSTERED, min_size=2, max_size=2), st.integers(0, duplicates.MAX_BITS))
def test_hashes_that_are_near_share_a_band(pair, near):
  search = Search("", 2, (0, 2), near)
  assert [begin for begin, _ in search.bands] == [0, *(end for _, end in search.bands[:-1])]
  assert search.bands[-1][1] == 64
  if (pair[0] ^ pair[1]).bit_count() <= near:
    assert any(
      (pair[0] ^ pair[1]) << begin >> (64 - end + begin) & ((1 << (end - begin)) - 1) == 0
      for begin, end in search.bands
    )


@given(st.integers(0, (1 << 23) - 1), st.integers(0, (1 << 40) - 1), st.integers(0, 1 << 20), st.integers(0, 1 << 20))
def test_numbers_rise_in_the_order_of_the_input(file, index, other_file, other_index):
  number = duplicates.get_number(file, index)
  assert duplicates.get_place(number) == (file, index)
  assert number < 1 << 63
  other = duplicates.get_number(other_file, other_index)
  assert (number < other) == ((file, index) < (other_file, other_index))


def test_processes_find_the_same_and_what_is_finished_is_kept(folder, monkeypatch):
  rng = np.random.default_rng(0)
  base = rng.integers(1, 1 << 62, 20)
  images = [(b"%d" % rng.integers(60), int(base[rng.integers(20)]) ^ 1 << int(rng.integers(64))) for _ in range(120)]
  search = Search(str(folder), 120, (0, 50, 90, 120), 3, 50)
  alone = search_all(search, images, monkeypatch)
  assert alone == compare_all(images, 3)
  assert {kind for kind, _ in alone.values()} == {EXACT, NEAR}
  assert search_all(search, images, monkeypatch, workers=2) == alone
  paths = sorted(folder.glob("found-*"))
  written = {path: path.stat().st_mtime_ns for path in paths}
  paths[1].unlink()
  duplicates.find(search, 1)
  assert [path for path in paths if path.stat().st_mtime_ns != written[path]] == [paths[1]]


def photograph(seed=0, size=(288, 192)):
  """A soft random picture."""
  noise = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)
  return Image.fromarray(noise).filter(ImageFilter.GaussianBlur(6))


def encode(picture, form="JPEG", **options):
  file = io.BytesIO()
  picture.save(file, form, **options)
  return file.getvalue()


def test_copies_of_an_image_have_near_hashes_and_other_images_do_not():
  pictures = [photograph(seed) for seed in range(12)]
  values = [duplicates.hash_image(encode(picture, quality=90)) for picture in pictures]
  for one, other in itertools.combinations(values, 2):
    assert (one ^ other).bit_count() > duplicates.MAX_BITS
  for picture, value in zip(pictures, values, strict=True):
    small = picture.resize((144, 96), Image.Resampling.BICUBIC)
    for copy in (encode(picture, quality=60), encode(small), encode(small, "PNG"), encode(picture, "WEBP")):
      assert (duplicates.hash_image(copy) ^ value).bit_count() <= 6


def test_a_picture_of_one_colour_has_no_hash():
  white = Image.new("RGB", (40, 30), "white")
  assert duplicates.hash_picture(white) == duplicates.hash_image(encode(white)) == 0


def test_the_hash_is_imagehash_s_phash():
  imagehash = pytest.importorskip("imagehash", reason="needs the package imagehash")
  for seed in range(20):
    picture = photograph(seed)
    assert f"{duplicates.hash_picture(picture):016x}" == str(imagehash.phash(picture))
