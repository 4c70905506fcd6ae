"""What a run would ask of model servers, before anything is sent: requests, tokens, time and cost.

Some of the items go through the stages. Where an answer would be needed, one of the usual kind is assumed: a caption
like `CAPTION`, a box for every second phrase. Tokens are estimated from characters and pixels, which tokenizers of
different models count differently.
"""

import collections
import dataclasses
import random
from collections.abc import Iterator

from fgclip_jax.annotate import items
from fgclip_jax.annotate.asking import Asking
from fgclip_jax.annotate.chain import Job
from fgclip_jax.annotate.draft import Draft, Region
from fgclip_jax.annotate.servers.images import fit_size
from fgclip_jax.annotate.servers.requests import Request
from fgclip_jax.annotate.stage import Stage, Task
from fgclip_jax.annotate.stages.boxes import Boxes
from fgclip_jax.annotate.stages.captions import Captions
from fgclip_jax.annotate.stages.phrases import Phrases
from fgclip_jax.annotate.stages.served import ServedStage
from fgclip_jax.storage.errors import RecordError

SAMPLE = 200  # items
CHARACTERS = 4.2  # of English a token; a Chinese character is about one
PIXELS = 28 * 28  # of a picture a token, as in Qwen's models
TEMPLATE = 12  # tokens that a chat template adds
ANSWERS = {"captions": 190, "region_captions": 75, "negatives": 14 * 42}  # tokens of an answer
BOX = 38  # tokens of a box in an answer: most tokenizers of today take each digit for a token
FOUND = 2  # of so many phrases one has a box
CAPTION = (
  "A brown dog with a red leather collar lies on green grass beside a white wooden fence. In front of it lies a small "
  "blue rubber ball, and a young woman in a striped shirt sits on a folding chair with a paper cup in her hand. Behind "
  "the fence stands a brick house with two tall windows and a dark grey roof. A metal bicycle leans against the wall, "
  "next to a round clay pot with yellow flowers. The light comes from the left and throws soft shadows on the path."
)
SHORT = "A dog lies beside a fence with a woman behind it."


@dataclasses.dataclass
class Row:
  """What a stage would ask.

  Attributes:
    stage: its name.
    requests: how many.
    prompt_tokens, answer_tokens: of all of them.
  """

  stage: str
  requests: float = 0.0
  prompt_tokens: float = 0.0
  answer_tokens: float = 0.0


def estimate(job: Job, counts: list[int], sample: int = SAMPLE) -> list[Row]:
  """What the stages of a job would ask; empty where none asks a server.

  Args:
    job: the job.
    counts: the items of each part.
    sample: how many items are looked at; the rest is taken to be like them.
  """
  drafts = list(_open(job, counts, sample))
  share = sum(counts) / max(len(drafts), 1)
  rows = []
  for stage in (*job.first, *job.second):
    tasks = {task.key: task for draft in drafts if not draft.rejected for task in stage.tasks(draft)}
    if isinstance(stage, ServedStage | Boxes) and stage.asking:
      row = Row(stage.name, share * len(tasks))
      for request in stage.requests(tasks.values(), []):
        task = tasks[request.key]
        row.prompt_tokens += share * _count_tokens(request, task, stage.asking)
        row.answer_tokens += share * (ANSWERS.get(stage.name) or BOX * -(-len(task.draft.phrases) // FOUND))
      rows.append(row)
    for draft in drafts:
      _assume(stage, draft)
  return rows


def _open(job: Job, counts: list[int], sample: int) -> Iterator[Draft]:
  """Some items, the same ones each time, of parts drawn at random."""
  numbers = [number for number, count in enumerate(counts) if count]
  random.Random(0).shuffle(numbers)
  taken = 0
  for number in numbers:
    for item in items.read_part(job.folder("items"), number):
      if taken == sample:
        return
      try:
        yield Draft.open(item, job.language)
      except RecordError:
        continue
      taken += 1


def _count_tokens(request: Request, task: Task, asking: Asking) -> float:
  tokens = float(TEMPLATE)
  width, height = fit_size((task.draft.width, task.draft.height), asking.max_side)
  for message in request.messages:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for part in parts:
      if part["type"] == "text":
        han = sum("\u4e00" <= character <= "\u9fff" for character in part["text"])
        tokens += han + (len(part["text"]) - han) / CHARACTERS
      else:
        tokens += width * height / PIXELS
  return tokens


def _assume(stage: Stage, draft: Draft) -> None:
  """Gives a draft what the stage would."""
  if isinstance(stage, Captions) and stage.asking and not draft.long:
    draft.long, draft.short = CAPTION, draft.short or SHORT
  if isinstance(stage, Captions | Phrases):
    stage.apply(draft, {}, collections.Counter())
  if isinstance(stage, Boxes) and stage.detector and not draft.regions:
    draft.regions = [
      Region((0.1, 0.1, 0.5, 0.5 + 0.01 * place), phrase.text, phrase.long)
      for place, phrase in enumerate(draft.phrases[::FOUND][:10])
    ]


def format_rows(rows: list[Row], in_flight: int, seconds: float, price: tuple[float, float]) -> str:
  """A table of requests, tokens, hours and cost.

  Args:
    rows: as `estimate` returns them.
    in_flight: requests at a time over all endpoints.
    seconds: that a request takes.
    price: of a million tokens of prompts and of answers.
  """
  if not rows:
    return "Nothing would be asked of a model server."
  lines = [f"{'stage':<18}{'requests':>14}{'prompt tokens':>18}{'answer tokens':>18}{'hours':>10}{'cost':>12}"]
  total = Row("together")
  for row in (*rows, total):
    if row is not total:
      total.requests += row.requests
      total.prompt_tokens += row.prompt_tokens
      total.answer_tokens += row.answer_tokens
    hours = row.requests * seconds / in_flight / 3600
    cost = (row.prompt_tokens * price[0] + row.answer_tokens * price[1]) / 1e6
    lines.append(
      f"{row.stage.replace('_', ' '):<18}{row.requests:>14,.0f}{row.prompt_tokens:>18,.0f}{row.answer_tokens:>18,.0f}"
      f"{hours:>10.2f}{cost:>12,.2f}"
    )
  return "\n".join(lines)
