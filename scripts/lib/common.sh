# shellcheck shell=bash disable=SC2034  # the variables are for the scripts that source this file
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
#
# What the scripts share. Source this file; it changes to the repository's root and sets $root and $jobs.
#
#   step TITLE             a heading with the time since the start
#   need_packages PKG...   Debian packages: installs what is missing and says so; without root prints the line to run
#   need_wheels NAME==V... tools from PyPI at pinned versions, in build/tools; what is there is not fetched again
#
# What is installed already is found without a network.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
cd "$root" || exit 1
jobs="$(nproc)"
tools="$root/build/tools"

step() {
  printf '\n== %s (%d:%02d)\n' "$*" $((SECONDS / 60)) $((SECONDS % 60))
}

# What every script needs to build the library.
build_packages=(build-essential ccache cmake libssl-dev libxxhash-dev ninja-build pkg-config python3 python3-venv)
# What the program kvstem and its tests need besides.
cli_packages=(libcli11-dev libzstd-dev nlohmann-json3-dev zlib1g-dev zstd)

# What examples/llama_server needs besides.
server_packages=(libboost1.81-dev libcli11-dev nlohmann-json3-dev)

need_packages() {
  local package missing=()
  if ! command -v dpkg-query >/dev/null; then
    echo "This is not Debian; what is needed goes by these names there: $*"
    return 0
  fi
  for package in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  if [ "$(id -u)" -ne 0 ]; then
    echo "Some packages are missing. Run this, then start again:" >&2
    echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}" >&2
    exit 1
  fi
  step "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  { apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" </dev/null; } || {
    echo "apt-get could not install ${missing[*]}" >&2
    exit 1
  }
}

need_wheels() {
  if [ ! -x "$tools/bin/pip" ]; then
    rm -rf "$tools"
    python3 -m venv "$tools" || return 1
  fi
  "$tools/bin/python" - "$@" <<'PYTHON' && return 0
import importlib.metadata as metadata, sys
for name, version in (want.split("==") for want in sys.argv[1:]):
    try:
        if metadata.version(name) != version: sys.exit(1)
    except metadata.PackageNotFoundError: sys.exit(1)
PYTHON
  step "fetching $* from PyPI into build/tools"
  "$tools/bin/pip" install --quiet --disable-pip-version-check "$@"
}
