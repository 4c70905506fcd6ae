"""What a data set holds: counts, histograms, and what was left out and why. All of it can be added up over shards.

The bins of histograms are fixed, so that a histogram of many shards takes no more room than that of one. The two limits
of the text towers, 77 and 248 tokens, lie between bins.
"""

import bisect
import dataclasses
import itertools
import math
from collections.abc import Iterator

from fgclip_jax.data.record import DEFAULT_LANGUAGE, MAX_NEGATIVES, Record, Tokens
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import Scope, Skip, SkipReport

SCOPE_NAMES = {"file": "rest of file", "note": "nothing"}  # of scopes that are not called what is left out
_NOT_COUNTS = (
  "findings",
  "duplicates",
  "histograms",
  "languages",
  "sources",
)  # attributes of `DatasetStats` that are no counts
_OF_SETS = ("captions", "region_captions")
_MAX_SOURCES = 100  # of captions, which are counted by name

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
  "negatives_per_box": (*range(MAX_NEGATIVES + 2), 13, 16, 21, 31, 51, math.inf),
  "captions_per_image": (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 16, 21, 51, math.inf),
  "captions_per_box": (1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 16, 21, 51, math.inf),
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
  "captions_per_image": "sets of captions: captions of an image",
  "captions_per_box": "sets of captions: captions of a box",
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
    edges: the rising edges of the bins; the last may be infinite.
    counts: the count of each bin.
    total, low, high: the sum, the least and the greatest of the values.
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
    """The number of values."""
    return sum(self.counts)

  @property
  def mean(self) -> float:
    """The mean of the values; NaN if there are none."""
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
    """Returns the label and the count of each bin, from the first to the last that is not empty."""
    held = [index for index, count in enumerate(self.counts) if count]
    if not held:
      return []
    # Bins of whole numbers are labelled by the first and the last number in them, others by their edges.
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
    """Returns a JSON object, which `from_json` reads; numbers that are not finite become null."""
    finite = {key: value if math.isfinite(value) else None for key, value in (("low", self.low), ("high", self.high))}
    edges = [edge if math.isfinite(edge) else None for edge in self.edges]
    return {"edges": edges, "counts": self.counts, "total": self.total, **finite}

  @classmethod
  def from_json(cls, data: dict) -> "Histogram":
    """Reads what `to_json` returned."""
    edges = tuple(math.inf if edge is None else edge for edge in data["edges"])
    low = math.inf if data["low"] is None else data["low"]
    high = -math.inf if data["high"] is None else data["high"]
    return cls(edges, list(data["counts"]), data["total"], low, high)


class Histograms(dict[str, Histogram]):
  """All histograms of a data set by name; `EDGES` lists them."""

  def __init__(self):
    super().__init__((name, Histogram(edges)) for name, edges in EDGES.items())

  def add_record(self, record: Record) -> None:
    """Counts a record's values; tokens and the image's width and height may be unknown, and are then not counted."""
    for name, value in _measure(record):
      self[name].add(value)

  def merge(self, other: "Histograms") -> None:
    """Adds the counts of other histograms."""
    for name, histogram in other.items():
      self[name].merge(histogram)

  def to_json(self) -> dict:
    """Returns a JSON object, which `from_json` reads."""
    return {name: histogram.to_json() for name, histogram in self.items()}

  @classmethod
  def from_json(cls, data: dict) -> "Histograms":
    """Reads what `to_json` returned."""
    histograms = cls()
    for name, value in data.items():
      found = Histogram.from_json(value)
      if found.edges != (edges := EDGES.get(name, found.edges)) and found.edges == edges[: len(found.edges)]:
        # an earlier version's bins end where values did; those that came since are empty
        found = dataclasses.replace(found, edges=edges, counts=found.counts + [0] * (len(edges) - len(found.edges)))
      histograms[name] = found
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
  if record.captions:
    yield "captions_per_image", len(record.captions)
  yield "boxes_per_image", len(record.regions)
  for region in record.regions:
    if region.captions:
      yield "captions_per_box", len(region.captions)
    yield "negatives_per_box", len(region.negatives)
    x1, y1, x2, y2 = region.box
    yield from (("box_area", (x2 - x1) * (y2 - y1)), ("box_width", x2 - x1), ("box_height", y2 - y1))
  yield "image_kilobytes", len(record.image) // 1000
  if record.width and record.height:
    yield from (("image_width", record.width), ("image_height", record.height))
    yield "image_aspect", max(record.width, record.height) / min(record.width, record.height)


