#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
#
# scripts/format.sh [--check]: formats every C++ file in place, or only says which are not.
set -euo pipefail
# shellcheck source=scripts/lib/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib/common.sh"

need_packages python3 python3-venv
need_wheels clang-format==23.1.5
format="$tools/bin/clang-format"
mapfile -t files < <(find include src tests examples benchmarks \( -name '*.[ch]pp' -o -name '*.[ch]' \) 2>/dev/null | sort)

if [ "${1:-}" = --check ]; then
  bad="$("$format" --dry-run "${files[@]}" 2>&1 | sed -n 's/:[0-9]*:[0-9]*: warning:.*/ is not formatted/p' | uniq)"
  if [ -n "$bad" ]; then
    echo "$bad"
    echo "run scripts/format.sh"
    exit 1
  fi
else
  "$format" -i "${files[@]}"
fi
echo "${#files[@]} files are formatted"
