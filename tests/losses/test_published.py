"""FG-CLIP 2's terms equal those recorded from its published code, from the features recorded beside them.

`tests/oracle.py` compares the same from pictures and texts on, with gradients.
"""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from jax.sharding import NamedSharding, PartitionSpec

from fgclip_jax.losses.margin import next_margin
from fgclip_jax.losses.objective import Objective, objective_terms
from fgclip_jax.losses.terms import QUIRKS
from fgclip_jax.models.fgclip import Embeddings

WEIGHTS = {"regional": 0.2, "text_intra_modal": 0.1, "hard_contrast": 0.3, "hard_negative": 1.5, "hard_rank": 0.2}
TEMPERATURES = {"global": "logit_scale", "bias": "logit_bias"} | {
  "regional": "logit_scale_finegraind", "hard_negative": "logit_scale_hardneg"
}  # fmt: skip


def unit(x):
  return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def read(folder, box_nums=None, hard_nums=None):
  """The recorded features as a batch's embeddings, with fewer boxes if asked, and the temperatures."""
  with np.load(folder / "inputs.npz") as file:
    inputs = dict(file)
  with np.load(folder / "outputs.npz") as file:
    outputs = dict(file)
  images = len(inputs["box_nums"])
  recorded, hard_recorded = inputs["box_nums"], inputs["hard_nums"]
  box_nums = recorded if box_nums is None else box_nums
  hard_nums = hard_recorded if hard_nums is None else hard_nums
  boxes = len(inputs["box_infos"]) // images
  valid = np.arange(boxes) < recorded[:, None]
  region_image = np.zeros((images, boxes, outputs["region_features"].shape[-1]), np.float32)
  region_image[valid] = outputs["region_features_unit"]
  rows, hard_image = [], []
  for image in range(images):
    for box in inputs["hard_infos"].reshape(images, boxes, 4)[image, : hard_recorded[image]]:
      same = np.flatnonzero((inputs["box_infos"].reshape(images, boxes, 4)[image] == box).all(axis=-1))
      rows.append(image * boxes + same[0])
      hard_image.append(region_image[image, same[0]])
  counts = [at < hard_nums[image] for image in range(images) for at in range(hard_recorded[image])]
  hard_text = unit(outputs["hard_text_features"]).reshape(len(rows), 11, -1)
  arrays = {
    "image": unit(outputs["image_features"]),
    "short": unit(outputs["short_text_features"]),
    "long": unit(outputs["long_text_features"]),
    "region_image": region_image,
    "region_text": unit(outputs["box_text_features"]).reshape(images, boxes, -1),
    "region_valid": np.arange(boxes) < np.asarray(box_nums)[:, None],
    "hard_image": np.stack(hard_image),
    "hard_text": hard_text,
    "hard_valid": np.broadcast_to(np.asarray(counts)[:, None], hard_text.shape[:2]),
    "hard_row": np.asarray(rows, np.int32),
  }
  tensors = safetensors.numpy.load_file(folder / "checkpoint" / "model.safetensors")
  temperature = {ours: jnp.asarray(tensors[theirs].reshape(())) for ours, theirs in TEMPERATURES.items()}
  return Embeddings(**{name: jnp.asarray(value) for name, value in arrays.items()}), temperature


CASES = {  # the region terms that are on; the margin; what is changed about the boxes
  "stage1": ((), 0.0, {}),
  "regional": (("regional", "text_intra_modal"), 0.0, {}),
  "hard": (("hard_contrast", "hard_negative", "hard_rank"), 0.0, {}),
  "stage2": (tuple(WEIGHTS), 0.0, {}),
  "stage2_threshold": (tuple(WEIGHTS), 3.5, {}),
  "no_regions": (tuple(WEIGHTS), 1.25, {"box_nums": [0] * 5, "hard_nums": [0] * 5}),
  "quirk_fewer_than_ten_boxes": (tuple(WEIGHTS), 1.25, {"box_nums": [1, 0, 3, 4, 0], "hard_nums": [1, 0, 1, 3, 0]}),
  "quirk_one_hard_box": (tuple(WEIGHTS), 1.25, {"hard_nums": [1, 0, 0, 0, 0]}),
}
OURS = {"hard_pair": "hard_negative"}


