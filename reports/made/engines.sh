#!/usr/bin/env bash
# How h200-engines was made: three models on all engines, with their accuracy on handwritten digits. What a run was asked for is
# the first line of its log. Those that are there say less: on two GPUs, at 32, 128 and 10, EACH=0.25 TRACED=efficientnet_v2_s:10;
# before it WORK began with resnet50:1, with mobilenet_v2:1, TOTAL=1440, a build had 240 s; with efficientnet_v2_s:32 resnet50:128,
# trained before, TOTAL=1249. In the root:
#   PYTHON      a Python with TensorRT (8.6.0)       TORCH  one with PyTorch, nvtx, onnx, onnxruntime, scikit-learn, matplotlib
#   ORT_CUDA    a folder that holds onnxruntime-gpu for TORCH (default: TORCH's own is one)
#   PYTHON_ORT  PYTHON with what onnxruntime_tensorrt.sh makes (default: no such rows). These and PYTHON may appear while this runs.
#   GPUS, CPUS  "1 2 3" and "16-31 32-47 48-63": a GPU and its cores for each model; fewer GPUs take several models
#   RESULTS     where rows, traces and logs go       SCRATCH     where the rest goes
#   MEASURE_AFTER  a file: nothing is timed before it is there, or QUIET seconds are over (default: at once)
#   ROUNDS, EACH   runs of a row, and seconds of a run        WORK  models and batches, what matters most first
#   DATA        what they are trained on ("random": nothing)  TRACED  the one of these that is traced
# The whole work is cut off after TOTAL seconds. A second start does what is not done.
set -uo pipefail
export PYTHON=${PYTHON:-python3} TORCH=${TORCH:-python3} RESULTS=${RESULTS:-out/made-engines} SCRATCH=${SCRATCH:-/tmp/engines}
GPUS=${GPUS:-0} CPUS=${CPUS:-} TOTAL=${TOTAL:-3600} QUIET=${QUIET:-500} ROUNDS=${ROUNDS:-3} EACH=${EACH:-0.5} DATA=${DATA:-digits} TRACED=${TRACED:-resnet50:1}
WORK=${WORK:-resnet50:1 resnet50:128 mobilenet_v2:1 mobilenet_v2:128 efficientnet_v2_s:32 efficientnet_v2_s:1 resnet50:32 mobilenet_v2:32
  efficientnet_v2_s:10 efficientnet_v2_s:128 resnet50:10 mobilenet_v2:10} MEASURE_AFTER=${MEASURE_AFTER:-}
export TORCHINDUCTOR_CACHE_DIR=$SCRATCH/inductor PYTHONUNBUFFERED=1
WORK=$(echo $WORK)
mkdir -p "$RESULTS"/{rows,logs} "$SCRATCH"/{done,plain} plans models
echo 'raise ImportError("pictures are drawn at the end")' > "$SCRATCH/plain/matplotlib.py"
say() { echo "$(date +%T) $*" | tee -a "$RESULTS/run.txt"; }
left() { echo $((TOTAL - SECONDS - 5)); }
may_measure() { [ -z "$MEASURE_AFTER" ] || [ -e "$MEASURE_AFTER" ] || [ $SECONDS -ge "$QUIET" ]; }
finished() { [ -e "$SCRATCH/done/$1" ]; }
step() { # NAME SECONDS COMMAND...: once; a failed one is noted, and the next begins
  local name=$1 limit=$2 code; finished "$name" && return
  if [ "$(left)" -lt "$limit" ]; then limit=$(left); fi
  if [ "$limit" -lt 10 ]; then say "$name: no time left"; return 1; fi
  say "$name"
  timeout -k 20 "$limit" "${@:3}" >> "$RESULTS/logs/$name.txt" 2>&1; code=$?
  [ $code = 0 ] && touch "$SCRATCH/done/$name"
  say "$name: $([ $code = 0 ] && echo done || echo "exit code $code")"
  return $code
}

