"""The loader on data that is damaged."""

import dataclasses
import json
import multiprocessing
import os
import signal

import numpy as np
import pytest

from fgclip_jax.data import record as records
from fgclip_jax.data.dataset_folder import Shard, add_splits
from fgclip_jax.data.loader import Repeats
from fgclip_jax.data.record import Record
from fgclip_jax.data.tokenizers import get_tokenizer
from fgclip_jax.storage.damaged_shard import DamagedShard
from tests.helpers.toy import COUNT, RECORDS, make_loader, picture, take, write_shards


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


@pytest.mark.parametrize(
  "local, repeats, repeated",
  [([0, 1], Repeats.SOME, 1), ([0], Repeats.SOME, 1), ([1], Repeats.UNKNOWN, 0)],
  ids=["both", "first", "second"],
)
def test_a_record_in_place_of_a_bad_one_may_be_there_already(tmp_path, local, repeats, repeated):
  """The first shard's 3 becomes 4, which the second has; the second's 7 becomes 8, which nobody has."""
  write_shards(tmp_path, [b"bad" if number in (3, 7) else RECORDS[number] for number in range(20)])
  order = {0: [0, 1, 2, 3], 1: [4, 5, 6, 7]}
  loader = make_loader(str(tmp_path), batch_size=8, shards=2, local_shards=local, shuffle=False, max_bad_share=1.0)
  batch = next(loader)
  expected = [{3: 4, 7: 8}.get(number, number) for shard in local for number in order[shard]]
  assert batch["record"].ravel().tolist() == expected
  assert (loader.repeats, loader.repeated) == (repeats, repeated)
  next(loader)
  assert loader.repeats == Repeats.NONE  # 8 to 15, all good
  loader.close()


@pytest.mark.parametrize("ids", [(49406, 5, 49408, 49407), (49406, -5, 49407), (49406, 5), (2**40,)])
def test_stored_ids_that_are_none_of_the_tokenizer_are_bad_records(tmp_path, ids, capsys):
  """They would be read as NaN, or end the run."""
  stored: list[Record | bytes] = [
    dataclasses.replace(each, tokens=records.tokenize(each, get_tokenizer("clip"))) for each in RECORDS
  ]
  wrong = dataclasses.replace(stored[2], tokens=dataclasses.replace(stored[2].tokens, short=ids))
  stored[2] = wrong
  path = write_shards(tmp_path, stored)[0]
  (tmp_path / "info.json").write_text(json.dumps({"tokenizer": get_tokenizer("clip").name}))
  loader = make_loader(str(tmp_path), batch_size=COUNT, shuffle=False)
  (batch,) = take(loader, 1)
  assert set(loader.bad) == {"tokens_wrong"}
  assert batch["record"].ravel()[2] == 3 and 0 <= batch["tokens"].min() and batch["tokens"].max() < 49408
  assert f"{path}, record 2: tokens: ids {ids}" in capsys.readouterr().out


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

  monkeypatch.setattr("fgclip_jax.data.examples.decode_square", fail)
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
