"""Linear probe: against scikit-learn and an exhaustive sweep; the search; few shots; features; faults."""

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies

from fgclip_jax.evals import LinearProbe, features
from fgclip_jax.evals.datasets import image_folders
from fgclip_jax.evals.features import Features
from fgclip_jax.evals.tasks import linear_probe
from fgclip_jax.inference.programs import Setup
from fgclip_jax.storage.skip_report import SkipReport

pytest.importorskip("sklearn", reason="needs scikit-learn, see requirements-evals.txt")


def clouds(count, seed, classes=3, width=12, spread=2.0):
  """Features around a random point for each class, which overlap."""
  middles = np.random.default_rng(99).normal(size=(classes, width))
  rng = np.random.default_rng(seed)
  labels = np.arange(count) % classes
  values = middles[labels] + spread * rng.normal(size=(count, width))
  return Features(values.astype(np.float32), labels.astype(np.int64), [f"{seed}/{row}" for row in range(count)])


def save(path, data):
  np.savez(path, features=data.values, labels=data.labels)
  return str(path)


@pytest.fixture
def files(tmp_path):
  data = {"train": clouds(60, 0), "validation": clouds(90, 1), "test": clouds(80, 2)}
  return data, {split: save(tmp_path / f"{split}.npz", each) for split, each in data.items()}


def test_against_an_exhaustive_sweep_of_scikit_learn(model, files):
  from sklearn.linear_model import LogisticRegression

  data, paths = files
  result = LinearProbe("npz", paths["train"], paths["test"], paths["validation"]).run(model)
  learn, judge, test = data["train"], data["validation"], data["test"]

  def fitted(decay, on):
    return LogisticRegression(C=1 / decay, max_iter=1000).fit(on.values.astype(np.float64), on.labels)

  right = [fitted(decay, learn).score(judge.values, judge.labels) for decay in linear_probe.DECAYS]
  decay, _ = linear_probe.choose_decay(learn, judge)
  place = int(np.argmin(abs(linear_probe.DECAYS - decay)))
  assert right[place] == pytest.approx(max(right))
  assert min(right) < max(right)
  classifier = fitted(decay, learn.join(judge))
  predicted = classifier.predict(test.values)
  assert result.examples["predicted"] == [str(label) for label in predicted]
  assert result.metrics["top1"].value == pytest.approx(classifier.score(test.values, test.labels))
  per_class = [np.mean(predicted[test.labels == label] == label) for label in range(3)]
  assert result.metrics["mean_per_class"].value == pytest.approx(np.mean(per_class))
  assert result.metrics["top1"].chance == pytest.approx(1 / 3)
  assert result.metrics["top1"].count == 80 and result.metrics["mean_per_class"].count == 3
  assert result.records == 230
  assert any(f"decay {decay:.3g}, chosen on 90 pictures; learnt from 150" in note for note in result.notes)


@dataclasses.dataclass(frozen=True)
class Judged(linear_probe.Fit):
  """A fit of which so many pictures in a hundred are right."""

  right: int = 0

  def score(self, data):
    return np.arange(100) < self.right, np.zeros(100, np.int64)


@hypothesis.given(peak=strategies.integers(0, 96), plateau=strategies.booleans())
def test_the_search_finds_the_peak_or_the_end_of_a_plateau_in_few_fits(peak, plateau):
  tried = []

  def on(data, decay):
    place = int(np.argmin(abs(linear_probe.DECAYS - decay)))
    tried.append(place)
    return Judged(None, 3, True, 100 - (max(place - peak, 0) if plateau else abs(place - peak)))

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(linear_probe.Fit, "on", on)
    decay, fit = linear_probe.choose_decay(clouds(3, 0), clouds(3, 0))
  assert decay == linear_probe.DECAYS[peak] and fit.right == 100
  assert len(tried) == len(set(tried)) <= 15


def test_without_a_validation_split_a_fifth_of_each_class_is_held_out(model, files):
  data, paths = files
  learn, judge = linear_probe._draw(data["train"], None, None, 0)
  assert np.bincount(learn.labels).tolist() == [16] * 3 and np.bincount(judge.labels).tolist() == [4] * 3
  assert sorted([*learn.ids, *judge.ids]) == sorted(data["train"].ids)
  result = LinearProbe("npz", paths["train"], paths["test"]).run(model)
  assert any("chosen on 12 pictures; learnt from 60" in note for note in result.notes)


