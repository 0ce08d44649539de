#!/usr/bin/env bash
# Runs the tests, one on each core and one more, for some wait, with one thread; arguments go to pytest. All of them, as CI does:
# scripts/test.sh -m ''
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh dev
exec env OMP_NUM_THREADS=1 "${PYTHON:-.venv/bin/python}" -m pytest -n $(($(getconf _NPROCESSORS_ONLN) + 1)) --dist loadfile --no-loadscope-reorder "$@"
