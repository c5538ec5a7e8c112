#!/bin/sh
# The kernels' tests on processors that this machine need not be: AVX2 without VNNI (Haswell), and no vector
# path at all (Nehalem). Needs qemu-user 7.2 or later.
set -eu
cd "$(dirname "$0")/.."
binary=$(cargo test --release -p pleach-kernels --lib --no-run --message-format json |
    sed -n 's/.*"name":"pleach_kernels".*"executable":"\([^"]*\)".*/\1/p')
for processor in Haswell Nehalem; do
    echo "== $processor"
    qemu-x86_64 -cpu "$processor" "$binary" cpu::activations cpu::attention cpu::elementwise cpu::gate \
        cpu::low_rank cpu::matmul cpu::norm cpu::quantize cpu::reduce cpu::rope cpu::weights
done
