"""Which captions are drawn: as often as their weights say, all there are before any is missing, whole sentences."""

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fgclip_jax.data.caption_sampling import (
  CaptionSampling,
  cut_sentences,
  draw,
  draw_one,
  draw_set,
  draw_weights,
  inclusion_chances,
  split_sentences,
)
from fgclip_jax.data.caption_set import ALT_TEXT, Caption

WEIGHTS = st.lists(st.floats(0.05, 20), min_size=1, max_size=7)
DRAWS = 1000


def within_noise(found: float, chance: float) -> bool:
  """Whether a share of `DRAWS` is what that chance gives, within five standard deviations."""
  return abs(found - chance) <= 5 * math.sqrt(chance * (1 - chance) / DRAWS) + 1e-9


# ---- drawing


@given(WEIGHTS, st.integers(0, 8))
@example([1.0, 1.0, 1e6], 2)
def test_chances_are_in_proportion_to_weights_and_at_most_one(weights, count):
  chances = inclusion_chances(weights, count)
  assert sum(chances) == pytest.approx(min(count, len(weights)))
  assert all(0 <= chance <= 1 for chance in chances)
  rates = [chance / weight for chance, weight in zip(chances, weights, strict=True) if chance < 1]
  assert rates == pytest.approx([max(rates, default=0)] * len(rates))
  for chance, weight in zip(chances, weights, strict=True):  # the certain ones would have had more than one
    assert chance < 1 or weight * max(rates, default=math.inf) >= 1 - 1e-6


@settings(max_examples=12)
@given(WEIGHTS, st.integers(1, 4))
@example([1.0, 2.0, 3.0, 4.0], 1)
@example([1.0, 1.0, 50.0], 2)
def test_frequencies_are_the_chances(weights, count):
  rng, times = np.random.default_rng(0), np.zeros(len(weights))
  for _ in range(DRAWS):
    chosen, counts = draw(weights, count, rng)
    assert chosen == sorted(set(chosen)) and len(chosen) == min(count, len(weights))
    assert sum(counts) == pytest.approx(len(counts))
    times[chosen] += 1
  chances = inclusion_chances(weights, count)
  assert all(within_noise(*pair) for pair in zip(times / DRAWS, chances, strict=True))
  if count == 1:  # the chance of the only one is its share of the weights
    assert chances == pytest.approx(np.asarray(weights) / sum(weights))


@given(WEIGHTS, st.integers(1, 8))
def test_what_is_drawn_counts_by_its_weight_over_its_chance(weights, count):
  chosen, counts = draw(weights, count, np.random.default_rng(1))
  chances = inclusion_chances(weights, count)
  raw = [weights[i] / chances[i] for i in chosen]
  assert counts == pytest.approx([each / sum(raw) * len(raw) for each in raw])
  if count >= len(weights):  # all of them are read: the weights themselves are what counts
    assert counts == pytest.approx([weight / sum(weights) * len(weights) for weight in weights])


def test_nothing_is_random_where_there_is_no_choice():
  rng = np.random.default_rng(0)
  before = rng.bit_generator.state
  assert draw([2.0, 1.0], 2, rng) == ([0, 1], pytest.approx([4 / 3, 2 / 3]))
  assert draw([0.0, 5.0, 0.0], 1, rng) == ([1], [1.0])
  assert draw([], 3, rng) == draw([1.0, 1.0], 0, rng) == draw([0.0], 1, rng) == ([], [])
  assert cut_sentences("One. Two. Three.", 1, rng) == ["One.", "Two.", "Three."]
  assert cut_sentences("One sentence", 5, rng) == ["One sentence"]
  captions = (Caption("a"), Caption("b", "long"))
  assert [draw_one(captions, kind, None, rng) for kind in ("short", "long")] == [0, 1]
  assert draw_one(captions[:1], "long", None, rng) is None
  assert rng.bit_generator.state == before


@given(st.lists(st.sampled_from([5e-324, 1e-300, 1.0, 1e300, 1.7e308]), min_size=1, max_size=5), st.integers(1, 4))
def test_weights_may_be_of_any_size(weights, count):
  chosen, counts = draw(weights, count, np.random.default_rng(0))
  assert len(set(chosen)) == min(count, len(weights)) and all(0 < each < math.inf for each in counts)
  captions = [Caption(str(i), weight=weight, source=ALT_TEXT * (i % 2)) for i, weight in enumerate(weights)]
  shared = draw_weights(captions, 0.25)
  assert sum(shared) == pytest.approx(1) or len(weights) == 1


# ---- kinds and sources


@settings(max_examples=8)
@given(WEIGHTS, WEIGHTS, st.sampled_from([0.0, 0.2, 0.5, 1.0]))
def test_alt_text_has_its_share_of_the_draws(alt, other, share):
  captions = [Caption("alt", source=ALT_TEXT, weight=weight) for weight in alt]
  captions += [Caption("model", source="a model", weight=weight) for weight in other]
  rng = np.random.default_rng(0)
  found = [captions[draw_one(captions, "short", share, rng) or 0].text for _ in range(DRAWS)]
  assert within_noise(found.count("alt") / DRAWS, share)
  assert draw_weights(captions[: len(alt)], share) == alt  # no others: nothing to share with
  within = np.asarray(draw_weights(captions, 0.5))[: len(alt)]  # the own weights decide among alt texts
  assert within / within.sum() == pytest.approx(np.asarray(alt) / sum(alt))


def test_alt_text_without_a_share_is_never_read():
  captions = [Caption("alt", source=ALT_TEXT), Caption("model"), Caption("another")]
  drawn = draw_set(
    captions, [(1,), (2,), (3,)], 3, CaptionSampling(set_size=3, alt_text_share=0.0), np.random.default_rng()
  )
  assert [each.caption.text for each in drawn] == ["model", "another"]


