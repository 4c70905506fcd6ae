"""Compares hard negatives with their regions: one that fits what is framed better than its positive may be true."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fgclip_jax.annotate.boxes.own import BATCH, Own, compare_regions
from fgclip_jax.annotate.draft import Draft, Region
from fgclip_jax.annotate.journal import Outcome
from fgclip_jax.annotate.stage import Tally, Task, count_failure, digest
from fgclip_jax.storage.errors import RecordError

MARGIN = 0.05  # of cosines; measured on rendered scenes, see benchmarks/README.md


@dataclasses.dataclass(frozen=True)
class Check:
  """The stage `check`, after all others: also negatives that the input had are compared.

  Attributes:
    judge: the model that compares.
    margin: a negative whose cosine with its region is above the positive's by more than that *scores higher*.
    reject: whether it is left out then; else it is only noted.
  """

  judge: Own
  margin: float = MARGIN
  reject: bool = False
  name = "check"

  def signature(self) -> dict[str, Any]:
    return self._signature  # without margin and reject: another choice of these asks nothing anew

  @functools.cached_property
  def _signature(self) -> dict[str, Any]:  # each picture asks for it, and a model's takes the sums of its weights
    return {"version": 1, "judge": self.judge.signature()}

  def tasks(self, draft: Draft) -> Iterator[Task]:
    """One question for each picture, of all its regions that have negatives."""
    regions = _with_negatives(draft)
    if regions:
      asked = [[region.box, region.short, region.negatives] for region in regions]
      yield Task(digest([self.signature(), draft.digest, asked]), draft)

  def run(self, tasks: list[Task], part: int) -> Iterator[Outcome]:
    del part
    for start in range(0, len(tasks), BATCH):
      yield from self._compare(tasks[start : start + BATCH])

  def _compare(self, tasks: list[Task]) -> Iterator[Outcome]:
    regions = [_with_negatives(task.draft) for task in tasks]
    try:
      cosines = compare_regions(
        self.judge.model,
        [task.draft.item.read() for task in tasks],
        [np.asarray([region.box for region in each], np.float32) for each in regions],
        [[(region.short, *region.negatives) for region in each] for each in regions],
      )
    except RecordError as error:  # one of them cannot be used: which one is found out one by one
      if len(tasks) == 1:
        yield Outcome(tasks[0].key, failure=error.kind, detail=error.message)
        return
      yield from itertools.chain.from_iterable(self._compare([task]) for task in tasks)
      return
    for task, found in zip(tasks, cosines, strict=True):
      yield Outcome(task.key, {"cosines": [[round(float(value), 6) for value in row] for row in found]})

  def apply(self, draft: Draft, outcomes: Mapping[str, Outcome], tally: Tally) -> None:
    regions = _with_negatives(draft)
    count = sum(len(region.negatives) for region in regions)
    tally["check.negatives"] += count
    if not count:
      return
    outcome = next(iter(outcomes.values()), None)
    if outcome is None or outcome.failure:
      count_failure(tally, self.name, outcome)
      tally[f"check.{'failed' if outcome else 'pending'}_negatives"] += count
      return
    for region, (positive, *others) in zip(regions, outcome.value["cosines"], strict=True):
      region.differences = [round(cosine - positive, 6) for cosine in others]
      pairs = zip(region.negatives, region.differences, strict=True)
      region.higher = {text: difference for text, difference in pairs if difference > self.margin}
      higher = sum(difference > self.margin for difference in region.differences)
      tally["check.not_higher"] += len(region.negatives) - higher
      tally[f"check.{'rejected' if self.reject else 'noted'}"] += higher
      if self.reject:
        region.negatives = [text for text in region.negatives if text not in region.higher]


def _with_negatives(draft: Draft) -> list[Region]:
  return [region for region in draft.regions if region.negatives]
