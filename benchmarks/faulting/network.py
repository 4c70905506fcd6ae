"""A bucket behind a network that can be bad."""

import contextlib
import dataclasses
import os
from collections import Counter
from collections.abc import Iterator

from faulting.proxy import Conditions, Proxy
from tests.helpers import buckets

CALM = Conditions()


@dataclasses.dataclass
class Network:
  """A bucket's server, and a proxy that runs reach it through.

  Attributes:
    bucket: the bucket's URL.
    proxy: between the runs and the server.
    environment: variables by which a run finds the proxy.
  """

  bucket: str
  proxy: Proxy
  environment: dict[str, str]

  @contextlib.contextmanager
  def conditions(self, now: Conditions) -> Iterator[Counter[str]]:
    """Has requests meet such conditions in the block; gives counts of what they have met, complete at its end."""
    before, met = Counter(self.proxy.met), Counter()
    self.proxy.conditions = now
    try:
      yield met
    finally:
      self.proxy.conditions = CALM
      met.update(self.proxy.met - before)


@contextlib.contextmanager
def serve(seed: int) -> Iterator[Network]:
  """Runs the server and the proxy. This process itself reaches the server directly."""
  port, own_port = buckets.free_port(), buckets.free_port()
  with buckets.start_server(port, f"http://127.0.0.1:{own_port}") as url:
    bucket = buckets.make_bucket(url, "faults")
    os.environ.update(buckets.environment(url))
    proxy = Proxy(port, own_port, seed)
    with contextlib.closing(proxy):
      yield Network(bucket, proxy, buckets.environment(proxy.url))
