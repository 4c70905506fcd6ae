"""Retrieval and region metrics over embeddings made by hand, against brute force."""

import types

import numpy as np
import pytest

from fgclip_jax.evals import ranking
from fgclip_jax.evals.embeddings import DatasetEmbeddings
from fgclip_jax.evals.evaluator import Metric, NothingToMeasureError
from fgclip_jax.evals.tasks.dataset import FineGrained, RegionClassification, Retrieval
from fgclip_jax.models import config

# the evaluators ask the model for its config alone
MODEL = types.SimpleNamespace(config=config.preset("tiny"))
PLAIN = types.SimpleNamespace(config=config.preset("tiny").replace(text={"long_length": None}))


@pytest.fixture(autouse=True)
def _unchecked(unchecked):
  """A stand-in for the model is no FGCLIP."""


def unit(x):
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def embedded(seed=0, images=40, texts=50, regions=60, width=4, **changes):
  rng = np.random.default_rng(seed)
  negatives = rng.integers(0, texts, (regions, 10))
  negatives[np.arange(10) >= rng.integers(0, 11, regions)[:, None]] = -1
  values = {
    "image": unit(rng.normal(size=(images, width))),
    "short": rng.integers(-1, 20, images),  # some have none, some share theirs
    "long": rng.permutation(images),
    "region": unit(rng.normal(size=(regions, width))),
    "region_caption": rng.integers(20, texts, regions),
    "negatives": negatives,
    "classes": np.arange(25, texts),
    "short_text": unit(rng.normal(size=(texts, width))),
    "long_text": unit(rng.normal(size=(images, width))),
    "ids": [f"image {number}" for number in range(images)],
    "places": [f"region {number}" for number in range(regions)],
    "short_words": [f"short {number}" for number in range(texts)],
    "long_words": [f"long {number}" for number in range(images)],
  }
  return DatasetEmbeddings(**values | changes, records=images, skipped={}, notes=())


def test_retrieval_of_distinct_captions():
  examples = embedded()
  found, questions = Retrieval("long").run(MODEL, examples)
  scores = examples.image @ examples.long_text[examples.long].T
  for k in (1, 5, 10):
    for way, table in (("image_to_text", scores), ("text_to_image", scores.T)):
      hits = [i in np.argsort(-row)[:k] for i, row in enumerate(table)]
      assert found[f"long_{way}_r{k}"] == Metric(np.mean(hits), pytest.approx(k / 40), 40)
  assert len(found) == 6
  names = [f"long {number}" for number in examples.long]
  asked = {(each.task, each.query): each for each in questions}
  assert len(asked) == len(questions) == 80
  for image in range(40):
    there = asked["long_image_to_text", f"image {image}"]
    back = asked["long_text_to_image", names[image]]
    assert (there.right, back.right) == (names[image], f"image {image}")
    for question, row, answers in ((there, scores[image], names), (back, scores[:, image], examples.ids)):
      assert question.predicted == answers[row.argmax()]
      assert question.rank == (row > row[image]).sum() and question.score == pytest.approx(row.max(), abs=1e-6)


def test_retrieval_where_images_share_captions_or_have_none():
  examples = embedded()
  found, questions = Retrieval("short").run(MODEL, examples)
  scores = examples.image @ examples.short_text.T
  has = np.flatnonzero(examples.short >= 0)
  captions = sorted(set(examples.short[has].tolist()))
  assert 0 < len(has) < 40 and len(captions) < len(has)
  hits = [examples.short[i] == max(captions, key=lambda c: scores[i, c]) for i in has]
  assert found["short_image_to_text_r1"] == Metric(np.mean(hits), pytest.approx(1 / len(captions)), len(has))
  hits = [examples.short[max(has, key=lambda i: scores[i, c])] == c for c in captions]
  chance = np.mean([(examples.short == c).sum() / len(has) for c in captions])
  assert found["short_text_to_image_r1"] == Metric(np.mean(hits), pytest.approx(chance), len(captions))
  for question in questions[len(has) :]:
    owners = [examples.ids[i] for i in has if f"short {examples.short[i]}" == question.query]
    assert question.right == (owners[0] if question.rank else question.predicted)
    assert (question.rank == 0) == (question.predicted in owners)


def test_region_classification_counts_the_regions_whose_caption_is_a_class():
  examples = embedded()
  found, questions = RegionClassification().run(MODEL, examples)
  known = np.flatnonzero(examples.region_caption >= 25)
  assert 0 < len(known) < 60
  scores = examples.region @ examples.short_text[25:].T
  for k in (1, 5):
    hits = [examples.region_caption[r] - 25 in np.argsort(-scores[r])[:k] for r in known]
    assert found[f"region_top{k}"] == Metric(np.mean(hits), pytest.approx(k / 25), len(known))
  assert [each.query for each in questions] == [f"region {r}" for r in known]
  assert [each.right for each in questions] == [f"short {examples.region_caption[r]}" for r in known]
  assert [each.predicted for each in questions] == [f"short {25 + scores[r].argmax()}" for r in known]


def test_fine_grained_matching():
  examples = embedded()
  hits, chances, predicted = [], [], []
  for region, caption, negatives in zip(examples.region, examples.region_caption, examples.negatives, strict=True):
    wrong = [n for n in negatives if n >= 0]
    if wrong:
      best = max(examples.short_text[n] @ region for n in wrong)
      hits.append(examples.short_text[caption] @ region > best + ranking.TIE)
      chances.append(1 / (1 + len(wrong)))
      predicted.append(f"short {max([caption, *wrong], key=lambda n: examples.short_text[n] @ region)}")
  expected = {"fine_grained_top1": Metric(np.mean(hits), pytest.approx(np.mean(chances)), len(hits))}
  found, questions = FineGrained().run(MODEL, examples)
  assert found == expected and 0 < np.mean(hits) < 1
  assert [each.rank == 0 for each in questions] == hits and [each.predicted for each in questions] == predicted


@pytest.mark.parametrize("evaluator", [Retrieval("short"), RegionClassification(), FineGrained()])
def test_broken_embeddings_have_no_hit(evaluator):
  examples = embedded()
  for region in (np.full_like(examples.region, np.nan), np.zeros_like(examples.region)):
    broken = embedded(region=region, image=region[:40])
    values = {key: metric.value for key, metric in evaluator.run(MODEL, broken)[0].items() if key.endswith("1")}
    assert values and not any(values.values())


def test_without_labels_there_is_nothing_to_measure():
  none = np.full(40, -1)
  bare = embedded(regions=0, short=none, long=none)
  for evaluator, message in (
    (Retrieval("short"), "no record has a short caption"),
    (Retrieval("long"), "no record has a long caption"),
    (RegionClassification(), "no record has a region"),
    (FineGrained(), "no region has hard negatives"),
  ):
    with pytest.raises(NothingToMeasureError, match=message):
      evaluator.run(MODEL, bare)
  with pytest.raises(NothingToMeasureError, match="plain CLIP"):
    Retrieval("long").run(PLAIN, embedded())
  with pytest.raises(NothingToMeasureError, match="one of the 2 region classes"):
    RegionClassification().run(MODEL, embedded(classes=np.arange(2)))
