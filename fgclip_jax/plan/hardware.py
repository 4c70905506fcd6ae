"""Accelerators by name: descriptions to compile for without the hardware, and the rates that estimates use."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Any

from fgclip_jax.storage.errors import first_line

GIB = 2**30
MOST_DEVICES = 2**17  # more than anybody has; each is described by an object


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device's data. Rates are the vendors' peaks, bytes per second.

  Attributes:
    kind: the beginning of JAX's `device_kind`; `train.flops.PEAKS` has its bfloat16 peak.
    memory: bytes that a program may use.
    memory_rate: of the device's memory.
    near_rate: what a device can send in one collective inside a slice or a host.
    far_rate: what a device can send to another slice or host.
    float32_passes: how much longer a float32 product in full precision takes than one in bfloat16.
    near: what a slice of the fast network is called.
  """

  kind: str
  memory: int
  memory_rate: float
  near_rate: float
  far_rate: float
  float32_passes: int
  near: str = "slice"

  @property
  def peak(self) -> float:
    """bfloat16 operations per second."""
    from fgclip_jax.train.flops import peak_flops  # imports JAX, before which the environment is prepared

    peak = peak_flops(self.kind)
    assert peak is not None, self.kind  # every chip below has one
    return peak


# TPU memory is what XLA allows a program, as it says when it refuses one: less than the chip has (32, 16, 95, 32 GB).
# Memory and network rates: docs.cloud.google.com/tpu/docs (v4, v5e, v5p, v6e) and jax-ml.github.io/scaling-book/tpus,
# read in November 2026. `near_rate` is one axis of the torus, both directions: two links of 45 (v4, v5e) or 90 GB/s.
# A full float32 product is six bfloat16 products on a TPU; on an H100 it leaves the tensor cores (67 of 989 TFLOP/s).
# H100: NVIDIA's data sheets of the SXM5 card (3.35 TB/s, NVLink 450 GB/s a direction) and DGX H100 (400 Gbit/s a GPU).
CHIPS: dict[str, Chip] = {
  "v4": Chip("TPU v4", int(30.75 * GIB), 1.23e12, 9.0e10, 6.25e9, 6),
  "v5e": Chip("TPU v5 lite", int(15.75 * GIB), 8.19e11, 9.0e10, 3.125e9, 6),
  "v5p": Chip("TPU v5", int(95.74 * GIB), 2.765e12, 1.8e11, 6.25e9, 6),
  "v6e": Chip("TPU v6 lite", int(31.25 * GIB), 1.64e12, 1.8e11, 1.25e10, 6),
  "h100": Chip("NVIDIA H100", 80 * 10**9, 3.35e12, 4.5e11, 5.0e10, 15, near="host"),
}

# what XLA asks about a GPU that is not there (an H100 SXM5 80 GB)
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448  shared_memory_per_core: 233472
  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98  l2_cache_size: 52428800
  memory_bandwidth: 3352000000000  device_memory_size: 85520809984
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  registers_per_core_limit: 65536  registers_per_block_limit: 65536  cuda_compute_capability { major: 9 }
}
platform_name: "CUDA"  device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 7 }  runtime_version { major: 13 }
"""


@dataclasses.dataclass(frozen=True)
class Topology:
  """Described devices, which need not be present.

  Attributes:
    name: as given, e.g. `v5e:16x16`.
    chip: what each device is.
    devices: JAX's descriptions of them.
    per_slice: how many are joined by the fast network.
    slices: how many such groups.
  """

  name: str
  chip: Chip
  devices: tuple[Any, ...]
  per_slice: int
  slices: int


def prepare_environment(topology: str) -> None:
  """Prepares the compilers for a machine without accelerator; call it before JAX is imported."""
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # XLA's remarks about memory are in the plan
  if topology.startswith("h100"):
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    # without a GPU nothing can be tried out, and Triton's tiles are chosen by trying
    flags = "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    return
  os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")  # any: it only keeps libtpu from asking the network
  os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # nothing is run: several processes may compile


def describe(name: str, slices: int = 1) -> Topology:
  """The devices of a topology.

  Args:
    name: a chip and its shape: `v5e:16x16`, `v5p:4x4x8`, or for GPUs hosts x GPUs: `h100:32x8`.
    slices: how many slices of it; GPU hosts are slices already.

  Raises:
    ValueError: no such chip or shape.
    ModuleNotFoundError: the compiler for it is not installed.
  """
  chip_name, _, shape = name.partition(":")
  if chip_name not in CHIPS or not re.fullmatch(r"\d+(x\d+){1,2}", shape):
    raise ValueError(
      f"--topology {name!r}: give a chip ({', '.join(CHIPS)}) and its shape, e.g. v5e:16x16, v5p:4x4x8, h100:32x8"
    )
  if slices < 1:
    raise ValueError(f"--slices must be at least 1, got {slices}")
  chip, sizes = CHIPS[chip_name], [int(size[:10]) for size in shape.split("x")]
  if not 1 <= math.prod(sizes) * slices <= MOST_DEVICES:
    raise ValueError(
      f"--topology {name!r}{f' --slices={slices}' if slices > 1 else ''}: give 1 to {MOST_DEVICES} devices"
    )
  from jax.experimental import topologies

  if chip_name == "h100":
    if slices != 1 or len(sizes) != 2:
      raise ValueError(f"--topology {name!r}: GPUs are given as hosts x GPUs, e.g. h100:32x8, without --slices")
    _require("jax_cuda13_plugin", "requirements-plan-gpu.txt")
    found = topologies.get_topology_desc(platform="cuda", topology_name="", topology=f"1x{shape}", target_config=_H100)
    return Topology(name, chip, tuple(found.devices), sizes[1], sizes[0])
  _require("libtpu", "requirements-tpu.txt")
  options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
  if chip_name == "v4":
    options["chip_config_name"] = "megacore"  # a chip's two cores as one device, as they are run
  try:
    found = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
  except Exception as error:  # JAX and libtpu raise several types; the cause is chained
    raise ValueError(f"--topology {name!r} is no shape that {chip_name} comes in: {first_line(error)}") from error
  return Topology(name, chip, tuple(found.devices), math.prod(sizes), slices)


def _require(module: str, requirements: str) -> None:
  if importlib.util.find_spec(module) is None:
    raise ModuleNotFoundError(f"{module} is not installed; it compiles for this: pip install -r {requirements}")
