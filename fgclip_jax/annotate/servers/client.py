"""Asks model servers: many requests in flight over several endpoints, each answered or given up with a class.

Three kinds of failure are told apart. *Endpoints* that are busy or away cost a request nothing but time. *Requests*
that a server can never answer, such as one longer than the model's context, fail at once. *Answers* that cannot be used
are asked for again with another seed, and the model is told what was wrong.
"""

import collections
import dataclasses
import itertools
import json
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from fgclip_jax.annotate.servers import answers, faults, prompts, schemas
from fgclip_jax.annotate.servers.answers import Reply
from fgclip_jax.annotate.servers.balance import Balancer, Lane, StoppedError, Waits, draw_wait
from fgclip_jax.annotate.servers.endpoints import (
  CONNECT_TIMEOUT,
  Deadlines,
  Endpoint,
  LateError,
  LostError,
  OffError,
  check_key,
  parse_address,
)
from fgclip_jax.annotate.servers.faults import Fault, Scope, ServerError
from fgclip_jax.annotate.servers.health import Health, make_probe
from fgclip_jax.annotate.servers.requests import Answer, Check, Failure, Request

IN_FLIGHT = 64
TIMEOUT = 120.0  # seconds
PATIENCE = 600.0  # seconds
ATTEMPTS = 3
_JOIN = 5.0  # seconds: a thread may be held up by what makes the requests
_NOT_TOLD = {"timeout", "server_error", "answer_malformed"}  # the model has not done these
_LOSSES = 5  # broken connections that one request survives: a request that kills its server must not do so for ever


