#!/usr/bin/env bash
# How h200-jpeg/table was made: stage 11, its decoders and DALI, from files to names. In the repository's root, on a GPU:
#   PYTHON10  a Python that runs PLAN, with nvImageCodec, CV-CUDA, DALI, PyTorch, torchvision, OpenCV, scikit-image, scikit-learn
#   PLAN      an FP16 plan that takes uint8 pictures; a version-compatible one needs its .json beside it
#   RESULTS   where the results go            SCRATCH    where 400 MB of pictures go
#   CPUS      the cores that it may use       HOST_CPUS  others, where the host's decoders run meanwhile (default: none, so at the end)
#   HOST_DECODERS  those of the host that have rows; VARIANTS  see jpeg.py; STEPS  those whose calls are timed
#   BRING     a command that brings what is not installed yet, by name (codec, dali)
# The runs of 2026-11-29: TOTAL=280, VARIANTS without 5-3-2-thread, STEPS=4-2-2, no decoders of the host; of the day before, an earlier
# state of this script. After TOTAL seconds nothing is begun any more. A second start does what is not done.
set -uo pipefail
export PYTHON10=${PYTHON10:-python3} PLAN=${PLAN:-/tmp/vc/resnet18-uint8-fp16.vc.plan} RESULTS=${RESULTS:-out/made-jpeg}
export SCRATCH=${SCRATCH:-/tmp/jpeg} FILES=${FILES:-5120} LINKS=${LINKS:-16} CPUS=${CPUS:-0-15} TOTAL=${TOTAL:-330}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 VARIANTS=${VARIANTS:-4-2-2 4-2-2-thread 5-3-2 5-3-2-thread 5-3-3 6-4-3}
HOST_DECODERS=${HOST_DECODERS-opencv torchvision pillow}
read -ra with <<< "--plan $PLAN --backend ${BACKEND:-tensorrt} --no-controls ${OPTIONS:-}"
mkdir -p "$RESULTS"/{variants,steps} "$SCRATCH"; log=$RESULTS/run.txt end=$((SECONDS + TOTAL))
say() { echo "$(date +%T) $*" >> "$log"; }
step() { # NAME SECONDS COMMAND...: once; a failed one is noted, and the next begins
  local left=$((end - SECONDS)); [ -e "$RESULTS/$1.ok" ] && return
  if [ $left -lt 8 ]; then say "$1: no time left"; return 1; fi
  say "$1"
  timeout -k 5 $(($2 < left ? $2 : left)) taskset -c "$CPUS" "${@:3}" > "$RESULTS/$1.txt" 2>&1; local code=$?
  if [ $code = 0 ]; then touch "$RESULTS/$1.ok"; say "$1: done"; else say "$1: exit code $code"; fi
  return $code
}
sizes=(cut-photographs-500x375 cut-photographs-224x224)
decoders() { # NAME SECONDS DECODER OPTIONS...: a round of the table's rows of one decoder
  step "$1" "$2" "$PYTHON10" -m scripts.decoders --images "$SCRATCH/${sizes[0]}" --images "$SCRATCH/${sizes[1]}" --decoders "$3" \
    --out "$RESULTS/$1" "${with[@]}" "${@:4}"
}
whole_folder() { # ROUND: the names of LINKS × FILES files, and what the GPU's units do meanwhile, once a second
  [ -e "$RESULTS/folder-round$1.ok" ] && return
  timeout 70 nvidia-smi dmon -i "${CUDA_VISIBLE_DEVICES:-0}" -s u -o T > "$RESULTS/dmon-$1.txt" 2>&1 & local watch=$!
  step "folder-round$1" 60 "$PYTHON10" 11_jpeg_decode.py --images "$SCRATCH/folder" --predictions "$SCRATCH/folder-$1.csv" \
    --json "$RESULTS/folder-round$1.json" --decoder "${DECODER:-nvimagecodec}" "${with[@]}"
  kill $watch 2> /dev/null
}
dali() { # ROUND
  ${BRING:-true} dali >> "$log" 2>&1 || return
  for at in 0 1; do
    local size=${sizes[at]##*-}
    step "dali-${size%x*}-round$1" 45 "$PYTHON10" -m peers.dali --images "$SCRATCH/${sizes[at]}" --plan "$PLAN" --json "$RESULTS/dali-${size%x*}-round$1.json"
  done
}
variants() { # NAME SECONDS FOLDER: VARIANTS in turns
  step "$1" $(($2 + 15)) "$PYTHON10" reports/made/jpeg.py variants "$2" "$SCRATCH/$3" "${with[@]}" --decoder "${DECODER:-nvimagecodec}"
}
host() { # the host's decoders: three windows each, of fewer batches, as one takes 60 to 110 ms
  for each in $HOST_DECODERS; do decoders "decoders-$each" 90 $each --windows 3 --measure "${MEASURE:-40}"; done
}
odd() { # a folder with damaged files: in the measured window, and behind it
  local names=("$SCRATCH/whole.csv" "$SCRATCH/damaged.csv")
  step whole 40 "$PYTHON10" 11_jpeg_decode.py --images "$SCRATCH/${sizes[0]}" --predictions "${names[0]}" --no-parts --decoder "${DECODER:-nvimagecodec}" "${with[@]}"
  step damaged 40 "$PYTHON10" 11_jpeg_decode.py --images "$SCRATCH/damaged" --predictions "${names[1]}" --no-parts --decoder "${DECODER:-nvimagecodec}" "${with[@]}"
  step damaged-rows 20 "$PYTHON10" reports/made/jpeg.py compared "${names[@]}"
}

say "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>&1 | head -1), $(nproc) cores, of them $CPUS${HOST_CPUS:+; the decoders of the host on $HOST_CPUS}"
step files 120 "$PYTHON10" reports/made/jpeg.py files
${BRING:-true} codec >> "$log" 2>&1
for _ in $(seq 60); do [ -e "$PLAN.json" ] && break; [ $SECONDS -lt $end ] && sleep 2; done
if [ -n "${HOST_CPUS:-}" ]; then (CPUS=$HOST_CPUS; host) & fi
decoders decoders-round1 60 "${DECODER:-nvimagecodec}" --windows 3
whole_folder 1
dali 1
variants variants-1 50 "${sizes[1]}"
for each in ${STEPS:-4-2-2 4-2-1 4-2-3}; do
  VARIANTS=$each step "steps-$each" 25 "$PYTHON10" reports/made/jpeg.py steps 1 "$SCRATCH/${sizes[1]}" "${with[@]}" --decoder "${DECODER:-nvimagecodec}"
done
odd
[ -n "${HOST_CPUS:-}" ] || host
decoders decoders-round2 60 "${DECODER:-nvimagecodec}" --windows 3
dali 2
whole_folder 2
variants variants-2 50 "${sizes[0]}"
decoders decoders-round3 60 "${DECODER:-nvimagecodec}" --windows 3
variants variants-3 50 "${sizes[1]}"
dali 3
wait
"$PYTHON10" reports/made/jpeg.py tables >> "$log" 2>&1
say over
