#!/usr/bin/env bash
# Runs every stage under compute-sanitizer, small: reports of illegal accesses and of CUDA calls that failed. Each runs
# without it first, so that a plan that is still missing is built at full speed.
#
#   scripts/sanitize.sh [DIR [OPTION...]]      DIR: where the logs go (out/sanitizer)
#
# OPTIONs go to compute-sanitizer. Its memcheck does not understand the single-block clusters of TensorRT's kernels for
# Hopper, takes their writes for invalid and ends them; `--kernel-name-exclude kernel_substring=sm90_xmma` leaves those out.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v compute-sanitizer >/dev/null || { echo "sanitize: no compute-sanitizer on PATH; it comes with the CUDA toolkit" >&2; exit 3; }
scripts/setup.sh
out=${1:-out/sanitizer} failed=0
shift $(($# > 0))
mkdir -p "$out" && : > "$out/summary.txt"
python=${PYTHON:-.venv/bin/python}
small=(--backend tensorrt --batch 4 --batches 5 --measure 2)
for stage in $(printf '%s\n' [1-9]*_*.py | sort -n); do
  log=$out/${stage%.py}.memcheck.txt
  { "$python" "$stage" "${small[@]}" --no-verify &&
    compute-sanitizer --tool memcheck --error-exitcode 9 "$@" "$python" "$stage" "${small[@]}"; } > "$log" 2>&1 || failed=1
  printf '%-20s %s\n' "${stage%.py}" "$(grep 'ERROR SUMMARY' "$log" | tail -n 1 || tail -n 1 "$log")" | tee -a "$out/summary.txt"
done
exit "$failed"
