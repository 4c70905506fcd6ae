"""The error that every reader raises for a record that cannot be used, and the first line of any error."""


class RecordError(ValueError):
  """A record that cannot be used.

  Attributes:
    kind: the class of the fault in snake_case, e.g. `box_outside`; reports count by it.
    field: the field at fault, e.g. `bbox_info[2].bbox`.
    message: what is wrong with it.
  """

  def __init__(self, kind: str, field: str, message: str):
    super().__init__(f"{field}: {message}")
    self.kind, self.field, self.message = kind, field, message

  def __reduce__(self):
    return type(self), (self.kind, self.field, self.message)


def first_line(error: BaseException) -> str:
  """The first line of an error's message, or its type where it has none."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]
