"""Writes one shard, and beside it the index by which it is read from object storage."""

import contextlib
import os
import uuid
from collections.abc import Iterable, Iterator

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter

from fgclip_jax.data import dataset_folder
from fgclip_jax.storage import atomic, paths, remote_shard


def write(path: str, records: Iterable[bytes]) -> dataset_folder.Shard:
  """Writes a shard, which is complete from the moment it exists; equal records give equal bytes.

  ArrayRecord writes local files only: what is meant for object storage is written to a temporary folder first.

  Raises:
    OSError: the shard cannot be written, or not be read again.
  """
  if paths.is_remote(path):
    with atomic.scratch() as scratch:
      return _write(os.path.join(scratch, os.path.basename(path)), path, records)
  # a name of its own: a runner may start a task anew while it takes the first try for lost
  temporary = f"{path}.{uuid.uuid4().hex[:8]}.tmp"
  try:
    return _write(temporary, path, records)
  finally:
    paths.remove(temporary)


def count(path: str) -> int:
  """Counts the records of a shard; raises `ValueError` or `OSError` for one that is not whole."""
  if paths.is_remote(path):
    return len(remote_shard.RemoteShard(path))
  try:
    reader = ArrayRecordReader(path)
    held = reader.num_records()
    reader.close()
  except RuntimeError as error:
    raise ValueError(f"{path} is damaged: {error}") from error
  return held


def _write(temporary: str, path: str, records: Iterable[bytes]) -> dataset_folder.Shard:
  count = content = 0
  with _errors_as_os_error(temporary):
    writer = ArrayRecordWriter(temporary, "group_size:1")
  try:
    for data in records:
      with _errors_as_os_error(temporary):
        writer.write(data)
      count += 1
      content += len(data)
  finally:
    with _errors_as_os_error(temporary):
      writer.close()
  with _errors_as_os_error(temporary):
    reader = ArrayRecordReader(temporary)
    held = reader.num_records()
    reader.close()
  if held != count:
    raise OSError(f"{temporary} holds {held} of {count} records: is the disk full?")
  shard = dataset_folder.Shard(count, content, os.path.getsize(temporary), dataset_folder.hash_file(temporary))
  index = remote_shard.index_path(path)
  paths.make_folder(os.path.dirname(index))
  paths.publish(remote_shard.write_index(temporary), index)  # before the shard: a shard that exists has its index
  paths.publish(temporary, path)
  return shard


@contextlib.contextmanager
def _errors_as_os_error(path: str) -> Iterator[None]:
  """What ArrayRecord raises, for a full disk too, is a RuntimeError."""
  try:
    yield
  except RuntimeError as error:
    raise OSError(f"cannot write {path}: {error}") from error
