"""What a model with text-conditioned pooling can do beside: see `fgclip_jax/models/text_pooling.py`."""

import functools
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float32
from numpy.typing import ArrayLike

from fgclip_jax.inference import programs
from fgclip_jax.models import params as parameters
from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.fgclip import unit_length

Dense = Float32[np.ndarray, "B h w D"] | Sequence[Float32[np.ndarray, "_ _ D"]]  # as `encode_dense` returns them
_TEXTS = 256  # compared with a picture at a time
_PATCHES = 128  # of pictures of any shape, whose number of patches is filled up to a multiple of it


class TextPoolingMethods:
  """The methods of `FGCLIP` that need a model with text-conditioned pooling.

  They take dense features of pictures, as `encode_dense` returns them, and embeddings of texts of any kind.
  """

  config: ModelConfig
  params: parameters.Params
  _setup: programs.Setup

  def conditioned_similarity(self, dense: Dense, text: ArrayLike) -> Float32[np.ndarray, "B N"]:
    """Cosines, -1 to 1, of each picture's dense features, pooled as each text asks, with that text.

    Args:
      dense: [B, h, w, D], or a list that has [h, w, D] for each picture.
      text: unit-length embeddings [N, D].

    Raises:
      ValueError: the model has no text pooling, or arrays of other shapes.
    """
    return np.stack([found for _, found in self._pooled(_cosines, dense, text)])

  def text_attention(self, dense: Dense, text: ArrayLike) -> list[Float32[np.ndarray, "N _ _"]]:
    """How much each text looks at each patch: for each picture the share of attention, the mean over heads.

    What a text's shares lack to 1 is the empty token's. Arguments and errors as of `conditioned_similarity`.
    """
    found = self._pooled(_shares, dense, text)
    return [share[:, : np.prod(grid)].reshape(-1, *grid) for grid, share in found]

  def patch_values(self, dense: Float32[np.ndarray, "*B h w D"]) -> Float32[np.ndarray, "*B h w D"]:
    """What texts would get that look at one patch alone: features of patches to compare with texts, unit length."""
    self._check(np.shape(dense), 3)
    return np.asarray(_values(self.params, jnp.asarray(dense, jnp.float32), setup=self._setup))

  def _check(self, shape: tuple[int, ...], axes: int) -> None:
    width = self.config.embedding_width
    if self.config.text_pooling is None:
      raise ValueError(
        "this model has no text-conditioned pooling: train one, with config.model_changes.text_pooling.heads and "
        "config.objective.text_conditioned"
      )
    if len(shape) < axes or shape[-1] != width:
      raise ValueError(f"needs features [{'h, w, ' * (axes == 3)}D] with D = {width}, got {list(shape)}")

  def _pooled(self, program, dense: Dense, text: ArrayLike) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """The grid of each picture, and what a program finds for it: an array that begins with all N texts."""
    text = np.asarray(text, np.float32)
    if text.ndim != 2 or not len(text):
      raise ValueError(f"needs embeddings of texts [N, D], got {list(text.shape)}")
    self._check(text.shape, 2)
    parts = [text[start : start + _TEXTS] for start in range(0, len(text), _TEXTS)]
    texts = [np.pad(part, ((0, _size(len(part)) - len(part)), (0, 0))) for part in parts]
    grids: list[tuple[int, int]] = []

    def start() -> Iterable[jax.Array]:
      for picture in dense:
        self._check(np.shape(picture), 3)
        grids.append(picture.shape[:2])
        patches = np.asarray(picture, np.float32).reshape(-1, picture.shape[-1])
        missing = -len(patches) % _PATCHES if self.config.vision.takes_patches else 0
        valid = np.arange(len(patches) + missing) < len(patches)
        patches = np.pad(patches, ((0, missing), (0, 0)))
        for part in texts:
          arguments = (patches[None], part[None], valid[None])
          programs.announce(*arguments)
          yield program(self.params, *arguments, setup=self._setup)

    found = programs.run_ahead(start())
    for number, first in enumerate(found):
      each = [first, *(next(found) for _ in parts[1:])]
      yield grids[number], np.concatenate([one[: len(part)] for one, part in zip(each, parts, strict=True)])


def _size(texts: int) -> int:
  """The number of texts that a program is compiled for: a power of two."""
  return 1 << max(texts - 1, 0).bit_length()


@functools.partial(jax.jit, static_argnames="setup")
def _cosines(params, patches, text, valid, *, setup):
  return parameters.build(setup.config, params, setup.runtime).text_cosines(patches, text, valid)[0]


@functools.partial(jax.jit, static_argnames="setup")
def _shares(params, patches, text, valid, *, setup):
  pooling = parameters.build(setup.config, params, setup.runtime).text_pooling
  return jnp.mean(pooling.weights(unit_length(patches), text, valid)[0], axis=0)


@functools.partial(jax.jit, static_argnames="setup")
def _values(params, dense, *, setup):
  return unit_length(parameters.build(setup.config, params, setup.runtime).text_pooling.values(unit_length(dense)))
