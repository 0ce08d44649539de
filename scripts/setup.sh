#!/usr/bin/env bash
# Prepares this checkout: .venv with the project and what a command needs. Does nothing the second time.
#
#   scripts/setup.sh [EXTRA,…]     extras of pyproject.toml: dev (the tests), export (PyTorch), peers
#
# PYTHON=... scripts/setup.sh uses that interpreter as it is and installs nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -n "${PYTHON:-}" ]; then
  [ "$("$PYTHON" -c 'import numpy, rich; print("both")')" = both ] \
    || { echo "setup: PYTHON=$PYTHON is no Python, or lacks numpy or rich" >&2; exit 3; }
  exit 0
fi
base=$(command -v python3 || command -v python) || { echo "setup: no python3 on PATH" >&2; exit 3; }
"$base" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2])' || { echo "setup: $base is older than Python 3.9" >&2; exit 3; }
[ -x .venv/bin/pip ] || "$base" -m venv .venv  # the last thing that it makes: one that was interrupted is made whole
trap '[ -z "${progress:-}" ] || kill "$progress" 2> /dev/null || true' EXIT # also where it is interrupted
install() { # NAME, then what pip installs; once for each state of pyproject.toml
  local stamp=.venv/installed-$1 wanted
  wanted=$(cksum < pyproject.toml)
  [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
  echo "setup: installing ${*:2} into .venv" >&2
  while sleep 4 > /dev/null 2>&1; do echo "setup: ${SECONDS} s, $(tail -n 1 .venv/pip.log | cut -c 1-60)" >&2; done &
  progress=$!
  .venv/bin/python -m pip install --no-compile --progress-bar off --disable-pip-version-check "${@:2}" > .venv/pip.log 2>&1 || { kill "$progress"; return 1; }
  kill "$progress" && echo "$wanted" > "$stamp" && new=yes
}
for extra in '' $(echo "${1:-}" | tr , ' '); do
  install "project${extra:+-$extra}" -e ".${extra:+[$extra]}" \
    || { tail -n 20 .venv/pip.log >&2; echo "setup: pip failed; the whole log is .venv/pip.log" >&2; exit 3; }
done
if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
  cuda=$(nvidia-smi | sed -n 's/.*CUDA Version: \([0-9]*\).*/\1/p')
  case $(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1) in
    *GeForce* | *RTX*) library=tensorrt-rtx-cu12 ;; # 90 MB, and it builds in seconds
    *) library=tensorrt-cu${cuda:-12} ;;
  esac
  install tensorrt "$library" "cuda-python>=${cuda:-12},<$((${cuda:-12} + 1))" nvidia-ml-py \
    || echo "setup: $library could not be installed (see .venv/pip.log); the simulated backend works without" >&2
fi
[ -z "${new:-}" ] || .venv/bin/python -m compileall -q -j 0 -x /tests/ .venv/lib > /dev/null 2>&1 || true # on all cores; pip takes one
