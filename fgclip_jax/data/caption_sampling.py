"""Which captions of a record's sets an example is given: drawn by weight, long ones whole or sentence by sentence.

Nothing here keeps a state: what is random is drawn from the generator that is given, and nothing is drawn from it
where there is no choice.
"""

import bisect
import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fgclip_jax.data.caption_set import ALT_TEXT, Caption
from fgclip_jax.data.record import Ids

DRAWS = ("first", "weighted")


@dataclasses.dataclass(frozen=True)
class CaptionSampling:
  """Which of a record's captions are read: section `data.captions` of a config. The defaults are the published recipe.

  Attributes:
    draw: which captions become a picture's short and long one and a region's: `first`, the record's `short` and
      `long`, or `weighted`, one of each kind drawn by weight. Of more than ten hard negatives, the first ten or ten
      drawn evenly. Without a short caption in the set, the record's `short` stays.
    set_size: k, captions of each picture for the terms over sets; 0: none. Where a picture has more, k are drawn by
      weight without replacement. They may be the short and the long one again, which costs nothing in packed rows.
    sentences: the most sentences of a long caption that are one caption of the set: the long caption is cut into runs
      of 1 to so many, evenly drawn, each a caption of its own, as DreamLIP (arXiv 2403.17007) and FLAIR (arXiv
      2412.03561) take sentences and merge them. 0: long captions are taken whole.
    alt_text_share: the chance that a caption is drawn from those of source `alt_text`, and their share in what counts
      of a set, where a picture has these and others (as Recap-DataComp mixes the two, arXiv 2406.08478); None: weights
      alone decide.

  Raises:
    ValueError: an impossible value; the message names the key.
  """

  draw: str = "first"
  set_size: int = 0
  sentences: int = 0
  alt_text_share: float | None = None

  def __post_init__(self):
    if self.draw not in DRAWS:
      raise ValueError(f"data.captions.draw must be one of {DRAWS}, got {self.draw!r}")
    for name, most in (("set_size", 2**10), ("sentences", 2**10)):
      if not 0 <= getattr(self, name) <= most:
        raise ValueError(f"data.captions.{name} must lie in 0..{most}, got {getattr(self, name)}")
    if self.sentences and not self.set_size:
      raise ValueError(
        f"data.captions.sentences={self.sentences} is for captions of the set, of which data.captions.set_size takes "
        "none: set it, e.g. to 4, or leave sentences at 0"
      )
    if self.alt_text_share is None:
      return
    if not 0 <= self.alt_text_share <= 1:
      raise ValueError(f"data.captions.alt_text_share must lie in 0..1, got {self.alt_text_share}")
    if self.draw == "first" and not self.set_size:
      raise ValueError(
        "data.captions.alt_text_share needs captions that are drawn: set data.captions.draw='weighted', or "
        "data.captions.set_size"
      )


AS_PUBLISHED = CaptionSampling()


# ---- drawing


def inclusion_chances(weights: Sequence[float], count: int) -> list[float]:
  """The chance of each to be among `count` that are drawn without replacement, given positive weights.

  In proportion to the weights, but at most 1: what is left by those that are certain goes to the others, in proportion
  again. The chances add up to `count`, or are all 1.
  """
  chances = [1.0] * len(weights)
  uncertain = range(len(weights))
  while (left := count - len(weights) + len(uncertain)) < len(uncertain):
    largest = max(weights[i] for i in uncertain)  # weights may be of any size: their sum could be infinite
    total = sum(weights[i] / largest for i in uncertain)
    for i in uncertain:
      chances[i] = weights[i] / largest * left / total
    certain = [i for i in uncertain if chances[i] > 1 - 1e-9]
    if not certain:
      return chances
    for i in certain:
      chances[i] = 1.0
    uncertain = [i for i in uncertain if chances[i] < 1.0]
  for i in uncertain:
    chances[i] = 1.0
  return chances


def draw(weights: Sequence[float], count: int, rng: np.random.Generator) -> tuple[list[int], list[float]]:
  """Draws at most `count` without replacement, each with its chance of `inclusion_chances`.

  Systematic sampling over a random order (Madow 1949) has exactly these chances.

  Args:
    weights: not negative; what has weight 0 is never drawn.
    count: how many; where no more than these can be drawn, all are and nothing is random.
    rng: what is drawn from.

  Returns:
    Which are drawn, ascending; and how much each counts: its weight over its chance, so that a sum over those drawn is
    on average the one over all of them. These numbers have a mean of 1.
  """
  largest = max(weights, default=0.0)
  # a trillionth of the largest weight is as little as any: a chance is then never rounded to 0
  weights = [max(weight / largest, 1e-12) if weight else 0.0 for weight in weights]
  possible = [i for i, weight in enumerate(weights) if weight]
  chances = inclusion_chances([weights[i] for i in possible], count)
  chosen = [i for i, chance in zip(possible, chances, strict=True) if chance == 1.0]
  open_ = [(i, chance) for i, chance in zip(possible, chances, strict=True) if chance < 1.0]
  if open_ and count > len(chosen):
    order = rng.permutation(len(open_)).tolist() if count > 1 else range(len(open_))
    ends = list(itertools.accumulate(open_[i][1] for i in order))
    start = rng.random()
    # sums are rounded, so that the last end may lie a little below the last point
    places = [min(bisect.bisect_right(ends, start + i), len(ends) - 1) for i in range(count - len(chosen))]
    chosen = sorted(chosen + [open_[order[place]][0] for place in places])
  chance_of = dict(zip(possible, chances, strict=True))
  counts = [weights[i] / chance_of[i] for i in chosen]
  return chosen, [each * len(counts) / sum(counts) for each in counts]


