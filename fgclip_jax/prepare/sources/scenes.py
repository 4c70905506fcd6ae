"""The embedded data set: small rendered scenes with exact boxes, captions and hard negatives; needs no download.

A scene has three objects, in three of its four quadrants, that differ in size, colour, pattern and shape. One fifth of
the combinations of colour, pattern and shape is held out: no training object and no training text uses them, and every
validation object does. So the validation split measures whether attributes are recognised, not whether combinations
are remembered.

A scene depends only on `(seed, index, split, shapes)`, never on the number of processes. With `captions` "set", its
picture and its regions have several captions, and its regions all their negatives; the rest is the same.
"""

import argparse
import dataclasses
import functools
import io
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image

from fgclip_jax.cli import add_workers, positive
from fgclip_jax.data import dataset_folder, record
from fgclip_jax.data.dataset_folder import shard_path
from fgclip_jax.data.tokenizers import get_tokenizer
from fgclip_jax.prepare import cli, shard_writer
from fgclip_jax.prepare.sources import scene_captions, scene_shapes
from fgclip_jax.prepare.sources.scene_captions import Description
from fgclip_jax.storage import paths
from fgclip_jax.storage.workers import count_processors, run_tasks, tick

SHORT = "rendered scenes; needs no download"
TEXT = """
Renders the embedded data set, which needs no download: scenes of three objects that differ in size, colour, pattern
and shape, with boxes, captions and hard negatives. Validation scenes show combinations that are never trained on.
"""
EXAMPLE = "--output data/scenes --train 20000 --validation 256"

NAME = "scenes"
VERSION = 2  # raised when the scenes or records change, so that `write` does not keep outdated files
IMAGE_SIZE = 64
# width and height of pictures: each quadrant holds the largest object
CANVASES = {"square": ((64, 64),), "mixed": ((64, 64), (80, 64), (64, 80), (96, 64), (64, 96))}
QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
OBJECTS = 3
CAPTIONS = ("pair", "set")  # a short and a long caption for each picture, or sets
SPLITS = ("train", "validation")
IMAGES_PER_SHARD = 1000


class SceneObject(NamedTuple):
  """One object of a scene.

  Attributes:
    description: its attributes.
    quadrant: one of `QUADRANTS`.
    sprite: what is drawn, in pixels.
    canvas: the picture's width and height, in pixels.
  """

  description: Description
  quadrant: str
  sprite: scene_shapes.Sprite
  canvas: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)

  @property
  def box(self) -> tuple[float, float, float, float]:
    """The tight box x1, y1, x2, y2 as fractions of the picture's width and height."""
    (width, height), sprite = self.canvas, self.sprite
    right, bottom = sprite.left + sprite.side, sprite.top + sprite.side
    return sprite.left / width, sprite.top / height, right / width, bottom / height


ATTRIBUTES: dict[str, tuple[str, ...]] = {
  "size": tuple(scene_shapes.SIZES),
  "colour": tuple(scene_shapes.COLOURS),
  "pattern": scene_shapes.PATTERNS,
  "shape": scene_shapes.SHAPES,
}


@functools.cache
def descriptions() -> tuple[Description, ...]:
  """All 432 descriptions."""
  return tuple(Description(*values) for values in itertools.product(*ATTRIBUTES.values()))


@functools.cache
def is_held_out(description: Description) -> bool:
  """Whether colour + pattern + shape is one of the 43 of 216 combinations never trained on."""
  colour = ATTRIBUTES["colour"].index(description.colour)
  pattern = ATTRIBUTES["pattern"].index(description.pattern)
  shape = ATTRIBUTES["shape"].index(description.shape)
  return (colour + 2 * pattern + 3 * shape) % 5 == 0


@functools.cache
def negatives(description: Description) -> tuple[Description, ...]:
  """The 17 descriptions that differ from `description` in exactly one attribute."""
  return tuple(
    description._replace(**{field: value})
    for field, values in ATTRIBUTES.items()
    for value in values
    if value != getattr(description, field)
  )


