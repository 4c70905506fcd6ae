"""How stages ask model servers: over HTTP, or by batch files that are written now and whose answers come later.

Only here the outcomes of `servers` become those of the journal.
"""

import atexit
import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from fgclip_jax.annotate.journal import Outcome
from fgclip_jax.annotate.servers import batch_files
from fgclip_jax.annotate.servers.client import Client
from fgclip_jax.annotate.servers.endpoints import read_key
from fgclip_jax.annotate.servers.prompts import Prompt
from fgclip_jax.annotate.servers.requests import Answer, Check, Failure, Request
from fgclip_jax.storage.lookup_table import Table


@dataclasses.dataclass(frozen=True)
class Asking:
  """Where requests go.

  Attributes:
    model: the model's name on the servers.
    endpoints: the servers' base URLs, such as `http://localhost:8000/v1`.
    in_flight: requests under way at a time at each endpoint.
    timeout: seconds after which a request is given up.
    temperature: of the sampling.
    max_side: the longest side of pictures that are sent, in pixels.
    key_file: a file with the API key; empty: it is taken from `OPENAI_API_KEY`, if that is set.
    requests: the folder that batch files are written to, in place of asking.
    answers: those to such batches, from which outcomes are taken in place of asking.
  """

  model: str
  endpoints: tuple[str, ...] = ()
  in_flight: int = 16
  timeout: float = 120.0
  temperature: float = 0.2
  max_side: int = 1024
  key_file: str = ""
  requests: str = ""
  answers: Table | None = None

  def signature(self) -> dict[str, Any]:
    """What of it decides answers; not where they come from."""
    return {"model": self.model, "temperature": self.temperature, "max_side": self.max_side}

  def request(self, key: str, messages: list[dict[str, Any]], prompt: Prompt) -> Request:
    """A request with this sampling."""
    seed = int(key[:8], 16) >> 1  # of each item another one, the same in every run
    return Request(key, messages, prompt.schema, prompt.max_tokens, self.temperature, seed, prompt.language)

  def ask(self, requests: Iterable[Request], check: Check | None, name: str) -> Iterator[Outcome]:
    """Yields the outcome of each request in any order; of batches, of those alone that have an answer.

    `name` is that of the part.
    """
    if self.requests:
      batch_files.write(requests, self.requests, name, self.model)
    elif self.answers:
      yield from map(self._outcome, batch_files.find(self.answers, requests, check))
    else:
      client = _connect(self.endpoints, self.model, self.in_flight, self.timeout, self.key_file)
      yield from map(self._outcome, client.ask(requests, check))

  def _outcome(self, found: Answer | Failure) -> Outcome:
    if isinstance(found, Failure):
      detail = f"{found.detail}; it begins {found.raw[:200]!r}" if found.raw else found.detail
      return Outcome(found.key, failure=found.kind, detail=detail, attempts=found.attempts)
    tokens = found.usage.get("prompt_tokens", 0), found.usage.get("completion_tokens", 0)
    return Outcome(found.key, found.value, attempts=found.attempts, model=found.model or self.model, tokens=tokens)


_clients: dict[tuple, Client] = {}


def _connect(endpoints: tuple[str, ...], model: str, in_flight: int, timeout: float, key_file: str) -> Client:
  """A client, one for each process: its connections, and what it has learned of the servers, last from part to part."""
  settings = (endpoints, model, in_flight, timeout, key_file)
  if settings not in _clients:
    _clients[settings] = Client(endpoints, model, in_flight=in_flight, timeout=timeout, key=read_key(key_file or None))
  return _clients[settings]


@atexit.register
def close_clients() -> None:
  """Closes the connections of this process."""
  while _clients:
    _clients.popitem()[1].close()
