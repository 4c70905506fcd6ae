"""Languages: of records, of the steps of a run, and what is read of each."""

import itertools
import json

import numpy as np
import pytest

from fgclip_jax.data import dataset_folder
from fgclip_jax.data.config import DataConfig
from fgclip_jax.data.examples import LoadExample
from fgclip_jax.data.mixture import DataSet, Mixture
from fgclip_jax.data.packing import Layout
from fgclip_jax.data.record import Record, Region
from fgclip_jax.data.tokenizers import get_tokenizer
from tests.helpers.gemma import write_small
from tests.helpers.toy import picture, write_shards


def make_set(folder, count: int, *languages: str, name: str = "") -> str:
  """A data set of so many records, of each language by turns, and what it says of itself."""
  folder = folder / (name or "+".join(languages) or "old")
  region = Region((0.1, 0.1, 0.9, 0.9), "A region", negatives=("A wrong one",))
  codes = itertools.cycle(languages or [""])
  records = [Record(str(i), picture(i), f"Text {i}", "", (region,), language=next(codes)) for i in range(count)]
  write_shards(folder, records)
  if languages:
    facts = {"languages": dict.fromkeys(languages, count // len(languages)), "tokenizer": "another"}
    dataset_folder.write_info(str(folder), {"tokenizer": "yet another", "sources": {"train": facts}})
  return str(folder)


def steps(mixture: Mixture, batch: int, count: int, start: int = 0, shuffle: bool = True) -> list[list[int]]:
  order = mixture.order(3, shuffle)
  return [[int(order[step * batch + place]) for place in range(batch)] for step in range(start, start + count)]


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> list[DataSet]:
  folder = tmp_path_factory.mktemp("sets")
  made = [make_set(folder, 23), make_set(folder, 9, "en"), make_set(folder, 17, "zh")]
  return [DataSet(path, "train", weight) for path, weight in zip(made, (2.0, 1.0, 1.5), strict=True)]


def test_a_data_set_says_what_language_and_tokenizer_it_has(tmp_path, sets):
  found = [dataset_folder.read_facts(entry.path, "train") for entry in sets]
  assert found == [(None, ("en",)), ("another", ("en",)), ("another", ("zh",))]
  assert dataset_folder.read_facts(sets[1].path, "test") == ("yet another", ("en",))
  mixture = Mixture(sets)
  assert mixture.languages == ["en", "en", "zh"] and mixture.tokenizers == [None, "another", "another"]
  dataset_folder.write_info(str(tmp_path), {"sources": {"train": {"languages": ["en"]}}})
  with pytest.raises(ValueError, match=r"info.json is damaged \(languages of split 'train'\)"):
    dataset_folder.read_facts(str(tmp_path), "train")


def test_each_step_is_of_one_language_in_exact_proportion(sets):
  batch, mixture = 8, Mixture(sets, 8)
  found = steps(mixture, batch, 60)
  languages = [{mixture.languages[mixture.which(number)] for number in step} for step in found]
  assert all(len(each) == 1 for each in languages)
  for count in range(1, 61):  # a third of the weights is of Chinese data
    chinese = sum(each == {"zh"} for each in languages[:count])
    assert abs(chinese - count / 3) <= 1
  # the two English sets share their language's steps by their weights, 2 to 1
  english = [number for step, each in zip(found, languages, strict=True) if each == {"en"} for number in step]
  first = sum(mixture.which(number) == 0 for number in english)
  assert abs(first - len(english) * 2 / 3) <= 1
  # each set is passed in whole before any of its records comes again
  for index, size in enumerate(mixture.sizes):
    own = [number for step in found for number in step if mixture.which(number) == index]
    for begin in range(0, len(own) - size, size):
      assert len(set(own[begin : begin + size])) == size
  assert steps(Mixture(sets, 8), batch, 20, start=40) == found[40:]  # the order needs no state


def test_mixed_steps_hold_all_languages(sets):
  mixture = Mixture(sets)
  assert all(min(mixture.count(np.asarray(step))) > 0 for step in steps(mixture, 12, 10))


def test_the_ends_of_passes_are_known_in_steps_of_one_language(sets):
  """By counting what the order gives, step by step."""
  for block in (0, 4):
    mixture, batch = Mixture(sets, block), 4
    taken = [0, 0, 0]
    for step, numbers in enumerate(steps(mixture, batch, 50)):
      before = list(taken)
      for number in numbers:
        taken[mixture.which(number)] += 1
      spans = any(
        old < new and old // size != (new - 1) // size
        for old, new, size in zip(before, taken, mixture.sizes, strict=True)
      )
      assert mixture.spans_epochs(step * batch, (step + 1) * batch) == spans


def test_a_data_set_of_several_languages_cannot_give_steps_of_one(tmp_path):
  path = make_set(tmp_path, 8, "en", "zh")
  sets = DataConfig(path=path).sets()
  assert Mixture(sets).languages == ["en+zh"]
  with pytest.raises(ValueError, match=r"'en\+zh' has records in en and zh, which data.language_steps needs apart"):
    Mixture(sets, 4)


def test_groups_of_the_published_sampler_are_ours_without_shuffling(shared, tmp_path):
  """Ours takes each language's records in the order of the files, as the published one does; the published order of
  the groups is random, and it leaves out each language's last group."""
  file = shared / "oracle_fgclip2" / "loader" / "sampler.json"
  if not file.is_file():
    pytest.skip(f"no recording at {file}")
  recorded = json.loads(file.read_text())
  batch, tags = recorded["batch_size"] * recorded["world_size"], recorded["tags"]
  english = tags.count(1)
  assert tags == [1] * english + [0] * (len(tags) - english)
  sets = [
    DataSet(make_set(tmp_path, english, "en"), "train", float(english)),
    DataSet(make_set(tmp_path, len(tags) - english, "zh"), "train", float(len(tags) - english)),
  ]
  mixture = Mixture(sets, batch)
  ours = {tuple(step) for step in steps(mixture, batch, len(tags) // batch, shuffle=False)}
  published = [tuple(recorded["order"][begin : begin + batch]) for begin in range(0, len(recorded["order"]), batch)]
  assert len(published) == 6 and set(published) <= ours


# ---- what is read of each record


def load(path: str, tokenizer: str = "clip", **changes):
  config = DataConfig(path=path, region_text="short", **changes)
  loader = LoadExample(Mixture(config.sets()), config, Layout(tokenizer=tokenizer), None)
  return [loader.random_map(number, np.random.default_rng(0)).example for number in range(2)]


def test_only_english_captions_get_the_prefix(tmp_path):
  tokenizer = get_tokenizer()
  english, chinese = load(make_set(tmp_path, 2, "en", "zh"), short_prefix="a photo of ")
  assert list(english.short.ids) == tokenizer.encode("a photo of text 0")
  assert list(chinese.short.ids) == tokenizer.encode("text 1")
  (old, _) = load(make_set(tmp_path, 2), short_prefix="a photo of ")
  assert list(old.short.ids) == tokenizer.encode("a photo of text 0")


def test_regions_of_some_languages_can_be_left_out(tmp_path):
  path = make_set(tmp_path, 2, "en", "zh")
  assert [len(example.regions) for example in load(path)] == [1, 1]
  english, chinese = load(path, region_languages=("en",))
  assert len(english.regions) == len(english.boxes) == 1 and english.negatives[0]
  assert len(chinese.regions) == len(chinese.boxes) == len(chinese.negatives) == 0


def test_the_true_caption_beside_negatives_can_keep_its_case(tmp_path):
  small = f"gemma:{write_small(tmp_path / 'tokenizer.json')}"
  path, tokenizer = make_set(tmp_path, 2, "en"), get_tokenizer(small)
  for keeps in (False, True):
    example = load(path, small, hard_positive_as_written=keeps)[0]
    truth, (wrong,) = example.negatives[0]
    assert list(truth.ids) == (tokenizer.as_written() if keeps else tokenizer).encode("A region")
    assert list(wrong.ids) == tokenizer.encode("a wrong one")
    assert list(example.regions[0].ids) == tokenizer.encode("a region")
  with pytest.raises(ValueError, match="hard_positive_as_written: the tokenizer 'clip' reads lower case only"):
    load(path, hard_positive_as_written=True)
