"""Prompts for class names, and classes as the mean of their prompts' embeddings.

`OPENAI_80` and `OPENAI_7` are the prompts that CLIP's ImageNet numbers were taken with and the seven of them that its
authors found enough (https://github.com/openai/CLIP/blob/main/notebooks/Prompt_Engineering_for_ImageNet.ipynb).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from fgclip_jax.evals import guards
from fgclip_jax.inference.inputs import TextTooLongError
from fgclip_jax.inference.model import FGCLIP

OPENAI_80 = (
  "a bad photo of a {}.",
  "a photo of many {}.",
  "a sculpture of a {}.",
  "a photo of the hard to see {}.",
  "a low resolution photo of the {}.",
  "a rendering of a {}.",
  "graffiti of a {}.",
  "a bad photo of the {}.",
  "a cropped photo of the {}.",
  "a tattoo of a {}.",
  "the embroidered {}.",
  "a photo of a hard to see {}.",
  "a bright photo of a {}.",
  "a photo of a clean {}.",
  "a photo of a dirty {}.",
  "a dark photo of the {}.",
  "a drawing of a {}.",
  "a photo of my {}.",
  "the plastic {}.",
  "a photo of the cool {}.",
  "a close-up photo of a {}.",
  "a black and white photo of the {}.",
  "a painting of the {}.",
  "a painting of a {}.",
  "a pixelated photo of the {}.",
  "a sculpture of the {}.",
  "a bright photo of the {}.",
  "a cropped photo of a {}.",
  "a plastic {}.",
  "a photo of the dirty {}.",
  "a jpeg corrupted photo of a {}.",
  "a blurry photo of the {}.",
  "a photo of the {}.",
  "a good photo of the {}.",
  "a rendering of the {}.",
  "a {} in a video game.",
  "a photo of one {}.",
  "a doodle of a {}.",
  "a close-up photo of the {}.",
  "a photo of a {}.",
  "the origami {}.",
  "the {} in a video game.",
  "a sketch of a {}.",
  "a doodle of the {}.",
  "a origami {}.",
  "a low resolution photo of a {}.",
  "the toy {}.",
  "a rendition of the {}.",
  "a photo of the clean {}.",
  "a photo of a large {}.",
  "a rendition of a {}.",
  "a photo of a nice {}.",
  "a photo of a weird {}.",
  "a blurry photo of a {}.",
  "a cartoon {}.",
  "art of a {}.",
  "a sketch of the {}.",
  "a embroidered {}.",
  "a pixelated photo of a {}.",
  "itap of the {}.",
  "a jpeg corrupted photo of the {}.",
  "a good photo of a {}.",
  "a plushie {}.",
  "a photo of the nice {}.",
  "a photo of the small {}.",
  "a photo of the weird {}.",
  "the cartoon {}.",
  "art of the {}.",
  "a drawing of the {}.",
  "a photo of the large {}.",
  "a black and white photo of a {}.",
  "the plushie {}.",
  "a dark photo of a {}.",
  "itap of a {}.",
  "graffiti of the {}.",
  "a toy {}.",
  "itap of my {}.",
  "a photo of a cool {}.",
  "a photo of a small {}.",
  "a tattoo of the {}.",
)

OPENAI_7 = (
  "itap of a {}.",
  "a bad photo of the {}.",
  "a origami {}.",
  "a photo of the large {}.",
  "a {} in a video game.",
  "art of the {}.",
  "a photo of the small {}.",
)

TEMPLATES = {"openai80": OPENAI_80, "openai7": OPENAI_7, "photo": ("a photo of a {}.",), "name": ("{}",)}

_TEXTS = 65_536  # encoded at a time, which bounds what is held of them


def class_embeddings(
  model: FGCLIP, names: Sequence[str], templates: Sequence[str] = OPENAI_80, progress: bool = False
) -> Float32[np.ndarray, "C D"]:
  """One embedding for each class: the mean of its prompts' unit-length embeddings, made of unit length again.

  Args:
    model: the model; prompts take its short path.
    names: of the classes; equal ones are encoded once and get equal embeddings.
    templates: prompts with `{}` where the name goes.
    progress: shows progress bars.

  Raises:
    ValueError: there is no name or no template, a name is empty, a template has no `{}`, a prompt is longer than the
      model reads, or an embedding is not finite.
  """
  _check(names, templates)
  distinct = list(dict.fromkeys(names))
  means = np.zeros((len(distinct), model.config.embedding_width), np.float32)
  step = max(_TEXTS // len(templates), 1)
  for start in range(0, len(distinct), step):
    part = distinct[start : start + step]
    prompts = [template.replace("{}", name) for name in part for template in templates]
    single = list(dict.fromkeys(prompts))
    place = {text: number for number, text in enumerate(single)}
    try:
      embeddings = model.encode_text(single, "short", progress, truncate=False)
    except TextTooLongError as error:
      longest = max(single, key=len)
      raise ValueError(f"a class needs a shorter name: {longest!r:.200}: {str(error).partition(': ')[0]}") from error
    guards.check_finite(embeddings, "prompts")
    rows = embeddings[[place[text] for text in prompts]].reshape(len(part), len(templates), -1)
    means[start : start + len(part)] = rows.mean(1)
  lengths = np.linalg.norm(means, axis=-1, keepdims=True)
  number = {name: row for row, name in enumerate(distinct)}
  return (means / np.maximum(lengths, 1e-12))[[number[name] for name in names]]


def _check(names: Sequence[str], templates: Sequence[str]) -> None:
  if not len(names) or not len(templates):
    raise ValueError(f"needs at least one class and one template, got {len(names)} and {len(templates)}")
  empty = [number for number, name in enumerate(names) if not name.strip()]
  if empty:
    raise ValueError(f"the name of class {empty[0]} is empty")
  wrong = [template for template in templates if template.count("{}") != 1]
  if wrong:
    raise ValueError(f"a template needs one {{}} where the class's name goes, got {wrong[0]!r}")
