// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A lease is one request's hold: two of it would commit twice and release each other. It moves.
// expect: (use of deleted function|implicitly-deleted copy constructor of) .*Lease
#include <kvstem/kvstem.hpp>

#include <utility>

kvstem::Lease keep(kvstem::Lease& lease) {
#ifdef KVSTEM_COMPILE_FAIL
  return lease;
#else
  return std::move(lease);
#endif
}
