"""A prepared data set's own captions, regions and hard negatives as a benchmark; each image is encoded once."""

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int

from fgclip_jax.evals import guards, options, ranking, reranking
from fgclip_jax.evals.embeddings import DatasetEmbeddings, DatasetMetric, embed
from fgclip_jax.evals.evaluator import Metric, NothingToMeasureError, Prediction, Result
from fgclip_jax.inference.describe import family
from fgclip_jax.inference.model import FGCLIP

SHORT = "captions, regions and hard negatives of a prepared data set (also without the word `records`)"
TEXT = """Retrieval by short and long captions, classification of regions among all region captions (or the data set's
declared classes), and matching of a region with its caption among its hard negatives: all in one pass."""
EXAMPLE = "--model runs/stage2 --data data/scenes --output stage2.json"


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options of the command."""
  parser.add_argument(
    "--data", required=True, metavar="DIR", help="a record folder, as `python -m fgclip_jax.prepare` writes it"
  )
  parser.add_argument("--split", default="validation", help="the split of the data (default: %(default)s)")
  options.add_rerank(parser)
  options.add_limit(parser, "records")


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """R@1, R@5 and R@10 both ways, over the images that have such a caption and their distinct captions.

  Images with the same caption are all right answers to it. Ties count against the model.

  Attributes:
    kind: `short` or `long`.
    ks: the K of each R@K.
    rerank: how many of the first answers are compared anew, see `ImageTextRetrieval`; None: none.
  """

  kind: str
  ks: tuple[int, ...] = (1, 5, 10)
  rerank: int | None = None

  @property
  def name(self) -> str:
    return f"retrieval with {self.kind} captions"

  def run(self, model: FGCLIP, examples: DatasetEmbeddings) -> tuple[dict[str, Metric], list[Prediction]]:
    """Metrics `KIND_image_to_text_rK` and `KIND_text_to_image_rK`; with `rerank` also `KIND_reranked_...`."""
    if self.kind not in model.config.text.kinds:
      raise NothingToMeasureError(f"the model is a {family(model.config)}, which reads no {self.kind} captions")
    captions = {"short": examples.short, "long": examples.long}[self.kind]
    embeddings = {"short": examples.short_text, "long": examples.long_text}[self.kind]
    words = {"short": examples.short_words, "long": examples.long_words}[self.kind]
    has = captions != ranking.NONE
    if not has.any():
      raise NothingToMeasureError(f"no record has a {self.kind} caption")
    image = examples.image[has]
    distinct, caption = np.unique(captions[has], return_inverse=True)
    text = embeddings[distinct]
    pairs = np.stack([np.arange(len(image)), caption], axis=1)
    found, answers = ranking.recalls(image, text, pairs, self.ks)
    if self.rerank and examples.read_dense:
      dense = (features for features, there in zip(examples.read_dense(), has, strict=True) if there)
      found |= reranking.reranked_recalls(model, enumerate(dense), image, text, pairs, self.rerank, self.ks)
    ids, captions = [examples.ids[number] for number in np.flatnonzero(has)], [words[number] for number in distinct]
    owner = dict(zip(caption[::-1].tolist(), ids[::-1], strict=True))  # the first of a caption's images
    predictions = []
    for way, queries, gallery, right in (
      ("image_to_text", ids, captions, [captions[number] for number in caption]),
      ("text_to_image", captions, ids, [owner[number] for number in range(len(captions))]),
    ):
      predicted = [gallery[number] for number in answers[way].first]
      rest = (answers[way].rank.tolist(), answers[way].score.tolist())
      # where any right answer scored highest, that one is named
      right = [one if rank else best for one, best, rank in zip(right, predicted, rest[0], strict=True)]
      task = f"{self.kind}_{way}"
      predictions += [Prediction(task, *each) for each in zip(queries, right, predicted, *rest, strict=True)]
    return {f"{self.kind}_{name}": metric for name, metric in found.items()}, predictions


@dataclasses.dataclass(frozen=True)
class RegionClassification:
  """The caption of a region among the data set's region classes, or else among all region captions of the split.

  Attributes:
    ks: the K of each top-K.
  """

  name: str = "region classification"
  ks: tuple[int, ...] = (1, 5)

  def run(self, model: FGCLIP, examples: DatasetEmbeddings) -> tuple[dict[str, Metric], list[Prediction]]:
    """Metrics `region_topK`, over the regions whose caption is one of the classes."""
    if not len(examples.region):
      raise NothingToMeasureError("no record has a region")
    known = np.isin(examples.region_caption, examples.classes)
    if not known.any():
      raise NothingToMeasureError(f"no region's caption is one of the {len(examples.classes)} region classes")
    region, label = examples.region[known], np.searchsorted(examples.classes, examples.region_caption[known])
    pairs = np.stack([np.arange(len(region)), label], axis=1)
    rank, first, score = ranking.search(region, examples.of_regions[examples.classes], pairs)
    found = {f"region_top{k}": ranking.top_k(rank, pairs, len(examples.classes), k) for k in self.ks}
    return found, _predictions("region", examples, np.flatnonzero(known), examples.classes[first], rank, score)


@dataclasses.dataclass(frozen=True)
class FineGrained:
  """The caption of a region among itself and its hard negatives, eleven texts where it has ten. Ties are misses."""

  name: str = "fine-grained matching"

  def run(self, model: FGCLIP, examples: DatasetEmbeddings) -> tuple[dict[str, Metric], list[Prediction]]:
    """The metric `fine_grained_top1`, over the regions with at least one negative."""
    valid = examples.negatives != ranking.NONE
    has = np.flatnonzero(valid.any(1))
    if not len(has):
      raise NothingToMeasureError("no region has hard negatives")
    beaten, _, first = ranking.beaten_by(
      examples.region[has], examples.of_regions, examples.region_caption[has], examples.negatives[has]
    )
    chance = float(np.mean(1 / (1 + valid[has].sum(1))))
    found = {"fine_grained_top1": Metric(float(np.mean(~beaten.any(1))), chance, len(has))}
    score = np.einsum("nd,nd->n", examples.region[has], examples.of_regions[first])
    return found, _predictions("fine_grained", examples, has, first, beaten.sum(1), score)


def _predictions(
  task: str,
  examples: DatasetEmbeddings,
  regions: Int[np.ndarray, "n"],
  first: Int[np.ndarray, "n"],
  rank: Int[np.ndarray, "n"],
  score: Float32[np.ndarray, "n"],
) -> list[Prediction]:
  """The predictions for some regions; `first` is the text that scored highest."""
  words = examples.short_words
  return [
    Prediction(task, examples.places[region], words[examples.region_caption[region]], words[text], *rest)
    for region, text, *rest in zip(regions, first, rank.tolist(), score.tolist(), strict=True)
  ]


METRICS: tuple[DatasetMetric, ...] = (Retrieval("long"), Retrieval("short"), RegionClassification(), FineGrained())


@dataclasses.dataclass(frozen=True)
class Records:
  """The evaluator. Captions are cut as in training, and a note says so.

  Attributes:
    data, split: a record folder and its split.
    limit: the number of records to read, from the first; None for all.
    allow: see `guards`.
    parts: the metrics to compute.
    rerank: for all retrieval among them, see `Retrieval`.
  """

  data: str
  split: str = "validation"
  limit: int | None = None
  allow: tuple[str, ...] = ()
  parts: Sequence[DatasetMetric] = METRICS
  rerank: int | None = None

  @property
  def name(self) -> str:
    return "records"

  def settings(self) -> dict[str, Any]:
    values = {"data": self.data, "split": self.split, "limit": self.limit}
    return values | ({"rerank": self.rerank} if self.rerank else {})

  def files(self) -> list[str | tuple[str, str]]:
    return [(self.data, self.split)]

  def run(self, model: FGCLIP, progress: bool = False) -> Result:
    """Encodes the split once and computes all metrics; those without labels are left out with a note.

    Raises:
      FileNotFoundError, ValueError: the split is missing, or holds no usable record.
    """
    notes = guards.check_resolution(model, self.allow)
    if self.rerank:
      reranking.check(model)
    examples = embed(model, self.data, self.split, self.limit, progress)
    metrics: dict[str, Metric] = {}
    predictions: list[Prediction] = []
    notes += examples.notes
    for metric in self.parts:
      if self.rerank and isinstance(metric, Retrieval):
        metric = dataclasses.replace(metric, rerank=self.rerank)
      try:
        found, asked = metric.run(model, examples)
        metrics |= found
        predictions += asked
      except NothingToMeasureError as error:
        notes.append(f"{metric.name} left out: {error}")
    columns = {name: [getattr(each, name) for each in predictions] for name in Prediction._fields}
    return Result(metrics, columns, examples.records, examples.skipped, tuple(notes))
