"""The client against a server that fails: what is asked again, what is given up, and what ends a run."""

import collections
import threading
import time

import pytest

from fgclip_jax.annotate.rules import caption_checks
from fgclip_jax.annotate.servers import balance, client, prompts
from fgclip_jax.annotate.servers.faults import ServerError
from fgclip_jax.annotate.servers.requests import Answer, Failure, Request
from tests.helpers import buckets, model_server

SCHEMA = prompts.CAPTION_SCHEMA


def ask(number, text="Describe", **options) -> Request:
  return Request(f"{number}", [{"role": "user", "content": f"{text} {number}."}], SCHEMA, **options)


def number_of(body) -> int:
  """The number of the item that a request's body is about."""
  content = body["messages"][-1]["content"]
  text = content if isinstance(content, str) else content[-1]["text"]
  return int(text.split(".")[0].split()[-1]) if text[0] != "S" else -1


def once(kind, numbers):
  """Decides that the first attempts of some items meet a fault."""
  seen: set[int] = set()

  def decide(body, _):
    number = number_of(body)
    if number in seen or number not in numbers:
      return None
    seen.add(number)
    return kind

  return decide


def always(kind, numbers):
  return lambda body, _: kind if number_of(body) in numbers else None


@pytest.fixture
def quick_waits(monkeypatch):
  monkeypatch.setattr(balance, "FIRST_WAIT", 0.01)
  monkeypatch.setattr(balance, "LONGEST_WAIT", 0.2)


def make(*urls, **options) -> client.Client:
  return client.Client(urls, **{"in_flight": 8, "timeout": 5.0, "patience": 10.0, "log": lambda line: None} | options)


def run(server, requests, check=None, **options):
  """The results by key, and the client's counts."""
  with make(server.url, **options) as made:
    results = {result.key: result for result in made.ask(requests, check)}
    return results, made.counts


def check_counts(counts, server, renamed):
  """Every request that the server has seen is counted in the class that it belongs to."""
  expected = collections.Counter()
  for kind, count in server.log.items():
    expected[renamed.get(kind, kind)] += count
  assert {kind: count for kind, count in counts.items() if kind not in ("server_unreachable", "probe")} == expected


def test_every_request_is_answered_once():
  with model_server.serve(delay=0.01) as server:
    results, counts = run(server, map(ask, range(200)), in_flight=16)
    assert sorted(results, key=int) == [f"{n}" for n in range(200)]
    assert server.most <= 16 and server.connections <= 16
  assert counts == {"answered": 200}
  answer = results["7"]
  assert isinstance(answer, Answer)
  assert set(answer.value) == {"long", "short", "unusable"}
  assert (answer.model, answer.attempts, answer.retried) == ("stub-1", 1, ())
  assert answer.usage["prompt_tokens"] == 10


def test_what_is_not_stored_is_bounded():
  taken = []
  with model_server.serve() as server, make(server.url, in_flight=4) as made:
    results = made.ask(ask(taken.append(n) or n) for n in range(100))
    for done in range(20):
      next(results)
      time.sleep(0.005)
      assert len(taken) <= done + 4
    results.close()
    time.sleep(0.05)
    assert len(taken) <= 25
    assert sum(server.log.values()) <= 25


@pytest.mark.parametrize(
  ("kind", "named", "told"),
  [
    ("empty", "answer_empty", "no text"),
    ("cut", "answer_cut", "broke off"),
    ("blank", "answer_cut", "broke off"),
    ("prose", "answer_not_json", "not the JSON object"),
    ("schema", "answer_schema", "has no 'long' but 'description'"),
    ("refusal", "answer_refusal", "declined"),
    ("html", "answer_malformed", ""),
    ("error", "server_error", ""),
    ("hang", "timeout", ""),
  ],
)
def test_an_answer_that_cannot_be_used_is_asked_for_again(kind, named, told):
  with model_server.serve(decide=once(kind, {3}), keep=True) as server:
    results, counts = run(server, map(ask, range(5)), timeout=0.5)
    assert all(isinstance(result, Answer) for result in results.values())
    assert (results["3"].attempts, results["3"].retried) == (2, (named,))
    assert counts == {"answered": 5, named: 1}
    first, second = [body for body in server.bodies if number_of(body) == 3]
    assert second["seed"] == first["seed"] + 1
    text = second["messages"][-1]["content"]
    assert text.startswith("Describe 3.") and told in text and (bool(told) == ("could not be used" in text))