@pytest.mark.parametrize("with_validation", [False, True])
@pytest.mark.parametrize("shots", [1, 2, 8])
def test_draws_of_few_pictures(files, shots, with_validation):
  data, _ = files
  validation = data["validation"] if with_validation else None
  learn, judge = linear_probe._draw(data["train"], validation, shots, 3)
  assert np.bincount(learn.labels).tolist() == [shots] * 3
  assert np.bincount(judge.labels).tolist() == [min(shots, 4)] * 3
  assert not set(learn.ids) & set(judge.ids)
  again, _ = linear_probe._draw(data["train"], validation, shots, 3)
  other, _ = linear_probe._draw(data["train"], validation, shots, 4)
  assert learn.ids == again.ids != other.ids


def test_few_shots_are_means_over_draws(model, files):
  data, paths = files
  result = LinearProbe("npz", paths["train"], paths["test"], shots=(1, 4), seeds=2).run(model)
  for shots in (1, 4):
    found = []
    for seed in range(2):
      learn, judge = linear_probe._draw(data["train"], None, shots, seed)
      _, fit = linear_probe.choose_decay(learn, judge)
      found.append(np.mean(fit.classifier.predict(data["test"].values) == data["test"].labels))
    assert result.metrics[f"{shots}_shot_top1"].value == pytest.approx(np.mean(found))
  assert len(result.examples["right"]) == 2 * 2 * 80
  assert set(zip(result.examples["shots"], result.examples["seed"], strict=True)) == {(1, 0), (1, 1), (4, 0), (4, 1)}


@pytest.fixture
def folders(tmp_path, draw):
  for split, count in (("train", 5), ("test", 3)):
    for place, name in enumerate(("a_cat", "dog")):
      for number in range(count):
        draw(tmp_path / split / name / f"{number}.png", 100 * place + number + 10 * (split == "test"))
  (tmp_path / "test" / "dog" / "2.png").write_bytes(b"broken")
  return str(tmp_path / "train"), str(tmp_path / "test")


def test_folders(model, folders):
  train, test = folders
  result = LinearProbe("folder", train, test).run(model, progress=True)
  assert result.records == 16 and result.skipped == {"image_unreadable": 1}
  assert result.metrics["top1"].count == 5 and result.metrics["top1"].chance == 0.5
  assert result.examples["class"] == ["a cat"] * 3 + ["dog"] * 2
  assert result.examples["id"][-1].endswith("1.png")
  assert "dog/2.png" in " ".join(result.notes) and "32 features of the tower" in " ".join(result.notes)


def test_features_are_those_before_or_after_the_projection(model, spread_model, folders, monkeypatch):
  data = image_folders.read_folder(folders[0])
  tower = features.extract(model, data, "tower", SkipReport())
  embedding = features.extract(model, data, "embedding", SkipReport())
  kernel = np.asarray(model.params["vision_projection"]["kernel"])
  np.testing.assert_allclose(tower.values @ kernel, embedding.values, atol=1e-5)
  np.testing.assert_allclose(embedding.values, model.encode_image(list(data.pictures), normalize=False), atol=1e-5)
  assert abs(np.linalg.norm(embedding.values, axis=1) - 1).max() > 0.01
  several = features.extract(spread_model, data, "tower", SkipReport())
  np.testing.assert_allclose(several.values, tower.values, atol=1e-5)
  monkeypatch.setattr(Setup, "sizes", (1,))
  single = features.extract(model, data, "tower", SkipReport())
  np.testing.assert_allclose(single.values, tower.values, atol=1e-5)


def test_a_class_that_is_only_tested_is_missed(model, tmp_path):
  train, test = clouds(40, 0, classes=2), clouds(30, 1, classes=3)
  paths = save(tmp_path / "train.npz", train), save(tmp_path / "test.npz", test)
  result = LinearProbe("npz", *paths).run(model)
  missed = [
    right for right, name in zip(result.examples["right"], result.examples["class"], strict=True) if name == "2"
  ]
  assert missed == [False] * 10
  assert result.metrics["top1"].chance == pytest.approx(1 / 2 * 2 / 3)
  assert "1 classes of the test split have no picture to learn from" in " ".join(result.notes)


