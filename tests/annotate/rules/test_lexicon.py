"""Values of attributes, and which of them exclude each other."""

import pytest

from fgclip_jax.annotate.rules.lexicon import CLASSES, get_lexicon


@pytest.mark.parametrize(
  ("one", "other", "excludes", "agrees"),
  [
    ("red", "blue", True, False),
    ("red", "crimson", False, True),
    ("grey", "gray", False, True),
    ("blue", "light blue", False, True),
    ("dark blue", "light blue", True, True),
    ("navy", "light blue", True, True),
    ("orange-brown", "brown", False, True),
    ("orange-brown", "red", True, False),
    ("multicoloured", "red", False, True),
    ("wooden", "wood", False, True),
    ("oak", "wood", False, True),
    ("oak", "glass", True, False),
    ("polka-dot", "striped", True, False),
    ("small", "huge", True, False),
    ("small", "tiny", False, True),
    ("small", "long", False, False),
    ("red", "wooden", False, False),
    ("transparent", "translucent", True, False),
    ("light", "dark", True, False),
  ],
)
def test_which_values_exclude_each_other(one, other, excludes, agrees):
  lexicon = get_lexicon("en")
  values = [lexicon.value(surface) for surface in (one, other)]
  for first, second in (values, values[::-1]):
    assert lexicon.excludes(first, second) is excludes
    assert lexicon.agrees(first, second) is agrees


@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_class_has_values_and_each_value_is_read_back(language):
  lexicon = get_lexicon(language)
  assert set(lexicon.drawn) == set(CLASSES)
  for attribute, values in lexicon.drawn.items():
    assert len(values) >= 2
    for value in values:
      read = lexicon.value(value.surface)
      assert (read.attribute, read.surface, read.names) == (attribute, value.surface, value.names)
      assert value.weight > 0


def test_chinese_values():
  lexicon = get_lexicon("zh")
  assert lexicon.excludes(lexicon.value("深蓝色"), lexicon.value("浅蓝色"))
  assert not lexicon.excludes(lexicon.value("棕色"), lexicon.value("褐色"))


def test_a_language_without_rules():
  with pytest.raises(ValueError, match="en and zh, not 'de'"):
    get_lexicon("de")
