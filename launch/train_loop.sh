#!/usr/bin/env bash
# Runs a command, and again when it fails: training then goes on from its newest checkpoint.
#
#   bash launch/train_loop.sh [--max_restarts=3] [--pause=10] [--preempted=restart|stop] [--dry_run] COMMAND...
#
# Exit code 75 means that the run has saved and ended because its machine is taken away; that is no failure and is
# not counted (--preempted=stop leaves it to the caller). Exit code 2 means that flags, config or data cannot work: the
# command is not started again. SIGTERM and Ctrl-C are passed on as SIGTERM, and nothing is started again. Ends with
# the command's last exit code.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

pause=10
preempted=restart
while [[ "${1:-}" == --* ]]; do
  case "$1" in
    --pause=*) pause="$(whole_number "$1")" || exit ;;
    --preempted=restart | --preempted=stop) preempted="${1#*=}" ;;
    *) shared_flag "$1" || die "unknown flag '$1'" ;;
  esac
  shift
done
(($#)) || die "which command? see the head of $0"

if $dry_run; then
  echo "# at most $max_restarts restarts after failures, $pause s apart; exit code 75: $preempted, 2: stop"
  run "$@"
  exit
fi

child="" signals=0
# shellcheck disable=SC2329  # the trap calls it
on_signal() {
  signals=$((signals + 1))
  [[ -z "$child" ]] || kill -TERM "$child" 2>/dev/null || true
}
trap "on_signal" INT TERM

for ((failures = 0; ; )); do
  code=0
  "$@" &
  child=$!
  if ((signals > 0)); then on_signal; fi  # it came before the child was known
  # a signal ends `wait` before the command has ended
  until
    seen=$signals code=0
    wait "$child" || code=$?
    ((seen == signals))
  do :; done
  child=""
  if ((code == 0 || signals > 0)); then break; fi
  if ((code == 2)); then
    echo "train_loop: exit code 2: wrong flags, config or data; not started again" >&2
    break
  fi
  if ((code == 75)); then
    if [[ "$preempted" == stop ]]; then break; fi
    echo "train_loop: the run saved and ended because its machine was to be taken away; starting again" >&2
  elif ((failures < max_restarts)); then
    failures=$((failures + 1))
    echo "train_loop: exit code $code; restart $failures of $max_restarts in $pause s" >&2
  else
    echo "train_loop: exit code $code; no restarts left of $max_restarts" >&2
    break
  fi
  # second by second: a signal may come just before `sleep`
  for ((waited = 0; waited < pause && signals == 0; waited++)); do sleep 1; done
  if ((signals > 0)); then break; fi
done
exit "$code"
