"""Images in order, with those that cannot be used counted."""

import numpy as np
import pytest

from fgclip_jax.data import image as images
from fgclip_jax.evals.datasets.images import read_batches, read_pictures
from fgclip_jax.inference.pictures import SquareReader
from fgclip_jax.storage.skip_report import SkipReport


def test_pictures_come_in_order_and_faults_are_named(files):
  skips = SkipReport()
  found = list(read_pictures(files, SquareReader(24), skips))
  assert [number for number, _ in found] == [0, 2, 3, 6, 7]
  for number, pixels in found:
    picture = files[number]() if callable(files[number]) else files[number]
    np.testing.assert_array_equal(pixels, images.to_levels(picture, 24))
  assert skips.counts == {"image_missing": 2, "image_unreadable": 1}
  note = skips.summary(8)
  assert note.startswith("3 of 8 images could not be used") and f"first: {files[1]}" in note and files[4] in note
  assert SkipReport().summary(8) == ""


def test_a_file_that_may_not_be_read_is_a_fault_and_a_broken_disk_an_error(monkeypatch):
  def fail(path):
    raise PermissionError(path) if path == "closed" else OSError(5, "input/output error")

  monkeypatch.setattr("fgclip_jax.evals.datasets.images.paths.read", fail)
  skips = SkipReport()
  assert list(read_pictures(["closed"], SquareReader(8), skips)) == [] and skips.counts == {"image_not_permitted": 1}
  with pytest.raises(OSError, match="input/output"):
    list(read_pictures(["x"], SquareReader(8), skips))


def test_normalised_pixels_are_refused():
  with pytest.raises(ValueError, match="must be uint8"):
    list(read_pictures([np.zeros((8, 8, 3), np.float32)], SquareReader(8), SkipReport()))


def test_the_last_batch_is_filled_up(model, files, monkeypatch):
  monkeypatch.setattr("fgclip_jax.inference.programs.CHUNKS", (1, 2))
  batches = list(read_batches(model, files, SkipReport()))
  assert [batch.numbers.tolist() for batch in batches] == [[0, 2], [3, 6], [7]]
  assert all(len(batch.pixels) == 2 for batch in batches)
  np.testing.assert_array_equal(batches[2].pixels[1], batches[2].pixels[0])
  (single,) = read_batches(model, files[:1], SkipReport())
  assert len(single.pixels) == 1
