#!/usr/bin/env bash
# usage: gpu-check.sh build | run [DEVICE] | dry
# `build`, on a machine with g++: compiles everything that `run` needs into target/gpu-check, under 64 MB.
# `run`, on a machine with a GPU (in a checkout with that folder; needs no compiler and no network): tests of the
# kernels on the device, then memory and step costs, decoding with and without speculation, with and without CUDA
# graphs, over a cache of 8 bits too, and the bits of both, on models of random weights; the kernels' tests again under compute-sanitizer where it
# is there. Prints a table; writes JSON to ${OUT:-target/gpu-check/out}. Under 8 minutes.
# `dry` does both over the CPU emulator, with a tiny model: a rehearsal for machines with neither.
set -euo pipefail
cd "$(dirname "$0")/../.."
made=target/gpu-check
most_mb=64

build() {
  rm -rf "$made" && mkdir -p "$made"
  cargo build --release --bench cuda --test kernels --message-format json-render-diagnostics >"$made/messages.json"
  python3 - "$made" <<'END'
import json, subprocess, sys
made = sys.argv[1]
messages = map(json.loads, open(f"{made}/messages.json"))
programs = {m["target"]["name"]: m["executable"] for m in messages if m.get("executable")}
for name in ["cuda", "kernels"]:
    subprocess.run(["strip", "-o", f"{made}/{name}", programs[name]], check=True)
END
  rm "$made/messages.json"
  ${CXX:-g++} -std=c++17 -O1 -fPIC -shared -Ikernels/cuda -Itests/kernels tests/kernels/*.cpp -o "$made/libkernel-tests.so"
  du -sm "$made"
  [ "$(du -sm "$made" | cut -f1)" -le $most_mb ] || {
    echo "more than $most_mb MB to carry" >&2
    exit 1
  }
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
  export PLEACH_KERNEL_TESTS=$made/libkernel-tests.so
  step kernel-tests 60 "$made/kernels"
  step "$small-bf16" 90 "$made/cuda" --shape "$small" --weights bf16 --bandwidth $bandwidth --json "$out/$small-bf16.json"
  step "$small-bf16-no-graphs" 60 "$made/cuda" --shape "$small" --weights bf16 --bandwidth $bandwidth --no-graphs \
    --json "$out/$small-bf16-no-graphs.json"
  step "$small-bf16-int8-cache" 60 "$made/cuda" --shape "$small" --weights bf16 --bandwidth $bandwidth --int8-cache \
    --json "$out/$small-bf16-int8-cache.json"
  step "$large-q4_k" 120 "$made/cuda" --shape "$large" --weights q4_k --bandwidth $bandwidth --json "$out/$large-q4_k.json"
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck racecheck synccheck; do
      step "$tool" 45 compute-sanitizer --tool $tool --error-exitcode 1 "$made/kernels"
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
  build
  kernels/cuda/emulator/build.sh "$made/emulator"
  export LD_LIBRARY_PATH=$PWD/$made/emulator
  run 0 tiny tiny
  ;;
*) sed -n '2,10p' "$0" && exit 2 ;;
esac
