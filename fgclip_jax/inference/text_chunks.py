"""Texts as arrays of few sizes, for the compiled programs: captions packed into rows, rows into chunks."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from fgclip_jax.data import packing
from fgclip_jax.data.rows import best_fit, count_rows
from fgclip_jax.inference import programs
from fgclip_jax.inference.text_inputs import Ids
from fgclip_jax.models.config import TextKind


@dataclasses.dataclass(frozen=True)
class TextChunk:
  """Some rows of captions.

  Attributes:
    numbers: which captions end in them; results have these rows first.
    tokens, segment, position: [R, L], see `TextTower`.
    row, end: where each caption is read; filled up with zeros.
  """

  numbers: np.ndarray
  tokens: np.ndarray
  segment: np.ndarray
  position: np.ndarray
  row: np.ndarray
  end: np.ndarray

  @property
  def arrays(self) -> tuple[np.ndarray, ...]:
    """The arguments of `programs.encode_rows`."""
    return self.tokens, self.segment, self.position, self.row, self.end


def make_chunks(ids: Sequence[Ids], kind: TextKind, sizes: Sequence[int]) -> list[TextChunk]:
  """Packs captions into rows of up to `kind.length` tokens, and divides the rows.

  Args:
    ids: of each caption, read at the last one.
    kind: what they are.
    sizes: the numbers of rows that programs are compiled for, ascending.
  """
  # none counts as shorter than two tokens, which bounds the captions that end within a chunk
  lengths = [max(len(row), 2) for row in ids]
  length = programs.row_length(sum(lengths), kind.length)
  listed = best_fit(lengths, length)
  return list(_divide(ids, listed, length, kind, programs.split(count_rows(listed), sizes)))


def _divide(
  ids: Sequence[Ids], listed: list[tuple[int, int]], length: int, kind: TextKind, sizes: list[int]
) -> Iterator[TextChunk]:
  starts, places = [0, *itertools.accumulate(sizes)], np.asarray(listed)
  captions = [packing.Caption(row, long=kind.first_position > 0) for row in ids]
  text = packing.fill_rows(captions, listed, starts[-1], length, kind.first_position)
  ends = places[:, 1] + [len(row) - 1 for row in ids]
  by_row = np.argsort(places[:, 0], kind="stable")
  bounds = np.searchsorted(places[by_row, 0], starts)
  for row, size, first, last in zip(starts, sizes, bounds, bounds[1:], strict=False):
    mine = by_row[first:last]
    at = np.zeros((2, size * length // 2), np.int32)
    at[:, : len(mine)] = places[mine, 0] - row, ends[mine]
    yield TextChunk(mine, *(text[key][row : row + size] for key in ("tokens", "segment", "position")), *at)
