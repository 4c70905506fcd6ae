"""Writing shards: the same ones for any number of workers, continued after a kill, never mixed with others."""

import fcntl
import io
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from hypothesis import given as given_values
from hypothesis import settings
from hypothesis import strategies as st
from PIL import Image

from fgclip_jax.data import dataset_folder, record
from fgclip_jax.data.dataset_folder import find_shards, shard_path
from fgclip_jax.data.tokenizers import get_tokenizer
from fgclip_jax.prepare import __main__ as prepare
from fgclip_jax.prepare import job, pipeline, shard_writer
from fgclip_jax.prepare.sources import finehard, image_store
from tests.helpers import standin, trees
from tests.helpers.gemma import write_small


def make_image():
  file = io.BytesIO()
  Image.new("RGB", (12, 8)).save(file, "PNG")
  return file.getvalue()


class Input:
  """A folder with annotations and images, and how to convert it."""

  def __init__(self, folder):
    self.images, self.annotations, self.output = (folder / name for name in ("images", "annotations", "output"))
    self.images.mkdir()
    self.annotations.mkdir()

  def add(self, file, names):
    """Writes an annotation file, and the images it names."""
    records = [
      {"f_path": name, "caption": f"long {name}", "short_caption": f"short {name}", "bbox_info": []} for name in names
    ]
    (self.annotations / file).write_text(json.dumps(records))
    for name in names:
      (self.images / name).write_bytes(make_image())

  def arguments(self, *options, workers=1):
    paths = ["--annotations", self.annotations, "--images", self.images, "--output", self.output]
    return ["finehard", *map(str, paths), "--workers", str(workers), *options]

  def convert(self, *options, workers=1):
    return prepare.main(self.arguments(*options, workers=workers))

  def report(self):
    return json.loads((self.output / "report-train.json").read_text())


@pytest.fixture
def given(tmp_path):
  return Input(tmp_path)


def read(folder, split="train"):
  """The records of each shard of a split."""
  shards = []
  for path in find_shards(str(folder), split):
    reader = ArrayRecordReader(path)
    shards.append([record.decode(data) for data in reader.read_all()] if reader.num_records() else [])
    reader.close()
  return shards


def test_the_result_does_not_depend_on_the_number_of_workers(given, tmp_path):
  for file, count in (("a.json", 7), ("b.json", 0), ("c.json", 1), ("d.json", 12)):
    given.add(file, [f"{file}-{index}.png" for index in range(count)])
  (given.images / "d.json-3.png").unlink()
  assert given.convert("--shards", "4") == 0
  alone, report = read(given.output), given.report()
  assert [len(shard) for shard in alone] == [5, 5, 4, 5]
  given.output = tmp_path / "again"
  assert given.convert("--shards", "4", workers=2) == 0
  assert read(given.output) == alone
  assert given.report() == report


def test_records_are_cut_into_shards_wherever_files_end(monkeypatch, given):
  monkeypatch.setattr(job, "STRIDE", 3)
  for index, count in enumerate((1, 8, 0, 2, 5)):
    given.add(f"{index}.json", [f"{index}-{number}.png" for number in range(count)])
  expected = [f"{index}-{number}.png" for index, count in enumerate((1, 8, 0, 2, 5)) for number in range(count)]
  for shards in (1, 2, 3, 5, 16, 40):
    assert given.convert("--shards", str(shards), "--overwrite", "--skip_image_check") == 0
    found = read(given.output)
    assert len(found) == min(shards, 16)
    assert [item.id for shard in found for item in shard] == expected
    assert max(map(len, found)) - min(map(len, found)) <= 1


def test_a_shard_may_be_empty(given):
  given.add("a.json", [f"{index}.png" for index in range(4)])
  (given.images / "2.png").unlink()
  (given.images / "3.png").unlink()
  assert given.convert("--shards", "2") == 0
  assert [len(shard) for shard in read(given.output)] == [2, 0]


