"""Measures the ranks of a large retrieval: time and memory, and some of them against float64.

  python benchmarks/ranks.py                                   # 100,000 pictures with 500,000 captions
  python benchmarks/ranks.py --images 5000 --captions 25000    # COCO's size: seconds

Embeddings are random; a caption's is its picture's with noise, so that about half of them are found.
"""

import argparse
import pathlib
import resource
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from machine import machine

from fgclip_jax.evals import ranking

NOISE = 0.22  # of a caption, for each of its picture's coordinates of 1 / sqrt(width)
CHECKED = 200  # queries of each way


def main(argv: list[str] | None = None) -> int:
  """The command; returns its exit code, 1 where a rank is wrong."""
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--images", type=int, default=100_000, help="(default: %(default)s)")
  parser.add_argument("--captions", type=int, default=500_000, help="(default: %(default)s)")
  parser.add_argument("--width", type=int, default=512, help="of embeddings (default: %(default)s)")
  options = parser.parse_args(argv)
  rng = np.random.default_rng(0)
  image = unit(rng.standard_normal((options.images, options.width), np.float32))
  owner = np.arange(options.captions) % options.images
  caption = rng.standard_normal((options.captions, options.width), np.float32)
  caption *= NOISE
  for start in range(0, options.captions, ranking.BLOCK):  # in pieces: no third array of this size
    caption[start : start + ranking.BLOCK] += image[owner[start : start + ranking.BLOCK]]
  caption = unit(caption)
  pairs = np.stack([owner, np.arange(options.captions)], axis=1)
  held = (image.nbytes + caption.nbytes) / 2**20
  print(
    f"{machine('jax', 'numpy')}\n{options.images:,} pictures, {options.captions:,} captions, width {options.width}.\n"
  )
  print("| | s | GFLOP/s | R@1, % | checked | wrong |\n| --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
  failed = 0
  for way, queries, gallery, right in (
    ("image to text", image, caption, pairs),
    ("text to image", caption, image, pairs[:, ::-1]),
  ):
    begin = time.perf_counter()
    rank = ranking.search(queries, gallery, right)[0]
    seconds = time.perf_counter() - begin
    rate = 2 * len(queries) * len(gallery) * options.width / seconds / 1e9
    asked = rng.choice(len(queries), min(CHECKED, len(queries)), replace=False)
    wrong = sum(not low <= rank[query] <= high for query, low, high in bounds(queries, gallery, right, asked))
    failed += wrong
    print(
      f"| {way} | {seconds:.0f} | {rate:.0f} | {100 * np.mean(rank < 1):.1f} | {len(asked)} | {wrong} |", flush=True
    )
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
  print(f"\nThe embeddings take {held:,.0f} MiB, the process at its peak {peak:,.0f} MiB.")
  return int(failed > 0)


def unit(rows: np.ndarray) -> np.ndarray:
  """Rows of unit length, in place."""
  for start in range(0, len(rows), ranking.BLOCK):
    part = rows[start : start + ranking.BLOCK]
    part /= np.linalg.norm(part, axis=1, keepdims=True)
  return rows


def bounds(queries, gallery, pairs, asked):
  """Of some queries the least and the highest rank that float32 may give, as float64 has it."""
  for query in asked:
    answers = pairs[pairs[:, 0] == query, 1]
    scores = np.concatenate(
      [
        gallery[start : start + ranking.BLOCK].astype(np.float64) @ queries[query].astype(np.float64)
        for start in range(0, len(gallery), ranking.BLOCK)
      ]
    )
    best = scores[answers].max()
    scores[answers] = -np.inf
    yield query, int((scores >= best).sum()), int((scores >= best - 2 * ranking.TIE).sum())


if __name__ == "__main__":
  sys.exit(main())
