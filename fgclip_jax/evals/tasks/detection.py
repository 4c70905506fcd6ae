"""Open-vocabulary detection without training: boxes that something else proposed, named by the model."""

import argparse
import array
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Array, Bool, Float, Float32, Float64, Int

from fgclip_jax.cli import positive
from fgclip_jax.evals import guards, options, templates
from fgclip_jax.evals.average_precision import Detections, average_precision, best_of_class, in_pixels, join, that_count
from fgclip_jax.evals.datasets import images as pictures
from fgclip_jax.evals.datasets import instances
from fgclip_jax.evals.evaluator import Result
from fgclip_jax.evals.tasks import box_classification
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.storage import paths
from fgclip_jax.storage.streams import named, read_entries

SHORT = "open-vocabulary detection without training: proposals of a detector, named by the model"
TEXT = """Average precision by COCO's or LVIS' rules (needs faster-coco-eval: pip install -r requirements-evals.txt). A
proposal's score for a class is the geometric mean of its own score and the softmax of its feature over all classes."""
EXAMPLE = "--model M --annotations lvis_v1_val.json --images coco --proposals boxes.json --output detection.json"

_CANDIDATES = 10  # pairs of a proposal and a class that are looked at first, for each detection that is wanted
_STEP = 64  # scores are computed for multiples of so many proposals: few sizes to compile
_ROWS = 1024  # boxes whose overlaps are computed at once
_OF_CLASS = 10_000  # detections of a class that Fixed AP counts
_GRID_SIDES = (1.0, 0.5, 0.25)
_GRID_ASPECTS = (0.5, 1.0, 2.0)  # width to height
# A picture's, by whether it is LVIS. 300 is LVIS' rule. COCO counts 100 of each class of a picture; 100 of a picture,
# as detectors are built to give, are fewer, and a fraction of the memory.
_MAX_DETECTIONS = {False: 100, True: 300}
_FIELDS = 6  # numbers of a proposal while the file is read: left, top, width, height, score, class


@dataclasses.dataclass(frozen=True)
class Proposals:
  """Boxes that may hold an object.

  Attributes:
    box: x1 y1 x2 y2 as fractions of the picture's width and height.
    score: how sure the proposer is, 0 to 1.
    label: the number of the proposer's class; -1: it names none.
  """

  box: Float32[np.ndarray, "P 4"]
  score: Float32[np.ndarray, "P"]
  label: Int[np.ndarray, "P"]


def add_options(parser: argparse.ArgumentParser) -> None:
  parser.add_argument(
    "--annotations", required=True, metavar="FILE", help="the true boxes: instances_val2017.json or lvis_v1_val.json"
  )
  parser.add_argument(
    "--images",
    required=True,
    metavar="DIR",
    help="the folder of the images: for COCO val2017, for LVIS the one that holds train2017 and val2017",
  )
  parser.add_argument(
    "--proposals",
    metavar="FILE",
    help="boxes as COCO's results have them: a JSON list of image_id, bbox (left, top, width, height in pixels), score "
    "(default: a grid of boxes)",
  )
  parser.add_argument(
    "--max_proposals", type=positive, default=300, metavar="N", help="the best of an image (default: %(default)s)"
  )
  parser.add_argument("--keep_classes", action="store_true", help="score proposals for their own category_id alone")
  options.add_templates(parser)
  parser.add_argument(
    "--scale",
    type=_scale,
    default=100.0,
    metavar="S",
    help="what cosines are multiplied by before the softmax; `model`: its learned scale (default: %(default)g)",
  )
  parser.add_argument(
    "--nms",
    type=float,
    default=0.5,
    metavar="IOU",
    help="the overlap above which the worse of two boxes of a class is dropped; 1 drops none (default: %(default)s)",
  )
  parser.add_argument(
    "--fixed_ap",
    action="store_true",
    help="count the 10,000 best detections of a class in all images, not the best of an image, as LLMDet's numbers do",
  )
  options.add_limit(parser)


