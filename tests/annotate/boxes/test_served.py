"""Boxes by a vision-language model on a server, which is a stub that sees nothing."""

import base64
import io

import pytest
from PIL import Image

from fgclip_jax.annotate import asking
from fgclip_jax.annotate.asking import Asking
from fgclip_jax.annotate.boxes.backend import Question
from fgclip_jax.annotate.boxes.conventions import Convention
from fgclip_jax.annotate.boxes.served import Served
from fgclip_jax.annotate.servers import images
from tests.helpers import model_server

SIZE = (1080, 1920)
BOX = (0.25, 0.1, 0.75, 0.6)


@pytest.fixture(autouse=True)
def connections():
  yield
  asking.close_clients()


def questions(count: int = 3, size: tuple[int, int] = SIZE) -> list[Question]:
  Image.new("RGB", size, "red").save(file := io.BytesIO(), "PNG")
  return [Question(f"{number:08x}", file.getvalue(), size, ("a dog", "two cats")) for number in range(count)]


def locate(server, convention: str, asked: list[Question], **options):
  detector = Served(Asking("stub", (server.url,), timeout=20.0), Convention.parse(convention), **options)
  return {each.key: each for each in detector.locate(asked)}


def seen(body: dict) -> tuple[Image.Image, str]:
  """The picture and the text of a request."""
  picture, text, *_ = body["messages"][-1]["content"]
  file = io.BytesIO(base64.b64decode(picture["image_url"]["url"].partition(",")[2]))
  return Image.open(file), text["text"]


@pytest.mark.parametrize(
  ("convention", "said"),
  [
    ("xyxy,thousandths", "left, top, right and bottom edge, in thousandths of the width and height of the picture"),
    ("yxyx,thousandths", "top, left, bottom and right edge"),
    ("xyxy,pixels,input", "in pixels of the picture, which is 560 wide and 1008 high"),
    ("xywh,percent", "its width and its height, in percent"),
    ("cxcywh,fraction,padded", "as fractions of the width and height of the square"),
  ],
)
def test_every_convention_comes_back(convention, said):
  def answer(body: dict):
    shown = seen(body)[0]
    assert said in seen(body)[1] and "{" not in seen(body)[1]
    numbers = Convention.parse(convention).from_box(BOX, SIZE, shown.size)
    return {"boxes": [{"phrase": 1, "box": list(map(round, numbers) if max(numbers) > 2 else numbers), "score": 0.8}]}

  with model_server.serve(answer=answer, keep=True) as server:
    found = locate(server, convention, questions(1))
    assert all("«0: a dog; 1: two cats»" in seen(body)[1] for body in server.bodies)
  (one,) = found["00000000"].found
  assert (one.phrase, one.score) == (1, 0.8) and one.box == pytest.approx(BOX, abs=0.006)


def test_pixels_are_of_a_picture_that_no_server_scales_again():
  for size in (SIZE, (8000, 20), (640, 480), (30, 40), (1024, 1024)):
    sent = images.fit_size(size, 1024, images.GRID)
    assert all(side % 28 == 0 and 56 <= side <= 1024 for side in sent)
    with model_server.serve(answer=lambda body: {"boxes": []}, keep=True) as server:
      assert locate(server, "xyxy,pixels,input", questions(1, size))["00000000"].found == ()
    assert seen(server.bodies[0])[0].size == sent


def test_what_is_no_box_is_counted_by_its_class():
  boxes = [
    {"phrase": 0, "box": [0, 0, 500, 1000], "score": 0.9},
    {"phrase": 7, "box": [0, 0, 500, 1000], "score": 0.9},  # there are two phrases
    {"phrase": -1, "box": [0, 0, 500, 1000], "score": 0.9},
    {"phrase": 1, "box": [900, 0, 500, 1000], "score": 0.9},
    {"phrase": 1, "box": [0, 0, 500, 1920], "score": 0.9},
    {"phrase": 1, "box": [0, 0, 500, 1000], "score": 90},
  ]
  with model_server.serve(answer=lambda body: {"boxes": boxes}) as server:
    found = locate(server, "xyxy,thousandths", questions(2))
  for each in found.values():
    assert [one.box for one in each.found] == [(0, 0, 0.5, 1)]
    assert each.bad == {"label_unknown": 2, "box_swapped": 1, "box_outside": 1, "score_impossible": 1}
    assert each.model == "stub-1" and each.attempts == 1 and min(each.tokens) > 0


def test_answers_that_are_none_are_asked_for_again_and_failures_have_a_class():
  wrong = {"boxes": [{"phrase": "a dog", "box": [0, 0, 1, 1], "score": 1}]}
  right = {"boxes": [{"phrase": 0, "box": [0, 0, 1000, 1000], "score": 1}]}

  def answer(body: dict):
    if "unreadable" in str(body["messages"]):
      return wrong
    return right if "could not be used" in str(body["messages"]) else wrong

  asked = questions(2)
  asked.append(Question("ffffffff", b"no picture", SIZE, ("a dog",)))
  asked.append(Question("eeeeeeee", asked[0].image, SIZE, ("an unreadable sign",)))
  with model_server.serve(answer=answer) as server:
    found = locate(server, "xyxy,thousandths", asked)
  assert [found[key].attempts for key in ("00000000", "00000001")] == [2, 2]
  assert found["00000000"].found[0].box == (0, 0, 1, 1)
  assert found["ffffffff"].failure == "image_unreadable" and found["eeeeeeee"].failure == "answer_schema"


def test_pixels_of_the_original_are_refused():
  with pytest.raises(ValueError, match="its pixels are xyxy,pixels,input"):
    Served(Asking("stub"), Convention("xyxy", "pixels"))


def test_the_convention_and_the_prompt_are_of_the_signature(tmp_path):
  one, two = (Served(Asking("stub"), Convention("xyxy", unit)) for unit in ("thousandths", "percent"))
  assert one.signature()["prompts"] != two.signature()["prompts"]
  prompt = tmp_path / "prompt.txt"
  prompt.write_text("Find «{phrases}». {coordinates}")
  own = Served(Asking("stub"), prompt_file=str(prompt))
  (request,) = own.requests(questions(1), [])
  assert request.messages[0]["content"][1]["text"].startswith("Find «0: a dog; 1: two cats». The four numbers of a box")
  (request,) = one.requests([Question("00000000", questions(1)[0].image, SIZE, ("一只狗",), "zh")], [])
  assert "方框的四个数依次是左边、上边、右边、下边的位置" in request.messages[0]["content"][1]["text"]
