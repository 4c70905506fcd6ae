"""Boxes by a vision-language model on a server, which is asked for all phrases of a picture at once.

Such models differ in what the numbers of their boxes mean: Qwen2-VL and Qwen3-VL were trained on thousandths,
Qwen2.5-VL on pixels of the picture after its server has scaled it (https://github.com/QwenLM/Qwen3-VL/issues/866). The
convention is declared, named in the prompt, and converted from.
"""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

from fgclip_jax.annotate.asking import Asking
from fgclip_jax.annotate.boxes.backend import Located, Question, read_boxes
from fgclip_jax.annotate.boxes.conventions import Convention
from fgclip_jax.annotate.servers import images, prompts
from fgclip_jax.annotate.servers.requests import Request
from fgclip_jax.storage.errors import RecordError

THOUSANDTHS = Convention("xyxy", "thousandths")


@dataclasses.dataclass(frozen=True)
class Served:
  """A vision-language model on servers.

  Attributes:
    asking: the servers.
    convention: of the boxes that it gives.
    prompt_file: a file with the prompt; empty: that of `servers.prompts`.
    threshold: the least score of a box that is kept: how sure the model says that it is.

  Raises:
    ValueError: pixels of another frame than the picture as it is sent, which is all that the model sees.
  """

  asking: Asking
  convention: Convention = THOUSANDTHS
  prompt_file: str = ""
  threshold: float = 0.5

  def __post_init__(self):
    if self.convention.unit == "pixels" and self.convention.frame != "input":
      raise ValueError(
        f"--convention {self.convention}: a model server sees a picture after it is scaled; its pixels are "
        f"{self.convention.order},pixels,input"
      )

  def signature(self) -> dict[str, Any]:
    return self._signature

  @functools.cached_property
  def _prompts(self) -> dict[str, prompts.Prompt]:
    order, unit, padded = self.convention.order, self.convention.unit, self.convention.frame == "padded"
    own = prompts.make_all(prompts.make_boxes_prompt, self.prompt_file)
    return {language: prompts.name_coordinates(each, order, unit, padded) for language, each in own.items()}

  @functools.cached_property
  def _signature(self) -> dict[str, Any]:
    hashes = {language: prompt.hash for language, prompt in self._prompts.items()}
    named = {"detector": "http", "prompts": hashes, "convention": str(self.convention)}
    return named | self.asking.signature()

  def requests(self, questions: Iterable[Question], broken: list[Located]) -> Iterator[Request]:
    """The request of each question; of one whose picture cannot be read what is said of it goes to `broken`."""
    for question in questions:
      prompt = self._prompts.get(question.language, self._prompts["en"])
      try:
        picture = images.encode(question.image, self.asking.max_side, self._grid)
      except RecordError as error:
        broken.append(Located(question.key, failure=error.kind, detail=error.message))
        continue
      messages = prompts.boxes_messages(prompt, images.data_url(picture), question.phrases, self._seen(question))
      yield self.asking.request(question.key, messages, prompt)

  def locate(self, questions: Iterable[Question], part: int = 0) -> Iterator[Located]:
    """Answers each question once, in any order; those of batch files when their answers are there.

    Raises:
      ServerError: as `Client.ask`.
    """
    asked: dict[str, Question] = {}
    broken: list[Located] = []

    def remember() -> Iterator[Question]:
      for question in questions:
        asked[question.key] = dataclasses.replace(question, image=b"")  # a part's pictures would fill the memory
        yield question

    for outcome in self.asking.ask(self.requests(remember(), broken), None, f"boxes-{part:05d}"):
      question = asked.pop(outcome.key)
      answer = Located(question.key, (), {}, outcome.failure, outcome.detail)
      if not outcome.failure:
        found, bad = read_boxes(outcome.value["boxes"], question, self.convention, self._seen(question))
        answer = Located(question.key, found, bad)
      yield dataclasses.replace(answer, attempts=outcome.attempts, model=outcome.model, tokens=outcome.tokens)
    yield from broken

  @property
  def _grid(self) -> int:
    """What the sides of pictures are multiples of, so that the server does not scale them again."""
    return images.GRID if self.convention.unit == "pixels" else 1

  def _seen(self, question: Question) -> tuple[int, int]:
    return images.fit_size(question.size, self.asking.max_side, self._grid)
