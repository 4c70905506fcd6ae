# shellcheck shell=bash
# shellcheck disable=SC2034  # its variables are read where it is sourced
# What the launch scripts share; they source it.

dry_run=false
max_restarts=3
# before a command: sets the compiler flags for this machine's chips, unless they are set, and prints them
with_compiler_flags=(.venv/bin/python -m fgclip_jax.plan.compiler_flags)

die() {
  echo "${0##*/}: $*" >&2
  exit 2
}

# The arguments as a line that a shell reads back as the same arguments.
quoted() {
  local arg line="" quote="'\\''"
  for arg in "$@"; do
    [[ "$arg" =~ ^[A-Za-z0-9_@%+=:,./-]+$ ]] || arg="'${arg//\'/$quote}'"
    line+="${line:+ }$arg"
  done
  echo "$line"
}

# Runs a command; with --dry_run prints it instead.
run() {
  if $dry_run; then quoted "$@"; else "$@"; fi
}

# Takes the flags that every launcher has; says whether the argument was one.
shared_flag() {
  case "$1" in
    --dry_run) dry_run=true ;;
    --max_restarts=*) max_restarts="$(whole_number "$1")" || exit ;;
    *) return 1 ;;
  esac
}

# Takes a launcher's flags where it has none of its own; the training's, after --, are left in `training`.
only_shared_flags() {
  while (($#)); do
    case "$1" in
      --) shift; break ;;
      *) shared_flag "$1" || die "unknown flag '$1'; the training's own flags come after --" ;;
    esac
    shift
  done
  training=("$@")
}

# The value of --flag=VALUE, a whole number.
whole_number() {
  [[ "${1#*=}" =~ ^[0-9]+$ ]] || die "${1%%=*} takes a whole number, got '${1#*=}'"
  echo "$((10#${1#*=}))"
}

# Stops unless each of the named variables has a value; each is given by the flag of its name.
need() {
  local name
  for name in "$@"; do
    [[ -n "${!name:-}" ]] || die "--$name is missing; see the head of $0"
  done
}
