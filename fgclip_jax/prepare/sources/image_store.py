"""Reads the images of annotations: from folders, or from the tar or Parquet files that img2dataset writes.

A table on disk maps the name of an image in an archive to its place. The name is the path that the image would have in
a folder, without its ending: `coyo_image_0/00069/000699825` is the member `000699825.jpg` of `coyo_image_0/00069.tar`,
or the row with that `key` in `coyo_image_0/00069.parquet`.

A download gives its images new numbers. FineHARD's `url2key` files map URLs to the keys that images have in FineHARD;
with them the name is `coyo_image_0/KEY`, in whichever archive or folder under `coyo_image_0` the image is.
"""

import dataclasses
import errno
import itertools
import json
import posixpath
from collections.abc import Iterator
from typing import Any

from fgclip_jax.storage import folders, lookup_table, parquet, paths, streams, tars
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import SkipReport
from fgclip_jax.storage.workers import Engine

MAX_BYTES = 512 << 20  # of an image file
_URL2KEY = "url2key_"  # url2key_coyo_image_0.json has the keys of the images under coyo_image_0


@dataclasses.dataclass(frozen=True)
class Folder:
  """A folder of image files, on this machine or in object storage.

  Raises:
    FileNotFoundError: there is no such folder.
  """

  path: str

  def __post_init__(self):
    if not paths.is_folder(self.path):
      raise FileNotFoundError(f"no images folder at {self.path!r} (--images)")

  def arguments(self) -> dict[str, Any]:
    """What decides which images are found, as JSON."""
    return {"images": paths.absolute(self.path)}

  def read(self, names: tuple[str, ...]) -> bytes:
    """Returns the first file found at `names`, paths relative to the folder, or raises `RecordError`.

    Kinds: `image_missing`, `image_not_permitted`, `image_not_file` (a pipe, a device, links in a circle),
    `image_too_large` (of more than `MAX_BYTES`).
    """
    for name in names:
      try:
        data = paths.read(paths.join(self.path, name), 0, MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
          raise RecordError("image_too_large", "image", f"{name!r} has more than {MAX_BYTES:,} bytes")
        return data
      except paths.NotRegularFileError as error:
        raise RecordError("image_not_file", "image", str(error)) from error
      except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        continue
      except PermissionError as error:
        raise RecordError("image_not_permitted", "image", f"{name!r} may not be read") from error
      except OSError as error:
        if error.errno == errno.ELOOP:
          raise RecordError("image_not_file", "image", f"{name!r} is a link that leads to itself") from error
        if error.errno != errno.ENAMETOOLONG:
          raise  # a fault of the disk or the network, not of the record
    raise RecordError("image_missing", "image", f"no file {names[0]!r} under {self.path}")


@dataclasses.dataclass(frozen=True)
class Archives:
  """Images in tar or Parquet files, or under the names of a download, found through a table.

  Attributes:
    path: the folder that holds them.
    table: maps an image's name to its place.
    renamed: whether the names are FineHARD's keys, found by URL.
  """

  path: str
  table: lookup_table.Table
  renamed: bool = False

  def arguments(self) -> dict[str, Any]:
    """What decides which images are found, as JSON."""
    return {"images": paths.absolute(self.path), "renamed": self.renamed, "found": self.table.digest}

  def read(self, names: tuple[str, ...]) -> bytes:
    """Returns the first image found at `names`, paths as in a folder, or raises `RecordError`.

    Kinds: `image_missing`, `parquet_unreadable`.
    """
    for name in names:
      place = self.table.get(self._key(name))
      if place:
        return _read_at(self.path, *json.loads(place))
    message = f"no image {names[0]!r} in what lies under {self.path}"
    if self.table.broken:
      file, reason = self.table.broken[0]
      message += f", of which {len(self.table.broken)} files are broken ({file}: {reason})"
    raise RecordError("image_missing", "image", message)

  def _key(self, name: str) -> str:
    stem = posixpath.splitext(name)[0]
    if not self.renamed:
      return stem
    parts = stem.split("/")
    return f"{parts[0]}/{parts[2]}" if len(parts) == 3 else ""  # other forms of a path hold the download's numbers


def find(path: str, url2key: str | None, state: str, workers: int | Engine) -> Folder | Archives:
  """Finds the form of the images under a folder, and makes the table of images unless they are plain files.

  Args:
    path: the folder.
    url2key: the folder of FineHARD's url2key files, for images under the names of a download; or None.
    state: the folder where tables are kept.
    workers: the number of processes, or an engine.

  Raises:
    FileNotFoundError: there is no such folder, no url2key file, or no image that these files name.
  """
  folder = Folder(path)
  if url2key is None and _find_form(path) != "archives":
    return folder
  files = list(_find_containers(path, url2key is not None))
  arguments = {"path": paths.absolute(path), "files": [paths.fingerprint(paths.join(path, file)) for file in files]}
  keys = None
  if url2key is not None:
    keys = _make_keys(url2key, {file.split("/")[0] for file in files}, paths.join(state, "url2key"), workers)
    arguments["url2key"] = keys.digest
  inputs = [(file, (path, file, keys)) for file in files]
  table = lookup_table.make(
    paths.join(state, "images"), _list_images, inputs, arguments, workers, label="finding images"
  )
  print(f"Found {table.entries:,} images in {len(files):,} files or folders under {path}")
  if table.repeated:
    print(f"{table.repeated:,} images have the name of another one before them, which is the one that is taken")
  for file, reason in table.broken:
    print(f"{file} is broken: {reason}. Images behind the break cannot be found")
  return Archives(path, table, url2key is not None)


def find_files(path: str) -> tuple[str, ...]:
  """Lists the tar files under a folder, or its Parquet files that hold images; of a file's path, the file itself.

  Raises:
    FileNotFoundError: there is none.
  """
  if not paths.is_folder(path):
    if not paths.is_file(path):
      raise FileNotFoundError(f"no file or folder at {path!r}")
    return (path,)
  files = tuple(paths.join(path, file) for file in _find_containers(path, False))
  if not files:
    raise FileNotFoundError(f"no .tar file, and no .parquet file with images, under {path!r}")
  return files


def _find_form(root: str) -> str | None:
  """Returns `files` or `archives`, whichever is met first under a folder; None if there is neither."""
  for _, names in _walk(root, (*tars.IMAGE_SUFFIXES, "tar", "parquet"), SkipReport()):
    if _pick_archives(root, names):
      return "archives"
    if any(_suffix(name) in tars.IMAGE_SUFFIXES for name in names):
      return "files"
  return None


def _find_containers(root: str, with_folders: bool) -> Iterator[str]:
  """Yields the archives under a folder and, with `with_folders`, the folders of images with side files."""
  skips = SkipReport()
  for folder, names in _walk(root, ("tar", "parquet", "json") if with_folders else ("tar", "parquet"), skips):
    archives = _pick_archives(root, names)
    yield from archives
    if with_folders and not archives and any(map(_is_side_file, names)):
      yield folder
  for line in folders.describe(root, skips):
    print(line)


def _walk(root: str, endings: tuple[str, ...], skips: SkipReport) -> Iterator[tuple[str, list[str]]]:
  """Yields each folder under a root that has files of these endings, with their paths, all relative to the root."""
  found = folders.walk(root, skips, tuple(f".{ending}" for ending in endings))
  return ((folder, list(names)) for folder, names in itertools.groupby(found, posixpath.dirname))


def _pick_archives(root: str, names: list[str]) -> list[str]:
  """Returns the tar files of a folder; if there are none, its Parquet files, unless they are tables without images."""
  found = [name for name in names if _suffix(name) == "tar"]
  if not found:
    found = [name for name in names if _suffix(name) == "parquet"]
    if found and not parquet.find_image_column(paths.join(root, found[0])):
      return []
  return found


def _suffix(name: str) -> str:
  return posixpath.splitext(name)[1].lower().removeprefix(".")


def _is_side_file(name: str) -> bool:
  return name.endswith(".json") and not name.endswith("_stats.json")


def _make_keys(folder: str, used: set[str], state: str, workers: int | Engine) -> lookup_table.Table:
  """Makes the table that maps an images folder and a URL to a key."""
  if not paths.is_folder(folder):
    raise FileNotFoundError(f"no folder at {folder!r} (--url2key)")
  names = [name for name in paths.list_folder(folder) if name.startswith(_URL2KEY) and name.endswith(".json")]
  if not names:
    raise FileNotFoundError(f"no {_URL2KEY}*.json file in {folder!r} (--url2key)")
  found = {name: name.removeprefix(_URL2KEY).removesuffix(".json") for name in names}
  if not used.intersection(found.values()):
    raise FileNotFoundError(
      f"no images under a folder that a url2key file is named after ({', '.join(sorted(found.values())[:3])}, ...): "
      f"--images must be the folder that holds them"
    )
  files = [paths.join(folder, name) for name in names]
  inputs = [(name, (file, found[name])) for name, file in zip(names, files, strict=True)]
  arguments = {"path": paths.absolute(folder), "files": [paths.fingerprint(file) for file in files]}
  table = lookup_table.make(state, _read_keys, inputs, arguments, workers, label="reading keys")
  if table.broken:
    name, reason = table.broken[0]
    raise ValueError(f"{paths.join(folder, name)}: {reason}")
  count, example = table.skipped
  if not table.entries:
    raise ValueError(f"no URL with a key in {folder} (--url2key): {example}")
  if count:
    print(f"{count:,} entries of {folder} have no URL and key: {example}")
  return table


def _read_keys(task: tuple[str, str]) -> Iterator[tuple[str, str] | RecordError]:
  """Yields the URLs and keys of a url2key file: an object, a list of objects, or a list of pairs."""
  path, folder = task
  for number, (name, raw) in enumerate(streams.walk(path)):
    value = streams.load(raw)
    if name:
      pairs = [(name, value)]
    elif isinstance(value, dict):
      pairs = [(value["url"], value["key"])] if value.keys() >= {"url", "key"} else list(value.items())
    else:
      pairs = [tuple(value)] if isinstance(value, list) and len(value) == 2 else [(None, value)]
    for url, key in pairs:
      if not isinstance(url, str) or not isinstance(key, str):
        yield RecordError("key_wrong_type", f"entry {number}", f"must be a URL and a key, got {raw[:80]!r}")
      else:
        yield f"{folder} {url}", posixpath.splitext(posixpath.basename(key))[0]


def _list_images(task: tuple[str, str, lookup_table.Table | None]) -> Iterator[tuple[str, str]]:
  """Yields the names of the images of an archive or a folder, and their places."""
  root, file, keys = task
  form = _suffix(file)
  listing = _list_tar if form == "tar" else _list_parquet if form == "parquet" else _list_folder
  top = file.split("/")[0]
  for name, url, place in listing(root, file, keys is not None):
    if keys is not None:
      key = keys.get(f"{top} {url}") if isinstance(url, str) else None
      if key is None:
        continue  # an image that FineHARD does not use
      name = f"{top}/{key}"
    yield name, json.dumps(place)


def _list_tar(root: str, file: str, with_url: bool) -> Iterator[tuple[str, Any, list]]:
  for _, sample in tars.scan(paths.join(root, file)):
    suffix = sample.find_image()
    if suffix is None:
      continue
    base = posixpath.dirname(file) if "/" in sample.key else posixpath.splitext(file)[0]
    url = get_url(sample.read("json")) if with_url and "json" in sample.parts else None
    yield posixpath.join(base, sample.key), url, [file, *sample.parts[suffix]]


def _list_parquet(root: str, file: str, with_url: bool) -> Iterator[tuple[str, Any, list]]:
  path = paths.join(root, file)
  column, columns = parquet.find_image_column(path), parquet.list_columns(path)
  reader = parquet.Reader(path, [name for name in ("key", "url") if name in columns])
  for number in range(len(reader)):
    row = reader.get(number)
    if column is None or not isinstance(row.get("key"), str):
      raise RecordError("parquet_without_keys", f"row {number}", "needs a column of images and `key`, a column of text")
    yield posixpath.join(posixpath.splitext(file)[0], row["key"]), row.get("url"), [file, number, column]


def _list_folder(root: str, file: str, with_url: bool) -> Iterator[tuple[str, Any, list]]:
  del with_url
  folder = paths.join(root, file)
  names = folders.list_files(folder)
  images = {posixpath.splitext(name)[0]: name for name in names if _suffix(name) in tars.IMAGE_SUFFIXES}
  for name in filter(_is_side_file, names):
    stem = name.removesuffix(".json")
    if stem in images:
      yield posixpath.join(file, stem), get_url(paths.read(paths.join(folder, name))), [f"{file}/{images[stem]}"]


def get_url(data: bytes) -> str | None:
  """Returns the URL in the side file that img2dataset writes with an image; None if it cannot be read."""
  try:
    side = streams.load(data)
  except RecordError:
    return None
  return side.get("url") if isinstance(side, dict) else None


def _read_at(root: str, file: str, *place: Any) -> bytes:
  path = paths.join(root, file)
  if not place:
    return paths.read(path)
  first, second = place
  if isinstance(second, int):
    return paths.read(path, first, second)
  data = parquet.get_bytes(parquet.Row(path, first).read().get(second))
  if data is None:
    raise RecordError("image_missing", "image", f"{file}, row {first} has no image: it was not downloaded")
  return data
