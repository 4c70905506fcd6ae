"""The rendered scenes: exact boxes, texts that fit the objects, the held-out split, and the files."""

import dataclasses
import io
import os

import numpy as np
import pytest
from array_record.python import array_record_module
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fgclip_jax.data import dataset_folder, record
from fgclip_jax.data.dataset_folder import find_shards
from fgclip_jax.data.tokenizers.clip import Tokenizer
from fgclip_jax.prepare.sources import scene_shapes, scenes
from tests.helpers import standin

SPLITS = st.sampled_from(scenes.SPLITS)
INDICES = st.integers(0, 100_000)
DESCRIPTIONS = {item.caption: item for item in scenes.descriptions()}


def read_split(folder, split):
  records = []
  for path in find_shards(str(folder), split):
    reader = array_record_module.ArrayRecordReader(path)
    records += [record.decode(data) for data in reader.read_all()]
    reader.close()
  return records


@pytest.fixture(scope="module")
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp("scenes")
  return folder, scenes.write(str(folder), train=60, validation=20, seed=3, workers=1)


def touched(objects):
  """Which pixels the objects cover at least partly: they let less than all of the background through."""
  black = scenes.draw(objects, np.zeros((64, 64, 3), np.float32)).astype(int)
  white = scenes.draw(objects, np.full((64, 64, 3), 255, np.float32)).astype(int)
  return (white - black).min(-1) < 255


@pytest.mark.parametrize("shape", scene_shapes.SHAPES)
def test_every_shape_reaches_every_side_of_its_square(shape):
  for smallest, largest in scene_shapes.SIZES.values():
    for side in range(smallest, largest + 1):
      covered = scene_shapes.shape_coverage(shape, side) > 0
      assert covered[0].any() and covered[-1].any() and covered[:, 0].any() and covered[:, -1].any(), side


def test_shapes_cover_the_area_of_their_geometry():
  # areas as shares of the square; the star's is that of a pentagram with unit circumradius, stretched to a square
  tip = np.cos(2 * np.pi / 5)
  inner = tip / np.cos(np.pi / 5)
  star = 5 * inner * np.sin(np.pi / 5) / (2 * np.sin(2 * np.pi / 5) * (1 + np.cos(np.pi / 5)))
  areas = {
    "circle": np.pi / 4,
    "square": 1,
    "triangle": 1 / 2,
    "cross": 5 / 9,
    "ring": np.pi / 4 * (1 - 0.55**2),
    "star": star,
  }
  assert set(areas) == set(scene_shapes.SHAPES)
  for shape, area in areas.items():
    assert scene_shapes.shape_coverage(shape, 30).mean() == pytest.approx(area, abs=0.01), shape


def test_patterns_have_their_share_of_second_tone():
  shares = {"solid": 1, "striped": 1 / 2, "dotted": 1 - np.pi * 0.3**2, "checked": 1 / 2}
  assert set(shares) == set(scene_shapes.PATTERNS)
  for pattern, share in shares.items():
    for period in (4, 5, 6):
      light = scene_shapes.pattern_mask(pattern, 2 * period, period, (3, 5))
      assert light.mean() == pytest.approx(share, abs=0.02), (pattern, period)


@pytest.mark.parametrize(
  "call",
  [
    lambda: scene_shapes.shape_mask("heart", 14),
    lambda: scene_shapes.pattern_mask("furry", 14, 4, (0, 0)),
    lambda: scenes.render(0, 0, "test"),
    lambda: scenes.arrange(np.random.default_rng(0), "test"),
  ],
)
def test_an_unknown_name_is_an_error_that_lists_the_known(call):
  with pytest.raises(ValueError, match=r"no \w+ '\w+'; \w+ are"):
    call()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 1000), INDICES, SPLITS)
def test_boxes_are_tight_and_in_their_quadrants(seed, index, split):
  image, objects = scenes.render(seed, index, split)
  assert image.shape == (64, 64, 3) and image.dtype == np.uint8
  assert len(objects) == 3 and len({item.quadrant for item in objects}) == 3
  for item in objects:
    rows, columns = np.nonzero(touched((item,)))
    x1, y1, x2, y2 = (value * 64 for value in item.box)
    assert (x1, y1, x2, y2) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    vertical, horizontal = item.quadrant.split()
    assert (y2 <= 32) == (vertical == "top") and (y1 >= 32) == (vertical == "bottom")
    assert (x2 <= 32) == (horizontal == "left") and (x1 >= 32) == (horizontal == "right")
    smallest, largest = {"small": (14, 17), "big": (26, 31)}[item.description.size]
    assert smallest <= x2 - x1 <= largest and x2 - x1 == y2 - y1


