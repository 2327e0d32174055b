// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A call that could not do what was asked must not go unnoticed, also where the function itself is not [[nodiscard]].
// expect: ignoring return(ed)? value of .*nodiscard
#include <kvstem/kvstem.hpp>

kvstem::Status host_call();

void step(kvstem::Lease& lease, kvstem::Cache& cache) {
  if (!lease.commit(16, {0, 7}).ok()) return;
  (void)cache.reach({0, 7});
#ifdef KVSTEM_COMPILE_FAIL
  host_call();
#endif
}
