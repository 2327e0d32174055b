#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
#
# tests/reference/peers/run.sh [--json FILE]: compares the lengths that kvstem matches with those of vLLM's
# and SGLang's own caches, on the same traces and with a pool in which nothing is evicted.
#
#   --json FILE   writes the checks to FILE as well
#
# Takes under a minute; the first time it fetches 165 MB (setup.sh). The status is 0 only if no length
# differs; check.py says what is compared. To try another build of the program: check.py PROGRAM build/peers
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/../../../scripts/lib/common.sh"

peers=build/peers
here=tests/reference/peers
arguments=()
while [ $# -gt 0 ]; do
  case "$1" in
    --json) arguments+=(--json "$(realpath -m "${2:?--json needs a file}")"); shift ;;
    *) sed -n '5,8s/^# \{0,1\}//p' "$here/run.sh" >&2; exit 2 ;;
  esac
  shift
done

need_packages build-essential libxxhash-dev python3 python3-venv

step "vLLM's and SGLang's files"
"$here/setup.sh" "$peers"
cat "$peers/vllm/version" "$peers/sglang/version"

step "compiling"
"${CXX:-c++}" -std=c++20 -O2 -Iinclude "$here/kvstem_lengths.cpp" -o "$peers/kvstem_lengths"

step "comparing"
python3 "$here/check.py" "$peers/kvstem_lengths" "$peers" "${arguments[@]}"
