"""What is said of scenes: the descriptions of objects, and the sets of captions of pictures and regions."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fgclip_jax.data.caption_set import ALT_TEXT, Caption


class Description(NamedTuple):
  """An object's four attributes, in the order in which its caption names them."""

  size: str
  colour: str
  pattern: str
  shape: str

  @property
  def caption(self) -> str:
    return f"a {' '.join(self)}"  # no size begins with a vowel

  @property
  def short_caption(self) -> str:
    return f"{self.article} {self.colour} {self.shape}"

  @property
  def article(self) -> str:
    """The one that fits its colour."""
    return "an" if self.colour[0] in "aeiou" else "a"


Placed = tuple[Description, str]  # an object, and the quadrant in which it is


def describe_picture(
  short: str, long: str, objects: Sequence[Placed], empty: str, rng: np.random.Generator
) -> tuple[Caption, ...]:
  """The set of a picture: seven captions that are all true, the last of them an alt text that says little.

  Args:
    short, long: its short and its long caption, which come first.
    objects: its objects.
    empty: the quadrant without an object.
    rng: draws the order in which each caption names the objects.
  """

  def ordered() -> list[Placed]:
    return [objects[i] for i in rng.permutation(len(objects))]

  sizes = [f"a {each.size} {each.shape}" for each, _ in ordered()]
  patterns = [f"a {each.pattern} {each.shape} {quadrant}" for each, quadrant in ordered()]
  (first, at), (second, beside), *_ = ordered()
  sentences = [f"The {quadrant} holds {each.caption}." for each, quadrant in ordered()]
  named = ordered()[0][0]
  return (
    Caption(short),
    Caption(long, "long"),
    Caption(f"{', '.join(sizes[:-1])} and {sizes[-1]}"),
    Caption(", ".join(patterns)),
    Caption(f"{first.short_caption} {at} and {second.short_caption} {beside}"),
    Caption(" ".join([*sentences, f"The {empty} is empty."]), "long"),
    Caption(f"{named.colour} {named.shape} picture", source=ALT_TEXT, weight=0.5),
  )


def describe_region(placed: Placed) -> tuple[Caption, ...]:
  """The set of a region: its caption, two that say as much or more, a long one, and a short one that says less."""
  each, quadrant = placed
  return (
    Caption(each.caption),
    Caption(f"a {each.shape} that is {each.size}, {each.colour} and {each.pattern}"),
    Caption(f"{each.caption} {quadrant}"),
    Caption(f"This is {each.caption}. It is in the {quadrant} of the picture.", "long"),
    Caption(each.short_caption, weight=0.5),
  )
