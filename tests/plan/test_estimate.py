"""What a estimate_step assumes of texts, how it prices a collective, and its advice."""

import dataclasses

import chex
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs import stage1, stage2
from fgclip_jax.data.packing import Caption, Example, Layout, assemble
from fgclip_jax.data.patches import PatchLayout
from fgclip_jax.plan import batch as batches
from fgclip_jax.plan import estimate as forecasts
from fgclip_jax.plan.batch import Captions
from fgclip_jax.plan.hardware import CHIPS, Topology
from fgclip_jax.plan.hlo import Collective
from fgclip_jax.train.config import read_config
from fgclip_jax.train.mesh import make_mesh

CAPTIONS = Captions()


def stage(module, **changes):
  config = module.get_config("tiny")
  for key, value in changes.items():
    section, _, name = key.partition("__")
    config[section][name] = value
  return read_config(config, check_data=False)


@given(st.integers(1, 40), st.integers(0, 4), st.integers(0, 3), st.booleans(), st.booleans())
def test_the_abstract_batch_is_a_batch(images, boxes, set_size, packed, long):
  layout = Layout(boxes, packed=packed, long_length=248 if long else None, set_size=set_size, caption_ids=set_size > 1)
  caption = Caption((1, 2))
  example = Example(
    np.zeros((8, 8, 3), np.uint8),
    caption,
    dataclasses.replace(caption, long=True) if long else None,
    captions=(caption,) * 2,
    caption_weights=(1.0, 1.0),
  )
  real = assemble([example] * 2 * images, 2, layout)
  abstract = batches.abstract_batch(layout, 2, images, real["tokens"].shape[1], 8)
  chex.assert_trees_all_equal_shapes(abstract, real)
  on_device = {key: jax.dtypes.canonicalize_dtype(x.dtype) for key, x in real.items()}
  assert {key: x.dtype for key, x in abstract.items()} == on_device


def test_batches_of_patches_and_of_padded_texts():
  patches = PatchLayout(16, 8)
  layout = Layout(0, 64, 16, 48, packed=False, pad_id=0, patches=patches)
  example = Example(np.zeros((12, 192), np.uint8), Caption((1,) * 16), Caption((1,) * 48, long=True), grid=(3, 4))
  real = assemble([example] * 6, 2, layout)
  abstract = batches.abstract_batch(layout, 2, 3, real["tokens"].shape[1], 8)
  chex.assert_trees_all_equal_shapes(abstract, real)
  packed = dataclasses.replace(layout, packed=True, patches=dataclasses.replace(patches, row_length=32))
  assert batches.row_budget(packed, 3, CAPTIONS) == 3 and batches.patch_slots(packed, 3) == (2, 32)
  assumed = batches.assumed_batch(packed, 2, 3, 3, 8, CAPTIONS)
  assert (assumed["segment"] > 0).all() and (assumed["patch_segment"] > 0).sum() == 2 * 3 * 15
  assert (assumed["patch_slot"] >= 0).sum() == 2 * 3 * 15 and "image" not in assumed


@given(st.integers(1, 300), st.integers(0, 4), st.integers(0, 3), st.booleans())
def test_the_assumed_batch_holds_the_assumed_captions(images, boxes, set_size, packed):
  layout = Layout(boxes=boxes, packed=packed, set_size=set_size)
  rows = batches.row_budget(layout, images, CAPTIONS)
  batch = batches.assumed_batch(layout, 2, images, rows, 8, CAPTIONS)
  short, long = batches.caption_lengths(layout, images, CAPTIONS)
  assert batch["segment"].shape == batch["position"].shape == (2, rows, 256)
  assert (batch["segment"] > 0).sum() == 2 * sum(short + long)
  assert (batch["segment"] > 0).mean() <= (0.95 if packed else 1)
  assert batch["position"].max() == layout.short_length + 130 - 1  # long captions stand in the second table
  assert (batch["region_eot"] >= 0).sum() == 2 * round(images * min(boxes, 3.3))
  hard = (batch["hard_eot"] >= 0).sum() // 11
  assert hard == 2 * round(round(images * min(boxes, 3.3)) * 0.025)
  regions = ((batch["region_eot"] >= 0).sum() + (batch["hard_eot"] >= 0).sum()) // 2
  assert len(short) == images * (1 + set_size) + regions and short.count(CAPTIONS.set) == images * set_size
  assert batch["caption_eot"].shape == (2, images, set_size) if set_size else "caption_eot" not in batch
  assert batch["image"].shape == (2, images, 8, 8, 3)


