"""Mutations of ArrayRecord shards: whole files of records that hold hostile pictures, texts, boxes, counts and ids."""

import os
import random
import tempfile

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from fgclip_jax.data import example_message
from fuzzing.fuzz_binary import mutate_picture
from fuzzing.fuzz_text import NUMBERS, TEXTS, mutate_bytes

_FLOATS = (0.0, -1.0, 0.5, 1.0, 2.0, 1e-40, 1e38, float("nan"), float("inf"), -float("inf"))
_IDS = (-5, -1, 0, 1, 49405, 49406, 49407, 49408, 2**31, 2**40, 2**63 - 1, -(2**63))
_MANY = (1, 2, 3, 1000, 100_000)


def mutate_shard(rng: random.Random, data: bytes) -> bytes:
  """Changes fields of some records and writes them again, or the bytes of the file."""
  if rng.random() < 0.3:
    return mutate_bytes(rng, data)
  with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "shard")
    with open(path, "wb") as file:
      file.write(data)
    reader = ArrayRecordReader(path)
    records = reader.read_all()
    reader.close()
    place = rng.randrange(len(records))
    records[place] = mutate_record(rng, records[place])
    if rng.random() < 0.1:
      records[place] = bytes(rng.choice((0, 1, 64 << 20)))
    writer = ArrayRecordWriter(path, "group_size:1")
    for record in records:
      writer.write(record)
    writer.close()
    with open(path, "rb") as file:
      return file.read()


def mutate_record(rng: random.Random, data: bytes) -> bytes:
  """Changes fields of a record: their values, types and numbers."""
  if rng.random() < 0.1:
    return mutate_bytes(rng, data)
  example = example_message.make_example()
  example.ParseFromString(data)
  feature = example.features.feature
  for _ in range(rng.choice((1, 1, 2, 4))):
    name = rng.choice((*sorted(feature), "caption/text", "region/caption/text", "region/more_negatives", "\x1b[2J"))
    if rng.random() < 0.1:
      feature.pop(name, None)
      continue
    field = feature[name]
    kind = field.WhichOneof("kind") or "bytes_list"
    if rng.random() < 0.15:
      field.Clear()
      kind = rng.choice(("bytes_list", "int64_list", "float_list"))
    values = getattr(field, kind).value
    if len(values) and rng.random() < 0.5:
      values[rng.randrange(len(values))] = _draw(rng, kind, name, data)
    elif len(values) and rng.random() < 0.5:
      del values[rng.randrange(len(values)) :]
    else:
      values.extend([_draw(rng, kind, name, data)] * rng.choice(_MANY))
  return example.SerializeToString()


def _draw(rng: random.Random, kind: str, name: str, data: bytes) -> bytes | int | float:
  if kind == "float_list":
    return rng.choice(_FLOATS)
  if kind == "int64_list":
    return rng.choice((*_IDS, *(number for number in NUMBERS if isinstance(number, int) and abs(number) < 2**63)))
  if name == "image":
    example = example_message.make_example()
    example.ParseFromString(data)
    pictures = example.features.feature["image"].bytes_list.value
    return mutate_picture(rng, pictures[0]) if pictures else b""
  text = rng.choice((*TEXTS, "a" * (3 << 20), "猫" * 10_000))
  return text.encode(errors="surrogatepass")
