"""What may differ between a run's config and that of the checkpoint it continues from."""

import json
import re
from typing import Any

# keys that change no result beyond rounding, or only what is shown and kept: may always change
SAFE_KEYS = (
  r"mesh|log_every|checkpoint_every|checkpoint\..*|evals|eval_every|image_every|keep\..*|guard\..*|in_flight|profile|loggers|project|run_name|compilation_cache|resume_changed|init_from"
  r"|data\.(workers|threads|prefetch|max_bad_share|repeat_in_batch|patch_row_length)|runtime\.(remat|unroll|attention|micro_batches)"
  r"|objective\.(form|chunk)"
)
# keys that change the run, which can still continue from the same state and position in the data: may change on request
OVERRIDABLE_KEYS = (
  r"steps|optimizer\.(?!name$|moment_dtype$).*|objective\..*|runtime\.dtype|progressive|patch_dropout"
  r"|data\.(path|mixture|tokenizer|decode|crop|crop_area|crop_keep|patch_budget|patch_group|squash_small|captions\..*)"
)


class ConfigChangedError(ValueError):
  """A run would continue with a config that differs from the one it began with."""


def check_changes(before: dict[str, Any], now: dict[str, Any], workdir: str) -> list[str]:
  """Compares a run's config with its checkpoint's; returns a line for each change.

  A key that the earlier config did not have is new in this version, and counts as safe.

  Args:
    before, now: whole configs, as nested dicts.
    workdir: the run's folder, for the message.

  Raises:
    ConfigChangedError: something has changed that may not, or may only with `resume_changed`; the message shows all.
  """
  before, now = (flat_dict(json.loads(json.dumps(values))) for values in (before, now))  # lists for tuples
  changes = {
    key: f"{key} {before.get(key)} -> {now.get(key)}"
    for key in sorted({*before, *now})
    if before.get(key) != now.get(key)
  }
  safe = {key: line for key, line in changes.items() if key not in before or re.fullmatch(SAFE_KEYS, key)}
  overridable = {key: line for key, line in changes.items() if key not in safe and re.fullmatch(OVERRIDABLE_KEYS, key)}
  forbidden = {key: line for key, line in changes.items() if key not in safe and key not in overridable}
  if forbidden:
    raise ConfigChangedError(
      f"{workdir} was begun with another config, and cannot go on with this one: {', '.join(forbidden.values())}; "
      f"give another --workdir (config.init_from={workdir} starts it from these weights), or the config of "
      f"{workdir}/config.json"
    )
  if overridable and not now.get("resume_changed"):
    raise ConfigChangedError(
      f"{workdir} was begun with another config: {', '.join(overridable.values())}; "
      "to go on with this one all the same, add --config.resume_changed=True"
    )
  return list(changes.values())


def flat_dict(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  """{'a': {'b': 1}} -> {'a.b': 1}."""
  flat = {}
  for key, value in values.items():
    flat |= flat_dict(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
  return flat
