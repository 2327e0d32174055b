# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""What kvstem's cache decides, as plainly as it can be said: in place, tokens compared, LRU. The library is tested
against this.

A block is named by its scope and all tokens up to its end: equal names, equal prefixes. It is present when it has a
slot, and pending while leases only mean to compute it. Nothing here is fast.

Two things are not said, for they depend on how the library stores paths: in which order the slots come back of several
blocks that are evicted in one call (`reserve` is told), and what a lease lets go of when the only room is what it found
and cannot use (`Unsaid`).
"""
import collections

NOW = (0, 0)  # a point: (timeline, value)


class Unsaid(Exception):
    """From here on the cache is not specified."""


class Block:
    def __init__(self, used):
        self.slot = None  # where its state lies; None: pending
        self.used = used  # (True, last use), or (False, when it was demoted): what goes first is less
        self.owner = None  # pending: the lease that computes it
        self.let_go = 0  # the step in which a lease last let go of it


class Lease:
    """Tokens: `committed`, `reserved`, and `valid`, whose commits are reached. Blocks: `matched`, and `settled`, which
    are in the tree."""

    def __init__(self, index, scope, tokens, reuse=True):
        self.index, self.scope, self.tokens, self.prompt = index, scope, list(tokens), len(tokens)
        self.reuse = reuse  # else nobody shares a block with it, but its own branches
        self.matched = self.settled = self.committed = self.reserved = self.valid = 0
        self.waiting = []  # commits that wait for their points: (tokens, point)
        self.table, self.own = [], set()  # slots; of which blocks the lease itself is a holder
        self.changed = None  # of the table: (begin, end)
        self.loads = []  # that nobody took yet
        self.started = self.forked = self.releasing = self.cold = False
        self.not_before = NOW

    def change(self, begin, end):
        if begin < end:
            self.changed = (min(self.changed[0], begin), max(self.changed[1], end)) if self.changed else (begin, end)


class Entry:
    """A load or a copy for a lease's block; it holds its slots until it is done."""

    def __init__(self, lease, block, slot, not_before, source=None, source_ready=None):
        self.lease, self.block, self.slot, self.not_before = lease, block, slot, not_before
        self.source, self.source_ready = source, source_ready  # of copies: (slot, offset there, offset here, tokens)


class Pool:
    """Slots. Free ones are given out in the order in which they became free."""

    def __init__(self, slots):
        self.free, self.held, self.step = list(range(slots)), [], 1
        self.holders, self.fence, self.touched = [0] * slots, [NOW] * slots, [0] * slots

    def let_go(self, slot):
        """The open step may still touch it."""
        self.touched[slot] = self.step
        self.holders[slot] -= 1
        if self.holders[slot] == 0:
            self.held.append(slot)

    def evict(self, slot, fence):
        if self.touched[slot] == self.step:
            return self.let_go(slot)
        self.holders[slot] -= 1
        if self.holders[slot] == 0:
            self.fence[slot] = fence
            self.free.append(slot)
            self.held = self.held[1:] + self.held[:1]

    def end_step(self, point):
        for slot in self.held:
            self.fence[slot] = point
        self.free, self.held, self.step = self.free + self.held, [], self.step + 1


