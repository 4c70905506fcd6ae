"""Set up for every test: JAX on eight CPU devices with strict dtypes, and the optional test material."""

import gc
import importlib.metadata
import os
import pathlib

# before JAX is imported; processes that tests start inherit all of it
os.environ["JAX_PLATFORMS"] = "cpu"
# Threads of NumPy's, scikit-learn's and PyTorch's own: for arrays as small as these, they spend the time waiting.
os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
# Threads of XLA's CPU client. A collective operation holds a thread for each device and each group of devices it waits
# for; with the default, one for each device, meshes of several axes come to wait for ever.
os.environ["NPROC"] = "64"
os.environ.setdefault(
  "XLA_FLAGS",
  # programs that run once or twice: compiling them well would take longer than running them does
  "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1 "
  # the XLA of newer versions has one way to compile fusions, and ends at a flag it does not know
  + ("--xla_cpu_use_fusion_emitters=false " if importlib.metadata.version("jaxlib").startswith("0.10.") else "")
  # on a busy machine a simulated device may wait longer than 40 seconds for the others, and XLA then aborts
  + "--xla_cpu_collective_call_terminate_timeout_seconds=600",
)

import hypothesis
import jax
import jaxtyping
import pytest
from absl import flags

from tests.helpers import buckets
from tests.helpers.toy import RECORDS, write_shards

ROOT = pathlib.Path(__file__).resolve().parents[1]

gc.set_threshold(50_000, 20, 50)  # of the many objects that tracing makes, most stay: looking for others takes long

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_dtype_promotion", "strict")

flags.FLAGS.mark_as_parsed()  # Grain's worker processes read absl flags, which only absl's own main parses

hypothesis.settings.register_profile("tests", deadline=None, max_examples=30, derandomize=True)
hypothesis.settings.load_profile("tests")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
  """Files with slow tests come first, so that all processes of pytest-xdist end at about the same time."""
  slow = {item.path for item in items if item.get_closest_marker("slow")}
  items.sort(key=lambda item: item.path not in slow)  # stable: a file's tests stay together and in order


@pytest.fixture(scope="session")
def root() -> pathlib.Path:
  """The repository."""
  return ROOT


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
  """The folder of optional test material beside the repository; a test that needs it skips without it."""
  path = ROOT.parent / "shared"
  if not path.is_dir():
    pytest.skip(f"needs the test material in {path}")
  return path


@pytest.fixture(scope="session")
def oracle(shared: pathlib.Path) -> pathlib.Path:
  """The recorded inputs and outputs of the published implementation; a test that needs them skips without them."""
  path = shared / "oracle"
  if not path.is_dir():
    pytest.skip(f"needs the recorded reference in {path}")
  return path


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> str:
  """A folder with the toy records in three shards; not to be written to."""
  folder = tmp_path_factory.mktemp("toy")
  write_shards(folder, RECORDS, shards=3)
  return str(folder)


@pytest.fixture(scope="session")
def bucket():
  """The URL of a bucket on a server on this machine; a test that needs it skips without the server's package."""
  with buckets.serve() as url:  # for the session: libraries remember the server that they have found first
    yield url


@pytest.fixture(scope="session")
def s3():
  """The URL of a bucket of Amazon S3 on a server on this machine; skips without the packages."""
  with buckets.serve_s3() as url:
    yield url


class QuickStep:
  """A jitted step, compiled once for each shape of batch, with the promotion of dtypes that Optax needs."""

  def __init__(self, step):
    self._step, self._compiled = step, {}

  def __call__(self, state, batch):
    shapes = tuple((name, array.shape) for name, array in batch.items())
    if shapes not in self._compiled:
      with jax.numpy_dtype_promotion("standard"):  # Optax's own code needs it
        self._compiled[shapes] = self._step.lower(state, batch).compile()
    return self._compiled[shapes](state, batch)


@pytest.fixture(scope="session")
def quick():
  """Makes a `QuickStep` of a jitted step."""
  return QuickStep


@pytest.fixture(scope="session")
def torch():
  """PyTorch; a test that needs it skips without it."""
  return pytest.importorskip("torch", reason="needs PyTorch, see requirements-dev.txt")


@pytest.fixture(scope="session")
def transformers(torch):
  """The transformers library; a test that needs it, or PyTorch, skips without it."""
  return pytest.importorskip("transformers", reason="needs transformers, see requirements-dev.txt")


@pytest.fixture
def unchecked():
  """Turns the checks of annotated types off, for tests that pass a wrong type to see the function's own error."""
  jaxtyping.config.update("jaxtyping_disable", True)
  yield
  jaxtyping.config.update("jaxtyping_disable", False)