weights() { if [ -e "$SCRATCH/done/$1-train" ]; then echo "models/$1-$DATA.pt"; else echo random; fi; }
tag() { if [ "$(weights "$1")" = random ]; then echo "$1"; else echo "$1-$DATA"; fi; }
first() { local words=" $WORK"; words=${words#*" $1:"}; echo "${words%%[!0-9]*}"; }  # a model's first batch
ort() { [ -z "${ORT_CUDA:-}" ] || [ -d "$ORT_CUDA/onnxruntime" ]; }  # whether it is there yet
plan() { echo "plans/$(tag "$1")-$2-b$3.plan"; }

train() { # MODEL: or random weights, where that fails
  local named=(--model "$1")
  if [ "$DATA" != random ]; then step "$1-train" 300 "$TORCH" 0_build.py "${named[@]}" --train "$DATA" --export-only; fi
  step "$1-export" 120 "$TORCH" 0_build.py "${named[@]}" --weights "$(weights "$1")" --export-only
}
quantize() { # MODEL: on the CPU; the pictures of 384×384 take three times as long
  local count=128; [ "$1" != efficientnet_v2_s ] || count=32
  step "$1-quantize" 300 "$TORCH" 0_build.py --model "$1" --weights "$(weights "$1")" --int8 \
    --calibration-images "$PICTURES/train" --calibration-count $count --export-only
}
build() { # MODEL PRECISION BATCH
  local made words=(); made=$(plan "$@"); [ -e "$made.json" ] && return
  if [ "$2" = int8 ] && ! finished "$1-quantize"; then return 1; fi
  [ "$2" = fp32 ] || words=("--$2")
  step "$1-$2-b$3-build" 480 "$PYTHON" 0_build.py --model "$1" --weights "$(weights "$1")" --backend "${BACKEND:-tensorrt}" "${words[@]}" \
    --profile "$3,$3,$3" --timing-cache "plans/timing-$1.cache" --output "$made"
}

compare() { # NAME SECONDS PYTHON MODEL BATCH ROUNDS WORDS: an engine that ends the process is left out in the next attempt
  local out=$SCRATCH/rows-$4 code=1 attempt
  local words=(--model "$4" --weights "$(weights "$4")" --batches "$5" --rounds "$6" --seconds "$EACH" --limit $(($2 * 4 / 5)) --engines "$7" --out "$out")
  [ "$(weights "$4")" = random ] || words+=(--labelled "$PICTURES/test")
  for attempt in 1 2 3; do
    step "$1" "$2" "$3" -m scripts.compare_engines "${words[@]}"; code=$?
    if [ $code = 137 ]; then grep -l 'ended the process' "$out"/rows/*.json | xargs -r rm; fi  # not the engine's fault
    cp -u "$out"/rows/*.json "$RESULTS/rows/" 2> /dev/null
    case $code in 0 | 124 | 137) break ;; esac
    [ "$(left)" -gt 10 ] || break
  done
  return $code
}
torch() { # NAME SECONDS MODEL BATCH ROUNDS WORDS
  local path=$SCRATCH/plain; if [ -n "${ORT_CUDA:-}" ] && ort; then path=$ORT_CUDA:$path; fi
  PYTHONPATH=$path${PYTHONPATH:+:$PYTHONPATH} compare "$1" "$2" "$TORCH" "${@:3}"
}
reference() { # MODEL BATCH: the images of the batch and FP32's logits, for Pythons that can make neither
  local out=$SCRATCH/rows-$1 name=$1-b$2-reference; finished "$name" && return
  step "$name" 200 "$TORCH" - "$1" "$(weights "$1")" "$2" "$out" "$PICTURES" <<'PY'
import sys
from pathlib import Path
from peers import inputs
from peers.task import Task
model, weights, batch, folder, pictures = sys.argv[1:]
task = Task(model, weights, int(batch))
inputs.batch_of(task, Path(pictures, "train"), Path(folder))
if weights != "random":
    inputs.labelled(task, Path(pictures, "test"), Path(folder))
PY
}
COMPILED="=PyTorch compile (default),=PyTorch compile (reduce-overhead)" TUNED="=PyTorch compile (max-autotune)"
with_tensorrt() { # MODEL BATCH: the rows whose plans are there
  local each words=none
  for each in fp16 int8 fp32; do
    [ -e "$(plan "$1" $each "$2").json" ] || continue
    words+=",=TensorRT $each,=TensorRT (CUDA graph) $each"; [ $each = fp32 ] || words+=",=TensorRT pipeline (stage 7) $each"
  done
  echo "$words"
}
with_torch() { # MODEL BATCH
  local words="=PyTorch eager,$COMPILED,=Torch-TensorRT"
  if ort; then words+=",=ONNX Runtime CUDA"; fi
  if finished "$1-b$2-tune"; then words+=",$TUNED"; fi
  echo "$words${MORE:+,$MORE}"
}
provider() { # NAME MODEL BATCH ROUNDS: ONNX Runtime's TensorRT provider; in the first run it builds an engine, for 100 s, which
             # is kept. So it is run at a model's first batch only
  [ "$3" = "$(first "$2")" ] && [ -n "${PYTHON_ORT:-}" ] && command -v "$PYTHON_ORT" > /dev/null || return
  compare "$1" 200 "$PYTHON_ORT" "$2" "$3" "$4" "=ONNX Runtime TensorRT"
}
warm() { # MODEL BATCH: whatever takes long and is no time to be reported; accuracies with it
  reference "$@"
  torch "$1-b$2-compile" 200 "$1" "$2" 0 "$COMPILED"
  provider "$1-b$2-provider" "$1" "$2" 0
}
measure() { # MODEL BATCH: TensorRT before and after the others
  local name=$1-b$2 plans; plans=$(with_tensorrt "$@")
  reference "$@"
  [ "$plans" = none ] || compare "$name-tensorrt-1" 150 "$PYTHON" "$1" "$2" 1 "$plans"
  if finished "$name-provider" || [ "$(left)" -gt 150 ]; then provider "$name-provider-1" "$1" "$2" 1; fi
  torch "$name-torch" 300 "$1" "$2" "$ROUNDS" "$(with_torch "$@")"
  [ "$plans" = none ] || compare "$name-tensorrt" 200 "$PYTHON" "$1" "$2" "$ROUNDS" "$plans"
  if finished "$name-provider-1"; then provider "$name-provider-all" "$1" "$2" "$ROUNDS"; fi
}

trace() { # MODEL BATCH: ten batches of each under Nsight Systems
  command -v nsys > /dev/null && "$TORCH" -c 'import nvtx' && [ -e "$(plan "$1" fp16 "$2").json" ] || return
  local folder=$SCRATCH/traces name who python
  mkdir -p "$folder" "$RESULTS/traces"
  for name in tensorrt_fp16 tensorrt_int8 compiled_fp16 eager_fp16; do
    [[ $name != tensorrt_* || -e $(plan "$1" "${name#*_}" "$2").json ]] || continue  # it would be built under the profiler
    python=$TORCH
    case $name in
      eager_fp16) who="=PyTorch eager fp16" ;;
      compiled_fp16) who="=PyTorch compile (reduce-overhead) fp16" ;;
      *) who="=TensorRT ${name#*_}" python=$PYTHON ;;
    esac
    mkdir -p "$folder/$name-rows"; ln -sfn "$(realpath "$SCRATCH/rows-$1/batches")" "$folder/$name-rows/batches"
    step "trace-$name" 90 nsys profile -t cuda,nvtx --cuda-graph-trace=node -s none -f true -o "$folder/$name" "$python" -m scripts.compare_engines \
      --model "$1" --weights "$(weights "$1")" --batches "$2" --rounds 0 --mark 10 --engines "$who" --out "$folder/$name-rows"
    step "export-$name" 60 nsys export --type sqlite -f true -o "$folder/$name.sqlite" "$folder/$name.nsys-rep" &&
      gzip -c "$folder/$name.sqlite" > "$RESULTS/traces/$name.sqlite.gz"
  done
  step traces-layers 30 "$TORCH" -m scripts.layers --alike --most 16 "$folder"/*.sqlite && cp "$RESULTS/logs/traces-layers.txt" "$RESULTS/traces/layers.md"
  step traces-compare 60 "$TORCH" -m scripts.compare "$folder" --figures
  cp "$folder"/*.{svg,md,json,csv,html} "$RESULTS/traces/" 2> /dev/null
}

worker() { # GPU CORES MODEL...
  export CUDA_VISIBLE_DEVICES=$1; [ "$2" = any ] || taskset -cp "$2" $BASHPID > /dev/null; shift 2
  local each model batch precision work=() trainings=(); local -A quantizing
  for each in $WORK; do [[ " $* " != *" ${each%:*} "* ]] || work+=("$each"); done
  for model in "$@"; do train "$model" & trainings+=($!); done; wait "${trainings[@]}"
  for model in "$@"; do quantize "$model" & quantizing[$model]=$!; done
  for each in "${work[@]}"; do
    model=${each%:*} batch=${each#*:}
    for precision in fp16 fp32 int8; do
      may_measure && break 2
      command -v "$PYTHON" > /dev/null || continue
      [ $precision != int8 ] || wait "${quantizing[$model]}"
      build "$model" $precision "$batch"
    done
    warm "$model" "$batch"
  done
  for model in "$@"; do
    batch=$(first "$model")
    may_measure || torch "$model-b$batch-tune" 200 "$model" "$batch" 0 "$TUNED"
  done
  wait; until may_measure; do sleep 1; done
  for each in "${work[@]}"; do
    model=${each%:*} batch=${each#*:}; [ "$(left)" -gt 30 ] || break
    for precision in fp16 int8 fp32; do [ "$(left)" -gt 100 ] && build "$model" $precision "$batch"; done
    measure "$model" "$batch"
    [ "$each" != "$TRACED" ] || trace "$model" "$batch"
  done
  for model in "$@"; do
    batch=$(first "$model")
    [ "$(left)" -gt 250 ] && torch "$model-b$batch-tune" 200 "$model" "$batch" 0 "$TUNED" && torch "$model-b$batch-tuned" 100 "$model" "$batch" "$ROUNDS" "$TUNED"
  done
}

[ "$DATA" = random ] && PICTURES=models/digits || PICTURES=models/$DATA
say "$(nvidia-smi --query-gpu=index,name,driver_version --format=csv,noheader 2>&1 | tr '\n' ';') $(nproc) cores; GPUs $GPUS, cores ${CPUS:-any}; work $WORK; $ROUNDS runs of $EACH s; $DATA; traced $TRACED; $TOTAL s"
nvidia-smi topo -m > "$RESULTS/logs/topology.txt" 2>&1
step pictures 120 "$TORCH" -c "from pathlib import Path; from export.train import write_folders; p = Path('$PICTURES'); write_folders(p.name, p)"
read -ra gpus <<< "$GPUS"; read -ra cores <<< "$CPUS"; mapfile -t models < <(printf '%s\n' $WORK | cut -d: -f1 | awk '!seen[$0]++')
for index in "${!gpus[@]}"; do
  mine=(); for number in "${!models[@]}"; do [ $((number % ${#gpus[@]})) = "$index" ] && mine+=("${models[number]}"); done
  [ ${#mine[@]} = 0 ] || worker "${gpus[index]}" "${cores[index]:-any}" "${mine[@]}" &
done
wait
for folder in "$SCRATCH"/rows-*; do cp -u "$folder"/rows/*.json "$RESULTS/rows/" 2> /dev/null; done
timeout 90 "$TORCH" -m scripts.compare_engines --engines none --out "$RESULTS" > "$RESULTS/logs/report.txt" 2>&1
say over
