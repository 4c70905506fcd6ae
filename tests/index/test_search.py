"""Searching an index: order, filters, exact search, and damaged files."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest

from fgclip_jax.index.search import Index

pytest.importorskip("usearch", reason="needs usearch, see requirements-serve.txt")


def unit(seed, width=16):
  vector = np.random.default_rng(seed).standard_normal(width).astype(np.float32)
  return vector / np.linalg.norm(vector)


@pytest.mark.parametrize("regions", [True, False])
def test_order_and_exact_search(index_folder, regions):
  index = Index(index_folder)
  for seed in range(3):
    found = index.search(unit(seed), 5, regions=regions)
    scores = [match.score for match in found]
    assert len(found) == 5 and scores == sorted(scores, reverse=True)
    assert found == index.search(unit(seed), 5, regions=regions, exact=True)
  assert index.recall(10) >= 0.98
  assert len(index.search(unit(0), 1000, regions=regions)) == len(index) == 10


def test_a_pattern_of_names(index_folder):
  index = Index(index_folder)
  everything = index.search(unit(4), 10)
  found = index.search(unit(4), 3, only="b/*")
  assert found == [match for match in everything if match.name.startswith("b/")][:3] and len(found) == 3
  assert index.search(unit(4), 3, only="c/*") == []


def test_a_vector_of_another_width_is_refused(index_folder):
  with pytest.raises(ValueError, match=r"must be \[16\], got \[8\]"):
    Index(index_folder).search(unit(0, 8))


@pytest.mark.parametrize("table", ["pictures", "regions"])
@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_a_damaged_file_is_named(index_folder, tmp_path, table, damage):
  copy = str(tmp_path / "copy")
  shutil.copytree(index_folder, copy)
  (name,) = (name for name in os.listdir(copy) if name.startswith(table) and name.endswith("usearch"))
  path = os.path.join(copy, name)
  data = bytearray(pathlib.Path(path).read_bytes())
  if damage == "gone":
    os.remove(path)
  else:
    data[len(data) // 2] ^= 1
    with open(path, "wb") as file:
      file.write(data[:-1] if damage == "cut" else data)
  with pytest.raises(ValueError, match=f"{name}' is"):
    Index(copy)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 99}', '{"version": 1, "files": {"../x": {}}}'])
def test_a_damaged_state_is_named(index_folder, tmp_path, text):
  copy = tmp_path / "copy"
  shutil.copytree(index_folder, copy)
  state = json.loads((copy / "index.json").read_text())
  if text.startswith('{"'):
    text = json.dumps(state | json.loads(text))
  (copy / "index.json").write_text(text)
  with pytest.raises(ValueError, match="index.json' is"):
    Index(str(copy))
  with pytest.raises(FileNotFoundError, match="is no index"):
    Index(str(tmp_path))
