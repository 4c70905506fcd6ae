"""Data sets of TensorFlow Datasets: encoded images and first captions, without TensorFlow."""

import io
import os
import pathlib
import re

import pytest
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter

from fgclip_jax.data import tfds_reader
from fgclip_jax.data.caption_set import Caption
from fgclip_jax.prepare.sources import tfds as tfds_source
from fgclip_jax.storage.errors import RecordError
from tests.helpers import trees
from tests.helpers.trees import load_all

PICTURE = trees.make_image()


@pytest.fixture
def folder(tmp_path):
  """A data set of two shards, as TensorFlow Datasets lay them."""
  features = tfds.features.FeaturesDict(
    {
      "image": tfds.features.Image(),
      "captions": tfds.features.Sequence({"text": tfds.features.Text()}),
      "extra": {"long": tfds.features.Text()},
    }
  )
  texts = [["one", "two"], ["three"], [], ["four"]]
  examples = [
    {
      "image": io.BytesIO(PICTURE),
      "captions": [{"text": text} for text in captions],
      "extra": {"long": f"long {captions[0]}" if captions else ""},
    }
    for captions in texts
  ]
  trees.write_tfds(tmp_path, "train", features, [examples[:3], examples[3:]])
  return str(tmp_path)


def find(folder, split="train", image="image", caption="captions/text", long=None):
  fields = [field for field in (image, caption, long) if field]
  folder, files = tfds_reader.find_files(folder, None, split, fields)
  return tfds_source.Tfds(files, folder, image, caption, long)


def test_captions_and_encoded_images_are_taken(folder):
  found, reported = load_all(find(folder, long="extra/long"))
  first, second, third, fourth = found
  assert (first.image, first.short, first.long) == (PICTURE, "one", "long one")
  assert first.id == "pets-train.array_record-00000-of-00002/0"
  assert (second.short, third, fourth.short) == ("three", "short_missing", "four")
  assert first.captions == (Caption("one"), Caption("long one", "long"), Caption("two"))
  assert second.captions == fourth.captions == () and reported == []


def test_records_are_read_from_any_one_on(folder):
  source = find(folder)
  assert [offset for offset, _ in source.scan(source.files[0])] == [0, 1, 2]
  ((offset, raw),) = source.scan(source.files[0], 2)
  assert (offset, raw) == (2, (source.files[0], 2))


def test_a_caption_may_be_a_single_text(folder):
  found, reported = load_all(find(folder, caption="extra/long"))
  assert [record if isinstance(record, str) else record.short for record in found] == [
    "long one",
    "long three",
    "short_empty",
    "long four",
  ]
  assert reported == []


def test_what_is_not_there_is_named(folder, tmp_path):
  with pytest.raises(FileNotFoundError, match="no split 'test' in .*; there are train"):
    find(folder, split="test")
  with pytest.raises(ValueError, match="no field 'caption'; there are captions/text, extra/long, image"):
    find(folder, caption="caption")
  with pytest.raises(FileNotFoundError, match="no data set 'no_such_data_set'"):
    find("no_such_data_set")
  path = tmp_path / "dataset_info.json"
  path.write_text(path.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(ValueError, match="tfds build pets --file_format=array_record"):
    find(folder)


def test_damaged_files_and_records_are_named(folder):
  source = find(folder)
  with open(source.files[1], "r+b") as file:
    file.truncate(100)
  with pytest.raises(RecordError, match="no whole ArrayRecord file"):
    list(source.scan(source.files[1]))
  writer = ArrayRecordWriter(source.files[1], "group_size:1")
  writer.write(b"no example")
  writer.close()
  ((_, raw),) = source.scan(source.files[1])
  with pytest.raises(RecordError) as caught:
    source.load(raw, lambda scope, error: None)
  assert caught.value.kind == "record_unreadable"


def test_a_pipe_in_place_of_a_shard_is_named(folder):
  source = find(folder)
  os.remove(source.files[0])
  os.mkfifo(source.files[0])
  with pytest.raises(RecordError, match="is a named pipe"):
    list(source.scan(source.files[0]))


@pytest.mark.parametrize("file", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize(
  "content", ["{", "[]", '{"description": []}', '{"\\u001b[2J": 1}', '{"featuresDict": {"a": 1}}', "1" * 5000]
)
def test_a_damaged_description_is_named(folder, file, content):
  (pathlib.Path(folder) / file).write_text(content)
  with pytest.raises((ValueError, FileNotFoundError), match=re.escape(folder)) as error:
    find(folder)
  assert str(error.value).isprintable()
