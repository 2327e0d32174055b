// SPDX-FileCopyrightText: 2026 The kvstem authors
// SPDX-License-Identifier: Apache-2.0
//
// The groups of a model besides the one that the tree is built on: which of their slots belong to which block, which of
// them a match needs, and which go first. For the cache only; model/kv_group.hpp says what groups are.
//
// A group's part of a block is its share. Shares hang on the tree's blocks and leave with them. Shares of windows and states
// (the sparse groups) may also leave alone: they have pins of their own, one for each lease that needs them, and those that
// nobody needs form a list by last use. A share is published behind its block: when that is ready, and its own state is
// valid.
//
// Rows are per lease: an entry for each of the group's blocks. Behind a window, and where nothing is reserved, it is null.
// A state has no row; a lease reads the state at its committed cursor from one slot and writes the next into another, so
// that a step that goes wrong has not damaged what was there.
//
// Threads: the cache's. Cost: O(blocks named). Nothing allocates after `take`.
#pragma once

#include <algorithm>
#include <cassert>
#include <cstdint>
#include <span>
#include <utility>

#include "kvstem/base/ids.hpp"
#include "kvstem/base/memory.hpp"
#include "kvstem/base/status.hpp"
#include "kvstem/cache/slot_books.hpp"
#include "kvstem/index/span_arena.hpp"
#include "kvstem/model/kv_group.hpp"

namespace kvstem::inline v0 {

/// The most groups of a model.
inline constexpr std::uint32_t kMaxGroups = 8;

class GroupSet {
 public:
  struct Sizes {
    std::uint32_t leases = 0, row_blocks = 0, positions = 0, block_tokens = 0;
    bool null_slot = false;
  };
  /// A lease as the groups see it. `pos` is its row of the tree's blocks, of which the first `in_tree` are there.
  struct View {
    std::uint32_t lease = 0;
    const BlockPos* pos = nullptr;
    std::uint32_t in_tree = 0, settled = 0;  // blocks
    std::uint32_t valid = 0;                 // tokens
    bool shared = false;
  };

  /// `primary` is the group that the tree is built on (kNoGroup: none of them), whose slots are `books`; `slots` is for
  /// groups that do not say how many they have.
  [[nodiscard]] Status take(const Memory& memory, std::span<const KvGroup> groups, GroupId primary,
                            SlotBooks& books, std::uint32_t slots, const Sizes& sizes) noexcept {
    sizes_ = sizes;
    const auto count = static_cast<GroupId>(groups.size());
    for (GroupId g = 0; g < count; ++g) {
      const KvGroup& facts = groups[g];
      if (g == primary) {
        books_of_[g] = &books;
        continue;
      }
      if (facts.kind == GroupKind::kSideData) continue;
      Group& group = groups_[count_++];
      group.facts = facts;
      group.id = g;
      group.tokens = facts.kind == GroupKind::kStateCheckpoint || facts.block_tokens == 0
                         ? sizes.block_tokens
                         : facts.block_tokens;
      group.ratio = group.tokens / sizes.block_tokens;
      group.row = state(group) ? 2 : (sizes.row_blocks + group.ratio - 1) / group.ratio;
      if (facts.with != kNoGroup) {
        books_of_[g] = books_of_[facts.with];
      } else {
        books_of_[g] = &own_books_[g];
        if (!own_books_[g].take(memory, facts.slots != 0 ? facts.slots : slots, true, sizes.null_slot))
          return no_memory();
      }
      group.books = books_of_[g];
      const std::size_t rows = std::size_t{sizes.leases} * group.row;
      if (!group.share.take(memory, sizes.positions) || !group.parts.take(memory, sizes.leases) ||
          !group.own.take(memory, rows) || !group.own_table.take(memory, rows) ||
          !group.links.take(memory, sparse(group) ? std::size_t{sizes.positions} + 1 : 0))
        return no_memory();
      group.table = group.own_table.data();
      std::fill_n(group.table, rows, null_entry());
      for (std::uint32_t lease = 0; lease < sizes.leases; ++lease) group.parts[lease] = {};
      if (sparse(group)) group.links[head()] = {head(), head(), 0, 0};
      if (!state(group)) grain_ = std::max(grain_, group.ratio);
    }
    return {};
  }

  [[nodiscard]] bool any() const noexcept { return count_ > 0; }
  [[nodiscard]] bool has_states() const noexcept {
    for (std::uint32_t i = 0; i < count_; ++i)
      if (state(groups_[i])) return true;
    return false;
  }
  /// What stands where no slot is.
  [[nodiscard]] std::int32_t null_entry() const noexcept { return sizes_.null_slot ? 0 : -1; }
  /// The books of a group's slots; null for side data.
  [[nodiscard]] SlotBooks* books(GroupId g) noexcept { return g < kMaxGroups ? books_of_[g] : nullptr; }
  [[nodiscard]] const SlotBooks* books(GroupId g) const noexcept {
    return g < kMaxGroups ? books_of_[g] : nullptr;
  }

