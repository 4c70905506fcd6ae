"""What a run shows every `image_every` steps: samples of its batch, and heat maps and scores of one fixed picture.

The samples are drawn from the batch as the step got it: the pixels that the augmentation left, the boxes that are still
in them, and the captions that were chosen, as their tokens read. The fixed picture is a record of the split
`validation`, so that its maps can be compared from step to step.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from fgclip_jax.data import image as images
from fgclip_jax.data import record
from fgclip_jax.data.config import DataConfig
from fgclip_jax.data.packing import NONE
from fgclip_jax.data.record import Record, Region
from fgclip_jax.data.shards import Records
from fgclip_jax.data.tokenizers import Tokenizer
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.models.params import Params
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.train.config import RunConfig
from fgclip_jax.train.distributed import agree
from fgclip_jax.train.evaluation import live_model, run_together
from fgclip_jax.train.logger import Metrics
from fgclip_jax.viz import contact_sheet, drawing, heatmap
from fgclip_jax.viz.contact_sheet import Sample

SAMPLES = 8  # pictures of a batch
_MOST_TEXTS = 3  # heat maps of the fixed picture
_MOST_TRIED = 50  # records that are looked at for the fixed picture
COLUMNS = ("caption", "compared with", "score")


@dataclasses.dataclass(frozen=True)
class FixedPicture:
  """The picture that is looked at again and again.

  Attributes:
    name: its split and id.
    picture: the picture.
    record: its captions and regions.
  """

  name: str
  picture: Image.Image
  record: Record


@dataclasses.dataclass(frozen=True)
class Seen:
  """What a model sees in the fixed picture.

  Attributes:
    heats: a map for each text.
    rows: of the table, each with a caption, what of the picture it was compared with, and their cosine.
  """

  heats: Sequence[heatmap.Heat]
  rows: Sequence[tuple[str, str, float]]


def find_fixed(data: DataConfig, log: Callable[[str], object]) -> FixedPicture | None:
  """The first readable record of the data's split `validation`, or else of its own split; one with regions, if any.

  Only the first records are looked at. None, and a line that says so, where none can be shown.
  """
  first, why = data.sets()[0], ""
  for split in dict.fromkeys(("validation", first.split)):
    try:
      records = Records(first.path, split)
    except (FileNotFoundError, ValueError) as error:
      why = why or str(error)
      continue
    if found := _choose(records, split):
      log(f"heat maps are drawn of {found.name}")
      return found
    why = f"none of the first {_MOST_TRIED} records of split {split!r} can be read"
  log(f"no heat maps are drawn: {why}")
  return None


def _choose(records: Records, split: str) -> FixedPicture | None:
  chosen = None
  for number in range(min(len(records), _MOST_TRIED)):
    try:
      found = record.decode(records[number])
      picture = images.open_image(found.image)
    except RecordError:
      continue
    chosen = chosen or FixedPicture(f"{split} {found.id}", picture, found)
    if found.regions:
      return FixedPicture(f"{split} {found.id}", picture, found)
  return chosen


def look(model: FGCLIP, fixed: FixedPicture) -> Seen:
  """Computes the maps and cosines of the fixed picture; every process of a run must call it."""
  found, regions = fixed.record, fixed.record.regions[:_MOST_TEXTS]
  texts = [region.short for region in regions] or [found.short]
  heats = heatmap.measure(model, fixed.picture, texts, [[region.box] for region in regions] or [[]])
  rows = [
    (heat.text, f"box {place}", round(score, 4)) for place, heat in enumerate(heats, 1) for _, score in heat.boxes
  ]
  image = model.encode_image([model.reader("squash").read(fixed.picture, fixed.name)])
  for kind, text in (("short", found.short), ("long", found.long)):
    if text and kind in model.config.text.kinds:
      cosine = model.similarity(image, model.encode_text([text], kind))[0, 0]
      rows.append((text, "picture", round(float(cosine), 4)))
  return Seen(heats, rows)


def draw_fixed(fixed: FixedPicture, seen: Seen) -> Image.Image:
  """The fixed picture with its maps."""
  font, _ = drawing.find_font([heat.text for heat in seen.heats], drawing.FONT_SIZE)
  return heatmap.draw(fixed.picture, seen.heats, font)


@dataclasses.dataclass(frozen=True)
class BatchSample:
  """An image of a batch, as the step got it.

  Attributes:
    record: the number of its record.
    pixels: the image, augmented; of patches, as they make it up.
    boxes: those in it.
    short, long: ids of its captions; empty: it has none.
    regions: the ids of each box's caption.
  """

  record: int
  pixels: UInt8[np.ndarray, "H W 3"]
  boxes: Float32[np.ndarray, "n 4"]
  short: tuple[int, ...]
  long: tuple[int, ...]
  regions: tuple[tuple[int, ...], ...]


def take(batch: dict[str, np.ndarray], count: int = SAMPLES) -> list[BatchSample]:
  """Copies the first images of a process's batch with their boxes and captions; keys as in docs/design.md."""
  shards, images_of_shard = batch["record"].shape
  places = [divmod(place, images_of_shard) for place in range(min(count, shards * images_of_shard))]

  def ids(shard: int, end: np.integer) -> tuple[int, ...]:
    return _caption(batch["tokens"][shard], batch["segment"][shard], int(end))

  return [
    BatchSample(
      record=int(batch["record"][at]),
      pixels=batch["image"][at].copy() if "image" in batch else join_patches(batch, at),
      boxes=batch["boxes"][at][: batch["box_count"][at]].copy(),
      short=ids(at[0], batch["short_eot"][at]),
      long=ids(at[0], batch["long_eot"][at]),
      regions=tuple(ids(at[0], end) for end in batch["region_eot"][at][: batch["box_count"][at]]),
    )
    for at in places
  ]


