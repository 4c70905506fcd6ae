"""The compiled programs behind the public model: few sizes, on one device or spread over a mesh."""

import collections
import contextlib
import dataclasses
import functools
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from fgclip_jax.models import fgclip
from fgclip_jax.models import params as parameters
from fgclip_jax.models import pixels as levels
from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.roi_align import roi_align, roi_align_patches
from fgclip_jax.models.siglip import PatchRows
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.storage import paths

# Sizes that programs are compiled for: images, or rows of packed captions. Less than half of a call is padding.
CHUNKS = (1, 4, 16, 64)
# Tokens of a row where all of a call's captions fit into one; else rows are as long as the position table.
ROW_LENGTHS = (8, 16, 32, 64, 128)
IN_FLIGHT = 2  # chunks that are computed while the next one is made ready
CACHE_FOLDER = os.path.join("~", ".cache", "fgclip_jax", "xla")

_listener: Callable[..., None] | None = None

Device = str | jax.Device | jax.sharding.Mesh


@dataclasses.dataclass(frozen=True)
class Setup:
  """What compiled programs depend on beside the shapes of their arguments."""

  config: ModelConfig
  runtime: Runtime
  mesh: jax.sharding.Mesh | None

  @property
  def sizes(self) -> tuple[int, ...]:
    """The sizes of chunks: multiples of the devices, and on several devices as much for each, for up to eight."""
    devices = self.mesh.size if self.mesh else 1
    return tuple(sorted({-(-chunk * min(devices, 8) // devices) * devices for chunk in CHUNKS}))

  def shard_batch(self, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Rows of a batch, divided over all devices of the mesh."""
    return self._constrain(arrays, lambda mesh: jax.P(mesh.axis_names))

  def gather(self, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Results on every device, so that every process can read them."""
    return self._constrain(arrays, lambda mesh: jax.P())

  def _constrain(self, arrays, spec):
    if self.mesh is None:
      return arrays
    sharding = jax.sharding.NamedSharding(self.mesh, spec(self.mesh))
    return tuple(jax.lax.with_sharding_constraint(array, sharding) for array in arrays)


def split(count: int, sizes: Sequence[int]) -> list[int]:
  """The sizes of the chunks that hold `count` rows, largest first; the last one may be padded, by less than half."""
  chunks = []
  while count > 0:
    enough = next((size for size in sizes if size >= count), sizes[-1])
    smaller = max((size for size in sizes if size <= count), default=enough)
    chunks.append(enough if smaller < count < enough < 2 * count else smaller)
    count -= chunks[-1]
  return chunks


def row_length(tokens: int, longest: int) -> int:
  """The length of rows for captions of so many tokens in all, in a table of `longest`."""
  return next((length for length in ROW_LENGTHS if tokens <= length < 0.6 * longest), longest)


def run_ahead(outputs: Iterable[Any]) -> Iterator[Any]:
  """The results of programs that a generator starts, in order, on the host; some are under way meanwhile."""
  started: collections.deque = collections.deque()
  for output in outputs:
    started.append(output)
    if len(started) > IN_FLIGHT:
      yield jax.tree.map(np.asarray, started.popleft())
  while started:
    yield jax.tree.map(np.asarray, started.popleft())


@contextlib.contextmanager
def announced(listener: Callable[..., None]) -> Iterator[None]:
  """Calls a function with the arguments of every program of a model, from the thread that is about to start it."""
  global _listener
  _listener = listener
  try:
    yield
  finally:
    _listener = None


def announce(*arguments: np.ndarray) -> None:
  """Reports that a program is about to start."""
  if _listener is not None:
    _listener(*arguments)


def place(params: parameters.Params, device: Device | None) -> parameters.Params:
  """Parameters as float32 on a device, or whole on every device of a mesh; None leaves them where they are.

  Raises:
    ValueError: there is no such device; the message lists those there are.
  """
  if isinstance(device, jax.sharding.Mesh):
    params = jax.device_put(params, jax.sharding.NamedSharding(device, jax.P()))
  elif device is not None:
    params = jax.device_put(params, find_device(device))
  return jax.tree.map(_to_float32, params)


def find_device(device: str | jax.Device) -> jax.Device:  # pyright: ignore[reportInvalidTypeForm] - it is a class
  """The device of a name: a platform and, after a colon, its number among those of this process (else the first).

  Raises:
    ValueError: there is no such device; the message lists those there are.
  """
  if isinstance(device, jax.Device):
    return device
  platform, _, number = device.partition(":")
  try:
    return jax.local_devices(backend=platform)[int(number or 0)]
  except (RuntimeError, ValueError, IndexError) as error:
    there = ", ".join(f"{found.platform}:{at}" for at, found in enumerate(jax.local_devices()))
    raise ValueError(f"no device {device!r}: there are {there} (and cpu)") from error


def all_devices() -> jax.sharding.Mesh:
  """A mesh of all devices of this process."""
  devices = np.asarray(jax.local_devices())
  return jax.sharding.Mesh(devices, ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def find_mesh(params: parameters.Params) -> jax.sharding.Mesh | None:
  """The mesh of several devices that parameters live on, if they do."""
  sharding = jax.tree.leaves(params)[0].sharding
  several = isinstance(sharding, jax.sharding.NamedSharding) and sharding.mesh.size > 1
  return cast(jax.sharding.Mesh, sharding.mesh) if several else None


def use_compilation_cache(folder: str = "auto") -> None:
  """Keeps compiled programs in a folder; `auto`: the user's cache folder on accelerators, none on CPUs.

  A folder that cannot be written (a read-only home, a full disk) is no reason to fail: a line says so.
  """
  if folder == "auto":
    folder = CACHE_FOLDER if jax.default_backend() != "cpu" else ""
  if not folder:
    return
  paths.check(folder, "the compilation cache", paths.ORBAX, write=True)  # JAX goes by the same library as Orbax
  if not paths.is_remote(folder):
    folder = os.path.expanduser(folder)
    try:
      os.makedirs(folder, exist_ok=True)
      with tempfile.TemporaryFile(dir=folder) as file:
        file.write(b"\0" * 4096)
    except OSError as error:
      print(
        f"compiled programs are not kept for the next run: {folder} cannot be written ({error.strerror})", flush=True
      )
      return
  jax.config.update("jax_compilation_cache_dir", folder)


@functools.partial(jax.jit, static_argnames=("setup", "dense", "normalize"))
def encode_pixels(params, pixels, *, setup, dense, normalize):
  """Embeddings [B, D] of images, of unit length or raw; with `dense`, also raw patch features [B, h, w, D]."""
  (pixels,) = setup.shard_batch(pixels)
  if pixels.dtype == jnp.uint8:
    pixels = levels.normalize(pixels, setup.config.vision.pixels)
  image, patches = parameters.build(setup.config, params, setup.runtime).image_features(pixels)
  (image,) = setup.gather(_finish(image, normalize))
  return image, setup.gather(patches)[0] if dense else None


@functools.partial(jax.jit, static_argnames=("setup", "dense", "normalize"))
def encode_patches(params, patches, segment, place, slot, *, setup, dense, normalize):
  """`encode_pixels` of pictures of any shape; the arguments are those of a `PatchChunk`, dense features [B, P, D]."""
  patches, segment, place = setup.shard_batch(patches, segment, place)
  rows = PatchRows(levels.normalize_patches(patches, segment, setup.config.vision.pixels), segment, place)
  image, found = parameters.build(setup.config, params, setup.runtime).patch_features(rows, slot, dense)
  (image,) = setup.gather(_finish(image, normalize))
  return image, setup.gather(found)[0] if dense else None


@functools.partial(jax.jit, static_argnames=("setup", "kind", "normalize"))
def encode_rows(params, tokens, segment, position, row, end, *, setup, kind, normalize):
  """Embeddings [N, D] of captions of one `TextKind` that end at `[row, end]` of packed rows."""
  tokens, segment, position = setup.shard_batch(tokens, segment, position)
  model = parameters.build(setup.config, params, setup.runtime)
  return setup.gather(_finish(model.text_features(tokens, segment, position, row, end, kind), normalize))[0]


@functools.partial(jax.jit, static_argnames="normalize")
def pool(dense, boxes, *, normalize):
  """Embeddings [B, K, D] of boxes, pooled from patch features of any length."""
  return _finish(roi_align(dense, boxes), normalize)


@functools.partial(jax.jit, static_argnames="normalize")
def pool_patches(dense, grid, boxes, *, normalize):
  """`pool` from patch features [B, P, D] of pictures of any shape, row by row over each one's grid [B, 2]."""
  return _finish(roi_align_patches(dense, grid, boxes), normalize)


@functools.partial(jax.jit, static_argnames="normalize")
def finish(features, *, normalize):
  """Features as float32, of unit length or as they are."""
  return _finish(features, normalize)


def _finish(features, normalize):
  return fgclip.unit_length(features) if normalize else features.astype(jnp.float32)


def _to_float32(leaf: Any) -> jax.Array:
  done = isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32
  return leaf if done else jnp.asarray(leaf, jnp.float32)
