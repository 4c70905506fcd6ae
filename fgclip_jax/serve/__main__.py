"""Serves a model over HTTP: embeddings of texts, pictures and regions, similarities, and searches of an index.

python -m fgclip_jax.serve --model runs/stage2
python -m fgclip_jax.serve --model runs/stage2 --index photos.index --host 0.0.0.0 --token_file token.txt

Requests of many callers are computed together. /health and /metrics (Prometheus) say how it goes, /openapi.json how to
ask; examples/serve_client.py is a client. The server answers this machine alone unless --host names another address,
and then only callers with the token.
"""

import argparse
import ipaddress
import secrets
import sys
from typing import Any

from fgclip_jax.cli import add_max_patches, exit_code, positive, print_error
from fgclip_jax.inference import programs
from fgclip_jax.inference.model import DTYPES, load
from fgclip_jax.serve.limits import LOOPBACK, Limits
from fgclip_jax.storage import paths

_BACKLOG = 2048  # connections that the system holds until they are accepted


def main(argv: list[str] | None = None) -> int:
  """Runs the command; returns its exit code."""
  args = _parser().parse_args(argv)
  try:
    _run(args)
  except KeyboardInterrupt:
    return 0
  except (OSError, ValueError, ModuleNotFoundError) as error:
    print_error(error)
    return exit_code(error)
  return 0


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog="python -m fgclip_jax.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  limits = Limits()
  parser.add_argument(
    "--model",
    metavar="DIR",
    default="runs/quickstart/stage2",
    help="a model in any format, or a run folder (default: %(default)s, which `bash launch/quickstart.sh` makes)",
  )
  parser.add_argument("--index", metavar="DIR", help="an index of `python -m fgclip_jax.index`, to be searched")
  parser.add_argument(
    "--host", default="127.0.0.1", help="the address to answer at (default: %(default)s, this machine)"
  )
  parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
  parser.add_argument("--token_file", metavar="FILE", help="holds the token that callers must give")
  parser.add_argument(
    "--max_batch", type=positive, default=32, metavar="N", help="items computed at once (default: 32)"
  )
  parser.add_argument("--max_wait", type=float, default=5.0, metavar="MS", help="for others to join (default: 5 ms)")
  parser.add_argument("--max_queue", type=positive, default=512, metavar="N", help="items that may wait (default: 512)")
  parser.add_argument("--timeout", type=float, default=30.0, metavar="S", help="of a request (default: 30 s)")
  parser.add_argument(
    "--max_bytes", type=positive, default=limits.bytes, metavar="N", help="of a request (default: %(default)s)"
  )
  parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="compute in this type (default: %(default)s)")
  add_max_patches(parser)
  return parser


def _run(args: argparse.Namespace) -> None:
  token = _read_token(args.token_file)
  alone = _is_loopback(args.host)
  if not alone and not token:
    raise ValueError(
      f"--host {args.host} can be reached from other machines: give --token_file, e.g. with {secrets.token_urlsafe(24)}"
    )
  if not 0 <= args.port < 65536:
    raise ValueError(f"--port must be 0..65535, got {args.port}")
  uvicorn, make_app, service_class, index_class = _import()
  index = index_class(args.index) if args.index else None  # a wrong one is told before the model is loaded
  if not paths.exists(args.model) and args.model == _parser().get_default("model"):
    raise FileNotFoundError(f"no model at {args.model!r}: make it by `bash launch/quickstart.sh`, or give --model")
  programs.use_compilation_cache()
  model = load(args.model, args.dtype, max_patches=args.max_patches)
  print(f"{args.model}: {model}", flush=True)
  service = service_class(
    model,
    index,
    max_batch=args.max_batch,
    max_wait=args.max_wait / 1000,
    max_queue=args.max_queue,
    timeout=args.timeout,
  )
  print("compiling for batches of up to", args.max_batch, flush=True)
  service.warm_up(sizes(args.max_batch))
  app = make_app(service, Limits(bytes=args.max_bytes), token, LOOPBACK if alone else ())
  config = uvicorn.Config(
    app,
    host=args.host,
    port=args.port,
    log_level="warning",
    access_log=False,
    server_header=False,
    backlog=_BACKLOG,
    timeout_keep_alive=10,
    h11_max_incomplete_event_size=64 << 10,
  )
  _make_server(uvicorn, config).run()


def _make_server(uvicorn: Any, config: Any) -> Any:
  """uvicorn's server, which prints its address once it answers."""

  class Server(uvicorn.Server):
    async def startup(self, sockets: Any = None) -> None:
      await super().startup(sockets)
      if self.started:
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        host = f"[{host}]" if ":" in host else host
        print(f"answering at http://{host}:{port}  (Ctrl-C ends)", flush=True)

  return Server(config)


def sizes(most: int) -> list[int]:
  """Sizes of batches that are warmed up: powers of two, and the largest."""
  return sorted({*(2**n for n in range(most.bit_length()) if 2**n <= most), most})


def _read_token(path: str | None) -> str:
  if path is None:
    return ""
  token = paths.read(path).decode("utf-8", "replace").strip()
  if len(token) < 16 or not token.isprintable() or " " in token:
    raise ValueError(f"--token_file {path!r} must hold one word of at least 16 characters")
  return token


def _is_loopback(host: str) -> bool:
  try:
    return ipaddress.ip_address(host).is_loopback
  except ValueError:
    return host == "localhost"


def _import() -> tuple[Any, Any, Any, Any]:
  try:
    import uvicorn

    from fgclip_jax.index.search import Index
    from fgclip_jax.serve.app import make_app
    from fgclip_jax.serve.service import Service
  except ModuleNotFoundError as error:
    if (error.name or "").startswith("fgclip_jax"):
      raise
    raise ModuleNotFoundError(f"{error}: pip install -r requirements-serve.txt") from error
  return uvicorn, make_app, Service, Index


if __name__ == "__main__":
  sys.exit(main())
