"""The folder of a data set: readable by TensorFlow Datasets without TensorFlow, and checked against its checksums."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from fgclip_jax.data import dataset_folder, record
from fgclip_jax.data.dataset_folder import Shard, find_shards, shard_path
from fgclip_jax.data.mixture import DataSet, Mixture
from fgclip_jax.data.record import Record, Region
from fgclip_jax.data.shards import Records
from fgclip_jax.prepare import __main__ as prepare
from fgclip_jax.prepare import shard_writer
from tests.helpers import standin
from tests.helpers.toy import RECORDS, write_shards

COUNTS = (2, 0, 3)


def make_record(shard, number):
  regions = (Region((0.0, 0.0, 0.5, 1.0), "a dog", "", ("a cat", "a fish")),) * number
  return Record(f"{shard}-{number}", b"\xff\xd8\x00", "a dog, 狗", regions=regions, width=4, height=3)


def write(folder, split="train", counts=COUNTS):
  """Writes a split of made-up records; gives its shards."""
  shards = []
  for shard, count in enumerate(counts):
    path = shard_path(folder, "toy", split, shard, len(counts))
    shards.append(shard_writer.write(path, (record.encode(make_record(shard, number)) for number in range(count))))
  dataset_folder.add_splits(folder, "toy", {split: shards})
  return shards


@pytest.fixture(params=["local", "remote"])
def folder(request, tmp_path):
  return str(tmp_path) if request.param == "local" else standin.remote(tmp_path)


@pytest.mark.slow
def test_tensorflow_datasets_reads_the_folder_without_tensorflow(tmp_path, root):
  folder = tmp_path / "toy" / dataset_folder.VERSION
  folder.mkdir(parents=True)
  write(str(folder))
  program = f"""
