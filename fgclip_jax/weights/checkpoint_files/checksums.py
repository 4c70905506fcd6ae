"""Checksums of a state's arrays, which show that a checkpoint has changed on its disk.

They are sums of integers, which do not depend on their order and are therefore the same on every mesh. The devices
compute them; nothing is gathered.
"""

from typing import Any

import jax
import jax.numpy as jnp

from fgclip_jax.models.params import named_leaves


@jax.jit
def _sums(leaves: list[jax.Array]) -> list[jax.Array]:
  def add(leaf):
    words = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
    return jnp.sum(words.astype(jnp.uint32), dtype=jnp.uint32)

  return [add(leaf) for leaf in leaves]


def checksums(tree: Any) -> dict[str, int]:
  """The sum of each array's bits as unsigned words, modulo 2^32, by its place in the tree.

  Any single changed word changes it. Arrays of 1, 2 or 4 bytes an element.
  """
  names = named_leaves(tree)
  return {name: int(value) for name, value in zip(names, jax.device_get(_sums([*names.values()])), strict=True)}


def check(tree: Any, stored: dict[str, int], dtypes: Any) -> None:
  """Compares arrays that were read with the sums they were stored with.

  Args:
    tree: what was read.
    stored: by name; an array that has none is not compared.
    dtypes: a tree like it, of what is on the disk; an array that was read as another dtype is not compared.

  Raises:
    OSError: some differ.
  """
  before = named_leaves(dtypes)
  same = {
    name: leaf for name, leaf in named_leaves(tree).items() if name in stored and leaf.dtype == before[name].dtype
  }
  found = zip(same, jax.device_get(_sums([*same.values()])), strict=True)
  changed = [name for name, value in found if int(value) != stored[name]]
  if changed:
    raise OSError(
      f"{len(changed)} arrays are not what was saved, e.g. {', '.join(changed[:3])}: the disk has changed them"
    )