  /// `step` numbers the one that begins.
  void end_step(Point point, std::uint32_t step) noexcept {
    for (SlotBooks& books : own_books_)
      if (books.pool().capacity() > 0) books.end_step(point);
    for (std::uint32_t i = 0; i < count_; ++i) groups_[i].fresh = 0;
    step_ = step;
  }

  // ---- matching ----------------------------------------------------------------------------------------------------

  struct Usable {
    std::uint32_t blocks = 0;          // valid in all groups
    std::uint32_t without_states = 0;  // the same if there were a state wherever one is needed
  };
  /// How many of the first `blocks` blocks on the path all groups can serve.
  [[nodiscard]] Usable usable(const BlockPos* pos, std::uint32_t blocks) const noexcept {
    Usable u;
    u.without_states = longest(pos, blocks, false);
    u.blocks = has_states() ? longest(pos, u.without_states, true) : u.without_states;
    return u;
  }

  /// The lease was matched to `blocks` blocks: it needs their shares from now on.
  void attach(const View& v, std::uint32_t blocks) noexcept {
    const std::uint32_t tokens = blocks * sizes_.block_tokens;
    for (std::uint32_t i = 0; i < count_; ++i) {
      Group& g = groups_[i];
      Part& part = g.parts[v.lease];
      release_entries(g, v, 0, part.end);  // of a shorter match before
      if (state(g)) {
        drop_read(g, v);
        if (blocks > 0) {
          part.read_pos = v.pos[blocks - 1];
          part.read = g.share[part.read_pos];
          pin(g, part.read_pos);
        }
        part.shown_read = part.read;
        continue;
      }
      const std::uint32_t end = tokens / g.tokens;
      part.first = first_needed(g, tokens);
      part.end = end;
      for (std::uint32_t b = part.first; b < end; ++b) {
        const BlockPos at = pos_of(g, v, b);
        if (g.share[at] == 0) {  // trails: this lease computes it
          part.end = b;
          break;
        }
        use_share(g, v, b, at);
      }
      part.settled = part.end;
      changed(part, 0, part.end);
    }
  }

  // ---- slots ---------------------------------------------------------------------------------------------------------

  /// Calls `fn(group index, slots, copies)` with what a lease whose reserved cursor goes from `from` to `to` tokens needs in
  /// each group, and how many of those are to copy a block that it shares.
  template <class Fn>
  void for_each_need(std::uint32_t lease, std::uint32_t from, std::uint32_t to, Fn&& fn) const noexcept {
    for (std::uint32_t i = 0; i < count_; ++i) {
      const Group& g = groups_[i];
      const Part& part = g.parts[lease];
      if (state(g)) {
        fn(i, part.write == 0 ? 1u : 0u, 0u);
        continue;
      }
      const std::uint32_t end = (to + g.tokens - 1) / g.tokens;
      const std::uint32_t copies = shared_frontier(g, lease, from) ? 1 : 0;
      fn(i, (end > part.end ? end - part.end : 0) + copies, copies);
    }
  }
  [[nodiscard]] SlotBooks& books_at(std::uint32_t index) noexcept { return *groups_[index].books; }
  [[nodiscard]] GroupId id_at(std::uint32_t index) const noexcept { return groups_[index].id; }
  [[nodiscard]] std::uint32_t count() const noexcept { return count_; }

  /// Another slot of the lease in a group: the next entry of its row, or where its state goes.
  void add_slot(std::uint32_t index, std::uint32_t lease, SlotId slot) noexcept {
    Group& g = groups_[index];
    Part& part = g.parts[lease];
    if (state(g)) {
      part.write = slot + 1;
      return;
    }
    g.table[row(g, lease) + part.end] = static_cast<std::int32_t>(slot);
    g.own[row(g, lease) + part.end] = kOwn;
    ++part.end;
    changed(part, part.end - 1, part.end);
  }
  /// The lease has reserved: what it shows of its states is for the step that comes, and one commit may follow.
  void arm(std::uint32_t lease) noexcept {
    for (std::uint32_t i = 0; i < count_; ++i) {
      if (!state(groups_[i])) continue;
      Part& part = groups_[i].parts[lease];
      part.shown_read = part.read;
      part.shown_write = part.write;
      part.armed = true;
    }
  }
  /// Undoes the last `add_slot`.
  void take_slot(std::uint32_t index, std::uint32_t lease) noexcept {
    Group& g = groups_[index];
    Part& part = g.parts[lease];
    if (state(g)) {
      g.books->give_back(part.write - 1);
      part.write = 0;
      return;
    }
    --part.end;
    g.books->give_back(slot(g, lease, part.end));
    set_null(g, lease, part.end);
  }
  struct Copied {
    GroupId group;
    std::uint32_t block;
    SlotId from;
  };
  /// The lease goes on in `to` with the block of the group that its reserved cursor stands in.
  [[nodiscard]] Copied copy_frontier(std::uint32_t index, std::uint32_t lease, std::uint32_t reserved,
                                     SlotId to) noexcept {
    Group& g = groups_[index];
    const std::uint32_t b = reserved / g.tokens;
    const Copied copied{g.id, b, slot(g, lease, b)};
    g.table[row(g, lease) + b] = static_cast<std::int32_t>(to);
    changed(g.parts[lease], b, b + 1);
    return copied;  // whoever copies lets go of `from`, when the entry holds it
  }

