"""Building an index: what is found in it, what changes, what is left out, and builds that are stopped."""

import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from fgclip_jax import embed
from fgclip_jax.index import build as building
from fgclip_jax.index.search import Index
from fgclip_jax.prepare.sources import scenes

pytest.importorskip("usearch", reason="needs usearch, see requirements-serve.txt")


def names(index):
  return sorted(name for name, alive in zip(index.tables.names, index.tables.alive, strict=True) if alive)


def test_windows_cover_the_picture_and_overlap():
  found = building.windows((1, 2))
  assert found[0] == (0.0, 0.0, 1.0, 1.0) and len(found) == 1 + 9 and len(building.windows((2, 3))) == 34
  assert (0.25, 0.0, 0.75, 0.5) in found and max(box[2] for box in found) == 1.0


def test_pictures_and_their_windows_are_found_by_their_own_vectors(model, photos, index_folder):
  index = Index(index_folder)
  assert names(index) == [f"a/{n}.png" for n in range(0, 10, 2)] + [f"b/{n}.png" for n in range(1, 10, 2)]
  path = photos / "a" / "4.png"
  (found,) = index.search(model.encode_image_and_regions(path, [building.windows((2,))])[0][0], 1, regions=False)
  assert found.name == "a/4.png" and found.box is None and found.score == pytest.approx(1, abs=1e-2)
  assert os.path.samefile(found.path, path)
  box = building.windows((2,))[5]
  (found, *others) = index.search(model.encode_regions(path, [[box]])[0][0], 3)
  assert (found.name, found.box) == ("a/4.png", box) and found.score == pytest.approx(1, abs=1e-2)
  assert len({each.name for each in (found, *others)}) == 3  # a picture counts by its best region alone


def test_what_cannot_be_used_is_counted(model, photos, tmp_path):
  report = building.build(model, "toy", [str(photos)], str(tmp_path / "i"), scales=(2,))
  assert (report.added, report.pictures, report.regions) == (10, 10, 90)
  assert dict(report.left_out.counts) == {"image_unreadable": 1}
  with pytest.raises(ValueError, match="holds no picture"):
    building.build(model, "toy", [str(tmp_path)], str(tmp_path / "j"))
  with pytest.raises(ValueError, match="scales was"):
    building.build(model, "toy", [str(photos)], str(tmp_path / "i"), scales=(3,))
  with pytest.raises(ValueError, match="other files"):
    building.build(model, "toy", [str(photos)], str(photos))


def test_new_changed_and_deleted_pictures_are_noticed(model, photos, tmp_path):
  folder, output = tmp_path / "photos", str(tmp_path / "i")
  folder.mkdir()
  for number in range(4):
    (folder / f"{number}.png").write_bytes((photos / "a" / "0.png").read_bytes())
  building.build(model, "toy", [str(folder)], output, scales=(2,))
  (folder / "0.png").unlink()
  os.utime(folder / "1.png", ns=(1, 1))
  Image.fromarray(np.full((20, 20, 3), 200, np.uint8)).save(folder / "2.png")
  (folder / "9.png").write_bytes((photos / "a" / "2.png").read_bytes())
  report = building.add(model, [], output)
  assert (report.added, report.changed, report.removed, report.kept) == (1, 2, 1, 1)
  index = Index(output)
  assert names(index) == ["1.png", "2.png", "3.png", "9.png"] and report.pictures == 4 and report.regions == 36
  (found,) = index.search(model.encode_regions(folder / "2.png", [[(0.0, 0.0, 0.5, 0.5)]])[0][0], 1)
  assert found.name == "2.png"
  assert {each.name for each in index.search(np.eye(1, 16, dtype=np.float32)[0], 100, exact=True)} == set(names(index))
  report = building.add(model, [str(photos / "b")], output)
  assert report.added == 5 and len(Index(output)) == 9 and Index(output).state["sources"][1] == str(photos / "b")


def test_a_stopped_build_goes_on(model, photos, tmp_path, monkeypatch):
  monkeypatch.setattr(building, "PART", 3)
  embedded = []

  def encode(*arguments):
    embedded.append(len(embedded))
    if len(embedded) == 3:
      raise KeyboardInterrupt
    return one_part(*arguments)

  one_part = building._embed
  monkeypatch.setattr(building, "_embed", encode)
  output = str(tmp_path / "i")
  with pytest.raises(KeyboardInterrupt):
    building.build(model, "toy", [str(photos)], output, scales=(2,))
  assert len(Index(output)) == 0 and len(os.listdir(tmp_path / "i" / "parts")) == 2
  report = building.build(model, "toy", [str(photos)], output, scales=(2,))
  assert report.added == 10 and len(embedded) == 3 + 2  # eleven pictures are four parts, of which two were there
  assert not os.path.exists(tmp_path / "i" / "parts") and len(Index(output)) == 10


