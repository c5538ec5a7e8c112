#!/usr/bin/env bash
# usage: setup-nvcc.sh FOLDER
# Installs nvcc from pinned wheels into FOLDER (271 MB to fetch), without root and without a toolkit, and
# prints the CUDA_HOME to use. Does nothing where it is there already.
set -euo pipefail
folder=${1:?usage: setup-nvcc.sh FOLDER}
here=$(cd "$(dirname "$0")" && pwd)
home="$folder/site/nvidia/cu13"
if ! cmp -s "$here/nvcc-wheels.txt" "$folder/installed.txt"; then
  rm -rf "$folder/site"
  python3 -m pip install --quiet --root-user-action ignore --no-deps --target "$folder/site" \
    -r "$here/nvcc-wheels.txt" >&2
  ln -sfn lib "$home/lib64"
  cp "$here/nvcc-wheels.txt" "$folder/installed.txt"
fi
(cd "$home" && pwd)
