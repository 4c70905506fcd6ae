"""A model as its users have it: pictures and texts in, unit-length embeddings out.

```python
model = fgclip_jax.load("path/to/folder")
image = model.encode_image("picture.jpg")                        # [1, D]
text = model.encode_text(["a cat", "a dog"])                     # [2, D]
model.similarity(image, text)                                    # [1, 2], cosines
```
"""

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Float32
from numpy.typing import ArrayLike

from fgclip_jax.data import image as images
from fgclip_jax.data.tokenizers import Tokenizer, files, get_tokenizer
from fgclip_jax.inference import hub, inputs, programs, text_chunks, text_inputs
from fgclip_jax.inference.describe import describe, family
from fgclip_jax.inference.image_chunks import Chunk, make_chunks
from fgclip_jax.inference.pictures import Budget, PatchedImage, PatchReader, Reader, choose_budget, make_reader
from fgclip_jax.inference.text_pooling import TextPoolingMethods
from fgclip_jax.models import config as presets
from fgclip_jax.models import params as parameters
from fgclip_jax.models.attention import load_kernels
from fgclip_jax.models.config import TEXT_KINDS, ModelConfig, TextKind
from fgclip_jax.models.positions import resize
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.weights import formats

KINDS = TEXT_KINDS
DTYPES = ("float32", "bfloat16", "float16")

Vectors = Float32[np.ndarray, "B D"]
Pixels = Float32[np.ndarray, "B S S 3"] | list[PatchedImage]
Dense = Float32[np.ndarray, "B h w D"] | list[np.ndarray]  # a list has [h, w, D] for each image
Regions = Float32[np.ndarray, "B K D"] | list[np.ndarray]  # a list has [K, D] for each image


def load(
  path_or_name: str | os.PathLike,
  dtype: str = "float32",
  device: programs.Device | None = None,
  ema: bool = True,
  allow_pickle: bool = False,
  max_patches: Budget | None = None,
) -> "FGCLIP":
  """Loads a model.

  Args:
    path_or_name: a model of FG-CLIP, FG-CLIP 2, CLIP, SigLIP or SigLIP 2 in any format that
      `python -m fgclip_jax.convert` reads, one of our model folders, or a run folder, of which the newest checkpoint is
      taken; or else the `owner/name` of a model on the Hugging Face hub, which is downloaded once.
    dtype: what activations are computed in: `float32`, `bfloat16` or `float16`. Parameters are kept in float32.
    device: what to compute on: a device, its name (`cpu`, `gpu`, `gpu:1`, `tpu:3`), or a mesh, over which images and
      texts are then spread. None: JAX's default device.
    ema: takes the weights that a run has averaged over its steps, if it has; otherwise those of its last step.
    allow_pickle: reads weights in a pickle (`.bin`, `.pt`) too, without executing it; refused by default.
    max_patches: of a model that takes pictures of any shape, the most patches of a picture (16 x 16 pixels each in the
      published ones), to which it is scaled up or down: a number, or `dynamic`, 128 to 1,024 by the picture's own
      size. None: `dynamic` for an FG-CLIP 2, as it is published, and 256 for SigLIP 2.

  Raises:
    FileNotFoundError, ValueError: there is no model, or a broken one; the message names the file. No such device.
  """
  if dtype not in DTYPES:
    raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
  if isinstance(device, str):
    device = programs.find_device(device)  # a wrong name is told before gigabytes are read
  path = hub.find(os.fspath(path_or_name), allow_pickle)
  config, flat, _ = formats.read(path, ema, allow_pickle)
  config = config.replace(text={"tokenizer": files.locate(config.text.tokenizer, path)})
  params = programs.place(parameters.unflatten(flat), device)
  return FGCLIP(config, params, Runtime(dtype=jnp.dtype(dtype)), max_patches)


def list_presets() -> list[str]:
  """The names of the sizes of models, as configs take them: `--config=configs/stage2.py:NAME`."""
  return list(presets.PRESETS)


def preprocess(
  pictures: images.Picture | Sequence[images.Picture],
  config: ModelConfig,
  mode: str | None = None,
  max_patches: Budget | None = None,
) -> Pixels:
  """Images as a model of this size takes them: squared, scaled to its resolution and normalised.

  Args:
    pictures: a PIL image, the path or the bytes of an image file, an open one, a uint8 array [H, W, 3], or a sequence
      of those. A single image makes a batch of one.
    config: the model's.
    mode: `squash` (boxes stay fractions of the whole picture), `center_crop` or `pad`. None: as the model's folder
      says, else `squash` for an FG-CLIP and `center_crop` for a plain CLIP, as the published code does.
    max_patches: of a model that takes pictures of any shape, see `load`.

  Returns:
    float32 [B, S, S, 3]; of a model that takes pictures of any shape a list of `PatchedImage`, whose patches are uint8
    levels: the device normalises them.

  Raises:
    ImageError, FileNotFoundError, TypeError, ValueError: see `fgclip_jax.data.image.preprocess`.
  """
  inputs.check_ordered(pictures, "images")
  if config.vision.takes_patches:
    reader = make_reader(config, mode, max_patches)
    return list(cast(Iterable[PatchedImage], inputs.to_pixels(pictures, config, reader)))
  make_reader(config, mode, max_patches)  # refuses a budget
  return images.preprocess(pictures, config.vision.image_size, mode or config.resize, config.vision.pixels)