  /// What of the pool is not to be had by evicting, besides what the primary group keeps: `for_each_held(fn)` calls
  /// `fn(first, n)` for the tree's blocks that leases hold.
  template <class ForEachHeld>
  [[nodiscard]] std::uint32_t kept(const SlotBooks& books, ForEachHeld&& for_each_held) const noexcept {
    std::uint32_t kept = 0;
    for (std::uint32_t i = 0; i < count_; ++i) {
      const Group& g = groups_[i];
      if (g.books != &books) continue;
      if (sparse(g)) {
        kept += g.shares - g.listed + g.fresh;
      } else {
        for_each_held([&](BlockPos first, std::uint32_t n) {
          for (BlockPos at = first; at < first + n; ++at) kept += g.share[at] != 0;
        });
      }
    }
    return kept;
  }
  /// How many slots of the pool the block's shares would free now if they were evicted; `on_path`: leases hold the block.
  [[nodiscard]] std::uint32_t evictable(const SlotBooks& books, BlockPos at, bool on_path) const noexcept {
    std::uint32_t slots = 0;
    for (std::uint32_t i = 0; i < count_; ++i) {
      const Group& g = groups_[i];
      if (g.books != &books || g.share[at] == 0 || books.busy(g.share[at] - 1)) continue;
      slots += sparse(g) ? g.links[at].pins == 0 && g.links[at].used != step_ : !on_path;
    }
    return slots;
  }
  /// How many slots of the pool the block would free now that leave only with it.
  [[nodiscard]] std::uint32_t bound(const SlotBooks& books, BlockPos at) const noexcept {
    std::uint32_t slots = 0;
    for (std::uint32_t i = 0; i < count_; ++i) {
      const Group& g = groups_[i];
      slots += g.books == &books && !sparse(g) && g.share[at] != 0 && !books.busy(g.share[at] - 1);
    }
    return slots;
  }
  /// Whether the pool has slots that leave only with their blocks.
  [[nodiscard]] bool has_dense(const SlotBooks& books) const noexcept {
    for (std::uint32_t i = 0; i < count_; ++i)
      if (groups_[i].books == &books && !sparse(groups_[i])) return true;
    return false;
  }
  /// Whether a block that the lease would have to copy before it writes is still being written by entries.
  [[nodiscard]] bool writes_frontier(std::uint32_t lease, std::uint32_t reserved) const noexcept {
    for (std::uint32_t i = 0; i < count_; ++i) {
      const Group& g = groups_[i];
      if (by_position(i) && shared_frontier(g, lease, reserved) &&
          g.books->writes(slot(g, lease, reserved / g.tokens)) > 0)
        return true;
    }
    return false;
  }
  /// The step in which the oldest share of the pool that may go was last used; ~0 if there is none.
  [[nodiscard]] std::uint32_t oldest(const SlotBooks& books) const noexcept {
    std::uint32_t oldest = ~std::uint32_t{0};
    for (std::uint32_t i = 0; i < count_; ++i)
      if (const Group& g = groups_[i]; g.books == &books && sparse(g) && g.listed > 0)
        if (const std::uint32_t used = g.links[g.links[head()].younger].used; used != step_)
          oldest = std::min(oldest, used);
    return oldest;
  }
  /// The oldest share of the pool goes. False if there is none that may.
  bool evict(const SlotBooks& books) noexcept {
    const std::uint32_t age = oldest(books);
    for (std::uint32_t i = 0; i < count_ && age != ~std::uint32_t{0}; ++i) {
      Group& g = groups_[i];
      if (g.books != &books || !sparse(g) || g.listed == 0) continue;
      const BlockPos at = g.links[head()].younger;
      if (g.links[at].used != age) continue;
      drop_share(g, at, true);
      return true;
    }
    return false;
  }

  /// The block leaves the tree.
  void drop(BlockPos at, bool evicted) noexcept {
    for (std::uint32_t i = 0; i < count_; ++i)
      if (groups_[i].share[at] != 0) drop_share(groups_[i], at, evicted);
  }
  /// The block is new in the tree.
  void clear(BlockPos at) noexcept {
    for (std::uint32_t i = 0; i < count_; ++i) {
      Group& g = groups_[i];
      assert(g.share[at] == 0);
      if (sparse(g)) g.links[at] = {};
    }
  }

  /// The first token of a block of the lease that entries are writing; kToEnd if there is none.
  [[nodiscard]] std::uint32_t open_from(std::uint32_t lease) const noexcept {
    std::uint32_t tokens = kToEnd;
    for (std::uint32_t i = 0; i < count_; ++i) {
      const Group& g = groups_[i];
      if (state(g) || g.books->moving() == 0) continue;
      const Part& part = g.parts[lease];
      for (std::uint32_t b = part.first; b < part.end && b * g.tokens < tokens; ++b)
        if (g.own[row(g, lease) + b] == kOwn && g.books->writes(slot(g, lease, b)) > 0) tokens = b * g.tokens;
    }
    return tokens;
  }
  /// Whether the lease has reserved since its last commit, so that every state has a slot for the next one.
  [[nodiscard]] bool may_advance(std::uint32_t lease) const noexcept {
    for (std::uint32_t i = 0; i < count_; ++i)
      if (state(groups_[i]) && !groups_[i].parts[lease].armed) return false;
    return true;
  }

