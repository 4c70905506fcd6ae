"""Counts what a converter wrote, what it left out, and why."""

import dataclasses

from fgclip_jax.data.annotation_fields import Loss
from fgclip_jax.data.record import Record
from fgclip_jax.prepare.histograms import Histograms
from fgclip_jax.storage.errors import RecordError

NAMES = {"file": "rest of file", "note": "nothing"}  # of losses that are not called what is left out
_OTHERS = ("findings", "duplicates", "histograms")  # the attributes that are no counts


@dataclasses.dataclass
class Finding:
  """One class of things found: how often, and the first example.

  Attributes:
    loss: what is left out for it: the rest of a file, the record, the region, the negative; nothing for a note.
    count: how many.
    file, record, field, message: the first example; `record` counts from 0 within the file.
  """

  loss: Loss
  count: int
  file: str
  record: int
  field: str
  message: str

  @property
  def example(self) -> str:
    return f"{self.file}, record {self.record}: {self.field} {self.message}"


@dataclasses.dataclass
class Tally:
  """What one shard or one split holds, and the findings by class.

  Attributes:
    read, records: how many records were read, and written.
    long_captions, regions, regions_with_negatives, negatives, image_bytes: how much of each was written.
    findings: what was left out, or worth a note, by class.
    duplicates: images that come twice and were kept, by class.
    histograms: of what was written.
  """

  read: int = 0
  records: int = 0
  long_captions: int = 0
  regions: int = 0
  regions_with_negatives: int = 0
  negatives: int = 0
  image_bytes: int = 0
  findings: dict[str, Finding] = dataclasses.field(default_factory=dict)
  duplicates: dict[str, Finding] = dataclasses.field(default_factory=dict)
  histograms: Histograms = dataclasses.field(default_factory=Histograms)

  def add_record(self, record: Record) -> None:
    """Counts a record that was written."""
    self.records += 1
    self.long_captions += bool(record.long)
    self.regions += len(record.regions)
    self.regions_with_negatives += sum(bool(region.negatives) for region in record.regions)
    self.negatives += sum(len(region.negatives) for region in record.regions)
    self.image_bytes += len(record.image)
    self.histograms.add_record(record)

  def add_finding(self, loss: Loss, error: RecordError, file: str, record: int) -> Finding:
    """Counts a finding and returns its class."""
    return _count(self.findings, error.kind, Finding(loss, 1, file, record, error.field, error.message))

  def add_duplicates(self, count: int, error: RecordError, file: str, record: int) -> None:
    """Counts images that come twice and were kept; `error` is about the first of them."""
    _count(self.duplicates, error.kind, Finding("note", count, file, record, error.field, error.message))

  def merge(self, other: "Tally") -> None:
    """Adds the counts of a later part; examples of the earlier one stay."""
    for field in dataclasses.fields(self):
      if field.name not in _OTHERS:
        setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
    for ours, theirs in ((self.findings, other.findings), (self.duplicates, other.duplicates)):
      for kind, finding in theirs.items():
        _count(ours, kind, finding)
    self.histograms.merge(other.histograms)

  @property
  def counts(self) -> dict[str, int]:
    """The counts of what was read and written."""
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in _OTHERS}

  @property
  def sorted_findings(self) -> list[tuple[str, Finding]]:
    """Class and finding, duplicates that were kept too; what was left out first, the most frequent first."""
    rows = [*self.findings.items(), *self.duplicates.items()]
    return sorted(rows, key=lambda item: (item[1].loss == "note", -item[1].count, item[0]))

  @property
  def first_fault(self) -> Finding | None:
    """The first finding for which something was left out."""
    return next((finding for finding in self.findings.values() if finding.loss != "note"), None)

  def to_json(self) -> dict:
    """As a JSON object, which `from_json` reads."""
    findings, duplicates = (
      {kind: dataclasses.asdict(finding) for kind, finding in found.items()}
      for found in (self.findings, self.duplicates)
    )
    histograms = self.histograms.to_json()
    return {**self.counts, "findings": findings, "duplicates": duplicates, "histograms": histograms}

  @classmethod
  def from_json(cls, data: dict) -> "Tally":
    """Reads what `to_json` gave."""
    findings, duplicates = (
      {kind: Finding(**finding) for kind, finding in data[name].items()} for name in ("findings", "duplicates")
    )
    histograms = Histograms.from_json(data["histograms"])
    return cls(**{**data, "findings": findings, "duplicates": duplicates, "histograms": histograms})

  def format_table(self) -> str:
    """The findings as a table, what was left out first; empty if there are none."""
    rows = self.sorted_findings
    if not rows:
      return ""
    cells = [("class", "left out", "count", "first example")]
    cells += [(kind, NAMES.get(row.loss, row.loss), f"{row.count:,}", row.example) for kind, row in rows]
    widths = [max(len(row[column]) for row in cells) for column in range(3)]
    return "\n".join(
      f"  {kind:<{widths[0]}}  {loss:<{widths[1]}}  {count:>{widths[2]}}  {example}"
      for kind, loss, count, example in cells
    )


def _count(findings: dict[str, Finding], kind: str, finding: Finding) -> Finding:
  """Adds a finding to those of its class, and returns these; the first one stays the example."""
  if kind in findings:
    findings[kind].count += finding.count
  else:
    texts = {name: _printable(getattr(finding, name)) for name in ("file", "field", "message")}
    findings[kind] = dataclasses.replace(finding, **texts)
  return findings[kind]


def _printable(text: str) -> str:
  """`text` with what UTF-8 cannot hold written as escapes, and on one line."""
  return text.encode("utf-8", "backslashreplace").decode().replace("\n", " ")
