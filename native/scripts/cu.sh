#!/usr/bin/env bash
# Compiles one .cu file for sm_90a and shows registers, shared memory and spills of each kernel.
# usage: native/scripts/cu.sh native/cuda/x.cu [more nvcc flags]
set -euo pipefail
native=$(cd "$(dirname "$0")/.." && pwd)
nvcc -std=c++20 -O3 -I"$native" -gencode=arch=compute_90a,code=sm_90a --expt-relaxed-constexpr --extended-lambda -Xptxas -v -lineinfo \
  -Xcompiler=-Wall,-fvisibility=hidden -c "$1" -o "${OBJECT:-/tmp/$(basename "$1").o}" "${@:2}" 2>&1 |
  grep -v "^$" | c++filt | sed -E 's/^ptxas info *: //' |
  grep -Ev "^(Overriding|[0-9]+ bytes gmem|Function properties)" || true
