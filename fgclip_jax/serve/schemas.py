"""What callers send and get, as JSON; the source of the server's OpenAPI page."""

from typing import Literal

import pydantic

Box = tuple[float, float, float, float]
Kind = Literal["short", "long", "region"]


class _Strict(pydantic.BaseModel):
  model_config = pydantic.ConfigDict(extra="forbid")


class Texts(_Strict):
  """Texts to embed."""

  texts: list[str] = pydantic.Field(min_length=1)
  kind: Kind = "short"


class Images(_Strict):
  """Pictures to embed."""

  images: list[str] = pydantic.Field(min_length=1, description="files of pictures in base64")


class Regions(_Strict):
  """Regions of a picture to embed."""

  image: str = pydantic.Field(description="the file of a picture in base64")
  boxes: list[Box] = pydantic.Field(min_length=1, description="x1, y1, x2, y2 as fractions of width and height")


class Comparison(_Strict):
  """A picture, or regions of it, to compare with texts."""

  image: str = pydantic.Field(description="the file of a picture in base64")
  texts: list[str] = pydantic.Field(min_length=1)
  boxes: list[Box] = pydantic.Field(default=[], description="of regions; none: the whole picture is compared")
  kind: Kind | None = pydantic.Field(
    default=None, description="of the texts; by default `region` with boxes, else `short`"
  )


class Search(_Strict):
  """What is looked for in the index: a text, a picture, or a region of one."""

  text: str | None = None
  image: str | None = pydantic.Field(default=None, description="the file of a picture in base64")
  box: Box | None = pydantic.Field(default=None, description="of the thing in the picture")
  count: int = pydantic.Field(default=10, ge=1, le=1000)
  regions: bool | None = pydantic.Field(default=None, description="search regions; by default where there are any")
  only: str = pydantic.Field(default="", max_length=1000, description="a pattern that names must match")


class Embeddings(pydantic.BaseModel):
  """Vectors of unit length."""

  width: int
  embeddings: list[list[float]]


class Similarities(pydantic.BaseModel):
  """Cosines: a row for each box, or one for the whole picture, with a number for each text."""

  similarities: list[list[float]]


class Found(pydantic.BaseModel):
  """A picture that was found: its name within the source of that number."""

  source: int
  name: str
  score: float
  box: Box | None


class Matches(pydantic.BaseModel):
  """What was found, best first."""

  matches: list[Found]


class Health(pydantic.BaseModel):
  """What the server has."""

  model: str
  kinds: list[str]
  pictures: int | None