@given(st.integers(0, 1 << 32), INDICES, SPLITS)
@settings(max_examples=40)
def test_boxes_of_pictures_of_several_shapes_are_tight(seed, index, split):
  picture, objects = scenes.render(seed, index, split, "mixed")
  height, width = picture.shape[:2]
  assert (width, height) in scenes.CANVASES["mixed"]
  for item in objects:
    black, white = (scenes.draw((item,), np.full(picture.shape, level, np.float32)).astype(int) for level in (0, 255))
    rows, columns = np.nonzero((white - black).min(-1) < 255)
    edges = (columns.min() / width, rows.min() / height, (columns.max() + 1) / width, (rows.max() + 1) / height)
    np.testing.assert_allclose(item.box, edges)
    assert ("left" in item.quadrant) == (edges[2] <= 0.5) and ("top" in item.quadrant) == (edges[3] <= 0.5)


def test_pictures_of_several_shapes_are_written_with_their_sizes(tmp_path):
  info = scenes.write(str(tmp_path), train=30, validation=1, workers=1, shapes="mixed")
  found = read_split(tmp_path, "train")
  assert info["arguments"]["shapes"] == "mixed" and {(r.width, r.height) for r in found} == set(
    scenes.CANVASES["mixed"]
  )
  assert all(Image.open(io.BytesIO(r.image)).size == (r.width, r.height) for r in found)
  with pytest.raises(ValueError, match="shapes must be one of square, mixed, got 'round'"):
    scenes.write(str(tmp_path / "other"), shapes="round")


def test_background_is_dark_and_objects_are_painted_over_it():
  rng = np.random.default_rng(0)
  backgrounds = np.stack([scenes.background(rng) for _ in range(200)])
  means = backgrounds.mean((1, 2, 3))
  assert backgrounds.min() >= 0 and 10 < means.min() < 30 and 80 < means.max() < 110
  objects = scenes.arrange(rng, "train")
  free = ~touched(objects)
  drawn = scenes.draw(objects, backgrounds[0])
  assert 0.1 < free.mean() < 0.95
  np.testing.assert_array_equal(drawn[free], np.rint(backgrounds[0])[free])


