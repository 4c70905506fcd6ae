"""Finds data sets of TensorFlow Datasets that are on this machine in ArrayRecord files; TensorFlow is not needed."""

import os
from collections.abc import Sequence
from typing import Any

from fgclip_jax.storage.errors import first_line
from fgclip_jax.storage.skip_report import printable


def find_files(dataset: str, data_dir: str | None, split: str, fields: Sequence[str]) -> tuple[str, tuple[str, ...]]:
  """Finds a split of a data set, and checks that it has some fields.

  Args:
    dataset: its folder (with `features.json`), or its name, such as `coco_captions`.
    data_dir: the folder of named data sets; None: `~/tensorflow_datasets`.
    split: the split to read.
    fields: the names of fields that it must have; nested names are written with `/`.

  Returns:
    The data set's folder, and the split's ArrayRecord files.

  Raises:
    FileNotFoundError: there is no such data set or split on this machine.
    ValueError: it has no such fields, or its files are no ArrayRecord files.
  """
  import tensorflow_datasets as tfds

  try:
    if os.path.isfile(os.path.join(dataset, "features.json")):
      builder = tfds.builder_from_directory(dataset)
    else:
      builder = tfds.builder(dataset, data_dir=data_dir)
  except (tfds.core.DatasetNotFoundError, AssertionError, FileNotFoundError) as error:
    raise FileNotFoundError(f"no data set {dataset!r} of TensorFlow Datasets: {str(error).strip()}") from error
  except OSError:
    raise
  except Exception as error:  # the library looks at nothing that it reads: a wrong field raises what comes
    message = printable(first_line(error))[:300]
    raise ValueError(f"{dataset!r}: dataset_info.json or features.json is damaged: {message}") from error
  folder = str(builder.data_path)
  if split not in builder.info.splits:
    known = ", ".join(builder.info.splits) or "none: it has to be made first, see `tfds build`"
    raise FileNotFoundError(f"no split {split!r} in {folder}; there are {known}")
  files = tuple(str(path) for path in builder.info.splits[split].filepaths)
  if not all(".array_record" in os.path.basename(file) for file in files):
    advice = f"make it again with `tfds build {builder.name} --file_format=array_record`"
    raise ValueError(f"{folder} does not lie in ArrayRecord files, which need no TensorFlow: {advice}")
  flat = sorted(_flatten(builder.info.features))
  for name in fields:
    if name not in flat:
      raise ValueError(f"{folder} has no field {name!r}; there are {', '.join(flat)}")
  return folder, files


def _flatten(features: Any, prefix: str = "") -> list[str]:
  """Lists the names of all fields."""
  inner = getattr(features, "feature", features)  # a sequence has the feature of its elements
  if not hasattr(inner, "keys"):
    return [prefix.removesuffix("/")]
  return [name for key in inner.keys() for name in _flatten(inner[key], f"{prefix}{key}/")]
