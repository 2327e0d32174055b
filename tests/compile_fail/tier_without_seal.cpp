// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A tier without seal could not tell what was stored from what was only staged.
// expect: tier\.seal ?\(slot, key, bytes\).*invalid
#include <kvstem/tier/host_tier.hpp>

class Mine : private kvstem::HostTier {
 public:
  using HostTier::medium, HostTier::slots, HostTier::slot_bytes, HostTier::stage, HostTier::read,
      HostTier::drop;
#ifndef KVSTEM_COMPILE_FAIL
  using HostTier::seal;
#endif
};

static_assert(kvstem::Tier<Mine>);
