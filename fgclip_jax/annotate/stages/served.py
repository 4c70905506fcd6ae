"""What the stages that ask model servers share: prompts, and a signature that changes with them."""

import abc
import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

from fgclip_jax.annotate.asking import Asking
from fgclip_jax.annotate.journal import Outcome
from fgclip_jax.annotate.servers import prompts
from fgclip_jax.annotate.servers.requests import Request
from fgclip_jax.annotate.stage import Task


@dataclasses.dataclass(frozen=True)
class ServedStage(abc.ABC):
  """A stage that model servers may answer.

  Attributes:
    asking: the servers; None: it does without.
    prompt_file: a file with the prompt; empty: that of `servers.prompts`.
  """

  asking: Asking | None = None
  prompt_file: str = ""

  @abc.abstractmethod
  def make_prompt(self, language: str) -> prompts.Prompt:
    """The stage's own prompt in a language of `prompts.LANGUAGES`."""

  @abc.abstractmethod
  def settings(self) -> dict[str, Any]:
    """What else decides the answers, with servers or without, as JSON."""

  @abc.abstractmethod
  def requests(self, tasks: Iterable[Task], broken: list[Outcome]) -> Iterator[Request]:
    """The request of each task; of one whose picture cannot be read the outcome goes to `broken`."""

  def prompt(self, language: str) -> prompts.Prompt:
    """The prompt in a language; in English, if there is none in it."""
    return self._prompts.get(language, self._prompts["en"])

  def signature(self) -> dict[str, Any]:
    return self._signature

  # Each item asks for both, and the prompt may be a file.
  @functools.cached_property
  def _prompts(self) -> dict[str, prompts.Prompt]:
    return prompts.make_all(self.make_prompt, self.prompt_file)

  @functools.cached_property
  def _signature(self) -> dict[str, Any]:
    if not self.asking:
      return {"version": 1, **self.settings()}
    hashes = {language: prompt.hash for language, prompt in self._prompts.items()}
    return {"version": 1, "prompts": hashes, **self.settings(), **self.asking.signature()}
