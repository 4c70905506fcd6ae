"""Collectives, loops and arrays read from compiled programs whose contents are known."""

import collections

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fgclip_jax.plan.hlo import Collective, HloProgram, device_group
from fgclip_jax.train.mesh import make_mesh
from tests.helpers import compiling

MESH_FORMS = [
  ("replica_groups={{0,1},{2,3}}, use_global_device_ids=true", (0, 1)),
  ("replica_groups=[2,4]<=[8], dimensions={0}", (0, 1, 2, 3)),
  ("replica_groups=[4,2]<=[2,4]T(1,0), dimensions={0}", (0, 4)),
  ("replica_groups=mesh['a'=1,'b'=2,'c'=4] {'b'}, use_global", (0, 4)),
  ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}, dimensions={0}", (0, 1, 2, 3)),
  ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", tuple(range(8))),
  ("source_target_pairs={{3,5},{5,3}}", (3, 5)),
  ("replica_groups={}, to_apply=%add", tuple(range(8))),
]


@pytest.mark.parametrize("text, group", MESH_FORMS)
def test_groups_of_devices(text, group):
  assert device_group(f"%x), channel_id=1, {text}", 8) == group


@pytest.mark.parametrize(
  "kind, sent", [("all-gather", 75), ("reduce-scatter", 75), ("all-reduce", 150), ("collective-permute", 100)]
)
def test_bytes_sent_around_a_ring(kind, sent):
  assert Collective(kind, 1, ((100,),), 100, (0, 1, 2, 3), "").sent == sent


def known_program(mesh):
  """Ten steps of a scan, each gathering 4 x 256 x 512 float32 and reducing them; one sum; a permutation."""

  def local(x):
    def body(carry, _):
      whole = jax.lax.all_gather(carry, "fsdp", tiled=True)
      return jax.lax.psum_scatter(jnp.tanh(whole) * 2, "fsdp", tiled=True), None

    x = jax.lax.scan(body, x, None, length=10)[0]
    return x + jax.lax.psum(x, "fsdp") + jax.lax.ppermute(x, "fsdp", [(0, 1), (1, 2), (2, 3), (3, 0)])

  spec = PartitionSpec("fsdp")
  step = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False), donate_argnums=0)
  return step.lower(jax.ShapeDtypeStruct((1024, 512), jnp.float32, sharding=NamedSharding(mesh, spec))).compile()


def check_known(program: HloProgram):
  times, size = collections.Counter(), collections.Counter()
  for collective in program.collectives():
    assert len(collective.group) == (2 if collective.kind == "collective-permute" else 4)
    times[collective.kind] += collective.times
    size[collective.kind] += collective.times * collective.size
  part = 256 * 512 * 4
  assert times == {"all-gather": 10, "reduce-scatter": 10, "all-reduce": 1, "collective-permute": 1}
  assert size == {
    "all-gather": 40 * part, "reduce-scatter": 40 * part, "all-reduce": part, "collective-permute": part
  }  # fmt: skip
  # each turn of the loop: both collectives' arrays in and out, and the whole array twice, but for what stays on chip
  assert 160 * part <= program.traffic() <= 280 * part
  assert (1024, 512) in program.shapes()


def test_known_collectives_on_simulated_devices():
  mesh = make_mesh({"fsdp": 4}, jax.devices()[:4])
  check_known(HloProgram(known_program(mesh).as_text(), 4))


def print_for_tpus():
  print(known_program(make_mesh({"fsdp": 4}, compiling.tpus("v5e:2x2"))).as_text())


@pytest.mark.slow
def test_known_collectives_on_a_tpu():
  check_known(HloProgram(compiling.printed(print_for_tpus), 4))


def test_text_that_is_no_program():
  with pytest.raises(ValueError, match="no ENTRY computation"):
    HloProgram("hello", 1)
