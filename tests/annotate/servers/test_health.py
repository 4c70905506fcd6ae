"""Failures in a row."""

from fgclip_jax.annotate.servers.health import Health, make_probe


def test_ten_requests_in_a_row():
  health = Health()
  assert not any(health.record_fault("same", "answer_schema") for _ in range(30))
  assert not any(health.record_fault(f"{n}", "timeout") for n in range(30))
  assert not any(health.record_fault(f"{n}", ("answer_schema", "answer_not_json")[n % 2]) for n in range(8))
  health.record_answer()
  hints = [health.record_fault(f"{n}", "answer_not_json") for n in range(10)]
  assert not any(hints[:9])
  assert "10 requests in a row" in hints[9] and "json_schema" in hints[9]


def test_the_same_status_500_for_three_requests():
  health = Health()
  assert not any(health.needs_probe("a", "slot 1 failed") for _ in range(5))
  assert not health.needs_probe("b", "another error")
  assert not health.needs_probe("b", "slot 2 failed")
  health.record_answer()
  assert [health.needs_probe(key, "slot 3 failed") for key in "abc"] == [False, False, True]
  health.record_probe(good=False)
  assert [health.needs_probe(key, "slot 3 failed") for key in "abc"] == [False, False, True]
  health.record_probe(good=True)
  assert [health.needs_probe(f"{n}", "slot 3 failed") for n in range(12)] == [False] * 11 + [True]


def test_a_probe():
  assert make_probe("m", picture=False)["messages"] == [{"role": "user", "content": "Say yes."}]
  assert make_probe("m", picture=True)["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/jpeg")
