"""Where the files of tokenizers are found."""

import pytest

from fgclip_jax.data.tokenizers import files, get_tokenizer
from fgclip_jax.models.config import ModelConfig, preset
from tests.helpers.gemma import write_small


def test_the_first_place_that_has_the_file_is_named(tmp_path):
  model, other = tmp_path / "model", tmp_path / "other"
  for folder in (model, other):
    folder.mkdir()
  path = write_small(model / "tokenizer.json")
  assert files.locate("gemma", "", str(other), str(model)) == f"gemma:{path}"
  assert files.locate("gemma", str(path)) == f"gemma:{path}"
  assert files.locate("gemma", str(other), "not/there") == "gemma"
  assert files.locate("gemma:/a/b.json", str(model)) == "gemma:/a/b.json"
  assert files.locate("clip", str(model)) == "clip"
  weights = model / "model.safetensors"
  weights.write_bytes(b"")
  assert files.locate("gemma", str(weights)) == f"gemma:{path}"  # beside a file of weights


def test_what_a_user_names_is_found(tmp_path):
  path = write_small(tmp_path / "tokenizer.json")
  assert files.locate_any("clip") == "clip" and files.locate_any("gemma:x.json") == "gemma:x.json"
  assert files.locate_any(str(tmp_path)) == files.locate_any(str(path)) == f"gemma:{path}"
  (tmp_path / "spiece.model").write_bytes(b"")
  assert files.locate_any(str(tmp_path)) == f"siglip:{tmp_path / 'spiece.model'}"
  empty = tmp_path / "empty"
  empty.mkdir()
  with pytest.raises(FileNotFoundError, match="no tokenizer.json or spiece.model in"):
    files.locate_any(str(empty))


def test_a_copy_in_a_run_folder_makes_the_same_ids(tmp_path):
  run = tmp_path / "run"
  run.mkdir()
  name = f"gemma:{write_small(tmp_path / 'tokenizer.json')}"
  files.copy(name, str(run))
  copied = files.locate("gemma", str(run))
  assert copied == f"gemma:{run / 'tokenizer.json'}" != name
  assert get_tokenizer(copied).name == get_tokenizer(name).name
  files.copy("clip", str(run))  # it has no file
  assert sorted(path.name for path in run.iterdir()) == ["tokenizer.json"]


def test_a_models_description_does_not_name_the_place_of_its_tokenizer():
  config = preset("fgclip2_b16")
  here = config.replace(text={"tokenizer": "gemma:/here/tokenizer.json"})
  assert here.to_dict() == config.to_dict() and ModelConfig.from_dict(here.to_dict()) == config
