"""Where the phrases are: regions of a picture."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fgclip_jax.annotate.asking import Asking
from fgclip_jax.annotate.boxes.backend import Detector, Found, Located, Question
from fgclip_jax.annotate.boxes.rescore import Rescored
from fgclip_jax.annotate.boxes.served import Served
from fgclip_jax.annotate.boxes.suppress import MAX_REGIONS, select
from fgclip_jax.annotate.draft import Draft, Region
from fgclip_jax.annotate.journal import Outcome
from fgclip_jax.annotate.servers.requests import Request
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
      about = [draft.digest, [phrase.text for phrase in draft.phrases]]
      if self.served:  # whose prompt is in that language
        about.append(draft.language)
      yield Task(digest([self.signature(), *about]), draft)

  @property
  def served(self) -> Served | None:
    """The detector, if it is a model on servers."""
    detector = self.detector.detector if isinstance(self.detector, Rescored) else self.detector
    return detector if isinstance(detector, Served) else None

  @property
  def asking(self) -> Asking | None:
    """The model servers that are asked, if any are."""
    return self.served.asking if self.served else None

  def requests(self, tasks: Iterable[Task], broken: list[Outcome]) -> Iterator[Request]:
    """What tasks ask of model servers; of one whose picture cannot be read the outcome goes to `broken`."""
    if self.served:
      unread: list[Located] = []
      yield from self.served.requests(self._questions(tasks, broken), unread)
      broken += map(_outcome, unread)

  def run(self, tasks: list[Task], part: int) -> Iterator[Outcome]:
    assert self.detector is not None  # else there are no tasks
    broken: list[Outcome] = []
    seen = wrong = 0
    for located in self.detector.locate(self._questions(tasks, broken), part):
      wrong += sum(located.bad.get(kind, 0) for kind in _WRONG)
      seen += len(located.found) + sum(located.bad.values())
      if wrong > max(_BAD_LEAST, _BAD_SHARE * seen):
        raise ValueError(
          f"{wrong} of {seen} boxes lie outside of their picture or have their corners swapped: the convention of the "
          f"detector is another one than {self.signature().get('convention', 'declared')}; see --convention"
        )
      yield _outcome(located)
    yield from broken

  def _questions(self, tasks: Iterable[Task], broken: list[Outcome]) -> Iterator[Question]:
    """The question of each task; of one whose picture cannot be read the outcome goes to `broken`."""
    for task in tasks:
      draft = task.draft
      try:
        data = draft.item.read()
      except RecordError as error:
        broken.append(Outcome(task.key, failure=error.kind, detail=error.message))
        continue
      phrases = tuple(phrase.text for phrase in draft.phrases)
      yield Question(task.key, data, (draft.width, draft.height), phrases, draft.language)

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
  found = [[*(round(value, 6) for value in each.box), each.phrase, round(each.score, 6)] for each in located.found]
  value = None if located.failure else {"found": found, "bad": located.bad}
  return Outcome(
    located.key, value, located.failure, located.detail, located.attempts, located.model, located.tokens
  )  # fmt: skip
