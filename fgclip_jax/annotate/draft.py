"""What is known of one picture while it goes through the stages, and what is written of it."""

import dataclasses
import hashlib
import json
from typing import Any

from fgclip_jax.annotate.items import Item, set_fields
from fgclip_jax.data import image as images
from fgclip_jax.data import record as records
from fgclip_jax.data.record import Record

Box = tuple[float, float, float, float]
PENDING = "pending"  # what is no fault: an answer is still to come


@dataclasses.dataclass
class Phrase:
  """A phrase of a caption that names a thing.

  Attributes:
    text: the phrase, a region's short caption.
    long: the phrase with what the caption goes on to say of it, a region's long caption.
    head: its noun.
  """

  text: str
  long: str = ""
  head: str = ""


@dataclasses.dataclass
class Region:
  """A box and what is said of it.

  Attributes:
    box: x1, y1, x2, y2 as fractions of the picture's sides.
    short, long: its captions; empty: none yet.
    negatives: captions that are wrong in one attribute of `short`.
    score: the detector's; None where there is none.
    given: whether the input had the box.
    differences: of those negatives that a model has compared with the region, in their order before any was rejected:
      the cosine less that of `short`.
    higher: the negatives whose difference is above the margin, and the difference.
  """

  box: Box
  short: str = ""
  long: str = ""
  negatives: list[str] = dataclasses.field(default_factory=list)
  score: float | None = None
  given: bool = False
  differences: list[float] = dataclasses.field(default_factory=list)
  higher: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Draft:
  """One picture on its way through the stages.

  Attributes:
    item: the picture.
    digest: the SHA-256 of its bytes, in hexadecimal digits.
    width, height: in pixels.
    short, long: its captions; empty: none yet.
    language: their language; empty: English.
    phrases: what is looked for in it.
    regions: its regions.
    rejected: the class of the reason for which it is not written; empty: it is.
    made_by: the models that have answered for it, by stage.
  """

  item: Item
  digest: str = ""
  width: int = 0
  height: int = 0
  short: str = ""
  long: str = ""
  language: str = ""
  phrases: list[Phrase] = dataclasses.field(default_factory=list)
  regions: list[Region] = dataclasses.field(default_factory=list)
  rejected: str = ""
  made_by: dict[str, str] = dataclasses.field(default_factory=dict)

  @classmethod
  def open(cls, item: Item, language: str = "") -> "Draft":
    """Begins with what the input knows.

    Raises:
      RecordError: the picture cannot be read or decoded.
    """
    data = item.read()
    width, height = images.open_image(data).size
    known = item.known
    regions = [
      Region(
        tuple(each["box"]), each.get("short", ""), each.get("long", ""), list(each.get("negatives", ())), None, True
      )
      for each in known.get("regions", ())
    ]
    return cls(
      item,
      hashlib.sha256(data).hexdigest(),
      width,
      height,
      known.get("short", ""),
      known.get("long", ""),
      known.get("language", language),
      regions=regions,
    )

  def to_record(self) -> Record:
    """The record that `prepare` makes of what is written, but for its picture."""
    regions = tuple(records.Region(each.box, each.short, each.long, tuple(each.negatives)) for each in self.regions)
    return Record(self.item.id, b"", self.short, self.long, regions, self.width, self.height, language=self.language)

  def to_json(self) -> str:
    """As one line; `from_json` reads it."""
    values = set_fields(self) | {"item": set_fields(self.item)}
    for name in ("phrases", "regions"):
      if name in values:
        values[name] = [set_fields(each) for each in values[name]]
    return json.dumps(values, ensure_ascii=False)

  @classmethod
  def from_json(cls, line: str) -> "Draft":
    """What `to_json` has written."""
    values: dict[str, Any] = json.loads(line)
    values["item"] = Item(**values["item"])
    values["phrases"] = [Phrase(**each) for each in values.get("phrases", ())]
    values["regions"] = [Region(**each | {"box": tuple(each["box"])}) for each in values.get("regions", ())]
    return cls(**values)


def pairs_form(draft: Draft) -> dict[str, Any]:
  """An annotation as `prepare pairs` reads it."""
  regions = [
    {
      "box": [round(value, 6) for value in region.box],
      "short": region.short,
      **({"long": region.long} if region.long else {}),
      **({"negatives": region.negatives} if region.negatives else {}),
    }
    for region in draft.regions
  ]
  long = {"long": draft.long} if draft.long else {}
  further = {
    name: found for name, found in (("captions", draft.item.known.get("captions")), ("regions", regions)) if found
  }
  return {"image": draft.item.id, "short": draft.short, **long, **further}


def finehard_form(draft: Draft) -> dict[str, Any]:
  """An annotation as FineHARD has it, and `prepare finehard` reads it."""
  boxes = []
  for region in draft.regions:
    score = 1.0 if region.score is None else region.score
    box = {"bbox": [*(round(value, 6) for value in region.box), round(score, 4)], "short_expr": region.short}
    box["long_expr"] = region.long or region.short
    box["flag_short_neg"] = int(bool(region.negatives))
    if region.negatives:
      box["short_expr_negs"] = {str(number): text for number, text in enumerate(region.negatives)}
    boxes.append(box)
  chinese = {"is_cn": True} if draft.language == "zh" else {}
  found = {"f_path": draft.item.id, "caption": draft.long or draft.short, "short_caption": draft.short}
  return found | {"bbox_info": boxes} | chinese


FORMS = {"pairs": pairs_form, "finehard": finehard_form}