def test_row_budgets():
  layout = Layout(boxes=0)
  assert batches.row_budget(layout, 240, CAPTIONS) == -(-240 * 145 * 100 // (95 * 256))
  assert batches.row_budget(dataclasses.replace(layout, packed=False), 240, CAPTIONS) == 480
  assert batches.row_budget(dataclasses.replace(layout, long_length=None), 240, CAPTIONS) == 15
  sets = dataclasses.replace(layout, set_size=4)
  assert batches.row_budget(sets, 240, CAPTIONS) == -(-240 * (145 + 4 * 30) * 100 // (95 * 256))
  assert batches.row_budget(dataclasses.replace(sets, packed=False), 240, CAPTIONS) == 240 * 6
  # captions too long for the short table are read by the long one, if there is one
  longer = dataclasses.replace(CAPTIONS, set=100)
  assert batches.caption_lengths(sets, 2, longer) == ([15] * 2, [130] * 2 + [100] * 8)
  assert batches.caption_lengths(dataclasses.replace(sets, long_length=None), 2, longer) == ([15] * 2 + [77] * 8, [])
  only = dataclasses.replace(sets, long_per_image=False)
  assert batches.caption_lengths(only, 2, longer) == ([15] * 2, [100] * 8)


def make_topology(chip: str, per_slice: int) -> Topology:
  return Topology("test", CHIPS[chip], tuple(jax.devices()), per_slice, 8 // per_slice)


def test_a_collective_goes_at_the_rate_of_its_slowest_part():
  mesh, h100 = make_mesh({"data": 4, "fsdp": 2}), CHIPS["h100"]
  hosts = make_topology("h100", per_slice=4)
  assert forecasts.network_rate((0, 1, 2, 3), mesh, hosts) == h100.near_rate
  assert forecasts.network_rate((0, 4), mesh, hosts) == h100.far_rate
  assert forecasts.network_rate((0, 1, 4, 5), mesh, hosts) == 2 * h100.far_rate
  assert forecasts.network_rate(tuple(range(8)), mesh, make_topology("v5e", 8)) == CHIPS["v5e"].near_rate


@pytest.mark.parametrize(
  "message, needed",
  [
    ("the total memory required for HLO temporaries (586.79G) exceeds available HBM (15.75G).", 586.79 * 2**30),
    ("Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm.", 20.5 * 2**30),
    ("Used 165.11M of 128.00M vmem", 165.11 * 2**20),
    ("something else", None),
  ],
)
def test_the_need_is_read_from_a_refusal(message, needed):
  assert forecasts.needed_bytes(message) == (None if needed is None else pytest.approx(needed, abs=1))


def advice(run, needed_gib: float, held_gib: float = 1.0, **mesh):
  sizes = {"parameters": int(held_gib * 2**30), "optimizer": 0, "batch": 0}
  return forecasts._advise(run, make_mesh(mesh or {"data": 8}), make_topology("v5e", 8), int(needed_gib * 2**30), sizes)


def test_advice_to_hold_less():
  run = stage(stage1, data__batch_size=8 * 240, runtime__remat="none")
  lines = advice(run, 60)
  assert lines[0].startswith("--config.runtime.remat=full")
  assert lines[1].startswith("--config.runtime.micro_batches=4:")  # 59 GiB into 14.75
  assert lines[-1] == "more devices"
  run = stage(stage1, data__batch_size=8 * 240, runtime__micro_batches=2)
  assert advice(run, 17)[0].startswith("--config.runtime.micro_batches=3")
  assert advice(run, 17, held_gib=12)[0].startswith("a mesh with a larger fsdp")
  assert not any("fsdp" in line for line in advice(run, 17, held_gib=12, data=1, fsdp=8))


def test_meshes_worth_trying():
  topology, run = make_topology("v5e", per_slice=8), stage(stage2, data__batch_size=512)
  assert forecasts.mesh_choices(run, topology) == [{"data": 8 // fsdp, "fsdp": fsdp, "tensor": 1} for fsdp in (1, 4, 8)]
  assert not forecasts.mesh_choices(
    dataclasses.replace(run, data=dataclasses.replace(run.data, batch_size=3)), topology
  )


def test_the_mesh_is_the_one_that_a_run_takes():
  topology, run = make_topology("v5e", per_slice=8), stage(stage2, data__batch_size=512)
  assert forecasts.choose(run, topology) == {"data": 8, "fsdp": 1, "tensor": 1}
  given_mesh = {"data": 4, "fsdp": 2}
  assert forecasts.choose(dataclasses.replace(run, mesh=given_mesh), topology) == given_mesh


def test_sums_of_whole_weights_are_told_from_those_of_parts():
  run = stage(stage1)  # kernels [32, 32], [32, 64], [64, 32]

  def count(shape, **mesh):
    collective = Collective("all-reduce", 3, (shape, (7,)), 100, (0, 1), "")
    return forecasts.whole_weight_all_reduces(run, make_mesh(mesh), [collective])

  assert count((1, 32, 64), data=2, fsdp=4) == count((64, 32), data=2, fsdp=4) == count((32, 32), data=2, fsdp=4) == 300
  assert count((8, 32), data=2, fsdp=4) == count((16, 32), data=4, fsdp=2) == 0
  assert count((32, 32), data=4, tensor=2) == 0  # also half of a [32, 64]
  assert count((32, 64), data=8) == 0  # nothing is split: the sum of whole gradients is what is needed
