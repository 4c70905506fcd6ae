"""A run does not go on with another config unawares."""

import pytest

from configs import common
from fgclip_jax.train.resume import ConfigChangedError, check_changes, flat_dict


def config(**changes) -> dict:
  values = common.get_config()
  values.update_from_flattened_dict(changes)
  return values.to_dict()


def test_nothing_changed():
  assert check_changes(config(), config(), "run") == []
  assert check_changes(config(progressive=((0, 112),)), config(progressive=[[0, 112]]), "run") == []  # as JSON has it


@pytest.mark.parametrize(
  "change", [{"log_every": 3}, {"mesh": "fsdp=2"}, {"runtime.remat": "none"}, {"data.workers": 7}]
)
def test_what_changes_no_number_is_told(change):
  (key,) = change
  (line,) = check_changes(config(), config(**change), "run")
  assert line == f"{key} {flat_dict(config())[key]} -> {change[key]}"


@pytest.mark.parametrize(
  "change",
  [
    {"steps": 7},
    {"optimizer.learning_rate": 0.5},
    {"objective.regional": 0.0},
    {"data.path": "elsewhere"},
    {"data.decode": "exact"},
    {"data.crop": "random"},
    {"data.crop_keep": 0.75},
    {"data.captions.set_size": 4},
  ],
)
def test_what_makes_another_run_of_it_must_be_asked_for(change):
  (key,) = change
  with pytest.raises(ConfigChangedError, match=rf"{key} .* -> {change[key]}; .*--config.resume_changed=True"):
    check_changes(config(), config(**change), "run")
  lines = check_changes(config(), config(**change, resume_changed=True), "run")
  assert any(line.startswith(key) for line in lines)


@pytest.mark.parametrize(
  "change",
  [{"model": "vit_l14"}, {"seed": 1}, {"data.batch_size": 8}, {"data.shuffle": False}, {"optimizer.name": "lion"}],
)
def test_what_cannot_be_gone_on_with(change):
  (key,) = change
  for also in ({}, {"resume_changed": True}, {"steps": 9}):
    with pytest.raises(ConfigChangedError, match=rf"{key} .* -> {change[key]}; give another --workdir .*init_from=run"):
      check_changes(config(), config(**change, **also), "run")


def test_another_mixture_must_be_asked_for():
  one, other = (config() for _ in range(2))
  one["data"]["mixture"], other["data"]["mixture"] = (("a", 3.0), ("b", 1.0)), (("a", 2.0), ("b", 1.0))
  assert check_changes(one, one, "run") == []
  with pytest.raises(ConfigChangedError, match=r"data.mixture .*3\.0.* -> .*2\.0.*resume_changed=True"):
    check_changes(one, other, "run")


def test_a_key_that_is_new_is_told():
  before = config()
  del before["in_flight"], before["data"]["shuffle"]
  assert check_changes(before, config(), "run") == ["data.shuffle None -> True", "in_flight None -> 2"]


def test_every_key_is_thought_of():
  """A new key changes the run until somebody says that it does not: so it is refused."""
  before = config()
  with pytest.raises(ConfigChangedError, match="something 1 -> 2"):
    check_changes(before | {"something": 1}, before | {"something": 2}, "run")
