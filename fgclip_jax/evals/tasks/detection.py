"""Open-vocabulary detection without training: the proposals of a detector, classified by the model."""

import argparse
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Float64, Int

from fgclip_jax.cli import positive
from fgclip_jax.evals import guards, options, templates
from fgclip_jax.evals.average_precision import Detections, average_precision, best_of_class, in_pixels, join, that_count
from fgclip_jax.evals.datasets import instances
from fgclip_jax.evals.datasets.proposals import Proposals, grid, read_proposals
from fgclip_jax.evals.encoding import encode_boxes
from fgclip_jax.evals.evaluator import Result
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.storage import paths
from fgclip_jax.storage.skip_report import SkipReport

SHORT = "open-vocabulary detection without training: proposals of a detector, named by the model"
TEXT = """Average precision by COCO's or LVIS' rules (needs faster-coco-eval: pip install -r requirements-evals.txt). A
proposal's score for a class is the geometric mean of its own score and the softmax of its feature over all classes."""
EXAMPLE = "--model M --annotations lvis_v1_val.json --images coco --proposals boxes.json --output detection.json"

_CANDIDATES = 10  # pairs of a proposal and a class that are tried first, for each detection that is wanted
_STEP = 64  # proposals are padded to multiples of it: few sizes to compile
_ROWS = 1024  # boxes whose overlaps are computed at once
_FIXED_AP = 10_000  # detections of a class that Fixed AP counts
# Detections of an image, by whether the data set is LVIS. 300 is LVIS' rule. COCO counts 100 of each class of an image;
# 100 of an image, as detectors give, take a fraction of the memory.
_MAX_DETECTIONS = {False: 100, True: 300}


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options of the command."""
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
  """The average precision of proposals that the model scores, by COCO's or LVIS' rules.

  A proposal's score for a class is the geometric mean of its own score and the softmax over the classes of its RoIAlign
  feature's cosines with their prompts' mean embeddings, times `scale`. Of the boxes of a class that overlap by more
  than `nms`, the one with the highest score is kept; then the 100 best of an image (LVIS: 300). LVIS' rules apply to
  files whose classes have a frequency. Images that cannot be used are left out of the measurement. The proposals that
  are used are held in memory: about 80 bytes each, up to twice that while a file that has more is read.

  With `fixed_ap` no class pushes another's detections out: the 10,000 best of each class over all images are counted,
  instead of the best of an image ("Fixed AP", Dave et al., arXiv 2102.01066).

  Attributes:
    annotations: the file of true boxes, `instances_val2017.json` or `lvis_v1_val.json`.
    images: the folder of images; for LVIS the one that holds train2017 and val2017.
    proposals: a JSON list in the layout of COCO's results: `image_id`, `bbox` (left, top, width, height in pixels) and
      `score` (with `keep_classes`, `category_id` too). None takes a grid of boxes of three sizes and three shapes,
      which finds few objects.
    max_proposals: the number of an image's proposals that are used, those with the highest scores.
    keep_classes: scores each proposal for its own class alone, for proposals of an open-vocabulary detector.
    templates: the prompts, a name in `templates.TEMPLATES`.
    scale: the factor of the cosines; None is the model's learned one for regions.
    nms: the overlap (intersection over union) above which the worse of two boxes of a class is dropped; 1 drops none.
    fixed_ap: counts detections by class, not by image.
    limit: the number of images to read, the first by id; None for all.
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

    Examples are a row for each detection that counts: the ids of its image and class, `left`, `top`, `width` and
    `height` in pixels, and its score.
    """
    notes = guards.check_resolution(model, self.allow)
    if self.keep_classes and not self.proposals:
      raise ValueError("keep_classes needs proposals that name classes: give a file of proposals")
    broken = SkipReport()  # entries of the annotations
    whole = instances.read(self.annotations, None, broken)
    data, entries = whole.limit(self.limit), len(whole.label) + len(broken)
    lvis = bool(data.frequencies)
    skips = SkipReport()  # proposals
    if self.proposals:
      proposals, read = read_proposals(self.proposals, data, self.max_proposals, self.keep_classes, skips, progress)
      if not any(len(each.score) for each in proposals):
        raise ValueError(f"{self.proposals}: no proposal can be used: {skips.summary(read, 'proposals')}")
    else:
      proposals, read = [grid()] * len(data.images), len(grid().box) * len(data.images)
      notes.append(f"proposals are a grid of {len(grid().box)} boxes: what fits none of them cannot be found")
    prompts = templates.TEMPLATES[self.templates]
    classes = templates.class_embeddings(model, data.names, prompts, progress, "region")
    classes = jax.device_put(classes)
    scale = np.float32(learned_scale(model) if self.scale is None else self.scale)
    files = [paths.join(self.images, image.path) for image in data.images]
    most = None if self.fixed_ap else _MAX_DETECTIONS[lvis]
    found, used, floor, held = [], [], None, 0
    lost = SkipReport()  # images
    encoded = encode_boxes(model, files, [each.box for each in proposals], lost, progress)
    for number, features in encoded:
      used.append(number)
      found.append(name_boxes(number, proposals[number], features, classes, scale, self.nms, most, floor))
      held += len(found[-1].label)
      if self.fixed_ap and held > 2 * _FIXED_AP * len(classes):  # bounds what is held in memory
        best, floor = best_of_class(join(found), len(classes), _FIXED_AP)
        found, held = [best], len(best.label)
    if not used:
      raise ValueError(f"none of {len(files)} images could be used: {lost.summary(len(files))}")
    detections = join(found)
    if self.fixed_ap:
      detections, _ = best_of_class(detections, len(classes), _FIXED_AP)
    if lvis:
      detections = that_count(data, detections)
    values = average_precision(data, used, detections)
    notes += [broken.summary(entries, "boxes and images of the annotations"), skips.summary(read, "proposals")]
    notes.append(lost.summary(len(files)))
    return Result(values, _examples(data, detections), len(files), lost.counts + broken.counts, notes)


def learned_scale(model: FGCLIP) -> float:
  """The model's learned factor of cosines of regions with texts: its regional temperature, else the global one."""
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
  """The best pairs of a proposal and a class of one image, after suppression of overlapping boxes of a class.

  Args:
    image: the number of the image.
    proposals: its proposals.
    features: their unit-length embeddings.
    classes: unit-length embeddings of the classes.
    scale, nms: see `Detection`.
    most: the number of detections to return; None for all.
    floor: the score of each class that its detections must exceed.

  Returns:
    Up to `most` detections, best first.
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

  def best(candidates: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The box, class and score of what suppression keeps of the best pairs."""
    lowest = np.partition(flat, -candidates)[-candidates] if candidates < len(flat) else 0
    place = np.flatnonzero(flat >= max(lowest, 0))
    place = place[np.argsort(-flat[place], kind="stable")]
    row, label = np.divmod(place, scores.shape[1])
    if own:
      label = proposals.label[row]
    kept = suppress(overlap, row, label, most)
    return row[kept], label[kept], flat[place[kept]]

  few = min(_CANDIDATES * most, len(flat)) if most else len(flat)
  row, label, score = best(few)
  if len(row) != most and few < len(flat):  # suppression dropped too many of them
    row, label, score = best(len(flat))
  return Detections(np.full(len(row), image, np.int32), proposals.box[row], score, label.astype(np.int32))


@jax.jit
def _score(
  features: Float[Array, "P D"], score: Float[Array, "P"], classes: Float[Array, "C D"], scale: Float[Array, ""]
) -> Float[Array, "P C"]:
  """The score of each proposal for each class."""
  cosines = jnp.matmul(features, classes.T, precision=jax.lax.Precision.HIGHEST)
  return jnp.sqrt(score[:, None] * jax.nn.softmax(cosines * scale, axis=1))


def overlaps(box: Float32[np.ndarray, "P 4"], other: Float32[np.ndarray, "Q 4"]) -> Float64[np.ndarray, "P Q"]:
  """The intersection over union of boxes x1 y1 x2 y2 with others. All boxes have a size."""
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
  """Class-wise non-maximum suppression; returns the places of the candidates that are kept.

  Args:
    overlap: whether two boxes overlap too much.
    row, label: the box and the class of each candidate, best first.
    most: the number of candidates to keep; None for all.
  """
  gone: dict[int, np.ndarray] = {}  # by class, the boxes that overlap with one that is kept
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
