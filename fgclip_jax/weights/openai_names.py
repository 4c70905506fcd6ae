"""The name table of OpenAI's CLIP, which open_clip has kept, and of Long-CLIP, which came of it."""

from collections.abc import Callable

from fgclip_jax.models.config import ModelConfig, ResNetConfig, TextConfig, TowerConfig, VisionConfig
from fgclip_jax.weights.huggingface_names import long_positions
from fgclip_jax.weights.name_map import Row, convolution, fused, linear, norm, patches, same

LONG_REST = "positional_embedding_res"  # Long-CLIP's second position table


def _blocks(ours: str, theirs: str, tower: TowerConfig) -> list[Row]:
  ours, theirs, layers = f"{ours}/transformer/blocks", f"{theirs}transformer.resblocks.{{}}", range(tower.depth)
  return [
    *norm(f"{ours}/norm1", f"{theirs}.ln_1", layers),
    *fused(f"{ours}/attention", f"{theirs}.attn.in_proj", layers),
    *linear(f"{ours}/attention/out", f"{theirs}.attn.out_proj", layers),
    *norm(f"{ours}/norm2", f"{theirs}.ln_2", layers),
    *linear(f"{ours}/mlp/up", f"{theirs}.mlp.c_fc", layers),
    *linear(f"{ours}/mlp/down", f"{theirs}.mlp.c_proj", layers),
  ]


def _batch_norm(ours: str, theirs: str, layers: range | None = None) -> list[Row]:
  return [
    *norm(ours, theirs, layers),
    same(f"{ours}/mean", f"{theirs}.running_mean", layers),
    same(f"{ours}/variance", f"{theirs}.running_var", layers),
  ]


def _convolutions(ours: str, theirs: str, layers: range | None = None) -> list[Row]:
  """The three convolutions of a stem or of a block, each with its BatchNorm."""
  rows = []
  for number in (1, 2, 3):
    rows.append(convolution(f"{ours}/conv{number}/kernel", f"{theirs}.conv{number}.weight", layers))
    rows += _batch_norm(f"{ours}/norm{number}", f"{theirs}.bn{number}", layers)
  return rows


def _vit(config: VisionConfig) -> list[Row]:
  return [
    patches("vision/patch_embedding/kernel", "visual.conv1.weight", config.patch_size),
    same("vision/class_embedding", "visual.class_embedding"),
    same("vision/positions", "visual.positional_embedding"),
    *norm("vision/pre_norm", "visual.ln_pre"),
    *_blocks("vision", "visual.", config),
    *norm("vision/post_norm", "visual.ln_post"),
    same("vision_projection/kernel", "visual.proj"),
  ]


def _resnet(config: ResNetConfig) -> list[Row]:
  rows = [*_convolutions("vision/stem", "visual"), same("vision/positions", "visual.attnpool.positional_embedding")]
  for number, depth in enumerate(config.depths, 1):
    ours, theirs = f"vision/stage{number}", f"visual.layer{number}"
    rows += _convolutions(f"{ours}/first", f"{theirs}.0")
    rows.append(convolution(f"{ours}/first/shortcut/kernel", f"{theirs}.0.downsample.0.weight"))
    rows += _batch_norm(f"{ours}/first/shortcut_norm", f"{theirs}.0.downsample.1")
    if depth > 1:
      rows += _convolutions(f"{ours}/rest", f"{theirs}.{{}}", range(1, depth))
  for part in ("query", "key", "value"):
    rows += linear(f"vision/pool/{part}", f"visual.attnpool.{part[0]}_proj")
  return [*rows, *linear("vision_projection", "visual.attnpool.c_proj")]


def _causal(config: TextConfig, text: str, split_positions: bool) -> list[Row]:
  positions = ("text/short_positions", f"{text}positional_embedding")
  return [
    same("text/token_embedding", f"{text}token_embedding.weight"),
    long_positions(*positions, f"{text}{LONG_REST}") if split_positions else same(*positions),
    *_blocks("text", text, config),
    *norm("text/final_norm", f"{text}ln_final"),
    same("short_projection/kernel", f"{text}text_projection"),
  ]


# the rows of a tower and its projection, by its type
IMAGE_ROWS: dict[str, Callable[..., list[Row]]] = {"vit": _vit, "resnet": _resnet}
TEXT_ROWS: dict[str, Callable[..., list[Row]]] = {"causal": _causal}


def table(config: ModelConfig, text: str = "", split_positions: bool = False) -> list[Row]:
  """The rows for a plain CLIP of this size.

  Args:
    config: the model's size.
    text: what stands before the names of the text tower: `text.` in open_clip's newer layout, else nothing.
    split_positions: the positions lie in Long-CLIP's two tables.
  """
  rows = IMAGE_ROWS[config.vision.type](config.vision) + TEXT_ROWS[config.text.type](config.text, text, split_positions)
  rows.append(same("temperature/global", "logit_scale"))
  if config.logit_bias is not None:
    rows.append(same("temperature/bias", "logit_bias"))
  return rows


def counters(config: ModelConfig) -> list[str]:
  """The names of BatchNorm's counts of batches, which nothing reads and we do not keep."""
  names = (name for row in IMAGE_ROWS[config.vision.type](config.vision) for layer in row.names() for name in layer)
  means = (name for name in names if name.endswith("running_mean"))
  return [name.replace("running_mean", "num_batches_tracked") for name in means]
