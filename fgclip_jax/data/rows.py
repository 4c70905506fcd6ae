"""Pieces of different lengths in rows of one length, and the few numbers of rows that batches may have.

XLA compiles one program for each shape, so the number of rows is rounded up to one of a few sizes, the row buckets.
"""

import bisect
import math
from collections.abc import Sequence

import numpy as np

NONE = -1  # a place that is not there


def best_fit(lengths: Sequence[int], row_length: int) -> list[tuple[int, int]]:
  """Places pieces of these lengths into rows by best fit decreasing: longest first, each into the fullest row it fits.

  Long pieces go first while rows are empty, and short ones fill what these leave. The sort is stable and rooms are
  compared with their row's number, so that the same lengths give the same places everywhere.

  Returns:
    (row, offset) of each piece.
  """
  places: list[tuple[int, int]] = [(0, 0)] * len(lengths)
  open_rows: list[tuple[int, int]] = []  # (room, row), ascending
  rows = 0
  for piece in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
    length = lengths[piece]
    at = bisect.bisect_left(open_rows, (length, -1))  # the least room that is enough; -1 is before every row
    if at < len(open_rows):
      room, row = open_rows.pop(at)
    else:
      room, row = row_length, rows
      rows += 1
    places[piece] = (row, row_length - room)
    if room > length:
      bisect.insort(open_rows, (room - length, row))
  return places


def count_rows(places: Sequence[tuple[int, int]]) -> int:
  """How many rows these places take."""
  return max((row for row, _ in places), default=-1) + 1


def choose_bucket(needed: int, buckets: Sequence[int], row: str) -> int:
  """The smallest bucket that holds so many rows; without buckets, their number.

  Raises:
    ValueError: none does; the message calls a row `row`.
  """
  at = bisect.bisect_left(buckets, needed)
  if buckets and at == len(buckets):
    raise ValueError(f"the batch needs {needed} rows of {row}, the largest row bucket has {buckets[-1]}")
  return buckets[at] if buckets else needed


def geometric(start: int, worst: int, growth: float) -> tuple[int, ...]:
  """Row buckets from `start` on, each `growth` times the one before, up to `worst`."""
  buckets, rows = [], max(start, 1)
  while rows < worst:
    buckets.append(rows)
    rows = max(rows + 1, math.ceil(rows * growth))
  return (*buckets, worst)


def common(needed: Sequence[int], quantiles: Sequence[float]) -> list[int]:
  """Row buckets from the rows that sample batches needed, close together where most lie."""
  found = sorted({math.ceil(quantile) for quantile in np.quantile(needed, quantiles)})
  # buckets closer than 2 % are not worth a compilation of their own
  return [rows for rows, above in zip(found, [*found[1:], math.inf], strict=True) if above > rows * 1.02]
