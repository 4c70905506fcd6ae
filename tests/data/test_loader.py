"""The loader: what a batch holds, the order of batches, and data that is damaged."""

import collections
import io
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from fgclip_jax.data import loader as loader_module
from fgclip_jax.data import record as records
from fgclip_jax.data.image import open_image, to_square
from fgclip_jax.data.loader import DataConfig, Loader
from fgclip_jax.data.packing import NONE, Layout, budget_ladder
from fgclip_jax.data.record import Record, Region
from fgclip_jax.data.salvage import DamagedShard
from fgclip_jax.data.tfds_folder import Shard, add_splits
from fgclip_jax.data.tokenizer import Tokenizer

SIZE = 16  # side of the images that the loader makes
COUNT = 23  # records of the data set: no multiple of any batch
BOXES = 4


def picture(number: int) -> bytes:
  pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "PNG")
  return file.getvalue()


def toy_record(number: int) -> Record:
  """Records with 0 to 6 boxes, with and without long captions, and with 0, 3 or 10 negatives."""
  negatives = (0, 3, 10)[number % 3]
  return Record(
    id=str(number),
    image=picture(number),
    short=f"picture {number}" if number != 5 else "five <|endoftext|> and what nobody reads",
    long="" if number % 5 == 2 else f"picture {number}, which has a long caption, {'very ' * number} long",
    regions=tuple(
      Region(
        box=(0.1 * k, 0.0, 1.0, 0.125 * number / COUNT),
        short=f"region {k} of {number}",
        long=f"region {k} of picture {number} at length" if k % 2 else "",
        negatives=tuple(f"wrong {n} for {k} of {number}" for n in range(negatives if k == 1 else 0)),
      )
      for k in range(number % 7)
    ),
  )


