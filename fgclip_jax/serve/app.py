"""The HTTP interface: FastAPI over a `Service`, behind a `Guard`."""

import asyncio
import base64
import binascii
import contextlib
import json
import math
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from typing import Any

import fastapi
import numpy as np
import prometheus_client
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

import fgclip_jax
from fgclip_jax.data.record import check_box
from fgclip_jax.serve import schemas
from fgclip_jax.serve.batching import BusyError, LateError
from fgclip_jax.serve.limits import App, Guard, Limits
from fgclip_jax.serve.service import Service
from fgclip_jax.storage.errors import RecordError
from fgclip_jax.storage.skip_report import printable
from fgclip_jax.storage.text import is_unicode

_NO_CONTENT = 499  # nginx's status for a client that has gone; nobody reads it


class TooMuchError(ValueError):
  """A request has more of something than `Limits` allow."""


class _Json(JSONResponse):
  """JSON that no browser takes for markup, whatever a name or text in it holds."""

  def render(self, content: Any) -> bytes:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
      text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text.encode("utf-8", "backslashreplace")


def make_app(service: Service, limits: Limits, token: str = "", hosts: tuple[str, ...] = ()) -> App:
  """The server's ASGI application.

  Args:
    service: what computes.
    limits: of a request.
    token: which callers must give; empty: none.
    hosts: what `Host` headers may name; empty: anything.
  """

  @contextlib.asynccontextmanager
  async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
    yield
    await service.close()

  app = fastapi.FastAPI(
    title="fgclip_jax",
    version=fgclip_jax.__version__,
    description="Embeddings of pictures, regions and texts, their similarities, and searches.",
    default_response_class=_Json,
    docs_url=None,  # these pages load scripts from elsewhere
    redoc_url=None,
    lifespan=lifespan,
  )
  metrics = _Metrics(service)
  app.middleware("http")(metrics.measure)
  _handle_errors(app)
  _add_routes(app, service, limits, metrics)
  return Guard(app, limits, token, hosts)


class _Metrics:
  """What Prometheus reads."""

  def __init__(self, service: Service):
    self.registry = prometheus_client.CollectorRegistry()
    kept = self.registry
    self._requests = prometheus_client.Counter(
      "fgclip_requests", "answers by path and status", ["path", "status"], registry=kept
    )
    self._seconds = prometheus_client.Histogram(
      "fgclip_request_seconds", "time until an answer", ["path"], registry=kept
    )
    batches = prometheus_client.Histogram(
      "fgclip_batch_items", "items of a batch", ["what"], buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256), registry=kept
    )
    seconds = prometheus_client.Histogram("fgclip_batch_seconds", "time of a batch", ["what"], registry=kept)
    waiting = prometheus_client.Gauge("fgclip_waiting_items", "items in the queue", ["what"], registry=kept)
    for what, batcher in service.batchers.items():
      waiting.labels(what).set_function(lambda batcher=batcher: batcher.waiting)

      def note(items: int, took: float, what: str = what) -> None:
        batches.labels(what).observe(items)
        seconds.labels(what).observe(took)

      batcher.on_batch = note

  async def measure(self, request: fastapi.Request, call_next: Any) -> Response:
    begin = time.perf_counter()
    response = await call_next(request)
    # only paths that exist are counted by name: others are whatever a caller types
    route = request.scope.get("route")
    path = getattr(route, "path", "other")
    self._requests.labels(path, response.status_code).inc()
    self._seconds.labels(path).observe(time.perf_counter() - begin)
    response.headers["x-content-type-options"] = "nosniff"
    return response


def _error(status: int, kind: str, message: str, **headers: str) -> _Json:
  return _Json({"error": {"kind": kind, "message": printable(message)[:500]}}, status, headers)


def _handle_errors(app: fastapi.FastAPI) -> None:
  @app.exception_handler(RequestValidationError)
  async def wrong_form(_: fastapi.Request, error: RequestValidationError) -> Response:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    return _error(422, "wrong_form", f"{place}: {first['msg']}" if place else str(first["msg"]))

  @app.exception_handler(HTTPException)
  async def refused(_: fastapi.Request, error: HTTPException) -> Response:
    kind = {400: "wrong_form", 404: "not_found", 405: "not_allowed"}.get(error.status_code, "refused")
    return _error(error.status_code, kind, str(error.detail))

  @app.exception_handler(RecordError)
  async def wrong_record(_: fastapi.Request, error: RecordError) -> Response:
    return _error(422, error.kind, str(error))

  @app.exception_handler(TooMuchError)
  async def too_much(_: fastapi.Request, error: TooMuchError) -> Response:
    return _error(413, "too_much", str(error))

  @app.exception_handler(ValueError)
  async def wrong_value(_: fastapi.Request, error: ValueError) -> Response:
    return _error(422, "wrong_value", str(error))

  @app.exception_handler(BusyError)
  async def busy(_: fastapi.Request, error: BusyError) -> Response:
    seconds = math.ceil(error.seconds)
    return _error(429, "busy", f"{error}: try again in {seconds} s", **{"retry-after": str(seconds)})

  @app.exception_handler(LateError)
  async def late(_: fastapi.Request, error: LateError) -> Response:
    return _error(503, "late", str(error), **{"retry-after": "1"})

  @app.exception_handler(Exception)
  async def fault(_: fastapi.Request, error: Exception) -> Response:
    return _error(500, "fault", "the server has met a fault, which its log names")


