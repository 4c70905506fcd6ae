"""The ResNet tower against the recorded run of OpenAI's code and a plain account of its parts in PyTorch."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.models import resnet
from fgclip_jax.models.config import ResNetConfig, preset
from fgclip_jax.models.params import (
  abstract_params,
  build,
  count,
  flatten,
  init_params,
  is_statistic,
  merge,
  split_statistics,
  unflatten,
)
from fgclip_jax.models.transformer import Runtime
from tests.helpers.openai_resnet import clip_resnet, resnet_tower

TINY = preset("tiny_resnet").replace(text={"vocab_size": 64})


def random_params(config, seed=0):
  """Parameters and statistics at which every one of them matters and maps keep their size."""
  rng = np.random.default_rng(seed)

  def value(name, shape):
    noise, last = rng.normal(size=shape), name.rpartition("/")[2]
    if last == "kernel":  # [..., inputs, outputs]
      return noise * np.prod(shape[-4:-1] if len(shape) > 3 else shape[-2:-1]) ** -0.5
    return {"variance": np.exp(0.3 * noise), "scale": 1 + 0.2 * noise}.get(last, 0.2 * noise)

  shapes = {name: leaf.shape for name, leaf in flatten(abstract_params(config)).items()}
  return unflatten({name: jnp.asarray(value(name, shape), jnp.float32) for name, shape in shapes.items()})


@functools.cache
def tiny():
  return random_params(TINY)


def images(count=4, size=64, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=(count, size, size, 3)), jnp.float32)


def tower(params, runtime=Runtime(), config=TINY) -> resnet.ResNetTower:
  return build(config, params, runtime).vision


def assert_close(ours, expected, tolerance=1e-5, floor=0.0):
  """Equal up to a share of each array's largest value, or of `floor` where that is less."""
  for (path, a), b in zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(expected), strict=True):
    scale = max(np.abs(b).max(), floor)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))


# ---- the recorded run


def test_equals_the_recorded_run(oracle):
  folder = oracle / "clip_resnet"
  if not folder.is_dir():
    pytest.skip(f"no folder clip_resnet in {oracle}")
  config, params = clip_resnet(safetensors.numpy.load_file(folder / "openai_state_dict.safetensors"), heads=4)
  chex.assert_trees_all_equal_shapes(params, abstract_params(config))
  model = build(config, jax.tree.map(jnp.asarray, params))
  with np.load(folder / "io.npz") as file:
    recorded = dict(file)
  ids = recorded["input_ids"].astype(np.int32)
  rows, length = ids.shape
  position = jnp.broadcast_to(jnp.arange(length), ids.shape)

  @jax.jit
  def encode(model, pixels):
    image, _ = model.image_features(pixels)
    at = jnp.arange(rows), jnp.asarray(ids.argmax(1))
    text = model.text_features(jnp.asarray(ids), jnp.ones_like(position), position, *at)
    units = [x / jnp.linalg.norm(x, axis=1, keepdims=True) for x in (image, text)]
    return image, text, jnp.exp(model.temperature["global"][...]) * units[0] @ units[1].T

  ours = encode(model, jnp.asarray(recorded["pixel_values"].transpose(0, 2, 3, 1)))
  names = ("image_features", "text_features", "logits_per_image")
  assert_close(dict(zip(names, ours, strict=True)), {name: recorded[name] for name in names})
  assert set(recorded) == {"pixel_values", "input_ids", *names}


# ---- the same from PyTorch's own layers, in training too


