"""Where a model is: a path of this machine, or a name on the Hugging Face hub, from which it is downloaded once."""

import os
import re

from fgclip_jax.models import config as presets

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def find(path_or_name: str, allow_pickle: bool) -> str:
  """The path of a model; one on the Hugging Face hub is downloaded unless it is there already.

  Raises:
    FileNotFoundError: there is no such model.
  """
  top = path_or_name.split("/")[0]
  if os.path.exists(path_or_name) or os.path.isdir(top) or not _HUB_NAME.fullmatch(path_or_name):
    if path_or_name in presets.PRESETS and not os.path.exists(path_or_name):
      raise FileNotFoundError(f"{path_or_name!r} is a preset, a size without weights: give a model folder")
    return path_or_name
  import huggingface_hub

  try:
    wanted = ["*.json", "*.safetensors", "*.model", *(["*.bin"] if allow_pickle else [])]
    return huggingface_hub.snapshot_download(path_or_name, allow_patterns=wanted)
  except (OSError, ValueError, huggingface_hub.errors.HfHubHTTPError) as error:
    raise FileNotFoundError(
      f"no model folder at {path_or_name!r}, and no such model could be had from the Hugging Face hub: "
      f"{str(error).splitlines()[0]}"
    ) from error
