#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
#
# scripts/check-bare.sh [--keep]: do the README's two commands work where nothing is installed? Needs root, mmdebstrap
# and a network; takes about 20 minutes and 3 GB.
#
#   1. makes a bare Debian 12 in build/bare, and copies this source tree into it (no build folder, no .git)
#   2. runs there, with a network:     scripts/demo.sh --quick; scripts/test.sh --fast
#   3. runs both once more without one: nothing may be fetched twice
#   4. removes build/bare, unless --keep was given
#
# This machine is changed in nothing else. Its package mirrors, proxies and certificates are used inside as well.
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

keep=false
case "${1:-}" in
  "") ;;
  --keep) keep=true ;;
  *) sed -n '5,13s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac
if [ "$(id -u)" -ne 0 ]; then
  echo "making a root file system and changing into it needs root: sudo scripts/check-bare.sh" >&2
  exit 1
fi
need_packages git mmdebstrap

bare="$root/build/bare"
rm -rf --one-file-system "$bare"
mkdir -p "$root/build"
$keep || trap 'rm -rf --one-file-system "$bare"' EXIT

step "making a bare Debian 12 in build/bare"
mapfile -t sources < <(find /etc/apt/sources.list /etc/apt/sources.list.d -name '*.list' -o -name '*.sources' 2>/dev/null)
[ ${#sources[@]} -gt 0 ] || sources=(http://deb.debian.org/debian)
settings="$(mktemp)"
apt-config dump | grep -E '^Acquire::(http|https|Check-|Retries|ForceIPv|Languages|IndexTargets)' >"$settings" || true
mmdebstrap --quiet --mode=root --format=directory --variant=apt --aptopt="$settings" bookworm "$bare" "${sources[@]}"
rm -f "$settings"

# What a machine behind a proxy or a mirror of its own is told by its administrator.
carry() {
  local file
  for file in "$@"; do
    if [ -e "$file" ]; then
      mkdir -p "$bare${file%/*}"
      cp -rL "$file" "$bare${file%/*}/"
    fi
  done
}
carry /etc/resolv.conf /etc/hosts /etc/pip.conf /etc/ssl/certs/ca-certificates.crt /usr/local/share/ca-certificates
for file in "${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf" "$HOME/.pip/pip.conf"; do
  if [ -f "$file" ]; then cat "$file" >>"$bare/etc/pip.conf"; fi
done
environment=("HOME=/root" "PATH=/usr/sbin:/usr/bin:/sbin:/bin" "LANG=C.UTF-8")
while IFS= read -r -d '' variable; do
  case "${variable%%=*}" in
    PIP_* | SSL_CERT_* | [Hh][Tt][Tt][Pp]_[Pp][Rr][Oo][Xx][Yy] | [Hh][Tt][Tt][Pp][Ss]_[Pp][Rr][Oo][Xx][Yy] | [Nn][Oo]_[Pp][Rr][Oo][Xx][Yy])
      environment+=("$variable") ;;
  esac
done < <(env -0)

mkdir "$bare/kvstem"
git ls-files -z --cached --others --exclude-standard | tar --create --null --files-from=- | tar --extract --directory="$bare/kvstem"

# inside NAMESPACE-OPTIONS... COMMAND: in the bare system, with mounts that vanish with it.
# shellcheck disable=SC2016  # expanded inside
inside() {
  unshare --mount --pid --fork "${@:1:$#-1}" bash -euc '
    mount -t proc proc "$0/proc"
    mount --rbind /dev "$0/dev"
    mount -t tmpfs tmpfs "$0/tmp"
    bare="$0" command="$1"
    shift
    exec chroot "$bare" env -i "$@" bash -euc "cd /kvstem; $command"' "$bare" "${@: -1}" "${environment[@]}"
}

status=0
attempt() {
  step "$1"
  if inside "${@:2}"; then echo "fine: $1"; else echo "FAILED: $1"; status=1; fi
}
attempt "the demo, bare" "scripts/demo.sh --quick"
attempt "the tests, bare" "scripts/test.sh --fast"
attempt "the demo, offline" --net "scripts/demo.sh --quick"
attempt "the tests, offline" --net "scripts/test.sh --fast"
exit "$status"
