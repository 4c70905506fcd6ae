#!/usr/bin/env bash
# Makes .venv in the repository and installs the program there (editable, so that .venv/bin/python and .venv/bin/fgclip
# run it from any folder) with what it needs: for a CPU, with --tpu or --gpu for these, and with --dev what its tests
# need, too. Runs again at no cost: it installs only when a requirements file, the build or the folder has changed.
#
#   bash launch/setup.sh [--tpu | --gpu] [--dev]     PYTHON=python3.12 bash launch/setup.sh    picks the Python
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

files=(requirements.txt)
for flag in "$@"; do
  case "$flag" in
    --tpu) files+=(requirements-tpu.txt requirements-gcs.txt) ;;  # TPU machines have buckets, not shared disks
    --dev | --gpu) files+=("requirements-${flag#--}.txt") ;;
    *) echo "usage: bash launch/setup.sh [--tpu | --gpu] [--dev]" >&2; exit 2 ;;
  esac
done

supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

if [[ -e .venv/bin/python ]] && ! .venv/bin/python -c "$supported"; then
  echo "setup: .venv has no working Python 3.11, 3.12 or 3.13; remove the folder .venv and run this again" >&2
  exit 1
fi

if ! { [[ -e .venv/bin/python ]] && .venv/bin/python -m pip --version; } >/dev/null 2>&1; then
  python=""
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python}; do
    if "$candidate" -c "$supported; import ensurepip, venv" >/dev/null 2>&1; then python="$candidate"; break; fi
  done
  if [[ -z "$python" ]]; then
    echo "setup: found no Python 3.11, 3.12 or 3.13 with the venv module." >&2
    echo "setup: install one (Debian, Ubuntu: apt install python3 python3-venv) or name one: PYTHON=/path/to/python3" >&2
    exit 1
  fi
  echo "setup: making .venv with $("$python" --version) ($python)"
  "$python" -m venv --clear .venv
fi

# The stamp: for each file that is installed from, a line with its hash and name, and one for the folder, to which an
# editable installation points.
stamp() {
  .venv/bin/python -c 'import hashlib, os, sys
for path in sys.argv[1:]: print(hashlib.sha256(open(path, "rb").read()).hexdigest(), path)
print(hashlib.sha256(os.getcwd().encode()).hexdigest(), "folder")' "$@"
}
wanted="$(stamp "${files[@]}" pyproject.toml setup.py)"
installed="$(cat .venv/installed.sha256 2>/dev/null || true)"
missing="$(echo "$wanted" | grep -vxF "$installed" || true)"
if [[ -z "$missing" ]]; then
  echo "setup: .venv is up to date with ${files[*]}"
  exit 0
fi

echo "setup: installing ${files[*]} into .venv (a few minutes the first time)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check "${files[@]/#/--requirement=}" --editable .
others="$(echo "$installed" | grep -vE " ($(IFS="|"; echo "${files[*]}")|pyproject.toml|setup.py|folder)\$" || true)"
printf "%s\n" "$others" "$wanted" > .venv/installed.sha256
echo "setup: done"
