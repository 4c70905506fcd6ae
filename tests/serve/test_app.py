"""The HTTP interface on loopback: equal to the model, safe against what callers send, and counted."""

import base64
import concurrent.futures
import http.client
import json
import socket
import time
import warnings

import numpy as np
import pytest

from tests.serve.conftest import base64_picture, picture

pytest.importorskip("fastapi", reason="needs fastapi, see requirements-serve.txt")
pytest.importorskip("usearch", reason="needs usearch, see requirements-serve.txt")

from fgclip_jax.index import build
from fgclip_jax.index.search import Index
from fgclip_jax.serve.app import make_app
from fgclip_jax.serve.limits import LOOPBACK, Limits
from fgclip_jax.serve.service import Service


@pytest.fixture(scope="module")
def index(model, tmp_path_factory):
  folder = tmp_path_factory.mktemp("photos")
  for number in range(4):
    (folder / f"<b>{number}.png").write_bytes(picture(number))
  output = str(tmp_path_factory.mktemp("index"))
  build.build(model, "toy", [str(folder)], output, scales=(2,))
  return Index(output)


@pytest.fixture(scope="module")
def ask(model, index, serve):
  service = Service(model, index, max_batch=8, max_queue=64)
  return serve(make_app(service, Limits(bytes=1 << 20, seconds=2.0, pictures=4, texts=16, boxes=8, characters=200)))


def test_embeddings_are_the_models(model, ask):
  texts = ["a red cup", "ein Haus", "杯子"]
  for kind in ("short", "long", "region"):
    status, answer = ask("/v1/embed/texts", {"texts": texts, "kind": kind})
    assert status == 200 and answer["width"] == 16
    np.testing.assert_allclose(answer["embeddings"], model.encode_text(texts, kind), atol=1e-6)
  status, answer = ask(
    "/v1/embed/images", {"images": [base64_picture(1), f"data:image/png;base64,{base64_picture(2)}"]}
  )
  np.testing.assert_allclose(answer["embeddings"], model.encode_image([picture(1), picture(2)]), atol=1e-6)
  boxes = [[0, 0, 0.5, 0.5], [0.25, 0.1, 1, 0.9]]
  answer = ask("/v1/embed/regions", {"image": base64_picture(1), "boxes": boxes})[1]
  np.testing.assert_allclose(answer["embeddings"], model.encode_regions(picture(1), [boxes])[0], atol=1e-6)
  answer = ask("/v1/similarity", {"image": base64_picture(1), "texts": texts, "boxes": boxes})[1]
  wanted = model.similarity(model.encode_regions(picture(1), [boxes])[0], model.encode_text(texts, "region"))
  np.testing.assert_allclose(answer["similarities"], wanted, atol=2e-6)
  answer = ask("/v1/similarity", {"image": base64_picture(1), "texts": texts})[1]
  wanted = model.similarity(model.encode_image(picture(1)), model.encode_text(texts))
  np.testing.assert_allclose(answer["similarities"], wanted, atol=2e-6)


def test_searches_are_the_indexs(model, index, ask):
  answer = ask("/v1/search", {"text": "a red cup", "count": 3})[1]
  wanted = index.search(model.encode_text("a red cup", "region")[0], 3)
  assert [(found["name"], found["box"]) for found in answer["matches"]] == [(w.name, list(w.box)) for w in wanted]
  answer = ask("/v1/search", {"image": base64_picture(2), "box": [0, 0, 0.5, 0.5], "count": 1})[1]
  assert answer["matches"][0]["name"] == "<b>2.png" and answer["matches"][0]["box"] == [0, 0, 0.5, 0.5]
  assert "<" not in ask.text and "\\u003cb\\u003e2.png" in ask.text  # no browser takes a name for markup
  answer = ask("/v1/search", {"image": base64_picture(2), "regions": False, "only": "*3.png"})[1]
  assert [found["name"] for found in answer["matches"]] == ["<b>3.png"] and answer["matches"][0]["box"] is None
  assert index.state["sources"][0] not in json.dumps(answer)  # nothing of the machine's folders


def test_many_callers_get_their_own_answers(model, ask):
  texts = [f"thing number {number}" for number in range(60)]
  wanted = model.encode_text(texts)

  def one(text):
    connection = type(ask)(ask.port)
    while (answer := connection("/v1/embed/texts", {"texts": [text]}))[0] == 429:
      time.sleep(0.05)
    return answer[1]["embeddings"][0]

  with concurrent.futures.ThreadPoolExecutor(20) as callers:
    found = list(callers.map(one, texts))
  np.testing.assert_allclose(found, wanted, atol=1e-6)
  told = ask("/metrics")[1]
  batches = {
    line.split()[0]: float(line.split()[1]) for line in told.splitlines() if line.startswith("fgclip_batch_items")
  }
  items, count = (batches[f'fgclip_batch_items_{name}{{what="texts:short"}}'] for name in ("sum", "count"))
  assert items / count > 1.5  # callers shared batches
  assert 'fgclip_waiting_items{what="texts:short"} 0.0' in told


