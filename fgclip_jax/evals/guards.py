"""Refuses conditions that silently make a benchmark's numbers worthless, unless they are allowed by name.

- `resolution`: the model reads images of another size than it was trained on.
- `cut_texts`: a text is longer than the model, or the chosen path of the model, reads.

A third one cannot be allowed: pixels that are already normalized. Images are uint8 levels, which the model normalizes
itself, and `fgclip_jax.data.image.to_levels` refuses anything else.
"""

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.inference.text_inputs import TextTooLongError

GUARDS = ("resolution", "cut_texts")


def check_names(allow: Sequence[str]) -> tuple[str, ...]:
  """The names of guards to switch off; raises a ValueError for any other name."""
  wrong = [name for name in allow if name not in GUARDS]
  if wrong:
    raise ValueError(f"allow takes {', '.join(GUARDS)}, got {wrong[0]!r}")
  return tuple(allow)


def check_resolution(model: FGCLIP, allow: Sequence[str] = ()) -> list[str]:
  """Notes on the model's image size; raises a ValueError if it is not the trained one and `resolution` not allowed."""
  size, trained = model.config.vision.image_size, model.trained_image_size
  if size == trained:
    return []
  message = f"images are {size} x {size}, and the model was trained on {trained} x {trained}"
  if "resolution" not in allow:
    raise ValueError(f"{message}: leave the size as it is, or ask for it with --allow resolution")
  return [message]


def encode_texts(
  model: FGCLIP,
  texts: Sequence[str],
  kind: str = "short",
  allow: Sequence[str] = (),
  progress: bool = False,
  as_written: bool = False,
) -> tuple[Float32[np.ndarray, "N D"], list[str]]:
  """Embeds texts, equal ones once.

  Args:
    model: the model. A plain CLIP reads long texts on its short path, if they fit.
    texts: one or more.
    kind: see `FGCLIP.encode_text`.
    allow: with `cut_texts`, longer texts are cut.
    progress: shows a progress bar.
    as_written: see `FGCLIP.encode_text`.

  Returns:
    Unit-length embeddings in the order of the texts, and notes on texts that were cut.

  Raises:
    ValueError: a text is too long and `cut_texts` is not allowed, or an embedding is not finite.
  """
  number: dict[str, int] = {}
  rows = [number.setdefault(text, len(number)) for text in texts]
  path = kind if kind in model.config.text.kinds or kind != "long" else "short"  # an unknown kind is refused below
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    try:
      embeddings = model.encode_text(list(number), path, progress, truncate="cut_texts" in allow, as_written=as_written)
    except TextTooLongError as error:
      raise ValueError(
        f"{str(error).partition(': shorten')[0]}: ask for them to be cut with --allow cut_texts"
      ) from error
  check_finite(embeddings, "texts")
  return embeddings[rows], [str(warning.message) for warning in caught]


def check_finite(embeddings: Float32[np.ndarray, "N D"], things: str) -> None:
  """Raises a ValueError for embeddings that are not finite: those of a diverged training would just score 0 %."""
  wrong = int((~np.isfinite(embeddings)).any(1).sum())
  if wrong:
    raise ValueError(f"the embeddings of {wrong:,} of {len(embeddings):,} {things} are not finite: the model is broken")