def join_patches(batch: dict[str, np.ndarray], at: tuple[int, int]) -> UInt8[np.ndarray, "H W 3"]:
  """The picture of a batch, by data shard and place, whose patches are packed in rows."""
  height, width = batch["image_grid"][at]
  values = batch["patches"].shape[-1]
  side = math.isqrt(values // 3)
  patches = batch["patches"][at[0]].reshape(-1, values)[batch["patch_slot"][at][: height * width]]
  cells = patches.reshape(height, width, side, side, 3).transpose(0, 2, 1, 3, 4)
  return cells.reshape(height * side, width * side, 3)


def _text(tokenizer: Tokenizer, ids: tuple[int, ...]) -> str:
  """The text of a caption's ids, without the padding that some models read."""
  return tokenizer.decode(ids[: ids.index(tokenizer.end_id)] if tokenizer.end_id in ids else ids)


def _caption(tokens: np.ndarray, segment: np.ndarray, end: int) -> tuple[int, ...]:
  """The ids of the caption whose end-of-text is at `end` of packed rows [R, L]."""
  if end == NONE:
    return ()
  row, last = divmod(end, tokens.shape[1])
  first = last
  while first and segment[row, first - 1] == segment[row, last]:
    first -= 1
  return tuple(map(int, tokens[row, first : last + 1]))


def draw_batch(samples: Sequence[BatchSample], tokenizer: Tokenizer, where: Callable[[int], str]) -> Image.Image:
  """A contact sheet of samples.

  Args:
    samples: the samples.
    tokenizer: reads their ids.
    where: returns the file of a record and its number in the file.
  """
  shown = []
  for sample in samples:
    captions = [_text(tokenizer, ids) for ids in sample.regions]
    boxes = [record.check_box(box) for box in sample.boxes]
    regions = tuple(Region(box, caption) for box, caption in zip(boxes, captions, strict=True))
    place = where(sample.record).rpartition("/")[2]
    content = Record(place, b"", _text(tokenizer, sample.short), _text(tokenizer, sample.long), regions)
    shown.append(Sample(place, content, contact_sheet.draw_boxes(Image.fromarray(sample.pixels), regions)))
  return contact_sheet.draw(shown)


class Gallery:
  """Shows samples of the batch and the fixed picture every `run.image_every` steps; 0: never.

  Every process of a run makes one and calls it at the same steps: all compute, the first draws.

  Args:
    run: the settings.
    where: returns the file of a record and its number in the file.
    metrics: where pictures and tables go; None on all processes but the first.
    log: prints a line.
  """

  def __init__(
    self, run: RunConfig, where: Callable[[int], str], metrics: Metrics | None, log: Callable[[str], object]
  ):
    self._run, self._where, self._metrics, self._log = run, where, metrics, log
    fixed = find_fixed(run.data, log) if run.image_every else None
    if run.image_every and agree(int(fixed is None)):
      fixed = None  # on one machine there is none
    self._fixed = fixed

  def is_due(self, step: int) -> bool:
    """Whether something is shown after this step."""
    return self._run.image_every > 0 and step % self._run.image_every == 0

  def take(self, step: int, batch: dict[str, np.ndarray]) -> list[BatchSample]:
    """The samples of a step's batch that this process will draw."""
    return take(batch) if self._metrics and self.is_due(step) else []

  def show(self, step: int, params: Params, samples: list[BatchSample], heartbeat: Callable[[str], None]) -> None:
    """Computes, draws and writes what is shown after a step; a failure is logged and training continues.

    Args:
      step: the step.
      params: the run's parameters after it; no step is in flight.
      samples: those of its batch.
      heartbeat: called with what this process is at, for the watchdog.
    """
    heartbeat(f"the pictures of step {step}")
    live = live_model(self._run.model, params, self._run.runtime)
    run_together(lambda: self._show(step, live, samples), f"step {step}: its pictures", self._log, heartbeat)

  def _show(self, step: int, live: FGCLIP, samples: list[BatchSample]) -> bool:
    metrics, fixed = self._metrics, self._fixed
    if metrics:
      sheet = draw_batch(samples, live.tokenizer, self._where)
      metrics.write_image(step, "samples/batch", sheet, f"the batch of step {step}")
    if fixed:
      seen = look(live, fixed)
      if metrics:
        metrics.write_image(step, "samples/heat_maps", draw_fixed(fixed, seen), fixed.name)
        metrics.write_table(step, "samples/scores", COLUMNS, seen.rows)
    return True
