#!/usr/bin/env bash
# On a TPU VM: installs, and trains on its chips. launch/tpu_pod.sh runs this on every VM of a slice.
#
#   bash launch/tpu_vm.sh [--max_restarts=3] [--dry_run] -- --config=configs/stage1.py --workdir=DIR ...
#   bash launch/tpu_vm.sh                                 only installs
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

only_shared_flags "$@"

# Images of TPU VMs bring Python 3.10, which is too old; uv brings a newer one into the home folder.
if [[ ! -e .venv ]] && ! command -v python3.13 python3.12 python3.11 >/dev/null; then
  run python3 -m pip install --quiet --user uv
  run python3 -m uv python install 3.12
  PYTHON="$($dry_run || python3 -m uv python find 3.12)"
  export PYTHON
fi
run bash launch/setup.sh --tpu

if ((${#training[@]})); then
  # JAX_PLATFORMS: without chips this is an error, not a run on the CPU
  run exec bash launch/train_loop.sh --max_restarts="$max_restarts" \
    env JAX_PLATFORMS=tpu,cpu "${with_compiler_flags[@]}" .venv/bin/python -m fgclip_jax.main "${training[@]}"
fi