def test_three_attempts_at_most_and_the_others_go_on():
  with model_server.serve(decide=always("cut", {3})) as server:
    results, counts = run(server, map(ask, range(30)))
  failure = results.pop("3")
  assert isinstance(failure, Failure)
  assert (failure.kind, failure.attempts, failure.retried) == ("answer_cut", 3, ("answer_cut",) * 2)
  assert failure.raw.startswith('{"long": "a long of ')
  assert all(isinstance(result, Answer) for result in results.values())
  assert counts == {"answered": 29, "answer_cut": 3}


def test_a_rule_is_named_in_the_requests_language():
  check = lambda request, value: "caption_repeats" if request.key == "2" else None  # noqa: E731
  with model_server.serve(keep=True) as server:
    results, counts = run(server, [ask(n, language="zh") for n in range(4)], check)
    assert (results["2"].kind, results["2"].attempts) == ("caption_repeats", 3)
    assert "每样东西只说一次" in [body for body in server.bodies if number_of(body) == 2][1]["messages"][0]["content"]
  assert counts == {"answered": 3, "caption_repeats": 3}


GOOD = (
  "A striped cat sits on a blue wooden chair beside a window. In front of it stands a round table with a white cup and "
  "two books. A green curtain hangs at the left."
)


@pytest.mark.parametrize(
  ("caption", "named"),
  [
    ("Je suis désolé, mais je ne peux pas décrire cette image.", "caption_refusal"),
    (f"{prompts.make_caption_prompt().text[:120]} {GOOD}", "caption_echoes_prompt"),
    (" ".join(f"There is chair number {number} in the room." for number in range(30)), "caption_repeats"),
    (f"{GOOD} The cat has a score of 0.983.", "caption_numbers"),
  ],
)
def test_captions_that_break_a_rule_are_asked_for_again(caption, named):
  asked = collections.Counter()

  def answer(body):
    asked[number := number_of(body)] += 1
    return {"long": caption if number == 1 and asked[1] == 1 else GOOD, "short": "A cat.", "unusable": False}

  def check(request, value):
    return caption_checks.check(value["long"], [prompts.make_caption_prompt().text])

  with model_server.serve(answer=answer) as server:
    results, counts = run(server, map(ask, range(4)), check)
  assert results["1"].retried == (named,) and results["1"].value["long"] == GOOD
  assert counts == {"answered": 4, named: 1}


def test_a_server_with_one_caption_for_all():
  same = caption_checks.SameText()

  def check(request, value):
    return "caption_same_for_many" if same.add(value["long"]) else None

  with model_server.serve(answer=lambda body: {"long": GOOD, "short": "A cat.", "unusable": False}) as server:
    results, counts = run(server, map(ask, range(20)), check, attempts=1)
  assert counts == {"answered": 3, "caption_same_for_many": 17}
  assert sum(isinstance(result, Failure) for result in results.values()) == 17


def test_a_server_that_ignores_the_schema_ends_the_run():
  with model_server.serve(faults={"prose": 0.6, "schema": 0.4}) as server:
    with pytest.raises(ServerError, match=r"10 requests in a row have failed like this; the server ignores the schema"):
      run(server, map(ask, range(500)))
    assert sum(server.log.values()) < 40


def test_one_request_that_is_too_long_fails_alone():
  with model_server.serve(decide=always("too_long", {77})) as server:
    results, counts = run(server, map(ask, range(300)), in_flight=16)
  assert (results["77"].kind, results["77"].attempts) == ("answer_too_long", 1)
  assert "exceed_context_size_error" in results["77"].detail
  assert counts == {"answered": 299, "answer_too_long": 1}