def test_the_same_command_continues(given, capsys):
  given.add("a.json", [f"{index}.png" for index in range(8)])
  assert given.convert("--shards", "4") == 0
  before, report = read(given.output), given.report()
  paths = [pathlib.Path(path) for path in find_shards(str(given.output), "train")]
  paths[1].unlink()
  paths[2].write_bytes(paths[2].read_bytes()[:100])
  kept = [paths[index].stat().st_mtime_ns for index in (0, 3)]
  capsys.readouterr()
  assert given.convert("--shards", "4", workers=2) == 0
  assert "2 of 4 shards are finished already" in capsys.readouterr().out
  assert [paths[index].stat().st_mtime_ns for index in (0, 3)] == kept
  assert read(given.output) == before
  assert given.report() == report
  assert given.convert("--shards", "4") == 0
  assert "4 of 4 shards are finished already" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_midway_the_same_command_continues(given, workers, root):
  given.add("a.json", [f"{index}.png" for index in range(8)])
  program = trees.write_waiting_program(given.images.parent, "5.png")  # in the third of four shards
  command = [sys.executable, program, *given.arguments("--shards", "4", workers=workers)]
  state = given.output / ".prepare" / "train"
  finished = {"00000.json", "00001.json"}
  process = subprocess.Popen(
    command, env=os.environ | {"PYTHONPATH": str(root)}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
  )
  try:
    deadline = time.monotonic() + 60
    while not (state.is_dir() and finished <= set(os.listdir(state))) and process.poll() is None:
      assert time.monotonic() < deadline, "the first shards were not finished in a minute"
      time.sleep(0.05)
    assert process.poll() is None, process.stderr.read()
  finally:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)  # ends when the workers, which hold the pipe's other end, are gone too
  with pytest.raises((ValueError, FileNotFoundError), match="missing|no shard"):
    find_shards(str(given.output), "train")
  first = pathlib.Path(shard_path(str(given.output), "finehard", "train", 0, 4))
  written = first.stat().st_mtime_ns
  assert given.convert("--shards", "4") == 0
  assert first.stat().st_mtime_ns == written
  assert [[item.id for item in shard] for shard in read(given.output)] == [
    [f"{index}.png", f"{index + 1}.png"] for index in (0, 2, 4, 6)
  ]
  assert not list(given.output.glob("*.tmp"))


@pytest.mark.parametrize(
  ("options", "edit", "message"),
  [
    (["--shards", "2"], None, "shards was None, is 2"),
    (["--skip_image_check"], None, "check_images was True, is False"),
    ([], "a.json", "a.json is changed"),
    ([], "b.json", "b.json is new"),
  ],
)
def test_changed_arguments_or_annotations_are_noticed(given, capsys, options, edit, message):
  given.add("a.json", ["0.png", "1.png"])
  assert given.convert() == 0
  if edit:
    given.add(edit, ["2.png"])
  assert given.convert(*options) == 1
  err = capsys.readouterr().err
  assert message in err
  assert "--overwrite" in err
  assert len(read(given.output)[0]) == 2
  assert given.convert(*options, "--overwrite") == 0
  assert sum(map(len, read(given.output))) == {None: 2, "a.json": 1, "b.json": 3}[edit]


def test_splits_share_a_folder_and_another_data_set_does_not(given, capsys):
  given.add("a.json", ["0.png"])
  assert given.convert() == 0
  assert given.convert("--split", "validation") == 0
  assert dataset_folder.read_splits(str(given.output)) == {"train": [1], "validation": [1]}
  assert len(read(given.output, "train")[0]) == len(read(given.output, "validation")[0]) == 1
  assert given.convert("--name", "other", "--split", "test") == 1
  assert "holds the data set 'finehard'" in capsys.readouterr().err


