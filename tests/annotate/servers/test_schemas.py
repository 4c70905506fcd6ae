"""The check of values against the schemas that requests use."""

import pytest

from fgclip_jax.annotate.servers import schemas

SCHEMA = {
  "type": "object",
  "additionalProperties": False,
  "required": ["kind", "boxes"],
  "properties": {
    "kind": {"type": "string", "enum": ["a", "b"], "maxLength": 1},
    "boxes": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "number", "minimum": 0, "maximum": 10}},
    "count": {"type": "integer"},
    "note": {"type": "string", "minLength": 2, "pattern": "^x"},
    "sure": {"type": "boolean"},
  },
}


def test_a_value_that_fits():
  schemas.check_schema(SCHEMA)
  assert schemas.find_fault({"kind": "a", "boxes": [0, 9.5], "count": 3, "note": "xy", "sure": True}, SCHEMA) is None


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ({"kind": "c"}, "answer.kind is 'c', not one of a, b"),
    ({"kind": 1}, "answer.kind is of type int, not string"),
    ({"boxes": []}, "answer.boxes has 0 items, at least 1 are wanted"),
    ({"boxes": [1, 2, 3]}, "answer.boxes has 3 items, at most 2 are wanted"),
    ({"boxes": [1, 11]}, "answer.boxes[1] is 11, above 10"),
    ({"boxes": [-1]}, "answer.boxes[0] is -1, below 0"),
    ({"boxes": [float("inf")]}, "answer.boxes[0] is inf"),
    ({"boxes": [True]}, "answer.boxes[0] is of type bool, not number"),
    ({"count": 1.5}, "answer.count is of type float, not integer"),
    ({"note": "x"}, "answer.note has 1 characters, at least 2 are wanted"),
    ({"note": "yx"}, "answer.note is 'yx', which does not fit the pattern ^x"),
    ({"sure": 1}, "answer.sure is of type int, not boolean"),
    ({"other": 1}, "answer has 'other', which was not asked for"),
  ],
)
def test_what_is_wrong_is_said(change, message):
  assert schemas.find_fault({"kind": "a", "boxes": [1]} | change, SCHEMA) == message


def test_missing_members():
  assert schemas.find_fault({"kind": "a"}, SCHEMA) == "answer has no 'boxes' but 'kind'"
  assert schemas.find_fault({}, SCHEMA) == "answer has no 'kind': it is empty"
  assert schemas.find_fault([], SCHEMA) == "answer is of type list, not object"


def test_what_is_sent_has_no_keywords_that_servers_cannot_express():
  sent = schemas.simplify(SCHEMA)
  assert sent["properties"]["kind"] == {"type": "string", "enum": ["a", "b"]}
  assert sent["properties"]["note"] == {"type": "string"}
  assert sent["properties"]["boxes"] == {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "number"}}
  assert SCHEMA["properties"]["note"]["pattern"] == "^x"


@pytest.mark.parametrize(
  ("schema", "message"),
  [
    ({"type": "object", "properties": {"a": {"type": "string", "format": "date"}}}, "schema.a: 'format' is not"),
    ({"type": "array", "items": {"type": "text"}}, r"schema\[\]: needs a type of .*, got 'text'"),
  ],
)
def test_a_keyword_that_would_not_be_checked_is_refused(schema, message):
  with pytest.raises(ValueError, match=message):
    schemas.check_schema(schema)
