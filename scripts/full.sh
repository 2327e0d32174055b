#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
#
# scripts/full.sh [NAME...]: measures every figure that kvstem is held to, or those of these names (index decode
# instructions replay agents paged serving peers judge-Q4_1 ...), and writes benchmarks/results/DATE-COMMIT.json
# (DATE-COMMIT-NAMES.json).
#
# Takes about 65 minutes, and wants a quiet machine: the load before and after is written down beside the figures. The
# status is 0 if every program ended well, which for the demo means that exactness and counts held; whether a bar on
# speed was met stands in the table and in the file. The model is measured as it is and, without bars, in BF16, whose
# prefill is two to three times as fast. Replays are measured on the traces in KVSTEM_TRACE_DIR, if that is set
# (docs/replay.md says which they are).
set -uo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=scripts/lib/llama.sh
. scripts/lib/llama.sh

wanted=("$@") known=""
load_before="$(cut -d' ' -f1 /proc/loadavg)"
need_packages "${build_packages[@]}" "${cli_packages[@]}" "${server_packages[@]}" catch2 libbenchmark-dev git valgrind

step "building"
llama_fetch && llama_build && llama_server_build && need_wheels openai==3.57.0 || exit 1
cmake --preset release -DKVSTEM_BUILD_LLAMA=ON -DKVSTEM_LLAMA_DIR="$llama_install" >build/configure-release.log ||
  { cat build/configure-release.log; exit 1; }
NINJA_STATUS='[%f/%t %es] ' cmake --build build/release -j "$jobs" || exit 1
bf16="${llama_model%.Q4_1.gguf}.BF16.gguf"
if [ ! -f "$bf16" ]; then
  build/release/examples/llama/kvstem_llama_requantize "$llama_model" "$bf16.part" bf16 >build/requantize.log 2>&1 &&
    mv "$bf16.part" "$bf16" || { cat build/requantize.log; exit 1; }
fi

# NAME COMMAND...: each understands --json FILE.
reports="$root/build/reports"
rm -rf "$reports"
mkdir -p "$reports"
results=() status=0
measure() {
  local name="$1"
  shift
  known+=" $name"
  if [ "${#wanted[@]}" -gt 0 ] && [[ ! " ${wanted[*]} " == *" $name "* ]]; then return 0; fi
  step "$name"
  "$@" --json "$reports/$name.json" || { echo "$name ended with status $?"; status=1; }
  results+=("$name=$reports/$name.json")
}
demo=build/release/examples/llama/demo/kvstem_demo
measure index build/release/benchmarks/kvstem_bench_index_match
measure decode build/release/benchmarks/kvstem_bench_decode_step
measure instructions scripts/callgrind.sh
measure replay python3 scripts/lib/replay_figures.py build/release/kvstem
measure agents "$demo" --model "$llama_model" --workload agents
measure paged build/release/examples/paged_engine/demo/kvstem_paged_demo --model "$llama_model"
measure serving python3 benchmarks/serving/compare.py --server build/release/examples/llama_server/kvstem_llama_server \
  --incumbent "$llama_server" --python "$tools/bin/python" --model "$llama_model"
measure peers tests/reference/peers/run.sh
for form in Q4_1 BF16; do
  model="$llama_model"
  if [ "$form" = BF16 ]; then model="$bf16"; fi
  measure "judge-$form" "$demo" --model "$model" --workload judge --pairs 10
  measure "turn-$form" "$demo" --model "$model" --workload turn
  measure "overhead-$form" "$demo" --model "$model" --workload overhead --pairs 16
done

for name in "${wanted[@]}"; do
  if [[ ! "$known " == *" $name "* ]]; then echo "nothing is called $name; there are:$known"; status=1; fi
done
[ "${#results[@]}" -gt 0 ] || exit "$status"

step "results"
commit="$(git describe --always --dirty)"
out="benchmarks/results/$(date +%F)-$commit${wanted[0]:+-$(IFS=-; echo "${wanted[*]}")}.json"
python3 scripts/lib/merge_results.py "$out" --commit "$commit" --load-before "$load_before" "${results[@]}" || status=1
echo "written to $out"
exit "$status"