def test_two_processes_do_not_prepare_the_same_split(given, capsys):
  given.add("a.json", ["0.png"])
  (given.output / ".prepare").mkdir(parents=True)
  with open(given.output / ".prepare" / "train.lock", "w") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    assert given.convert() == 1
  assert "another process is preparing split 'train'" in capsys.readouterr().err
  assert given.convert() == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_is_an_error_without_a_traceback(given, capsys):
  given.add("a.json", ["0.png"])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(shard_writer, "ArrayRecordWriter", lambda path, options: ArrayRecordWriter("/dev/full", options))
    assert given.convert() == 1
  err = capsys.readouterr().err
  assert "error: cannot write" in err
  assert "No space left" in err
  assert given.convert() == 0


def read_files(folder):
  """All files of a data set, by their paths in it."""
  files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
  return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize(("url", "workers"), [(standin.remote(""), 1), ("file://", 2)])
def test_an_output_in_object_storage_holds_what_a_local_one_holds(given, tmp_path, url, workers, capsys):
  given.add("a.json", [f"{index}.png" for index in range(5)])
  assert given.convert("--shards", "3") == 0
  local, remote = given.output, tmp_path / "remote"
  given.output = f"{url}{remote}"
  assert given.convert("--shards", "3", workers=workers) == 0
  assert read_files(remote) == read_files(local)
  pathlib.Path(find_shards(str(remote), "train")[1]).unlink()
  capsys.readouterr()
  assert given.convert("--shards", "3", workers=workers) == 0
  assert "2 of 3 shards are finished already" in capsys.readouterr().out
  assert read_files(remote) == read_files(local)
  assert given.convert("--shards", "2") == 1
  assert "shards was 3, is 2" in capsys.readouterr().err
  assert given.convert("--shards", "2", "--overwrite") == 0
  assert [len(shard) for shard in read(remote)] == [2, 3]


class Disorder:
  """An engine that runs tasks in an order of its own."""

  def __init__(self, seed):
    self.random = random.Random(seed)

  def run(self, function, tasks, *, label):
    yield from map(function, self.random.sample(tasks, len(tasks)))


@settings(max_examples=8)
@given_values(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.integers(1, 7), st.integers(0, 99), st.data())
def test_shards_do_not_depend_on_the_order_of_tasks(tmp_path_factory, counts, shards, seed, data):
  given = Input(tmp_path_factory.mktemp("order"))
  names = [f"{file}-{index}.png" for file, count in enumerate(counts) for index in range(count)]
  if not names:
    return
  for file in range(len(counts)):
    given.add(f"{file}.json", [name for name in names if name.startswith(f"{file}-")])
  lost = data.draw(st.sets(st.sampled_from(names), max_size=len(names) - 1))
  for name in lost:
    (given.images / name).unlink()
  files = tuple(str(given.annotations / f"{file}.json") for file in range(len(counts)))
  source = finehard.FineHard(files, image_store.Folder(str(given.images)))
  outputs = []
  for name, engine in (("a", 1), ("b", Disorder(seed))):
    output = given.output / name
    stats = pipeline.write(job.Job(source, str(output), "toy", shards=shards), engine)
    assert (stats.read, stats.records) == (len(names), len(names) - len(lost))
    outputs.append(read_files(output))
  assert outputs[0] == outputs[1]
  assert [item.id for shard in read(given.output / "a") for item in shard] == [n for n in names if n not in lost]


def test_shards_of_unknown_origin_are_not_overwritten(given, capsys):
  given.add("a.json", ["0.png"])
  given.output.mkdir()
  stranger = given.output / "mine-train.array_record-00000-of-00001"
  stranger.write_bytes(b"precious")
  assert given.convert() == 1
  assert "mine-train.array_record-00000-of-00001" in capsys.readouterr().err
  assert stranger.read_bytes() == b"precious"


