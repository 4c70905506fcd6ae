#!/usr/bin/env bash
# GPU nodes under Slurm, one process for each GPU: what JAX expects there, and it finds the others by itself.
# First, where the network is: bash launch/setup.sh --gpu. Then, from the repository's folder:
#
#   sbatch --nodes=4 launch/slurm.sh [--max_restarts=3] -- --config=configs/stage2.py --workdir=/SHARED/DIR ...
#   bash launch/slurm.sh --dry_run -- ...
#
# Any option below can be given to sbatch instead, e.g. --partition, --time; tasks and GPUs per node are the same number.
#SBATCH --job-name=fgclip
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
# the processes are told five minutes before the time is up; they save and end with 75
#SBATCH --signal=TERM@300
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"  # Slurm runs a copy of this file from elsewhere
[[ -e launch/common.sh ]] || { echo "slurm.sh: submit it from the repository's folder, not from $PWD" >&2; exit 2; }
# shellcheck source=launch/common.sh
source launch/common.sh

only_shared_flags "$@"
((${#training[@]})) || die "the training's flags come after --"
$dry_run || [[ -x .venv/bin/python ]] || die "no .venv here: run bash launch/setup.sh --gpu first"

# No --gpus-per-task: JAX takes the GPU of the task's number on its node, so every task has to see all of them.
# --wait: the others may still be saving when the first process has ended; what hangs after a failure ends by then.
# --cpus-per-task: srun does not take it over from sbatch.
# JAX_PLATFORMS: without GPUs this is an error, not a run on the CPU.
code=0
run bash launch/train_loop.sh --max_restarts="$max_restarts" --preempted=stop \
  srun --kill-on-bad-exit=0 --wait=300 ${SLURM_CPUS_PER_TASK:+--cpus-per-task="$SLURM_CPUS_PER_TASK"} \
  env JAX_PLATFORMS=cuda,cpu "${with_compiler_flags[@]}" .venv/bin/python -m fgclip_jax.main "${training[@]}" || code=$?
if ((code == 75)); then
  scontrol requeue "$SLURM_JOB_ID"  # back into the queue; it goes on from what was saved
fi
exit "$code"
