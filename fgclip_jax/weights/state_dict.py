"""Finds a model's weights in what a training script has saved: in any container, under any wrapper's prefix.

PyTorch's scripts save a state dict alone, or a dict that holds one under some name beside the optimizer, options and an
average of the weights; and wrappers (DistributedDataParallel, torch.compile, FSDP, Lightning) put their own parts
before or into the names. What is looked for are names that every CLIP has; what stands before them is the prefix.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fgclip_jax.storage.skip_report import printable
from fgclip_jax.weights.pickled import Object, PickledTensor, numpy_array

# Parts of names that wrappers add, also in the middle; no model has such a part.
_WRAPPERS = {
  "module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module", "_fpw_module",
  "_ddp_module", "_ddp",
}  # fmt: skip
# Names that models of OpenAI's and transformers' layouts have, for the image tower and for the text tower.
_IMAGE_NAMES = (
  "visual.conv1.weight", "visual.class_embedding", "visual.positional_embedding", "visual.proj", "visual.ln_pre.weight",
  "visual.attnpool.positional_embedding", "vision_model.embeddings.patch_embedding.weight",
  "vision_model.embeddings.class_embedding",
)  # fmt: skip
_TEXT_NAMES = ("token_embedding.weight", "text_projection.weight", "text_projection", "positional_embedding")
_KNOWN: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)  # by their last part: name, tower
for _tower, _names in (("image", _IMAGE_NAMES), ("text", _TEXT_NAMES)):
  for _name in _names:
    _KNOWN[_name.rpartition(".")[2]].append((_name, _tower))
# How names of these models begin: a tower may have a container of its own.
_STARTS = (
  "visual.", "transformer.", "text.", "token_embedding.", "ln_final.", "vision_model.", "text_model.",
  "visual_projection.", "text_projection", "positional_embedding", "logit_", "text_filip_projection.",
  "longtext_head.", "boxtext_head.", "dense_feature_head.",
  "input_resolution", "context_length", "vocab_size", "attn_mask",
)  # fmt: skip
# Entries that hold no weights to be used, or an average of them, in words between dots, dashes and underscores
_OTHERS = re.compile(
  r"(^|[._-])(ema|swa|avg|averaged?|shadow\w*|polyak|teacher|target|momentum|grads?|optim\w*|exp_avg\w*)([._-]|$)"
)
_MAX_DEPTH = 500


@dataclasses.dataclass(frozen=True)
class Leaf:
  """A tensor of a file: its dotted name from the top, the dotted name of the container that holds it, and the tensor.

  The container of a module's tensors is that of the outermost module.
  """

  name: str
  container: str
  tensor: Any


@dataclasses.dataclass(frozen=True)
class Selection:
  """The weights that were found.

  Attributes:
    tensors: by name, without prefixes.
    prefix: what stood before the names.
    others: the prefixes of other weights of the same model.
    skipped: how many tensors were left out.
    around: the names of all tensors in the same containers, with prefixes.
  """

  tensors: dict[str, Any]
  prefix: str
  others: tuple[str, ...]
  skipped: int
  around: tuple[str, ...]

  def note(self) -> str:
    """One line on what was taken and what was not; empty where all was taken as it is."""
    if not self.prefix and not self.skipped:
      return ""
    parts = [f"takes the weights under {self.prefix!r}" if self.prefix else "takes the weights at the top"]
    if self.others:
      parts.append(f"not those under {', '.join(map(repr, self.others))}")
    if self.skipped:
      parts.append(f"leaves out {self.skipped} other tensors")
    return printable("; ".join(parts))


def leaves(tree: Any) -> tuple[list[Leaf], list[str]]:
  """The tensors of a tree of dicts, lists, modules and other objects, outer ones first; and notes of its entries.

  Raises:
    ValueError: the tree is nested deeper than any model.
  """
  found, seen = [], {id(tree)}
  queue = collections.deque([("", "", 0, tree, False)])
  while queue:
    path, container, depth, node, in_module = queue.popleft()
    if depth > _MAX_DEPTH:
      raise ValueError(f"it is nested more than {_MAX_DEPTH} deep")
    for name, child, is_module in _children(node):
      full = f"{path}{name}"
      inside = container if in_module else path
      if isinstance(child, Object) and (array := numpy_array(child)) is not None:
        child = array
      if isinstance(child, PickledTensor | np.ndarray):
        found.append(Leaf(full, inside, child))
      elif isinstance(child, dict | list | tuple | Object) and id(child) not in seen:
        seen.add(id(child))
        queue.append((f"{full}." if name else path, inside if is_module else f"{full}.", depth + 1, child, is_module))
  return found, [_describe(name, child) for name, child, _ in _children(tree)]


def _children(node: Any) -> Iterator[tuple[str, Any, bool]]:
  """What a node holds: name, child, and whether the child belongs to the same module."""
  if isinstance(node, dict):
    yield from ((_text(name), child, False) for name, child in node.items())
  elif isinstance(node, list | tuple):
    yield from ((str(number), child, False) for number, child in enumerate(node))
  elif isinstance(node, Object):
    state = node.state if isinstance(node.state, dict) else {}
    is_torch = isinstance(state.get("_modules"), dict)
    for part in ("_parameters", "_buffers", "_modules") if is_torch else ():
      if isinstance(state.get(part), dict):
        yield from ((_text(name), child, True) for name, child in state[part].items())
    is_module = is_torch or node.kind.startswith("__torch__")
    if not is_torch:
      yield from ((_text(name), child, is_module) for name, child in state.items())
    yield from ((_text(name), child, False) for name, child in node.entries.items())
    more = [node.state] if isinstance(node.state, list | tuple) else []
    yield from ((str(number), child, False) for number, child in enumerate([*node.args, *node.values, *more]))


def _text(name: Any) -> str:
  return name.kind if isinstance(name, Object) else str(name)


def _describe(name: str, child: Any) -> str:
  kind = child.kind if isinstance(child, Object) else type(child).__name__
  return printable(f"{name} ({'tensor' if isinstance(child, PickledTensor) else kind})")


def select(found: Sequence[Leaf]) -> Selection:
  """The weights of a model among tensors.

  Where several sets fit, a whole model is preferred to a part of one, the weights themselves to an average of them,
  and then what lies nearest to the top. Where none fits, the tensors of the largest container are taken.

  Raises:
    ValueError: two tensors have one name, apart from wrappers' parts.
  """
  names = [_without_wrappers(leaf.name) for leaf in found]
  towers: dict[str, set[str]] = collections.defaultdict(set)  # by prefix: those whose names follow it
  homes: dict[str, set[str]] = collections.defaultdict(set)  # by prefix: the containers of those names
  for leaf, name in zip(found, names, strict=True):
    for known, tower in _KNOWN.get(name.rpartition(".")[2], ()):
      if name == known or name.endswith(f".{known}"):
        # a text tower with names of its own stands behind its model's prefix
        prefix = re.sub(r"(^|(?<=\.))(text|text_model\.embeddings)\.$", "", name.removesuffix(known))
        towers[prefix].add(tower)
        homes[prefix].add(leaf.container)
  whole = [prefix for prefix, those in towers.items() if "image" in those]
  if not whole:
    return _largest(found)

  def rank(prefix):
    return len(towers[prefix]) < 2, bool(_OTHERS.search(prefix.lower())), prefix.count(".")

  first, *others = sorted(whole, key=rank)
  chosen = [
    (leaf, name[len(first) :])
    for leaf, name in zip(found, names, strict=True)
    if name.startswith(first) and _belongs(name[len(first) :], leaf.container in homes[first])
  ]
  others = tuple(each for each in others if towers[each] == towers[first])
  around = tuple(name for leaf, name in zip(found, names, strict=True) if leaf.container in homes[first])
  return Selection(_unique(chosen), first, others, len(found) - len(chosen), around)


def _belongs(name: str, at_home: bool) -> bool:
  """Whether a tensor is a model's. In the same container, lone arrays (a loss, a random state) are none of it."""
  return name.startswith(_STARTS) or (at_home and "." in name)


def _largest(found: Sequence[Leaf]) -> Selection:
  sizes = collections.Counter(leaf.container for leaf in found)
  container = max(sizes, key=lambda each: (sizes[each], -each.count(".")))
  chosen = [(leaf, _without_wrappers(leaf.name[len(container) :])) for leaf in found if leaf.container == container]
  return Selection(_unique(chosen), container, (), len(found) - len(chosen), tuple(name for _, name in chosen))


def _unique(chosen: Sequence[tuple[Leaf, str]]) -> dict[str, Any]:
  tensors = {name: leaf.tensor for leaf, name in chosen}
  if len(tensors) < len(chosen):
    (name, _), *_ = collections.Counter(name for _, name in chosen).most_common(1)
    raise ValueError(f"several of its tensors are called {printable(name)}, apart from what wrappers put before it")
  return tensors


def _without_wrappers(name: str) -> str:
  return ".".join(part for part in name.split(".") if part not in _WRAPPERS) or name
