"""Histograms of what a data set holds, which can be added up over shards.

Their bins are fixed, so that a histogram of many shards takes no more room than that of one. The two limits of the
text towers, 77 and 248 tokens, lie between bins.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterator

from fgclip_jax.data.record import MAX_NEGATIVES, Record, Tokens

Number = int | float
_SHORT = (*range(0, 79, 3), 96, 128, 192, 249, math.inf)
_LONG = (*range(0, 250, 25)[:-1], 249, 300, 400, 600, 1000, math.inf)
_SHARES = (0, 0.01, 0.02, 0.05, *(tenth / 10 for tenth in range(1, 10)), math.inf)
_SIDES = (0, 8, 16, 32, 64, 96, 128, 192, 224, 256, 336, 384, 512, 768, 1024, 1536, 2048, 4096, math.inf)

EDGES: dict[str, tuple[Number, ...]] = {
  "short_caption_tokens": _SHORT,
  "long_caption_tokens": _LONG,
  "region_short_caption_tokens": _SHORT,
  "region_long_caption_tokens": _SHORT,
  "negative_tokens": _SHORT,
  "boxes_per_image": (0, 1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 50, math.inf),
  "negatives_per_box": tuple(range(MAX_NEGATIVES + 2)),
  "box_area": (0, 0.0001, 0.001, 0.0025, 0.005, *_SHARES[1:]),
  "box_width": _SHARES,
  "box_height": _SHARES,
  "image_width": _SIDES,
  "image_height": _SIDES,
  "image_aspect": (1, 1.25, 1.5, 1.75, 2, 2.5, 3, 4, 5, 10, 20, math.inf),
  "image_kilobytes": (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, math.inf),
}
TITLES = {
  "short_caption_tokens": "short captions: tokens (the tower reads 77)",
  "long_caption_tokens": "long captions: tokens (the tower reads 248)",
  "region_short_caption_tokens": "regions' short captions: tokens (the tower reads 77)",
  "region_long_caption_tokens": "regions' long captions: tokens (the tower reads 77)",
  "negative_tokens": "hard negatives: tokens (the tower reads 77)",
  "boxes_per_image": "boxes of an image",
  "negatives_per_box": "hard negatives of a box",
  "box_area": "boxes: share of the image's area",
  "box_width": "boxes: share of the image's width",
  "box_height": "boxes: share of the image's height",
  "image_width": "images: width in pixels",
  "image_height": "images: height in pixels",
  "image_aspect": "images: longer side over shorter side",
  "image_kilobytes": "images: size of the file in kB",
}


@dataclasses.dataclass
class Histogram:
  """Counts of values between edges; a value equal to an edge counts above it.

  Attributes:
    edges: of the bins, rising; the last may be infinite.
    counts: one for each bin; empty until the first value.
    total, low, high: sum, least and greatest of the values.
  """

  edges: tuple[Number, ...]
  counts: list[int] = dataclasses.field(default_factory=list)
  total: Number = 0
  low: Number = math.inf
  high: Number = -math.inf

  def __post_init__(self):
    self.counts = self.counts or [0] * (len(self.edges) - 1)

  @property
  def count(self) -> int:
    """How many values."""
    return sum(self.counts)

  @property
  def mean(self) -> float:
    """Of the values; not a number if there are none."""
    return self.total / self.count if self.count else math.nan

  def add(self, value: Number) -> None:
    """Counts a value; one outside the edges counts in the first or the last bin."""
    self.counts[min(max(bisect.bisect_right(self.edges, value) - 1, 0), len(self.counts) - 1)] += 1
    self.total += value
    self.low, self.high = min(self.low, value), max(self.high, value)

  def merge(self, other: "Histogram") -> None:
    """Adds the counts of another histogram.

    Raises:
      ValueError: it has other edges.
    """
    if other.edges != self.edges:
      raise ValueError(f"histograms of different edges cannot be added: {self.edges} and {other.edges}")
    self.counts = [ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True)]
    self.total += other.total
    self.low, self.high = min(self.low, other.low), max(self.high, other.high)

  def bins(self) -> list[tuple[str, int]]:
    """Label and count of each bin from the first to the last that holds anything."""
    held = [index for index, count in enumerate(self.counts) if count]
    if not held:
      return []
    # whole numbers from an edge to the next less one are written as such; shares and ratios by their lower edge
    whole = all(edge == int(edge) for edge in self.edges if math.isfinite(edge))
    return [(self._label(index, whole), self.counts[index]) for index in range(held[0], held[-1] + 1)]

  def _label(self, index: int, whole: bool) -> str:
    start, end = self.edges[index], self.edges[index + 1]
    if math.isinf(end):
      return f"{start:g} and more"
    if whole and end - start == 1:
      return f"{start:g}"
    return f"{start:g} to {end - 1:g}" if whole else f"{start:g} to {end:g}"

  def to_json(self) -> dict:
    """As a JSON object, which `from_json` reads; null stands for what is not finite."""
    finite = {key: value if math.isfinite(value) else None for key, value in (("low", self.low), ("high", self.high))}
    edges = [edge if math.isfinite(edge) else None for edge in self.edges]
    return {"edges": edges, "counts": self.counts, "total": self.total, **finite}

  @classmethod
  def from_json(cls, data: dict) -> "Histogram":
    """Reads what `to_json` gave."""
    edges = tuple(math.inf if edge is None else edge for edge in data["edges"])
    low = math.inf if data["low"] is None else data["low"]
    high = -math.inf if data["high"] is None else data["high"]
    return cls(edges, list(data["counts"]), data["total"], low, high)


class Histograms(dict[str, Histogram]):
  """All histograms of a data set by name, see `EDGES`."""

  def __init__(self):
    super().__init__((name, Histogram(edges)) for name, edges in EDGES.items())

  def add_record(self, record: Record) -> None:
    """Counts a record's values, as far as it has them: tokens, and the image's width and height, may be unknown."""
    for name, value in _measure(record):
      self[name].add(value)

  def merge(self, other: "Histograms") -> None:
    """Adds the counts of other histograms."""
    for name, histogram in other.items():
      self[name].merge(histogram)

  def to_json(self) -> dict:
    """As a JSON object, which `from_json` reads."""
    return {name: histogram.to_json() for name, histogram in self.items()}

  @classmethod
  def from_json(cls, data: dict) -> "Histograms":
    """Reads what `to_json` gave."""
    histograms = cls()
    histograms.update((name, Histogram.from_json(value)) for name, value in data.items())
    return histograms


def _measure(record: Record) -> Iterator[tuple[str, Number]]:
  tokens = record.tokens or Tokens(short=())
  for name, texts in (
    ("short_caption_tokens", [tokens.short]),
    ("long_caption_tokens", [tokens.long]),
    ("region_short_caption_tokens", tokens.region_short),
    ("region_long_caption_tokens", tokens.region_long),
    ("negative_tokens", itertools.chain.from_iterable(tokens.negatives)),
  ):
    yield from ((name, len(ids)) for ids in texts if ids)
  yield "boxes_per_image", len(record.regions)
  for region in record.regions:
    yield "negatives_per_box", len(region.negatives)
    x1, y1, x2, y2 = region.box
    yield from (("box_area", (x2 - x1) * (y2 - y1)), ("box_width", x2 - x1), ("box_height", y2 - y1))
  yield "image_kilobytes", len(record.image) // 1000
  if record.width and record.height:
    yield from (("image_width", record.width), ("image_height", record.height))
    yield "image_aspect", max(record.width, record.height) / min(record.width, record.height)
