"""`preprocess_cfg` of `open_clip_config.json`: how pictures are made ready."""

from collections.abc import Mapping
from typing import Any

from fgclip_jax.models.config import ModelConfig
from fgclip_jax.models.pixel_spec import CLIP_PIXELS, PixelSpec
from fgclip_jax.storage.skip_report import printable

_RESIZE = {"squash": "squash", "shortest": "center_crop", "longest": "pad"}  # resize_mode, and `PixelSpec.resize`
_INTERPOLATIONS = ("bicubic", "bilinear")  # that open_clip knows


def read_pixels(values: Mapping[str, Any], side: int) -> PixelSpec:
  """Reads `preprocess_cfg`; a ValueError names a setting that no `PixelSpec` can express."""

  def fail(key, wanted):
    found = f"{printable(key)} = {values[key]!r:.200}"
    raise ValueError(f"preprocess_cfg.{found} has no counterpart here: must be {wanted}")

  if not isinstance(values, Mapping):
    raise ValueError(f"preprocess_cfg = {values!r} must be a section of settings")
  values = {key: value for key, value in values.items() if value is not None}
  known = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")
  for key in values:
    if key not in known:
      fail(key, f"left out; {', '.join(known)} are read")
  if values.get("size", side) not in (side, [side], [side, side]):
    fail("size", f"the model's image_size, {side}")
  if values.get("mode", "RGB") != "RGB":
    fail("mode", "'RGB'")
  if values.get("resize_mode", "shortest") not in _RESIZE:
    fail("resize_mode", f"one of {', '.join(_RESIZE)}")
  if values.get("interpolation", "bicubic") not in _INTERPOLATIONS:
    fail("interpolation", f"one of {', '.join(_INTERPOLATIONS)}")
  resize = _RESIZE[values.get("resize_mode", "shortest")]
  colours = {"mean": CLIP_PIXELS.mean, "std": CLIP_PIXELS.std, "fill_color": 0}
  colours = {key: values.get(key, value) for key, value in colours.items()}
  # one value stands for all three colours
  mean, std, fill = (tuple(each) if isinstance(each, list | tuple) else (each,) * 3 for each in colours.values())
  try:
    return PixelSpec(
      mean,
      std,
      None if resize == "center_crop" else resize,  # plain CLIP's own way
      values.get("interpolation", "bicubic"),
      fill if resize == "pad" else CLIP_PIXELS.fill,
    )
  except ValueError as error:
    raise ValueError(f"preprocess_cfg: {error}") from None


def write_pixels(config: ModelConfig) -> dict[str, Any]:
  """A model's `preprocess_cfg`; a ValueError if open_clip does not know its filter."""
  pixels = config.vision.pixels
  if pixels.interpolation not in _INTERPOLATIONS:
    raise ValueError(
      f"the model's pictures are resized with {pixels.interpolation!r}, and open_clip knows {_INTERPOLATIONS}: write "
      "it as jax or clip"
    )
  (resize,) = (theirs for theirs, ours in _RESIZE.items() if ours == config.resize)
  values = {
    "mean": list(pixels.mean), "std": list(pixels.std), "interpolation": pixels.interpolation, "resize_mode": resize,
  }  # fmt: skip
  return values | {"fill_color": list(pixels.fill)} if config.resize == "pad" else values
