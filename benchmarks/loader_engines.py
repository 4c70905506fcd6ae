"""One engine of `loader.py`, measured in a process of its own: prints what it saw as a line of JSON. Imports no JAX."""

import argparse
import concurrent.futures
import itertools
import json
import multiprocessing
import os
import pathlib
import random
import resource
import sys
import time
from collections.abc import Iterable, Iterator

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

BATCH, SIDE, BOXES = 128, 224, 4
WARM_UP = 2.0  # seconds before the clock starts
PREFIX = "a photo of "


def main() -> int:
  """Runs one engine; returns the exit code."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("engine", choices=ENGINES)
  parser.add_argument("folder", help="what loader_data.generate wrote, or, for `memory`, a data set")
  parser.add_argument("--cores", type=int, required=True)
  parser.add_argument("--workers", type=int, default=0)
  parser.add_argument("--seconds", type=float, default=5)
  parser.add_argument("--mode", default="exact")
  parser.add_argument("--latency", type=float, default=0.0)
  parser.add_argument("--records", type=int, nargs="*", default=[])
  options = parser.parse_args()
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])
  os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the engines' own processes are the parallelism
  print(json.dumps(ENGINES[options.engine](options)))
  return 0


def rate(batches: Iterable, seconds: float) -> dict:
  """Images per second of an endless iterable, from the end of one batch to that of another, and processor time."""
  batches = iter(batches)
  begin = time.perf_counter()
  while time.perf_counter() - begin < WARM_UP:
    next(batches)
  cpu, begin, count = _processor_seconds(), time.perf_counter(), 0
  while time.perf_counter() - begin < seconds:
    next(batches)
    count += BATCH
  return {"rate": count / (time.perf_counter() - begin), "microseconds": 1e6 * (_processor_seconds() - cpu) / count}


# ---- the limit


def decode_alone(options: argparse.Namespace) -> dict:
  """The pictures, already in memory, decoded and resized as the loader does, in a process for each core."""
  context = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(options.cores, context) as pool:
    arguments = (options.folder, options.mode, options.seconds)
    found = [pool.submit(_decode, *arguments) for _ in range(options.cores)]
    rates, microseconds = zip(*[future.result() for future in found], strict=True)
    return {"rate": sum(rates), "microseconds": sum(microseconds) / len(microseconds)}


def _decode(folder: str, mode: str, seconds: float) -> tuple[float, float]:
  from fgclip_jax.data.decode import decode_square

  files = [path.read_bytes() for path in sorted(pathlib.Path(folder, "images").rglob("*.jpg"))]

  def run() -> Iterator[None]:
    for start in itertools.cycle(range(0, len(files), BATCH)):
      part = files[start : start + BATCH]
      for data in part:
        decode_square(data, SIDE, mode)
      yield len(part)

  batches = run()
  begin = time.perf_counter()
  while time.perf_counter() - begin < WARM_UP:
    next(batches)
  cpu, begin, count = time.process_time(), time.perf_counter(), 0
  while time.perf_counter() - begin < seconds:
    count += next(batches)
  return count / (time.perf_counter() - begin), 1e6 * (time.process_time() - cpu) / count


# ---- ours


def ours(options: argparse.Namespace) -> dict:
  """The loader as training uses it, with the settings that it chooses; `--latency`: from a storage so far away."""
  path = os.path.join(options.folder, "ours")
  if options.latency:
    path = far_away(path, options.latency)
  loader = _loader(path, mode=options.mode)
  try:
    return rate(loader, options.seconds) | {"bad": loader.bad}
  finally:
    loader.close()


def _loader(path: str, side: int = SIDE, batch: int = BATCH, mode: str = "exact"):
  from fgclip_jax.data.loader import DataConfig, Loader
  from fgclip_jax.data.packing import Layout

  config = DataConfig(path=path, batch_size=batch, boxes=BOXES, short_prefix=PREFIX, decode=mode)
  return Loader(config, Layout(boxes=BOXES), side, seed=0)


def far_away(folder: str, latency: float) -> str:
  """The URL of a local folder in a stand-in for object storage, where every request takes `latency` seconds."""
  import fsspec
  from fsspec.implementations.local import LocalFileSystem

  class Far(LocalFileSystem):
    """Files under `far://`; what is read is read by one request."""

    protocol = "far"

    @classmethod
    def _strip_protocol(cls, path):
      return super()._strip_protocol(os.fspath(path).removeprefix("far://"))

    def cat_file(self, path, start=None, end=None, **kwargs):
      path = path.removeprefix("far://")
      time.sleep(latency)
      with open(path, "rb") as file:
        file.seek(start or 0)
        return file.read(-1 if end is None else end - (start or 0))

  fsspec.register_implementation("far", Far, clobber=True)
  return f"far://{os.path.abspath(folder)}"


def memory(options: argparse.Namespace) -> dict:
  """Memory resident after so many records, in MiB, of this process and its workers."""
  loader = _loader(options.folder, side=16, batch=1024, mode=options.mode)
  found, seen = {}, 0
  try:
    for wanted in sorted(options.records):
      while seen < wanted:
        next(loader)
        seen += 1024
      found[str(wanted)] = _resident() / 2**20
  finally:
    loader.close()
  return {"resident": found, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10}


def _resident() -> int:
  """Bytes, of this process and those that it started."""
  return sum(int(fields[21]) for fields in _processes()) * os.sysconf("SC_PAGE_SIZE")


def _processor_seconds() -> float:
  """Used so far by this process and those that it started."""
  return sum(int(fields[11]) + int(fields[12]) for fields in _processes()) / os.sysconf("SC_CLK_TCK")


def _processes() -> list[list[str]]:
  """What /proc says of this process and those that it started: the fields of `stat` from the state on."""
  stats = {}
  for entry in pathlib.Path("/proc").iterdir():
    if entry.name.isdigit():
      try:
        stats[int(entry.name)] = (entry / "stat").read_text().rpartition(")")[2].split()
      except OSError:  # it has ended
        continue
  mine = {os.getpid()}
  while more := {pid for pid, fields in stats.items() if int(fields[1]) in mine} - mine:
    mine |= more
  return [stats[pid] for pid in mine]


# ---- PyTorch and WebDataset, with what the published code does to an item


class Item:
  """The published code's treatment of one annotation and its picture."""

  def __init__(self, folder: str):
    from transformers import CLIPImageProcessorPil, CLIPTokenizer

    self.processor = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    self.tokenizer = CLIPTokenizer(os.path.join(folder, "vocab.json"), os.path.join(folder, "merges.txt"))

  def __call__(self, picture, annotation: dict) -> dict:
    import torch

    pixels = self.processor.preprocess(picture.convert("RGB").resize((SIDE, SIDE)), return_tensors="pt")
    boxes, texts, valid, hard = torch.zeros(BOXES, 4), [], [], []
    for index in range(BOXES):
      known = index < len(annotation["bbox_info"])
      region = annotation["bbox_info"][index] if known else {"short_expr": "", "long_expr": ""}
      texts.append(self.tokens([random.choice([region["short_expr"], region["long_expr"]])], 77))
      valid.append(known)
      if known:
        boxes[index] = torch.tensor(region["bbox"][:4])
      if region.get("flag_short_neg") == 1:
        hard.append(self.tokens([region["short_expr"], *region["short_expr_negs"].values()], 77))
    return {
      "pixels": pixels["pixel_values"],
      "long": self.tokens([annotation["caption"]], 248),
      "short": self.tokens([PREFIX + annotation["short_caption"]], 77),
      "boxes": boxes[None],
      "regions": torch.cat(texts),
      "valid": torch.tensor(valid),
      "hard": torch.cat(hard) if hard else torch.zeros(0, 77, dtype=torch.long),
    }

  def tokens(self, texts: list[str], length: int):
    found = self.tokenizer(texts, max_length=length, padding="max_length", truncation=True, return_tensors="pt")
    return found.input_ids


