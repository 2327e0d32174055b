// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The one include for a host: kvstem keeps the state of prompts that were computed before, and finds it again.
//
//   You have                                    start with
//   a paged pool of KV blocks of your own       host/paged_host.hpp   (PagedHost)
//   and a scheduler of your own as well         cache/cache.hpp       (Cache, Lease)
//   an engine that only moves its own state     host/opaque_host.hpp  (OpaqueHost)
//   many workers and no KV (a router)           index/prefix_index.hpp
//
// Words: a block is a fixed run of tokens; a slot is where its state lies. A run is a stretch of blocks in the prefix tree
// without a branch. A point is a value on a timeline, "once that has happened". A grid is where an engine always cuts its
// prefill. A resident is a sequence kept inside an opaque engine; a frontier is what follows a sequence's last whole block.
// Examples leave out some checks of ok(); your code should not.
//
// Not included, since they need more than the core: model/sha256.hpp (libcrypto), testing/ (for your own tests).
#pragma once

#include "kvstem/base/ids.hpp"
#include "kvstem/base/memory.hpp"
#include "kvstem/base/point.hpp"
#include "kvstem/base/status.hpp"
#include "kvstem/base/version.hpp"
#include "kvstem/cache/cache.hpp"
#include "kvstem/cache/replay.hpp"
#include "kvstem/cache/step_codec.hpp"
#include "kvstem/host/opaque_host.hpp"
#include "kvstem/host/paged_host.hpp"
#include "kvstem/index/prefix_index.hpp"
#include "kvstem/model/block_key.hpp"
#include "kvstem/model/kv_group.hpp"
#include "kvstem/model/kv_layout.hpp"
#include "kvstem/model/prompt.hpp"
#include "kvstem/model/retention.hpp"
#include "kvstem/model/scope.hpp"
#include "kvstem/observe/change.hpp"
#include "kvstem/observe/flight_log.hpp"
#include "kvstem/observe/stats.hpp"
#include "kvstem/policy/adaptive.hpp"
#include "kvstem/policy/arc.hpp"
#include "kvstem/policy/eviction_policy.hpp"
#include "kvstem/policy/ghost_table.hpp"
#include "kvstem/policy/hinted.hpp"
#include "kvstem/policy/leaf_heap.hpp"
#include "kvstem/policy/lru.hpp"
#include "kvstem/policy/lru2.hpp"
#include "kvstem/policy/shadow_cache.hpp"
#include "kvstem/tier/host_tier.hpp"
#include "kvstem/tier/tier.hpp"
