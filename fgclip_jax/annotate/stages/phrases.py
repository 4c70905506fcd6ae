"""The phrases of a caption that name things: what regions are looked for."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from fgclip_jax.annotate import draft as drafts
from fgclip_jax.annotate.draft import Draft
from fgclip_jax.annotate.journal import Outcome
from fgclip_jax.annotate.rules import phrases as rules
from fgclip_jax.annotate.stage import Tally, Task


@dataclasses.dataclass(frozen=True)
class Phrases:
  """The stage `phrases`: by the rules, or by spaCy where `parser` names one of its models.

  Pictures whose regions are given need none.
  """

  parser: str = ""
  name = "phrases"

  def signature(self) -> dict[str, Any]:
    return {"version": 1, "parser": self.parser or "rules"}

  def tasks(self, draft: Draft) -> Iterator[Task]:
    del draft
    yield from ()  # nothing is worth a journal: it is made anew as quickly as it is read

  def run(self, tasks: list[Task], part: int) -> Iterator[Outcome]:
    del tasks, part
    yield from ()

  def apply(self, draft: Draft, outcomes: Mapping[str, Outcome], tally: Tally) -> None:
    del outcomes
    if any(region.given for region in draft.regions):
      return
    found = rules.split_counted(draft.long or draft.short, draft.language or "en", _load(self.parser))
    tally["phrases.found"] += len(found.kept) + sum(found.left_out.values())
    tally["phrases.kept"] += len(found.kept)
    for kind, count in found.left_out.items():
      tally[f"phrases.{kind}"] += count
    draft.phrases = [drafts.Phrase(each.text, each.long, each.head) for each in found.kept]


@functools.cache
def _load(model: str) -> rules.Parser | None:
  if not model:
    return None
  from fgclip_jax.annotate.rules import spacy_chunks

  return spacy_chunks.load(model)
