"""Captions of regions: their phrases and sentences, or what a model says that sees the region."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fgclip_jax.annotate.draft import Draft, Region
from fgclip_jax.annotate.journal import Outcome
from fgclip_jax.annotate.rules import caption_checks
from fgclip_jax.annotate.servers import images, prompts
from fgclip_jax.annotate.servers.requests import Request
from fgclip_jax.annotate.stage import Tally, Task, count_failure, digest
from fgclip_jax.annotate.stages.served import ServedStage
from fgclip_jax.data import image as pictures
from fgclip_jax.storage.errors import RecordError

WORDS = (1, 60)  # the fewest and most of a region's caption


@dataclasses.dataclass(frozen=True)
class RegionCaptions(ServedStage):
  """The stage `region_captions`; without servers a region keeps the phrase that it was found by."""

  name = "region_captions"

  def make_prompt(self, language: str) -> prompts.Prompt:
    return prompts.make_region_prompt(language)

  def settings(self) -> dict[str, Any]:
    return {} if self.asking else {"captions": "phrases"}

  def tasks(self, draft: Draft) -> Iterator[Task]:
    for region in draft.regions if self.asking else ():
      if not (region.given and region.short and region.long):
        yield Task(self._key(draft, region), draft, region)

  def _key(self, draft: Draft, region: Region) -> str:
    return digest([self.signature(), draft.digest, region.box, region.short, draft.language])

  def run(self, tasks: list[Task], part: int) -> Iterator[Outcome]:
    assert self.asking is not None  # else there are no tasks
    broken: list[Outcome] = []
    yield from self.asking.ask(self.requests(tasks, broken), self._check, f"{self.name}-{part:05d}")
    yield from broken

  def requests(self, tasks: Iterable[Task], broken: list[Outcome]) -> Iterator[Request]:
    assert self.asking is not None
    for task in tasks:
      draft, region, side = task.draft, task.about, self.asking.max_side
      try:
        whole = pictures.open_image(draft.item.read())
      except RecordError as error:
        broken.append(Outcome(task.key, failure=error.kind, detail=error.message))
        continue
      framed = images.data_url(images.encode(images.draw_frame(whole, region.box, side), side))
      cropped = images.data_url(images.encode(images.crop(whole, region.box), side))
      prompt = self.prompt(draft.language)
      messages = prompts.region_messages(prompt, framed, cropped, region.short or "something")
      yield self.asking.request(task.key, messages, prompt)

  def _check(self, request: Request, value: Any) -> str | None:
    texts = (caption_checks.clean(value[key]).text for key in ("short", "long"))
    broken = (caption_checks.check(text, (self.prompt(request.language).text,), WORDS) for text in texts)
    return next(filter(None, broken), None)

  def apply(self, draft: Draft, outcomes: Mapping[str, Outcome], tally: Tally) -> None:
    kept = []
    for region in draft.regions:
      tally["region_captions.regions"] += 1
      if self.asking and not (region.given and region.short and region.long):
        self._take(region, outcomes.get(self._key(draft, region)), tally)
      if region.short:
        kept.append(region)
        tally["region_captions.kept"] += 1
      else:
        tally["region_captions.left_out"] += 1
    draft.regions = kept

  def _take(self, region: Region, outcome: Outcome | None, tally: Tally) -> None:
    if outcome is None or outcome.failure:
      count_failure(tally, self.name, outcome)
      return
    value = outcome.value
    tally[f"region_captions.fits.{value['fits']}"] += 1
    if value["fits"] == "no" and not region.given:  # the box is of something else than its phrase
      region.short = ""
      return
    short, long = (caption_checks.clean(value[key]).text for key in ("short", "long"))
    region.short, region.long = (region.short if region.given and region.short else short), long
