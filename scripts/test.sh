#!/usr/bin/env bash
# Runs the tests, one on each core, with one thread; arguments go to pytest. All of them, as CI does: scripts/test.sh -m ''
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh dev
exec env OMP_NUM_THREADS=1 "${PYTHON:-.venv/bin/python}" -m pytest -n auto --dist loadfile --no-loadscope-reorder "$@"
