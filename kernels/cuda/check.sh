#!/usr/bin/env bash
# usage: check.sh [--update]
# Compiles the kernels and their tests with nvcc for every target, and holds registers, shared memory, spills
# and occupancy of each kernel against resources.tsv: a spill or a fall in occupancy fails. `--update` writes
# the table. Leaves the tests of the kernels for a GPU in target/cuda/kernel-tests.
#
# nvcc is that of $CUDA_HOME, of the path, or of pinned wheels in target/cuda.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=target/cuda
mkdir -p "$out"
if [ -z "${CUDA_HOME:-}" ]; then
  if nvcc=$(command -v nvcc); then
    CUDA_HOME=$(dirname "$(dirname "$(readlink -f "$nvcc")")")
  elif ! CUDA_HOME=$(kernels/cuda/setup-nvcc.sh "$out/toolkit"); then
    echo "SKIPPED: the kernels were not compiled with nvcc: there is none, and its wheels cannot be had" >&2
    exit 0
  fi
fi
nvcc="$CUDA_HOME/bin/nvcc"
flags=(-std=c++17 -O3 -Ikernels/cuda -Itests/kernels -Werror all-warnings)
targets=(-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a
  -gencode=arch=compute_100,code=sm_100 -gencode=arch=compute_80,code=compute_80)

rm -f "$out"/*.o "$out"/*.ptx "$out"/*.log
objects=()
for source in kernels/cuda/*.cu; do
  name=$(basename "$source" .cu)
  "$nvcc" "${flags[@]}" "${targets[@]}" --threads 2 --resource-usage -c "$source" -o "$out/$name.o" \
    2>"$out/$name.log" || { cat "$out/$name.log" >&2; exit 1; }
  "$nvcc" "${flags[@]}" -arch=compute_80 -ptx "$source" -o "$out/$name.ptx"
  objects+=("$out/$name.o")
done
for source in tests/kernels/*.cpp; do
  object="$out/test-$(basename "$source" .cpp).o"
  "$nvcc" "${flags[@]}" -x cu -arch=compute_80 -c "$source" -o "$object"
  objects+=("$object")
done
"$nvcc" "${objects[@]}" -o "$out/kernel-tests"
python3 kernels/cuda/resources.py "$out" kernels/cuda/resources.tsv "$@"
