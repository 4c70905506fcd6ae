#!/usr/bin/env bash
# A TPU slice, or several: makes them, trains on all of their VMs, shows the log. Runs where gcloud is set up.
#
#   bash launch/tpu_pod.sh create --name=NAME --zone=ZONE --type=v5litepod-256 --version=v2-alpha-tpuv5-lite [--spot]
#   bash launch/tpu_pod.sh train  --name=NAME --zone=ZONE [--max_restarts=3] -- --config=... --workdir=/SHARED/DIR ...
#   bash launch/tpu_pod.sh log    --name=NAME --zone=ZONE [--worker=0]
#   bash launch/tpu_pod.sh stop   --name=NAME --zone=ZONE       saves and ends the run
#   bash launch/tpu_pod.sh delete --name=NAME --zone=ZONE
#
# Everywhere: --slices=N for several slices (VMs NAME-0, NAME-1, ...; joined by the data-center network), --dry_run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

action="${1:-}"
shift || true
name="" zone="" type="" version="" slices=1 worker=0 spot=""
while (($#)); do
  case "$1" in
    --name=* | --zone=* | --type=* | --version=*) flag="${1%%=*}"; printf -v "${flag#--}" "%s" "${1#*=}" ;;
    --slices=*) slices="$(whole_number "$1")" || exit ;;
    --worker=*) worker="$(whole_number "$1")" || exit ;;
    --spot) spot=true ;;
    --) shift; break ;;
    *) shared_flag "$1" || die "unknown flag '$1'; the training's own flags come after --" ;;
  esac
  shift
done
need name zone

nodes=("$name")
if ((slices > 1)); then
  nodes=()
  for ((slice = 0; slice < slices; slice++)); do nodes+=("$name-$slice"); done
fi

# Runs a shell command on all VMs of all slices, slices at the same time.
on_all() {
  local node jobs=() job failed=false
  for node in "${nodes[@]}"; do
    run gcloud compute tpus tpu-vm ssh "$node" --zone="$zone" --worker=all --command="$1" &
    jobs+=($!)
    if $dry_run; then wait $!; fi  # keeps the lines in order
  done
  for job in "${jobs[@]}"; do wait "$job" || failed=true; done
  if $failed; then echo "tpu_pod.sh: it failed on a VM, see above" >&2; exit 1; fi
}

case "$action" in
  create)
    need type version
    if ((slices > 1)); then place=(--node-count="$slices" --node-prefix="$name"); else place=(--node-id="$name"); fi
    run gcloud compute tpus queued-resources create "$name" --zone="$zone" --accelerator-type="$type" \
      --runtime-version="$version" "${place[@]}" ${spot:+--spot}
    $dry_run || echo "next, once it is ACTIVE: gcloud compute tpus queued-resources describe $name --zone=$zone"
    ;;
  train)
    (($#)) || die "train takes the training's flags after --"
    archive="${TMPDIR:-/tmp}/fgclip_jax-$name.tar.gz"
    # what git knows of and what is new, but nothing it ignores: no data, no runs, no .venv
    files="git ls-files -z --cached --others --exclude-standard"
    run bash -o pipefail -c "$files | tar -czf $(quoted "$archive") --null -T -"
    for node in "${nodes[@]}"; do
      run gcloud compute tpus tpu-vm scp "$archive" "$node:fgclip_jax.tar.gz" --zone="$zone" --worker=all
    done
    # shellcheck disable=SC2016  # for the shells there
    idle='if kill -0 "$(cat fgclip_jax/train.pid 2>/dev/null)" 2>/dev/null; then'
    idle+=' echo "a run is under way here: stop it first" >&2; exit 1; fi'
    on_all "$idle; mkdir -p fgclip_jax && tar -xzf fgclip_jax.tar.gz -C fgclip_jax && bash fgclip_jax/launch/tpu_vm.sh"
    command="$(quoted bash launch/tpu_vm.sh --max_restarts="$max_restarts" -- "$@")"
    # it goes on when the connection is closed
    # shellcheck disable=SC2016
    on_all "cd fgclip_jax && { setsid nohup $command > train.log 2>&1 < /dev/null & "'echo $! > train.pid; }'
    $dry_run || echo "next: bash launch/tpu_pod.sh log --name=$name --zone=$zone --slices=$slices"
    ;;
  log)
    run gcloud compute tpus tpu-vm ssh "${nodes[0]}" --zone="$zone" --worker="$worker" \
      --command="tail -n 100 -F fgclip_jax/train.log"
    ;;
  stop)
    # shellcheck disable=SC2016
    on_all 'kill -TERM "$(cat fgclip_jax/train.pid)"'
    ;;
  delete)
    run gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force
    ;;
  *) die "the first argument is create, train, log, stop or delete, got '$action'" ;;
esac
