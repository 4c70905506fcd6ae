"""What lies in a data set folder beside its shards, so that TensorFlow Datasets reads it, and what it holds is known.

| file | what it says |
|---|---|
| `features.json` | the schema of a record, for TensorFlow Datasets |
| `dataset_info.json` | name, version, splits, records of each shard; also read by TensorFlow Datasets |
| `info.json` | the data set's own facts: the tokenizer of its token ids, where its splits come from, `record_version` |
| `checksums.json` | of each shard its size in bytes and its SHA-256 |
| `index/` | where records stand in shards, for reading from object storage (`remote.py`) |

`record_version` is 2 where records may hold sets of captions, or more than ten negatives; where it is absent, it is 1.

`tfds.builder_from_directory(FOLDER).as_data_source(split)` reads such a folder without TensorFlow, and
`tfds.data_source(NAME, data_dir=ROOT)` one that lies at `ROOT/NAME/1.0.0` and has a name in lower case.
"""

import dataclasses
import hashlib
import json
import os
import re
from typing import Any, NamedTuple, cast

from fgclip_jax.data import record
from fgclip_jax.data.example_message import MAX_BYTES
from fgclip_jax.data.record import DEFAULT_LANGUAGE
from fgclip_jax.storage import atomic, paths, workers
from fgclip_jax.storage.damaged_shard import DamagedShard
from fgclip_jax.storage.errors import first_line
from fgclip_jax.storage.skip_report import printable

VERSION = "1.0.0"  # of the records' schema, as TensorFlow Datasets count versions
RECORD_VERSION = 2  # the newest that is read and written here
INFO, DATASET_INFO, CHECKSUMS = "info.json", "dataset_info.json", "checksums.json"
_MAX_BYTES = 64 << 20  # of such a file
_DESCRIPTION = "Images with short and long captions, and regions with captions and hard negatives, for FG-CLIP."
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"


@dataclasses.dataclass(frozen=True)
class Shard:
  """A finished shard.

  Attributes:
    records: how many it holds.
    content: the bytes of its records.
    size: the bytes of its file.
    sha256: the hexadecimal SHA-256 of its file.
  """

  records: int
  content: int
  size: int
  sha256: str


def read_name(folder: str) -> str | None:
  """The name of the data set in a folder; None where there is none."""
  name = _read(folder, DATASET_INFO).get("name")
  return name if isinstance(name, str) else None


def read_splits(folder: str) -> dict[str, list[int]]:
  """How many records each shard of each split is said to have; empty where nothing was prepared.

  Raises:
    ValueError: the description is damaged; the message names the file. Shards can be read without it.
  """
  return {split: found.lengths for split, found in _read_splits(folder).items()}


def read_info(folder: str) -> dict[str, Any]:
  """The data set's own facts; empty if there are none."""
  return _read(folder, INFO)


class Facts(NamedTuple):
  """What is known of a split's records.

  Attributes:
    tokenizer: the name of the tokenizer that made their token ids; None: it is not known.
    languages: the codes of their captions' languages, sorted.
  """

  tokenizer: str | None
  languages: tuple[str, ...]


def read_facts(folder: str, split: str) -> Facts:
  """What is known of a split's records; of earlier versions, which know no language, they are in English.

  Raises:
    ValueError: `info.json` is damaged.
  """
  info = read_info(folder)
  sources = info.get("sources")
  own = sources.get(split) if isinstance(sources, dict) else None
  own = own if isinstance(own, dict) else {}
  languages = own.get("languages") or {DEFAULT_LANGUAGE: 0}
  if not isinstance(languages, dict):
    raise ValueError(f"{paths.join(folder, INFO)} is damaged (languages of split {split!r}); run `prepare` again")
  return Facts(own.get("tokenizer", info.get("tokenizer")), tuple(sorted(languages)))


def check_version(folder: str) -> int:
  """Returns the version of a folder's records: 1, or 2 where they may hold sets of captions.

  Raises:
    ValueError: this program is too old to read them, or `info.json` is damaged.
  """
  version = read_info(folder).get("record_version", 1)
  if not isinstance(version, int) or isinstance(version, bool) or version < 1:
    raise ValueError(
      f"{paths.join(folder, INFO)} is damaged (record_version must be a number from 1, got {version!r:.80}); "
      "run `prepare` again"
    )
  if version > RECORD_VERSION:
    raise ValueError(
      f"{folder!r} holds records of version {version}, this program reads up to {RECORD_VERSION}: "
      "update fgclip_jax, or run its own `prepare` again"
    )
  return version


def write_info(folder: str, info: dict[str, Any]) -> None:
  """Writes the data set's own facts."""
  _save(folder, INFO, info)


