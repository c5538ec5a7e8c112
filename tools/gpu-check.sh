#!/usr/bin/env bash
# usage: gpu-check.sh build | run [DEVICE]
# `build`, on a machine with nvcc: compiles everything that `run` needs into target/gpu-check, under 64 MB.
# `run`, on a machine with a GPU (in a checkout with that folder; needs no compiler and no network): tests of the
# kernels on the device, under compute-sanitizer where it is there, then memory and step costs, decoding with and
# without speculation and the bits of both, on models of random weights. Prints a table; writes JSON to
# ${OUT:-target/gpu-check/out}. Under 8 minutes.
set -euo pipefail
cd "$(dirname "$0")/.."
made=target/gpu-check

build() {
  [ -n "${CUDA_HOME:-}" ] || command -v nvcc >/dev/null || {
    CUDA_HOME=$(kernels/setup-nvcc.sh target/cuda/toolkit)
    export CUDA_HOME
  }
  kernels/check.sh
  cargo build --release --features cuda --bench cuda --bin pleach --message-format json-render-diagnostics |
    python3 -c '
import json, sys
for line in sys.stdin:
    message = json.loads(line)
    if message.get("executable"): print(message["target"]["name"], message["executable"])' >target/gpu-check.list
  rm -rf "$made" && mkdir -p "$made"
  while read -r name program; do
    strip -o "$made/$name" "$program"
  done <target/gpu-check.list
  strip -o "$made/kernel-tests" target/cuda/kernel-tests
  rm target/gpu-check.list
  du -sm "$made"
}

run() {
  local device=${1:-0} out=${OUT:-$made/out} started=$SECONDS failed=0
  mkdir -p "$out"
  export CUDA_VISIBLE_DEVICES=$device
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.mem --format=csv | tee "$out/gpu.txt" || true
  local bandwidth=3350
  grep -q H200 "$out/gpu.txt" && bandwidth=4800
  grep -q A100 "$out/gpu.txt" && bandwidth=2039
  # One line a step; a step that fails or takes too long does not keep the others from running.
  step() {
    local name=$1 limit=$2 status=0 from=$SECONDS
    shift 2
    timeout "$limit" "$@" >"$out/$name.txt" 2>&1 || status=$?
    [ $status = 0 ] || failed=1
    printf '%-22s %-6s %4d s\n' "$name" "$([ $status = 0 ] && echo ok || echo "FAILED ($status)")" $((SECONDS - from))
    printf '{"step": "%s", "status": %d, "seconds": %d}\n' "$name" $status $((SECONDS - from)) >>"$out/steps.jsonl"
    [ $status = 0 ] || tail -5 "$out/$name.txt"
  }
  : >"$out/steps.jsonl"
  step kernel-tests 60 "$made/kernel-tests"
  step 1b-bf16 100 "$made/cuda" --shape 1b --weights bf16 --bandwidth $bandwidth --json "$out/1b-bf16.json"
  step 8b-q4_k 120 "$made/cuda" --shape 8b --weights q4_k --bandwidth $bandwidth --json "$out/8b-q4_k.json"
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck synccheck; do
      step "$tool" 55 compute-sanitizer --tool $tool --error-exitcode 1 "$made/kernel-tests"
    done
  else
    echo "compute-sanitizer is not there"
  fi
  grep -hE '^(device|pass|matmul|decode) ' "$out"/*-*.txt || true
  echo "$((SECONDS - started)) s in all; results in $out"
  return $failed
}

case ${1:-} in
build) build ;;
run) shift && run "$@" ;;
*) sed -n '2,8p' "$0" && exit 2 ;;
esac
