"""Linear probe and few-shot classification: logistic regression on the features of a frozen model.

The protocol is that of CLIP's paper (https://arxiv.org/abs/2103.00020, appendix A.3): L-BFGS with at most 1,000
iterations; the L2 decay is searched for on a validation split, on 8 steps a decade from 1e-6 to 1e6, by halving the
steps around the best decay of a coarse grid; then the validation split joins the training split.
"""

import argparse
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from fgclip_jax.cli import positive
from fgclip_jax.data.image import Mode
from fgclip_jax.evals import features, guards, options
from fgclip_jax.evals.datasets import image_folders
from fgclip_jax.evals.evaluator import Metric, Result
from fgclip_jax.evals.features import Features
from fgclip_jax.inference.model import FGCLIP
from fgclip_jax.storage.skip_report import SkipReport

SHORT = "linear probe and few-shot classification on frozen features"
TEXT = """Logistic regression on the features of the image tower, its decay chosen on a validation split as in CLIP's
paper, over the whole training split or, with --shots, a few pictures of each class. Needs scikit-learn:
pip install -r requirements-evals.txt"""
EXAMPLE = "folder --model M --train food/train --test food/test --output food.json"

SETS = ("folder", "tfds", "npz")
DECAYS = np.logspace(-6, 6, 97)  # 96 steps, 8 a decade
COARSE = 16  # steps of the first grid: 1e-6, 1e-4, ..., 1e6
ITERATIONS = 1000
HELD_OUT = 0.2  # of a training split, where there is no validation split
FEW_SHOT_HELD_OUT = 4  # validation pictures of a class, at most


def add_options(parser: argparse.ArgumentParser) -> None:
  """Adds the options of the command."""
  parser.add_argument("dataset", choices=SETS, help="the kind of data set")
  parser.add_argument(
    "--train", required=True, metavar="PLACE", help="a folder with a sub-folder for each class, a split, or a .npz file"
  )
  parser.add_argument("--test", required=True, metavar="PLACE", help="the same for testing")
  parser.add_argument(
    "--validation", metavar="PLACE", help="the same for choosing the decay (default: a fifth of the training split)"
  )
  parser.add_argument("--images", metavar="NAME", help="of tfds, the data set's name")
  options.add_data_dir(parser)
  parser.add_argument(
    "--layer",
    choices=features.LAYERS,
    default=features.LAYERS[0],
    help="features before or after the projection (default: %(default)s)",
  )
  parser.add_argument(
    "--shots", type=positive, nargs="+", default=(), metavar="K", help="learn from K pictures of each class: 1 2 4 8 16"
  )
  parser.add_argument(
    "--seeds", type=positive, default=3, metavar="N", help="draws of such pictures (default: %(default)s)"
  )
  options.add_mode(parser)