class FGCLIP(TextPoolingMethods):
  """A model with its parameters. Every `encode_*` takes any number of inputs and returns NumPy float32 of length one.

  Images are given as PIL images, paths, bytes, open files, uint8 arrays [H, W, 3], a list or an iterator of any of
  these, or batches [B, S, S, 3] of the model's own size: uint8, or normalised floats as `preprocess` makes them. They
  are decoded by threads while the device computes, so that an iterator over any number of files takes little memory.

  Attributes:
    config: the model's size.
    params: nested dict of float32 arrays, on the device.
    runtime: how it computes.
    trained_image_size: the side of the images that it was trained on, whatever `with_image_size` made of it since.
    max_patches: the patch budget of a picture, see `load`; None: it reads squares.
  """

  def __init__(
    self,
    config: ModelConfig,
    params: parameters.Params,
    runtime: Runtime = Runtime(),
    max_patches: Budget | None = None,
  ):
    """Makes a model of a config and parameters, e.g. those of a running training.

    What was compiled for one model serves every other of the same config, so this is cheap. Parameters that are
    sharded over a mesh are used where they are, and the work is spread over that mesh; in a run of several
    processes all of them must make the same calls.
    """
    self.config = config
    self.trained_image_size = config.vision.image_size
    # refuses a budget for squares
    make_reader(config, max_patches=max_patches)
    self._chosen = max_patches is not None
    self.max_patches = choose_budget(config, max_patches) if config.vision.takes_patches else None
    load_kernels()
    self.params = programs.place(params, None)
    mesh = programs.find_mesh(self.params)
    sharding = None if mesh is None else jax.sharding.NamedSharding(mesh, jax.P(mesh.axis_names))
    runtime = dataclasses.replace(runtime, dtype=jnp.dtype(runtime.dtype), remat="none", sharding=sharding)
    self.runtime = runtime
    self._setup = programs.Setup(config, runtime, mesh)

  def __repr__(self) -> str:
    vision = self.config.vision
    images = f"{vision.image_size} px" if self.max_patches is None else f"of {self.max_patches} patches"
    return describe(self.config, images, parameters.count(self.params), self.runtime.dtype.name)

  @property
  def tokenizer(self) -> Tokenizer:
    """The tokenizer that the config names."""
    return get_tokenizer(self.config.text.tokenizer)

  @property
  def batch_size(self) -> int:
    """The largest batch that is computed at once; multiples of it leave nothing to pad."""
    return self._setup.sizes[-1]

  def preprocess(
    self,
    pictures: images.Picture | Sequence[images.Picture],
    mode: str | None = None,
    max_patches: Budget | None = None,
  ) -> Pixels:
    """Images as this model takes them; see `fgclip_jax.preprocess`."""
    return preprocess(pictures, self.config, mode, self._budget(max_patches))

  def reader(self, mode: str | None = None, max_patches: Budget | None = None) -> Reader:
    """Makes pictures into what this model reads, one by one; arguments as of `preprocess`."""
    return make_reader(self.config, mode, self._budget(max_patches))

  def with_max_patches(self, max_patches: Budget) -> "FGCLIP":
    """The same model with another patch budget of pictures, see `load`."""
    return FGCLIP(self.config, self.params, self.runtime, choose_budget(self.config, max_patches))

  @property
  def published_budget(self) -> bool:
    """Whether pictures have the patch budget that the model was published with, and no other was asked for."""
    return self.max_patches == "dynamic" and not self._chosen

  def _budget(self, max_patches: Budget | None) -> Budget | None:
    return self.max_patches if max_patches is None else max_patches

  def with_image_size(self, size: int) -> "FGCLIP":
    """The same model for images of another side, in pixels: its image positions are interpolated (bicubic).

    Raises:
      ValueError: the side is not a multiple of the model's patches.
    """
    params, config = resize(self.params, self.config, size)
    resized = FGCLIP(config, params, self.runtime, self.max_patches)
    resized.trained_image_size = self.trained_image_size
    return resized

  def encode_image(
    self, pictures: inputs.Pictures, normalize: bool = True, max_patches: Budget | None = None
  ) -> Vectors:
    """Embeds whole images, at least one.

    Args:
      pictures: the images; see the class. A plain CLIP sees the middle square of a picture unless its folder says
        otherwise, an FG-CLIP all of it, squashed: for another way, use `preprocess`. FG-CLIP 2 and SigLIP 2's NaFlex
        models see all of it in about its own shape.
      normalize: False gives the features as they are, of any length.
      max_patches: another patch budget for this call, see `load`.
    """
    reader = self.reader(max_patches=max_patches)
    return np.stack([image for (image,) in self._run("image", pictures, reader, normalize)])

  def encode_dense(self, pictures: inputs.Pictures, normalize: bool = True, max_patches: Budget | None = None) -> Dense:
    """Embeds the patches of images, for comparison with region (or short) texts.

    Args:
      pictures: the images; see the class. They are squashed to squares, so that patches divide the whole picture, or
        keep about their own shape where the model takes any.
      normalize: False gives the features as they are, of any length.
      max_patches: another patch budget for this call, see `load`.

    Returns:
      float32 [B, h, w, D]; where images differ in their grids of patches a list that has [h, w, D] for each.
    """
    reader = self.reader("squash", max_patches)
    found = [dense for (dense,) in self._run("dense", pictures, reader, normalize)]
    return np.stack(found) if len({dense.shape for dense in found}) == 1 else found

  def encode_regions(
    self, pictures: inputs.Pictures, boxes: inputs.Boxes, normalize: bool = True, max_patches: Budget | None = None
  ) -> Regions:
    """Embeds boxes of images, for comparison with region texts.

    Args:
      pictures: as for `encode_dense`.
      boxes: x1 y1 x2 y2 as fractions of the image's width and height: an array [B, K, 4], or a list that has [K, 4]
        for each image, K differing and possibly 0. A box of no size gives zero.
      normalize: False gives the features as they are, of any length.
      max_patches: another patch budget for this call, see `load`.

    Returns:
      [B, K, D] for an array of boxes, a list that has [K, D] for each image for a list.
    """
    return self.encode_image_and_regions(pictures, boxes, normalize, max_patches)[1]

  def encode_image_and_regions(
    self, pictures: inputs.Pictures, boxes: inputs.Boxes, normalize: bool = True, max_patches: Budget | None = None
  ) -> tuple[Vectors, Regions]:
    """`encode_regions` and embeddings of the whole images, squashed to squares or in their own shape, in one pass."""
    found = self._run("regions", pictures, self.reader("squash", max_patches), normalize, boxes)
    whole, regions = zip(*found, strict=True)
    return np.stack(whole), np.stack(regions) if hasattr(boxes, "ndim") else list(regions)

  def encode_text(
    self,
    texts: text_inputs.Texts,
    kind: str = "short",
    progress: bool = False,
    normalize: bool = True,
    truncate: bool = True,
    as_is: bool = False,
    as_written: bool = False,
  ) -> Vectors:
    """Embeds texts, at least one. A text that is longer than the model reads is cut, with a warning.

    Args:
      texts: one text, a sequence of texts, or token ids, each text with an end-of-text id: an integer array [B, L] or
        a list of lists of ids. A SigLIP or FG-CLIP 2 reads padding too: ids for it are padded to exactly L tokens, the
        length of their kind.
      kind: `short` or `region` (one path for both, 77 tokens) or `long` (248 tokens; FG-CLIP alone has it). In FG-CLIP
        2 a path each, of 64, 64 and 196 tokens; in SigLIP one of 64.
      progress: shows a progress bar.
      normalize: False gives the features as they are, of any length.
      truncate: False makes a text that is too long an error.
      as_is: takes token ids that a SigLIP or FG-CLIP 2 was not trained with: of another length, without an end-of-text
        id, of upper-case letters, which give other numbers than the same texts encoded as they should be.
      as_written: leaves upper case in strings, as some of FG-CLIP 2's published evaluations do, where the tokenizer
        can: Gemma's; others lower-case all the same.

    Raises:
      ValueError: the model has no such kind; ids that were made another way.
    """
    if kind not in KINDS:
      raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    kinds = self.config.text.kinds
    if kind not in kinds:
      raise ValueError(
        f"this model is a {family(self.config)}, which reads no {kind} texts: use kind='short', or make an "
        f"FG-CLIP{' 2' * self.config.text.reads_padding} of it with "
        "`python -m fgclip_jax.convert INPUT OUTPUT --as fgclip`"
      )
    path, longest = kinds[kind], max(kinds, key=lambda name: kinds[name].length)
    whole = text_inputs.to_ids(texts, self.config.text, path.length, as_is, as_written)
    better = kinds[longest].length > path.length
    advice = f"; kind={longest!r} reads {kinds[longest].length}" if better else ""
    ids = text_inputs.cut_ids(whole, path.length, kind, advice, truncate)
    return self._encode_ids(ids, path, progress, normalize)

  def similarity(self, image: ArrayLike, text: ArrayLike) -> Float32[np.ndarray, "*B N"]:
    """Cosines, -1 to 1, of embeddings [..., D] of images, patches or regions with embeddings [N, D] of texts.

    Of features that are not of unit length it gives the inner products.
    """
    image, text = np.asarray(image, np.float32), np.asarray(text, np.float32)
    if text.ndim != 2 or image.ndim < 1 or image.shape[-1] != text.shape[-1]:
      raise ValueError(f"needs embeddings [..., D] and [N, D], got {list(image.shape)} and {list(text.shape)}")
    return image @ text.T

  def probabilities(self, image: ArrayLike, text: ArrayLike) -> Float32[np.ndarray, "*B N"]:
    """How likely each image and text belong together, 0 to 1, each pair by itself: SigLIP's sigmoid of its logits.

    Args:
      image, text: unit-length embeddings, as for `similarity`.

    Raises:
      ValueError: the model has no bias of its logits, as in CLIP, which compares a picture's texts with each other.
    """
    if self.config.logit_bias is None:
      raise ValueError(f"a {family(self.config)} has no sigmoid probabilities: compare texts by similarity")
    scale, bias = (float(np.asarray(self.params["temperature"][name])) for name in ("global", "bias"))
    return 1 / (1 + np.exp(-(np.exp(np.float32(scale)) * self.similarity(image, text) + np.float32(bias))))

  def _run(
    self, what: str, pictures: inputs.Pictures, reader: Reader, normalize: bool, boxes: inputs.Boxes | None = None
  ) -> list[tuple[np.ndarray, ...]]:
    """What programs find in each image: `image`, `dense`, or `regions`, which is the image's and its boxes'."""
    images = inputs.to_pixels(pictures, self.config, reader)
    count = len(images) if isinstance(images, np.ndarray) else None
    count = len(pictures) if count is None and isinstance(pictures, list | tuple) else count
    checked = None if boxes is None else inputs.to_boxes(boxes, count)
    started: list[Chunk] = []

    def start():
      budget = reader.budget if isinstance(reader, PatchReader) else None
      for chunk in make_chunks(self.config, images, checked, budget, self._setup.sizes):
        started.append(chunk)
        programs.announce(*chunk.arrays)
        yield self._encode(what, chunk, normalize)

    found: dict[int, tuple[np.ndarray, ...]] = {}
    for arrays in programs.run_ahead(start()):
      chunk = started.pop(0)
      for row, number in enumerate(chunk.numbers):
        found[number] = tuple(array[row] for array in arrays)
        if what == "regions":
          found[number] = (found[number][0], found[number][1][: chunk.box_counts[row]])
        elif what == "dense" and chunk.grids is not None:
          height, width = chunk.grids[row]
          found[number] = (found[number][0][: height * width].reshape(height, width, -1).copy(),)  # without padding
    return [found[number] for number in range(len(found))]

  def _encode(self, what: str, chunk: Chunk, normalize: bool) -> tuple[jax.Array, ...]:
    """Starts the programs for a chunk."""
    encode = programs.encode_pixels if chunk.grids is None else programs.encode_patches
    whole = normalize or what == "dense"  # of no consequence there, and one program less
    image, dense = encode(self.params, *chunk.arrays, setup=self._setup, dense=what != "image", normalize=whole)
    if what == "image":
      return (image,)
    if what == "dense":
      return (programs.finish(dense, normalize=normalize),)
    if chunk.grids is None:
      return image, programs.pool(dense, chunk.boxes, normalize=normalize)
    return image, programs.pool_patches(dense, chunk.grids, chunk.boxes, normalize=normalize)

  def _encode_ids(self, ids: Sequence[text_inputs.Ids], kind: TextKind, progress: bool, normalize: bool) -> np.ndarray:
    chunks = text_chunks.make_chunks(ids, kind, self._setup.sizes)

    def start():
      for chunk in chunks:
        programs.announce(*chunk.arrays)
        yield programs.encode_rows(self.params, *chunk.arrays, setup=self._setup, kind=kind, normalize=normalize)

    features = np.zeros((len(ids), self.config.embedding_width), np.float32)
    found = tqdm.tqdm(programs.run_ahead(start()), "texts", len(chunks), unit="chunk", disable=not progress)
    for chunk, encoded in zip(chunks, found, strict=True):
      features[chunk.numbers] = encoded[: len(chunk.numbers)]
    return features