def _add_routes(app: fastapi.FastAPI, service: Service, limits: Limits, metrics: _Metrics) -> None:
  model = service.model

  def check_texts(texts: Sequence[str], kind: str) -> None:
    _check_count(len(texts), limits.texts, "texts")
    if kind not in service.kinds:
      raise ValueError(f"kind: the model reads {', '.join(service.kinds)} texts, got {kind}")
    for number, text in enumerate(texts):
      if len(text) > limits.characters:
        raise TooMuchError(f"texts[{number}] has {len(text):,} characters, at most {limits.characters:,} are read")
      if not text.strip():
        raise ValueError(f"texts[{number}] is blank")
      if not is_unicode(text):
        raise ValueError(f"texts[{number}] is not Unicode: it holds half of a surrogate pair")

  def check_boxes(boxes: Sequence[schemas.Box]) -> np.ndarray:
    _check_count(len(boxes), limits.boxes, "boxes")
    return np.asarray([check_box(list(box), f"boxes[{n}]") for n, box in enumerate(boxes)], np.float32)

  @app.get("/health")
  async def health() -> schemas.Health:
    """Answers as soon as the server does."""
    pictures = None if service.index is None else len(service.index)
    return schemas.Health(model=repr(model), kinds=list(service.kinds), pictures=pictures)

  @app.get("/metrics", response_class=Response)
  async def read_metrics() -> Response:
    """Counts, times and queues, as Prometheus reads them."""
    return Response(
      prometheus_client.generate_latest(metrics.registry), media_type=prometheus_client.CONTENT_TYPE_LATEST
    )

  @app.post("/v1/embed/texts")
  async def embed_texts(asked: schemas.Texts, request: fastapi.Request) -> schemas.Embeddings:
    """Embeds texts."""
    check_texts(asked.texts, asked.kind)
    return _embeddings(await _while_connected(request, service.embed_texts(asked.texts, asked.kind)))

  @app.post("/v1/embed/images")
  async def embed_images(asked: schemas.Images, request: fastapi.Request) -> schemas.Embeddings:
    """Embeds pictures."""
    _check_count(len(asked.images), limits.pictures, "images")
    files = [_decode(each, f"images[{number}]") for number, each in enumerate(asked.images)]
    return _embeddings(await _while_connected(request, service.embed_images(files)))

  @app.post("/v1/embed/regions")
  async def embed_regions(asked: schemas.Regions, request: fastapi.Request) -> schemas.Embeddings:
    """Embeds regions of a picture."""
    boxes = check_boxes(asked.boxes)
    return _embeddings(await _while_connected(request, service.embed_regions(_decode(asked.image), boxes)))

  @app.post("/v1/similarity")
  async def similarity(asked: schemas.Comparison, request: fastapi.Request) -> schemas.Similarities:
    """Compares a picture, or regions of it, with texts."""
    kind = asked.kind or ("region" if asked.boxes and "region" in service.kinds else "short")
    check_texts(asked.texts, kind)
    boxes, file = check_boxes(asked.boxes), _decode(asked.image)

    async def compare() -> np.ndarray:
      picture = service.embed_regions(file, boxes) if len(boxes) else service.embed_images([file])
      found, texts = await asyncio.gather(picture, service.embed_texts(asked.texts, kind))
      return model.similarity(found, texts)

    return schemas.Similarities(similarities=_round(await _while_connected(request, compare())))

  @app.post("/v1/search")
  async def search(asked: schemas.Search, request: fastapi.Request) -> schemas.Matches:
    """Searches the server's index."""
    if (asked.text is None) == (asked.image is None):
      raise ValueError("give either text or image")
    if asked.box and asked.image is None:
      raise ValueError("box is of an image: give both")
    index = service.index
    if index is None:
      raise ValueError("this server has no index to search: start it with --index")
    regions = index.has_regions if asked.regions is None else asked.regions

    async def find() -> list[Any]:
      if asked.text is not None:
        kind = "region" if regions else "short"
        check_texts([asked.text], kind)
        vector = (await service.embed_texts([asked.text], kind))[0]
      elif asked.box or regions:
        boxes = check_boxes([asked.box or (0.0, 0.0, 1.0, 1.0)])
        vector = (await service.embed_regions(_decode(asked.image or ""), boxes))[0]
      else:
        vector = (await service.embed_images([_decode(asked.image or "")]))[0]
      return await asyncio.to_thread(index.search, vector, asked.count, regions=regions, only=asked.only)

    matches = await _while_connected(request, find())
    numbers = {source: number for number, source in enumerate(index.state["sources"])}
    return schemas.Matches(
      matches=[
        schemas.Found(source=numbers[each.source], name=each.name, score=each.score, box=each.box) for each in matches
      ]
    )


async def _while_connected(request: fastapi.Request, work: Coroutine[Any, Any, Any]) -> Any:
  """The result of `work`, which is cancelled where the client goes away before: its place is then free for others."""
  task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_is_gone(request))
  try:
    await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
      raise fastapi.HTTPException(_NO_CONTENT)
    return task.result()
  finally:
    task.cancel()
    gone.cancel()


async def _is_gone(request: fastapi.Request) -> None:
  while (await request.receive())["type"] != "http.disconnect":
    pass


def _check_count(count: int, most: int, what: str) -> None:
  if count > most:
    raise TooMuchError(f"{what}: {count:,} are given, at most {most:,} are answered at once")


def _decode(text: str, name: str = "image") -> bytes:
  """The bytes of a file in base64, also of a data URL."""
  if text.startswith("data:"):
    text = text.partition(",")[2]
  try:
    return base64.b64decode(text, validate=True)
  except (binascii.Error, ValueError):
    raise ValueError(f"{name} is not base64") from None


def _embeddings(vectors: np.ndarray) -> schemas.Embeddings:
  return schemas.Embeddings(width=vectors.shape[1], embeddings=vectors.tolist())


def _round(values: np.ndarray) -> list[list[float]]:
  return np.asarray(values, np.float64).round(6).tolist()
