"""Equal ids are counted, whatever the shards and however many are compared at a time."""

import collections

import pytest

from fgclip_jax.prepare import duplicates, ids
from tests.helpers import standin


@pytest.mark.parametrize("at_once", [1, 7, 1 << 22])
@pytest.mark.parametrize("remote", [False, True])
def test_equal_ids_are_counted_over_shards(tmp_path, monkeypatch, at_once, remote):
  monkeypatch.setattr(ids, "_AT_ONCE", at_once)
  names = [f"a/{number % 17}" if number > 9 else f"b/{number}" for number in range(60)]
  files = []
  for shard in range(4):
    file = str(tmp_path / f"{shard}.npy")
    files.append(standin.remote(file) if remote else file)
    found = ids.Ids()
    for index in range(15 * shard, 15 * shard + 15):
      found.add(duplicates.get_number(1, index), names[index])
    found.save(files[-1])
  ids.Ids().save(str(tmp_path / "empty.npy"))
  expected = sum(count - 1 for count in collections.Counter(names).values())
  count, first = ids.find_twice([*files, str(tmp_path / "empty.npy"), str(tmp_path / "missing.npy")])
  assert (count, first) == (expected, (duplicates.get_number(1, 27), duplicates.get_number(1, 10)))
  assert str(ids.describe(first[1], ["x.tar", "y.tar"])) == "id: is that of y.tar, record 10, too; both are kept"
  assert ids.find_twice([]) == (0, None)
