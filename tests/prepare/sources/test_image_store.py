"""Where images lie: folders, tar files, Parquet files, under their own names or those of a download."""

import json
import pickle

import pytest

from fgclip_jax.prepare.sources import finehard, image_store
from fgclip_jax.storage.errors import RecordError
from tests.helpers import standin, trees

NAMES = ("coyo_image_0/00000/000000001.jpg", "coyo_image_0/00069/000690007.jpg", "coyo_image_1/00000/000000001.jpg")
DATA = {name: f"bytes of {name}".encode() for name in NAMES}


def write(root, form):
  """Writes the three images in one of the forms that they may have."""
  for name, data in DATA.items():
    folder, key = name.rsplit("/", 1)
    samples = [trees.make_sample("other", b"other"), trees.make_sample(key.removesuffix(".jpg"), data)]
    if form == "files":
      trees.write_files(root / folder, samples)
    else:
      (trees.write_tar if form == "tar" else trees.write_parquet)(root / f"{folder}.{form}", samples)
      trees.write_parquet(root / folder / "table.parquet", samples, images=False)


def find(root, tmp_path, url2key=None, workers=1):
  return image_store.find(str(root), url2key and str(url2key), str(tmp_path / "state"), workers)


@pytest.mark.parametrize("form", ["files", "tar", "parquet"])
@pytest.mark.parametrize("where", ["local", "remote"])
def test_images_are_found_in_every_form(tmp_path, form, where):
  root = tmp_path / "images"
  write(root, form)
  found = find(root if where == "local" else standin.remote(root), tmp_path)
  assert isinstance(found, image_store.Folder) == (form == "files")
  found = pickle.loads(pickle.dumps(found))
  for name, data in DATA.items():
    assert found.read((name,)) == data
    assert found.read(("nothing.jpg", name)) == data
  with pytest.raises(RecordError, match="no .*'coyo_image_0/00069/000699999.jpg'") as caught:
    found.read(("coyo_image_0/00069/000699999.jpg", "b.jpg"))
  assert caught.value.kind == "image_missing"
  assert json.loads(json.dumps(found.arguments())) == found.arguments()


def test_a_tar_file_may_hold_folders(tmp_path):
  root = tmp_path / "images"
  trees.write_tar(root / "all.tar", [trees.make_sample(name[:-4], data) for name, data in DATA.items()])
  found = find(root, tmp_path)
  assert [found.read((name,)) for name in NAMES] == list(DATA.values())