def test_one_is_drawn_of_its_kind():
  captions = [Caption("a"), Caption("b", "long"), Caption("c"), Caption("d", "long")]
  rng = np.random.default_rng(0)
  assert {draw_one(captions, "short", None, rng) for _ in range(50)} == {0, 2}
  assert {draw_one(captions, "long", None, rng) for _ in range(50)} == {1, 3}


# ---- sets


def test_a_set_holds_whole_captions_with_their_ids_and_parts_without():
  captions = (Caption("A dog."), Caption("A dog runs. It is red. The sky is blue.", "long", "en", "model", 2.0))
  ids = ((1, 2), (3, 4, 5))
  whole = draw_set(captions, ids, 4, CaptionSampling(set_size=4), np.random.default_rng(0))
  assert [each[:2] for each in whole] == list(zip(captions, ids, strict=True))
  assert [each.weight for each in whole] == pytest.approx([2 / 3, 4 / 3])
  single = draw_set(captions, ids, 9, CaptionSampling(set_size=9, sentences=1), np.random.default_rng(0))
  assert [each.caption.text for each in single] == ["A dog.", "A dog runs.", "It is red.", "The sky is blue."]
  assert [each.ids for each in single] == [(1, 2), None, None, None]
  assert all(each.caption.weight == 2 and each.caption.source == "model" for each in single[1:])
  # a run that is the whole caption is that caption
  seen = set()
  for seed in range(40):
    merged = draw_set(captions, ids, 9, CaptionSampling(set_size=9, sentences=3), np.random.default_rng(seed))
    seen.add(len(merged))
    assert " ".join(each.caption.text for each in merged[1:]) == captions[1].text
    assert (len(merged) > 2) or merged[1][:2] == (captions[1], ids[1])
  assert seen == {2, 3, 4}


# ---- sentences


@pytest.mark.parametrize(
  ("text", "sentences"),
  [
    ("A dog. A cat!  Is it red? yes", ["A dog. ", "A cat!  ", "Is it red? ", "yes"]),
    ("the dog runs. it is red.", ["the dog runs. ", "it is red."]),
    ("It is 3.5 m high. It is red.", ["It is 3.5 m high. ", "It is red."]),
    ("Mr. J. R. Smith of St. Louis, e.g. here. He waves.", ["Mr. J. R. Smith of St. Louis, e.g. here. ", "He waves."]),
    ("At 5 p.m. The sun sets at 6 p.m. or so.", ["At 5 p.m. ", "The sun sets at 6 p.m. or so."]),
    ("Cars, etc. are there. Also dogs, etc. The end.", ["Cars, etc. are there. ", "Also dogs, etc. ", "The end."]),
    ("Bus No. 5 stops. He says no. She goes.", ["Bus No. 5 stops. ", "He says no. ", "She goes."]),
    ('A sign says "Stop." A car waits.', ['A sign says "Stop." ', "A car waits."]),
    ("A dog... and a cat… or two. Wait... What?", ["A dog... and a cat… or two. ", "Wait... ", "What?"]),
    ("1. A dog runs.\n2. A cat sits", ["1. A dog runs.\n", "2. A cat sits"]),
    ("a list\nwithout stops\n\nof lines", ["a list\n", "without stops\n\n", "of lines"]),
    ("一只狗在跑。真的吗？“是的。”天空很蓝", ["一只狗在跑。", "真的吗？", "“是的。”", "天空很蓝"]),
    ("图中有3.5米高的树。旁边是A.B.公司", ["图中有3.5米高的树。", "旁边是A.B.公司"]),
    ("Wow?! Yes. ...", ["Wow?! ", "Yes. ..."]),
    ("", []),
    ("...", ["..."]),
  ],
)  # fmt: skip
def test_sentences(text, sentences):
  assert split_sentences(text) == sentences


@given(st.one_of(st.text(max_size=40), st.text(st.sampled_from('aB1. !?…。"\n”St'), max_size=40)), st.integers(1, 4))
def test_sentences_lose_nothing(text, most):
  sentences = split_sentences(text)
  assert "".join(sentences) == text
  assert len(sentences) < 2 or all(any(char.isalnum() for char in each) for each in sentences)
  runs = cut_sentences(text, most, np.random.default_rng(0))
  assert "".join("".join(runs).split()) == "".join(text.split())
  assert len(sentences) / most <= len(runs) <= len(sentences)


def test_runs_of_sentences_are_of_all_lengths():
  text = " ".join(f"This is sentence {i}." for i in range(30))
  rng, lengths = np.random.default_rng(0), np.zeros(4)
  for _ in range(300):
    for run in cut_sentences(text, 3, rng)[:5]:  # the last ones have what is left
      lengths[run.count(".")] += 1
  assert lengths[0] == 0 and lengths[1:] / lengths.sum() == pytest.approx([1 / 3] * 3, abs=0.05)


# ---- settings


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"draw": "random"}, r"data.captions.draw must be one of \('first', 'weighted'\), got 'random'"),
    ({"set_size": -1}, "data.captions.set_size must lie in 0..1024, got -1"),
    ({"set_size": 2, "sentences": -1}, "data.captions.sentences must lie in 0..1024, got -1"),
    ({"sentences": 2}, "data.captions.sentences=2 is for captions of the set, .* set it, e.g. to 4"),
    ({"set_size": 2, "alt_text_share": 1.5}, "data.captions.alt_text_share must lie in 0..1, got 1.5"),
    ({"alt_text_share": 0.5}, "data.captions.alt_text_share needs captions that are drawn"),
  ],
)
def test_impossible_settings(changes, message):
  with pytest.raises(ValueError, match=message):
    CaptionSampling(**changes)
