"""What a stage is: how drafts become tasks, tasks outcomes, and outcomes what drafts are made of next."""

import collections
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from fgclip_jax.annotate.draft import Draft
from fgclip_jax.annotate.journal import Outcome

Tally = collections.Counter[str]  # counts by `STAGE.WHAT`


@dataclasses.dataclass(frozen=True)
class Task:
  """One question of a stage.

  Attributes:
    key: of the outcome; equal questions have equal keys, and are asked once.
    draft: what it is about; answers may depend on no more of it than the key does.
    about: what else the stage needs, e.g. which region is meant.
  """

  key: str
  draft: Draft
  about: Any = None


@runtime_checkable
class Stage(Protocol):
  """A stage with its backend. Implementations are frozen dataclasses, which are pickled for other processes.

  Attributes:
    name: the stage's name, as in `chain.STAGES`.
  """

  @property
  def name(self) -> str: ...

  def signature(self) -> dict[str, Any]:
    """Everything but the items that decides the answers: version, prompt, model. As JSON; names the journal."""
    ...

  def tasks(self, draft: Draft) -> Iterator[Task]:
    """The questions that a draft brings."""
    ...

  def run(self, tasks: list[Task], part: int) -> Iterator[Outcome]:
    """The outcomes of tasks of a part, in any order: one for each, or none where the answer comes later."""
    ...

  def apply(self, draft: Draft, outcomes: Mapping[str, Outcome], tally: Tally) -> None:
    """Changes a draft by the outcomes of its tasks, and counts everything that is kept or left out."""
    ...


def digest(value: Any) -> str:
  """The SHA-256 of a JSON value, in hexadecimal digits."""
  return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def count_failure(tally: Tally, stage: str, outcome: Outcome | None) -> None:
  """Counts a task that has no answer: by its class, or as pending where it was not asked."""
  tally[f"{stage}.{'failed' if outcome else 'pending'}"] += 1
  if outcome:
    tally[f"{stage}.failed.{outcome.failure}"] += 1