  // ---- a lease that goes on --------------------------------------------------------------------------------------------

  /// The committed cursor stands at `tokens` now, behind `before`. `keep`: the state there is wanted.
  void advance(const View& v, std::uint32_t before, std::uint32_t tokens, bool keep) noexcept {
    for (std::uint32_t i = 0; i < count_; ++i) {
      Group& g = groups_[i];
      if (!state(g) || tokens == before) continue;
      Part& part = g.parts[v.lease];
      const std::uint32_t old = part.read_pos == kNoPos ? part.read : 0;
      drop_pin(g, v);
      part.read = std::exchange(part.write, 0u);
      part.armed = false;
      if (old != 0) {
        // Nobody else reads it, nor does a step that a fork has just ended with.
        if (g.books->users(old - 1) == 1 && !g.books->pool().touched(old - 1))
          part.write = old;
        else
          g.books->let_go(old - 1);
      }
      if (!v.shared || tokens % sizes_.block_tokens != 0) continue;
      g.books->hold(part.read - 1);
      if (keep && part.waiting < kMaxWaiting)
        part.states[part.waiting++] = {tokens, part.read};
      else
        replace_last(g, part, {tokens, part.read});
    }
  }

  /// What is valid and whose block is in the tree becomes everybody's; what lies behind a window goes back.
  void settle(const View& v) noexcept {
    for (std::uint32_t i = 0; i < count_; ++i) {
      Group& g = groups_[i];
      Part& part = g.parts[v.lease];
      if (state(g)) {
        settle_states(g, v);
        continue;
      }
      if (v.shared) {
        const std::uint32_t valid = v.valid > g.facts.lag_tokens ? v.valid - g.facts.lag_tokens : 0;
        const std::uint32_t until =
            std::min({valid / g.tokens, std::min(v.settled, v.in_tree) / g.ratio, part.end});
        for (; part.settled < until; ++part.settled)
          if (!publish(g, v, part.settled)) break;
      }
      if (g.facts.kind == GroupKind::kSlidingWindow) {
        // Up to what is valid: a step that is not launched yet may be about what is committed behind it.
        std::uint32_t first = first_needed(g, v.valid);
        // What others will want to find is published before it goes.
        if (v.shared && v.settled <= v.in_tree) first = std::min(first, part.settled);
        first = std::min(first, part.end);
        if (first > part.first) {
          release_entries(g, v, part.first, first);
          changed(part, part.first, first);
          part.first = first;
        }
      }
    }
  }

  /// Whether a lease may go back to n tokens: kWrongState if a window or a state that it needs there is gone.
  [[nodiscard]] Status may_cut(std::uint32_t lease, std::uint32_t committed, std::uint32_t n) const noexcept {
    for (std::uint32_t i = 0; i < count_; ++i) {
      const Group& g = groups_[i];
      if (state(g) ? n < committed : first_needed(g, n) < g.parts[lease].first)
        return {StatusCode::kWrongState,
                "a state or a window that is needed there is gone: release and acquire with the tokens that "
                "are left"};
    }
    return {};
  }
  /// The lease has no more than its first n tokens.
  void cut(const View& v, std::uint32_t n) noexcept {
    for (std::uint32_t i = 0; i < count_; ++i) {
      Group& g = groups_[i];
      if (state(g)) continue;
      Part& part = g.parts[v.lease];
      const std::uint32_t end = (n + g.tokens - 1) / g.tokens;
      if (end < part.end) {
        release_entries(g, v, end, part.end);
        part.end = end;
      }
      part.settled = std::min(part.settled, n / g.tokens);
      // Others may use the block that the end lies in; this lease copies it before it writes.
      const std::uint32_t b = n / g.tokens;
      if (n % g.tokens != 0 && b < part.end && g.own[row(g, v.lease) + b] == kShare) {
        g.books->hold(slot(g, v.lease, b));
        if (sparse(g)) unpin(g, pos_of(g, v, b));
        g.own[row(g, v.lease) + b] = kOwn;
      }
    }
  }