@pytest.mark.parametrize(
  ("path", "body", "status", "kind"),
  [
    ("/v1/embed/texts", {}, 422, "wrong_form"),
    ("/v1/embed/texts", {"texts": []}, 422, "wrong_form"),
    ("/v1/embed/texts", {"texts": "a"}, 422, "wrong_form"),
    ("/v1/embed/texts", {"texts": ["a"], "path": "/etc/passwd"}, 422, "wrong_form"),
    ("/v1/embed/texts", {"texts": [" "]}, 422, "wrong_value"),
    ("/v1/embed/texts", b'{"texts": ["\\ud800"]}', 422, "wrong_value"),
    ("/v1/embed/texts", {"texts": ["a" * 201]}, 413, "too_much"),
    ("/v1/embed/texts", {"texts": ["a"] * 17}, 413, "too_much"),
    ("/v1/embed/texts", b"[" * 100_000, 400, "wrong_form"),
    ("/v1/embed/texts", b"\xff\xfe", 422, "wrong_form"),
    ("/v1/embed/images", {"images": ["/etc/passwd"]}, 422, "wrong_value"),
    ("/v1/embed/images", {"images": ["no base64!"]}, 422, "wrong_value"),
    ("/v1/embed/images", {"images": [base64.b64encode(b"<svg/>").decode()]}, 422, "image_unreadable"),
    ("/v1/embed/images", {"images": [base64_picture(0)] * 5}, 413, "too_much"),
    ("/v1/embed/regions", {"image": base64_picture(0), "boxes": [[0.5, 0, 0.1, 1]]}, 422, "box_swapped"),
    ("/v1/embed/regions", {"image": base64_picture(0), "boxes": [[0, 0, 1, 1]] * 9}, 413, "too_much"),
    ("/v1/similarity", {"image": "", "texts": ["a"]}, 422, "image_empty"),
    ("/v1/search", {}, 422, "wrong_value"),
    ("/v1/search", {"text": "a", "box": [0, 0, 1, 1]}, 422, "wrong_value"),
    ("/v1/search", {"text": "a", "count": 10**9}, 422, "wrong_form"),
  ],
)
def test_wrong_requests_are_errors_of_one_line(ask, path, body, status, kind):
  found, answer = ask(path, body)
  assert (found, answer["error"]["kind"]) == (status, kind), answer
  assert "\n" not in answer["error"]["message"] and len(answer["error"]["message"]) <= 500
  assert ask.headers["x-content-type-options"] == "nosniff"


def test_other_paths_and_methods(ask):
  assert ask("/../../etc/passwd")[0] == 404 and ask("/docs")[0] == 404
  assert ask("/v1/embed/texts")[1]["error"]["kind"] == "not_allowed"
  assert ask("/openapi.json")[1]["paths"].keys() >= {"/v1/embed/texts", "/v1/search", "/health"}
  status, answer = ask("/health")
  assert status == 200 and answer["pictures"] == 4 and answer["kinds"] == ["short", "long", "region"]


def test_a_body_too_large_or_too_slow_is_cut_off(ask):
  assert ask("/v1/embed/texts", b" " * (2 << 20))[0] == 413
  with socket.create_connection(("127.0.0.1", ask.port), 10) as slow:
    slow.sendall(b"POST /v1/embed/texts HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
    assert slow.recv(100).startswith(b"HTTP/1.1 408")
  with socket.create_connection(("127.0.0.1", ask.port), 10) as chunked:
    chunked.sendall(b"POST /v1/embed/texts HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n")
    chunked.sendall(b"200000\r\n" + b" " * 0x200000 + b"\r\n")
    assert chunked.recv(100).startswith(b"HTTP/1.1 413")


def test_the_token_and_the_host_are_asked_for(model, serve):
  service = Service(model)
  ask = serve(make_app(service, Limits(), "a token of sorts", LOOPBACK))
  assert ask("/health")[0] == 200
  assert ask("/v1/embed/texts", {"texts": ["a"]})[0] == 401
  ask.token = "another one"
  assert ask("/v1/embed/texts", {"texts": ["a"]})[1]["error"]["kind"] == "token_wrong"
  ask.token = "a token of sorts"
  assert ask("/v1/embed/texts", {"texts": ["a"]})[0] == 200
  assert ask("/v1/search", {"text": "a"})[1]["error"]["message"].startswith("this server has no index")
  assert ask("/health", headers={"host": "evil.example"})[0] == 421


def test_overload_is_answered_and_a_killed_client_frees_its_place(model, serve):
  service = Service(model, max_batch=1, max_queue=4, timeout=20.0)
  compute = service._compute_texts
  service.batchers["texts:short"]._compute = lambda texts: (time.sleep(0.3), compute(texts, "short"))[1]
  ask = serve(make_app(service, Limits()))
  ask("/v1/embed/texts", {"texts": ["compiles"]})
  gone = []
  for number in range(5):
    connection = http.client.HTTPConnection("127.0.0.1", ask.port)
    connection.request(
      "POST", "/v1/embed/texts", json.dumps({"texts": [str(number)]}), {"content-type": "application/json"}
    )
    gone.append(connection)
    time.sleep(0.02)
  status, answer = ask("/v1/embed/texts", {"texts": ["one more"]})
  assert (status, answer["error"]["kind"]) == (429, "busy") and int(ask.headers["retry-after"]) >= 1
  for connection in gone:
    connection.close()
  begin = time.monotonic()
  while ask("/v1/embed/texts", {"texts": ["one more"]})[0] == 429:
    assert time.monotonic() - begin < 1.0, "those who have gone still hold their places"
    time.sleep(0.05)


def test_warming_up_cuts_no_text(model):
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    Service(model).warm_up([1])
