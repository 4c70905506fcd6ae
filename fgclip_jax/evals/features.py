"""Features of labelled images from a frozen model, for classifiers trained on top; files of features."""

import dataclasses
import os
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Float32, Int

from fgclip_jax.data.image import Mode
from fgclip_jax.evals.datasets.image_folders import Labelled
from fgclip_jax.evals.encoding import encode_images
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.inference.programs import find_mesh
from fgclip_jax.models import params
from fgclip_jax.storage import paths
from fgclip_jax.storage.skip_report import SkipReport

LAYERS = ("tower", "embedding")


@dataclasses.dataclass(frozen=True)
class Features:
  """Features of the pictures that could be used, not normalized, and the pictures' classes.

  Attributes:
    values: the features.
    labels: the class of each, as a number.
    ids: the name of each in reports.
  """

  values: Float32[np.ndarray, "N W"]
  labels: Int[np.ndarray, "N"]
  ids: Sequence[str]

  def take(self, rows: Int[np.ndarray, "n"]) -> "Features":
    """A selection of rows."""
    return Features(self.values[rows], self.labels[rows], [self.ids[int(row)] for row in rows])

  def join(self, other: "Features") -> "Features":
    """Concatenates two sets of features."""
    values, labels = (np.concatenate(pair) for pair in ((self.values, other.values), (self.labels, other.labels)))
    return Features(values, labels, [*self.ids, *other.ids])


def tower_of(model: FGCLIP) -> FGCLIP:
  """A model whose `encode_image(..., normalize=False)` returns the image tower's output before the projection.

  A model whose projection is part of the pooling, as in a ResNet, or that has none, as SigLIP, is returned as it is.
  """
  vision = model.config.vision
  if vision.pools_by_projection or not vision.has_projection:
    return model
  flat = params.flatten(model.params)
  name = "vision_projection/kernel"
  mesh = find_mesh(model.params)
  where = flat[name].sharding if mesh is None else jax.sharding.NamedSharding(mesh, jax.P())
  identity = jax.device_put(np.eye(vision.output_width, dtype=np.float32), where)
  config = model.config.replace(embedding_width=vision.output_width)
  tower = FGCLIP(config, params.unflatten(flat | {name: identity}), model.runtime)
  tower.trained_image_size = model.trained_image_size
  return tower


def extract(
  model: FGCLIP, data: Labelled, layer: str, skips: SkipReport, mode: Mode | None = None, progress: bool = False
) -> Features:
  """The features of pictures, read as a stream.

  Args:
    model: the model.
    data: the pictures.
    layer: `tower`, before the projection into the embedding space, or `embedding`, after it; neither of unit length.
    skips: counts pictures that cannot be used.
    mode: how images are made square; None: the model's own way.
    progress: shows a progress bar.

  Raises:
    ValueError: no picture can be used.
  """
  encoder = tower_of(model) if layer == "tower" else model
  values, kept = encode_images(encoder, data.pictures, skips, mode, progress, normalize=False)
  if not len(kept):
    raise ValueError(f"no picture can be used: {skips.summary(len(data.pictures))}")
  return Features(values, data.labels[kept], [data.ids[int(number)] for number in kept])


def read_npz(path: str) -> Features:
  """Features of a `.npz` file with `features` [N, W], finite numbers, and `labels` [N], whole numbers.

  Raises:
    FileNotFoundError, ValueError: the file is missing, or holds something else.
  """
  try:
    with paths.open(path) as opened, np.load(opened, allow_pickle=False) as file:
      missing = [key for key in ("features", "labels") if key not in file]
      if missing:
        raise ValueError(f"has no array {missing[0]!r}, only {', '.join(file.files)}")
      values, labels = file["features"], file["labels"]
  except (FileNotFoundError, PermissionError, IsADirectoryError, paths.NotRegularFileError):
    raise
  except Exception as error:  # zipfile, zlib and numpy raise many types; MemoryError for shapes that are not true
    reason = str(error) or type(error).__name__
    raise ValueError(f"{path!r} is no .npz file of `features` and `labels`: {reason}") from error
  if values.ndim != 2 or not np.issubdtype(values.dtype, np.floating) or not len(values):
    raise ValueError(f"{path!r}: `features` must be floats [N, W], got {values.dtype} {list(values.shape)}")
  if labels.shape != values.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
    raise ValueError(f"{path!r}: `labels` must be {len(values)} integers, got {labels.dtype} {list(labels.shape)}")
  if not np.isfinite(values).all():
    raise ValueError(f"{path!r}: `features` are not finite in row {int(np.argmin(np.isfinite(values).all(1)))}")
  name = os.path.basename(path)
  return Features(values.astype(np.float32), labels.astype(np.int64), [f"{name}/{row}" for row in range(len(values))])
