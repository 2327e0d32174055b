// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// An opaque engine that lends three of the four functions is told which one is missing, where the host is named.
// expect: engine\.import_range ?\(sequence, group, range, in\).*invalid
#include <kvstem/host/opaque_host.hpp>
#include <kvstem/kvstem.hpp>

#include <cstddef>
#include <span>
#include <string>

using namespace kvstem;

struct Engine {
  std::size_t range_bytes(GroupId, TokenRange range) const { return range.size(); }
  Status export_range(SequenceId, GroupId, TokenRange, std::span<std::byte>) { return {}; }
#ifndef KVSTEM_COMPILE_FAIL
  Status import_range(SequenceId, GroupId, TokenRange, std::span<const std::byte>) { return {}; }
#endif
  Status share_range(SequenceId, SequenceId, TokenRange) { return {}; }
  Status drop_range(SequenceId, TokenRange) { return {}; }
  std::string describe() const { return "mine"; }
  EngineCapacity capacity() const { return {64, 4, 16}; }
};

std::size_t idle(OpaqueHost<Engine>& host) { return host.work(); }
