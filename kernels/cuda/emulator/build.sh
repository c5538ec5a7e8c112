#!/usr/bin/env bash
# usage: build.sh FOLDER [FLAG ...]
# Makes FOLDER/libcuda.so, the emulator as a driver, with g++ (or $CXX) and these flags besides its own, and beside it
# FOLDER/libnvidia-ml.so.1, a meter of energy.
set -euo pipefail
kernels=$(cd "$(dirname "$0")/.." && pwd)
folder=${1:?usage: build.sh FOLDER [FLAG ...]}
shift
mkdir -p "$folder"
CXX=${CXX:-g++} && export CXX
printf '%s\n' "$kernels"/*.cu "$kernels"/emulator/driver.cpp | xargs -P "$(nproc)" -I{} sh -c \
  'source=$1 object=$2/$(basename "$1").o kernels=$3 && shift 3 &&
   exec "$CXX" -std=c++17 -O2 -fPIC -Wno-unknown-pragmas "$@" -I"$kernels" -x c++ -c "$source" -o "$object"' \
  build {} "$folder" "$kernels" "$@"
"$CXX" -shared "$@" "$folder"/*.o -o "$folder/libcuda.so"
"$CXX" -shared -fPIC "$@" "$kernels/emulator/nvml.cpp" -o "$folder/libnvidia-ml.so.1"
