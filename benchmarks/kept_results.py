"""The results of trained runs: kept in their folders, so that the same command does only what is missing, and shown."""

import json
import os
from typing import Any

import numpy as np


def read(path: str, wanted: dict[str, Any]) -> dict[str, Any] | None:
  """A finished run's result; None: there is none.

  Raises:
    ValueError: it is of other settings than `wanted`.
  """
  if not os.path.exists(path):
    return None
  with open(path, encoding="utf-8") as file:
    result = json.load(file)
  # written once without their data, and by the ablation of one model alone
  missing = {"data": wanted.get("data"), "model": "fgclip"}
  was = {key: result.get(key, missing.get(key)) for key in wanted}
  if was != wanted:
    raise ValueError(f"{path} is of {was}, not {wanted}: give another --workdir")
  print(f"kept {path}", flush=True)
  return result


def write(path: str, result: dict[str, Any]) -> None:
  """Writes a result, whole or not at all."""
  with open(f"{path}.part", "w", encoding="utf-8") as file:
    json.dump(result, file, indent=2)
  os.replace(f"{path}.part", path)


def cell(values: np.ndarray, sign: str = "") -> str:
  """Mean ± standard deviation; of a single value, itself."""
  spread = f" ± {values.std(ddof=1):.1f}" if len(values) > 1 else ""
  return f"{values.mean():{sign}.1f}{spread}"
