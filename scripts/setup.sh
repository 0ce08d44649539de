#!/usr/bin/env bash
# Prepares this checkout: .venv with the project and all that its tests need. Does nothing the second time.
#
#   scripts/setup.sh            PYTHON=... scripts/setup.sh uses that interpreter as it is and installs nothing
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -n "${PYTHON:-}" ]; then
  "$PYTHON" -c 'import numpy, rich' || { echo "setup: PYTHON=$PYTHON lacks numpy or rich" >&2; exit 3; }
  exit 0
fi
stamp=.venv/installed
wanted=$(cksum < pyproject.toml)
if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then exit 0; fi

base=$(command -v python3 || command -v python) || { echo "setup: no python3 on PATH" >&2; exit 3; }
"$base" -c 'import sys; sys.exit(not (3, 9) <= sys.version_info[:2])' || { echo "setup: $base is older than Python 3.9" >&2; exit 3; }
echo "setup: installing into .venv; PyTorch makes this a few minutes and some gigabytes, once" >&2
[ -x .venv/bin/python ] || "$base" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' 2> .venv/pip.log \
  || { tail -n 20 .venv/pip.log >&2; echo "setup: pip failed; the whole log is .venv/pip.log" >&2; exit 3; }
if command -v nvidia-smi >/dev/null && nvidia-smi >/dev/null 2>&1; then
  cuda=$(nvidia-smi | sed -n 's/.*CUDA Version: \([0-9]*\).*/\1/p')
  .venv/bin/python -m pip install --quiet --disable-pip-version-check "tensorrt-cu${cuda:-12}" "cuda-python>=${cuda:-12},<$((${cuda:-12} + 1))" \
    2>> .venv/pip.log || echo "setup: TensorRT for CUDA ${cuda:-12} could not be installed (see .venv/pip.log); the simulated backend works without" >&2
fi
echo "$wanted" > "$stamp"
