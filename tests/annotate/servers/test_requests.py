"""The body of a request."""

from fgclip_jax.annotate.servers.requests import Request


def test_the_body_of_further_attempts():
  schema = {"type": "object", "properties": {"a": {"type": "string", "minLength": 3}}}
  request = Request("k", [{"role": "user", "content": "Describe it."}], schema, max_tokens=9, temperature=0.5, seed=7)
  first, second = request.body("m"), request.body("m", attempt=1, note="Avoid that.")
  assert first["seed"] == 7 and second["seed"] == 8
  assert (first["model"], first["max_tokens"], first["temperature"]) == ("m", 9, 0.5)
  sent = first["response_format"]["json_schema"]
  assert sent["strict"] and sent["schema"] == {"type": "object", "properties": {"a": {"type": "string"}}}
  assert first["messages"] == request.messages
  assert second["messages"] == [{"role": "user", "content": "Describe it.\n\nAvoid that."}]


def test_a_note_beside_a_picture():
  picture = {"type": "image_url", "image_url": {"url": "data:,x"}}
  request = Request("k", [{"role": "system", "content": "s"}, {"role": "user", "content": [picture]}])
  body = request.body("m", 1, "Avoid that.")
  assert "response_format" not in body
  assert body["messages"][0] == {"role": "system", "content": "s"}
  assert body["messages"][1]["content"] == [picture, {"type": "text", "text": "Avoid that."}]
  assert request.messages[1]["content"] == [picture]
