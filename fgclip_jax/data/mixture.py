"""Several data sets as one: their records under one numbering, and an order that mixes them by weight.

Of any number of examples from the start on, each data set gives its share, to within one of two data sets and half an
example more for each further one. Each is shuffled by itself, again on every pass.

With steps of one language, whole batches are dealt out in this way to the languages, and the examples of a language's
batches to its data sets.
"""

import bisect
import dataclasses
import itertools
import os
from collections.abc import Iterable, Sequence
from fractions import Fraction

import grain
import numpy as np

from fgclip_jax.data.dataset_folder import read_facts
from fgclip_jax.data.shards import Records
from fgclip_jax.storage import paths


@dataclasses.dataclass(frozen=True)
class DataSet:
  """A split of a prepared folder, and its weight in a mixture, which need not add up to anything."""

  path: str
  split: str
  weight: float = 1.0


class Mixture:
  """The records of data sets by number: those of the first, then those of the second, and so on.

  Attributes:
    names: of the data sets: the last part of the path; with the split, or whole, where that is not unique.
    shares: of each, of all examples; they add up to one.
    sizes: records of each.
    tokenizers: the name of the tokenizer that made the token ids that each holds; None: it names none.
    languages: the code of the language of each; several in one with `+` between them.
    batch_shares: of each, of the examples of a batch that it gives any to.
    damage: one line for each damaged shard.

  Args:
    sets: the data sets.
    block: examples in a batch, each of which is then of one language; 0: languages are mixed within batches.

  Raises:
    FileNotFoundError, ValueError: no such data, nothing in it can be read, the same twice, or with a `block` a data set
      of several languages.
  """

  def __init__(self, sets: Sequence[DataSet], block: int = 0):
    self.names = _names(sets)
    self._records = [Records(entry.path, entry.split) for entry in sets]
    self._remote = [paths.is_remote(entry.path) for entry in sets]
    self.sizes = [len(records) for records in self._records]
    self._starts = [0, *itertools.accumulate(self.sizes)]
    weights = [Fraction(str(entry.weight)) for entry in sets]
    self.shares = [weight / sum(weights) for weight in weights]
    facts = [read_facts(entry.path, entry.split) for entry in sets]
    self.tokenizers = [fact.tokenizer for fact in facts]
    self.languages = ["+".join(fact.languages) for fact in facts]
    self._block = block
    for name, fact in zip(self.names, facts, strict=True):
      if block and len(fact.languages) > 1:
        raise ValueError(
          f"data set {name!r} has records in {' and '.join(fact.languages)}, which data.language_steps needs apart: "
          "prepare a data set of each (prepare finehard: --take), or set data.language_steps=False"
        )
    # the data sets of each language, by the first that has it; all together where steps are mixed
    self._groups = [
      [index for index, other in enumerate(self.languages) if other == language or not block]
      for language in (dict.fromkeys(self.languages) if block else [""])
    ]
    self._group_shares = [sum((self.shares[index] for index in group), Fraction(0)) for group in self._groups]
    self.batch_shares = list(self.shares)
    for group, share in zip(self._groups, self._group_shares, strict=True):
      for index in group:
        self.batch_shares[index] /= share
    self.damage = [line for records in self._records for line in records.damage]

  def __len__(self) -> int:
    return self._starts[-1]

  def __getitem__(self, number: int) -> bytes:
    """A record's bytes; errors as those of `Records`."""
    which, place = self._place(number)
    return self._records[which][place]

  def which(self, number: int) -> int:
    """The index of the data set that holds this record."""
    return bisect.bisect_right(self._starts, number) - 1

  def step_from(self, number: int, step: int) -> int:
    """The record `step` further on in the same data set, counting on from its start after its end."""
    which, place = self._place(number)
    return self._starts[which] + (place + step) % self.sizes[which]

  def where(self, number: int) -> str:
    """A record's file and its number in it."""
    which, place = self._place(number)
    return self._records[which].where(place)

  def count(self, numbers: np.ndarray) -> list[int]:
    """How many of these records each data set holds."""
    which = np.searchsorted(self._starts, np.ravel(numbers), side="right") - 1
    return np.bincount(which, minlength=len(self.sizes)).tolist()

  def prefetch(self, numbers: Iterable[int]) -> None:
    """Begins to read records that will soon be asked for from object storage."""
    if not any(self._remote):
      return
    places = [self._place(number) for number in numbers]
    for index, records in enumerate(self._records):
      records.prefetch([place for which, place in places if which == index])

  def epochs(self, batch_size: int) -> list[float]:
    """Batches in which each data set is passed once."""
    return [size / float(share) / batch_size for size, share in zip(self.sizes, self.shares, strict=True)]

  def spans_epochs(self, begin: int, end: int) -> bool:
    """Whether the examples begin..end - 1 of `order` are from more than one pass over any of the data sets."""
    stretches = zip(self._count_until(begin), self._count_until(end), self.sizes, strict=True)
    return any(first < last and first // size != (last - 1) // size for first, last, size in stretches)

  def order(self, seed: int, shuffle: bool) -> grain.MapDataset:
    """The numbers of records in the order in which examples take them; it never ends."""
    orders = []
    for index, (begin, end) in enumerate(itertools.pairwise(self._starts)):
      # for Grain the next epoch's seed is this one's plus one, so neighbours would follow each other's order
      own = int(np.random.SeedSequence([seed, index]).generate_state(1)[0]) if index else seed
      order = grain.MapDataset.range(begin, end).seed(own)
      orders.append((order.shuffle() if shuffle else order).repeat())
    groups = []
    for group in self._groups:
      parts, shares = [orders[index] for index in group], [self.batch_shares[index] for index in group]
      groups.append(parts[0] if len(parts) == 1 else _Mixed(parts, shares).seed(seed))
    return groups[0] if len(groups) == 1 else _Mixed(groups, self._group_shares, self._block).seed(seed)

  def _count_until(self, examples: int) -> list[int]:
    """How many of the first `examples` of the order each data set gives."""
    counts = [0] * len(self.sizes)
    for group, given in zip(self._groups, count_until(examples, self._group_shares, self._block or 1), strict=True):
      shares = [self.batch_shares[index] for index in group]
      for index, count in zip(group, count_until(given, shares), strict=True):
        counts[index] = count
    return counts

  def _place(self, number: int) -> tuple[int, int]:
    which = self.which(number)
    return which, int(number) - self._starts[which]


def _of_rest(shares: Sequence[Fraction]) -> list[tuple[int, int]]:
  """Each share as a fraction of what the ones before it leave."""
  return [(share / sum(shares[index:])).as_integer_ratio() for index, share in enumerate(shares)]


def _taken(examples: int, share: int, whole: int) -> int:
  """How many examples a data set of this share has given, of all that were given: evenly, rounded."""
  return (2 * examples * share + whole) // (2 * whole)


def count_until(examples: int, shares: Sequence[Fraction], block: int = 1) -> list[int]:
  """How many of the first `examples` of a mixture's order each part gives, which is dealt out `block` at a time."""
  whole_blocks, rest = divmod(examples, block)
  counts = _count_blocks(whole_blocks, shares)
  then = _count_blocks(whole_blocks + 1, shares)  # `rest` examples are of the next block, the part's that grows by it
  return [count * block + rest * (after - count) for count, after in zip(counts, then, strict=True)]


def _count_blocks(blocks: int, shares: Sequence[Fraction]) -> list[int]:
  counts = []
  for share, whole in _of_rest(shares):
    counts.append(_taken(blocks, share, whole))
    blocks -= counts[-1]
  return counts


class _Mixed(grain.MapDataset):
  """Endless orders as one, dealt out `block` examples at a time. Grain's own mixing rounds the weights."""

  def __init__(self, parents: Sequence[grain.MapDataset], shares: Sequence[Fraction], block: int = 0):
    super().__init__(parents)
    self._of_rest, self._block = _of_rest(shares), block or 1

  def __len__(self) -> int:
    return min(map(len, self._parents))

  def __getitem__(self, index):
    if isinstance(index, slice):
      return self.slice(index)
    index, place = divmod(index, self._block)
    # the first takes its share, evenly; what is left is the index among the others, whose first takes its share...
    for parent, (share, whole) in zip(self._parents, self._of_rest, strict=True):
      taken, then = (_taken(examples, share, whole) for examples in (index, index + 1))
      if then > taken:
        return parent[taken * self._block + place]
      index -= taken
    raise IndexError("the last of the shares takes whatever is left")


def _names(sets: Sequence[DataSet]) -> list[str]:
  folders = [entry.path if paths.is_remote(entry.path) else os.path.realpath(entry.path) for entry in sets]
  if len({(os.path.normpath(path), entry.split) for path, entry in zip(folders, sets, strict=True)}) < len(sets):
    raise ValueError(f"data.mixture names a split twice: {[(entry.path, entry.split) for entry in sets]}; give it once")
  for naming in (
    lambda entry: os.path.basename(os.path.normpath(entry.path)),
    lambda entry: f"{os.path.basename(os.path.normpath(entry.path))}-{entry.split}",
    lambda entry: f"{os.path.normpath(entry.path)}-{entry.split}",
  ):
    names = [naming(entry) for entry in sets]
    if len(set(names)) == len(names):
      break
  return names