  /// The child has what the parent has of its first `tokens` tokens. `copy(index, slot)` gives the slot of a copy of the
  /// block that the end lies in, or kNoSlot to share it.
  template <class Copy>
  void fork(const View& parent, const View& child, std::uint32_t tokens, Copy&& copy) noexcept {
    for (std::uint32_t i = 0; i < count_; ++i) {
      Group& g = groups_[i];
      const Part& from = g.parts[parent.lease];
      Part& to = g.parts[child.lease];
      to = {};
      if (state(g)) {
        to.read = from.read;
        to.read_pos = from.read_pos;
        if (to.read_pos != kNoPos)
          pin(g, to.read_pos);
        else if (to.read != 0)
          g.books->hold(to.read - 1);
        to.shown_read = to.read;
        continue;
      }
      to.first = from.first;
      to.end = std::min(from.end, (tokens + g.tokens - 1) / g.tokens);
      to.settled = std::min(from.settled, to.end);
      for (std::uint32_t b = to.first; b < to.end; ++b) {
        const std::size_t at = row(g, child.lease) + b;
        g.table[at] = g.table[row(g, parent.lease) + b];
        g.own[at] = g.own[row(g, parent.lease) + b];
        const SlotId copied = b == tokens / g.tokens ? copy(i, slot(g, child.lease, b)) : kNoSlot;
        if (copied != kNoSlot) {
          g.table[at] = static_cast<std::int32_t>(copied);
          g.own[at] = kOwn;
        } else if (g.own[at] == kOwn) {
          g.books->hold(slot(g, child.lease, b));
        } else if (sparse(g) && g.own[at] == kShare) {
          pin(g, pos_of(g, parent, b));
        }
      }
      changed(to, 0, to.end);
    }
  }

  /// The lease ends. What still waits for its point is not published.
  void finish(const View& v) noexcept {
    for (std::uint32_t i = 0; i < count_; ++i) {
      Group& g = groups_[i];
      Part& part = g.parts[v.lease];
      if (state(g)) {
        for (std::uint32_t n = 0; n < part.waiting; ++n) g.books->let_go(part.states[n].slot - 1);
        if (part.last.slot != 0 && !publish_state(g, v, part.last)) g.books->let_go(part.last.slot - 1);
        drop_read(g, v);
        if (part.write != 0) g.books->let_go(part.write - 1);
      } else {
        release_entries(g, v, part.first, part.end);
      }
      part = {};
    }
  }

  /// Entries that wrote into blocks that leases let go of, since the last call.
  [[nodiscard]] std::uint32_t take_dropped_open() noexcept { return std::exchange(dropped_open_, 0u); }

  // ---- looking -------------------------------------------------------------------------------------------------------

  /// The lease's row of a group that is not the primary one; of states {read, write}.
  [[nodiscard]] std::span<const std::int32_t> table(GroupId id, std::uint32_t lease, bool padded) noexcept {
    Group* g = find(id);
    if (g == nullptr) return {};
    const std::size_t at = row(*g, lease);
    const Part& part = g->parts[lease];
    if (state(*g)) {
      const auto entry = [&](std::uint32_t slot) {
        return slot == 0 ? null_entry() : static_cast<std::int32_t>(slot - 1);
      };
      g->table[at] = entry(part.shown_read);
      g->table[at + 1] = entry(part.shown_write);
      return {g->table + at, 2};
    }
    return {g->table + at, padded ? g->row : part.end};
  }
  [[nodiscard]] BlockRange take_delta(GroupId id, std::uint32_t lease) noexcept {
    Group* g = find(id);
    if (g == nullptr) return {};
    if (state(*g)) return {0, 2};
    Part& part = g->parts[lease];
    const std::uint32_t end = std::min(part.changed.end, part.end);
    const BlockRange range{std::min(part.changed.begin, end), end};
    part.changed = {};
    return range;
  }
  /// Slots that only this lease holds, or has need of. `pos` is its row of the tree's blocks.
  [[nodiscard]] std::uint32_t exclusive(std::uint32_t lease, const BlockPos* pos) const noexcept {
    std::uint32_t slots = 0;
    for (std::uint32_t i = 0; i < count_; ++i) {
      const Group& g = groups_[i];
      const Part& part = g.parts[lease];
      if (state(g)) {
        slots += part.read_pos != kNoPos && g.links[part.read_pos].pins == 1;
        for (const std::uint32_t s : {part.read_pos == kNoPos ? part.read : 0u, part.write})
          slots += s != 0 && g.books->users(s - 1) == 1;
        continue;
      }
      for (std::uint32_t b = part.first; b < part.end; ++b)
        if (g.own[row(g, lease) + b] == kOwn)
          slots += g.books->users(slot(g, lease, b)) == 1;
        else if (sparse(g))
          slots += g.links[pos[(b + 1) * g.ratio - 1]].pins == 1;
    }
    return slots;
  }
  /// Whether an entry that writes block b of a group still writes into the lease's slot.
  [[nodiscard]] bool of_use(GroupId id, std::uint32_t lease, std::uint32_t b, SlotId s) const noexcept {
    const Group* g = const_cast<GroupSet*>(this)->find(id);
    return g != nullptr && !state(*g) && b < g->parts[lease].end && g->own[row(*g, lease) + b] == kOwn &&
           slot(*g, lease, b) == s;
  }
  /// Tokens of the group's blocks; 0 if there is no such group here, or if it is one of states.
  [[nodiscard]] std::uint32_t position_tokens(GroupId id) const noexcept {
    const Group* g = const_cast<GroupSet*>(this)->find(id);
    return g == nullptr || state(*g) ? 0 : g->tokens;
  }
  [[nodiscard]] std::uint32_t block_tokens(GroupId id) const noexcept {
    const Group* g = const_cast<GroupSet*>(this)->find(id);
    return g == nullptr ? sizes_.block_tokens : g->tokens;
  }
  /// Whether the group's state lies by position, in a row of blocks.
  [[nodiscard]] bool by_position(std::uint32_t index) const noexcept { return !state(groups_[index]); }
  /// Whether position `tokens` lies inside a block of the group.
  [[nodiscard]] bool splits(std::uint32_t index, std::uint32_t tokens) const noexcept {
    return by_position(index) && tokens % groups_[index].tokens != 0;
  }
  /// Slots of a group that a lease holds in a row of attention, for what moves inside it; kNoSlot for states.
  [[nodiscard]] SlotId slot_of(std::uint32_t index, std::uint32_t lease, std::uint32_t b) const noexcept {
    return state(groups_[index]) ? kNoSlot : slot(groups_[index], lease, b);
  }