import sys
import tensorflow_datasets as tfds
named = tfds.data_source("toy", data_dir={str(tmp_path)!r}, split="train")
found = tfds.builder_from_directory({str(folder)!r}).as_data_source("train")
part = tfds.data_source("toy", data_dir={str(tmp_path)!r}, split="train[1:3]")
assert "tensorflow" not in sys.modules
assert [item["id"] for item in part] == [b"0-1", b"2-0"]
assert [item["id"] for item in named] == [item["id"] for item in found] == [b"0-0", b"0-1", b"2-0", b"2-1", b"2-2"]
last = found[4]
assert last["image"] == b"\\xff\\xd8\\x00" and last["short"].decode() == "a dog, 狗" and last["width"] == 4
assert last["region/box"].tolist() == [[0, 0, 0.5, 1]] * 2
assert last["region/negative_count"].tolist() == [2, 2]
assert last["region/negatives"].tolist() == [[b"a cat", b"a fish"] + [b""] * 8] * 2
"""
  subprocess.run([sys.executable, "-c", program], cwd=root, check=True, timeout=120)
  source = Records(str(folder), "train")
  expected = [make_record(shard, number) for shard, count in enumerate(COUNTS) for number in range(count)]
  assert [record.decode(source[number]) for number in range(len(source))] == expected


def test_splits_are_added_replaced_and_removed(folder):
  first = write(folder, "train")
  write(folder, "validation", (1,))
  dataset_folder.write_info(folder, {"tokenizer": "猫", "sources": {"train": 1, "validation": 2}})
  assert dataset_folder.read_name(folder) == "toy"
  assert dataset_folder.read_splits(folder) == {"train": [2, 0, 3], "validation": [1]}
  sums = dataset_folder.read_checksums(folder)
  assert sums["toy-train.array_record-00002-of-00003"] == {"bytes": first[2].size, "sha256": first[2].sha256}
  assert len(sums) == 4
  dataset_folder.remove_split(folder, "train")
  assert dataset_folder.read_splits(folder) == {"validation": [1]}
  assert dataset_folder.read_info(folder) == {"tokenizer": "猫", "sources": {"validation": 2}}
  with pytest.raises(FileNotFoundError, match=r"it has the splits \['validation'\]"):
    find_shards(folder, "train")
  write(folder, "validation", (4, 4))
  assert dataset_folder.read_splits(folder) == {"validation": [4, 4]}
  assert len(dataset_folder.read_checksums(folder)) == 2
  dataset_folder.remove_split(folder, "validation")
  assert (dataset_folder.read_name(folder), dataset_folder.read_splits(folder)) == (None, {})
  assert dataset_folder.read_checksums(folder) == {}


def test_the_size_of_a_split_is_that_of_its_records(tmp_path):
  dataset_folder.add_splits(str(tmp_path), "toy", {"train": [Shard(2, 30, 99, "a"), Shard(1, 12, 99, "b")]})
  (split,) = json.loads((tmp_path / "dataset_info.json").read_text())["splits"]
  assert split["numBytes"] == "42"
  dataset_folder.add_splits(str(tmp_path), "toy", {"validation": [Shard(1, 7, 99, "c")]})
  splits = json.loads((tmp_path / "dataset_info.json").read_text())["splits"]
  assert [split["numBytes"] for split in splits] == ["42", "7"]


def test_equal_records_give_equal_files_here_and_in_storage(tmp_path):
  (tmp_path / "a").mkdir()
  (tmp_path / "b").mkdir()
  shards = write(str(tmp_path / "a"))
  assert write(standin.remote(tmp_path / "b")) == shards
  files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
  assert len(files) == 9
  assert files == sorted(path.relative_to(tmp_path / "b") for path in (tmp_path / "b").rglob("*") if path.is_file())
  for file in files:
    assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_verify_names_every_shard_that_is_not_as_it_was_written(folder, tmp_path, capsys):
  write(folder, counts=(1, 2, 3, 4))
  assert prepare.main(["verify", folder, "--workers", "1"]) == 0
  assert "All 4 shards" in capsys.readouterr().out
  lost, cut, flipped = (pathlib.Path(shard_path(str(tmp_path), "toy", "train", number, 4)) for number in range(3))
  lost.unlink()
  cut.write_bytes(cut.read_bytes()[:-1])
  data = bytearray(flipped.read_bytes())
  data[len(data) // 2] ^= 1
  flipped.write_bytes(data)
  assert prepare.main(["verify", folder, "--workers", "1"]) == 1
  err = capsys.readouterr().err
  assert "3 of 4 shards are not as they were written" in err
  assert "00000-of-00004 is missing" in err
  assert "00001-of-00004 has" in err
  assert "00002-of-00004 is damaged" in err


def test_verify_names_a_record_that_unpacks_to_more_than_is_read(tmp_path, capsys, monkeypatch):
  write(str(tmp_path), counts=(1,))
  monkeypatch.setattr(dataset_folder, "MAX_BYTES", 5)
  assert prepare.main(["verify", str(tmp_path), "--workers", "1"]) == 1
  assert "has a record that unpacks to" in capsys.readouterr().err


def test_verify_needs_checksums(tmp_path, capsys):
  assert prepare.main(["verify", str(tmp_path)]) == 1
  assert "holds no checksums.json" in capsys.readouterr().err


@pytest.mark.parametrize(
  ("name", "content", "message"),
  [
    ("dataset_info.json", "{", "is damaged"),
    ("dataset_info.json", "[]", "holds no JSON object"),
    ("dataset_info.json", "[" * 100_000, "is damaged"),
    ("dataset_info.json", '{"splits": 3}', "is damaged"),
    ("dataset_info.json", '{"splits": [{"name": "train", "shardLengths": ["9e99"]}]}', "is damaged"),
    ("dataset_info.json", '{"splits": [{"name": "train", "shardLengths": [-1]}]}', "so many records"),
    ("dataset_info.json", '{"splits": [{"name": "train", "shardLengths": [1e30]}]}', "so many records"),
    ("dataset_info.json", '{"splits": [{"shardLengths": [1]}]}', "is damaged"),
    ("dataset_info.json", '{"splits": [{"name": "train", "shardLengths": [1, 2]}]}', "has 1 shards .* knows 2"),
    ("info.json", "null", "holds no JSON object"),
    ("info.json", "\xff", "is damaged"),
  ],
)
def test_descriptions_that_are_damaged(tmp_path, name, content, message):
  write_shards(tmp_path, RECORDS[:3])
  (tmp_path / name).write_text(content, encoding="latin-1")
  with pytest.raises(ValueError, match=f"{name}.*{message}|{message}") as caught:
    Mixture([DataSet(str(tmp_path), "train")])
  assert name in str(caught.value) and "\n" not in str(caught.value) and "run `prepare` again" in str(caught.value)


@pytest.mark.parametrize(
  ("files", "message"),
  [
    (["a.csv"], "a table of captions: `python -m fgclip_jax.prepare pairs` makes"),
    (["x.bin", "00000.tar"], "a WebDataset: `python -m fgclip_jax.prepare webdataset` makes"),
    (["train-00000.parquet"], "prepare pairs`"),
    (["a.JPG"], "pictures: `python -m fgclip_jax.prepare` makes"),
    (["model.json"], "a model or run folder"),
    ([], "no ArrayRecord shard at all$"),
  ],
)
def test_a_folder_of_something_else_is_named_with_what_reads_it(tmp_path, files, message):
  for file in files:
    (tmp_path / file).touch()
  with pytest.raises(FileNotFoundError, match=message):
    find_shards(str(tmp_path), "train")


@pytest.mark.parametrize(
  ("name", "message"),
  [
    ("captions.tsv", "which is a table of captions; make one with `python -m fgclip_jax.prepare pairs`"),
    ("pairs.jsonl.gz", "prepare pairs`"),
    ("data.array_record", "which is a file; make one"),
    ("pipe", "which is neither a file nor a folder; make one"),
    ("nothing", "nothing'; make one with `python -m fgclip_jax.prepare`"),
    ("circle", "circle'; make one"),
  ],
)
def test_what_is_no_folder_is_said(tmp_path, name, message):
  os.mkfifo(tmp_path / "pipe")
  (tmp_path / "circle").symlink_to("circle")
  if name not in ("pipe", "nothing", "circle"):
    (tmp_path / name).touch()
  with pytest.raises(FileNotFoundError, match=message):
    find_shards(str(tmp_path / name), "train")


@pytest.mark.parametrize("lengths", [["999999999999", "0", "3"], [0, 0, 0], [1, 1, 1]])
def test_records_are_counted_in_the_shards_whatever_their_description_says(tmp_path, lengths):
  write(str(tmp_path))
  info = {"name": "toy", "splits": [{"name": "train", "shardLengths": lengths}]}
  (tmp_path / dataset_folder.DATASET_INFO).write_text(json.dumps(info))
  assert len(Records(str(tmp_path), "train")) == sum(COUNTS)


def test_a_lying_count_of_a_damaged_shard_is_not_believed(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (shard,) = write(str(tmp_path), counts=(4,))
  path = pathlib.Path(shard_path(str(tmp_path), "toy", "train", 0, 1))
  path.write_bytes(b"\x5a" * 70_000)
  info = tmp_path / dataset_folder.DATASET_INFO
  info.write_text(json.dumps({"name": "toy", "splits": [{"name": "train", "shardLengths": ["999999999999"]}]}))
  assert shard.records == 4
  assert prepare.main(["inspect", ".", "--workers", "1"]) == 1
  assert "no record that can be read" in capsys.readouterr().err
  info.write_text(json.dumps({"name": "toy", "splits": [{"name": "train", "shardLengths": ["4"]}]}))
  assert prepare.main(["inspect", ".", "--workers", "1"]) == 1
  output = capsys.readouterr()
  assert "none of 4 records of split 'train' can be read" in output.err and "shard_lost" in output.err
  assert "Next:" not in output.out


@pytest.mark.parametrize(
  ("sums", "message"),
  [
    ({"a": 5}, "'a' is not the name of a shard"),
    ({"../../../etc/passwd": {"bytes": 5, "sha256": "x"}}, "is not the name of a shard"),
    ({"/dev/zero": {"bytes": 0, "sha256": "x"}}, "is not the name of a shard"),
    ({"../x-train.array_record-00000-of-00001": {"bytes": 5, "sha256": "x"}}, "is not the name of a shard"),
    ({"x\x1b[2J": {"bytes": 5, "sha256": "x"}}, r"'x\x1b[2J' is not the name"),
    (
      {"toy-train.array_record-00000-of-00003": {"bytes": 10**400, "sha256": "0"}},
      "needs its `bytes` and its `sha256`",
    ),
    ({"toy-train.array_record-00000-of-00003": 5}, "needs its `bytes` and its `sha256`"),
    ({"toy-train.array_record-00000-of-00003": {"bytes": "5", "sha256": 3}}, "needs its `bytes` and its `sha256`"),
    ([1], "is damaged (it holds no JSON object)"),
    ("x", "is damaged"),
  ],
)
def test_edited_checksums_lead_nowhere(tmp_path, capsys, sums, message):
  write(str(tmp_path))
  (tmp_path / dataset_folder.CHECKSUMS).write_text(json.dumps(sums))
  assert prepare.main(["verify", str(tmp_path), "--workers", "1"]) == 1
  error = capsys.readouterr().err
  assert message in error.replace("\\\\", "\\") and error.count("\n") == 1


def test_pipes_and_devices_under_the_names_of_shards_are_named(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write(str(tmp_path))
  first, _, last = (pathlib.Path(shard_path(str(tmp_path), "toy", "train", number, 3)) for number in range(3))
  first.unlink()
  os.mkfifo(first)
  records = Records(str(tmp_path), "train")
  assert (len(records), "is a named pipe" in records.damage[0]) == (sum(COUNTS), True)
  assert prepare.main(["verify", str(tmp_path), "--workers", "1"]) == 1
  assert "00000-of-00003 is no file" in capsys.readouterr().err
  assert prepare.main(["inspect", ".", "--workers", "1"]) == 0
  last.unlink()
  last.symlink_to("/dev/zero")
  assert prepare.main(["inspect", ".", "--workers", "1"]) == 1
  assert "shard_lost" in capsys.readouterr().err


@pytest.mark.parametrize("version", [None, 0, -1, 1.5, "2", True, [2]])
def test_a_version_that_is_none_is_damage(tmp_path, version):
  dataset_folder.write_info(str(tmp_path), {"record_version": version})
  with pytest.raises(ValueError, match="info.json is damaged.*record_version.*run `prepare` again"):
    dataset_folder.check_version(str(tmp_path))


def test_records_that_are_newer_than_this_program_are_refused(tmp_path):
  folder = str(tmp_path)
  assert dataset_folder.check_version(folder) == 1
  open(shard_path(folder, "a", "train", 0, 1), "wb").close()
  dataset_folder.write_info(folder, {"record_version": dataset_folder.RECORD_VERSION})
  assert dataset_folder.check_version(folder) == 2 and find_shards(folder, "train")
  dataset_folder.write_info(folder, {"record_version": 3})
  for read in (dataset_folder.check_version, lambda folder: find_shards(folder, "train")):
    with pytest.raises(ValueError, match="holds records of version 3, this program reads up to 2: update fgclip_jax"):
      read(folder)
