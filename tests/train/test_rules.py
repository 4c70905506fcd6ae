"""Rules by name: which parameters decay, at what rate they learn, and rules that cannot be meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgclip_jax.models.config import preset
from fgclip_jax.models.params import abstract_params, flatten
from fgclip_jax.train.optimizer import OptimizerConfig, check_rules, rate_factor, rule_value


def test_weight_decay_spares_norms_and_biases_alone():
  shapes = abstract_params(preset("tiny"))
  decays = {name: rule_value(OptimizerConfig().rules, "weight_decay", name) for name in flatten(shapes)}
  for name, value in decays.items():
    assert value == (
      not any(part.startswith(("norm", "pre_norm", "post_norm", "final_norm", "bias")) for part in name.split("/"))
    ), name
  for name in ("temperature/global", "vision/class_embedding", "text/long_positions", "short_projection/kernel"):
    assert decays[name]
  for name in ("vision/pre_norm/scale", "text/final_norm/bias", "text/transformer/blocks/attention/out/bias"):
    assert not decays[name]


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "^a/", ""]), st.sampled_from(["x", "y"]), st.floats(0, 1))))
def test_the_first_rule_that_is_found_decides(rules):
  rules = tuple((pattern, {"x": "frozen", "y": "learning_rate"}[key], value) for pattern, key, value in rules)
  for name in ("a/b", "c/a", "b"):
    for setting, default in (("frozen", 0.0), ("learning_rate", 1.0), ("weight_decay", 1.0)):
      matching = [
        value
        for pattern, key, value in rules
        if key == setting and {"a": "a" in name, "b": "b" in name, "^a/": name == "a/b", "": True}[pattern]
      ]
      assert rule_value(rules, setting, name) == (matching[0] if matching else default)


def test_rates_of_a_whole_model_rise_through_both_towers():
  params = abstract_params(preset("tiny"))
  factor = rate_factor(OptimizerConfig(layer_decay=0.5), params)
  below = ("patch_embedding", "class_embedding", "token_embedding", "positions", "pre_norm")
  for name in flatten(params):
    expected = (0.25, 0.5) if "/blocks/" in name else 0.125 if any(part in name for part in below) else 1.0
    assert factor(name) == expected, name


def test_rules_that_cannot_be_meant():
  for rules, message in (
    ((("kernel", "decay", 0.0),), "'decay' is not a setting; there are weight_decay, learning_rate, frozen"),
    ((("kernle", "weight_decay", 0.0),), "'kernle' is in no parameter's name, such as a/kernel"),
    ((("a", "frozen", 1.0),), "freeze every parameter"),
  ):
    with pytest.raises(ValueError, match=f"config.optimizer.rules .*{message}"):
      check_rules(rules, ["a/kernel", "a/bias"])
  check_rules((("kernel", "frozen", 1.0),), ["a/kernel", "a/bias"])