def test_solid_colours_are_those_of_their_names():
  """The nearest named colour of a solid object's middle is its own: jitter never makes a caption wrong."""
  names = list(scene_shapes.COLOURS)
  palette = np.asarray(list(scene_shapes.COLOURS.values()))
  seen = set()
  for index in range(150):
    image, objects = scenes.render(1, index, "train")
    for item in objects:
      if item.description.pattern == "solid" and item.description.shape != "ring":
        row, column = (start + item.sprite.side // 2 for start in (item.sprite.top, item.sprite.left))
        nearest = names[np.abs(palette - image[row, column]).sum(-1).argmin()]
        assert nearest == item.description.colour
        seen.add(nearest)
  assert seen == set(names)


def test_descriptions_and_held_out_combinations():
  items = scenes.descriptions()
  assert len(items) == len(set(items)) == len(DESCRIPTIONS) == 432
  triples = {(item.colour, item.pattern, item.shape) for item in items}
  held_out = {(item.colour, item.pattern, item.shape) for item in items if scenes.is_held_out(item)}
  assert (len(triples), len(held_out)) == (216, 43)
  for position in range(3):  # every single value is seen in training, also every value of the held-out part
    assert {triple[position] for triple in held_out} == {triple[position] for triple in triples - held_out}


@given(st.sampled_from(scenes.descriptions()))
def test_negatives_are_all_changes_of_one_attribute(description):
  others = scenes.negatives(description)
  assert len(set(others)) == 17
  changed = [[i for i in range(4) if other[i] != description[i]] for other in others]
  assert all(len(fields) == 1 for fields in changed)
  assert np.bincount(np.concatenate(changed)).tolist() == [1, 8, 3, 5]
  if not scenes.is_held_out(description):
    assert sum(not scenes.is_held_out(other) for other in others) >= record.MAX_NEGATIVES


@settings(max_examples=60, deadline=None)
@given(INDICES, SPLITS)
def test_texts_fit_the_objects(index, split):
  _, objects = scenes.render(0, index, split)
  made = scenes.make_record(0, index, split)
  assert made.long.count(",") == 2 and made.short.count(",") == 1
  assert set(made.long.split(", ")) == {f"{item.description.caption} {item.quadrant}" for item in objects}
  shorts = sorted(item.description.short_caption for item in objects)
  assert sorted(made.short.replace(" and ", ", ").split(", ")) == shorts
  assert [region.short for region in made.regions] == [item.description.caption for item in objects]
  assert [region.box for region in made.regions] == [item.box for item in objects]
  assert {scenes.is_held_out(item.description) for item in objects} == {split == "validation"}
  assert [len(region.negatives) for region in made.regions].count(10) == (1 if split == "train" else 3)
  for region in made.regions:
    wrong = [DESCRIPTIONS[text] for text in region.negatives]
    assert len(set(wrong)) in (0, 10) and set(wrong) <= set(scenes.negatives(DESCRIPTIONS[region.short]))
    if split == "train":
      assert not any(scenes.is_held_out(item) for item in wrong)


def test_captions_read_as_written_here():
  description = scenes.Description("big", "orange", "striped", "circle")
  assert description.caption == "a big orange striped circle"
  assert description.short_caption == "an orange circle"
  assert description._replace(colour="red").short_caption == "a red circle"


def test_orders_and_negatives_vary():
  made = [scenes.make_record(0, index, "train") for index in range(200)]
  assert {[len(r.negatives) for r in item.regions].index(10) for item in made} == {0, 1, 2}
  same_order = sum(
    [text.split()[1] for text in item.short.replace(" and ", ", ").split(", ")]
    == [text.split()[2] for text in item.long.split(", ")]
    for item in made
  )
  assert 10 < same_order < 70  # one in six, a little more where two objects share a colour
  every = scenes.make_record(0, 0, "validation").regions
  some_held_out = [scenes.is_held_out(DESCRIPTIONS[text]) for region in every for text in region.negatives]
  assert any(some_held_out) and not all(some_held_out)


def test_written_files_hold_the_scenes(written):
  folder, info = written
  assert dataset_folder.read_info(str(folder)) == info
  assert dataset_folder.read_name(str(folder)) == "scenes"
  splits = {split: sum(lengths) for split, lengths in dataset_folder.read_splits(str(folder)).items()}
  assert splits == {"train": 60, "validation": 20}
  assert info["arguments"] == {"train": 60, "validation": 20, "seed": 3}
  assert info["region_classes"] == list(DESCRIPTIONS)
  for split, count in splits.items():
    records = read_split(folder, split)
    assert [item.id for item in records] == [f"{split}/{index:06d}" for index in range(count)]
    for index, item in enumerate(records):
      assert item == scenes.make_record(3, index, split)
      with Image.open(io.BytesIO(item.image)) as picture:
        np.testing.assert_array_equal(np.asarray(picture), scenes.render(3, index, split)[0])
  assert not [name for name in os.listdir(folder) if name.endswith(".tmp")]


def test_records_do_not_depend_on_the_number_of_processes(tmp_path, written):
  folder, info = written
  assert scenes.write(str(tmp_path / "two"), train=60, validation=20, seed=3, workers=2) == info
  assert sorted(os.listdir(tmp_path / "two")) == sorted(os.listdir(folder))
  for split in scenes.SPLITS:
    assert read_split(tmp_path / "two", split) == read_split(folder, split)


@pytest.mark.parametrize("split", scenes.SPLITS)
def test_with_sets_scenes_are_the_same_but_for_more_captions_and_negatives(split):
  for index in range(20):
    plain, made = (scenes.make_record(1, index, split, captions=captions) for captions in scenes.CAPTIONS)
    assert made.tokens == record.tokenize(made, Tokenizer())
    assert made.captions[:2] == plain.caption_set() and len(made.captions) == 7
    assert {caption.kind for caption in made.captions} == {"short", "long"}
    assert [caption.weight for caption in made.captions if caption.source == record.ALT_TEXT] == [0.5]
    for region, before in zip(made.regions, plain.regions, strict=True):
      assert region.captions[0] == record.Caption(region.short) and len(region.captions) == 5
      assert region.negatives[:10] == before.negatives
      right, wrong = DESCRIPTIONS[region.short], [DESCRIPTIONS[text] for text in region.negatives]
      assert len(set(wrong)) == len(wrong)
      assert all(sum(map(str.__ne__, each, right)) == 1 for each in wrong)
      assert not wrong or len(wrong) > 10
      assert split == "validation" or not any(map(scenes.is_held_out, wrong))
    usual = [
      dataclasses.replace(region, captions=(), negatives=before.negatives)
      for region, before in zip(made.regions, plain.regions, strict=True)
    ]
    assert dataclasses.replace(made, captions=(), regions=tuple(usual), tokens=plain.tokens) == plain


def test_captions_of_sets_read_as_written_here():
  made = scenes.make_record(0, 0, "train", captions="set")
  objects = scenes.render(0, 0, "train")[1]
  texts = [caption.text for caption in made.captions]
  (empty,) = set(scenes.QUADRANTS) - {item.quadrant for item in objects}
  assert texts[5].endswith(f" The {empty} is empty.") and texts[5].count(".") == 4
  for item in objects:
    size, colour, pattern, shape = item.description
    assert f"a {size} {shape}" in texts[2] and f"a {pattern} {shape} {item.quadrant}" in texts[3]
    assert f"The {item.quadrant} holds {item.description.caption}." in texts[5]
  first = objects[0]
  size, colour, pattern, shape = first.description
  assert [caption.text for caption in made.regions[0].captions[1:]] == [
    f"a {shape} that is {size}, {colour} and {pattern}",
    f"{first.description.caption} {first.quadrant}",
    f"This is {first.description.caption}. It is in the {first.quadrant} of the picture.",
    first.description.short_caption,
  ]


def test_a_folder_of_sets_says_so(tmp_path, written):
  info = scenes.write(str(tmp_path), train=2, validation=1, seed=3, workers=1, captions="set")
  assert info["arguments"]["captions"] == "set" and "captions" not in written[1]["arguments"]
  assert dataset_folder.check_version(str(tmp_path)) == 2 and dataset_folder.check_version(str(written[0])) == 1
  assert read_split(tmp_path, "train") == [scenes.make_record(3, index, "train", captions="set") for index in range(2)]
  with pytest.raises(ValueError, match="captions must be one of pair, set, got 'many'"):
    scenes.write(str(tmp_path), captions="many")


def test_splits_and_seeds_differ():
  images = [scenes.render(*key)[0] for key in [(0, 0, "train"), (1, 0, "train"), (0, 1, "train"), (0, 0, "validation")]]
  assert len({image.tobytes() for image in images}) == 4
  streams = [(0, 0, "train", 0), (1, 0, "train", 0), (0, 1, "train", 0), (0, 0, "validation", 0), (0, 0, "train", 1)]
  assert len({scenes._rng(*key).random() for key in streams}) == 5
  np.testing.assert_array_equal(images[0], scenes.render(0, 0, "train")[0])


@settings(max_examples=50)
@given(st.integers(1, 50_000))
def test_shards_cover_every_scene_once(count):
  shards = scenes._shards("folder", "train", count, 0)
  assert [shard.start for shard in shards[1:]] == [shard.stop for shard in shards[:-1]]
  assert shards[0].start == 0 and shards[-1].stop == count
  assert all(0 < shard.stop - shard.start <= scenes.IMAGES_PER_SHARD for shard in shards)


def test_a_second_run_keeps_the_files_and_other_arguments_replace_them(tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(scenes, "IMAGES_PER_SHARD", 4)
  folder = str(tmp_path)
  scenes.write(folder, train=10, validation=2, workers=1)
  assert "Wrote 12 scenes in 4 shards" in capsys.readouterr().out
  before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
  scenes.write(folder, train=10, validation=2, workers=1)
  assert "already holds these scenes" in capsys.readouterr().out
  assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
  os.remove(find_shards(folder, "train")[1])
  scenes.write(folder, train=10, validation=2, workers=1)
  assert "Wrote 12 scenes" in capsys.readouterr().out
  scenes.write(folder, train=5, validation=1, seed=1, workers=1)
  assert "Wrote 6 scenes" in capsys.readouterr().out
  assert len(read_split(folder, "train")) == 5 and len(read_split(folder, "validation")) == 1


def test_scenes_may_be_written_to_object_storage(tmp_path):
  info = scenes.write(str(tmp_path / "local"), train=5, validation=2, seed=1, workers=1)
  assert scenes.write(standin.remote(tmp_path / "remote"), train=5, validation=2, seed=1, workers=1) == info
  for file in (path for path in (tmp_path / "local").rglob("*") if path.is_file()):
    assert (tmp_path / "remote" / file.relative_to(tmp_path / "local")).read_bytes() == file.read_bytes()


def test_scenes_hold_their_size_and_tokens():
  made = scenes.make_record(0, 0, "train")
  assert (made.width, made.height) == (scenes.IMAGE_SIZE, scenes.IMAGE_SIZE)
  assert made.tokens == record.tokenize(made, Tokenizer())


def test_another_data_set_is_not_overwritten(tmp_path):
  foreign = tmp_path / "photos-train.array_record-00000-of-00001"
  foreign.write_bytes(b"kept")
  with pytest.raises(FileExistsError, match="holds another data set.*give another folder"):
    scenes.write(str(tmp_path), train=1, validation=1, workers=1)
  assert foreign.read_bytes() == b"kept"
  foreign.unlink()
  dataset_folder.add_splits(str(tmp_path), "finehard", {"train": [dataset_folder.Shard(1, 0, 0, "")]})
  with pytest.raises(FileExistsError, match="finehard"):
    scenes.write(str(tmp_path), train=1, validation=1, workers=1)


@pytest.mark.parametrize("wrong", [{"train": 0}, {"validation": 0}, {"seed": -1}, {"workers": 0}])
def test_impossible_arguments_are_named(tmp_path, wrong):
  (name,) = wrong
  with pytest.raises(ValueError, match=f"{name} must be at least"):
    scenes.write(str(tmp_path / "none"), **wrong)
  assert not (tmp_path / "none").exists()
