"""Boxes by a zero-shot detector of the transformers library: OWLv2, Grounding DINO, OmDet-Turbo.

Each phrase is a query of its own, and boxes are taken by the number of their query: the labels that Grounding DINO
makes of a joined prompt are pieces of words. Needs torch and transformers.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

from fgclip_jax.annotate.boxes.backend import Found, Located, Question
from fgclip_jax.annotate.boxes.conventions import Convention
from fgclip_jax.data import image as images
from fgclip_jax.storage.errors import RecordError

_PIXELS = Convention("xyxy", "pixels")  # of the picture: the library's post-processing scales back


@dataclasses.dataclass(frozen=True)
class Transformers:
  """A detector.

  Attributes:
    model: its name on the Hugging Face hub, or a folder.
    threshold: the least score of a box that is kept.
  """

  model: str
  threshold: float = 0.2

  def signature(self) -> dict[str, Any]:
    return {"detector": "transformers", "model": self.model, "version": 1}

  def locate(self, questions: Iterable[Question], part: int = 0) -> Iterator[Located]:
    """Answers each question once.

    Raises:
      ValueError: the library is missing, or the model is no zero-shot detector.
    """
    del part
    processor, model = _load(self.model)
    for question in questions:
      found, bad = [], {}
      picture = images.open_image(question.image)
      for number, phrase in enumerate(question.phrases):
        for box, score in _detect(processor, model, picture, phrase):
          try:
            found.append(Found(_PIXELS.to_box(box, question.size), number, score))
          except RecordError as error:
            bad[error.kind] = bad.get(error.kind, 0) + 1
      yield Located(question.key, tuple(found), bad)


@functools.lru_cache(maxsize=1)
def _load(name: str) -> tuple[Any, Any]:
  try:
    import torch
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor
  except ImportError as error:
    raise ValueError(f"--boxes transformers: {error}; pip install torch transformers") from error
  try:
    processor = AutoProcessor.from_pretrained(name)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(name)
  except (OSError, ValueError) as error:
    raise ValueError(f"--boxes transformers:{name}: {str(error).splitlines()[0]}") from error
  return processor, model.to("cuda" if torch.cuda.is_available() else "cpu").eval()


def _detect(processor: Any, model: Any, picture: Any, phrase: str) -> list[tuple[list[float], float]]:
  import torch

  text = f"{phrase.lower().rstrip('.')}." if "grounding" in type(processor).__name__.lower() else [[phrase]]
  inputs = processor(images=picture, text=text, return_tensors="pt").to(model.device)
  with torch.inference_mode():
    outputs = model(**inputs)
  size = [(picture.height, picture.width)]
  if hasattr(processor, "post_process_grounded_object_detection"):
    options = {"threshold": 0.0, "target_sizes": size}
    if "input_ids" in inputs and "grounding" in type(processor).__name__.lower():
      found = processor.post_process_grounded_object_detection(outputs, inputs["input_ids"], **options)[0]
    else:
      found = processor.post_process_grounded_object_detection(outputs, text_labels=[[phrase]], **options)[0]
  else:
    found = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=torch.tensor(size))[0]
  pairs = zip(found["boxes"].tolist(), found["scores"].tolist(), strict=True)
  return sorted(((box, float(score)) for box, score in pairs), key=lambda pair: -pair[1])[:10]
