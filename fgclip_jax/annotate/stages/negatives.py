"""Hard negatives: captions of a region that are wrong in one attribute."""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fgclip_jax.annotate.boxes.suppress import overlap
from fgclip_jax.annotate.draft import Draft, Region
from fgclip_jax.annotate.journal import Outcome
from fgclip_jax.annotate.rules import negative_checks
from fgclip_jax.annotate.rules import negatives as rules
from fgclip_jax.annotate.rules import phrases as phrase_rules
from fgclip_jax.annotate.rules.lexicon import DEFAULT_CLASSES
from fgclip_jax.annotate.servers import prompts
from fgclip_jax.annotate.servers.requests import Request
from fgclip_jax.annotate.stage import Tally, Task, count_failure, digest
from fgclip_jax.annotate.stages.served import ServedStage
from fgclip_jax.data.record import MAX_NEGATIVES

ASKED = 14  # of a model, of which ten are to be left
SAME_PLACE = 0.3  # the overlap from which on what is said of one region may be true of the other


@dataclasses.dataclass
class Frequencies:
  """How often each value of an attribute stands in the captions of regions, by language."""

  counts: dict[str, collections.Counter[str]] = dataclasses.field(default_factory=dict)

  def add(self, captions: Iterable[str], language: str) -> None:
    """Counts the values of captions."""
    counts = self.counts.setdefault(language, collections.Counter())
    counts.update(rules.count_values(captions, language))

  def merge(self, other: "Frequencies") -> None:
    """Adds another part's."""
    for language, counts in other.counts.items():
      self.counts.setdefault(language, collections.Counter()).update(counts)


@dataclasses.dataclass(frozen=True)
class Negatives(ServedStage):
  """The stage `negatives`; without servers the rules make them.

  Attributes:
    count: how many a region gets at most.
    frequencies: of the values in the captions of all regions, by language; None: the lexicon's.
    classes: the attributes that may change; empty: those of the rules' default.
  """

  count: int = MAX_NEGATIVES
  frequencies: Frequencies | None = None
  classes: tuple[str, ...] = ()
  name = "negatives"

  def with_frequencies(self, frequencies: Frequencies) -> "Negatives":
    """The stage, when all captions of regions are known."""
    return dataclasses.replace(self, frequencies=frequencies)

  def make_prompt(self, language: str) -> prompts.Prompt:
    return prompts.make_negatives_prompt(language, ASKED)

  def settings(self) -> dict[str, Any]:
    return {"classes": self.classes} | ({} if self.asking else {"negatives": "rules", "count": self.count})

  def tasks(self, draft: Draft) -> Iterator[Task]:
    """A question for each caption of a region; equal ones, in this part, are one."""
    for region in draft.regions if self.asking else ():
      if not region.negatives and phrase_rules.find_attributes(region.short, draft.language or "en"):
        yield Task(self._key(region.short, draft.language), draft, region.short)

  def _key(self, phrase: str, language: str) -> str:
    return digest([self.signature(), phrase, language])

  def run(self, tasks: list[Task], part: int) -> Iterator[Outcome]:
    assert self.asking is not None  # else there are no tasks
    positives = {task.key: task.about for task in tasks if isinstance(task.about, str)}

    def check(request: Request, value: Any) -> str | None:
      texts = [each["text"] for each in value["negatives"]]
      broken = [negative_checks.check(positives[request.key], text, request.language) for text in texts]
      return next(filter(None, broken), None) if all(broken) else None

    yield from self.asking.ask(self.requests(tasks, []), check, f"{self.name}-{part:05d}")

  def requests(self, tasks: Iterable[Task], broken: list[Outcome]) -> Iterator[Request]:
    del broken  # no picture is read
    assert self.asking is not None
    for task in tasks:
      language = task.draft.language or "en"
      prompt, phrase = self.prompt(language), task.about
      whole = phrase_rules.whole(phrase, language)
      named = [
        (each.attribute, each.value) for each in whole.attributes if not self.classes or each.attribute in self.classes
      ]
      messages = prompts.negatives_messages(prompt, phrase, whole.head, named, ASKED)
      yield self.asking.request(task.key, messages, prompt)

  def apply(self, draft: Draft, outcomes: Mapping[str, Outcome], tally: Tally) -> None:
    for number, region in enumerate(draft.regions):
      tally["negatives.regions"] += 1
      if region.negatives:
        tally["negatives.given"] += 1
      elif self.asking:
        self._take(draft, region, outcomes.get(self._key(region.short, draft.language)), tally)
      else:
        self._draw(draft, number, region, tally)
      count = len(region.negatives)
      tally[f"negatives.{'ten_or_more' if count >= self.count else 'fewer' if count else 'none'}"] += 1

  def _draw(self, draft: Draft, number: int, region: Region, tally: Tally) -> None:
    # of each region another one, in every run the same
    seed = int(digest([draft.digest, number, region.short])[:15], 16)
    drawer = self._drawers(draft.language or "en")
    for each in drawer.draw(region.short, self.count, seed, draft.long):
      tally[f"negatives.made.{each.attribute}"] += 1
      region.negatives.append(each.text)

  def _drawers(self, language: str) -> rules.Drawer:
    counts = self.frequencies.counts.get(language, {}) if self.frequencies else {}
    return _make_drawer(language, tuple(sorted(counts.items())), self.classes or DEFAULT_CLASSES)

  def _take(self, draft: Draft, region: Region, outcome: Outcome | None, tally: Tally) -> None:
    language = draft.language or "en"
    if outcome is None or outcome.failure:
      if phrase_rules.find_attributes(region.short, language):
        count_failure(tally, self.name, outcome)
      return
    there = [one.short for one in draft.regions if one is not region and overlap(one.box, region.box) > SAME_PLACE]
    for each in outcome.value["negatives"]:
      text, mended = negative_checks.repair(region.short, each["text"], language)
      for kind in mended:
        tally[f"negatives.mended.{kind}"] += 1
      broken = negative_checks.check(region.short, text, language, draft.long, region.negatives, there)
      if not broken and len(region.negatives) == self.count:
        broken = "over_limit"
      tally["negatives.answers"] += 1
      tally[f"negatives.broken.{broken}" if broken else "negatives.kept"] += 1
      if not broken:
        region.negatives.append(text)


@functools.lru_cache(maxsize=4)
def _make_drawer(language: str, counts: tuple[tuple[str, int], ...], classes: tuple[str, ...]) -> rules.Drawer:
  return rules.Drawer(language, dict(counts), classes)
