#!/usr/bin/env bash
# Checks the code and runs the tests, from a bare clone with nothing but Python 3.11 to 3.13.
#
#   bash launch/test.sh                              everything
#   bash launch/test.sh --quick                      the quick tests alone, without those marked `slow`
#   bash launch/test.sh tests/data -k tokenizer      arguments go to pytest
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

args=()
for arg in "$@"; do
  if [[ "$arg" == --quick ]]; then args+=(-m "not slow"); else args+=("$arg"); fi
done

bash launch/setup.sh --dev

echo "test: ruff check"
.venv/bin/ruff check .

echo "test: pyright"
.venv/bin/pyright

# One process per core, up to eight; a file stays in one process, so that its fixtures are made once. Files are begun in
# the order of tests/conftest.py, which puts long ones first; pytest-xdist's own would put files of few tests last.
workers="$(.venv/bin/python -c 'import os; print(min(os.cpu_count() or 1, 8))')"
echo "test: pytest in $workers processes"
# A process that dies ends the run: were it begun anew after the last test had been given out, pytest-xdist would hang.
exec .venv/bin/python -m pytest -n "$workers" --dist loadfile --no-loadscope-reorder --max-worker-restart=0 ${args[@]+"${args[@]}"}
