"""Checksums: the same wherever an array lies, and another one as soon as a bit changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.train.mesh import make_mesh
from fgclip_jax.weights.checkpoint_files.checksums import check, checksums

DTYPES = (jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8)


def make_tree(seed: int = 0):
  rng = np.random.default_rng(seed)
  return {str(i): jnp.asarray(rng.integers(0, 256, (8, 6)), dtype) for i, dtype in enumerate(DTYPES)} | {
    "deeper": {"one": jnp.float32(rng.normal())}
  }


def test_they_do_not_depend_on_the_mesh():
  tree = make_tree()
  wanted = checksums(tree)
  assert set(wanted) == {"0", "1", "2", "3", "deeper/one"} and len(set(wanted.values())) == 5
  for count in (2, 8):
    mesh = make_mesh({"data": count}, jax.devices()[:count])
    whole, split = (jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes)) for axes in ((), ("data",)))
    assert checksums(jax.device_put(tree, {**dict.fromkeys(tree, split), "deeper": whole})) == wanted


def test_they_are_sums_of_words():
  value = np.array([1.0, -0.0, np.nan, 3e-40], np.float32)
  assert checksums([jnp.asarray(value)]) == {"0": int(value.view(np.uint32).sum(dtype=np.uint32))}


@given(st.sampled_from(["0", "1", "2", "3"]), st.integers(0, 47), st.data())
def test_a_changed_bit_is_seen(name, place, data):
  tree = make_tree()
  stored = checksums(tree)
  array = np.array(tree[name])
  words = array.view(f"u{array.itemsize}").ravel()
  words[place] ^= np.array(1, words.dtype) << data.draw(st.integers(0, 8 * array.itemsize - 1))
  changed = {**tree, name: jnp.asarray(array)}
  check(tree, stored, tree)
  with pytest.raises(OSError, match=f"1 arrays are not what was saved, e.g. {name}:"):
    check(changed, stored, tree)
  check(changed, {key: value for key, value in stored.items() if key != name}, tree)  # saved without


def test_an_array_that_is_read_as_another_dtype_is_not_compared():
  tree = make_tree()
  check({**tree, "0": tree["0"].astype(jnp.bfloat16)}, checksums(tree), tree)
