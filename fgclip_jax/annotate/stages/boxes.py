"""Where the phrases are: regions of a picture."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from fgclip_jax.annotate.boxes.backend import Detector, Found, Located, Question
from fgclip_jax.annotate.boxes.suppress import MAX_REGIONS, select
from fgclip_jax.annotate.draft import Draft, Region
from fgclip_jax.annotate.journal import Outcome
from fgclip_jax.annotate.stage import Tally, Task, count_failure, digest
from fgclip_jax.storage.errors import RecordError

_BAD_SHARE, _BAD_LEAST = 0.02, 50  # more boxes outside or swapped than that are a wrong convention
_WRONG = ("box_outside", "box_swapped")


@dataclasses.dataclass(frozen=True)
class Boxes:
  """The stage `boxes`: looks for the phrases of pictures that have no regions.

  Attributes:
    detector: what finds them; None: only what the input has is kept.
    threshold: the least score; None: the detector's own.
    limit: the most regions of a picture.
  """

  detector: Detector | None = None
  threshold: float | None = None
  limit: int = MAX_REGIONS
  name = "boxes"

  def signature(self) -> dict[str, Any]:
    return self._signature

  @functools.cached_property
  def _signature(self) -> dict[str, Any]:  # each picture asks for it, and a model's takes the sums of its weights
    return {"version": 1, **(self.detector.signature() if self.detector else {"detector": "existing"})}

  def tasks(self, draft: Draft) -> Iterator[Task]:
    if self.detector and draft.phrases and not any(region.given for region in draft.regions):
      phrases = [phrase.text for phrase in draft.phrases]
      yield Task(digest([self.signature(), draft.digest, phrases]), draft)

  def run(self, tasks: list[Task], part: int) -> Iterator[Outcome]:
    assert self.detector is not None  # else there are no tasks
    del part
    broken: list[Outcome] = []

    def questions() -> Iterator[Question]:
      for task in tasks:
        draft = task.draft
        try:
          data = draft.item.read()
        except RecordError as error:
          broken.append(Outcome(task.key, failure=error.kind, detail=error.message))
          continue
        yield Question(task.key, data, (draft.width, draft.height), tuple(phrase.text for phrase in draft.phrases))

    seen = wrong = 0
    for located in self.detector.locate(questions()):
      wrong += sum(located.bad.get(kind, 0) for kind in _WRONG)
      seen += len(located.found) + sum(located.bad.values())
      if wrong > max(_BAD_LEAST, _BAD_SHARE * seen):
        raise ValueError(
          f"{wrong} of {seen} boxes lie outside of their picture or have their corners swapped: the convention of the "
          f"detector is another one than {self.signature().get('convention', 'declared')}; see --convention"
        )
      yield _outcome(located)
    yield from broken

  def apply(self, draft: Draft, outcomes: Mapping[str, Outcome], tally: Tally) -> None:
    given = [region for region in draft.regions if region.given]
    tally["boxes.given"] += len(given)
    if given or not draft.phrases:
      return
    tally["boxes.phrases"] += len(draft.phrases)
    if not self.detector:
      tally["boxes.no_box"] += len(draft.phrases)
      return
    outcome = next(iter(outcomes.values()), None)
    if outcome is None or outcome.failure:
      count_failure(tally, self.name, outcome)
      tally[f"boxes.{'failed' if outcome else 'pending'}_phrases"] += len(draft.phrases)
      return
    found = [Found((x, y, u, v), phrase, score) for x, y, u, v, phrase, score in outcome.value["found"]]
    for kind, count in outcome.value["bad"].items():
      tally[f"boxes.bad.{kind}"] += count
    threshold = self.detector.threshold if self.threshold is None else self.threshold
    kept, lost = select(found, (draft.width, draft.height), threshold, self.limit)
    for kind, count in lost.items():
      tally[f"boxes.{kind}"] += count
    tally["boxes.no_box"] += len(draft.phrases) - len({each.phrase for each in found})
    tally["boxes.regions"] += len(kept)
    for each in kept:
      phrase = draft.phrases[each.phrase]
      draft.regions.append(Region(each.box, phrase.text, phrase.long, [], round(each.score, 4)))


def _outcome(located: Located) -> Outcome:
  if located.failure:
    return Outcome(located.key, failure=located.failure, detail=located.detail)
  found = [[*(round(value, 6) for value in each.box), each.phrase, round(each.score, 6)] for each in located.found]
  return Outcome(located.key, {"found": found, "bad": located.bad})