def test_a_folder_that_only_some_splits_have_is_a_class_of_all(model, folders, tmp_path, draw):
  train, test = folders
  for number, place in enumerate(("test/bird", "test/zebra", "validation/dog", "validation/zebra")):
    for each in range(2):
      draw(tmp_path / place / f"{each}.png", 1000 + 10 * number + each)
  validation = str(tmp_path / "validation")
  result = LinearProbe("folder", train, test, validation).run(model)
  assert result.examples["class"] == ["a cat"] * 3 + ["bird"] * 2 + ["dog"] * 2 + ["zebra"] * 2
  assert not any(result.examples["right"][3:5]) and "bird" not in result.examples["predicted"]
  # the validation split is learnt from, too: its zebras can be found
  assert result.metrics["top1"].chance == pytest.approx(1 / 3 * 7 / 9) and result.metrics["mean_per_class"].count == 4
  assert "1 classes of the test split have no picture to learn from" in " ".join(result.notes)
  few = LinearProbe("folder", train, test, validation, shots=(1,), seeds=1).run(model)
  assert few.metrics["1_shot_top1"].chance == pytest.approx(1 / 2 * 5 / 9)
  assert "2 classes of the test split have no picture to learn from" in " ".join(few.notes)
  assert not any(few.examples["right"][3:5] + few.examples["right"][7:])


@pytest.mark.parametrize("classes", [2, 3])
def test_ties_are_misses(classes):
  data = clouds(60, 0, classes=classes)
  fit = linear_probe.Fit.on(data, 1.0)
  assert fit.score(data)[0].any()
  fit.classifier.coef_[:], fit.classifier.intercept_[:] = 0, 0
  assert not fit.score(data)[0].any()


def test_a_large_decay_makes_no_ties():
  data = clouds(60, 0, spread=0.01)
  small = Features(data.values / 100, data.labels, data.ids)
  assert linear_probe.Fit.on(small, 1e6).score(small)[0].all()


def test_errors(model, files, folders, tmp_path, draw):
  _, paths = files
  with pytest.raises(ValueError, match="dataset must be one of folder, tfds, npz"):
    LinearProbe("files", "a", "b")
  with pytest.raises(ValueError, match="images names the data set of 'tfds'"):
    LinearProbe("tfds", "train", "test")
  with pytest.raises(ValueError, match="shots must be at least 1"):
    LinearProbe("npz", "a", "b", shots=(0,))
  with pytest.raises(ValueError, match="give a validation split"):
    LinearProbe("npz", paths["train"], paths["test"], shots=(20,)).run(model)
  one = save(tmp_path / "one.npz", clouds(10, 0, classes=1))
  with pytest.raises(ValueError, match="two classes at least"):
    LinearProbe("npz", one, one).run(model)
  narrow = save(tmp_path / "narrow.npz", clouds(10, 0, width=4))
  with pytest.raises(ValueError, match="different widths"):
    LinearProbe("npz", paths["train"], narrow).run(model)
  np.savez(tmp_path / "other.npz", features=np.zeros((2, 3)))
  with pytest.raises(ValueError, match="has no array 'labels', only features"):
    features.read_npz(str(tmp_path / "other.npz"))
  (tmp_path / "text.npz").write_text("text")
  with pytest.raises(ValueError, match="text.npz' is no .npz file"):
    features.read_npz(str(tmp_path / "text.npz"))
  np.savez(tmp_path / "nan.npz", features=np.asarray([[1.0], [np.nan]]), labels=np.asarray([0, 1]))
  with pytest.raises(ValueError, match="not finite in row 1"):
    features.read_npz(str(tmp_path / "nan.npz"))
  draw(tmp_path / "more" / "bird" / "0.png", 0)
  with pytest.raises(ValueError, match="more' has no class that .*train' has"):
    LinearProbe("folder", folders[0], str(tmp_path / "more")).run(model)
  for name in ("a_cat", "dog"):
    (tmp_path / "bad" / name).mkdir(parents=True)
    (tmp_path / "bad" / name / "0.png").write_bytes(b"broken")
  with pytest.raises(ValueError, match="no picture can be used: 2 of 2"):
    LinearProbe("folder", str(tmp_path / "bad"), str(tmp_path / "bad")).run(model)