  /// The next position behind `position` at which a state is worth keeping, of a lease whose prompt has `prompt` tokens and
  /// would have matched `helped` with one; kToEnd if there is none.
  [[nodiscard]] std::uint32_t next_boundary(std::uint32_t position, std::uint32_t prompt,
                                            std::uint32_t helped) const noexcept {
    std::uint32_t next = kToEnd;
    const auto offer = [&](std::uint32_t at) {
      if (at > position) next = std::min(next, at);
    };
    for (std::uint32_t i = 0; i < count_; ++i) {
      if (!state(groups_[i])) continue;
      offer(helped);
      offer(prompt == 0 ? 0 : (prompt - 1) / sizes_.block_tokens * sizes_.block_tokens);
      if (const std::uint32_t every = groups_[i].facts.checkpoint_blocks * sizes_.block_tokens; every != 0)
        if (const std::uint32_t at = position / every * every + every; at < prompt) offer(at);
    }
    return next;
  }

  /// Whether a pool's books are right: what is found on blocks, in leases and under way is what the pool counts.
  /// `primary_holds`: what the primary group holds of it. `for_each_block(fn)` calls `fn(first, n)` for all blocks.
  template <class ForEachBlock>
  [[nodiscard]] bool balanced(const SlotBooks& books, std::uint32_t primary_holds,
                              ForEachBlock&& for_each_block) const {
    std::uint32_t holds = primary_holds + books.moving() + books.null_slots(), holders = 0;
    bool right = true;
    for (std::uint32_t i = 0; i < count_; ++i) {
      const Group& g = groups_[i];
      if (g.books != &books) continue;
      std::uint32_t shares = 0, pins = 0, pinned = 0;
      for_each_block([&](BlockPos first, std::uint32_t n) {
        for (BlockPos at = first; at < first + n; ++at) {
          shares += g.share[at] != 0;
          if (sparse(g)) pins += g.links[at].pins, pinned += g.links[at].pins > 0;
        }
      });
      for (std::uint32_t lease = 0; lease < sizes_.leases; ++lease) {
        const Part& part = g.parts[lease];
        if (state(g)) {
          holds += (part.read != 0 && part.read_pos == kNoPos) + (part.write != 0) + (part.last.slot != 0) +
                   part.waiting;
          pins -= part.read != 0 && part.read_pos != kNoPos;
        } else {
          for (std::uint32_t b = 0; b < g.row; ++b) {
            holds += g.own[row(g, lease) + b] == kOwn;
            pins -= sparse(g) && g.own[row(g, lease) + b] == kShare;
          }
        }
      }
      right = right && pins == 0 && shares == g.shares && (!sparse(g) || g.listed + pinned == shares);
      holds += shares;
    }
    for (SlotId s = 0; s < books.pool().capacity(); ++s) holders += books.pool().holders(s);
    return right && holds == holders &&
           books.pool().free_slots() + books.pool().held_slots() + books.pool().used_slots() ==
               books.pool().capacity();
  }

 private:
  static constexpr std::uint32_t kMaxWaiting = 8;
  enum : std::uint8_t { kNull = 0, kOwn, kShare };  // an entry of a row: whose its slot is

  struct State {
    std::uint32_t tokens, slot;  // the slot plus one
  };
  /// What a lease has in a group.
  struct Part {
    std::uint32_t first, end;  // blocks with an entry
    std::uint32_t settled;     // published, or never to be
    BlockRange changed;
    std::uint32_t read, write;              // states: slots plus one
    std::uint32_t shown_read, shown_write;  // as they were when the lease reserved
    bool armed;                             // it has reserved since its last commit
    BlockPos read_pos = kNoPos;             // the share that `read` is
    State last;                             // the one at the last block's end
    std::uint32_t waiting;                  // others that wait for their point
    State states[kMaxWaiting];
  };
  /// A sparse share's place in the list of those that nobody needs.
  struct Link {
    BlockPos older, younger;
    std::uint32_t used;  // step of the last use
    std::uint32_t pins;
  };
  struct Group {
    KvGroup facts;
    GroupId id = 0;
    std::uint32_t tokens = 0, ratio = 1, row = 0;
    SlotBooks* books = nullptr;
    FixedArray<std::uint32_t> share;                  // by the group's block's last BlockPos: slot plus one
    FixedArray<Link> links;                           // by BlockPos, and the list's head
    std::uint32_t shares = 0, listed = 0, fresh = 0;  // all, in the list, of those used in the open step
    FixedArray<Part> parts;                           // by lease
    FixedArray<std::uint8_t> own;                     // rows
    FixedArray<std::int32_t> own_table;
    std::int32_t* table = nullptr;
  };

