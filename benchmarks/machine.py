"""What a table was made on."""

import importlib.metadata
import os
import platform


def machine(*packages: str) -> str:
  """Processor, cores that may be used, memory, and the versions of Python and packages."""
  with open("/proc/cpuinfo", encoding="utf-8") as file:
    names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
  memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
  versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
  return (
    f"{names[0] if names else platform.machine()}, {len(os.sched_getaffinity(0))} of {os.cpu_count()} cores, "
    f"{memory:.0f} GiB; Python {platform.python_version()}, {versions}."
  )
