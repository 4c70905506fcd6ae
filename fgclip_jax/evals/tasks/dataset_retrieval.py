"""Image-text retrieval: the captions of an image among all captions, and the image of a caption among all images."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int

from fgclip_jax.evals import ranking
from fgclip_jax.evals.embeddings import Embedded
from fgclip_jax.evals.evaluator import Metric, NothingToMeasureError, Question
from fgclip_jax.inference.model import FGCLIP


@dataclasses.dataclass(frozen=True)
class Retrieval:
  """R@1, R@5 and R@10 both ways, over the images that have such a caption and their distinct captions.

  Images with the same caption are all right answers to it. Ties count against the model.

  Attributes:
    kind: `short` or `long`.
  """

  kind: str
  ks: tuple[int, ...] = (1, 5, 10)

  @property
  def name(self) -> str:
    return f"retrieval with {self.kind} captions"

  def run(self, model: FGCLIP, examples: Embedded) -> tuple[dict[str, Metric], list[Question]]:
    """Metrics `KIND_image_to_text_rK` and `KIND_text_to_image_rK`."""
    if self.kind == "long" and not model.config.fine_grained:
      raise NothingToMeasureError("the model is a plain CLIP, which reads no long captions")
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
    found, answers = recalls(image, text, pairs, self.ks)
    ids, captions = [examples.ids[number] for number in np.flatnonzero(has)], [words[number] for number in distinct]
    owner = dict(zip(caption[::-1].tolist(), ids[::-1], strict=True))  # the first of a caption's images
    questions = []
    for way, queries, gallery, right in (
      ("image_to_text", ids, captions, [captions[number] for number in caption]),
      ("text_to_image", captions, ids, [owner[number] for number in range(len(captions))]),
    ):
      predicted = [gallery[number] for number in answers[way].first]
      rest = (answers[way].rank.tolist(), answers[way].score.tolist())
      right = [one if rank else best for one, best, rank in zip(right, predicted, rest[0], strict=True)]
      task = f"{self.kind}_{way}"
      questions += [Question(task, *each) for each in zip(queries, right, predicted, *rest, strict=True)]
    return {f"{self.kind}_{name}": metric for name, metric in found.items()}, questions


@dataclasses.dataclass(frozen=True)
class Found:
  """What was found for each question of one way.

  Attributes:
    rank: how many wrong answers score at least as high as the best right one.
    first: the answer that scores highest.
    score: its cosine.
  """

  rank: Int[np.ndarray, "Q"]
  first: Int[np.ndarray, "Q"]
  score: Float32[np.ndarray, "Q"]


def recalls(
  image: Float32[np.ndarray, "N D"],
  text: Float32[np.ndarray, "T D"],
  pairs: Int[np.ndarray, "P 2"],
  ks: Sequence[int] = (1, 5, 10),
  repeats: Int[np.ndarray, "T"] | None = None,
) -> tuple[dict[str, Metric], dict[str, Found]]:
  """Metrics `image_to_text_rK` and `text_to_image_rK`, and what was found each way.

  Args:
    image, text: unit-length embeddings of images and of distinct texts.
    pairs: numbers of images and of texts that belong to them.
    ks: how many answers are looked at.
    repeats: how often each text is asked for; None: once.
  """
  result, found = {}, {}
  for way, queries, gallery, right in (
    ("image_to_text", image, text, pairs),
    ("text_to_image", text, image, pairs[:, ::-1]),
  ):
    rank, first, score = ranking.search(queries, gallery, right)
    if way == "text_to_image" and repeats is not None:
      asked = np.repeat(np.arange(len(text)), repeats)
      rank, first, score = rank[asked], first[asked], score[asked]
      answers = np.split(right[np.argsort(right[:, 0], kind="stable"), 1], np.cumsum(np.bincount(right[:, 0]))[:-1])
      right = np.asarray([(question, a) for question, row in enumerate(asked) for a in answers[row]])
    found[way] = Found(rank, first, score)
    for k in ks:
      result[f"{way}_r{k}"] = ranking.top_k(rank, right, len(gallery), k)
  return result, found