  static Status no_memory() noexcept {
    return {StatusCode::kExhausted,
            "no memory for the cache's groups: lower slots, max_leases or max_lease_tokens"};
  }
  static bool state(const Group& g) noexcept { return g.facts.kind == GroupKind::kStateCheckpoint; }
  static bool sparse(const Group& g) noexcept { return g.facts.kind != GroupKind::kFullAttention; }
  [[nodiscard]] BlockPos head() const noexcept { return sizes_.positions; }
  [[nodiscard]] static std::size_t row(const Group& g, std::uint32_t lease) noexcept {
    return std::size_t{lease} * g.row;
  }
  [[nodiscard]] static SlotId slot(const Group& g, std::uint32_t lease, std::uint32_t b) noexcept {
    return static_cast<SlotId>(g.table[row(g, lease) + b]);
  }
  [[nodiscard]] static BlockPos pos_of(const Group& g, const View& v, std::uint32_t b) noexcept {
    return v.pos[(b + 1) * g.ratio - 1];
  }
  [[nodiscard]] Group* find(GroupId id) noexcept {
    for (std::uint32_t i = 0; i < count_; ++i)
      if (groups_[i].id == id) return &groups_[i];
    return nullptr;
  }
  static void changed(Part& part, std::uint32_t from, std::uint32_t to) noexcept {
    if (from >= to) return;
    part.changed = part.changed.empty()
                       ? BlockRange{from, to}
                       : BlockRange{std::min(part.changed.begin, from), std::max(part.changed.end, to)};
  }
  void set_null(Group& g, std::uint32_t lease, std::uint32_t b) noexcept {
    g.table[row(g, lease) + b] = null_entry();
    g.own[row(g, lease) + b] = kNull;
  }
  /// The first block that a token behind the first `tokens` still sees.
  [[nodiscard]] static std::uint32_t first_needed(const Group& g, std::uint32_t tokens) noexcept {
    if (g.facts.kind != GroupKind::kSlidingWindow || tokens <= g.facts.window_tokens) return 0;
    return (tokens - g.facts.window_tokens) / g.tokens;
  }

  [[nodiscard]] std::uint32_t longest(const BlockPos* pos, std::uint32_t blocks,
                                      bool with_states) const noexcept {
    std::uint32_t best = blocks - blocks % grain_;
    for (std::uint32_t before = best + 1; best > 0 && best != before;) {
      before = best;
      for (std::uint32_t i = 0; i < count_ && best > 0; ++i) {
        const Group& g = groups_[i];
        if (!state(g))
          best = longest(g, pos, best);
        else if (with_states)
          while (best > 0 && (g.share[pos[best - 1]] == 0 || best % grain_ != 0)) --best;
      }
    }
    return best;
  }
  [[nodiscard]] std::uint32_t longest(const Group& g, const BlockPos* pos,
                                      std::uint32_t blocks) const noexcept {
    const auto there = [&](std::uint32_t b) { return g.share[pos[(b + 1) * g.ratio - 1]] != 0; };
    for (;;) {
      const std::uint32_t tokens = blocks * sizes_.block_tokens;
      const std::uint32_t end = (tokens > g.facts.lag_tokens ? tokens - g.facts.lag_tokens : 0) / g.tokens;
      const std::uint32_t first = std::min(first_needed(g, tokens), end);
      // From the far end backwards for a window, so that what fails tells how far to go back.
      std::uint32_t missing = end;
      for (std::uint32_t b = end; b > first;)
        if (!there(--b)) {
          missing = b;
          break;
        }
      if (missing == end) return blocks;
      // Where block `missing` lags behind or is not needed the match could end yet: at the latest with it as the next.
      std::uint32_t shorter = (missing * g.tokens + g.facts.lag_tokens + g.tokens - 1) / sizes_.block_tokens;
      shorter = std::min(shorter, blocks - 1);
      blocks = shorter - shorter % grain_;
      if (blocks == 0) return 0;
    }
  }

  // ---- shares ----------------------------------------------------------------------------------------------------------

