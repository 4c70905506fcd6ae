"""What was left out: counted by kind, with the first examples of each kind.

Every reader that goes on after a fault counts it here: `prepare`, `embed`, the loader and the evaluators.
"""

import collections
import dataclasses
import unicodedata
from collections.abc import Callable, Iterator
from typing import Literal

from fgclip_jax.storage.errors import RecordError

Scope = Literal[
  "file", "record", "annotation", "region", "negative", "note"
]  # how much is left out; of a note, nothing
Report = Callable[[Scope, RecordError], None]  # called with each fault found in a record that is kept


@dataclasses.dataclass(frozen=True)
class Skip:
  """One thing that was left out.

  Attributes:
    kind: the class of the fault in snake_case; reports count by it.
    message: what is wrong.
    field: the field at fault; empty where there is none.
    place: the file and record, or whatever names the thing; empty where the message does.
    scope: how much is left out for it.
  """

  kind: str
  message: str
  field: str = ""
  place: str = ""
  scope: Scope = "record"

  @classmethod
  def of(cls, error: RecordError, place: str = "", scope: Scope = "record") -> "Skip":
    """Makes an entry of an error; its text is `place: field: message`."""
    return cls(error.kind, error.message, error.field, place, scope)

  def __str__(self) -> str:
    return ": ".join(filter(None, (self.place, self.field, self.message)))


@dataclasses.dataclass
class SkipReport:
  """Counts of what was left out. Its length is the number of all things left out.

  Reports are small and can be pickled: each process or shard fills its own, and `merge` adds them up in order.

  Attributes:
    limit: how many examples of each kind are kept.
    counts: how often each kind was met, in the order of first meeting it; 0 for any other kind.
    examples: the first entries of each kind, at least one and at most `limit`.
  """

  limit: int = 1
  counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
  examples: dict[str, list[Skip]] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return self.counts.total()

  def add(self, skip: Skip, count: int = 1) -> bool:
    """Counts an entry `count` times; returns whether it is kept as an example.

    An example is kept as one line of text that UTF-8 can hold, whatever the input spelled.
    """
    self.counts[skip.kind] += count
    examples = self.examples.setdefault(skip.kind, [])
    if len(examples) >= self.limit:
      return False
    texts = {name: printable(getattr(skip, name).replace("\n", " ")) for name in ("message", "field", "place")}
    examples.append(dataclasses.replace(skip, **texts))
    return True

  def merge(self, later: "SkipReport") -> None:
    """Adds what a later part left out; earlier examples come first."""
    self.counts.update(later.counts)
    for kind, examples in later.examples.items():
      self.examples[kind] = [*self.examples.get(kind, ()), *examples][: self.limit]

  def firsts(self) -> Iterator[tuple[Skip, int]]:
    """Yields the first example of each kind, and how often the kind was met."""
    return ((examples[0], self.counts[kind]) for kind, examples in self.examples.items())

  def summary(self, total: int, things: str = "images") -> str:
    """One line: how many of `total` things were left out, by kind, with the first of each; empty if none was."""
    if not self:
      return ""
    kinds = "; ".join(
      f"{kind} {count}, the first: {self.examples[kind][0]}" for kind, count in self.counts.most_common()
    )
    return f"{len(self):,} of {total:,} {things} could not be used and were skipped ({kinds})"


def printable(text: str) -> str:
  r"""Returns a text for a message or a terminal: what is no visible character is escaped, as `\x1b`.

  Names and captions come from files of strangers, and control characters in them can rewrite a terminal.
  """
  if text.isprintable():
    return text
  return "".join(
    character
    if character.isprintable() or unicodedata.category(character) == "Zs"  # wide and narrow spaces
    else character.encode("unicode_escape").decode()
    for character in text
  )
