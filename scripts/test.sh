#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
#
# scripts/test.sh [--fast]: installs what is missing, builds, runs every test, and ends with a line of counts.
#
#   --fast   the dev build's short tests and the format only: under 5 minutes; for each commit
#
# The exit status is 0 only if nothing failed. Everything built lies in build/.
set -uo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

fast=false
for argument in "$@"; do
  case "$argument" in
    --fast) fast=true ;;
    *) sed -n '5,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
done

passed=0 failed=0 skipped=0
failures=()

# check NAME COMMAND...: runs a command that counts as one test.
check() {
  local name="$1"
  shift
  step "$name"
  if "$@"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    failures+=("$name")
  fi
}

# build PRESET [OPTION... [-- TARGET...]]: configures with -D options and builds; a failure counts as one test.
build() {
  local preset="$1" options=() targets=()
  shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
  [ $# -gt 1 ] && targets=(--target "${@:2}")
  step "building $preset"
  if cmake --preset "$preset" "${options[@]}" >"build/configure-$preset.log" 2>&1; then
    NINJA_STATUS='[%f/%t %es] ' cmake --build "build/$preset" -j "$jobs" "${targets[@]}" && return 0
  else
    cat "build/configure-$preset.log"
  fi
  failed=$((failed + 1))
  failures+=("build $preset")
  return 1
}

# run_tests PRESET CTEST-ARGUMENTS...: each entry of ctest counts.
run_tests() {
  local preset="$1" report="$root/build/ctest-$1.xml" counts
  shift
  step "testing $preset"
  rm -f "$report"
  ctest --preset "$preset" -j "$jobs" --output-junit "$report" "$@"
  counts="$(python3 - "$report" "$preset" <<'PYTHON'
import sys, xml.etree.ElementTree as tree
passed, failed, skipped = 0, [], 0
for case in tree.parse(sys.argv[1]).getroot().iter("testcase"):
    reason = case.find("skipped")
    if case.get("status") == "run":
        passed += 1
    elif reason is not None and reason.get("message").startswith(("SKIP_", "Disabled")):
        skipped += 1
    else:  # it failed, or could not be run at all
        failed.append(f"{sys.argv[2]}:{case.get('name')}")
print(passed, len(failed), skipped, *failed)
PYTHON
  )" || counts="0 1 0 $preset:ctest"
  read -r -a counts <<<"$counts"
  passed=$((passed + counts[0])) failed=$((failed + counts[1])) skipped=$((skipped + counts[2]))
  failures+=("${counts[@]:3}")
}

# One unit that includes the whole core, and those that hold code of their own.
check_tidy() {
  local files
  mapfile -t files < <(find examples src -name '*.cpp' ! -path 'examples/llama/*' ! -path 'examples/llama_server/*' ! -path 'examples/paged_engine/*' ! -path 'examples/downstream/*' 2>/dev/null)
  printf '%s\n' tests/compile/instantiate_all.cpp "${files[@]}" |
    xargs -P "$jobs" -n 1 "$tools/bin/clang-tidy" -p build/dev --quiet
}

# test_targets FOLDER...: the programs of those folders of tests/ that have tests.
test_targets() {
  local folder
  for folder in "$@"; do
    compgen -G "tests/$folder/*.cpp" >/dev/null && echo "kvstem_${folder}_tests"
  done
}

mkdir -p build
need_packages "${build_packages[@]}" "${cli_packages[@]}" catch2 libbenchmark-dev
if $fast; then
  check "format" scripts/format.sh --check
  if build dev; then run_tests dev -LE 'long|install'; fi
else
  need_packages clang libclang-rt-dev valgrind
  need_wheels clang-tidy==23.1.4 conan==2.34.0
  check "format" scripts/format.sh --check
  if build dev; then
    run_tests dev
    check "clang-tidy" check_tidy
  fi
  if build no-exceptions; then run_tests no-exceptions -LE 'long|install|compile'; fi
  # The figures of reference_table are checked above; readme_table replays the same way with sanitizers.
  if build asan-ubsan; then run_tests asan-ubsan -LE 'long|install|symbols' -E '^cli[.]reference_table$'; fi
  mapfile -t targets < <(test_targets concurrency unit)
  if build tsan -- "${targets[@]}"; then run_tests tsan -L 'concurrency|unit'; fi
  if [ -x scripts/callgrind.sh ]; then check "instruction counts" scripts/callgrind.sh; fi
  if [ -f scripts/lib/llama.sh ]; then
    # shellcheck source=scripts/lib/llama.sh
    . scripts/lib/llama.sh
    need_packages "${server_packages[@]}" chromium curl
    need_wheels openai==3.57.0 playwright==1.65.2
    check "llama.cpp and its models" eval 'llama_fetch && llama_build && llama_tiny_models'
    if build release -DKVSTEM_BUILD_LLAMA=ON -DKVSTEM_LLAMA_DIR="$llama_install" -- examples/llama/all examples/llama_server/all examples/paged_engine/all; then
      run_tests release -L llama
    fi
  fi
fi

step "done"
for name in "${failures[@]}"; do echo "failed: $name"; done
line="$passed passed, $failed failed"
if [ "$skipped" -gt 0 ]; then line+=", $skipped skipped"; fi
echo "$line"
[ "$failed" -eq 0 ]
