#!/usr/bin/env bash
# A run on Kubernetes, as a JobSet (https://jobset.sigs.k8s.io, 0.10 or newer); runs where kubectl is set up.
#
#   bash launch/kubernetes.sh tpu --name=NAME --image=IMAGE --accelerator=tpu-v5-lite-podslice --topology=16x16 \
#     [--service_account=ACCOUNT] [--claim=CLAIM] [--chips_per_host=4] [--slices=1] [--max_restarts=3] [--dry_run] \
#     -- --config=... --workdir=gs://...
#   bash launch/kubernetes.sh gpu --name=NAME --image=IMAGE --nodes=4 [--gpus_per_node=8] ... -- ...
#
# The image is made by launch/kubernetes/Dockerfile. Data and --workdir lie in a bucket, which the Kubernetes service
# account may read and write, or on a claim: a PersistentVolumeClaim that all pods may write, mounted at /mnt/shared.
# --dry_run prints the manifest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/common.sh

kind="${1:-}"
shift || true
[[ "$kind" == tpu || "$kind" == gpu ]] || die "the first argument is tpu or gpu, got '$kind'"
# shellcheck disable=SC2034  # read by name, below
name="" image="" claim="" service_account="" mount=/mnt/shared accelerator="" topology="" chips_per_host=4 slices=1 nodes="" gpus_per_node=8
while (($#)); do
  case "$1" in
    --name=* | --image=* | --claim=* | --service_account=* | --accelerator=* | --topology=*)
      flag="${1%%=*}"; printf -v "${flag#--}" "%s" "${1#*=}" ;;
    --chips_per_host=* | --slices=* | --nodes=* | --gpus_per_node=*)
      flag="${1%%=*}" value="$(whole_number "$1")" || exit
      printf -v "${flag#--}" "%s" "$value" ;;
    --) shift; break ;;
    *) shared_flag "$1" || die "unknown flag '$1'; the training's own flags come after --" ;;
  esac
  shift
done
need name image
(($#)) || die "the training's flags come after --"
if [[ -z "$claim" && "$*" == *"$mount"* ]]; then die "--claim is missing: flags name $mount, where it is mounted"; fi

if [[ "$kind" == tpu ]]; then
  need accelerator topology
  [[ "$topology" =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || die "--topology is like 4x4 or 4x4x8, got '$topology'"
  chips=$((${topology//x/*}))
  if ((chips < chips_per_host)); then chips_per_host=$chips; fi
  ((chips % chips_per_host == 0)) || die "$chips chips are no multiple of --chips_per_host=$chips_per_host"
  # shellcheck disable=SC2034
  nodes=$((chips / chips_per_host))  # of each slice
else
  need nodes
fi

# The training's flags as a YAML list on one line, each a string in JSON.
args=""
for arg in "$@"; do
  arg="${arg//\\/\\\\}"
  args+="${args:+, }\"${arg//\"/\\\"}\""
done

manifest="$(grep -v "^ *#" "launch/kubernetes/$kind.yaml")"
# What was not asked for goes: the claim with its mount, the service account.
[[ -n "$claim" ]] || manifest="$(echo "$manifest" | grep -vF -e "\${claim}" -e "\${mount}")"
[[ -n "$service_account" ]] || manifest="$(echo "$manifest" | grep -vF -e "\${service_account}")"
for key in name image claim mount service_account accelerator topology chips_per_host slices nodes gpus_per_node max_restarts args; do
  mark="\${$key}" value="${!key}"
  manifest=${manifest//"$mark"/"$value"}
done

if $dry_run; then
  echo "$manifest"
else
  echo "$manifest" | kubectl apply -f -
  echo "next: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
fi