class Reference:
  """A ResNet of CLIP by PyTorch's functional layers, from a state dict that it makes at random."""

  def __init__(self, torch, config: ResNetConfig, embedding_width: int):
    self.torch, self.config = torch, config
    generator, self.tensors = torch.Generator().manual_seed(0), {}

    def add(name, *shape, scale=1.0, shift=0.0):
      self.tensors[f"visual.{name}"] = shift + scale * torch.randn(shape, generator=generator)

    def add_norm(name, width):
      add(f"{name}.weight", width, scale=0.2, shift=1.0)
      add(f"{name}.bias", width, scale=0.2)
      add(f"{name}.running_mean", width, scale=0.2)
      self.tensors[f"visual.{name}.running_var"] = 0.5 + torch.rand(width, generator=generator)

    def add_convolution(name, norm, inputs, outputs, size):
      add(f"{name}.weight", outputs, inputs, size, size, scale=(inputs * size**2) ** -0.5)
      add_norm(norm, outputs)

    width = config.width
    for i, (inputs, outputs) in enumerate([(3, width // 2), (width // 2, width // 2), (width // 2, width)], 1):
      add_convolution(f"conv{i}", f"bn{i}", inputs, outputs, 3)
    inputs = width
    for stage, depth in enumerate(config.depths, 1):
      middle = width * 2 ** (stage - 1)
      for block in range(depth):
        name = f"layer{stage}.{block}"
        if not block:
          add_convolution(f"{name}.downsample.0", f"{name}.downsample.1", inputs, 4 * middle, 1)
        for i, sizes in enumerate([(inputs, middle, 1), (middle, middle, 3), (middle, 4 * middle, 1)], 1):
          add_convolution(f"{name}.conv{i}", f"{name}.bn{i}", *sizes)
        inputs = 4 * middle
    add("attnpool.positional_embedding", 1 + config.grid**2, inputs, scale=0.3)
    for letter, outputs in zip("qkvc", (inputs, inputs, inputs, embedding_width), strict=True):
      add(f"attnpool.{letter}_proj.weight", outputs, inputs, scale=2 * inputs**-0.5)
      add(f"attnpool.{letter}_proj.bias", outputs, scale=0.1)

  def __call__(self, x, train: bool):
    """[B, 3, S, S] to [B, D]; `train` moves the running averages in place."""
    functional = self.torch.nn.functional
    get = lambda name: self.tensors[f"visual.{name}"]  # noqa: E731

    def normalise(x, name):
      names = ("running_mean", "running_var", "weight", "bias")
      return functional.batch_norm(x, *(get(f"{name}.{part}") for part in names), training=train)

    for i, stride in ((1, 2), (2, 1), (3, 1)):
      x = functional.conv2d(x, get(f"conv{i}.weight"), stride=stride, padding=1)
      x = functional.relu(normalise(x, f"bn{i}"))
    x = functional.avg_pool2d(x, 2)
    for stage, depth in enumerate(self.config.depths, 1):
      for block in range(depth):
        name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
        y = functional.relu(normalise(functional.conv2d(x, get(f"{name}.conv1.weight")), f"{name}.bn1"))
        y = functional.relu(normalise(functional.conv2d(y, get(f"{name}.conv2.weight"), padding=1), f"{name}.bn2"))
        y = functional.avg_pool2d(y, stride)
        y = normalise(functional.conv2d(y, get(f"{name}.conv3.weight")), f"{name}.bn3")
        if not block:
          x = functional.conv2d(functional.avg_pool2d(x, stride), get(f"{name}.downsample.0.weight"))
          x = normalise(x, f"{name}.downsample.1")
        x = functional.relu(x + y)
    cells = x.flatten(2).permute(2, 0, 1)
    tokens = self.torch.cat([cells.mean(0, keepdim=True), cells]) + get("attnpool.positional_embedding")[:, None]
    pooled, _ = functional.multi_head_attention_forward(
      tokens[:1], tokens, tokens, tokens.shape[-1], self.config.heads, None,
      self.torch.cat([get(f"attnpool.{letter}_proj.bias") for letter in "qkv"]), None, None, False, 0.0,
      get("attnpool.c_proj.weight"), get("attnpool.c_proj.bias"), need_weights=False, use_separate_proj_weight=True,
      **{f"{letter}_proj_weight": get(f"attnpool.{letter}_proj.weight") for letter in "qkv"},
    )  # fmt: skip
    return pooled[0]


@pytest.fixture(scope="module")
def reference(torch):
  return Reference(torch, ResNetConfig(4, (1, 2, 1, 3), 96), 16)


def _ours(reference):
  """The reference's parameters, copied, in a model of ours."""
  config, params = resnet_tower({name: value.detach().numpy().copy() for name, value in reference.tensors.items()})
  assert config == reference.config
  whole = TINY.replace(vision={"image_size": config.image_size})
  return whole, jax.tree.map(jnp.asarray, merge(random_params(whole), params))


@pytest.mark.slow
def test_training_and_inference_equal_pytorch(torch, reference):
  """Features, gradients and the moved running averages; the averages of a second step too."""
  pixels = np.asarray(images(3, 96))

  def total(trained, statistics, pixels, config, train):
    features, _, moved = build(config, merge(trained, statistics))._image_features(pixels, None, train=train)
    return (features**2).sum() + features.sum(), (features, moved)

  run = jax.jit(jax.value_and_grad(total, has_aux=True), static_argnums=(3, 4))
  for train in (False, True, True):
    config, params = _ours(reference)
    (_, (features, moved)), gradients = run(*split_statistics(params), pixels, config, train)
    for name, tensor in reference.tensors.items():
      tensor.requires_grad_("running" not in name)
      tensor.grad = None
    expected = reference(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()), train)
    (expected.square().sum() + expected.sum()).backward()
    # normalising by the statistics of three images enlarges what is rounded
    assert_close(features, expected.detach().numpy(), 3e-5 if train else 1e-5)
    grads = {name: t.grad.numpy() for name, t in reference.tensors.items() if t.grad is not None}
    running = {name: t.numpy() for name, t in reference.tensors.items() if "running" in name}
    named = resnet_tower(grads | running)[1]
    ours = {"vision": merge(gradients["vision"], moved), "vision_projection": gradients["vision_projection"]}
    largest = max(np.abs(grad).max() for grad in grads.values())
    for name, value in flatten(ours).items():
      theirs = flatten(named)[name]
      floor = 0.0 if is_statistic(name) else 0.01 * largest  # a key's bias has no gradient but for rounding
      np.testing.assert_allclose(value, theirs, rtol=0, atol=2e-4 * max(np.abs(theirs).max(), floor), err_msg=name)


# ---- BatchNorm


@given(mean=st.floats(-10, 10), spread=st.floats(0.1, 10), seed=st.integers(0, 99))
def test_batch_norm_whitens_a_batch_and_tells_of_it(mean, spread, seed):
  x = np.random.default_rng(seed).normal(mean, spread, (4, 3, 5, 6)).astype(np.float32)
  y, moved = resnet.BatchNorm(6)(jnp.asarray(x), train=True)
  np.testing.assert_allclose(np.mean(y, (0, 1, 2)), 0, atol=1e-3)
  variance = x.astype(np.float64).var((0, 1, 2))
  np.testing.assert_allclose(np.var(y, (0, 1, 2)), variance / (variance + resnet.EPSILON), rtol=1e-3)
  np.testing.assert_allclose(moved["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-3, atol=1e-4)
  np.testing.assert_allclose(moved["variance"], 0.9 + 0.1 * variance * 60 / 59, rtol=1e-3)
  same, unmoved = resnet.BatchNorm(6)(jnp.asarray(x), train=False)
  np.testing.assert_allclose(same, x, rtol=1e-4)
  assert (unmoved["mean"] == 0).all() and (unmoved["variance"] == 1).all()


def test_statistics_have_the_names_and_shapes_of_the_models():
  trained, statistics = split_statistics(tiny())
  assert all(map(is_statistic, flatten(statistics))) and not any(map(is_statistic, flatten(trained)))
  assert len(flatten(statistics)) == sum("norm" in name for name in flatten(trained["vision"]))  # scale and bias
  assert count(tiny()) == count(trained) == sum(leaf.size for leaf in jax.tree.leaves(trained))
  shapes = jax.tree.map(jnp.shape, statistics["vision"])
  for train in (False, True):
    _, _, moved = jax.eval_shape(lambda train=train: tower(tiny())(images(), train=train))
    assert jax.tree.map(jnp.shape, moved) == shapes
  chex.assert_trees_all_equal(merge(trained, statistics), tiny())


def test_a_vision_transformer_has_no_statistics():
  params = jax.eval_shape(lambda: init_params(preset("tiny"), jax.random.key(0)))
  assert split_statistics(params) == (params, {})


# ---- the tower


def test_whole_batches_and_single_images_agree_in_inference():
  encode = jax.jit(lambda x: build(TINY, tiny()).image_features(x))
  whole = encode(images())
  assert_close(whole, jax.tree.map(lambda *parts: jnp.concatenate(parts), *(encode(x[None]) for x in images())))


def test_rematerialisation_and_unrolling_change_nothing():
  def total(params, runtime):
    pooled, dense, moved = tower(params, runtime)(images(), train=True)
    return (pooled**2).sum() + jnp.abs(dense).sum(), moved

  gradient = functools.partial(jax.jit, static_argnums=1)(jax.value_and_grad(total, has_aux=True))
  # a key's bias has no gradient but for rounding
  runtime = Runtime(remat="full", unroll=0)
  assert_close(gradient(tiny(), runtime), gradient(tiny(), Runtime()), 1e-4, floor=1.0)


def test_bfloat16_is_near():
  encode = functools.partial(jax.jit, static_argnums=1)(lambda params, runtime: tower(params, runtime)(images())[0])
  half, whole = (encode(tiny(), Runtime(dtype=dtype)) for dtype in (jnp.bfloat16, jnp.float32))
  assert half.dtype == jnp.bfloat16
  assert_close(half.astype(jnp.float32), whole, 0.05)


def test_dense_features_are_what_the_pooling_mixes():
  """Where every cell and the first token are alike, the pooled vector is any cell's."""
  params = merge(tiny(), {"vision": {"positions": jnp.zeros((1 + TINY.vision.grid**2, 128))}})
  # one colour, and norms that hide the border's zeros: no convolution sees beyond its own cell
  flat = {name: np.array(value) for name, value in flatten(params).items()}
  for name, value in flat.items():
    if name.endswith("kernel") and value.shape[-4:-2] == (3, 3):
      value[..., [0, 0, 0, 1, 1, 2, 2, 2], [0, 1, 2, 0, 2, 0, 1, 2], :, :] = 0
  model = build(TINY, unflatten(flat))
  pooled, dense = jax.jit(type(model).image_features)(model, jnp.full((1, 64, 64, 3), 0.7))
  assert_close(dense, jnp.broadcast_to(pooled[:, None, None], dense.shape))
  assert dense.shape == (1, 2, 2, TINY.embedding_width)


def test_images_of_another_size_and_dropped_patches_are_errors():
  with pytest.raises(ValueError, match="takes images of 64 x 64 x 3, got 32 x 32 x 3"):
    tower(tiny())(images(size=32))
  with pytest.raises(ValueError, match="Vision Transformers only: this model's image tower is a ResNet"):
    build(TINY, tiny()).image_features(images(), jnp.zeros((4, 1), jnp.int32))


def test_first_weights_are_the_published_code_s():
  config = TINY.replace(vision={"width": 16, "depths": (1, 1, 3, 1)})
  params = flatten(init_params(config, jax.random.key(0)))
  assert all((value == 0).all() for name, value in params.items() if "/stage" in name and "norm3/scale" in name)
  assert (params["vision/stem/norm3/scale"] == 1).all()
  for name in ("vision/stage4/first/conv2/kernel", "vision/stage3/rest/conv1/kernel", "vision/stem/conv3/kernel"):
    value = np.asarray(params[name])
    bound = np.prod(value.shape[-4:-1]) ** -0.5
    assert np.abs(value).max() <= 1.0001 * bound and value.std() == pytest.approx(bound / 3**0.5, rel=0.05), name
  for name in ("query", "key", "value"):
    assert np.std(params[f"vision/pool/{name}/kernel"]) == pytest.approx(512**-0.5, rel=0.02)
  assert np.std(params["vision_projection/kernel"]) == pytest.approx(512**-0.5, rel=0.05)
  assert np.std(params["vision/positions"]) == pytest.approx(512**-0.5, rel=0.1)


def test_the_whole_model_trains_by_the_batch_and_looks_by_the_running_averages():
  model = build(TINY.replace(text={"long_length": None}), _plain(tiny()))
  ids = jnp.asarray([[[1, 2, 3, 4]]], jnp.int32)
  batch = {
    "image": images()[None],
    "boxes": jnp.zeros((1, 4, 0, 4)),
    "tokens": ids,
    "segment": jnp.ones_like(ids),
    "position": jnp.arange(4)[None, None],
    "short_eot": jnp.full((1, 4), 3),
  }
  run = jax.jit(type(model).__call__, static_argnames="running_statistics")
  running, own = run(model, batch, running_statistics=True), run(model, batch)
  assert running.statistics is None
  features = jax.jit(type(model).image_features)(model, images())[0]
  assert_close(running.image, features / jnp.linalg.norm(features, axis=1, keepdims=True))
  assert np.abs(own.image - running.image).max() > 0.01
  _, _, moved = jax.jit(lambda model, x: model.vision(x, train=True))(model, images())
  chex.assert_trees_all_equal(own.statistics, {"vision": moved})


def _plain(params):
  return {key: value for key, value in params.items() if key != "long_projection"} | {
    "text": {key: value for key, value in params["text"].items() if key != "long_positions"},
    "temperature": {"global": params["temperature"]["global"]},
  }