@dataclasses.dataclass
class DatasetStats:
  """What one shard or one split holds, and what was left out of it.

  Attributes:
    read, records: how many records were read, and written.
    long_captions, regions, regions_with_negatives, negatives, image_bytes: how much of each was written.
    findings: what was left out, or is worth a note. Places are written `FILE, record NUMBER`, counted from 0.
    duplicates: images that come twice and were kept.
    histograms: the histograms of what was written.
    languages: the records of each language, by its code; empty where no record names one.
    captions, region_captions: the captions in sets, of images and of regions.
    sources: the captions in sets of each source, by its name, of those that name one; at most `_MAX_SOURCES` names.
  """

  read: int = 0
  records: int = 0
  long_captions: int = 0
  regions: int = 0
  regions_with_negatives: int = 0
  negatives: int = 0
  image_bytes: int = 0
  findings: SkipReport = dataclasses.field(default_factory=SkipReport)
  duplicates: SkipReport = dataclasses.field(default_factory=SkipReport)
  histograms: Histograms = dataclasses.field(default_factory=Histograms)
  languages: dict[str, int] = dataclasses.field(default_factory=dict)
  captions: int = 0
  region_captions: int = 0
  sources: dict[str, int] = dataclasses.field(default_factory=dict)

  def add_record(self, record: Record) -> None:
    """Counts a record that was written."""
    self.records += 1
    self.long_captions += bool(record.long)
    self.regions += len(record.regions)
    self.regions_with_negatives += sum(bool(region.negatives) for region in record.regions)
    self.negatives += sum(len(region.negatives) for region in record.regions)
    self.image_bytes += len(record.image)
    if record.language:
      self.languages[record.language] = self.languages.get(record.language, 0) + 1
    self.captions += len(record.captions)
    self.region_captions += sum(len(region.captions) for region in record.regions)
    for caption in itertools.chain(record.captions, *(region.captions for region in record.regions)):
      if caption.source:
        self._add_source(caption.source, 1)
    self.histograms.add_record(record)

  def add_finding(self, scope: Scope, error: RecordError, file: str, record: int, count: int = 1) -> None:
    """Counts what was left out for an error, or a note; `error` is about the first of `count`."""
    self.findings.add(Skip.of(error, f"{file}, record {record}", scope), count)

  def add_duplicates(self, count: int, error: RecordError, file: str, record: int) -> None:
    """Counts images that come twice and were kept; `error` is about the first of them."""
    self.duplicates.add(Skip.of(error, f"{file}, record {record}", "note"), count)

  def merge(self, later: "DatasetStats") -> None:
    """Adds the counts of a later part; examples of the earlier one stay."""
    for name, count in later.counts.items():
      setattr(self, name, getattr(self, name) + count)
    self.findings.merge(later.findings)
    self.duplicates.merge(later.duplicates)
    self.histograms.merge(later.histograms)
    for language, count in later.languages.items():
      self.languages[language] = self.languages.get(language, 0) + count
    for source, count in later.sources.items():
      self._add_source(source, count)

  def _add_source(self, source: str, count: int) -> None:
    if source not in self.sources and len(self.sources) >= _MAX_SOURCES:
      source = "others"  # a data set may name a source for each caption
    self.sources[source] = self.sources.get(source, 0) + count

  @property
  def has_sets(self) -> bool:
    """Whether a record holds what those of version 1 cannot: a set of captions, or more than ten negatives."""
    return bool(self.captions or self.region_captions or self.histograms["negatives_per_box"].high > MAX_NEGATIVES)

  @property
  def all_languages(self) -> dict[str, int]:
    """The records of each language; one that names none is in English."""
    others = {code: count for code, count in self.languages.items() if code != DEFAULT_LANGUAGE}
    english = self.records - sum(others.values())
    return others | ({DEFAULT_LANGUAGE: english} if english else {})

  @property
  def counts(self) -> dict[str, int]:
    """The counts of what was read and written; of sets only where there are any."""
    names = [field.name for field in dataclasses.fields(self) if field.name not in _NOT_COUNTS]
    return {name: count for name in names if (count := getattr(self, name)) or name not in _OF_SETS}

  @property
  def sorted_findings(self) -> list[tuple[Skip, int]]:
    """The first of each kind and its count, kept duplicates too; what was left out first, the most frequent first."""
    rows = [*self.findings.firsts(), *self.duplicates.firsts()]
    return sorted(rows, key=lambda row: (row[0].scope == "note", -row[1], row[0].kind))

  @property
  def first_fault(self) -> Skip | None:
    """The first finding for which something was left out."""
    return next((skip for skip, _ in self.findings.firsts() if skip.scope != "note"), None)

  def to_json(self) -> dict:
    """Returns a JSON object, which `from_json` reads."""
    findings, duplicates = _skips_to_json(self.findings), _skips_to_json(self.duplicates)
    histograms = self.histograms.to_json()
    named = {name: value for name in ("languages", "sources") if (value := getattr(self, name))}
    return {**self.counts, "findings": findings, "duplicates": duplicates, "histograms": histograms, **named}

  @classmethod
  def from_json(cls, data: dict) -> "DatasetStats":
    """Reads what `to_json` returned."""
    findings, duplicates = _skips_from_json(data["findings"]), _skips_from_json(data["duplicates"])
    histograms = Histograms.from_json(data["histograms"])
    return cls(**{**data, "findings": findings, "duplicates": duplicates, "histograms": histograms})

  def format_table(self) -> str:
    """Formats the findings as a table, what was left out first; empty if there are none."""
    rows = self.sorted_findings
    if not rows:
      return ""
    cells = [("class", "left out", "count", "first example")]
    cells += [
      (skip.kind, SCOPE_NAMES.get(skip.scope, skip.scope), f"{count:,}", format_example(skip)) for skip, count in rows
    ]
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    return "\n".join(
      f"  {kind:<{widths[0]}}  {scope:<{widths[1]}}  {count:>{widths[2]}}  {example}"
      for kind, scope, count, example in cells
    )


def format_example(skip: Skip) -> str:
  """Formats a finding's place, field and message."""
  return f"{skip.place}: {skip.field} {skip.message}"


def _skips_to_json(report: SkipReport) -> dict[str, dict]:
  """Returns the JSON form of a report by kind; `loss` is the scope."""
  found = {}
  for skip, count in report.firsts():
    file, _, record = skip.place.rpartition(", record ")
    texts = {"file": file, "record": int(record), "field": skip.field, "message": skip.message}
    found[skip.kind] = {"loss": skip.scope, "count": count, **texts}
  return found


def _skips_from_json(data: dict[str, dict]) -> SkipReport:
  report = SkipReport()
  for kind, found in data.items():
    place = f"{found['file']}, record {found['record']}"
    report.add(Skip(kind, found["message"], found["field"], place, found["loss"]), found["count"])
  return report