def render(
  seed: int, index: int, split: str, shapes: str = "square"
) -> tuple[UInt8[np.ndarray, "h w 3"], tuple[SceneObject, ...]]:
  """Renders one scene; returns its picture, and its three objects. `shapes` is a key of `CANVASES`."""
  rng = _rng(seed, index, split, stream=0)
  canvases = CANVASES[shapes]
  canvas = canvases[_rng(seed, index, split, stream=2).integers(len(canvases))] if len(canvases) > 1 else canvases[0]
  objects = arrange(rng, split, canvas)
  return draw(objects, background(rng, canvas)), objects


def arrange(
  rng: np.random.Generator, split: str, canvas: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)
) -> tuple[SceneObject, ...]:
  """Chooses three different descriptions of the split, and the place and look of each."""
  known = _list_descriptions(split)
  chosen = rng.choice(len(known), OBJECTS, replace=False)
  quadrants = rng.permutation(len(QUADRANTS))[:OBJECTS]
  return tuple(_place(rng, known[i], int(quadrant), canvas) for i, quadrant in zip(chosen, quadrants, strict=True))


def _place(rng: np.random.Generator, description: Description, quadrant: int, canvas: tuple[int, int]) -> SceneObject:
  halves = np.asarray(canvas) // 2
  smallest, largest = scene_shapes.SIZES[description.size]
  side = int(rng.integers(smallest, largest + 1))
  down, right = divmod(quadrant, 2)
  left, top = (int(value) for value in rng.integers(0, halves - side + 1, 2))
  period = int(rng.integers(4, 7))
  sprite = scene_shapes.Sprite(
    shape=description.shape,
    pattern=description.pattern,
    rgb=tuple(np.clip(rng.normal(scene_shapes.COLOURS[description.colour], 10), 0, 255).tolist()),
    left=left + right * int(halves[0]),
    top=top + down * int(halves[1]),
    side=side,
    period=period,
    phase=tuple(rng.integers(0, period * scene_shapes.OVERSAMPLING, 2).tolist()),
  )
  return SceneObject(description, QUADRANTS[quadrant], sprite, canvas)


def background(
  rng: np.random.Generator, canvas: tuple[int, int] = (IMAGE_SIZE, IMAGE_SIZE)
) -> Float32[np.ndarray, "h w 3"]:
  """Draws a dark, tinted, noisy background, in 0..255."""
  base = rng.uniform(20, 90) + rng.normal(0, 10, 3)
  noise = rng.random((canvas[1], canvas[0], 3), np.float32) * 2 - 1
  return np.clip(base.astype(np.float32) + noise * np.float32(rng.uniform(0, 14)), 0, 255)


