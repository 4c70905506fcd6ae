"""Can negatives be told from positives by their words alone, without a picture?

If they can, a model learns the words and not the picture. Naive Bayes over words (Maron 1961; with Laplace smoothing)
scores each text by how much more its words are used by negatives than by positives of other regions: one fifth of the
regions at a time is scored by the other four. The area under the ROC curve is 0.5 where words say nothing; 0.45 to 0.60
is wanted. It is a little under 0.5 if both sides use each word equally often in all: what a fifth has too little of,
the other four have too much of.
"""

import collections
import dataclasses
import math
import random
from collections.abc import Callable, Iterable, Sequence

from fgclip_jax.annotate.rules.tokens import split_words

WANTED = (0.45, 0.60)
FOLDS = 5


@dataclasses.dataclass(frozen=True)
class Probe:
  """What words say of texts.

  Attributes:
    auc: the area under the ROC curve of negatives against positives.
    positives: how many positives there are.
    negatives: how many negatives there are.
    telling: the words that speak most for a negative, and how much (the logarithm of the ratio of their shares).
  """

  auc: float
  positives: int
  negatives: int
  telling: tuple[tuple[str, float], ...]


def measure(
  pairs: Iterable[tuple[str, Sequence[str]]], words: Callable[[str], Iterable[str]] | None = None, shown: int = 10
) -> Probe:
  """Measures how well words alone tell negatives from positives.

  Args:
    pairs: of each region its positive and its negatives; those without negatives are not used.
    words: gives the words of a text; None: words of English in lower case. `list` gives the characters of Chinese.
    shown: how many words to name.

  Raises:
    ValueError: there are fewer than two regions with negatives.
  """
  split = words or (lambda text: [word.lower for word in split_words(text)])
  regions = [
    (frozenset(split(positive)), [frozenset(split(negative)) for negative in negatives])
    for positive, negatives in pairs
    if negatives
  ]
  if len(regions) < 2:
    raise ValueError(f"the probe needs two regions with negatives, got {len(regions)}")
  # All negatives of a region together weigh as much as its positive.
  shares = []
  for _, negatives in regions:
    share: collections.Counter[str] = collections.Counter()
    for negative in negatives:
      share.update(negative)
    shares.append({word: count / len(negatives) for word, count in share.items()})
  folds = list(range(len(regions)))
  random.Random(0).shuffle(folds)
  scores, scores_negative = [], []
  for fold in range(FOLDS):
    held_out = [index for place, index in enumerate(folds) if place % FOLDS == fold]
    ratios = _ratios(regions, shares, set(range(len(regions))).difference(held_out))
    for index in held_out:
      positive, negatives = regions[index]
      scores.append(math.fsum(ratios.get(word, 0.0) for word in positive))
      scores_negative += [math.fsum(ratios.get(word, 0.0) for word in negative) for negative in negatives]
  ratios = _ratios(regions, shares, set(range(len(regions))))
  telling = sorted(((ratio, word) for word, ratio in ratios.items() if ratio > 0), reverse=True)
  return Probe(
    _area(scores, scores_negative),
    len(scores),
    len(scores_negative),
    tuple((word, round(ratio, 3)) for ratio, word in telling[:shown]),
  )


def _ratios(
  regions: list[tuple[frozenset[str], list[frozenset[str]]]], shares: list[dict[str, float]], used: set[int]
) -> dict[str, float]:
  """For each word the logarithm of how much more the negatives of some regions have it than the positives."""
  counts: dict[str, float] = collections.defaultdict(float)
  counts_negative: dict[str, float] = collections.defaultdict(float)
  for index in sorted(used):
    for word in regions[index][0]:
      counts[word] += 1
    for word, share in shares[index].items():
      counts_negative[word] += share
  return {
    word: math.log((counts_negative[word] + 1) / (counts[word] + 1)) for word in sorted({*counts, *counts_negative})
  }


def _area(lower: list[float], higher: list[float]) -> float:
  """The share of pairs in which the second score is higher; equal scores count half."""
  ranked = sorted([(score, False) for score in lower] + [(score, True) for score in higher])
  below, total, start = 0, 0.0, 0
  while start < len(ranked):
    end = start
    while end < len(ranked) and ranked[end][0] - ranked[start][0] < 1e-9:  # sums of the same words in another order
      end += 1
    high = sum(is_higher for _, is_higher in ranked[start:end])
    total += high * (below + (end - start - high) / 2)
    below += end - start - high
    start = end
  return total / (len(lower) * len(higher))
