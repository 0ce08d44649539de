#!/usr/bin/env bash
# Profiles every stage and prints the comparison table. Options: scripts/profile_all.sh --help
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup.sh
exec "${PYTHON:-.venv/bin/python}" -m harness.profile "$@"
