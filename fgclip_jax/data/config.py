"""The settings of the loader: section `data` of a config."""

import dataclasses
import math
from typing import Any

from fgclip_jax.data.augment import CROPS
from fgclip_jax.data.caption_sampling import AS_PUBLISHED, CaptionSampling
from fgclip_jax.data.decode import MODES
from fgclip_jax.data.mixture import DataSet
from fgclip_jax.data.patches import PatchLayout, parse_budget

REGION_TEXTS = ("random", "short", "long")


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where examples come from and how they are made.

  Attributes:
    path: a folder made by `python -m fgclip_jax.prepare`.
    split: which of its splits.
    mixture: in place of `path`, several: (folder, weight) or (folder, split, weight) for each, e.g.
      `(("data/finehard", 3.0), ("data/pairs", 1.0))`. Of every four examples, three come from the first.
    batch_size: images of a global batch, over all processes.
    boxes: K, regions taken per image: the first ones, as the published code does; 0 leaves regions out.
    region_text: which caption a region gets: `short`, `long` (where it has one), or `random`, either.
    region_languages: codes of the languages of which regions are read; empty: of all. The published FG-CLIP 2 has
      `("en",)`: it reads no regions of Chinese records.
    hard_positive_as_written: True keeps the case of the true caption beside hard negatives, as the published FG-CLIP 2
      does by mistake; a tokenizer that lower-cases itself, such as CLIP's, cannot.
    captions: which of a record's captions are read, where it has a set of them.
    language_steps: True makes each batch of records of one language; of the steps, each language has its share by the
      weights of its data sets. False mixes languages within batches.
    short_prefix: put before short captions in English; the published stage 2 has "a photo of ".
    tokenizer: a folder that has the file of the model's tokenizer, or that file; empty: that of `init_from`.
    row_length: tokens per row of packed captions, which captions are cut to; 0 is 256, or the longest caption
      that the model takes if that is more; for a model that reads padding, a long and a short caption together.
    patch_budget: of a model that takes patches, the most that it sees of a picture: a number, such as `256`;
      `dynamic_each`, 128 to 1024 by the picture's own size; `dynamic`, as FG-CLIP 2 is published: the largest of these
      of a data shard; empty: the model's `max_patches`.
    patch_row_length: patches per row of packed pictures, at least the largest budget; 0: chosen to fit the data.
    patch_group: pictures that share a `dynamic` budget, consecutive ones of a data shard; 0: all of it.
    squash_small: pictures with a side below 128 px are first squashed to a square of this side, in pixels, before they
      become patches; the published training has 512. 0: they are not.
    packed: False gives each caption a row of its own, as the published code does (slow), and each picture.
    shuffle: False keeps the order of the shards.
    decode: `fast`, or `exact`, the published pixels: of 256 levels `fast` is off by 2 at most, by 0.01 on average,
      at more than twice the speed (fgclip_jax/data/decode.py).
    crop: what of each image is taken: all of it (`none`, as published), a `random` part, or a `random_square`
      (fgclip_jax/data/augment.py). Boxes move with it.
    crop_area: the least and the largest share of the image that a `random` crop takes.
    crop_keep: the share of a box that a crop must leave for its region to be used.
    workers: processes that decode; 0 decodes in threads of this process; -1 chooses.
    threads: threads per worker (or of this process); -1 chooses.
    prefetch: batches each worker makes ahead.
    repeat_in_batch: True lets a batch be larger than the data set, or than what a data set of a mixture holds for its
      share. Every batch then holds records more than once; these are not each other's negatives.
    max_bad_share: the share of records that may be bad before the run stops; a bad one is counted and
      replaced by the next good one.
  """

  path: str = ""
  split: str = "train"
  mixture: tuple[tuple[Any, ...], ...] = ()
  batch_size: int = 4096
  boxes: int = 4
  region_text: str = "random"
  region_languages: tuple[str, ...] = ()
  hard_positive_as_written: bool = False
  captions: CaptionSampling = AS_PUBLISHED
  language_steps: bool = False
  short_prefix: str = ""
  tokenizer: str = ""
  row_length: int = 0
  patch_budget: str = ""
  patch_row_length: int = 0
  patch_group: int = 0
  squash_small: int = 0
  packed: bool = True
  shuffle: bool = True
  decode: str = "fast"
  crop: str = "none"
  crop_area: tuple[float, float] = (0.6, 1.0)
  crop_keep: float = 0.5
  workers: int = -1
  threads: int = -1
  prefetch: int = 4
  max_bad_share: float = 0.01
  repeat_in_batch: bool = False

  def __post_init__(self):
    for name, allowed in (("region_text", REGION_TEXTS), ("decode", MODES), ("crop", CROPS)):
      if getattr(self, name) not in allowed:
        raise ValueError(f"data.{name} must be one of {allowed}, got {getattr(self, name)!r}")
    least_of = {"batch_size": 1, "boxes": 0, "prefetch": 1, "patch_row_length": 0, "patch_group": 0, "squash_small": 0}
    for name, least in least_of.items():
      if getattr(self, name) < least:
        raise ValueError(f"data.{name} must be at least {least}, got {getattr(self, name)}")
    if self.workers < -1:
      raise ValueError(f"data.workers must be -1 (choose), 0 (threads) or more, got {self.workers}")
    if self.threads < -1 or not self.threads:
      raise ValueError(f"data.threads must be -1 (choose) or at least 1, got {self.threads}")
    for name in ("crop_keep", "max_bad_share"):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f"data.{name} must lie in 0..1, got {getattr(self, name)}")
    if self.patch_budget:
      parse_budget(self.patch_budget, "data.patch_budget")
    if len(self.crop_area) != 2 or not 0 < self.crop_area[0] <= self.crop_area[1] <= 1:
      raise ValueError(f"data.crop_area must be two ascending shares in 0..1 (0 excluded), got {self.crop_area}")
    if self.path and self.mixture:
      raise ValueError(
        f"data.path {self.path!r} and data.mixture are both given; put it into the mixture, or empty one"
      )
    self.sets()

  def patch_layout(self, patch_size: int, max_patches: int) -> PatchLayout:
    """How pictures become rows of patches for a model of this patch size, in pixels, and this budget of its own."""
    budget = parse_budget(self.patch_budget or max_patches, "data.patch_budget")
    return PatchLayout(budget, patch_size, self.patch_row_length, group=self.patch_group, small_size=self.squash_small)

  def sets(self) -> list[DataSet]:
    """The data sets that are read; a ValueError for an entry of the mixture that is not one."""
    if not self.mixture:
      return [DataSet(self.path, self.split)]
    sets = []
    for entry in self.mixture:
      if len(entry) == 2:
        entry = (entry[0], self.split, entry[1])
      parts: tuple[Any, ...] = entry if len(entry) == 3 else (None, None, None)
      path, split, weight = parts
      numbers = isinstance(weight, int | float) and not isinstance(weight, bool) and 0 < weight < math.inf
      if not (isinstance(path, str) and path and isinstance(split, str) and numbers):
        raise ValueError(
          f"data.mixture: {entry!r} is neither (folder, weight) nor (folder, split, weight) with a positive weight"
        )
      sets.append(DataSet(path, split, float(weight)))
    return sets
