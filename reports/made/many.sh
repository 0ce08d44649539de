#!/usr/bin/env bash
# How scale/h200-x2 was made: stage 12 with Ray and without on 1, 2, 4 and 8 GPUs of one host, as far as there are, copies alone and
# all at once, batches without files, a worker that is killed, float pictures, which the host's cores decode. By FEW=8192 LIMIT_S=415.
# In the repository's root, with nothing else at work:
#   PYTHON10  a Python that runs PLAN, with nvImageCodec, CV-CUDA, Ray, psutil, OpenCV
#   PLAN, PLAN_FLOAT  FP16 plans for uint8 and for float pictures; version-compatible ones need their .json beside them
#   RESULTS   where the results go         SCRATCH  where 70 MB of pictures go, DIFFERENT ones under FILES names
#   GPUS      how many (all)               BRING    a command that brings what is not installed yet, by name (codec, ray)
# After LIMIT_S seconds nothing is begun any more. A second start does what is not done.
set -uo pipefail
export PYTHON10=${PYTHON10:-python3} PLAN=${PLAN:-/tmp/vc/resnet18-uint8-fp16.vc.plan} PLAN_FLOAT=${PLAN_FLOAT:-/tmp/vc/resnet18-fp16.vc.plan}
export RESULTS=${RESULTS:-out/made-many} SCRATCH=${SCRATCH:-/tmp/many} PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
export RAY_memory_monitor_refresh_ms=0 # a host whose memory grows as it is used looks full to it
export DIFFERENT=${DIFFERENT:-1024}
FILES=${FILES:-131072} FEW=${FEW:-16384} SHARD=${SHARD:-8192} BACKEND=${BACKEND:-tensorrt} GPUS=${GPUS:-$(nvidia-smi -L | wc -l)}
read -ra with <<< "--backend $BACKEND ${OPTIONS:-}"
mkdir -p "$RESULTS" "$SCRATCH"; log=$RESULTS/run.txt end=$((SECONDS + ${LIMIT_S:-240}))
say() { echo "$(date +%T) $*" >> "$log"; }
step() { # NAME SECONDS COMMAND...: once; a failed one is noted, and the next begins
  local left=$((end - SECONDS)); [ -e "$RESULTS/$1.ok" ] && return
  if [ $left -lt 12 ]; then say "$1: no time left"; return 1; fi
  say "$1"
  timeout -k 10 $(($2 < left ? $2 : left)) "${@:3}" > "$RESULTS/$1.txt" 2>&1; local code=$?
  if [ $code = 0 ]; then touch "$RESULTS/$1.ok"; say "$1: done"; else say "$1: exit code $code"; fi
  return $code
}
with_ray() { # NAME GPUS SECONDS PLAN FOLDER SHARD KILL_AFTER: a worker is killed after so many shards, or none (0)
  [ -e "$RESULTS/$1.ok" ] || rm -rf "$SCRATCH/out-$1"
  step "$1" "$3" "$PYTHON10" reports/made/many.py watched "$RESULTS/$1-watched.json" "$7" "$SCRATCH/out-$1" 12_many_gpus.py \
    --images "$SCRATCH/$5" --predictions "$SCRATCH/out-$1" --gpus "$2" --plan "$4" --shard "$6" --json "$RESULTS/$1.json" "${with[@]}"
}
beside() { # NAME SECONDS GPUS WHAT OPTIONS...: without Ray
  step "$1" "$2" "$PYTHON10" -m scripts.side_by_side "$4" --gpus "$3" --out "$RESULTS/$1" --backend "$BACKEND" "${@:5}"
}
rows() { # of what is there now
  rm -f "$RESULTS/rows.ok"
  step rows 40 "$PYTHON10" reports/made/many.py rows "$FILES" "$SCRATCH"/out-ray-uint8-* "$SCRATCH/out-kill-$most"
}
uint8() { with_ray "ray-uint8-$1${2:-}" "$1" 75 "$PLAN" many "$SHARD" 0; }
files12() { beside "$1" 100 "$2" 12_many_gpus --images "$SCRATCH/many" --plan "$PLAN" --shard "$SHARD" ${OPTIONS:-}; }

{ nvidia-smi --query-gpu=name,driver_version,pci.bus_id --format=csv,noheader; nvidia-smi topo -m; lscpu | grep -iE 'model name|^cpu\(s\)|numa|socket'; free -g | head -2; } > "$RESULTS/host.txt" 2>&1
step files 100 "$PYTHON10" reports/made/many.py files "$FILES" "$FEW"
${BRING:-true} codec >> "$log" 2>&1
${BRING:-true} ray >> "$log" 2>&1
numbers=(1); for n in 2 4 8; do [ "$n" -le "$GPUS" ] && numbers+=("$n"); done; most=${numbers[-1]}
for n in "${numbers[@]}"; do uint8 "$n"; done
files12 alone-uint8 "$most"
beside link 60 "$most" link
with_ray "kill-$most" "$most" 75 "$PLAN" many "$SHARD" $((FILES / SHARD / 4))
rows
for n in $(printf '%s\n' 1 "$most" | uniq); do with_ray "ray-float-$n" "$n" 60 "$PLAN_FLOAT" few $((SHARD / 8)) 0; done
beside batches-uint8 50 "$most" 10_uint8_input --plan "$PLAN" --windows 3 --no-controls --no-parts ${OPTIONS:-}
beside batches-float 50 "$most" 7_cuda_graph --plan "$PLAN_FLOAT" --windows 3 --no-controls --no-parts ${OPTIONS:-}
[ "$most" -gt 2 ] && files12 alone-uint8-2 2
for n in "${numbers[@]}"; do uint8 "$n" r2; done
rows
"$PYTHON10" reports/made/many.py summary >> "$log" 2>&1
say over
