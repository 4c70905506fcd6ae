"""What a model says about its pictures. Imports no JAX: the loader's worker processes read it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

RESIZE_MODES = ("squash", "center_crop", "pad")
Colours = Sequence[Any]  # three numbers, for red, green and blue; they come from files, and are checked
INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


@dataclasses.dataclass(frozen=True)
class PixelSpec:
  """How a picture becomes the numbers that an image tower reads: a square of RGB, then (level / 255 - mean) / std.

  Attributes:
    mean, std: of red, green and blue, with levels scaled to 0..1. CLIP's by default.
    resize: how a picture becomes a square: `squash` (both sides to the model's), `center_crop` (the shorter side to
      the model's, then the middle is cut out), or `pad` (the longer side to the model's, then `fill` is added on both
      sides). None follows the kind of model, see `ModelConfig.resize`.
    interpolation: one of `INTERPOLATIONS`, as Pillow defines them.
    fill: the RGB level, 0..255, that `pad` adds.
  """

  mean: Colours = (0.48145466, 0.4578275, 0.40821073)
  std: Colours = (0.26862954, 0.26130258, 0.27577711)
  resize: str | None = None
  interpolation: str = "bicubic"
  fill: Colours = (0, 0, 0)

  def __post_init__(self):
    for name in ("mean", "std", "fill"):
      values = getattr(self, name)
      if not isinstance(values, list | tuple) or len(values) != 3 or not all(map(_is_number, values)):
        raise ValueError(f"{name} must be three finite numbers, for red, green and blue, got {values!r}")
      object.__setattr__(self, name, tuple(values))  # JSON has lists
    if min(self.std) <= 0:
      raise ValueError(f"std must be positive, got {list(self.std)}")
    if any(not isinstance(level, int) or not 0 <= level <= 255 for level in self.fill):
      raise ValueError(f"fill must be levels 0..255, got {list(self.fill)}")
    if self.resize not in (None, *RESIZE_MODES):
      raise ValueError(f"resize must be one of {', '.join(RESIZE_MODES)}, or None, got {self.resize!r}")
    if self.interpolation not in INTERPOLATIONS:
      raise ValueError(f"interpolation must be one of {', '.join(INTERPOLATIONS)}, got {self.interpolation!r}")


def _is_number(value: Any) -> bool:
  return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


CLIP_PIXELS = PixelSpec()  # what CLIP and FG-CLIP were published with
SIGLIP_PIXELS = PixelSpec((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "squash", "bilinear")  # what SigLIP 2 was published with
