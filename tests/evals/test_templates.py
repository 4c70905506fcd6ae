"""Classes as the mean of their prompts."""

import numpy as np
import pytest

from fgclip_jax.evals import templates


def test_a_class_is_the_mean_of_its_prompts(model, monkeypatch):
  names, prompts = ["tench", "great white shark", "tench"], ("a photo of a {}.", "the {}.", "{}")
  expected = []
  for name in names:
    rows = np.stack([model.encode_text(prompt.format(name))[0] for prompt in prompts])
    expected.append(rows.mean(0) / np.linalg.norm(rows.mean(0)))
  np.testing.assert_allclose(templates.class_embeddings(model, names, prompts), expected, atol=1e-6)
  monkeypatch.setattr(templates, "_TEXTS", 3)  # a class at a time
  found = templates.class_embeddings(model, names, prompts)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  np.testing.assert_array_equal(found[0], found[2])


def test_templates_are_clips():
  assert len(set(templates.OPENAI_80)) == 80 and len(set(templates.OPENAI_7)) == 7
  assert set(templates.OPENAI_7) <= set(templates.OPENAI_80)
  assert all(template.count("{}") == 1 for each in templates.TEMPLATES.values() for template in each)


@pytest.mark.parametrize(
  "names, prompts, message",
  [
    ([], ("{}",), "at least one class"),
    (["a"], (), "at least one class"),
    (["a", " "], ("{}",), "class 1 is empty"),
    (["a"], ("a photo",), "needs one {}"),
    (["very " * 90], ("{}",), "longer than the 77 tokens"),
  ],
)
def test_what_is_no_class_is_refused(model, names, prompts, message):
  with pytest.raises(ValueError, match=message):
    templates.class_embeddings(model, names, prompts)
