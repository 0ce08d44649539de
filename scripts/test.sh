#!/usr/bin/env bash
# Runs the tests, as many at a time as there are cores; arguments go to pytest. All of them, as CI does: scripts/test.sh -m ''
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh dev
exec "${PYTHON:-.venv/bin/python}" -m pytest -n auto --dist loadfile "$@"
