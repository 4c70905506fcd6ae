"""What a parser finds in a text."""

from typing import NamedTuple


class Chunk(NamedTuple):
  """A noun phrase without what comes after its noun.

  Attributes:
    start: offset of its first character.
    end: offset behind its last character.
    head: its noun, in lower case.
    long_end: offset behind what describes it after the noun (`with white stitching`); `end` if nothing does.
    pronoun: it is a pronoun.
  """

  start: int
  end: int
  head: str
  long_end: int
  pronoun: bool = False
