"""How full packed rows are, and what packing costs beside reading pictures and texts."""

import dataclasses
import statistics
import time

import numpy as np
import step_batches
from step_batches import Mix

from fgclip_jax.data.mixture import DataSet, Mixture
from fgclip_jax.data.packing import assemble
from fgclip_jax.losses.objective import Objective
from fgclip_jax.models.config import ModelConfig
from fgclip_jax.train.flops import StepFlops, count_flops

SIZES = (8, 64, 256, 512)
TRIALS = {8: 16, 64: 8}  # batches tried of each size; 4 of others
PASSES = 3  # passes over the records that the loader's time is taken from


@dataclasses.dataclass(frozen=True)
class Packing:
  """Packing of one mix at one batch size.

  Attributes:
    batch: images.
    filled, least: the share of slots that hold a token: over all batches tried, and in the worst.
    overhead: executed over useful operations, over all batches.
    seconds: for packing one example, in one thread, the median over batches.
  """

  batch: int
  filled: float
  least: float
  overhead: float
  seconds: float


def measure(mix: Mix, model: ModelConfig, batch: int) -> Packing:
  """Packs batches of the mix, without pictures."""
  layout = step_batches.our_layout(mix, batch, packed=True)
  filled, seconds, work = [], [], StepFlops()
  for examples in step_batches.split(mix.examples(batch * TRIALS.get(batch, 4), 0, None), batch):
    begin = time.perf_counter()
    packed = assemble(examples, 1, layout)
    seconds.append((time.perf_counter() - begin) / batch)
    filled.append(float(np.mean(packed["segment"] > 0)))
    work += count_flops(model, Objective(), packed, image_size=model.vision.image_size)
  return Packing(batch, work.tokens / work.slots, min(filled), work.executed / work.useful, statistics.median(seconds))


def loading_seconds(prepared: str, image_size: int) -> float:
  """Seconds to read, decode and resize one picture and tokenise its texts, in one thread; the mean."""
  source = Mixture([DataSet(prepared, "train")])
  load, rng = step_batches.loader(source, image_size), np.random.default_rng(0)
  load.random_map(0, rng)
  seconds = []
  for number in np.tile(np.arange(len(source)), PASSES):
    begin = time.perf_counter()
    load.random_map(number, rng)
    seconds.append(time.perf_counter() - begin)
  return statistics.mean(seconds)