def test_a_finished_shard_that_is_damaged_is_written_again(given, capsys):
  given.add("a.json", [f"{index}.png" for index in range(6)])
  assert given.convert("--shards", "3") == 0
  before = {path.name: path.read_bytes() for path in given.output.glob("*array_record*")}
  first, second, third = map(pathlib.Path, find_shards(str(given.output), "train"))
  first.write_bytes(bytes(first.stat().st_size))  # as after a power failure
  second.unlink()
  second.symlink_to("/dev/zero")
  state = given.output / ".prepare" / "train"
  (state / "00002.json").write_text('{"records": 2}')
  assert third.exists()
  assert given.convert("--shards", "3") == 0
  assert "finished already" not in capsys.readouterr().out
  assert {path.name: path.read_bytes() for path in given.output.glob("*array_record*")} == before


@pytest.mark.parametrize("plan", [b"", b"[]", b'{"arguments": 3}', b"\xff", b"[" * 100_000])
def test_a_damaged_plan_is_not_continued(given, capsys, plan):
  given.add("a.json", ["0.png"])
  assert given.convert() == 0
  (given.output / ".prepare" / "train" / "plan.json").write_bytes(plan)
  capsys.readouterr()
  assert given.convert() == 1
  assert "cannot be continued" in capsys.readouterr().err
  assert given.convert("--overwrite") == 0


def test_pipes_and_links_without_end_are_counted_as_pictures_that_cannot_be_read(given):
  given.add("a.json", [f"{index}.png" for index in range(4)])
  for index in range(3):
    (given.images / f"{index}.png").unlink()
  os.mkfifo(given.images / "0.png")
  (given.images / "1.png").symlink_to("/dev/zero")
  (given.images / "2.png").symlink_to("2.png")
  assert given.convert() == 0
  report = json.loads((given.output / "report-train.json").read_text())
  assert (report["read"], report["records"]) == (4, 1)
  assert {kind: entry["count"] for kind, entry in report["findings"].items() if entry["loss"] == "record"} == {
    "image_not_file": 3
  }


# ---- tokenizers and languages


def test_splits_of_other_tokenizers_and_languages_are_known_apart(given, tmp_path):
  """A split that says nothing of itself, as earlier versions wrote it, keeps the tokenizer of its folder."""
  given.add("a.json", ["a-0.png", "a-1.png"])
  assert given.convert() == 0
  clip = get_tokenizer().name
  info = dataset_folder.read_info(str(given.output))
  assert info["tokenizer"] == clip and not {"tokenizer", "languages"} & set(info["sources"]["train"])
  small = write_small(tmp_path / "tokenizer.json")
  assert given.convert("--split", "chinese", "--tokenizer", str(tmp_path), "--record_language", "zh") == 0
  gemma = get_tokenizer(f"gemma:{small}")
  assert dataset_folder.read_facts(str(given.output), "train") == (clip, ("en",))
  assert dataset_folder.read_facts(str(given.output), "chinese") == (gemma.name, ("zh",))
  ((one, _),) = read(given.output, "chinese")
  assert one.language == "zh" and list(one.tokens.short) == gemma.encode(one.short)
  ((old, _),) = read(given.output)
  assert old.language == "" and list(old.tokens.short) == get_tokenizer().encode(old.short)
  assert dataset_folder.read_info(str(given.output))["sources"]["chinese"]["languages"] == {"zh": 2}


@pytest.mark.parametrize(
  "options, message",
  [
    (["--tokenizer", "nothing"], "there is no tokenizer 'nothing': choose of"),
    (["--tokenizer", "gemma"], "is read from a model's own tokenizer.json, and there is none"),
    (["--record_language", "Chinese"], "must be the code of a language, such as zh, got 'Chinese'"),
  ],
)
def test_a_tokenizer_or_language_that_is_none_is_refused(given, capsys, options, message):
  given.add("a.json", ["a-0.png"])
  try:
    assert given.convert(*options) == 1
  except SystemExit as end:
    assert end.code == 2
  assert message in "".join(capsys.readouterr())