def write_shards(folder, examples: list[Record | bytes], shards: int = 1, split: str = "train") -> list[str]:
  """Writes records, or the bytes given instead of one, and returns the shards' paths."""
  os.makedirs(folder, exist_ok=True)
  paths = []
  for shard in range(shards):
    paths.append(records.shard_path(str(folder), "toy", split, shard, shards))
    writer = ArrayRecordWriter(paths[-1], "group_size:1")
    for example in examples[len(examples) * shard // shards : len(examples) * (shard + 1) // shards]:
      writer.write(example if isinstance(example, bytes) else records.encode(example))
    writer.close()
  return paths


RECORDS = [toy_record(number) for number in range(COUNT)]


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> str:
  folder = tmp_path_factory.mktemp("toy")
  write_shards(folder, RECORDS, shards=3)
  return str(folder)


def make_loader(path: str, batch_size: int = 8, layout: Layout | None = None, seed: int = 0, **changes) -> Loader:
  places = ("shards", "local_shards", "start")
  where = {key: changes.pop(key) for key in places if key in changes}
  config = DataConfig(path=path, batch_size=batch_size, boxes=BOXES, workers=changes.pop("workers", 0), **changes)
  return Loader(config, layout or Layout(boxes=BOXES), SIZE, seed=seed, **where)


def take(loader: Loader, count: int) -> list[dict[str, np.ndarray]]:
  batches = list(itertools.islice(loader, count))
  loader.close()
  return batches


def assert_same(one: list[dict[str, np.ndarray]], two: list[dict[str, np.ndarray]]):
  assert len(one) == len(two)
  for first, second in zip(one, two, strict=True):
    assert set(first) == set(second)
    for key in first:
      np.testing.assert_array_equal(first[key], second[key], err_msg=key)


def concatenate(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
  """The global batch of its parts, which may have different numbers of rows."""
  rows = max(part["tokens"].shape[1] for part in parts)

  def pad(key, value):
    return np.pad(value, [(0, 0), (0, rows - value.shape[1]), (0, 0)]) if key in TEXT_KEYS else value

  return {key: np.concatenate([pad(key, part[key]) for part in parts]) for key in parts[0]}


TEXT_KEYS = ("tokens", "segment", "position")


def read_ids(batch: dict[str, np.ndarray], shard: int, end: int) -> list[int] | None:
  """The caption that ends there, from its packed row."""
  if end == NONE:
    return None
  row, column = divmod(int(end), batch["tokens"].shape[-1])
  mine = batch["segment"][shard, row] == batch["segment"][shard, row, column]
  return batch["tokens"][shard, row][mine].tolist()


def examples(batch: dict[str, np.ndarray]):
  """Each image of a batch: its record's number, and its captions read back from the rows."""
  shards, images, boxes = batch["region_end"].shape
  for g, b in itertools.product(range(shards), range(images)):
    hard = {}
    for slot, box in enumerate(batch["hard_box"][g]):
      if box != NONE and box // boxes == b:
        texts = [read_ids(batch, g, end) for end in batch["hard_end"][g, slot]]
        hard[int(box) % boxes] = [ids for ids in texts if ids is not None]
    yield {
      "record": int(batch["record"][g, b]),
      "image": batch["image"][g, b],
      "boxes": batch["boxes"][g, b, : batch["box_count"][g, b]],
      "short": read_ids(batch, g, batch["short_end"][g, b]),
      "long": read_ids(batch, g, batch["long_end"][g, b]) if "long_end" in batch else None,
      "regions": [read_ids(batch, g, end) for end in batch["region_end"][g, b] if end != NONE],
      "hard": hard,
    }


# ---- what a batch holds


def test_a_batch_holds_what_its_records_hold(toy):
  tokenizer = Tokenizer()
  seen = {}
  for batch in take(make_loader(toy, region_text="short", shards=2), 4):
    for example in examples(batch):
      record = RECORDS[example["record"]]
      seen[example["record"]] = record
      regions = record.regions[:BOXES]  # boxes beyond K are ignored
      np.testing.assert_array_equal(example["image"], to_square(open_image(record.image), SIZE))
      np.testing.assert_allclose(
        example["boxes"], np.asarray([region.box for region in regions]).reshape(-1, 4), atol=1e-7
      )
      end = tokenizer.encode(record.short).index(tokenizer.end_id)
      assert example["short"] == tokenizer.encode(record.short)[: end + 1]
      # a record without a long caption trains the long path on its short one
      assert example["long"] == tokenizer.encode(record.long or record.short, 248)
      assert example["regions"] == [tokenizer.encode(region.short) for region in regions]
      assert example["hard"] == {
        k: [tokenizer.encode(text) for text in (region.short, *region.negatives)]
        for k, region in enumerate(regions)
        if region.negatives
      }
  assert len(seen) == COUNT, "four batches of eight are more than an epoch"
  assert {len(record.regions) for record in seen.values()} == {0, 1, 2, 3, 4, 5, 6}
  assert any(not record.long for record in seen.values())


def test_a_caption_ends_at_the_first_end_of_text_in_its_text(toy):
  loader = make_loader(toy, batch_size=COUNT, shuffle=False)
  five = list(examples(take(loader, 1)[0]))[5]
  assert Tokenizer().decode(five["short"]) == "five"


def test_layout_without_long_text_and_regions_leaves_them_out(toy):
  loader = make_loader(toy, layout=Layout(boxes=0, long_length=None))
  (batch,) = take(loader, 1)
  assert (batch["long_end"] == NONE).all()
  assert batch["boxes"].shape == (1, 8, 0, 4) and batch["region_end"].shape == (1, 8, 0)
  assert (batch["short_end"] != NONE).all()


@pytest.mark.parametrize("wanted", ["short", "long", "random"])
def test_region_text(toy, wanted):
  tokenizer = Tokenizer()
  kinds = collections.Counter()
  for batch in take(make_loader(toy, region_text=wanted), 9):
    for example in examples(batch):
      for ids, region in zip(example["regions"], RECORDS[example["record"]].regions, strict=False):
        kind = {tuple(tokenizer.encode(region.short)): "short"}
        if region.long:
          kind[tuple(tokenizer.encode(region.long))] = "long"
        kinds[bool(region.long), kind[tuple(ids)]] += 1
  assert kinds[False, "short"] and not kinds[False, "long"]  # where there is no long caption, the short one is taken
  assert bool(kinds[True, "short"]) == (wanted != "long")
  assert bool(kinds[True, "long"]) == (wanted != "short")


def test_short_prefix_goes_before_short_captions_only(toy):
  (batch,) = take(make_loader(toy, short_prefix="a photo of ", region_text="short", shuffle=False), 1)
  decode = Tokenizer().decode
  for example in examples(batch):
    assert decode(example["short"]).startswith("a photo of ")
    assert all(decode(ids).startswith("region ") for ids in example["regions"])
    assert example["record"] == 2 or decode(example["long"]).startswith("picture ")


def test_padded_form_gives_each_caption_a_row(toy):
  (batch,) = take(make_loader(toy, packed=False, layout=Layout(boxes=BOXES, packed=False)), 1)
  assert all(len(set(row[row > 0])) <= 1 for row in batch["segment"][0])
  assert len(list(examples(batch))) == 8


# ---- the order


def test_an_epoch_is_a_permutation_and_epochs_differ(toy):
  loader = make_loader(toy, batch_size=4)
  assert loader.epoch_steps == COUNT / 4
  numbers = np.concatenate([batch["record"].ravel() for batch in take(loader, 3 * COUNT // 4 + 1)])
  epochs = numbers[: 3 * COUNT].reshape(3, COUNT)
  np.testing.assert_array_equal(np.sort(epochs, axis=1), np.tile(np.arange(COUNT), (3, 1)))
  assert len({tuple(epoch) for epoch in epochs} | {tuple(range(COUNT))}) == 4


def test_the_seed_decides_the_order_and_the_choices(toy):
  first = take(make_loader(toy, seed=1), 3)
  assert_same(first, take(make_loader(toy, seed=1), 3))
  other = take(make_loader(toy, seed=2), 3)
  assert not np.array_equal(first[0]["record"], other[0]["record"])


def test_without_shuffle_the_shards_order_is_kept(toy):
  batches = take(make_loader(toy, shuffle=False), 6)
  np.testing.assert_array_equal(
    np.concatenate([batch["record"].ravel() for batch in batches]), np.arange(6 * 8) % COUNT
  )


def test_a_data_set_smaller_than_a_batch_repeats_within_it(toy):
  (batch,) = take(make_loader(toy, batch_size=2 * COUNT), 1)
  assert collections.Counter(batch["record"].ravel().tolist()) == dict.fromkeys(range(COUNT), 2)


@pytest.mark.parametrize("processes", [[(0, 1), (2, 3)], [(0, 2), (1, 3)], [(3,), (1,), (0,), (2,)]], ids=str)
def test_global_batches_are_the_same_for_any_number_of_processes(toy, processes):
  """And whichever data shards each of them feeds: on a torus they need not be neighbours."""
  whole = take(make_loader(toy, shards=4), 4)
  parts = [take(make_loader(toy, shards=4, local_shards=local), 4) for local in processes]
  order = np.argsort(np.concatenate(processes))
  joined = [concatenate(list(group)) for group in zip(*parts, strict=True)]
  assert_same(
    [concatenate([batch]) for batch in whole], [{key: value[order] for key, value in b.items()} for b in joined]
  )


@pytest.mark.parametrize("start", [1, 3, 7])
def test_starting_at_a_step_equals_skipping_to_it(toy, start):
  skipped = take(make_loader(toy), start + 3)[start:]
  assert_same(skipped, take(make_loader(toy, start=start), 3))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_for_any_number_of_workers(toy, workers):
  expected = take(make_loader(toy), 8)[3:]
  loader = make_loader(toy, workers=workers, start=3)
  batches = take(loader, 5)
  assert_same(expected, batches)
  assert loader.waited > 0
  # their memory is their own: what workers share may be gone when the process ends
  assert all(type(value) is np.ndarray for batch in batches for value in batch.values())
  assert not multiprocessing.active_children()


def test_ladder_makes_shapes_static(toy):
  layout = Layout(boxes=BOXES)
  layout = Layout(boxes=BOXES, ladder=budget_ladder(layout, 8))
  batches = take(make_loader(toy, layout=layout), 6)
  assert {batch["tokens"].shape[1] for batch in batches} <= set(layout.ladder)


def test_default_workers(monkeypatch):
  for cores, workers in ((1, 0), (2, 0), (8, 2), (64, 16), (256, 32)):
    monkeypatch.setattr(loader_module.os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False)
    assert loader_module.default_workers() == workers


# ---- damage


def truncated(data: bytes) -> bytes:
  return data[: len(data) // 2]


def test_bad_records_are_counted_reported_and_replaced(tmp_path, capsys):
  damaged: list[Record | bytes] = list(RECORDS)
  damaged[3] = b"no record at all"
  damaged[4] = b""
  damaged[9] = Record(id="9", image=truncated(picture(9)), short="half a picture")
  damaged[20] = Record(id="20", image=b"", short="no picture")
  paths = write_shards(tmp_path, damaged, shards=2)  # 11 and 12 records
  loader = make_loader(str(tmp_path), batch_size=COUNT, shuffle=False, max_bad_share=0.01)
  (batch,) = take(loader, 1)
  numbers = list(range(COUNT))
  numbers[3] = numbers[4] = 5  # the next good ones
  numbers[9], numbers[20] = 10, 21
  np.testing.assert_array_equal(batch["record"].ravel(), numbers)
  np.testing.assert_array_equal(batch["image"][0, 9], batch["image"][0, 10])
  # record 4 is met twice: for itself, and in place of record 3
  assert loader.bad == {"record_unreadable": 3, "image_truncated": 1, "image_empty": 1}
  out = capsys.readouterr().out
  assert f"{paths[0]}, record 3: " in out
  assert f"{paths[0]}, record 9: " in out
  assert f"{paths[1]}, record 9: " in out  # number 20
  assert out.count("\n") == 5


def test_only_the_first_of_a_class_are_printed(tmp_path, capsys):
  write_shards(tmp_path, [b"bad" if number % 2 else RECORDS[number] for number in range(20)])
  loader = make_loader(str(tmp_path), batch_size=20, shuffle=False)
  take(loader, 1)
  assert loader.bad == {"record_unreadable": 10}
  assert capsys.readouterr().out.count("\n") == 3


def test_damaged_bytes_in_a_shard(tmp_path, capsys):
  path = write_shards(tmp_path, RECORDS)[0]
  with open(path, "rb") as file:
    data = bytearray(file.read())
  place = data.index(picture(6)[100:140])  # in the middle of record 6; noise is stored as it is
  data[place : place + 8] = bytes(byte ^ 255 for byte in data[place : place + 8])
  with open(path, "wb") as file:
    file.write(data)
  loader = make_loader(str(tmp_path), batch_size=COUNT, shuffle=False)
  (batch,) = take(loader, 1)
  assert loader.bad == {"record_corrupt": 1}
  assert batch["record"].ravel().tolist() == [*range(6), 7, *range(7, COUNT)]
  out = capsys.readouterr().out
  assert f"{path}, record 6: " in out and "hash mismatch" in out


def test_more_bad_records_than_allowed_stop_the_run(tmp_path):
  write_shards(tmp_path, [RECORDS[0], b"bad", RECORDS[2], RECORDS[3]])
  loader = make_loader(str(tmp_path), batch_size=4, shuffle=False, max_bad_share=0.002)  # 2 of the first 1000
  next(loader), next(loader)
  with pytest.raises(ValueError, match=r"3 of 12 records were bad \(\{'record_unreadable': 3\}\)") as caught:
    next(loader)
  assert "data.max_bad_share" in str(caught.value) and "record 1: " in str(caught.value)
  loader.close()


@pytest.mark.parametrize("share, fails", [(0.0, True), (1.0, False)])
def test_the_ends_of_max_bad_share(tmp_path, share, fails):
  write_shards(tmp_path, [RECORDS[0], b"bad"])
  loader = make_loader(str(tmp_path), batch_size=2, shuffle=False, max_bad_share=share)
  if fails:
    with pytest.raises(ValueError, match="1 of 2 records were bad"):
      next(loader)
  else:
    assert len(take(loader, 4)) == 4


def test_nothing_but_bad_records(tmp_path):
  write_shards(tmp_path, [b"bad"] * 4)
  with pytest.raises(ValueError, match="4 records in a row are bad; the last: .*toy-train.*record"):
    make_loader(str(tmp_path), batch_size=2)  # measuring the row budgets reads records


def test_no_such_data(tmp_path, toy):
  with pytest.raises(FileNotFoundError, match="no data set folder at '.*nowhere'"):
    make_loader(str(tmp_path / "nowhere"))
  with pytest.raises(FileNotFoundError, match=r"no shard of split 'test'.*has the splits \['train'\]"):
    make_loader(toy, split="test")
  with pytest.raises(FileNotFoundError, match="no ArrayRecord shard at all"):
    make_loader(str(tmp_path))


def test_a_missing_shard(tmp_path):
  os.remove(write_shards(tmp_path, RECORDS, shards=3)[1])
  with pytest.raises(ValueError, match=r"shards \[1\] of 3 are missing"):
    make_loader(str(tmp_path))


def test_a_split_without_a_record(tmp_path):
  write_shards(tmp_path, [])
  with pytest.raises(ValueError, match="split 'train' of .* has no record"):
    make_loader(str(tmp_path))


def test_a_truncated_shard_gives_what_it_holds(tmp_path, capsys):
  paths = write_shards(tmp_path, RECORDS, shards=2)  # 11 and 12 records
  whole = make_loader(str(tmp_path), batch_size=COUNT)
  expected = [batch["record"].ravel().tolist() for batch in take(whole, 3)]
  with open(paths[0], "rb+") as file:
    file.truncate(os.path.getsize(paths[0]) // 20)  # most of a file as small as this is its index
  add_splits(str(tmp_path), "toy", {"train": [Shard(11, 0, 0, ""), Shard(12, 0, 0, "")]})
  loader = make_loader(str(tmp_path), batch_size=COUNT, max_bad_share=1.0)
  batches = [batch["record"].ravel().tolist() for batch in take(loader, 3)]
  held = len(DamagedShard(paths[0]))
  assert 0 < held < 11 and f"{held} of its 11 records can be read" in capsys.readouterr().out
  lost = set(range(held, 11))
  assert loader.bad == {"shard_lost": sum(number in lost for batch in expected for number in batch)}
  for found, wanted in zip(batches, expected, strict=True):  # the others stand where they stood
    assert not lost & set(found)
    assert [number for number, place in zip(found, wanted, strict=True) if place not in lost] == [
      number for number in wanted if number not in lost
    ]


@pytest.mark.parametrize("damage", ["emptied", "garbage"])
def test_a_shard_of_which_nothing_is_left(tmp_path, damage, capsys):
  path = write_shards(tmp_path, RECORDS, shards=3)[1]
  with open(path, "rb+") as file:
    file.write(np.random.default_rng(0).bytes(os.path.getsize(path)))
    if damage == "emptied":
      file.truncate(0)
  loader = make_loader(str(tmp_path), batch_size=4)
  assert loader.records == COUNT - 8  # nothing says how many there were
  assert f"damaged shard {path}" in capsys.readouterr().out
  for name in os.listdir(tmp_path):
    os.truncate(tmp_path / name, 0)
  with pytest.raises(ValueError, match=r"has no record that can be read\n(damaged shard .*\n){2}damaged shard"):
    make_loader(str(tmp_path))


def test_any_other_fault_is_an_error_that_says_where(toy, monkeypatch):
  class Odd(Exception):
    def __init__(self, one, two):
      super().__init__(one)

  def fail(*_):
    raise Odd("out of", "order")

  monkeypatch.setattr(loader_module, "to_square", fail)
  with pytest.raises(ValueError, match="record [0-9]+: Odd: out of"):
    next(make_loader(toy))


def test_a_killed_worker_is_an_error(toy):
  loader = make_loader(toy, workers=1, prefetch=1)
  next(loader)
  (worker,) = multiprocessing.active_children()
  os.kill(worker.pid, signal.SIGKILL)
  with pytest.raises(ChildProcessError, match="a data worker process ended unexpectedly .*-9"):
    for _ in range(10):  # what it had made already still comes
      next(loader)
  loader.close()


# ---- settings


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"region_text": "both"}, "data.region_text must be one of"),
    ({"batch_size": 0}, "data.batch_size must be at least 1"),
    ({"boxes": -1}, "data.boxes must be at least 0"),
    ({"threads": 0}, "data.threads must be at least 1"),
    ({"prefetch": 0}, "data.prefetch must be at least 1"),
    ({"workers": -2}, "data.workers must be -1"),
    ({"max_bad_share": 1.5}, "data.max_bad_share must lie in 0..1"),
  ],
)
def test_impossible_settings(changes, message):
  with pytest.raises(ValueError, match=message):
    DataConfig(**changes)


def test_a_batch_that_does_not_divide(toy):
  with pytest.raises(ValueError, match="data.batch_size 8 must divide over 3 data shards"):
    make_loader(toy, shards=3)


def test_workers_load_nothing_but_data():
  code = (
    "import sys, fgclip_jax.main, fgclip_jax.data.loader\n"  # a worker process imports the command and the loader
    "names = [name for name in sys.modules if name.startswith('fgclip_jax.') and name != 'fgclip_jax.main']\n"
    "sys.exit([name for name in names if not name.startswith('fgclip_jax.data')] or None)"
  )
  process = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
  assert process.returncode == 0, process.stderr