@dataclasses.dataclass(frozen=True)
class Detection:
  """The average precision of proposals that are scored with the model, by COCO's or LVIS' rules.

  A proposal's score for a class is the geometric mean of its own score and the softmax over the classes of its RoIAlign
  feature's cosines with their prompts' mean embeddings, times `scale`. Of the boxes of a class that overlap by more
  than `nms`, the one with the highest score is kept; then the 100 best of a picture (LVIS: 300). LVIS' rules apply to
  files whose classes have a frequency. Pictures that cannot be used are left out of the measurement. The proposals that
  are used are held in memory: some 80 bytes each, up to twice that while a file that has more is read.

  With `fixed_ap` no class pushes another's detections out: not the best of a picture are counted, but the 10,000 best
  of each class over all pictures ("Fixed AP", Dave et al., arXiv 2102.01066).

  Attributes:
    annotations: the file of true boxes, `instances_val2017.json` or `lvis_v1_val.json`.
    images: the folder of images. LVIS' files lie in its folders train2017 and val2017.
    proposals: a JSON list in the layout of COCO's results: `image_id`, `bbox` (left, top, width, height in pixels) and
      `score` (with `keep_classes`, `category_id` too). None takes a grid of boxes of three sizes and three shapes,
      which finds what lies right and little more.
    max_proposals: the proposals of a picture that are used, those with the highest scores.
    keep_classes: scores each proposal for its own class alone, for proposals of an open-vocabulary detector.
    templates: which prompts, a name in `templates.TEMPLATES`.
    scale: what cosines are multiplied by; None is the model's learned one for regions.
    nms: the overlap (intersection over union) above which the worse of two boxes of a class is dropped; 1 drops none.
    fixed_ap: counts detections by class, not by picture.
    limit: reads only so many images, the first ones by id; None for all.
    allow: guards that are switched off.
  """

  annotations: str
  images: str
  proposals: str | None = None
  max_proposals: int = 300
  keep_classes: bool = False
  templates: str = "openai80"
  scale: float | None = 100.0
  nms: float = 0.5
  fixed_ap: bool = False
  limit: int | None = None
  allow: tuple[str, ...] = ()

  @property
  def name(self) -> str:
    return "detection"

  def settings(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  def files(self) -> list[str | tuple[str, str]]:
    return [path for path in (self.annotations, self.proposals, self.images) if path]

  def run(self, model: FGCLIP, progress: bool = False) -> Result:
    """Metrics `detection_ap`, `_ap50`, `_ap75`, and for LVIS `_ap_rare`, `_ap_common`, `_ap_frequent`.

    Examples are a row for each detection that counts: the ids of its picture and class, `left`, `top`, `width` and
    `height` in pixels, and its score.
    """
    notes = guards.check_resolution(model, self.allow)
    if self.keep_classes and not self.proposals:
      raise ValueError("keep_classes needs proposals that name classes: give a file of proposals")
    data = instances.read(self.annotations).limit(self.limit)
    lvis = bool(data.frequencies)
    faults = pictures.Faults()
    if self.proposals:
      proposals, read = read_proposals(self.proposals, data, self.max_proposals, self.keep_classes, faults, progress)
    else:
      proposals, read = [grid()] * len(data.images), len(grid().box) * len(data.images)
      notes.append(f"proposals are a grid of {len(grid().box)} boxes: what fits none of them cannot be found")
    classes = templates.class_embeddings(model, data.names, templates.TEMPLATES[self.templates], progress)
    classes = jax.device_put(classes)
    scale = np.float32(learned_scale(model) if self.scale is None else self.scale)
    files = [paths.join(self.images, image.path) for image in data.images]
    most = None if self.fixed_ap else _MAX_DETECTIONS[lvis]
    found, used, floor, held = [], [], None, 0
    lost = pictures.Faults()
    encoded = box_classification.encode_boxes(model, files, [each.box for each in proposals], lost, progress)
    for number, features in encoded:
      used.append(number)
      found.append(name_boxes(number, proposals[number], features, classes, scale, self.nms, most, floor))
      held += len(found[-1].label)
      if self.fixed_ap and held > 2 * _OF_CLASS * len(classes):  # no more than these are held in memory
        best, floor = best_of_class(join(found), len(classes), _OF_CLASS)
        found, held = [best], len(best.label)
    if not used:
      raise ValueError(f"none of {len(files)} images could be used: {'; '.join(lost.notes(len(files)))}")
    detections = join(found)
    if self.fixed_ap:
      detections, _ = best_of_class(detections, len(classes), _OF_CLASS)
    if lvis:
      detections = that_count(data, detections)
    values = average_precision(data, used, detections)
    notes += [*faults.notes(read, "proposals"), *lost.notes(len(files))]
    return Result(values, _examples(data, detections), len(files), dict(lost.skipped), tuple(notes))


def grid() -> Proposals:
  """Boxes of three sizes and three shapes, each kind half a box apart, with the score 1."""
  found = [(0.0, 0.0, 1.0, 1.0)]
  for side in _GRID_SIDES:
    for aspect in _GRID_ASPECTS:
      width, height = side * math.sqrt(aspect), side / math.sqrt(aspect)
      if width < 1 and height < 1:
        columns, rows = (math.ceil(2 * (1 - each) / each) + 1 for each in (width, height))
        for left in np.linspace(0, 1 - width, columns):
          found += [(left, top, left + width, top + height) for top in np.linspace(0, 1 - height, rows)]
  box = np.asarray(found, np.float32).clip(0, 1)
  return Proposals(box, np.ones(len(box), np.float32), np.full(len(box), -1))


def read_proposals(
  path: str,
  data: instances.Instances,
  most: int,
  classes: bool,
  faults: pictures.Faults,
  progress: bool = False,
) -> tuple[list[Proposals], int]:
  """Reads the proposals of each picture, best first, and how many there were.

  Args:
    path: see `Detection`.
    data: the pictures and the classes.
    most: how many of a picture's proposals are kept.
    classes: reads their classes, too.
    faults: where those that cannot be used are counted: `proposal_without_size`; those of pictures that are not in
      `data` are `proposal_elsewhere`.
    progress: shows a progress bar.

  Raises:
    FileNotFoundError, ValueError: the file is missing or broken; the message names the entry.
  """
  image_number = {image.identity: number for number, image in enumerate(data.images)}

  def best(rows: array.array, image: instances.Image) -> tuple[np.ndarray, np.ndarray]:
    """Of some rows those that are kept, best first, of equal ones the first; and their boxes as fractions."""
    table = np.asarray(rows).reshape(-1, _FIELDS)
    box = instances.to_fractions(table[:, :4], np.tile([[image.width, image.height]], (len(table), 1)))
    sized = instances.have_size(box)
    for row in table[~sized]:
      faults.add("proposal_without_size", f"{path}: box {row[:4].tolist()} of image {image.identity}")
    kept = np.flatnonzero(sized)
    kept = kept[np.argsort(-table[kept, 4], kind="stable")][:most]
    return table[kept], box[kept]

  found = [array.array("d") for _ in data.images]
  read = 0
  for _, entry in tqdm.tqdm(read_entries(path, ("",)), desc="proposals", unit="box", disable=not progress):
    read += 1
    try:
      left, top, width, height = map(float, entry["bbox"])
      score = float(entry["score"])
      label = data.class_number[entry["category_id"]] if classes else -1
      if not 0 <= score <= 1:
        raise ValueError(f"score {score} is not in 0..1")
      number = image_number.get(entry["image_id"])
    except Exception:
      with named(path, entry):  # entered for a broken entry alone: there are millions of them
        raise
    if number is None:
      faults.add("proposal_elsewhere", f"{path}: image {entry['image_id']} is not among those that are measured")
    else:
      found[number].extend((left, top, width, height, score, label))
      if len(found[number]) > 2 * most * _FIELDS:
        found[number] = array.array("d", best(found[number], data.images[number])[0].tobytes())
  result = []
  found.reverse()
  for image in data.images:
    table, box = best(found.pop(), image)  # what was read of a picture is freed as its proposals are made
    result.append(Proposals(box, table[:, 4].astype(np.float32), table[:, 5].astype(np.int32)))
  return result, read


def learned_scale(model: FGCLIP) -> float:
  """What the model multiplies the cosines of regions with texts by: its regional temperature, else the global one."""
  temperature = model.params["temperature"]
  return float(np.exp(np.asarray(temperature["regional" if "regional" in temperature else "global"])))


def name_boxes(
  image: int,
  proposals: Proposals,
  features: Float32[np.ndarray, "P D"],
  classes: Float32[Array | np.ndarray, "C D"],
  scale: np.float32,
  nms: float,
  most: int | None,
  floor: Float32[np.ndarray, "C"] | None = None,
) -> Detections:
  """Up to `most` detections, best first.

  Args:
    image: the number of the picture.
    proposals: its proposals.
    features: their unit-length embeddings.
    classes: unit-length embeddings of the classes.
    scale, nms: see `Detection`.
    most: how many at most; None for all.
    floor: the score of each class that its detections must exceed.
  """
  more = -len(features) % _STEP
  padded = np.pad(features, ((0, more), (0, 0))), np.pad(proposals.score, (0, more))
  scores = np.asarray(_score(*padded, classes, scale))[: len(features)]
  own = (proposals.label >= 0).any()
  if own:
    scores = scores[np.arange(len(features)), proposals.label][:, None]
  if floor is not None:
    scores = np.where(scores > (floor[proposals.label][:, None] if own else floor), scores, -1)
  flat = scores.ravel()
  overlap = np.zeros((len(features), len(features)), bool)
  for first in range(0, len(overlap) if nms < 1 else 0, _ROWS):
    rows = slice(first, first + _ROWS)
    overlap[rows] = overlaps(proposals.box[rows], proposals.box) > nms
  few = _CANDIDATES * most if most else len(flat)
  for candidates in [few, len(flat)] if few < len(flat) else [len(flat)]:
    lowest = np.partition(flat, -candidates)[-candidates] if candidates < len(flat) else 0
    place = np.flatnonzero(flat >= max(lowest, 0))
    row, label = np.divmod(place, scores.shape[1])
    if own:
      label = proposals.label[row]
    order = np.argsort(-flat[place], kind="stable")
    row, label = row[order], label[order]
    kept = suppress(overlap, row, label, most)
    if len(kept) == most:
      break
  score = flat[place[order[kept]]]
  return Detections(np.full(len(kept), image, np.int32), proposals.box[row[kept]], score, label[kept].astype(np.int32))


@jax.jit
def _score(
  features: Float[Array, "P D"], score: Float[Array, "P"], classes: Float[Array, "C D"], scale: Float[Array, ""]
) -> Float[Array, "P C"]:
  """Of each proposal for each class."""
  cosines = jnp.matmul(features, classes.T, precision=jax.lax.Precision.HIGHEST)
  return jnp.sqrt(score[:, None] * jax.nn.softmax(cosines * scale, axis=1))


def overlaps(box: Float32[np.ndarray, "P 4"], other: Float32[np.ndarray, "Q 4"]) -> Float64[np.ndarray, "P Q"]:
  """The intersection over union of boxes x1 y1 x2 y2 with others; of boxes that have a size."""
  one, two = box.astype(np.float64), other.astype(np.float64)
  sides = []
  for low in (0, 1):
    side = np.minimum(one[:, None, low + 2], two[:, low + 2])
    side -= np.maximum(one[:, None, low], two[:, low])
    sides.append(np.maximum(side, 0, out=side))
  shared = np.multiply(*sides, out=sides[0])
  area, area_other = (np.prod(each[:, 2:] - each[:, :2], axis=1) for each in (one, two))
  union = np.add(area[:, None], area_other, out=sides[1])
  union -= shared
  return np.divide(shared, union, out=shared)


def suppress(
  overlap: Bool[np.ndarray, "P P"], row: Int[np.ndarray, "N"], label: Int[np.ndarray, "N"], most: int | None
) -> list[int]:
  """Class-wise non-maximum suppression: which of N candidates are kept, up to `most`, or all for None.

  Args:
    overlap: whether two boxes overlap too much.
    row, label: the box and the class of each candidate, best first.
    most: how many are kept at most.
  """
  gone: dict[int, np.ndarray] = {}
  kept = []
  for place, (box, name) in enumerate(zip(row.tolist(), label.tolist(), strict=True)):
    seen = gone.get(name)
    if seen is None:
      gone[name] = overlap[box].copy()
    elif seen[box]:
      continue
    else:
      seen |= overlap[box]
    kept.append(place)
    if len(kept) == most:
      break
  return kept


def _scale(text: str) -> float | None:
  return None if text == "model" else float(text)


def _examples(data: instances.Instances, detections: Detections) -> dict[str, np.ndarray]:
  """A row for each detection."""
  images, classes = (  # ids as they are: some files have numbers, some have strings
    np.asarray(ids, object) for ids in ([image.identity for image in data.images], data.categories)
  )
  pixels = in_pixels(data, detections)
  sides = dict(zip(("left", "top", "width", "height"), np.round(pixels, 2, out=pixels).T, strict=True))
  return {
    "image_id": images[detections.image],
    "category_id": classes[detections.label],
    **sides,
    "score": detections.score,
  }
