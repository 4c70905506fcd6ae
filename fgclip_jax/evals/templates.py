"""Prompts for class names, and classes as the mean of their prompts' embeddings.

`templates.json` has the 80 prompts of CLIP's published ImageNet numbers and the seven of them that its authors found
sufficient (https://github.com/openai/CLIP/blob/main/notebooks/Prompt_Engineering_for_ImageNet.ipynb).
"""

import importlib.resources
import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from fgclip_jax.evals import guards
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.inference.text_inputs import TextTooLongError

_PROMPTS = json.loads((importlib.resources.files("fgclip_jax.evals") / "templates.json").read_text(encoding="utf-8"))
OPENAI_80, OPENAI_7 = tuple(_PROMPTS["openai80"]), tuple(_PROMPTS["openai7"])
TEMPLATES = {"openai80": OPENAI_80, "openai7": OPENAI_7, "photo": ("a photo of a {}.",), "name": ("{}",)}

_TEXTS = 65_536  # encoded at a time, to bound memory


def class_embeddings(
  model: FGCLIP,
  names: Sequence[str],
  templates: Sequence[str] = OPENAI_80,
  progress: bool = False,
  kind: str = "short",
  as_written: bool = False,
) -> Float32[np.ndarray, "C D"]:
  """One embedding for each class: the mean of its prompts' unit-length embeddings, normalized again.

  Args:
    model: the model.
    names: the names of the classes; equal ones are encoded once and get equal embeddings.
    templates: prompts with `{}` in place of the name.
    progress: shows progress bars.
    kind: the model's path for prompts: `short` where pictures are compared, `region` where boxes or patches are.
    as_written: prompts are not lower-cased, where the model's tokenizer can leave them so.

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
      embeddings = model.encode_text(single, kind, progress, truncate=False, as_written=as_written)
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
