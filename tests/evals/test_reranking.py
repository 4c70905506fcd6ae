"""Two-stage retrieval against sorting by hand."""

import json

import numpy as np
import pytest

from fgclip_jax.data.record import Record
from fgclip_jax.evals import ImageTextRetrieval, Records, ranking, reranking
from fgclip_jax.evals.evaluator import NothingToMeasureError
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.models import config
from tests.helpers.toy import picture, write_shards
from tests.helpers.toy_models import init

POOLING = config.preset("tiny").replace(text_pooling={"heads": 2})


def unit(rng, *shape):
  x = rng.normal(size=shape)
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 3, 20])
def test_the_best_answers_are_those_of_sorting(k):
  rng = np.random.default_rng(0)
  queries, gallery = unit(rng, 7, 4), unit(rng, 11, 4)
  found = reranking.best_answers(queries, gallery, k, block=3)
  np.testing.assert_array_equal(found, np.argsort(-queries @ gallery.T, axis=1)[:, :k])


def test_the_first_answers_are_ordered_anew_and_the_others_stay_behind_them():
  rng = np.random.default_rng(1)
  queries, gallery = unit(rng, 40, 4), unit(rng, 15, 4)
  pairs = np.asarray([(query, (query + step) % 15) for query in range(40) for step in range(1 + query % 2)])
  ranks = ranking.search(queries, gallery, pairs)
  answers = reranking.best_answers(queries, gallery, 5)
  scores = rng.normal(size=answers.shape).astype(np.float32)
  scores[3] = 0.5  # ties count against the model
  rank, first, score = reranking.rerank(ranks, answers, scores, pairs)
  kinds = set()
  for query in range(40):
    right = set(pairs[pairs[:, 0] == query, 1])
    order = sorted(range(5), key=lambda place: -scores[query, place])
    assert first[query] in answers[query] and score[query] == scores[query].max()
    inside = [place for place in range(5) if answers[query, place] in right]
    kinds.add(bool(inside))
    if not inside:
      assert rank[query] == ranks[0][query] >= 5
    elif query == 3:
      assert rank[query] == 5 - len(inside)
    else:
      better = [place for place in order if scores[query, place] > max(scores[query, inside])]
      assert rank[query] == len([place for place in better if answers[query, place] not in right])
  assert kinds == {True, False}


def test_retrieval_with_answers_compared_anew(tmp_path, draw, model):
  rows = [{"image": f"{number}.png", "captions": [f"caption {number}", f"text {number}"]} for number in range(5)]
  for number in range(5):
    draw(tmp_path / f"{number}.png", number)
  path = tmp_path / "pairs.jsonl"
  path.write_text("\n".join(map(json.dumps, [*rows[:2], {"image": "none.png", "caption": "gone"}, *rows[2:]])) + "\n")
  pooling = FGCLIP(POOLING, init(POOLING, 0))
  result = ImageTextRetrieval("pairs", str(path), rerank=10).run(pooling)
  dense = pooling.encode_dense([str(tmp_path / f"{number}.png") for number in range(5)])
  texts = [text for row in rows for text in row["captions"]]
  scores = pooling.conditioned_similarity(dense, pooling.encode_text(texts))  # all are among the first ten
  hits = [row.argmax() // 2 == number for number, row in enumerate(scores)]
  assert result.metrics["reranked_image_to_text_r1"].value == pytest.approx(np.mean(hits))
  hits = [column.argmax() == number // 2 for number, column in enumerate(scores.T)]
  assert result.metrics["reranked_text_to_image_r1"].value == pytest.approx(np.mean(hits))
  plain = ImageTextRetrieval("pairs", str(path))
  assert {name: value for name, value in result.metrics.items() if not name.startswith("reranked")} == dict(
    plain.run(pooling).metrics
  )
  assert "rerank" not in plain.settings() and result.skipped == {"image_missing": 1}
  with pytest.raises(NothingToMeasureError, match="this model has no text-conditioned pooling, which rerank needs"):
    ImageTextRetrieval("pairs", str(path), rerank=10).run(model)


def test_a_picture_that_cannot_be_read_again_is_an_error(model):
  answers = np.zeros((2, 1), int)
  with pytest.raises(ValueError, match="picture 0 of 2 could be read once, and not again"):
    reranking.rescore(model, iter(()), np.zeros((2, 4), np.float32), answers, answers)


def test_a_prepared_data_set_with_answers_compared_anew(tmp_path, model):
  records = [Record(id=str(n), image=picture(n), short=f"picture {n}", long=f"a picture of {n}") for n in range(5)]
  records[2] = Record(id="2", image=picture(2), short="picture 2")  # without a long caption
  write_shards(tmp_path, records, split="validation")
  pooling = FGCLIP(POOLING, init(POOLING, 0))
  evaluator = Records(str(tmp_path), rerank=2)
  result = evaluator.run(pooling)
  dense = pooling.encode_dense([record.image for record in records])
  for kind, numbers in (("short", range(5)), ("long", (0, 1, 3, 4))):
    texts = pooling.encode_text([getattr(records[number], kind) for number in numbers], kind)
    scores = pooling.conditioned_similarity(dense, texts)[list(numbers)]
    first = np.argsort(-pooling.encode_image([records[n].image for n in numbers]) @ texts.T, axis=1)[:, :2]
    hits = [row[np.argmax(scores[place, row])] == place for place, row in enumerate(first)]
    assert result.metrics[f"{kind}_reranked_image_to_text_r1"].value == pytest.approx(np.mean(hits))
  assert evaluator.settings()["rerank"] == 2 and "rerank" not in Records("x").settings()
  with pytest.raises(NothingToMeasureError, match="this model has no text-conditioned pooling, which rerank needs"):
    Records(str(tmp_path), rerank=2).run(model)