  void unlink(Group& g, BlockPos at) noexcept {
    const Link& l = g.links[at];
    g.links[l.older].younger = l.younger;
    g.links[l.younger].older = l.older;
    --g.listed;
  }
  void link(Group& g, BlockPos at) noexcept {
    Link& l = g.links[at];
    l.used = step_;
    l.younger = head();
    l.older = g.links[head()].older;
    g.links[l.older].younger = at;
    g.links[head()].older = at;
    ++g.listed;
    ++g.fresh;
  }
  void pin(Group& g, BlockPos at) noexcept {
    if (g.links[at].pins++ > 0) return;
    g.fresh -= g.links[at].used == step_;
    unlink(g, at);
  }
  void unpin(Group& g, BlockPos at) noexcept {
    if (--g.links[at].pins == 0) link(g, at);
  }
  void drop_share(Group& g, BlockPos at, bool evicted) noexcept {
    if (sparse(g)) {
      assert(g.links[at].pins == 0);
      g.fresh -= g.links[at].used == step_;
      unlink(g, at);
    }
    g.books->withdraw(g.share[at] - 1, evicted);
    g.share[at] = 0;
    --g.shares;
  }

  void use_share(Group& g, const View& v, std::uint32_t b, BlockPos at) noexcept {
    g.table[row(g, v.lease) + b] = static_cast<std::int32_t>(g.share[at] - 1);
    g.own[row(g, v.lease) + b] = kShare;
    if (sparse(g)) pin(g, at);
  }
  /// The lease's own block b becomes the tree's, or gives way to the one that is there. False if something is still being
  /// brought into it.
  [[nodiscard]] bool publish(Group& g, const View& v, std::uint32_t b) noexcept {
    if (g.own[row(g, v.lease) + b] != kOwn) return true;
    const SlotId own = slot(g, v.lease, b);
    if (g.books->writes(own) > 0) return false;
    const BlockPos at = pos_of(g, v, b);
    if (g.share[at] != 0) {
      use_share(g, v, b, at);
      changed(g.parts[v.lease], b, b + 1);
      g.books->let_go(own);
      return true;
    }
    g.share[at] = own + 1;
    ++g.shares;
    g.books->publish(own);
    g.own[row(g, v.lease) + b] = kShare;
    if (sparse(g)) g.links[at].pins = 1;
    return true;
  }
  void release_entries(Group& g, const View& v, std::uint32_t from, std::uint32_t to) noexcept {
    // From the end, so that of those let go of together the deepest is the oldest.
    for (std::uint32_t b = to; b-- > from;) {
      const std::uint8_t own = g.own[row(g, v.lease) + b];
      if (own == kOwn) {
        dropped_open_ += g.books->writes(slot(g, v.lease, b));
        g.books->let_go(slot(g, v.lease, b));
      }
      if (own == kShare && sparse(g)) unpin(g, pos_of(g, v, b));
      set_null(g, v.lease, b);
    }
  }

  // ---- states ----------------------------------------------------------------------------------------------------------

  void drop_pin(Group& g, const View& v) noexcept {
    Part& part = g.parts[v.lease];
    if (part.read_pos != kNoPos) unpin(g, std::exchange(part.read_pos, kNoPos));
  }
  void drop_read(Group& g, const View& v) noexcept {
    Part& part = g.parts[v.lease];
    if (part.read != 0 && part.read_pos == kNoPos) g.books->let_go(part.read - 1);
    drop_pin(g, v);
    part.read = 0;
  }
  void replace_last(Group& g, Part& part, State state) noexcept {
    if (part.last.slot != 0) g.books->let_go(part.last.slot - 1);
    part.last = state;
  }
  /// False, and nothing happens, before the state's point or without its block.
  [[nodiscard]] bool publish_state(Group& g, const View& v, State s) noexcept {
    const std::uint32_t blocks = s.tokens / sizes_.block_tokens;
    if (!v.shared || s.tokens > v.valid || blocks > std::min(v.settled, v.in_tree)) return false;
    const BlockPos at = v.pos[blocks - 1];
    if (g.share[at] != 0) return false;
    g.share[at] = s.slot;
    ++g.shares;
    g.books->publish(s.slot - 1);
    g.links[at].pins = 0;
    link(g, at);
    return true;
  }
  void settle_states(Group& g, const View& v) noexcept {
    Part& part = g.parts[v.lease];
    std::uint32_t left = 0;
    for (std::uint32_t n = 0; n < part.waiting; ++n) {
      const State s = part.states[n];
      if (s.tokens > v.valid)
        part.states[left++] = s;
      else if (!publish_state(g, v, s))
        g.books->let_go(s.slot - 1);
    }
    part.waiting = left;
  }

  [[nodiscard]] static bool shared_frontier(const Group& g, std::uint32_t lease,
                                            std::uint32_t reserved) noexcept {
    const std::uint32_t filled = reserved % g.tokens, b = reserved / g.tokens;
    if (filled == 0 || g.books->pool().shared_slots() == 0 || b >= g.parts[lease].end) return false;
    const SlotId s = slot(g, lease, b);
    return g.books->users(s) > 1 || g.books->read_tokens(s) > filled;
  }

  Sizes sizes_;
  std::uint32_t count_ = 0, grain_ = 1;
  std::uint32_t step_ = 1;          // the open one
  std::uint32_t dropped_open_ = 0;  // writes under way into slots that leases let go of
  Group groups_[kMaxGroups];
  SlotBooks own_books_[kMaxGroups];
  SlotBooks* books_of_[kMaxGroups] = {};
};

}  // namespace kvstem::inline v0
