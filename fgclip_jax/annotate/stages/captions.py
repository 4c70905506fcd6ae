"""Captions of pictures that have none, or no long one."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fgclip_jax.annotate.draft import PENDING, Draft
from fgclip_jax.annotate.journal import Outcome
from fgclip_jax.annotate.rules import caption_checks
from fgclip_jax.annotate.servers import images, prompts
from fgclip_jax.annotate.servers.requests import Request
from fgclip_jax.annotate.stage import Tally, Task, count_failure, digest
from fgclip_jax.annotate.stages.served import ServedStage
from fgclip_jax.prepare.sources import conversations
from fgclip_jax.storage.errors import RecordError

WORDS = {"long": (20, 400), "short": (2, 40)}  # the fewest and most that are taken
_SAME_LEAST, _SAME_SHARE = 5, 0.01  # more pictures of one caption than that are a fault of the server


@dataclasses.dataclass(frozen=True)
class Captions(ServedStage):
  """The stage `captions`; without servers only what the input has is kept."""

  name = "captions"

  def make_prompt(self, language: str) -> prompts.Prompt:
    return prompts.make_caption_prompt(language)

  def settings(self) -> dict[str, Any]:
    return {} if self.asking else {"captions": "existing"}

  def tasks(self, draft: Draft) -> Iterator[Task]:
    if self.asking and not draft.long:
      yield Task(digest([self.signature(), draft.digest, draft.short, draft.language]), draft)

  def run(self, tasks: list[Task], part: int) -> Iterator[Outcome]:
    assert self.asking is not None  # else there are no tasks
    broken: list[Outcome] = []
    texts, same = caption_checks.SameText(), 0

    def check(request: Request, value: Any) -> str | None:
      rule = self._check(request, value)
      if not rule and not value["unusable"] and texts.add(value["long"]):
        rule = "caption_same_for_many"
      return rule

    for done, outcome in enumerate(self.asking.ask(self.requests(tasks, broken), check, f"{self.name}-{part:05d}"), 1):
      same += outcome.failure == "caption_same_for_many"
      if same > max(_SAME_LEAST, _SAME_SHARE * done):
        raise ValueError(f"{same} of {done} answers are the same caption: does the server see the pictures?")
      yield outcome
    yield from broken

  def requests(self, tasks: Iterable[Task], broken: list[Outcome]) -> Iterator[Request]:
    assert self.asking is not None
    for task in tasks:
      draft, prompt = task.draft, self.prompt(task.draft.language)
      try:
        picture = images.data_url(images.encode(draft.item.read(), self.asking.max_side))
      except RecordError as error:
        broken.append(Outcome(task.key, failure=error.kind, detail=error.message))
        continue
      messages = prompts.caption_messages(prompt, picture, draft.short)
      yield self.asking.request(task.key, messages, prompt)

  def _check(self, request: Request, value: Any) -> str | None:
    if value["unusable"]:
      return None
    prompt = self.prompt(request.language).text
    for kind, words in WORDS.items():
      if broken := caption_checks.check(caption_checks.clean(value[kind]).text, (prompt,), words):
        return broken
    return None

  def apply(self, draft: Draft, outcomes: Mapping[str, Outcome], tally: Tally) -> None:
    tally["captions.pictures"] += 1
    tasked = self.asking and not draft.long
    if draft.long:
      tally["captions.given"] += 1
    elif self.asking:
      self._take(draft, next(iter(outcomes.values()), None), tally)
    else:
      tally["captions.short_alone" if draft.short else "captions.none"] += 1
    if not draft.short and draft.long:
      draft.short = conversations.first_sentence(draft.long)
      tally["captions.short_from_long"] += 1
    if not draft.short:
      draft.rejected = PENDING if tasked and not outcomes else "caption_missing"

  def _take(self, draft: Draft, outcome: Outcome | None, tally: Tally) -> None:
    if outcome is None or outcome.failure:
      count_failure(tally, self.name, outcome)
    elif outcome.value["unusable"]:
      tally["captions.unusable"] += 1
    else:
      long, short = (caption_checks.clean(outcome.value[key]) for key in ("long", "short"))
      for note in (*long.notes, *short.notes):
        tally[f"captions.noted.{note}"] += 1
      tally["captions.answered"] += 1
      draft.long, draft.short = long.text, draft.short or short.text
