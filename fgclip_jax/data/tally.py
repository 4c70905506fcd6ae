"""Counts what a converter wrote, what it left out, and why."""

import dataclasses

from fgclip_jax.data.fields import Loss
from fgclip_jax.data.histograms import Histograms
from fgclip_jax.data.record import Record, RecordError

NAMES = {"file": "rest of file", "note": "nothing"}  # of losses that are not called what is left out
_OTHERS = ("findings", "histograms")  # the attributes that are no counts


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
    finding = Finding(loss, 0, _printable(file), record, _printable(error.field), _printable(error.message))
    finding = self.findings.setdefault(error.kind, finding)
    finding.count += 1
    return finding

  def merge(self, other: "Tally") -> None:
    """Adds the counts of a later part; examples of the earlier one stay."""
    for field in dataclasses.fields(self):
      if field.name not in _OTHERS:
        setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
    for kind, finding in other.findings.items():
      if kind in self.findings:
        self.findings[kind].count += finding.count
      else:
        self.findings[kind] = dataclasses.replace(finding)
    self.histograms.merge(other.histograms)

  @property
  def counts(self) -> dict[str, int]:
    """The counts of what was read and written."""
    return {field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in _OTHERS}

  @property
  def sorted_findings(self) -> list[tuple[str, Finding]]:
    """Class and finding, what was left out first, the most frequent first."""
    return sorted(self.findings.items(), key=lambda item: (item[1].loss == "note", -item[1].count, item[0]))

  @property
  def first_fault(self) -> Finding | None:
    """The first finding for which something was left out."""
    return next((finding for finding in self.findings.values() if finding.loss != "note"), None)

  def to_json(self) -> dict:
    """As a JSON object, which `from_json` reads."""
    findings = {kind: dataclasses.asdict(finding) for kind, finding in self.findings.items()}
    return {**self.counts, "findings": findings, "histograms": self.histograms.to_json()}

  @classmethod
  def from_json(cls, data: dict) -> "Tally":
    """Reads what `to_json` gave."""
    findings = {kind: Finding(**finding) for kind, finding in data["findings"].items()}
    return cls(**{**data, "findings": findings, "histograms": Histograms.from_json(data["histograms"])})

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


def _printable(text: str) -> str:
  """`text` with what UTF-8 cannot hold written as escapes, and on one line."""
  return text.encode("utf-8", "backslashreplace").decode().replace("\n", " ")
