"""Data sets that several test files read."""

import pytest

from tests.data.toy import RECORDS, write_shards


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> str:
  """A folder with the toy records in three shards; not to be written to."""
  folder = tmp_path_factory.mktemp("toy")
  write_shards(folder, RECORDS, shards=3)
  return str(folder)
