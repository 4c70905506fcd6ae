"""Image-text retrieval: the caption of an image among all captions, and the image of a caption among all images."""

import dataclasses

import numpy as np

from fgclip_jax.api import FGCLIP
from fgclip_jax.evals import metrics
from fgclip_jax.evals.embedded import NONE, Embedded


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

  def run(self, model: FGCLIP, examples: Embedded) -> dict[str, metrics.Metric]:
    """Metrics `KIND_image_to_text_rK` and `KIND_text_to_image_rK`."""
    if self.kind == "long" and not model.config.fine_grained:
      raise metrics.NothingToMeasureError("the model is a plain CLIP, which reads no long captions")
    captions = {"short": examples.short, "long": examples.long}[self.kind]
    embeddings = {"short": examples.short_text, "long": examples.long_text}[self.kind]
    has = captions != NONE
    if not has.any():
      raise metrics.NothingToMeasureError(f"no record has a {self.kind} caption")
    image = examples.image[has]
    distinct, caption = np.unique(captions[has], return_inverse=True)
    text = embeddings[distinct]
    pairs = np.stack([np.arange(len(image)), caption], axis=1)
    result = {}
    for way, queries, gallery, right in (
      ("image_to_text", image, text, pairs),
      ("text_to_image", text, image, pairs[:, ::-1]),
    ):
      rank = metrics.ranks(queries, gallery, right)
      for k in self.ks:
        result[f"{self.kind}_{way}_r{k}"] = metrics.top_k(rank, right, len(gallery), k)
    return result