def collate(items: list[dict]) -> dict:
  """A batch of items, one after the other."""
  import torch

  return {key: torch.cat([item[key] for item in items]) for key in items[0]}


class Pictures:
  """The data set as PyTorch's `DataLoader` takes it: all annotations in memory, pictures in files."""

  def __init__(self, folder: str):
    self.images = os.path.join(folder, "images")
    with open(os.path.join(folder, "json", "all.json"), encoding="utf-8") as file:
      self.annotations = json.load(file)
    self.item = Item(folder)

  def __len__(self) -> int:
    return 1 << 40  # so that a pass never ends

  def __getitem__(self, index: int) -> dict:
    from PIL import Image

    annotation = self.annotations[index % len(self.annotations)]
    with Image.open(os.path.join(self.images, annotation["f_path"].removeprefix("grit-20m/data-12m/"))) as picture:
      return self.item(picture, annotation)


def pytorch(options: argparse.Namespace) -> dict:
  """PyTorch's `DataLoader`."""
  import torch

  torch.set_num_threads(options.cores)
  order = range(1 << 40)  # shuffling costs nothing here, and a permutation of so many would not fit
  loader = torch.utils.data.DataLoader(
    Pictures(options.folder), BATCH, sampler=order, num_workers=options.workers, collate_fn=collate
  )
  return rate(loader, options.seconds)


def webdataset(options: argparse.Namespace) -> dict:
  """WebDataset's pipeline and `WebLoader`."""
  import torch
  import webdataset as wds

  torch.set_num_threads(options.cores)
  item = Item(options.folder)
  tars = sorted(map(str, pathlib.Path(options.folder, "tars").glob("*.tar")))
  data = wds.WebDataset(tars, resampled=True, shardshuffle=False).decode("pil").to_tuple("jpg", "json")
  data = data.map(lambda pair: item(*pair))
  loader = wds.WebLoader(data.batched(BATCH, collation_fn=collate), batch_size=None, num_workers=options.workers)
  return rate(loader, options.seconds)


ENGINES = {"decode": decode_alone, "ours": ours, "memory": memory, "pytorch": pytorch, "webdataset": webdataset}

if __name__ == "__main__":
  sys.exit(main())
