"""The pictures of an index's sources: folders, lists, img2dataset's tar files, record folders, outputs of `embed`."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow
import pyarrow.parquet
from jaxtyping import Float32

from fgclip_jax.data import record, shards
from fgclip_jax.inference import image_listing
from fgclip_jax.storage import paths, tars
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Skip

EMBEDDINGS = ".parquet"
Box = tuple[float, float, float, float]


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture of a source.

  Attributes:
    name: within the source.
    stamp: changes when the picture changes, as far as can be told without reading it.
    read: gives its bytes, or the path of its file; raises `RecordError`.
    boxes: of its regions, where the source knows them.
    vector: what `embed` has made of it, where the source is its output.
  """

  name: str
  stamp: str
  read: Callable[[], bytes | str]
  boxes: Callable[[], list[Box]] | None = None
  vector: Float32[np.ndarray, " D"] | None = None


def find(given: str, split: str, skip: Callable[[Skip], object]) -> Iterator[Picture]:
  """The pictures of a source, in an order that depends on their names alone.

  Args:
    given: a folder, a pattern, a .txt list of paths, one picture, a .tar file, a record folder, or a .parquet file.
    split: of a record folder.
    skip: is called with what cannot be used.

  Raises:
    FileNotFoundError, ValueError: there is no such source.
  """
  if shards.is_record_folder(given):
    return _find_records(given, split)
  if given.lower().endswith(".tar"):
    return _find_members(given, skip)
  if given.lower().endswith(EMBEDDINGS):
    return _find_rows(given)
  return _find_files(given, skip)


def read(given: str, name: str, split: str) -> bytes:
  """The bytes of a picture of a source.

  Raises:
    FileNotFoundError: it is gone, or the source has no pictures.
  """
  if _is_files(given):
    return paths.read(paths.join(given, name) if paths.is_folder(given) else name)
  for picture in find(given, split, lambda skip: None):
    if picture.name == name and picture.vector is None:
      data = picture.read()
      return paths.read(data) if isinstance(data, str) else data
  raise FileNotFoundError(f"{given!r} has no picture {name!r} any more")


def _is_files(given: str) -> bool:
  return not given.lower().endswith((".tar", EMBEDDINGS)) and not shards.is_record_folder(given)


def _find_files(given: str, skip: Callable[[Skip], object]) -> Iterator[Picture]:
  folder = given if paths.is_folder(given) else ""
  with tempfile.TemporaryDirectory() as temporary:
    listing = os.path.join(temporary, "listing.jsonl")
    image_listing.write(listing, given, folder)
    with open(listing, encoding="utf-8") as file:
      for line in file:
        item = json.loads(line)
        if len(item) > 2:
          skip(Skip(item[1], f"file: {item[2]}", place=item[0]))
          continue
        path = paths.join(folder, item[0]) if folder else item[0]
        try:
          # objects are not asked for one by one: there are many, and a request takes longer than to embed a picture
          stamp = "" if paths.is_remote(path) else json.dumps(paths.fingerprint(path), sort_keys=True)
        except (OSError, ValueError):
          stamp = ""  # reading it says why it cannot be used
        yield Picture(item[0], stamp, lambda path=path: path)


def _find_members(given: str, skip: Callable[[Skip], object]) -> Iterator[Picture]:
  changed = json.dumps(paths.fingerprint(given), sort_keys=True)
  try:
    for _, sample in tars.scan(given):
      suffix = sample.find_image()
      if suffix is None:
        skip(Skip.of(sample.missing_image(), place=sample.key))
        continue
      yield Picture(f"{sample.key}.{suffix}", changed, lambda sample=sample, suffix=suffix: sample.read(suffix))
  except RecordError as error:
    raise ValueError(f"{given!r} breaks off ({error}): repair it first") from error


def _find_records(given: str, split: str) -> Iterator[Picture]:
  found = shards.Records(given, split)
  changed = json.dumps([paths.fingerprint(path) for path in found.paths], sort_keys=True)

  def decode(number: int) -> record.Record:
    return record.decode(found[number])

  for number in range(len(found)):
    try:
      name = decode(number).id
    except RecordError:
      name = found.where(number)  # reading it says why it cannot be used
    yield Picture(
      name,
      changed,
      lambda number=number: decode(number).image,
      lambda number=number: [region.box for region in decode(number).regions],
    )


def _find_rows(given: str) -> Iterator[Picture]:
  changed = json.dumps(paths.fingerprint(given), sort_keys=True)
  try:
    with paths.open(given) as file:
      for batch in pyarrow.parquet.ParquetFile(file).iter_batches(columns=["id", "embedding"]):
        vectors = np.stack(batch.column("embedding").to_numpy(zero_copy_only=False)).astype(np.float32)
        for name, vector in zip(batch.column("id").to_pylist(), vectors, strict=True):
          yield Picture(name, changed, lambda: b"", vector=vector)
  except (pyarrow.ArrowException, KeyError, ValueError) as error:
    raise ValueError(f"{given!r} is no Parquet file of `embed` ({error})") from error


def embedded_by(given: str) -> str | None:
  """The fingerprint of the model that made a file of `embed`, by the report beside it; None for other sources.

  Raises:
    ValueError: there is no such report.
  """
  if not given.lower().endswith(EMBEDDINGS):
    return None
  for path in (f"{given}.report.json", f"{os.path.splitext(given)[0]}.report.json"):
    if not paths.exists(path):
      continue
    try:
      return str(json.loads(paths.read(path))["settings"]["model"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
      raise ValueError(f"{path!r} is no report of `embed` ({error})") from error
  raise ValueError(f"{given!r} has no report of `embed` beside it, which says what model it is of")
