// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A policy that lacks a call is told which one, where the cache is named.
// expect: policy\.victim ?\(evictable\).*invalid
#include <kvstem/kvstem.hpp>

class Mine : private kvstem::Lru {
 public:
  using Lru::kKeys;
  using Lru::on_evicted, Lru::demote, Lru::mergeable;
  using Lru::on_split, Lru::on_merge, Lru::on_trim, Lru::on_erase, Lru::on_leaf, Lru::on_path;
  using Lru::take, Lru::on_request_begin, Lru::on_request_end, Lru::on_hit, Lru::on_release, Lru::on_insert,
      Lru::on_grow;
#ifndef KVSTEM_COMPILE_FAIL
  using Lru::victim;
#endif
};

void step(kvstem::BasicCache<Mine>& cache) { (void)cache.end_step({0, 7}); }
