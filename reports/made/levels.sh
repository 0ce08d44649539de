#!/usr/bin/env bash
# Compares the builder's levels: stage 10's FP16 plan at optimization level 3 (the default), 4 and 5. h200-tried/levels.txt is what came of it.
# PYTHON: a Python with TensorRT; LEVELS: which; RESULTS: where the records go. After models/resnet18-uint8-fp16.onnx is exported.
set -uo pipefail
PYTHON=${PYTHON:-python3} RESULTS=${RESULTS:-out/made} LEVELS=${LEVELS:-3 4 5}; mkdir -p "$RESULTS"
for level in $LEVELS; do
  echo "$(date +%T) level $level"
  timeout "${LIMIT:-400}" "$PYTHON" - $level <<'PY'
import runpy, sys
import tensorrt
level, make = int(sys.argv[1]), tensorrt.Builder.create_builder_config
def at_level(builder):
    config = make(builder)
    config.builder_optimization_level = level
    return config
tensorrt.Builder.create_builder_config = at_level
sys.argv = ["0_build.py", "--fp16", "--input", "bytes", "--output", f"plans/level{level}.plan", "--timing-cache", f"plans/level{level}.cache"]
runpy.run_path("0_build.py", run_name="__main__")
PY
  code=$?; echo "$(date +%T) level $level: exit code $code"
done
for round in 1 2 3; do
  for level in $LEVELS; do
    [ -e plans/level$level.plan ] && timeout 60 "$PYTHON" 10_uint8_input.py --plan plans/level$level.plan --windows 3 --json "$RESULTS/level$level-$round.json" | grep 'ms a batch'
  done
done
