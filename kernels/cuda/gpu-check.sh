#!/usr/bin/env bash
# usage: gpu-check.sh build | run [DEVICE] | dry
# `build`, on a machine with nvcc: compiles everything that `run` needs into target/gpu-check, under 64 MB.
# `run`, on a machine with a GPU (in a checkout with that folder; needs no compiler and no network): tests of the
# kernels on the device, then memory and step costs, decoding with and without speculation, with and without CUDA
# graphs, and the bits of both, on models of random weights; the kernels' tests again under compute-sanitizer where it
# is there. Prints a table; writes JSON to ${OUT:-target/gpu-check/out}. Under 8 minutes.
# `dry` does both over the CPU emulator, with a tiny model: a rehearsal for machines with neither.
set -euo pipefail
cd "$(dirname "$0")/../.."
made=target/gpu-check
most_mb=64

build() {
  [ -n "${CUDA_HOME:-}" ] || command -v nvcc >/dev/null || {
    CUDA_HOME=$(kernels/cuda/setup-nvcc.sh target/cuda/toolkit)
    export CUDA_HOME
  }
  kernels/cuda/check.sh
  programs
  strip -o "$made/kernel-tests" target/cuda/kernel-tests
  du -sm "$made"
  [ "$(du -sm "$made" | cut -f1)" -le $most_mb ] || {
    echo "more than $most_mb MB to carry" >&2
    exit 1
  }
}

# The engine's measurements, into an empty folder.
programs() {
  rm -rf "$made" && mkdir -p "$made"
  cargo build --release --features cuda --bench cuda --message-format json-render-diagnostics >"$made/messages.json"
  python3 - "$made" <<'END'
import json, shutil, subprocess, sys
made = sys.argv[1]
messages = map(json.loads, open(f"{made}/messages.json"))
program = [m["executable"] for m in messages if m.get("executable") and m["target"]["name"] == "cuda"][-1]
subprocess.run(["strip", "-o", f"{made}/cuda", program], check=True)
END
  rm "$made/messages.json"
}

# Results of the steps so far, one line each; a step that fails or takes too long does not keep the others from running.
step() {
  local name=$1 limit=$2 status=0 from=$SECONDS
  shift 2
  timeout "$limit" "$@" >"$out/$name.txt" 2>&1 || status=$?
  [ $status = 0 ] || failed=1
  printf '%-22s %-12s %4d s\n' "$name" "$([ $status = 0 ] && echo ok || echo "FAILED ($status)")" $((SECONDS - from))
  printf '{"step": "%s", "status": %d, "seconds": %d}\n' "$name" $status $((SECONDS - from)) >>"$out/steps.jsonl"
  [ $status = 0 ] || tail -5 "$out/$name.txt"
}

# run DEVICE SHAPE...: the last shape runs in 4 bit, the others in bf16.
run() {
  local device=$1 small=$2 large=$3
  out=${OUT:-$made/out} failed=0
  local started=$SECONDS bandwidth=3350
  mkdir -p "$out"
  : >"$out/steps.jsonl"
  export CUDA_VISIBLE_DEVICES=$device
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.mem --format=csv 2>&1 | tee "$out/gpu.txt" || true
  if grep -q H200 "$out/gpu.txt"; then bandwidth=4800; fi
  if grep -q A100 "$out/gpu.txt"; then bandwidth=2039; fi
  step kernel-tests 60 "$made/kernel-tests"
  step "$small-bf16" 90 "$made/cuda" --shape "$small" --weights bf16 --bandwidth $bandwidth --json "$out/$small-bf16.json"
  step "$small-bf16-no-graphs" 60 "$made/cuda" --shape "$small" --weights bf16 --bandwidth $bandwidth --no-graphs \
    --json "$out/$small-bf16-no-graphs.json"
  step "$large-q4_k" 120 "$made/cuda" --shape "$large" --weights q4_k --bandwidth $bandwidth --json "$out/$large-q4_k.json"
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck synccheck; do
      step "$tool" 45 compute-sanitizer --tool $tool --error-exitcode 1 "$made/kernel-tests"
    done
  else
    echo "compute-sanitizer is not there"
  fi
  for file in "$out"/*-bf16*.txt "$out"/*-q4_k.txt; do
    echo "-- $(basename "$file" .txt)"
    grep -E '^(device|pass|matmul|decode) ' "$file" || true
  done
  echo "$((SECONDS - started)) s in all; results in $out"
  return $failed
}

case ${1:-} in
build) build ;;
run) run "${2:-0}" 1b 8b ;;
dry)
  export NVCC=$PWD/kernels/cuda/emulator/nvcc
  programs
  sources=(kernels/cuda/*.cu tests/kernels/*.cpp)
  printf '%s\n' "${sources[@]}" | xargs -P "$(nproc)" -I{} sh -c \
    '${CXX:-g++} -std=c++17 -O1 -Wno-unknown-pragmas -Ikernels/cuda -Itests/kernels -x c++ -c {} -o '"$made"'/$(echo {} | tr / _).o'
  ${CXX:-g++} "$made"/*.o -o "$made/kernel-tests"
  rm "$made"/*.o
  run 0 tiny tiny
  ;;
*) sed -n '2,10p' "$0" && exit 2 ;;
esac
