#!/usr/bin/env bash
# usage: check.sh [--update]
# Compiles the kernels with nvcc for every target, and holds registers, shared memory, spills and occupancy of each
# kernel against resources.tsv: a spill or a fall in occupancy fails. Then holds the PTX that the program carries
# (ptx/*.gz) against what the sources make. `--update` writes the table and the PTX.
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
flags=(-std=c++17 -O3 -Ikernels/cuda -Werror all-warnings)
targets=(-gencode=arch=compute_80,code=sm_80 -gencode=arch=compute_90a,code=sm_90a
  -gencode=arch=compute_100,code=sm_100)

rm -f "$out"/*.o "$out"/*.ptx "$out"/*.log
for source in kernels/cuda/*.cu; do
  name=$(basename "$source" .cu)
  "$nvcc" "${flags[@]}" "${targets[@]}" --threads 2 --resource-usage -c "$source" -o "$out/$name.o" \
    2>"$out/$name.log" || { cat "$out/$name.log" >&2; exit 1; }
  "$nvcc" "${flags[@]}" -arch=compute_80 -ptx "$source" -o "$out/$name.ptx"
done
python3 kernels/cuda/resources.py "$out" kernels/cuda/resources.tsv "$@"
python3 kernels/cuda/ptx.py "$out" kernels/cuda/ptx "$@"
