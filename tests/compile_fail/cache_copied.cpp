// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A cache stays where it was created: leases and readers point to it.
// expect: (use of deleted function|call to deleted constructor of) .*Cache
#include <kvstem/kvstem.hpp>

void shadow(kvstem::Cache& cache) {
#ifdef KVSTEM_COMPILE_FAIL
  kvstem::Cache copy(cache);
#else
  kvstem::Cache& copy = cache;
#endif
  (void)copy.end_step({0, 7});
}
