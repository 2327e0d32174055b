// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// A source that cannot compare would make the index trust a hash alone.
// expect: source\.equal ?\(stored, i, i\).*invalid
#include <kvstem/kvstem.hpp>

class Mine : private kvstem::KeySource {
 public:
  using KeySource::blocks, KeySource::key, KeySource::stored_key, KeySource::marks, KeySource::equal_marks;
  using KeySource::KeySource;
  using KeySource::next_marked, KeySource::copy;
#ifndef KVSTEM_COMPILE_FAIL
  using KeySource::equal;
#endif
};

kvstem::Match look(const kvstem::PrefixIndex& index, const Mine& prompt) { return index.match(0, prompt); }