def draw_weights(captions: Sequence[Caption], alt_text_share: float | None) -> list[float]:
  """How captions are weighted where one is drawn: by their own weights, alt text by its share."""
  weights = [caption.weight for caption in captions]
  alt_text = [caption.source == ALT_TEXT for caption in captions]
  if alt_text_share is None or len(set(alt_text)) < 2:
    return weights
  for which, share in ((True, alt_text_share), (False, 1 - alt_text_share)):
    places = [i for i, is_alt_text in enumerate(alt_text) if is_alt_text == which]
    largest = max(weights[i] for i in places)
    total = sum(weights[i] / largest for i in places)
    for i in places:
      weights[i] = weights[i] / largest * share / total
  return weights


def draw_one(
  captions: Sequence[Caption], kind: str, alt_text_share: float | None, rng: np.random.Generator
) -> int | None:
  """The place in a set of a caption of this kind, drawn by weight; None: it has none."""
  places = [place for place, caption in enumerate(captions) if caption.kind == kind]
  if len(places) < 2:
    return places[0] if places else None
  (chosen,), _ = draw(draw_weights([captions[place] for place in places], alt_text_share), 1, rng)
  return places[chosen]


class SetCaption(NamedTuple):
  """A caption of the set that an example is given.

  Attributes:
    caption: its text and facts.
    ids: the text as token ids; None: it is a part of a long caption, whose ids are not known.
    weight: how much it counts among those of its picture, on average 1.
  """

  caption: Caption
  ids: Ids | None
  weight: float = 1.0


def draw_set(
  captions: Sequence[Caption], ids: Sequence[Ids], count: int, sampling: CaptionSampling, rng: np.random.Generator
) -> list[SetCaption]:
  """The captions of a set that an example is given.

  Args:
    captions: the set.
    ids: of each.
    count: the most of them.
    sampling: how they are drawn.
    rng: what is drawn from.
  """
  found = []
  for caption, of_caption in zip(captions, ids, strict=True):
    runs = []
    if sampling.sentences and caption.kind == "long":
      runs = cut_sentences(caption.text, sampling.sentences, rng)
    if len(runs) > 1:
      found += [SetCaption(dataclasses.replace(caption, text=run, kind="short"), None) for run in runs]
    else:
      found.append(SetCaption(caption, of_caption))
  weights = draw_weights([each.caption for each in found], sampling.alt_text_share)
  return [found[place]._replace(weight=weight) for place, weight in zip(*draw(weights, count, rng), strict=True)]


# ---- sentences

_CLOSING = "\"'”’»)\\]」』）】"
_END = re.compile(rf"[。！？｡]+[{_CLOSING}]*\s*|[.!?…]+[{_CLOSING}]*\s+|\s*\n\s*")
_LAST_WORD = re.compile(r"[^\W_][\w.]*$")
_WORD = re.compile(r"[^\W_]")
# A full stop after these ends no sentence, ...
_ABBREVIATIONS = frozenset(
  "mr mrs ms dr prof st mt ft gen col capt lt sgt rev hon pres gov sen rep vs fig figs cf approx ca est".split()
)
# ... after these only where the next word begins with a capital, ...
_OFTEN_LAST = frozenset("etc inc ltd co corp jr sr al a.m p.m".split())
# ... and after these not before a number.
_BEFORE_NUMBERS = frozenset("no nos nr vol pp".split())


def split_sentences(text: str) -> list[str]:
  """The sentences of a text, each with the white space after it; joined they are the text.

  A sentence ends at a full stop, question or exclamation mark with white space behind it, at a Chinese or Japanese one
  without, and at the end of a line; not after abbreviations, initials, or the number of a list's entry. In doubt it
  goes on: two sentences in one do less harm than half a one.
  """
  sentences, start = [], 0
  for match in _END.finditer(text):
    if _ends_sentence(text[start : match.start()], match.group(), text[match.end() : match.end() + 1]):
      sentences.append(text[start : match.end()])
      start = match.end()
  if rest := text[start:]:
    if sentences and not _WORD.search(rest):
      sentences[-1] += rest
    else:
      sentences.append(rest)
  return sentences


def _ends_sentence(before: str, end: str, following: str) -> bool:
  """Whether a sentence ends where `end` stands, between the sentence so far and what follows."""
  if not _WORD.search(before):
    return False
  if end.startswith(("..", "…")) and "\n" not in end:
    return not following.islower()
  last = _LAST_WORD.search(before)
  if "\n" in end or end[0] != "." or end[1] in "!?" or last is None:
    return True
  word = last.group().lower()
  if word.isdecimal() and before.strip() == word:  # "1. A dog"
    return False
  if word in _OFTEN_LAST:
    return not following.islower()
  if word in _BEFORE_NUMBERS:
    return not following.isdecimal()
  initials = all(len(part) == 1 and part.isalpha() for part in word.split("."))
  return not initials and word not in _ABBREVIATIONS


def cut_sentences(text: str, most: int, rng: np.random.Generator) -> list[str]:
  """A text cut into runs of 1 to `most` sentences that follow each other, each length as probable as the others.

  The last run has what is left. Nothing is drawn where there is one sentence, or `most` is 1.
  """
  sentences = split_sentences(text)
  if most > 1 and len(sentences) > 1:
    lengths = rng.integers(1, most + 1, len(sentences)).tolist()
  else:
    lengths = [1] * len(sentences)
  runs, start = [], 0
  for length in lengths:
    if start < len(sentences):
      runs.append("".join(sentences[start : start + length]).strip())
      start += length
  return runs
