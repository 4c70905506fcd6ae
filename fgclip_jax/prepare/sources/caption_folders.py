"""Finds the files of captions in a folder: an ImageFolder, Parquet files, or what `datasets` saved.

| folder | files |
|---|---|
| ImageFolder of Hugging Face | `metadata.jsonl`, `metadata.csv` or `metadata.parquet`, beside the images |
| Parquet of Hugging Face | `train-00000-of-00002.parquet` in it or in its `data`, or `train/0000.parquet` |
| `save_to_disk` | those that `state.json` lists; of several splits, `dataset_dict.json` lists the folders |
"""

import json
import re
from typing import Any

from fgclip_jax.prepare.sources import known_forms
from fgclip_jax.storage import folders, paths, streams

SUFFIXES = (*streams.SUFFIXES, ".jsonlines", ".ndjson", ".parquet", ".arrow")
_METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_SHARD = re.compile(r"(?P<split>.+?)-\d{5}-of-\d{5}.*\.parquet", re.IGNORECASE)


def find(folder: str, split: str | None, command: str) -> tuple[list[str], str | None]:
  """Returns the files of captions of a folder, and the split that was chosen by the folder's own division, if any.

  Args:
    folder: the folder.
    split: the split to take; None: the only one.
    command: see `caption_files.find`.

  Raises:
    ValueError: the folder is of another form, or has several splits or not the one asked for.
  """
  names = _list(folder)
  if found := [name for name in _METADATA if name in names]:
    return [paths.join(folder, found[0])], None
  if "state.json" in names:
    return [paths.join(folder, name) for name in _saved_files(folder)], None
  if "dataset_dict.json" in names:
    splits = _read_json(paths.join(folder, "dataset_dict.json")).get("splits")
    inner = [name for name in splits if isinstance(name, str) and name in names] if isinstance(splits, list) else []
    chosen = _choose(folder, {name: [name] for name in inner}, split)
    return [paths.join(folder, chosen, name) for name in _saved_files(paths.join(folder, chosen))], chosen
  if advice := known_forms.name_folder(folder, names, command):
    raise ValueError(advice)
  if splits := _image_folder_splits(folder, names) or _parquet_splits(folder, names):
    chosen = _choose(folder, splits, split)
    return [paths.join(folder, name) for name in splits[chosen]], chosen
  files = [name for name in names if name.lower().removesuffix(".gz").endswith(SUFFIXES)]
  which = f"one of its files, e.g. {paths.join(folder, files[0])}" if files else "the file of captions"
  raise ValueError(f"{folder} is a folder without {', '.join(_METADATA)}, state.json or Parquet files: give {which}")


def _saved_files(folder: str) -> list[str]:
  """The Arrow files of a data set that `save_to_disk` wrote, in order: others beside them are caches."""
  path = paths.join(folder, "state.json")
  entries = _read_json(path).get("_data_files")
  names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries or ()]
  if not names or not all(isinstance(name, str) and "/" not in name and name.endswith(".arrow") for name in names):
    raise ValueError(f"{path} lists no Arrow files in its folder (`_data_files`): save the data set again")
  return [str(name) for name in names]


def _image_folder_splits(folder: str, names: list[str]) -> dict[str, list[str]]:
  """The files of metadata one level below a folder, by split."""
  found = {}
  for name in names:
    if "." not in name and paths.is_folder(paths.join(folder, name)):
      held = _list(paths.join(folder, name))
      if file := next((file for file in _METADATA if file in held), None):
        found[name] = [f"{name}/{file}"]
  return found


def _parquet_splits(folder: str, names: list[str]) -> dict[str, list[str]]:
  """The Parquet files in a folder, or one level below it, by split."""
  found: dict[str, list[str]] = {}
  for name in names:
    inner = [name]
    if "." not in name and paths.is_folder(paths.join(folder, name)):
      inner = [f"{name}/{each}" for each in _list(paths.join(folder, name))]
    for each in inner:
      parent, _, file = each.rpartition("/")
      if file.lower().endswith(".parquet"):
        match = _SHARD.fullmatch(file)
        found.setdefault(match["split"] if match else parent or "train", []).append(each)
  return found


def _choose(folder: str, splits: dict[str, list[str]], split: str | None) -> str:
  if split is None and len(splits) == 1:
    return next(iter(splits))
  if split not in splits:
    wanted = f"no split {split!r}" if split else "several splits"
    raise ValueError(f"{folder} has {wanted}: choose one of {', '.join(splits) or 'none'} (--from_split)")
  return split


def _list(folder: str) -> list[str]:
  return [name for name in paths.list_folder(folder) if not folders.is_hidden(name)]


def _read_json(path: str) -> dict[str, Any]:
  try:
    value = json.loads(paths.read(path))
  except (ValueError, RecursionError) as error:
    raise ValueError(f"{path} is not JSON: {error}") from error
  if not isinstance(value, dict):
    raise ValueError(f"{path} must be a JSON object, got {value!r:.80}")
  return value
