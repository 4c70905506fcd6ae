"""FG-CLIP in JAX: a CLIP that sees detail. The public names; each is imported when it is first used."""

import glob
import importlib
import importlib.util
import os
import pathlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from fgclip_jax.data.tokenizers.clip import Tokenizer
  from fgclip_jax.inference.model import FGCLIP, list_presets, load, preprocess
  from fgclip_jax.inference.pictures import PatchedImage

__version__ = "0.1.0"
__all__ = ["FGCLIP", "PatchedImage", "Tokenizer", "__version__", "list_presets", "load", "preprocess"]

# Lazy, since the processes that read data import `fgclip_jax.data` and must not load JAX with it.
_HOME = {
  "FGCLIP": "fgclip_jax.inference.model",
  "PatchedImage": "fgclip_jax.inference.pictures",
  "list_presets": "fgclip_jax.inference.model",
  "load": "fgclip_jax.inference.model",
  "preprocess": "fgclip_jax.inference.model",
  "Tokenizer": "fgclip_jax.data.tokenizers.clip",
}


def _leave_out_libtpu() -> None:
  """Has JAX use the CPU where libtpu is installed (for `plan`, or beside a GPU's) and the machine has no accelerator.

  JAX would try to start it, and libtpu complain at length. Neither a platform that was named nor anything that hints
  at a TPU or a GPU is passed over, and where JAX has been imported already it has read its environment.
  """
  hinted = any(name.startswith(("TPU_", "JAX_PLATFORM", "JAX_FORCE_TPU", "PJRT_")) for name in os.environ)
  if hinted or "jax" in sys.modules or not sys.platform.startswith("linux") or not importlib.util.find_spec("libtpu"):
    return
  devices = [path for name in ("accel*", "vfio/[0-9]*", "nvidia*", "dxg", "kfd") for path in glob.glob(f"/dev/{name}")]
  if not devices and not any(map(_may_be_tpu, glob.glob("/sys/bus/pci/devices/*"))):
    os.environ["JAX_PLATFORMS"] = "cpu"


def _may_be_tpu(folder: str) -> bool:
  """Whether a PCI device is Google's and neither a disk nor a network card, as virtual machines of Google have them."""
  try:
    vendor, kind = (pathlib.Path(folder, name).read_text().strip() for name in ("vendor", "class"))
    return vendor == "0x1ae0" and kind[:4] not in ("0x01", "0x02")
  except OSError:
    return True


_leave_out_libtpu()


def __getattr__(name: str):
  if name not in _HOME:
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
  return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
  return sorted({*globals(), *__all__})
