#!/usr/bin/env bash
# Runs the tests; arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
exec "${PYTHON:-.venv/bin/python}" -m pytest "$@"
