"""Training text-conditioned pooling: on any mesh and in micro-batches, from weights without it, and what it costs."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import common
from fgclip_jax.losses.objective import Objective
from fgclip_jax.models.config import preset
from fgclip_jax.models.params import build, flatten
from fgclip_jax.models.transformer import Runtime
from fgclip_jax.train import config as run_config
from fgclip_jax.train import flops
from fgclip_jax.train.mesh import make_mesh, param_sharding
from fgclip_jax.train.state import TrainSetup, first_state
from fgclip_jax.weights import native
from tests.helpers.toy_models import init
from tests.train import test_step

OBJECTIVE = Objective(text_conditioned=1.0, conditioned_negatives=3, regional_group=4)
MODEL = test_step.MODEL.replace(text_pooling={"heads": 2})


@pytest.fixture
def with_pooling(monkeypatch):
  monkeypatch.setattr(test_step, "MODEL", MODEL)


def test_a_mesh_gives_what_one_device_gives_also_in_micro_batches(quick, with_pooling):
  examples = test_step.make_examples()
  one = test_step.Run(quick, {"data": 1}, devices=1, objective=OBJECTIVE)
  state, metrics = one.updates(examples, 2)
  assert metrics[1]["loss_text_conditioned"] < metrics[0]["loss_text_conditioned"]
  runtime = Runtime(micro_batches=2, remat="full")
  sizes = {"data": 2, "fsdp": 2, "tensor": 2}
  many = test_step.Run(quick, sizes, math.prod(sizes.values()), runtime, OBJECTIVE)
  other, values = many.updates(examples, 2)
  for before, after in zip(metrics, values, strict=True):
    assert after == pytest.approx(before, rel=2e-5)
  chex.assert_trees_all_close(other.params, state.params, rtol=1e-5, atol=2e-6)
  placed = param_sharding("text_pooling/query/kernel", (16, 16), many.mesh).spec
  assert placed == jax.P("fsdp", "tensor")
  assert flatten(other.params)["text_pooling/query/kernel"].sharding.spec == placed


def test_a_run_begins_the_pooling_anew_where_the_weights_have_none(tmp_path):
  lines = []
  plain = dataclasses.replace(MODEL, text_pooling=None)
  mesh = make_mesh({"data": 1}, jax.devices()[:1])
  for name, model in (("without", plain), ("with", MODEL)):
    native.write(str(tmp_path / name), model, {key: np.asarray(x) for key, x in flatten(init(model, 0)).items()})
    state = first_state(str(tmp_path / name), TrainSetup(MODEL, mesh, OBJECTIVE), lines.append)
    found, stored = flatten(state.params), flatten(init(model, 0))
    assert all(np.array_equal(found[key], stored[key]) for key in stored)
    assert set(found) == set(flatten(init(MODEL, 0)))
    assert found["text_pooling/query/kernel"].std() == pytest.approx(0.25 if name == "without" else 0.2, rel=0.2)
  assert sum("text pooling: random weights" in line for line in lines) == 1
  with pytest.raises(ValueError, match="the weights in .* are of another model: text_pooling.heads"):
    first_state(str(tmp_path / "with"), TrainSetup(plain, mesh), lines.append)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({}, "needs a model with text pooling: set config.model_changes.text_pooling.heads"),
    ({"model_changes.text_pooling.heads": 3}, "text_pooling.heads 3 must divide embedding_width 16"),
    ({"model_changes.text_pooling.heads": 2, "objective.conditioned_negatives": 8}, "must be a whole number in 1..7"),
    (
      {"model_changes.text_pooling.heads": 2, "patch_dropout": 0.5, "objective.regional": 0.0,
       "objective.hard_negative": 0.0},
      "text_conditioned needs every patch",
    ),
  ],
)  # fmt: skip
def test_what_a_config_cannot_be(changes, message):
  config = common.get_config()
  config.model, config.objective.text_conditioned, config.data.batch_size = "tiny", 1.0, 8
  config.objective.conditioned_negatives, config.objective.regional_group = 4, 8
  config.update_from_flattened_dict(changes)
  with pytest.raises(ValueError, match=message):
    run_config.read_config(config, check_data=False)


def test_a_config_that_can_be_gives_the_model_the_pooling():
  config = common.get_config()
  config.model, config.data.batch_size, config.objective.regional_group = "tiny", 8, 8
  assert run_config.read_config(config, check_data=False).model == preset("tiny")
  config.model_changes.text_pooling.heads = 2
  assert run_config.read_config(config, check_data=False).model == preset("tiny").replace(text_pooling={"heads": 2})


def test_its_operations_are_those_that_xla_counts():
  size = preset("tiny").replace(embedding_width=128, text_pooling={"heads": 2})
  pictures, patches, negatives = 8, 16, 5
  arrays = (jax.ShapeDtypeStruct((pictures, count, 128), np.float32) for count in (patches, 1 + negatives))

  def total(params, dense, text):
    return jnp.sum(build(size, params).text_cosines(dense, text))

  program = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(jax.eval_shape(lambda: init(size, 0)), *arrays)
  texts = pictures * (1 + negatives)
  formula = flops.pooling_forward(128, texts, pictures * patches, texts * patches)
  # XLA also counts softmax and norms
  assert 1.0 < program.compile().cost_analysis()["flops"] / (3 * formula) < 1.1

  examples = test_step.make_examples(regions=False)[:pictures]
  images = [dataclasses.replace(each, image=np.zeros((32, 32, 3), np.uint8)) for each in examples]
  batch = test_step.assemble(images, 1, dataclasses.replace(test_step.LAYOUT, boxes=0))
  without, counted = (
    flops.count_flops(size, Objective(regional=0.0, hard_negative=0.0, text_conditioned=weight, **options), batch)
    for weight, options in ((0.0, {}), (1.0, {"conditioned_negatives": negatives}))
  )
  dense, logits = pictures * flops.dense_forward(size), 2 * 128 * pictures
  for name in ("useful", "executed"):
    assert getattr(counted, name) - getattr(without, name) == 3 * (formula + dense + logits)