@dataclasses.dataclass(frozen=True)
class LinearProbe:
  """The evaluator; it needs scikit-learn.

  Few-shot learning takes k random pictures of each class, and `min(k, 4)` others (of the validation split, if there is
  one) to choose the decay with, which do not join the k.

  Attributes:
    dataset: `folder`: folders with a sub-folder for each class; `tfds`: splits of a data set of TensorFlow Datasets;
      `npz`: files of features, see `features.read_npz`, for which the model is not used.
    train, test, validation: a folder, a split or a file each; without `validation`, a fifth of each class of `train` is
      held out.
    images: of `tfds`, the data set's name or folder.
    data_dir: of `tfds`, the folder of named data sets.
    layer: features of the image `tower`, as in CLIP's paper, or the `embedding` after its projection.
    shots: numbers of pictures of a class, e.g. `(1, 2, 4, 8, 16)`; empty: the whole training split.
    seeds: the number of draws of few pictures; results are means over them.
    mode, allow: see `Classification`.
  """

  dataset: str
  train: str
  test: str
  validation: str | None = None
  images: str | None = None
  data_dir: str | None = None
  layer: str = "tower"
  shots: tuple[int, ...] = ()
  seeds: int = 3
  mode: Mode | None = None
  allow: tuple[str, ...] = ()

  def __post_init__(self):
    if self.dataset not in SETS or self.layer not in features.LAYERS:
      raise ValueError(
        f"dataset must be one of {', '.join(SETS)} and layer one of {', '.join(features.LAYERS)}, got "
        f"{self.dataset!r} and {self.layer!r}"
      )
    if (self.images is None) == (self.dataset == "tfds"):
      raise ValueError("images names the data set of 'tfds', which needs it; other data sets do not take it")
    if self.seeds < 1 or any(count < 1 for count in self.shots):
      raise ValueError(f"seeds and shots must be at least 1, got {self.seeds} and {list(self.shots)}")

  @property
  def name(self) -> str:
    return f"probe {self.dataset}"

  def settings(self) -> dict[str, Any]:
    values = dataclasses.asdict(self)
    return values if self.shots else {key: value for key, value in values.items() if key != "seeds"}

  def files(self) -> list[str | tuple[str, str]]:
    return [] if self.dataset == "tfds" else [path for path in (self.train, self.test, self.validation) if path]

  def run(self, model: FGCLIP, progress: bool = False) -> Result:
    """Metrics `top1` and `mean_per_class`; of few-shot learning `K_shot_top1` and `K_shot_mean_per_class`."""
    _need_sklearn()
    notes = [] if self.dataset == "npz" else guards.check_resolution(model, self.allow)
    skips = SkipReport()
    splits, names, records, listed = self._read(model, skips, progress)
    notes += [*listed, skips.summary(records)]
    train, test, validation = splits["train"], splits["test"], splits.get("validation")
    # the validation split joins the training split, except in few-shot learning
    joins = () if self.shots or validation is None else validation.labels
    learnt = np.union1d(train.labels, joins).astype(np.int64)
    unknown = np.setdiff1d(test.labels, learnt)
    if np.isin(test.labels, unknown).all():
      raise ValueError(f"{self.test!r} has no class that {self.train!r} has: are both of the same data set?")
    if len(unknown):
      notes.append(f"{len(unknown)} classes of the test split have no picture to learn from: all of theirs are missed")
    if self.dataset == "npz":
      notes.append("features were read from files: the model was not used")
    else:
      notes.append(f"{train.values.shape[1]} features of the {self.layer} for each picture")
    values: dict[str, Metric] = {}
    examples: dict[str, list] = {key: [] for key in ("shots", "seed", "id", "class", "predicted", "right")}
    for shots in self.shots or (None,):
      draws = [_draw(train, validation, shots, seed) for seed in range(self.seeds if shots else 1)]
      scored = []
      for seed, (learn, judge) in enumerate(draws):
        decay, fit = choose_decay(learn, judge)
        final = fit if shots else Fit.on(learn.join(judge), decay)
        hit, predicted = final.score(test)
        scored.append((_top1(hit), _mean_per_class(hit, test.labels)))
        what = f"{shots} shots, draw {seed}" if shots else "the probe"
        late = "" if final.converged else f"; it had not converged after {ITERATIONS:,} iterations"
        notes.append(
          f"{what}: decay {decay:.3g}, chosen on {len(judge.labels):,} pictures; learnt from "
          f"{final.count:,}; {100 * scored[-1][0]:.2f} % right{late}"
        )
        columns = (test.ids, map(names, test.labels), map(names, predicted), hit.tolist())
        rows = [(shots, seed, *row) for row in zip(*columns, strict=True)]
        for key, column in zip(examples, zip(*rows, strict=True), strict=True):
          examples[key] += column
      prefix, tested = f"{shots}_shot_" if shots else "", np.unique(test.labels)
      top1, mean = np.mean(scored, axis=0).tolist()
      known, share = (float(np.mean(np.isin(labels, learnt))) for labels in (test.labels, tested))
      values[f"{prefix}top1"] = Metric(top1, known / len(learnt), len(test.labels))
      values[f"{prefix}mean_per_class"] = Metric(mean, share / len(learnt), len(tested))
    return Result(values, examples, records, skips.counts, notes)

  def _read(
    self, model: FGCLIP, skips: SkipReport, progress: bool
  ) -> tuple[dict[str, Features], Callable[[int], str], int, list[str]]:
    """The features of each split, the names of classes, the number of pictures that were read, and notes."""
    given = {"train": self.train, "test": self.test, "validation": self.validation}
    given = {split: place for split, place in given.items() if place is not None}
    if self.dataset == "npz":
      splits = {split: features.read_npz(path) for split, path in given.items()}
      widths = {given[split]: each.values.shape[1] for split, each in splits.items()}
      if len(set(widths.values())) > 1:
        raise ValueError(f"files of features of different widths: {widths}")
      return splits, str, sum(len(each.labels) for each in splits.values()), []
    data = self._labelled(given)
    splits = {
      split: features.extract(model, each, self.layer, skips, self.mode, progress) for split, each in data.items()
    }
    class_names = data["train"].names
    notes = [note for each in data.values() for note in each.notes]
    return splits, lambda label: class_names[label], sum(len(each.pictures) for each in data.values()), notes

  def _labelled(self, given: dict[str, str]) -> dict[str, image_folders.Labelled]:
    if self.dataset == "tfds":
      assert self.images is not None  # by __post_init__
      return {split: image_folders.read_tfds(self.images, place, self.data_dir) for split, place in given.items()}
    # classes are numbered over all splits together, so that a class has the same number in each
    names = sorted({name for place in given.values() for name in image_folders.list_classes(place)})
    classes = {name: name.replace("_", " ") for name in names}
    return {split: image_folders.read_folder(place, classes) for split, place in given.items()}