class Client:
  """A client of model servers with OpenAI's API.

  Attributes:
    counts: what became of each request, by class: `answered` are the good ones, `probe` those of the client itself,
      and `server_unreachable` those that never left. The sum of all others is what the servers were sent.
  """

  def __init__(
    self, endpoints: Sequence[str], model: str | None = None, *, in_flight: int = IN_FLIGHT, timeout: float = TIMEOUT,
    attempts: int = ATTEMPTS, key: str = "", patience: float | None = None, connect_timeout: float = CONNECT_TIMEOUT,
    log: Callable[[str], object] = print,
  ):  # fmt: skip
    """Makes it; nothing is sent yet.

    Args:
      endpoints: addresses such as `http://localhost:8000/v1`.
      model: its name on the servers; None: the only one that they have.
      in_flight: requests at each endpoint at the same time, at most.
      timeout: seconds from the start of a request to its whole response.
      attempts: answers that are asked for before a request is given up.
      key: the API key; "": none.
      patience: seconds without an answer from any endpoint after which the run ends; None: 600, or three timeouts.
      connect_timeout: seconds to make a connection.
      log: prints a line.

    Raises:
      ValueError: an address, a number or the key cannot be used.
    """
    addresses = list(dict.fromkeys(map(parse_address, endpoints)))
    if not addresses:
      raise ValueError("a model server needs an endpoint, such as http://localhost:8000/v1")
    for name, value in (("in_flight", in_flight), ("attempts", attempts)):
      if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    if not (0 < timeout < 1e6 and connect_timeout > 0):  # without an end a server that hangs would hold the run
      raise ValueError(f"timeouts must be above 0 and have an end, got {timeout} and {connect_timeout}")
    self.model = model
    self.counts: collections.Counter[str] = collections.Counter()
    self._key, self._timeout, self._attempts = key and check_key(key), timeout, attempts
    self._slots = in_flight * len(addresses)
    made = [Endpoint(address, timeout, key, connect_timeout) for address in addresses]
    self._balancer = Balancer(made, in_flight, max(PATIENCE, 3 * timeout) if patience is None else patience, log)
    self._lock = threading.Lock()
    self._health = Health()

  def ask(self, requests: Iterable[Request], check: Check | None = None) -> Iterator[Answer | Failure]:
    """Sends requests, and yields what comes of each as soon as it does, in any order.

    At most `in_flight` requests per endpoint have been taken from `requests` and not yet been dealt with by the caller:
    a slot is free again when the caller asks for the next result. A caller that stores each result loses no more than
    that when it is killed. Requests that come in one long stream keep the servers busier than several short ones.

    Args:
      requests: taken one by one from several threads, one at a time.
      check: returns the name of the rule that a value breaks, or None; called from several threads, one at a time.

    Raises:
      ServerError: the servers refuse access, do not know the model, answer nothing or nothing that can be used.
      Exception: what `requests` or `check` raised.
    """
    run = _Run(iter(requests), self._slots, self._timeout)
    self._balancer.begin()
    try:
      run.start(self._work, check and _in_turn(check))
      while (result := run.results.get()) is not None:
        yield result
        run.free.release()
      if run.error is not None:
        raise run.error
    finally:
      run.stop()

  def find_model(self) -> str:
    """The model that is asked: the one given, or the only one that the servers have.

    Raises:
      ServerError: they have none or several, or do not answer.
    """
    if self.model is None:
      listed = self.list_models()
      if len(listed) != 1:
        raise ServerError(f"the servers have {len(listed)} models: choose with --model ({', '.join(listed[:8])})")
      self.model = listed[0]
    return self.model

  def list_models(self) -> list[str]:
    """The names of the models that an endpoint has, as it gives them.

    Raises:
      ServerError: it does not answer, or refuses.
    """
    self._balancer.begin()
    deadlines = Deadlines(self._timeout)
    waits: Waits = {}
    try:
      for failures in itertools.count():
        with self._balancer.lease(waits, threading.Event()) as lane:
          found = self._exchange(lane, "GET", "/models", None, deadlines)
        if isinstance(found, bytes):
          return _read_models(found, lane)
        if found.scope in (Scope.ITEM, Scope.RUN):
          raise ServerError(f"{lane.endpoint.address}: {found.detail}")
        self._wait(waits, lane, found, failures)
      raise AssertionError  # the count has no end
    finally:
      deadlines.end()

  def close(self) -> None:
    """Closes the connections that are kept."""
    for lane in self._balancer.lanes:
      lane.endpoint.close()

  def __enter__(self) -> "Client":
    return self

  def __exit__(self, *error: object) -> None:
    self.close()

  def _work(self, run: "_Run", check: Check | None) -> None:
    """One thread: takes requests until there are none."""
    try:
      model = self.find_model() if self.model is None else self.model
      while (request := run.take()) is not None:
        run.start(self._work, check)
        run.results.put(self._settle(request, model, check, run))
    except StoppedError:
      pass
    except BaseException as error:
      run.fail(error)
    finally:
      run.leave()

  def _settle(self, request: Request, model: str, check: Check | None, run: "_Run") -> Answer | Failure:
    """Asks until there is an answer, or none can be had."""
    if request.schema is not None:
      schemas.check_schema(request.schema)
    retried: list[str] = []
    waits: Waits = {}
    attempt = losses = failures = 0
    note = ""
    while True:
      body = json.dumps(request.body(model, attempt, note)).encode()
      with self._balancer.lease(waits, run.stopped) as lane:
        found = self._exchange(lane, "POST", "/chat/completions", body, run.deadlines)
        if isinstance(found, Fault) and found.kind == "server_error":
          found = self._suspect(lane, request, found, model, run.deadlines)
      outcome = _read(request, found, check) if isinstance(found, bytes) else found
      if run.stopped.is_set() and isinstance(outcome, Fault):
        raise StoppedError  # its connection was broken from here
      self._count(outcome.kind if isinstance(outcome, Fault) else "answered")
      if isinstance(outcome, Reply):
        self._health.record_answer()
        return Answer(request.key, outcome.value, outcome.model, outcome.usage, attempt + 1, tuple(retried))
      hint = self._health.record_fault(request.key, outcome.kind)
      if outcome.scope is Scope.RUN or hint:
        raise ServerError(f"{lane.endpoint.address}: {outcome.detail}{hint}")
      attempt += outcome.scope in (Scope.ATTEMPT, Scope.ITEM)
      losses += outcome.scope is Scope.LOST
      if outcome.scope is Scope.ITEM or attempt >= self._attempts or losses >= _LOSSES:
        return Failure(request.key, outcome.kind, outcome.detail, max(attempt, 1), tuple(retried), outcome.raw)
      retried.append(outcome.kind)
      if outcome.scope is Scope.ATTEMPT:
        note = "" if outcome.kind in _NOT_TOLD else _describe(outcome, request)
      elif outcome.kind != "server_unreachable":  # then the endpoint itself is closed for a while
        self._wait(waits, lane, outcome, failures)
        failures += 1

  def _exchange(self, lane: Lane, method: str, path: str, body: bytes | None, deadlines: Deadlines) -> bytes | Fault:
    """One exchange at an endpoint: the body of a response with status 200, or a fault."""
    try:
      response = lane.endpoint.exchange(method, path, body, deadlines)
    except OffError as error:
      self._balancer.turn_off(lane, str(error))
      return Fault(Scope.ENDPOINT, "server_unreachable", str(error))
    except LateError as error:
      self._balancer.record_busy(lane, limited=False, detail=str(error))
      return Fault(Scope.ATTEMPT, "timeout", str(error))
    except LostError as error:
      return Fault(Scope.LOST, "connection_lost", f"the connection broke ({error})")
    if response.status == 200:
      self._balancer.record_answer(lane)
      return response.data
    fault = faults.classify(response.status, response.headers, response.data)
    if self._key and self._key in fault.detail:  # a server may repeat what it was sent
      fault = dataclasses.replace(fault, detail=fault.detail.replace(self._key, "***"))
    if fault.scope is Scope.ENDPOINT:
      self._balancer.record_busy(lane, limited=response.status == 429, detail=fault.detail)
    elif fault.kind != "server_error":  # which says nothing about the server before it is looked into
      self._balancer.record_answer(lane)
    return fault

  def _suspect(self, lane: Lane, request: Request, fault: Fault, model: str, deadlines: Deadlines) -> Fault:
    """After status 500: where several requests have had it, asks the server what any server can answer.

    Returns:
      The fault as it is: the requests are at fault. Or one of the run: the server takes no pictures. Or one of the
      endpoint: it answers nothing.
    """
    if not lane.off and not self._health.needs_probe(request.key, fault.detail):
      return fault
    pictures = any(isinstance(message["content"], list) for message in request.messages)
    for picture in (True, False) if pictures else (False,):
      body = json.dumps(make_probe(model, picture)).encode()
      found = self._exchange(lane, "POST", "/chat/completions", body, deadlines)
      self._count("probe")
      if isinstance(found, bytes) and pictures and not picture:
        detail = f"{fault.detail}: it answers without a picture, and never with one; serve a model that takes pictures"
        return Fault(Scope.RUN, fault.kind, detail)
      if isinstance(found, bytes):
        self._health.record_probe(good=True)
        return fault
    self._health.record_probe(good=False)
    self._balancer.turn_off(lane, fault.detail)
    return Fault(Scope.ENDPOINT, fault.kind, fault.detail)

  def _count(self, kind: str) -> None:
    with self._lock:
      self.counts[kind] += 1

  def _wait(self, waits: Waits, lane: Lane, fault: Fault, failures: int) -> None:
    """Keeps a request from an endpoint for as long as that asks, or else for a random time."""
    seconds = draw_wait(failures) if fault.wait is None else fault.wait
    waits[lane] = (lane.outages, time.monotonic() + seconds)