@pytest.mark.parametrize("case", CASES)
def test_terms(shared, case):
  folder = shared / "oracle_fgclip2" / "fgclip2"
  if not folder.is_dir():
    pytest.skip(f"needs the recorded reference in {folder}")
  recorded = json.loads((folder / "losses.json").read_text())[case]
  names, margin, changes = CASES[case]
  e, temperature = read(folder, **changes)
  weights = {name: weight if name in names else 0.0 for name, weight in WEIGHTS.items()}
  objective = Objective(contrast="sigmoid", regional_contrast="softmax", quirks=tuple(QUIRKS), **weights)
  margin = jnp.float32(margin)
  terms = {name: float(value) for name, value in objective_terms(e, temperature, objective, margin=margin).items()}
  after = float(next_margin(e, jnp.exp(temperature["hard_negative"]), objective, margin))
  assert terms["total"] == pytest.approx(recorded["total"], rel=2e-5)
  if objective.needs_margin:
    assert after == pytest.approx(recorded["threshold_after"], rel=2e-5)
  for name, value in recorded.items():
    ours = OURS.get(name, name)
    if ours in terms and not recorded["terms_dropped"]:
      assert terms[ours] == pytest.approx(value, rel=2e-5), name


def test_without_quirks_few_boxes_are_compared_and_counted(shared):
  """What the published code computes before it drops everything is what ours keeps."""
  folder = shared / "oracle_fgclip2" / "fgclip2"
  if not folder.is_dir():
    pytest.skip(f"needs the recorded reference in {folder}")
  recorded = json.loads((folder / "losses.json").read_text())["quirk_fewer_than_ten_boxes"]
  e, temperature = read(folder, **CASES["quirk_fewer_than_ten_boxes"][2])
  objective = Objective(contrast="sigmoid", regional_contrast="softmax", **WEIGHTS)

  def total(image, text):
    terms = objective_terms(dataclasses.replace(e, region_image=image, region_text=text), temperature, objective)
    return terms["total"], terms

  (_, terms), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(
    e.region_image, e.region_text
  )
  assert float(terms["regional"]) == pytest.approx(recorded["regional"], rel=2e-5)
  assert all(float(terms[name]) > 0 for name in WEIGHTS)
  assert all(np.isfinite(gradient).all() and np.asarray(gradient).any() for gradient in gradients)


def test_over_devices(shared):
  """Two devices, of which the first has no hard box: the group is spread over both."""
  folder = shared / "oracle_fgclip2" / "fgclip2"
  if not folder.is_dir():
    pytest.skip(f"needs the recorded reference in {folder}")
  e, temperature = read(folder)
  mesh = jax.make_mesh((2, 1), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
  # six images: the last once more, whose global terms change and whose region terms do not, as it has no box
  rows = np.asarray([0, 1, 2, 3, 4, 4])
  padded = {
    field.name: getattr(e, field.name)[rows]
    for field in dataclasses.fields(e)
    if field.name.startswith(("image", "short", "long", "region_")) and getattr(e, field.name) is not None
  }
  padded["region_valid"] = padded["region_valid"].at[5].set(False)
  six = dataclasses.replace(e, **padded)
  objective = Objective(contrast="sigmoid", regional_contrast="softmax", form="ring", **WEIGHTS)
  placed = jax.device_put(six, NamedSharding(mesh, PartitionSpec(("data", "fsdp"))))
  terms = jax.jit(lambda e: objective_terms(e, temperature, objective, mesh, margin=jnp.float32(3.5)))(placed)
  recorded = json.loads((folder / "losses.json").read_text())["stage2_threshold"]
  for name, value in recorded.items():
    ours = OURS.get(name, name)
    if ours in terms and not ours.startswith(("global", "total")):
      assert float(terms[ours]) == pytest.approx(value, rel=2e-5), name