def test_a_build_that_is_killed_while_it_writes_leaves_the_index_as_it_was(model, photos, tmp_path, monkeypatch):
  output = str(tmp_path / "i")
  building.build(model, "toy", [str(photos / "a")], output, scales=(2,))
  before = sorted(os.listdir(output))
  with monkeypatch.context() as patched:
    patched.setattr(building.folders, "crc32", lambda path: 1 / 0)
    patched.setattr(building.folders, "check_files", lambda *arguments: None)
    with pytest.raises(ZeroDivisionError):
      building.add(model, [str(photos / "b")], output)
  assert sorted(os.listdir(output)) == sorted([*before, "parts"])
  assert len(Index(output)) == 5
  assert building.add(model, [str(photos / "b")], output).added == 5


def test_record_folders_tars_and_outputs_of_embed(model, photos, tmp_path):
  data = str(tmp_path / "scenes")
  scenes.write(data, train=3, validation=1, workers=1)
  report = building.build(model, "toy", [data], str(tmp_path / "given"), regions="given")
  assert (report.pictures, report.regions) == (3, 9)
  (found,) = Index(str(tmp_path / "given")).search(np.ones(16, np.float32) / 4, 1)
  assert found.name.startswith("train/") and found.box is not None

  import tarfile

  with tarfile.open(tmp_path / "some.tar", "w") as tar:
    tar.add(photos / "a" / "0.png", "0.png")
    tar.add(photos / "notes.md", "1.txt")
  report = building.build(model, "toy", [str(tmp_path / "some.tar")], str(tmp_path / "tar"), regions="none")
  assert (report.pictures, report.regions) == (1, 0) and report.left_out.counts.total() == 1
  with pytest.raises(ValueError, match="no regions"):
    Index(str(tmp_path / "tar")).search(np.ones(16, np.float32) / 4, 1, regions=True)

  embedded = str(tmp_path / "x.parquet")
  embed.embed(model, "images", str(photos), embedded)
  report = building.build(model, "toy", [embedded], str(tmp_path / "rows"), regions="none", precision="float32")
  assert report.pictures == 10
  (found,) = Index(str(tmp_path / "rows")).search(model.encode_image(photos / "b" / "3.png")[0], 1)
  assert found.name == "b/3.png" and found.score == pytest.approx(1, abs=1e-5)
  told = json.loads((tmp_path / "x.report.json").read_text())
  told["settings"]["model"] = "00000000"
  (tmp_path / "x.report.json").write_text(json.dumps(told))
  with pytest.raises(ValueError, match="another model"):
    building.add(model, [embedded], str(tmp_path / "rows"))


def test_a_full_disk_is_an_error_that_names_the_file(model, photos, tmp_path, monkeypatch):
  output = str(tmp_path / "i")
  building.build(model, "toy", [str(photos / "a")], output, scales=(2,))
  before = sorted(os.listdir(output))

  class Full:
    """A graph for which there is no room; usearch raises no `OSError` then."""

    def __init__(self, graph):
      self.add, self.remove = graph.add, graph.remove

    def save(self, path):
      raise RuntimeError("Failed to serialize into stream")

  open_graph = building.open_graph
  with monkeypatch.context() as patched:
    patched.setattr(building, "open_graph", lambda path: Full(open_graph(path)))
    with pytest.raises(OSError, match=r"pictures-3\.usearch' could not be written .*disk full"):
      building.add(model, [str(photos / "b")], output)
  assert sorted(os.listdir(output)) == sorted([*before, "parts"]) and len(Index(output)) == 5


def test_a_missing_library_is_said_before_anything_is_embedded(model, photos, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "usearch", None)
  monkeypatch.setattr(building, "_embed", lambda *arguments: pytest.fail("pictures were embedded"))
  with pytest.raises(ModuleNotFoundError, match=r"pip install -r requirements-serve\.txt"):
    building.build(model, "toy", [str(photos)], str(tmp_path / "i"))
  assert not os.path.exists(tmp_path / "i")