def add_splits(folder: str, name: str, splits: dict[str, list[Shard]]) -> None:
  """Describes splits whose shards are finished, and keeps what is known of the others."""
  known = _read_splits(folder)
  for split, shards in splits.items():
    known[split] = _Split([shard.records for shard in shards], sum(shard.content for shard in shards))
  _write_dataset_info(folder, name, known)
  sums = {file: sum for file, sum in _read(folder, CHECKSUMS).items() if _split_of(file) not in splits}
  for split, shards in splits.items():
    for number, shard in enumerate(shards):
      file = os.path.basename(shard_path("", name, split, number, len(shards)))
      sums[file] = {"bytes": shard.size, "sha256": shard.sha256}
  _save(folder, CHECKSUMS, dict(sorted(sums.items())))


def remove_split(folder: str, split: str) -> None:
  """Removes a split's shards and everything that describes them."""
  known = _read_splits(folder)
  if split in known:
    del known[split]
    _write_dataset_info(folder, read_name(folder) or "", known)
    sums = {file: sum for file, sum in _read(folder, CHECKSUMS).items() if _split_of(file) != split}
    _save(folder, CHECKSUMS, sums)
    info = read_info(folder)
    if info.get("sources", {}).pop(split, None):
      write_info(folder, info)
  for place in (folder, paths.join(folder, "index")):
    for entry in paths.list_folder(place) if paths.is_folder(place) else []:
      if _split_of(entry) == split:
        paths.remove(paths.join(place, entry))


def verify_shard(folder: str, entry: tuple[str, dict[str, Any]]) -> str | None:
  """Compares a shard with its entry in `checksums.json`; returns what is wrong, or None."""
  file, expected = entry
  path = paths.join(folder, file)
  workers.tick(expected["bytes"])
  if not paths.exists(path):
    return f"{path} is missing"
  if not paths.is_file(path):
    return f"{path} is no file"
  if paths.size(path) != expected["bytes"]:
    return f"{path} has {paths.size(path):,} bytes, it was written with {expected['bytes']:,}"
  if hash_file(path) != expected["sha256"]:
    return f"{path} is damaged: its SHA-256 is another than when it was written"
  if not paths.is_remote(path) and (largest := DamagedShard(path).largest) > MAX_BYTES:
    return f"{path} has a record that unpacks to {largest:,} bytes; at most {MAX_BYTES:,} are read of one"
  return None


def read_checksums(folder: str) -> dict[str, dict[str, Any]]:
  """Of each shard, by file name, its size in `bytes` and its `sha256`.

  Raises:
    ValueError: an entry is not of this form, or names no shard in the folder.
  """
  sums = _read(folder, CHECKSUMS)
  for file, entry in sums.items():
    found = match_shard(file)
    if not found or found["rest"] or not {"/", os.sep, "\0"}.isdisjoint(file):
      raise ValueError(f"{paths.join(folder, CHECKSUMS)}: {printable(file)!r} is not the name of a shard")
    size, digest = (entry.get("bytes"), entry.get("sha256")) if isinstance(entry, dict) else (None, None)
    if not isinstance(size, int) or not 0 <= size < 1 << 63 or not isinstance(digest, str):
      raise ValueError(f"{paths.join(folder, CHECKSUMS)}: {file} needs its `bytes` and its `sha256`")
  return sums


def hash_file(path: str) -> str:
  """The hexadecimal SHA-256 of a file."""
  with paths.open(path, "rb") as file:
    return hashlib.file_digest(cast(Any, file), "sha256").hexdigest()


@dataclasses.dataclass
class _Split:
  """The records of each shard, and the bytes of all records."""

  lengths: list[int]
  content: int


def _read_splits(folder: str) -> dict[str, _Split]:
  info = _read(folder, DATASET_INFO)
  try:
    splits = {
      split["name"]: _Split([int(length) for length in split.get("shardLengths", [])], int(split.get("numBytes", 0)))
      for split in info.get("splits", [])
    }
    if any(not 0 <= length < 2**40 for split in splits.values() for length in split.lengths):
      raise ValueError("a shard cannot have so many records")
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    message = f"{paths.join(folder, DATASET_INFO)} is damaged (in `splits`: {error!r:.80}); run `prepare` again"
    raise ValueError(message) from error
  return splits


def _split_of(entry: str) -> str | None:
  """The split of a shard, of its index or of a shard half written, by its name."""
  found = match_shard(entry)
  return found["split"] if found else None


def _write_dataset_info(folder: str, name: str, splits: dict[str, _Split]) -> None:
  if not splits:
    for file in (DATASET_INFO, "features.json", CHECKSUMS):
      paths.remove(paths.join(folder, file))
    return
  import tensorflow_datasets as tfds

  core: Any = tfds.core  # imported when first used, which type checkers do not see
  with atomic.scratch() as scratch:  # TensorFlow Datasets writes to fewer kinds of storage than we do
    identity = core.dataset_info.DatasetIdentity(
      name=name, version=core.Version(VERSION), data_dir=scratch, module_name=""
    )
    info = core.DatasetInfo(builder=identity, features=record.features(), description=_DESCRIPTION)
    info.set_file_format(core.FileFormat.ARRAY_RECORD)
    template = core.ShardedFileTemplate(
      data_dir=scratch, template=_TEMPLATE, dataset_name=name, filetype_suffix="array_record"
    )
    found = [
      core.SplitInfo(
        name=split,
        shard_lengths=facts.lengths,
        num_bytes=facts.content,
        filename_template=template.replace(split=split),
      )
      for split, facts in sorted(splits.items())
    ]
    info.set_splits(core.splits.SplitDict(found))
    info.write_to_directory(scratch)
    for file in ("features.json", DATASET_INFO):
      with open(os.path.join(scratch, file), "rb") as stream:
        paths.write(paths.join(folder, file), stream.read())