def test_images_behind_a_break_are_missing_and_the_break_is_told(tmp_path, capsys):
  root = tmp_path / "images"
  samples = [trees.make_sample(f"{index:09d}", b"x" * 9000) for index in range(4)]
  data = trees.write_tar(root / "coyo_image_0" / "00000.tar", samples)
  (root / "coyo_image_0" / "00000.tar").write_bytes(data[: len(data) // 2])
  found = find(root, tmp_path)
  assert found.read(("coyo_image_0/00000/000000000.jpg",)) == b"x" * 9000
  with pytest.raises(RecordError, match=r"1 files are broken \(coyo_image_0/00000.tar: byte \d+"):
    found.read(("coyo_image_0/00000/000000003.jpg",))
  assert "coyo_image_0/00000.tar is broken" in capsys.readouterr().out


def write_download(root, form):
  """The three images as a download of one's own has them: other numbers, one failed, one not of FineHARD."""
  for top in ("coyo_image_0", "coyo_image_1"):
    names = [name for name in NAMES if name.startswith(top)]
    samples = [trees.make_sample(f"00000{9 - index:04d}", DATA[name], url=name) for index, name in enumerate(names)]
    samples += [trees.make_sample("000000100", None, url="failed"), trees.make_sample("000000101", url="another")]
    samples.sort(key=lambda sample: sample["side"]["key"])
    if form == "files":
      trees.write_files(root / top / "00005" / "00000", samples)
      trees.write_parquet(root / top / "00005" / "00000.parquet", samples, images=False)
      (root / top / "00005" / "00000_stats.json").write_text("{}")
    else:
      (trees.write_tar if form == "tar" else trees.write_parquet)(root / top / "00005" / f"00000.{form}", samples)


def write_keys(folder, shape):
  """Writes url2key files in one of the shapes that they may have."""
  folder.mkdir()
  for top in ("coyo_image_0", "coyo_image_1"):
    keys = {name: name.split("/")[-1].removesuffix(".jpg") for name in NAMES if name.startswith(top)}
    keys["failed"] = "000000500"
    shapes = {
      "object": keys,
      "objects": [{"url": url, "key": key, "more": 1} for url, key in keys.items()],
      "single": [{url: f"{top}/00069/{key}.jpg"} for url, key in keys.items()],
      "pairs": [list(pair) for pair in keys.items()],
    }
    (folder / f"url2key_{top}.json").write_text(json.dumps(shapes[shape]))


@pytest.mark.parametrize("form", ["files", "tar", "parquet"])
@pytest.mark.parametrize("shape", ["object", "objects", "single", "pairs"])
def test_images_of_a_download_are_found_by_their_urls(tmp_path, form, shape):
  write_download(tmp_path / "images", form)
  write_keys(tmp_path / "keys", shape)
  found = find(tmp_path / "images", tmp_path, tmp_path / "keys")
  for name, data in DATA.items():
    assert found.read(finehard.find_paths(f"grit-20m/data-12m/{name}")) == data
  for name in ("coyo_image_0/00005/000000009.jpg", "coyo_image_0/00000/000000500.jpg", "coyo_image_0/a.jpg"):
    with pytest.raises(RecordError) as caught:
      found.read((name,))
    assert caught.value.kind == "image_missing"


def test_both_spellings_of_a_path_mean_the_image_of_the_newer_one(tmp_path):
  write_download(tmp_path / "images", "tar")
  write_keys(tmp_path / "keys", "object")
  found = find(tmp_path / "images", tmp_path, tmp_path / "keys")
  old = finehard.find_paths("data/down-grit-12m/coyo_image_0/00069/00000/000000007.jpg")
  assert found.read(old) == DATA["coyo_image_0/00069/000690007.jpg"]


def test_tables_are_made_anew_when_a_file_changes(tmp_path):
  root = tmp_path / "images"
  write(root, "tar")
  first = find(root, tmp_path)
  assert find(root, tmp_path) == first
  trees.write_tar(root / "coyo_image_0" / "00000.tar", [trees.make_sample("000000001", b"longer than before" * 700)])
  second = find(root, tmp_path)
  assert second.arguments() != first.arguments()
  assert second.read(NAMES[:1]) == b"longer than before" * 700


def test_what_is_not_there_is_named(tmp_path):
  root = tmp_path / "images"
  with pytest.raises(FileNotFoundError, match="no images folder"):
    find(root, tmp_path)
  write_download(root, "tar")
  with pytest.raises(FileNotFoundError, match="--url2key"):
    find(root, tmp_path, tmp_path / "keys")
  (tmp_path / "keys").mkdir()
  with pytest.raises(FileNotFoundError, match="url2key_\\*.json"):
    find(root, tmp_path, tmp_path / "keys")
  (tmp_path / "keys" / "url2key_coyo_image_0.json").write_text('{"a": 3}')
  with pytest.raises(
    ValueError, match="no URL with a key in .*url2key_coyo_image_0.json: entry 0: must be a URL and a key"
  ):
    find(root, tmp_path, tmp_path / "keys")
  (tmp_path / "keys" / "url2key_coyo_image_0.json").write_text('{"a": "b"')
  with pytest.raises(ValueError, match="url2key_coyo_image_0.json: byte 9: the file ends inside the object"):
    find(root, tmp_path, tmp_path / "keys")
  with pytest.raises(FileNotFoundError, match="--images must be the folder that holds them"):
    find(root / "coyo_image_0", tmp_path, tmp_path / "keys")


def test_strays_and_circles_of_links_are_not_read(tmp_path, capsys):
  """What macOS leaves beside archives, and folders that contain themselves."""
  root = tmp_path / "images"
  write(root, "tar")
  for name in ("._00000.tar", "coyo_image_0/._00000.tar", "__MACOSX/coyo_image_0/00000.tar", ".cache/x.parquet"):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(b"Mac OS X")
  (root / "coyo_image_1" / "again").symlink_to(root)
  (root / "a.tar").mkdir()
  found = find(root, tmp_path)
  assert [found.read((name,)) for name in NAMES] == list(DATA.values()) and not found.table.broken
  printed = capsys.readouterr().out
  assert all(part in printed for part in ("file_hidden 2", "folder_hidden 2", "folder_loop 1"))
  assert len(image_store.find_files(str(root))) == len({name.rsplit("/", 1)[0] for name in NAMES})