def test_an_error_for_some_pictures_stops_nothing():
  with model_server.serve(decide=always("error", {2, 3, 4, 5})) as server:
    results, counts = run(server, map(ask, range(40)), in_flight=1)
  assert {key for key, result in results.items() if isinstance(result, Failure)} == {"2", "3", "4", "5"}
  assert results["2"].kind == "server_error" and results["2"].attempts == 3
  assert counts["server_error"] == 12 and counts["answered"] == 36
  assert counts["probe"] >= 1  # three different requests in a row had it


def test_a_server_that_takes_no_pictures_ends_the_run():
  def decide(body, _):
    return "error" if isinstance(body["messages"][-1]["content"], list) else None

  pictures = [
    Request(f"{n}", prompts.caption_messages(prompts.make_caption_prompt(), "data:image/jpeg;base64,AA=="), SCHEMA)
    for n in range(20)
  ]
  with model_server.serve(decide=decide) as server:
    with pytest.raises(ServerError, match="it answers without a picture, and never with one"):
      run(server, pictures, in_flight=1)


def test_a_server_that_fails_at_everything_is_waited_for(quick_waits):
  sick = threading.Event()
  sick.set()
  with model_server.serve(decide=lambda body, _: "error" if sick.is_set() else None) as server:
    threading.Timer(0.5, sick.clear).start()
    results, counts = run(server, map(ask, range(20)), in_flight=1)
  assert sum(isinstance(result, Failure) for result in results.values()) <= 3
  assert counts["probe"] >= 1


@pytest.mark.parametrize("kind", ["busy_unsaid", "loading"])
def test_a_busy_server_costs_no_attempt(quick_waits, kind):
  until = time.monotonic() + 0.7
  lines = []
  with model_server.serve(decide=lambda body, _: kind if time.monotonic() < until else None) as server:
    results, counts = run(server, map(ask, range(40)), log=lines.append)
    check_counts(counts, server, {kind: "server_busy"})
  assert all(isinstance(result, Answer) and result.attempts == 1 for result in results.values())
  assert counts["server_busy"] > 8
  assert any(result.retried[:1] == ("server_busy",) for result in results.values())


def test_what_the_server_asks_to_wait_is_waited():
  with model_server.serve(decide=once("busy", {1}), retry_after=0.6) as server:
    started = time.monotonic()
    results, _ = run(server, [ask(1)])
    assert 0.6 <= time.monotonic() - started < 3
  assert results["1"].retried == ("server_busy",)


def test_the_limit_falls_to_what_the_server_takes(quick_waits):
  with model_server.serve(limit=3, delay=0.01) as server:
    results, counts = run(server, map(ask, range(150)), in_flight=32)
    assert server.most <= 32
  assert len(results) == 150 and all(isinstance(result, Answer) for result in results.values())
  assert counts["server_busy"] < 450


def test_a_connection_that_breaks_is_made_again(quick_waits):
  with model_server.serve(decide=once("reset", set(range(0, 60, 4)))) as server:
    results, counts = run(server, map(ask, range(60)))
    check_counts(counts, server, {"reset": "connection_lost"})
  assert all(result.attempts == 1 for result in results.values())
  with model_server.serve(decide=always("reset", {1})) as server:
    results, counts = run(server, map(ask, range(5)))
  assert results["1"].kind == "connection_lost" and counts["connection_lost"] == 5 and counts["answered"] == 4


def test_another_endpoint_takes_over(quick_waits):
  lines = []
  first, second = (model_server.ModelServer(delay=0.02) for _ in range(2))
  try:
    with make(first.url, second.url, log=lines.append) as made:
      results = []
      for result in made.ask(map(ask, range(300))):
        results.append(result)
        if len(results) == 100:
          first.stop()
      counts = made.counts
    assert len(results) == 300 and all(isinstance(result, Answer) and result.attempts == 1 for result in results)
    assert 30 < first.log["answered"] < 80
    assert counts["answered"] == 300
    assert f"{first.url} is off" in lines[0] and all(first.url in line for line in lines)
  finally:
    second.stop()


