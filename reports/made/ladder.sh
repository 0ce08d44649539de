#!/usr/bin/env bash
# How h200-trt8.6-batch128, its INT8 stage 10 and the peers beside them were made. In the repository's root, with a GPU:
#   PYTHON   a Python with TensorRT (8.6.0)     TORCH   one with PyTorch, onnx, onnxruntime, scikit-learn (python3)
#   RESULTS  where the results go
# The whole command comes first, with nothing beside it; $RESULTS/ladder.done appears when it is over.
set -uo pipefail
TORCH=${TORCH:-python3} RESULTS=${RESULTS:-out/made}; export PYTHON
mkdir -p "$RESULTS"; log=$RESULTS/ladder.log
step() { # NAME SECONDS COMMAND...: once; a failed one is noted, and the next begins
  [ -e "$RESULTS/$1.ok" ] && return
  echo "$(date +%T) $1" >> "$log"
  if timeout "$2" "${@:3}" > "$RESULTS/$1.txt" 2>&1; then touch "$RESULTS/$1.ok"; else echo "$(date +%T) $1: exit code $?" >> "$log"; fi
}
keep() { tar -czf "$RESULTS/$1.tgz" --exclude='*.sqlite' --exclude='*.nsys-rep' --exclude='*.plan' -C "${2%/*}" "${2##*/}"; }

photographs() { # 128 crops of the two that scikit-learn ships
  "$TORCH" - <<'PY'
import numpy as np
from pathlib import Path
from PIL import Image
from sklearn.datasets import load_sample_images
rng, out = np.random.default_rng(10088), Path("/tmp/photographs")
out.mkdir(exist_ok=True)
for i in range(128):
    picture = Image.fromarray(load_sample_images().images[i % 2])
    side = int(rng.integers(160, 400))
    x, y = int(rng.integers(0, picture.width - side)), int(rng.integers(0, picture.height - side))
    picture.crop((x, y, x + side, y + side)).save(out / f"{i:03}.png")
PY
}
models() { # all ONNX files that PYTHON cannot make for itself
  "$TORCH" 0_build.py --export-only && "$TORCH" 0_build.py --fp16 --export-only && "$TORCH" 0_build.py --fp16 --input bytes --export-only
}
int8_model() { photographs && "$TORCH" 0_build.py --int8 --input bytes --calibration-images /tmp/photographs --export-only; }
int8() { scripts/profile_all.sh 10 --precision int8 --figures --out "$RESULTS/int8"; }
peers() { "$TORCH" -m peers.pytorch "$RESULTS/ladder" graphs-3-slots graphs-3-slots-uint8; }
pictures() { "$PYTHON" 10_uint8_input.py --images /tmp/photographs --predictions "$RESULTS/names.csv" --json "$RESULTS/names.json"; }
whole() { local began=$SECONDS; scripts/profile_all.sh --out "$RESULTS/ladder"; local code=$?; echo "the whole command: $((SECONDS - began)) s"; return $code; }
figures() { scripts/profile_all.sh --figures --out "$RESULTS/ladder"; }

export -f photographs models int8_model int8 peers pictures whole figures; export TORCH RESULTS
step models 170 bash -c models
step whole 575 bash -c whole; touch "$RESULTS/ladder.done"; keep ladder "$RESULTS/ladder"
step figures 60 bash -c figures; keep ladder "$RESULTS/ladder"
step int8_model 120 bash -c int8_model
step int8 300 bash -c int8; keep int8 "$RESULTS/int8"
step pictures 60 bash -c pictures
step peers 240 bash -c peers; keep ladder "$RESULTS/ladder"
echo "$(date +%T) done" >> "$log"