class _Run:
  """What the threads of one `ask` share."""

  def __init__(self, requests: Iterator[Request], slots: int, timeout: float):
    self.results: queue.SimpleQueue[Answer | Failure | None] = queue.SimpleQueue()  # None: that was all
    self.free = threading.Semaphore(slots)
    self.stopped = threading.Event()
    self.error: BaseException | None = None
    self.deadlines = Deadlines(timeout)
    self._requests, self._slots, self._exhausted = requests, slots, False
    self._lock, self._taking = threading.Lock(), threading.Lock()
    self._threads: list[threading.Thread] = []
    self._working = 0

  def start(self, work: Callable[..., None], *arguments: Any) -> None:
    """Starts one more thread, unless there are enough."""
    with self._lock:
      if len(self._threads) == self._slots or self._exhausted or self.stopped.is_set():
        return
      thread = threading.Thread(target=work, args=(self, *arguments), daemon=True)
      thread.start()  # before it is counted: the system may allow no more
      self._threads.append(thread)
      self._working += 1

  def take(self) -> Request | None:
    """The next request, once a slot is free; None: there is none."""
    self.free.acquire()
    with self._taking:
      request = None if self._exhausted or self.stopped.is_set() else next(self._requests, None)
      if request is None:
        self._exhausted = True
        self.free.release()  # for the thread that waits next
      return request

  def fail(self, error: BaseException) -> None:
    """Ends the run with an error; the first one counts."""
    with self._lock:
      self.error = self.error or error
    self._halt()

  def leave(self) -> None:
    """At a thread's end."""
    with self._lock:
      self._working -= 1
      if not self._working:
        self.results.put(None)

  def stop(self) -> None:
    """Ends the run; requests in flight are broken off."""
    self._halt()
    for thread in self._threads:
      thread.join(_JOIN)

  def _halt(self) -> None:
    self.stopped.set()
    self.free.release(self._slots)
    self.deadlines.end()


def _in_turn(check: Check) -> Check:
  """A check that is called by one thread at a time: it may count what it has seen."""
  lock = threading.Lock()

  def checked(request: Request, value: Any) -> str | None:
    with lock:
      return check(request, value)

  return checked


def _read(request: Request, data: bytes, check: Check | None) -> Reply | Fault:
  """The value of a response with status 200, or what is wrong with it."""
  try:
    payload = json.loads(data)
  except (ValueError, RecursionError):
    said = faults.describe(data)
    return Fault(Scope.ATTEMPT, "answer_malformed", f"the response is no JSON: {said[:80]!r}", said)
  try:
    return answers.read_checked(request, payload, check)
  except answers.AnswerError as error:
    return Fault(Scope.ATTEMPT, error.kind, error.message, error.raw)


def _describe(fault: Fault, request: Request) -> str:
  return prompts.describe_rule(fault.kind, fault.detail if fault.kind == "answer_schema" else "", request.language)


def _read_models(data: bytes, lane: Lane) -> list[str]:
  try:
    return [str(each["id"]) for each in json.loads(data)["data"]]
  except (ValueError, KeyError, TypeError, RecursionError) as error:
    raise ServerError(f"{lane.endpoint.address}/models gives no list of models: give the name with --model") from error
