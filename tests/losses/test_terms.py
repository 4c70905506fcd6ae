"""The table of terms: what follows from a line of it, and a term that is added by one."""

import dataclasses
import subprocess
import sys

import pytest

from fgclip_jax.losses.objective import Objective
from fgclip_jax.losses.terms import FINE_GRAINED, LOSS_TERMS, NEEDS, Options
from fgclip_jax.models.fgclip import Embeddings

NEW_TERM = """
import jax.numpy as jnp
from fgclip_jax.losses import terms

def alignment(e, scale, context):
  return jnp.mean(jnp.sum((e.image - e.short) ** 2, axis=-1))

terms.LOSS_TERMS["alignment"] = terms.Term(alignment, 0.25, "global", (), "short_eot", lambda captions: captions)

from configs import common
from fgclip_jax.losses.objective import Objective, objective_terms
from fgclip_jax.models.fgclip import Embeddings

assert common.get_config().objective.alignment == 0.25
e = Embeddings(image=jnp.eye(4), short=jnp.roll(jnp.eye(4), 1, axis=0))
found = objective_terms(e, {"global": jnp.asarray(0.0)}, Objective(global_short=0.0))
assert list(found) == ["total", "alignment"] and found["alignment"] == 2.0 and found["total"] == 0.5, found
"""


def test_a_new_term_is_its_function_and_one_line(root):
  """In a process of its own, as the objective is made from the table when it is imported."""
  subprocess.run([sys.executable, "-c", NEW_TERM], cwd=root, check=True, timeout=300)


def test_the_objective_has_a_weight_for_each_term_and_then_the_options():
  names = [field.name for field in dataclasses.fields(Objective)]
  assert names == [*LOSS_TERMS, *(field.name for field in dataclasses.fields(Options))]
  stage2 = {"global_long": 1.0, "global_short": 1.0, "regional": 0.1, "hard_negative": 0.5}
  others = ("text_intra_modal", "hard_contrast", "hard_rank", "caption_set", "text_conditioned")
  assert Objective().weights == stage2 | dict.fromkeys(others, 0.0)


def test_what_terms_need():
  assert Objective().needs == FINE_GRAINED == {"long", "regions"}
  everything = Objective(caption_set=1.0, text_conditioned=1.0)
  assert everything.needs == set(NEEDS) == FINE_GRAINED | {"captions", "text_pooling"}
  assert Objective(regional=0.0, hard_negative=0.0).needs == {"long"}
  assert not Objective(global_long=0.0, regional=0.0, hard_negative=0.0).needs
  fields = {field.name for field in dataclasses.fields(Embeddings)}
  for term in LOSS_TERMS.values():
    assert set(term.needs) <= set(NEEDS) and {NEEDS[need] for need in term.needs} <= fields


def test_a_plain_clip_lacks_what_some_terms_need():
  assert [name for name, term in LOSS_TERMS.items() if not term.needs_fgclip] == [
    "global_short", "caption_set", "text_conditioned",
  ]  # fmt: skip


def test_how_many_logits_a_term_computes():
  assert LOSS_TERMS["global_short"].count_logits(10, images=10) == 200
  assert LOSS_TERMS["caption_set"].count_logits(30, images=10) == 600


@pytest.mark.parametrize("change", [dataclasses.replace, lambda _, **changes: Objective(**changes)])
def test_the_old_name_of_a_form_is_an_alias_that_prints_one_line(change, capsys):
  objective = change(Objective(), form="rows")
  assert objective == Objective(form="all_gather")
  assert capsys.readouterr().out == "objective.form=rows is now called all_gather\n"
  assert dataclasses.replace(objective, chunk=8).form == "all_gather" and not capsys.readouterr().out