def test_a_server_that_comes_later(quick_waits):
  port = buckets.free_port()
  started = []
  threading.Timer(0.4, lambda: started.append(model_server.ModelServer(port=port))).start()
  with make(f"http://127.0.0.1:{port}/v1") as made:
    assert all(isinstance(result, Answer) for result in made.ask(map(ask, range(20))))
  started[0].stop()


def test_no_server_at_all(quick_waits):
  with make(f"http://127.0.0.1:{buckets.free_port()}/v1", model="m", patience=0.3) as made:
    with pytest.raises(ServerError, match=r"no model server has answered for 0 s .*cannot be reached"):
      list(made.ask([ask(1)]))


def test_a_key_is_sent_and_never_shown():
  with model_server.serve(key="sk-right") as server:
    results, _ = run(server, [ask(1)], key="sk-right")
    assert isinstance(results["1"], Answer)
    with pytest.raises(ServerError, match="HTTP 401: Incorrect API key: Bearer .*set OPENAI_API_KEY") as caught:
      run(server, [ask(1)], key="sk-wrong", model="stub")
    assert "sk-wrong" not in str(caught.value)


def test_models():
  with model_server.serve(model="org/model") as server, make(server.url) as made:
    assert made.list_models() == ["org/model"] and made.find_model() == "org/model"
  with model_server.serve() as server, make(server.url.replace("/v1", "/v2"), model="m") as made:
    with pytest.raises(ServerError, match="HTTP 404: File Not Found.*mostly /v1"):
      list(made.ask([ask(1)]))


def test_errors_of_the_caller_come_through():
  def requests():
    yield ask(1)
    raise OSError("disk gone")

  def check(request, value):
    raise KeyError("bug")

  with model_server.serve() as server, make(server.url) as made:
    with pytest.raises(OSError, match="disk gone"):
      list(made.ask(requests()))
    with pytest.raises(KeyError, match="bug"):
      list(made.ask([ask(1)], check))
    assert list(made.ask([])) == []
    assert len(list(made.ask(map(ask, range(9))))) == 9  # it is as good as new


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"in_flight": 0}, "in_flight must be"),
    ({"timeout": 0.0}, "timeouts must be"),
    ({"key": "sk 1\n"}, "the API key must be"),
    ({"timeout": float("inf")}, "timeouts"),
  ],
)
def test_options_that_cannot_work(options, message):
  with pytest.raises(ValueError, match=message):
    make("http://h/v1", **options)
  with pytest.raises(ValueError, match="needs an endpoint"):
    make()


def test_all_faults_at_once_and_every_request_is_accounted_for():
  faults = {
    "busy": 0.05, "loading": 0.03, "reset": 0.02, "hang": 0.01, "cut": 0.02, "refusal": 0.01, "empty": 0.01,
    "schema": 0.01,
  }  # fmt: skip
  with model_server.serve(faults=faults, delay=0.02, retry_after=0.1) as server:
    started = time.monotonic()
    results, counts = run(server, map(ask, range(600)), in_flight=32, timeout=1.0)
    assert time.monotonic() - started < 30
    names = {
      "busy": "server_busy", "loading": "server_busy", "reset": "connection_lost", "hang": "timeout",
      "cut": "answer_cut", "refusal": "answer_refusal", "empty": "answer_empty", "schema": "answer_schema",
    }  # fmt: skip
    check_counts(counts, server, names)
  assert len(results) == 600
  failed = [result for result in results.values() if isinstance(result, Failure)]
  assert not {"server_busy"} & {result.kind for result in failed}
  retries = sum(len(result.retried) for result in results.values())
  assert sum(counts.values()) == 600 + retries
