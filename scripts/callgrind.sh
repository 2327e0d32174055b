#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
#
# scripts/callgrind.sh [--update] [--json FILE]: counts instructions and cache misses of fixed work, and judges them.
#
#   --update      the counts of this run become the baseline for this compiler
#   --json FILE   writes the checks to FILE as well
#
# The status is 0 only if all checks are met; benchmarks/instructions/compare.py says which there are. The counts of a
# run lie in build/callgrind/run; to see where the instructions of a piece are spent, for example:
#   grep -l 'Request: cache/evict' build/callgrind/run/counts.* | xargs callgrind_annotate
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --update) arguments+=(--update) ;;
    --json) arguments+=(--json "$(realpath -m "${2:?--json needs a file}")"); shift ;;
    *) sed -n '5,8s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift
done
if [ "$(uname -m)" != x86_64 ]; then
  echo "Instructions are counted on x86-64 only; nothing was measured on $(uname -m)."
  exit 0
fi

need_packages "${build_packages[@]}" libbenchmark-dev valgrind
mkdir -p build
log=build/configure-callgrind.log
cmake --preset callgrind >"$log" 2>&1 || { cat "$log"; exit 1; }
NINJA_STATUS='[%f/%t %es] ' cmake --build build/callgrind --target kvstem_instructions -j "$jobs"

run=build/callgrind/run
rm -rf "$run"
mkdir "$run"
# The caches have fixed sizes, the C library uses nothing beyond x86-64-v2, and the environment is empty, because it lies
# on the stack; so the counts do not depend on the machine.
(
  cd "$run"
  env -i PATH=/usr/bin:/bin GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM \
    valgrind --tool=callgrind --instr-atstart=no --callgrind-out-file=counts --log-file=log \
    --cache-sim=yes --I1=32768,8,64 --D1=32768,8,64 --LL=8388608,16,64 \
    ../benchmarks/instructions/kvstem_instructions >pieces
) || { cat "$run/log"; exit 1; }

python3 benchmarks/instructions/compare.py --self-test
python3 benchmarks/instructions/compare.py "$run" benchmarks/instructions/baseline.json "${arguments[@]}"