def draw(objects: tuple[SceneObject, ...], canvas: Float32[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
  """Draws objects over a copy of `canvas`, whose levels are 0..255, and rounds."""
  canvas = canvas.copy()
  for item in objects:
    scene_shapes.paint(canvas, item.sprite)
  return np.rint(canvas).clip(0, 255).astype(np.uint8)


def make_record(seed: int, index: int, split: str, shapes: str = "square", captions: str = "pair") -> record.Record:
  """Makes the record of one scene, with its texts.

  The long caption names all attributes and the quadrant of every object, the short one colours and shapes; each has an
  order of its own. In training, one of the three regions has ten negatives, none of them a held-out combination:
  otherwise held-out texts would be learnt as "always wrong". In validation, every region has ten, drawn from all 17.
  `captions` is one of `CAPTIONS`.
  """
  image, objects = render(seed, index, split, shapes)
  rng = _rng(seed, index, split, stream=1)
  long = [objects[i] for i in rng.permutation(OBJECTS)]
  short = [objects[i].description.short_caption for i in rng.permutation(OBJECTS)]
  with_negatives = {int(rng.integers(OBJECTS))} if split == "train" else set(range(OBJECTS))
  made = record.Record(
    id=f"{split}/{index:06d}",
    image=encode_image(image),
    width=image.shape[1],
    height=image.shape[0],
    short=f"{', '.join(short[:-1])} and {short[-1]}",
    long=", ".join(f"{item.description.caption} {item.quadrant}" for item in long),
    regions=tuple(
      record.Region(
        box=item.box,
        short=item.description.caption,
        negatives=_draw_negatives(rng, item.description, split) if i in with_negatives else (),
      )
      for i, item in enumerate(objects)
    ),
  )
  if captions == "set":
    made = _with_sets(made, objects, _rng(seed, index, split, stream=3), split)
  return dataclasses.replace(made, tokens=record.tokenize(made, get_tokenizer()))


def _with_sets(
  made: record.Record, objects: tuple[SceneObject, ...], rng: np.random.Generator, split: str
) -> record.Record:
  """The record with the sets of its picture and its regions, and with all negatives that a region may have."""
  placed = [(item.description, item.quadrant) for item in objects]
  (empty,) = set(QUADRANTS) - {item.quadrant for item in objects}
  regions = []
  for region, each in zip(made.regions, placed, strict=True):
    others = [other.caption for other in _choices(each[0], split)] if region.negatives else []
    wrong = (*region.negatives, *(text for text in others if text not in region.negatives))
    regions.append(dataclasses.replace(region, captions=scene_captions.describe_region(each), negatives=wrong))
  captions = scene_captions.describe_picture(made.short, made.long, placed, empty, rng)
  return dataclasses.replace(made, captions=captions, regions=tuple(regions))


def _draw_negatives(rng: np.random.Generator, description: Description, split: str) -> tuple[str, ...]:
  """Draws ten negatives without replacement; every trained description has at least twelve that are not held out."""
  choices = _choices(description, split)
  return tuple(choices[i].caption for i in rng.choice(len(choices), record.MAX_NEGATIVES, replace=False))


def _choices(description: Description, split: str) -> list[Description]:
  """The negatives that a split may show."""
  return [other for other in negatives(description) if split != "train" or not is_held_out(other)]


def encode_image(image: np.ndarray) -> bytes:
  """Encodes a picture as a PNG file, which keeps every pixel."""
  # Uncompressed, it decodes twice as fast, and ArrayRecord compresses records anyway.
  file = io.BytesIO()
  Image.fromarray(image).save(file, "PNG", compress_level=0)
  return file.getvalue()


def _rng(seed: int, index: int, split: str, stream: int) -> np.random.Generator:
  _check_split(split)
  return np.random.default_rng((seed, SPLITS.index(split), index, stream))


def _check_split(split: str) -> None:
  if split not in SPLITS:
    raise ValueError(f"no split {split!r}; splits are {SPLITS}")


@functools.cache
def _list_descriptions(split: str) -> tuple[Description, ...]:
  _check_split(split)
  return tuple(item for item in descriptions() if is_held_out(item) == (split == "validation"))


def write(
  output: str,
  train: int = 20000,
  validation: int = 256,
  seed: int = 0,
  workers: int | None = None,
  shapes: str = "square",
  captions: str = "pair",
) -> dict:
  """Writes the data set into the folder `output`, unless it is already there.

  Args:
    output: the folder; it is made if it is missing.
    train, validation: the number of scenes in each split, at least one.
    seed: scenes are drawn from `(seed, index, split, shapes)`.
    workers: the number of processes; None: all processors. The records do not depend on it.
    shapes: a key of `CANVASES`: all pictures are square, or they have several shapes.
    captions: one of `CAPTIONS`: `set` writes several captions for each picture and region.

  Returns:
    The content of `info.json`: `version`, `arguments`, `tokenizer`, and `region_classes`, the captions of all
    descriptions, as which regions can be classified.

  Raises:
    ValueError: a count below one, a negative seed, or no such shapes or captions.
    FileExistsError: `output` holds another data set.
  """
  workers = count_processors() if workers is None else workers
  for argument, value, least in [
    ("train", train, 1),
    ("validation", validation, 1),
    ("workers", workers, 1),
    ("seed", seed, 0),
  ]:
    if value < least:
      raise ValueError(f"{argument} must be at least {least}, got {value}")
  if shapes not in CANVASES:
    raise ValueError(f"shapes must be one of {', '.join(CANVASES)}, got {shapes!r}")
  if captions not in CAPTIONS:
    raise ValueError(f"captions must be one of {', '.join(CAPTIONS)}, got {captions!r}")
  counts = {"train": train, "validation": validation}
  by_split = {split: _shards(output, split, count, seed, shapes, captions) for split, count in counts.items()}
  others = {"shapes": (shapes, "square"), "captions": (captions, "pair")}
  info = {
    "version": VERSION,
    **({"record_version": dataset_folder.RECORD_VERSION} if captions == "set" else {}),
    # a default is not named: older data sets, which know no such argument, are kept
    "arguments": counts | {"seed": seed} | {name: value for name, (value, usual) in others.items() if value != usual},
    "tokenizer": get_tokenizer().name,
    "region_classes": [item.caption for item in descriptions()],
  }
  shards = [shard for split in by_split.values() for shard in split]
  paths.make_folder(output)
  _check_folder(output)
  if dataset_folder.read_info(output) == info and all(paths.exists(shard.path) for shard in shards):
    print(f"{output} already holds these scenes ({train:,} train, {validation:,} validation, seed {seed}): kept.")
    return info
  _clear(output)
  workers = min(workers, len(shards))
  print(f"Rendering {train:,} train and {validation:,} validation scenes into {output} ({workers} processes)")
  found = run_tasks(_write_shard, shards, workers, total=train + validation, label="scenes", unit=" scenes")
  written = dict(found)
  splits = {split: [written[shard.path] for shard in shards] for split, shards in by_split.items()}
  dataset_folder.add_splits(output, NAME, splits)
  dataset_folder.write_info(output, info)
  size = sum(shard.size for shard in written.values())
  print(f"Wrote {train + validation:,} scenes in {len(shards)} shards, {size / 1e6:.0f} MB, to {output}")
  return info


class _Shard(NamedTuple):
  path: str
  seed: int
  split: str
  start: int
  stop: int
  shapes: str
  captions: str


def _shards(
  output: str, split: str, count: int, seed: int, shapes: str = "square", captions: str = "pair"
) -> list[_Shard]:
  """Cuts a split into shards of nearly equal size, which depend only on `count`."""
  shards = -(-count // IMAGES_PER_SHARD)
  starts = [count * i // shards for i in range(shards + 1)]
  return [
    _Shard(shard_path(output, NAME, split, i, shards), seed, split, starts[i], starts[i + 1], shapes, captions)
    for i in range(shards)
  ]


def _write_shard(shard: _Shard) -> tuple[str, dataset_folder.Shard]:
  return shard.path, shard_writer.write(shard.path, _encode_scenes(shard))


def _encode_scenes(shard: _Shard) -> Iterator[bytes]:
  for index in range(shard.start, shard.stop):
    tick(1)
    yield record.encode(make_record(shard.seed, index, shard.split, shard.shapes, shard.captions))


def _check_folder(output: str) -> None:
  """Raises `FileExistsError` if the folder holds another data set."""
  foreign = [entry for entry in _shard_files(output) if not entry.startswith(f"{NAME}-")]
  name = dataset_folder.read_name(output) or NAME
  if foreign or name != NAME:
    raise FileExistsError(f"{output!r} holds another data set ({foreign[0] if foreign else name}); give another folder")


def _clear(output: str) -> None:
  """Removes scenes made with other arguments, or unfinished ones; `info.json` first, for it vouches for the shards."""
  paths.remove(paths.join(output, dataset_folder.INFO))
  for split in SPLITS:
    dataset_folder.remove_split(output, split)


def _shard_files(output: str) -> list[str]:
  names = paths.list_folder(output) if paths.is_folder(output) else []  # a bucket has no empty folders
  return sorted(entry for entry in names if ".array_record-" in entry)


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the command's options."""
  cli.add_output(parser)
  parser.add_argument(
    "--train", type=positive, default=20000, metavar="N", help="training scenes (default: %(default)s)"
  )
  parser.add_argument(
    "--validation", type=positive, default=256, metavar="N", help="validation scenes (default: %(default)s)"
  )
  parser.add_argument("--seed", type=int, default=0, help="of the random numbers (default: %(default)s)")
  parser.add_argument(
    "--shapes", choices=tuple(CANVASES), default="square", help="of the pictures (default: %(default)s)"
  )
  parser.add_argument(
    "--captions",
    choices=CAPTIONS,
    default="pair",
    help="set: several captions for each picture and region (default: %(default)s, a short and a long one)",
  )
  add_workers(parser)


def run(options: argparse.Namespace) -> None:
  """Runs the command."""
  counts = options.train, options.validation
  write(options.output, *counts, options.seed, options.workers, options.shapes, options.captions)
  cli.print_next("quickstart:stage1" if options.shapes == "square" else "quickstart:fgclip2_stage1", options.output)