class BranchingCache:
    def __init__(self, block_tokens, slots, leases, row):
        self.block_tokens, self.slots, self.most_tokens = block_tokens, slots, row * block_tokens
        self.pool, self.leases = Pool(slots), [None] * leases
        self.blocks = {}  # name -> Block
        self.copies = []  # that nobody took yet
        self.open = []  # all entries that wait or are under way
        self.taken = []  # all that were ever handed out
        self.read_to = {}  # slot that copies read -> how far into it they do, or did: those tokens stay as they are
        self.reached = collections.Counter()  # timeline -> value
        self.last_step, self.clock = NOW, 0
        self.changes = []  # (1, *name): stored; (0, *name): removed
        self.stats, self.happened = collections.Counter(), collections.Counter()

    # ---- blocks

    def name(self, lease, b):
        return (lease.scope, *lease.tokens[: (b + 1) * self.block_tokens])

    def path(self, lease, begin=0):
        """Its whole blocks, present or pending, from one on."""
        return [self.name(lease, b) for b in range(begin, len(lease.tokens) // self.block_tokens) if lease.reuse]

    def before(self, name):
        return name[: -self.block_tokens]  # of a first block (scope,), which is no block

    def present(self, name):
        return name in self.blocks and self.blocks[name].slot is not None

    def continuations(self, name):
        return sum(self.before(other) == name for other in self.blocks)

    def held_by_leases(self, but=None):
        return {name for lease in self.leases if lease and lease is not but for name in self.path(lease)}

    def held(self):
        """Leases hold it, or one let go of it in the open step, which may still read it."""
        return self.held_by_leases() | {n for n, block in self.blocks.items() if block.let_go == self.pool.step}

    def ready(self, lease):
        """How many of the lease's blocks are present."""
        return sum(map(self.present, self.path(lease)))  # what is present has no holes

    def use(self, names):
        """A path is used at once; of its blocks the deepest counts as least recent."""
        self.clock += 1
        for name in names:
            self.blocks[name].used = (True, self.clock)

    def add_pending(self, lease):
        """What is new is as recent as what it continues."""
        for name in self.path(lease):
            if name in self.blocks:
                continue
            above = self.blocks.get(self.before(name))
            self.clock += above is None
            self.blocks[name] = Block(above.used if above else (True, self.clock))
            self.blocks[name].owner = lease

    def drop_pending(self):
        """What nobody means to compute any more."""
        kept = self.held_by_leases()
        self.blocks = {name: block for name, block in self.blocks.items() if block.slot is not None or name in kept}

    def disclaim(self, lease, begin=0):
        """Others may take over what it was to compute; one that has it computed as well has done so."""
        heirs = [other for other in self.leases if other and other is not lease and other.reuse]
        for b, name in enumerate(self.path(lease)):
            if b >= begin and self.blocks[name].owner is lease:
                self.blocks[name].owner = next(
                    (other for other in heirs if (b + 1) * self.block_tokens <= other.committed
                     and self.name(other, b) == name), None)

    def let_go(self, names):
        self.use(names)
        for name in names:
            self.blocks[name].let_go = self.pool.step

    # ---- room

    def evict(self):
        """The least recently used block that nothing continues and nobody holds."""
        held = self.held()
        evictable = [name for name in self.blocks if name not in held and not self.continuations(name)]
        self.remove(min(evictable, key=lambda name: self.blocks[name].used))

    def remove(self, victim):
        self.pool.evict(self.blocks.pop(victim).slot, self.last_step)
        self.changes.append((0, *victim))
        self.stats["evicted"] += 1
        self.happened["eviction"] += 1

    def room(self, need, lease=None):
        """Whether so many slots are to be had. Counted before anything goes: a refusal takes nothing from anybody."""
        held = self.held()
        slots = [block.slot for name, block in self.blocks.items() if name not in held]
        missing = need - len(self.pool.free) - sum(
            self.pool.holders[slot] == 1 and self.pool.touched[slot] != self.pool.step for slot in slots)
        if missing > 0 and lease is not None:
            others, unused = self.held_by_leases(lease), self.path(lease, max(lease.matched, lease.settled))
            if sum(self.present(name) and name not in others for name in unused) >= missing:
                raise Unsaid
        return missing <= 0

    def take_back(self, slot):
        """Where there is no slot for a copy of a block that only the tree shares, and nobody needs it there, it goes."""
        name = next((name for name, block in self.blocks.items() if block.slot == slot), None)
        if name is None or self.users(slot) != 2 or slot in self.read_to or name in self.held():
            return False
        if self.continuations(name):
            if any(other[: len(name)] == name for other in self.held()):
                return False
            raise Unsaid
        self.remove(name)
        return True

    def take_slots(self, n, given=()):
        """`given`: what was given out. What had to be evicted may come in any order."""
        slots, free, held = [], min(n, len(self.pool.free)), len(self.pool.held)
        for _ in range(n):
            while not self.pool.free:
                self.evict()
            slots.append(self.pool.free.pop(0))
            self.pool.holders[slots[-1]] = 1
        if len(self.pool.held) > held and n - free > 1:
            raise Unsaid  # some of them come back with the step, in any order
        told = list(given[free:])
        return slots[:free] + (told if sorted(told) == sorted(slots[free:]) else slots[free:])

    def put(self, lease, b, slot):
        lease.table[b:] = [slot, *lease.table[b + 1:]]
        lease.own.add(b)
        lease.change(b, b + 1)
        if self.pool.fence[slot][1] > lease.not_before[1]:
            lease.not_before = self.pool.fence[slot]

    # ---- leases

    def refuse(self, status):
        self.stats["refused"] += 1
        return status

    def acquire(self, scope, tokens, reuse=True):
        if None not in self.leases:
            return self.refuse("exhausted"), None
        index = self.leases.index(None)
        lease = self.leases[index] = Lease(index, scope, tokens, reuse)
        self.use(name for name in self.path(lease) if name in self.blocks)
        self.add_pending(lease)
        self.take_match(lease)
        return "ok", lease

    def useful(self, lease, blocks):
        """The last token of the prompt is always computed."""
        return min(blocks, (lease.prompt - 1) // self.block_tokens)

    def take_match(self, lease):
        had = lease.matched
        lease.matched = lease.settled = max(had, self.useful(lease, self.ready(lease)))
        lease.table = [self.blocks[name].slot for name in self.path(lease)[: lease.matched]]
        lease.change(had, lease.matched)
        lease.committed = lease.reserved = lease.valid = lease.matched * self.block_tokens

    def refresh(self, lease):
        """Tokens that are ready, those behind them that are pending, whether this lease has to compute the next."""
        if lease.started:
            return [lease.committed, 0, 1]
        self.take_match(lease)
        ready, awaited = self.ready(lease), self.useful(lease, len(self.path(lease)))
        if ready >= awaited:
            return [lease.committed, 0, 1]
        following = [self.blocks[name] for name in self.path(lease, ready)]
        if following[0].owner is None:  # who was to compute it has given up: the first to ask takes over
            self.happened["follower took over"] += 1
            for block in following:
                block.owner = block.owner or lease
        return [lease.committed, awaited * self.block_tokens - lease.committed, int(following[0].owner is lease)]

    def blocks_for(self, tokens):
        return -(-tokens // self.block_tokens)

    def users(self, slot):
        """Holders that are not entries."""
        return self.pool.holders[slot] - sum((e.slot == slot) + (e.source is not None and e.source[0] == slot)
                                             for e in self.open)

    def to_copy(self, lease):
        """What another holds too, or is still read where it would be written, is copied first."""
        frontier, filled = divmod(lease.reserved, self.block_tokens)
        return filled > 0 and (self.users(lease.table[frontier]) > 1
                               or self.read_to.get(lease.table[frontier], 0) > filled)

    def quote(self, lease, n):
        """The slots that n tokens more take."""
        return self.blocks_for(lease.reserved + n) - len(lease.table) + (n > 0 and self.to_copy(lease))

    def reserve(self, lease, n, given, keep_found=False):
        have, need = len(lease.table), self.blocks_for(lease.reserved + n)
        if lease.reserved + n > self.most_tokens or need > self.slots:
            return self.refuse("out_of_range")
        frontier, copy = lease.reserved // self.block_tokens, self.to_copy(lease)
        if copy and self.written(lease, frontier):
            return self.refuse("exhausted")
        if copy and not self.room(need - have + 1) and self.room(need - have):
            copy = not self.take_back(lease.table[frontier])
        if copy and self.too_many_copies(len(self.sources(lease, lease.reserved))):
            return self.refuse("exhausted")
        if not self.room(need - have + copy, None if keep_found else lease):
            self.happened["refused reserve"] += 1
            return self.refuse("exhausted")
        new = [frontier] * copy + list(range(have, need))
        slots = self.take_slots(len(new), [given[b] for b in new if b < len(given)])
        for b, slot in zip(new, slots):
            if b < have:
                self.copy_block(lease, lease.table[b], slot, lease.reserved)
                self.pool.let_go(lease.table[b])
                self.happened["copy on write"] += 1
            self.put(lease, b, slot)
        lease.reserved += n
        lease.started = True
        return "ok"

    def append(self, lease, tokens):
        for token in tokens:
            lease.tokens.append(token)
            self.add_pending(lease)
        return "ok"

    def may_commit(self, lease, n, after):
        if n > min(len(lease.tokens), lease.reserved) - lease.committed:
            return "out_of_range"
        return "exhausted" if len(lease.waiting) == 8 and lease.waiting[-1][1][0] != after[0] else "ok"

    def commit(self, lease, n, after):
        if (status := self.may_commit(lease, n, after)) != "ok":
            return status
        lease.started = True
        lease.committed += n
        last = lease.waiting[-1][1] if lease.waiting else None
        if last is None and self.is_reached(after):
            self.settle(lease, lease.committed)
        elif last and last[0] == after[0] and (len(lease.waiting) == 8 or last >= after):
            lease.waiting[-1] = (lease.committed, max(last, after))  # the later point covers both
        else:
            lease.waiting.append((lease.committed, after))
        return "ok"

    def is_reached(self, point):
        return point[1] <= self.reached[point[0]]

    def settle(self, lease, valid):
        """Whole blocks whose commits are reached and that nothing is written into any more are for everybody."""
        lease.valid = valid
        until = lease.settled
        while until < valid // self.block_tokens and not self.written(lease, until):
            until += 1
        for b in range(lease.settled, until if lease.reuse else 0):
            block = self.blocks[self.name(lease, b)]
            if block.slot is None:
                lease.own.remove(b)
                block.slot, block.owner = lease.table[b], None
                self.changes.append((1, *self.name(lease, b)))
                self.stats["inserted"] += 1
                continue
            if b in lease.own:  # somebody was first: his slot is used from now on
                lease.own.remove(b)
                self.pool.let_go(lease.table[b])
            if lease.table[b] != block.slot:  # branches have the same
                lease.table[b] = block.slot
                lease.change(b, b + 1)
                self.stats["duplicates"] += 1
                self.happened["duplicate"] += 1
        lease.settled = until

    def loading(self, lease, b):
        return b in lease.own and any(e.slot == lease.table[b] and e.source is None for e in self.open)

    def written(self, lease, b):
        return b in lease.own and any(e.slot == lease.table[b] for e in self.open)

    def reach(self, point):
        self.reached[point[0]] = max(self.reached[point[0]], point[1])
        for lease in filter(None, list(self.leases)):
            while lease.waiting and self.is_reached(lease.waiting[0][1]):
                self.settle(lease, lease.waiting.pop(0)[0])
            self.finish_if_over(lease)
        return "ok"

    def end_step(self, point):
        if self.copies:
            return "wrong_state"
        self.pool.end_step(point)
        self.last_step = point
        return "ok"

    # ---- the end of a lease

    def release(self, lease, cold=False):
        lease.releasing, lease.cold = True, cold
        self.finish_if_over(lease)
        return "ok"

    def abort(self, lease):
        lease.waiting = []
        self.finish(lease, given_up=not lease.started)
        return "ok"

    def finish_if_over(self, lease):
        if lease.releasing and not lease.waiting and not any(e.lease is lease and self.of_use(e) for e in self.open):
            self.finish(lease)

    def finish(self, lease, given_up=False):
        if not given_up and not lease.forked:
            self.stats["requests"] += 1
            self.stats["hit"] += lease.matched * self.block_tokens
            self.stats["missed"] += lease.prompt - lease.matched * self.block_tokens
        path = self.path(lease)
        self.let_go(path)
        self.drop_slots(lease, 0)
        self.disclaim(lease)
        self.leases[lease.index] = None
        if lease.cold:
            self.demote(path)
        self.drop_pending()

    def demote(self, path):
        """What nobody else uses of the path goes first from now on."""
        self.clock += 1
        held, continued = self.held_by_leases(), 0
        for name in reversed(path):
            if name in held or self.continuations(name) != continued:
                return
            self.blocks[name].used = (False, self.clock)
            continued = 1

    # ---- branches

    def fork(self, parent):
        if parent.committed < parent.prompt or any(e.lease is parent and self.of_use(e) for e in self.open):
            return self.refuse("wrong_state"), None
        if None not in self.leases:
            return self.refuse("exhausted"), None
        blocks, filled = self.blocks_for(parent.committed), parent.committed % self.block_tokens
        # What the parent has reserved it writes into without asking again.
        copy = filled > 0 and parent.reserved > parent.committed
        if copy and (self.too_many_copies(len(self.sources(parent, parent.committed))) or not self.room(1)):
            return self.refuse("exhausted"), None
        slot = self.take_slots(1)[0] if copy else None
        child = Lease(self.leases.index(None), parent.scope, parent.tokens[: parent.committed], parent.reuse)
        for field in ("matched", "settled", "valid", "committed", "not_before"):
            setattr(child, field, getattr(parent, field))
        child.reserved, child.started, child.forked = child.committed, True, True
        child.waiting = list(parent.waiting)
        self.leases[child.index] = child
        self.use(self.path(child))
        child.table = parent.table[:blocks]
        child.own = {b for b in parent.own if b < blocks}
        child.change(0, blocks)
        for b in child.own:
            if copy and b == blocks - 1:
                self.copy_block(child, child.table[b], slot, child.committed)
                self.put(child, b, slot)
            else:
                self.pool.holders[child.table[b]] += 1
        self.stats["forks"] += 1
        self.happened["fork with waiting commits"] += bool(child.waiting)
        return "ok", child

    def truncate(self, lease, n):
        if not lease.prompt <= n <= len(lease.tokens):
            return "out_of_range"
        keep, rest = divmod(n, self.block_tokens)
        if rest > 0 and n < lease.reserved and self.loading(lease, keep):
            return "wrong_state"
        behind = self.path(lease, keep)
        self.disclaim(lease, keep)
        self.let_go(behind)
        lease.tokens = lease.tokens[:n]
        self.drop_pending()
        self.cut(lease, n)
        # A block that others may use as well is only read from now on.
        if rest > 0 and n <= lease.reserved and keep not in lease.own:
            self.happened["truncate into a published block"] += 1
            lease.own.add(keep)
            self.pool.holders[lease.table[keep]] += 1
        return "ok"

    def cut(self, lease, tokens):
        """Only the state of the first tokens is left, at most."""
        lease.committed, lease.valid = min(lease.committed, tokens), min(lease.valid, tokens)
        lease.settled = min(lease.settled, lease.committed // self.block_tokens)
        while lease.waiting and (lease.waiting[-2][0] if len(lease.waiting) > 1 else lease.valid) >= lease.committed:
            lease.waiting.pop()
        if lease.waiting:
            lease.waiting[-1] = (min(lease.waiting[-1][0], lease.committed), lease.waiting[-1][1])
        if tokens < lease.reserved:
            self.drop_slots(lease, self.blocks_for(tokens))
            lease.reserved = tokens

    def drop_slots(self, lease, begin):
        for e in [e for e in lease.loads if e.block >= begin]:  # nobody took them
            self.end_entry(e)
        lease.loads = [e for e in lease.loads if e.block < begin]
        for b in sorted(lease.own):
            if b >= begin:
                self.pool.let_go(lease.table[b])
        lease.own = {b for b in lease.own if b < begin}
        lease.table = lease.table[:begin]
        for e in [e for e in self.copies if not self.of_use(e)]:
            self.copies.remove(e)
            self.end_entry(e)

    def exclusive_slots(self, lease):
        others = self.held_by_leases(lease)
        return sum(self.present(name) and name not in others for name in self.path(lease)) + \
            sum(self.users(lease.table[b]) == 1 for b in lease.own)

    def delta(self, lease):
        begin, end = lease.changed or (0, 0)
        end, lease.changed = min(end, len(lease.table)), None
        return [begin, end] if begin < end else [0, 0]

    # ---- entries

    def too_many_copies(self, more):
        return len(self.copies) + more > 16 * len(self.leases)

    def hold(self, e, accepted=False):
        self.open.append(e)
        self.pool.holders[e.slot] += 1
        if e.source:
            slot, offset, _, tokens = e.source
            self.pool.holders[slot] += 1
            self.read_to[slot] = max(self.read_to.get(slot, 0), 0 if accepted else offset + tokens)
            self.copies.append(e)

    def end_entry(self, e):
        self.open.remove(e)
        self.pool.let_go(e.slot)
        if e.source:
            slot = e.source[0]
            if not any(other.source and other.source[0] == slot for other in self.open):
                del self.read_to[slot]
            self.pool.let_go(slot)

    def of_use(self, e):
        """What it brings is still a block of the lease that wanted it."""
        return self.leases[e.lease.index] is e.lease and e.block in e.lease.own and e.lease.table[e.block] == e.slot

    def sources(self, lease, end):
        """The last block's tokens before `end`, in stretches: (begin, end, the point from which they are there)."""
        stretches, at = [[end - end % self.block_tokens, NOW]], lease.valid
        for tokens, point in lease.waiting:
            if stretches[0][0] < tokens and at < end:
                timeline, value = stretches[-1][1]
                if value == 0 or timeline == point[0]:
                    stretches[-1][1] = (point[0], max(value, point[1]))
                else:
                    stretches.append([at, point])
            at = tokens
        ends = [begin for begin, _ in stretches[1:]] + [end]
        return [(begin, until, point) for (begin, point), until in zip(stretches, ends)]

    def copy_block(self, lease, source, slot, end):
        begin = end - end % self.block_tokens
        for first, last, ready in self.sources(lease, end):
            self.hold(Entry(lease, begin // self.block_tokens, slot, self.pool.fence[slot],
                            (source, first - begin, first - begin, last - first), ready))
        self.stats["copied"] += 1

    def commit_accepted(self, lease, offsets, after):
        if any(b <= a for a, b in zip(offsets, offsets[1:])):
            return "invalid_argument"
        if offsets and offsets[-1] >= lease.reserved - lease.committed:
            return "out_of_range"
        if (status := self.may_commit(lease, len(offsets), after)) != "ok":
            return status
        copies = []  # (to, from, tokens): what moves together, both ends inside one block and not overlapping
        for i, offset in enumerate(offsets):
            to, source = lease.committed + i, lease.committed + offset
            last = copies[-1] if copies else (0, 0, 0)
            if (to, source) == (last[0] + last[2], last[1] + last[2]) and to % self.block_tokens and \
                    source % self.block_tokens and \
                    not (source // self.block_tokens == to // self.block_tokens and source - to == last[2]):
                last[2] += 1
            elif to != source:
                copies.append([to, source, 1])
        if self.too_many_copies(len(copies)):
            return "exhausted"
        for to, source, tokens in copies:
            (b, offset), (from_b, from_offset) = divmod(to, self.block_tokens), divmod(source, self.block_tokens)
            self.hold(Entry(lease, b, lease.table[b], after, (lease.table[from_b], from_offset, offset, tokens), after),
                      accepted=True)
            self.happened["accepted copy"] += 1
        return self.commit(lease, len(offsets), after)

    def onboard(self, lease, n, given):
        first, rest = divmod(lease.committed, self.block_tokens)
        end = first + n // self.block_tokens
        if n % self.block_tokens != 0:
            return "invalid_argument"
        if rest != 0 or lease.reserved != lease.committed:
            return "wrong_state"
        if n >= len(lease.tokens) - lease.committed:
            return "out_of_range"
        if (status := self.reserve(lease, n, given, keep_found=True)) != "ok":
            return status
        for b in range(first, end):
            lease.loads.append(Entry(lease, b, lease.table[b], self.pool.fence[lease.table[b]]))
            self.hold(lease.loads[-1])
        lease.committed += n
        if lease.waiting:
            lease.waiting[-1] = (lease.committed, lease.waiting[-1][1])
        else:
            lease.valid = lease.committed
        return "ok"

    def take_step(self, most):
        """Loads first, then copies in their order."""
        entries = []
        for lease in filter(None, self.leases):
            while lease.loads and len(entries) < most:
                entries.append(lease.loads.pop(0))
        while self.copies and len(entries) < most:
            entries.append(self.copies.pop(0))
        self.taken += entries
        return entries

    def complete(self, number, ok):
        e = self.taken[number]
        if e not in self.open:
            return "stale"
        useful = self.of_use(e)
        self.end_entry(e)
        if not useful:
            return "ok"
        if ok:
            self.stats["onboarded"] += e.source is None
            self.settle(e.lease, e.lease.valid)
        else:
            self.stats["failed"] += 1
            self.happened["failed copy" if e.source else "failed load"] += 1
            self.cut(e.lease, e.block * self.block_tokens)
        self.finish_if_over(e.lease)
        return "ok"
