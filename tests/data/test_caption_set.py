"""Sets of captions: what a record can hold, and what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.data import caption_set
from fgclip_jax.data.caption_set import ALT_TEXT, Caption
from fgclip_jax.storage.errors import RecordError


@pytest.mark.parametrize(
  ("values", "kind", "field"),
  [
    ({}, "caption_wrong_type", "text"),
    ({"text": ""}, "caption_empty", "text"),
    ({"text": " \n"}, "caption_empty", "text"),
    ({"text": None}, "caption_wrong_type", "text"),
    ({"text": ["a"]}, "caption_wrong_type", "text"),
    ({"text": "a\ud800"}, "caption_not_unicode", "text"),
    ({"text": "a", "language": 1}, "caption_wrong_type", "language"),
    ({"text": "a", "source": None}, "caption_wrong_type", "source"),
    ({"text": "a", "source": "\udcff"}, "caption_not_unicode", "source"),
    ({"text": "a", "kind": "medium"}, "caption_kind_unknown", "kind"),
    ({"text": "a", "kind": ["short"]}, "caption_kind_unknown", "kind"),
    *(({"text": "a", "weight": weight}, "caption_weight_wrong", "weight") for weight in (0, -1, math.nan, math.inf)),
    *(({"text": "a", "weight": weight}, "caption_weight_wrong", "weight") for weight in ("1", None, True, [1])),
    # float32 has no such number: it would be read back as 0 or infinite
    *(({"text": "a", "weight": weight}, "caption_weight_wrong", "weight") for weight in (1e-50, 1e39, 10**400)),
  ],
)
def test_a_bad_caption_is_named(values, kind, field):
  with pytest.raises(RecordError) as caught:
    caption_set.make(values, "captions[1]")
  assert (caught.value.kind, caught.value.field) == (kind, f"captions[1].{field}")


def test_a_caption_is_made_of_what_is_known():
  assert caption_set.make({"text": "a"}, "captions[0]") == Caption("a")
  made = caption_set.make({"text": "a", "kind": "long", "language": "zh", "source": ALT_TEXT, "weight": 3}, "")
  assert made == Caption("a", "long", "zh", ALT_TEXT, 3.0)
  # a weight is as records keep it
  assert caption_set.make({"text": "a", "weight": 0.1}, "").weight == float(np.float32(0.1))
  assert caption_set.make({"text": "a", "weight": np.float32(0.1)}, "").weight == float(np.float32(0.1))


def test_the_first_bad_caption_of_a_set_is_named():
  caption_set.check([Caption("a")], "captions")
  with pytest.raises(RecordError, match=r"^captions\[1\]\.weight: must be a finite number above 0, got nan"):
    caption_set.check([Caption("a"), Caption("b", weight=math.nan), Caption("")], "captions")


def test_a_set_that_says_no_more_than_two_captions_is_not_kept():
  both = (Caption("a"), Caption("b", "long"))
  assert caption_set.plain("a", "b") == both
  assert caption_set.reduce(both, "a", "b") == caption_set.reduce([Caption("a")], "a") == ()
  for more in ((*both, Caption("c")), (Caption("a", source=ALT_TEXT), both[1]), both[::-1]):
    assert caption_set.reduce(more, "a", "b") == more


@given(
  st.lists(
    st.tuples(
      st.sampled_from("ab"), st.sampled_from(["short", "long"]), st.just(""), st.sampled_from("xy") | st.just("")
    )
  )
)
def test_a_caption_that_says_nothing_new_is_dropped(parts):
  captions = [Caption(*part) for part in parts]
  merged = caption_set.merge(captions)
  assert len(set(merged)) == len(merged) and caption_set.merge(merged) == merged
  assert {(each.text, each.kind) for each in merged} == {(each.text, each.kind) for each in captions}
  assert {each for each in captions if each.source} <= set(merged)  # nothing that is known is lost
  for each in merged:  # without a source only where no caption of the text has one
    assert each.source or not any(
      other.source for other in captions if (other.text, other.kind) == (each.text, each.kind)
    )


@pytest.mark.parametrize("counts", [(1, 2), (1, 1, 2), (4, -1), ()])
def test_parts_that_are_not_those_of_the_list_are_named(counts):
  assert caption_set.split("abc", (2, 1), 2, "field") == (("a", "b"), ("c",))
  with pytest.raises(RecordError, match="^field: counts disagree") as caught:
    caption_set.split("abc", counts, 2, "field") if counts != (1, 2) else caption_set.split("ab", counts, 2, "field")
  assert caught.value.kind == "record_unreadable"