def _read(folder: str, file: str) -> dict[str, Any]:
  path = paths.join(folder, file)
  try:
    data = paths.read(path, 0, _MAX_BYTES + 1)
    value = json.loads(data) if len(data) <= _MAX_BYTES else None
  except FileNotFoundError:
    return {}
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is damaged ({first_line(error)}); run `prepare` again") from error
  if not isinstance(value, dict):
    raise ValueError(f"{path} is damaged (it holds no JSON object); run `prepare` again")
  return value


def _save(folder: str, file: str, value: dict) -> None:
  paths.write(paths.join(folder, file), (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


_SHARD = re.compile(
  r"(?P<name>.+)-(?P<split>[A-Za-z0-9_]+)\.array_record-(?P<index>\d{5})-of-(?P<count>\d{5})(?P<rest>\..+)?"
)


def shard_path(folder: str, name: str, split: str, index: int, count: int) -> str:
  """The path of one shard, named as TensorFlow Datasets names them."""
  return paths.join(folder, f"{name}-{split}.array_record-{index:05d}-of-{count:05d}")


def match_shard(entry: str) -> re.Match | None:
  """Takes the name of a shard apart into `name`, `split`, `index`, `count` and `rest`.

  `rest` is what follows the name in that of a shard's companion, such as an unfinished copy: `.tmp`.
  """
  return _SHARD.fullmatch(entry)


# by the ending of a file's name: what people have in place of a data set folder, and the command that reads it
_OTHER_FORMATS = {
  **dict.fromkeys((".csv", ".tsv", ".json", ".jsonl", ".parquet"), ("a table of captions", " pairs")),
  **dict.fromkeys((".tar", ".tgz"), ("a WebDataset", " webdataset")),
  **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp"), ("pictures", "")),
  **dict.fromkeys((".tfrecord", ".arrow"), ("a data set of another program", "")),
}


def _what_is_there(path: str) -> tuple[str, str]:
  """What stands where a data set folder is looked for, and the command of `prepare` that reads it; empty: nothing."""
  is_file, is_folder = paths.is_file(path), paths.is_folder(path)
  names = paths.list_folder(path) if is_folder else [path] if is_file else []
  if is_folder and {"model.json", "config.json"} & set(names):
    return "a model or run folder", ""
  endings = (os.path.splitext(name.removesuffix(".gz"))[1].lower() for name in names)
  found = next((_OTHER_FORMATS[ending] for ending in endings if ending in _OTHER_FORMATS), None)
  if found is None and not is_folder:
    found = ("a file" if is_file else "neither a file nor a folder", "") if paths.exists(path) else None
  return found or ("", "")


def find_shards(folder: str, split: str) -> list[str]:
  """The shards of a split, in order.

  Raises:
    FileNotFoundError: no such folder or no shard of that split (the message lists the splits there are).
    ValueError: a shard of the set is missing, or its records are newer than this program.
  """
  if not paths.is_folder(folder):
    there, command = _what_is_there(folder)
    message = f"no data set folder at {folder!r}{there and f', which is {there}'}"
    raise FileNotFoundError(f"{message}; make one with `python -m fgclip_jax.prepare{command}`")
  found, splits = {}, set()
  for entry in paths.list_folder(folder):
    match = match_shard(entry)
    if match and not match["rest"]:
      splits.add(match["split"])
      if match["split"] == split:
        found.setdefault((match["name"], int(match["count"])), []).append(int(match["index"]))
  if not found:
    has = f"it has the splits {sorted(splits)}"
    if not splits:
      there, command = _what_is_there(folder)
      has = "it has no ArrayRecord shard at all"
      has += f" ({there}: `python -m fgclip_jax.prepare{command}` makes a data set)" if there else ""
    raise FileNotFoundError(f"no shard of split {split!r} in {folder!r}: {has}")
  if len(found) > 1:
    raise ValueError(f"{folder!r} holds several sets of shards of split {split!r}: {sorted(found)}; keep one")
  (((name, count), indices),) = found.items()
  missing = sorted(set(range(count)) - set(indices))
  if missing:
    raise ValueError(f"{folder!r}, split {split!r}: shards {missing} of {count} are missing; run `prepare` again")
  check_version(folder)
  return [shard_path(folder, name, split, index, count) for index in range(count)]