@dataclasses.dataclass(frozen=True)
class Fit:
  """A logistic regression.

  Attributes:
    classifier: scikit-learn's.
    count: the number of pictures it was fitted to.
    converged: whether it converged within `ITERATIONS`.
  """

  classifier: Any
  count: int
  converged: bool

  @classmethod
  def on(cls, data: Features, decay: float) -> "Fit":
    """Fits one: minimises the sum of losses plus half the decay times the sum of squared weights, without biases.

    Raises:
      ValueError: all pictures are of one class.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(data.labels)) < 2:
      raise ValueError("a linear probe needs pictures of two classes at least to learn from")
    classifier = LogisticRegression(C=1 / decay, solver="lbfgs", max_iter=ITERATIONS)
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter("always")
      classifier.fit(data.values.astype(np.float64), data.labels)  # in float32 small decays stop early
    late = [warning for warning in caught if issubclass(warning.category, ConvergenceWarning)]
    for warning in caught:
      if warning not in late:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return cls(classifier, len(data.labels), not late)

  def score(self, data: Features) -> tuple[Bool[np.ndarray, "N"], Int[np.ndarray, "N"]]:
    """Which pictures are right, counting ties as wrong, and the predicted classes."""
    scores = self.classifier.decision_function(data.values.astype(np.float64))
    if scores.ndim == 1:  # of two classes, the second's over the first's
      scores = np.stack([np.zeros_like(scores), scores], axis=1)
    classes = self.classifier.classes_
    predicted = classes[scores.argmax(1)]
    # no margin for ties as between cosines, since a large decay makes all scores small
    tied = (scores == scores.max(1, keepdims=True)).sum(1) > 1
    return (predicted == data.labels) & ~tied, predicted


def choose_decay(learn: Features, judge: Features) -> tuple[float, Fit]:
  """The decay of `DECAYS` that a coarse-to-fine search finds best, of equal ones the largest; and its fit.

  Args:
    learn: the features to fit.
    judge: the features whose share of right pictures decides.
  """
  found: dict[int, tuple[float, Fit]] = {}

  def right(place: int) -> float:
    if place not in found:
      fit = Fit.on(learn, float(DECAYS[place]))
      found[place] = (_top1(fit.score(judge)[0]), fit)
    return found[place][0]

  places, step = list(range(0, len(DECAYS), COARSE)), COARSE
  while True:
    best = max(places, key=lambda place: (right(place), place))
    if step == 1:
      return float(DECAYS[best]), found[best][1]
    step //= 2
    places = [place for place in (best - step, best, best + step) if 0 <= place < len(DECAYS)]


def _draw(train: Features, validation: Features | None, shots: int | None, seed: int) -> tuple[Features, Features]:
  """The features to fit and those to choose the decay with: the whole splits, or a few pictures of each class."""
  rng = np.random.default_rng(seed)
  if shots is None and validation is not None:
    return train, validation
  learn, judge = [], []
  for label in np.unique(train.labels):
    rows = rng.permutation(np.flatnonzero(train.labels == label))
    # the only picture of a class is used to learn
    count = shots or len(rows) - max(round(HELD_OUT * len(rows)), int(len(rows) > 1))
    learn.append(rows[:count])
    judge.append(rows[count : count + min(shots, FEW_SHOT_HELD_OUT)] if shots else rows[count:])
  source = train
  if shots and validation is not None:
    source, few = validation, min(shots, FEW_SHOT_HELD_OUT)
    labels = np.unique(source.labels)
    judge = [rng.permutation(np.flatnonzero(source.labels == label))[:few] for label in labels]
  rows = np.sort(np.concatenate(judge))
  if not len(rows):
    raise ValueError(
      f"no picture is left to choose the decay with{f' beside {shots} of each class' if shots else ''}: give a "
      "validation split (--validation)"
    )
  return train.take(np.sort(np.concatenate(learn))), source.take(rows)


def _top1(hit: Bool[np.ndarray, "N"]) -> float:
  return float(hit.mean())


def _mean_per_class(hit: Bool[np.ndarray, "N"], labels: Int[np.ndarray, "N"]) -> float:
  return float(np.mean([hit[labels == label].mean() for label in np.unique(labels)]))


def _need_sklearn() -> None:
  try:
    import sklearn  # noqa: F401
  except ModuleNotFoundError as error:
    raise ValueError("needs scikit-learn: pip install -r requirements-evals.txt") from error
