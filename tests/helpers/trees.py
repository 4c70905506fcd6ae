"""Small trees of images as people have them: folders, tar files and Parquet files as img2dataset writes them."""

import io
import json
import pathlib
import pickle
import tarfile

import pyarrow
import pyarrow.parquet
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from fgclip_jax.storage.errors import RecordError


def make_image(colour="red", size=(12, 8), form="JPEG"):
  """The bytes of a small picture."""
  file = io.BytesIO()
  Image.new("RGB", size, colour).save(file, form)
  return file.getvalue()


def make_sample(key, image=b"image", **fields):
  """What img2dataset knows about one download; `image` None stands for one that failed."""
  failed = {"status": "failed_to_download", "error_message": "HTTP Error 404"}
  side = {"key": key, "url": f"http://a.b/{key}.jpg", "caption": f"short {key}", "status": "success"}
  return {"image": image, "side": side | (failed if image is None else {}) | fields}


def write_tar(path, samples):
  """Writes samples as img2dataset's tar files have them; returns the bytes of the file."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  with tarfile.open(path, "w") as archive:
    for sample in samples:
      side = sample["side"]
      files = {"jpg": sample["image"], "json": json.dumps(side).encode(), "txt": side["caption"].encode()}
      for suffix, data in files.items():
        if data is not None:
          add_member(archive, f"{side['key']}.{suffix}", data)
  return path.read_bytes()


def add_member(archive, name, data):
  """Adds one file to a tar file."""
  member = tarfile.TarInfo(name)
  member.size = len(data)
  archive.addfile(member, io.BytesIO(data))


def write_parquet(path, samples, images=True, rows=2):
  """Writes samples as img2dataset's Parquet files have them, `rows` in a row group; without `images`, its tables."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  table = [{**({"jpg": sample["image"]} if images else {}), **sample["side"]} for sample in samples]
  pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), path, row_group_size=rows)


def write_files(folder, samples):
  """Writes samples as img2dataset's folders have them."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True, exist_ok=True)
  for sample in samples:
    side = sample["side"]
    (folder / f"{side['key']}.json").write_text(json.dumps(side))
    if sample["image"] is not None:
      (folder / f"{side['key']}.jpg").write_bytes(sample["image"])


def write_tfds(folder, split, features, shards):
  """Writes examples, a list for each shard, as TensorFlow Datasets lay a data set `pets` of these features."""
  for number, examples in enumerate(shards):
    path = pathlib.Path(folder) / f"pets-{split}.array_record-{number:05d}-of-{len(shards):05d}"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for example in examples:
      writer.write(features.serialize_example(features.encode_example(example)))
    writer.close()
  template = tfds.core.ShardedFileTemplate(
    data_dir=str(folder),
    template="{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    dataset_name="pets",
    split=split,
    filetype_suffix="array_record",
  )
  lengths = [len(examples) for examples in shards]
  info = tfds.core.SplitInfo(name=split, shard_lengths=lengths, num_bytes=1, filename_template=template)
  tfds.folder_dataset.write_metadata(data_dir=str(folder), features=features, split_infos=[info], check_data=False)


def load_all(source, broken=False):
  """The records of a source and the kinds of what cannot be used, in order; and what was reported.

  What is read is pickled on its way, as on the way to another process. Where files may be `broken`, one that breaks off
  ends with the kind of its fault.
  """
  found, reported = [], []
  for file in source.files:
    try:
      for _, raw in source.scan(file):
        raw = pickle.loads(pickle.dumps(raw))
        try:
          found.append(source.load(raw, lambda scope, error: reported.append((scope, error.kind))))
        except RecordError as error:
          found.append(error.kind)
    except RecordError as error:
      if not broken:
        raise
      found.append(error.kind)
  return found, reported


def write_waiting_program(folder, name):
  """Writes a program that is `prepare`, but waits for ever where it would read the image `name`; returns its path."""
  program = folder / "waiting.py"
  program.write_text(
    "import sys, time\n"
    "from fgclip_jax.prepare import __main__\n"
    "from fgclip_jax.prepare.sources import image_store\n"
    "read = image_store.Folder.read\n"
    "def wait(self, names):\n"
    f"  while any(name.endswith({name!r}) for name in names):\n"
    "    time.sleep(1)\n"
    "  return read(self, names)\n"
    "image_store.Folder.read = wait\n"  # worker processes read this file, too
    "if __name__ == '__main__':\n"
    "  sys.exit(__main__.main())\n"
  )
  return str(program)
