// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// As status_ignored.cpp, for a value or the reason why there is none.
// expect: ignoring return(ed)? value of .*nodiscard
#include <kvstem/kvstem.hpp>

kvstem::Result<kvstem::TokenId> host_call();

bool step() {
#ifdef KVSTEM_COMPILE_FAIL
  host_call();
#endif
  return host_call().ok();
}
