"""Which boxes become regions."""

from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.annotate.boxes.backend import Found
from fgclip_jax.annotate.boxes.suppress import MAX_OVERLAP, overlap, select

SIZE = (100, 100)


def test_every_reason_for_which_a_phrase_has_no_region():
  found = [
    Found((0.0, 0.0, 0.5, 0.5), 0, 0.9),
    Found((0.5, 0.5, 1.0, 1.0), 0, 0.3),  # of the same phrase, worse
    Found((0.0, 0.0, 0.5, 0.45), 1, 0.8),  # another name of the first
    Found((0.5, 0.0, 0.9, 0.5), 2, 0.2),
    Found((0.5, 0.5, 0.51, 0.9), 3, 0.9),
    Found((0.5, 0.5, 1.0, 1.0), 4, 0.7),
    Found((0.0, 0.5, 0.5, 1.0), 5, 0.6),
  ]
  kept, lost = select(found, SIZE, 0.4, limit=2)
  assert [each.phrase for each in kept] == [0, 4]
  assert lost == {"suppressed": 1, "low_score": 1, "invalid": 1, "over_limit": 1}


SIDES = st.floats(0.01, 0.5)
PLACES = st.floats(0, 0.5)


@st.composite
def boxes(draw):
  x, y = draw(PLACES), draw(PLACES)
  return Found((x, y, x + draw(SIDES), y + draw(SIDES)), draw(st.integers(0, 5)), draw(st.floats(0, 1)))


@given(st.lists(boxes()))
def test_each_phrase_has_one_fate_and_no_two_regions_overlap(found):
  kept, lost = select(found, SIZE, 0.4, limit=3)
  assert len(kept) + lost.total() == len({each.phrase for each in found})
  assert len({each.phrase for each in kept}) == len(kept) <= 3
  for number, one in enumerate(kept):
    assert all(overlap(one.box, other.box) <= MAX_OVERLAP for other in kept[:number])
  assert select(found[::-1], SIZE, 0.4, limit=3)[1].total() == lost.total()


def test_overlap():
  whole, left, right = (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0)
  assert (overlap(whole, whole), overlap(left, right), overlap(whole, left)) == (1.0, 0.0, 0.5)
