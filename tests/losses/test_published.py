"""FG-CLIP 2's terms equal those recorded from its published code, from the features recorded beside them.

`tests/oracle.py` compares the same from pictures and texts on, with gradients.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

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


@functools.partial(jax.jit, static_argnames="quirks")
def compute(e, temperature, margin, quirks):
  """Every term of weight 1, the next margin, and the gradients of their sum: one program for all cases."""
  objective = Objective(contrast="sigmoid", regional_contrast="softmax", quirks=quirks, **dict.fromkeys(WEIGHTS, 1.0))

  def total(image, text):
    terms = objective_terms(e.replace(region_image=image, region_text=text), temperature, objective, margin=margin)
    return terms["total"], terms

  (_, terms), gradients = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(e.region_image, e.region_text)
  return terms, gradients, next_margin(e, jnp.exp(temperature["hard_negative"]), objective, margin)


@pytest.fixture(scope="module")
def folder(shared):
  path = shared / "oracle_fgclip2" / "fgclip2"
  if not path.is_dir():
    pytest.skip(f"needs the recorded reference in {path}")
  return path


@pytest.mark.parametrize("case", CASES)
def test_terms_and_the_margin(folder, case):
  recorded = json.loads((folder / "losses.json").read_text())[case]
  names, margin, changes = CASES[case]
  terms, _, after = compute(*read(folder, **changes), jnp.float32(margin), tuple(QUIRKS))
  weights = {"global_long": 1.0, "global_short": 1.0} | {name: WEIGHTS[name] for name in names}
  total = sum(weight * float(terms[name]) for name, weight in weights.items())
  assert total == pytest.approx(recorded["total"], rel=2e-5)
  if "hard_rank" in names:
    assert float(after) == pytest.approx(recorded["threshold_after"], rel=2e-5)
  for name, value in recorded.items():
    if name in terms.keys() - {"total"} and not recorded["terms_dropped"]:
      assert float(terms[name]) == pytest.approx(value, rel=2e-5), name
  if "hard_pair" in recorded:
    assert float(terms["hard_negative"]) == pytest.approx(recorded["hard_pair"], rel=2e-5)


def test_without_quirks_few_boxes_are_compared(folder):
  """What the published code computes before it drops everything is what ours keeps."""
  recorded = json.loads((folder / "losses.json").read_text())["quirk_fewer_than_ten_boxes"]
  changes = CASES["quirk_fewer_than_ten_boxes"][2]
  terms, gradients, _ = compute(*read(folder, **changes), jnp.float32(0.0), ())
  assert float(terms["regional"]) == pytest.approx(recorded["regional"], rel=2e-5)
  assert all(float(terms[name]) > 0 for name in WEIGHTS)
  assert all(np.isfinite(gradient).all() and np.asarray(gradient).any() for gradient in gradients)
