# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""What kvstem's paged host decides, as plainly as it can be said, for one group of full attention. The
library is tested against this.

All sequences stand in one line, in the order in which they came. Those that run have a lease, those that wait
have none.

Not said: which index and generation a new sequence gets; which requests the cache does not take for their
tokens (the step is told, and they go when it would be their turn); and what branching_cache.py does not say
(`Unsaid`).
"""
import collections

NOT_KNOWN = -1  # of a step's tokens: the one that the step before chooses


class Refused(Exception):
    """A call that the host must not take. Nothing has happened."""


def must(condition, why):
    if not condition:
        raise Refused(why)


class Sequence:
    """Positions: `launched` are computed or in a step; of these the tokens of the last `unsure` ones are not
    known to be right. Results: `due` are still to come, the first `lost` of which rest on what went wrong."""

    def __init__(self, name, scope, tokens, prompt, limit, ahead, reuse):
        self.name, self.scope, self.tokens, self.prompt, self.limit = name, scope, list(tokens), prompt, limit
        self.ahead, self.reuse = ahead, reuse
        self.lease, self.follows, self.matched = None, False, 0
        self.launched = self.unsure = self.due = self.lost = 0
        self.proposed, self.drafts = [], 0  # for the next step; in the last one
        self.last_step = 0
        self.prompt_launched = False
        self.had = None  # of one that was preempted: its lease, and how much of it was sure

    @property
    def states(self):
        """Positions that are ever computed: not the last token's, which nobody needs, but all of a prompt."""
        return max(self.prompt, self.limit - 1)

    @property
    def end_of_known(self):
        return min(len(self.tokens), self.states)


class PagedHost:
    def __init__(self, cache, most_tokens, step_tokens, max_sequences):
        self.cache, self.most_tokens = cache, most_tokens
        self.step_tokens, self.max_sequences = step_tokens, max_sequences
        self.line = []  # all sequences, the oldest first
        self.moving = []  # copies under way: (step, number)
        self.coming = []  # steps that read slots which somebody let go of
        self.let_go_now = False  # since the last step: those slots are not even free in the next
        self.settling, self.tried, self.tried_free = 0, None, 0  # who did not fit, and when to try again
        self.finished_to = 0
        self.stats, self.happened = collections.Counter(), cache.happened

    def running(self):
        return [s for s in self.line if s.lease]

    def waiting(self):
        return [s for s in self.line if not s.lease]

    def find(self, name):
        found = [s for s in self.line if s.name == name]
        must(found, "it has ended")
        return found[0]

    # ---- requests

    def join(self, s, shared):
        must(s.limit <= self.most_tokens, "longer than a lease")
        states = max(shared, s.limit - 1)  # of a fork not all of what it begins with is its prompt
        must(self.cache.blocks_for(states) <= self.cache.slots, "longer than all slots")
        must(len(self.line) < self.max_sequences, "too many sequences")
        must(all(other.name != s.name for other in self.line), "the name of another")
        self.line.append(s)

    def add(self, name, scope, tokens, max_new_tokens, ahead, reuse):
        must(tokens, "an empty prompt")
        prompt = len(tokens)
        self.join(Sequence(name, scope, tokens, prompt, prompt + max_new_tokens, ahead, reuse), prompt)
        self.happened["request for no tokens"] += max_new_tokens == 0
        self.happened["request that reuses nothing"] += not reuse

    def fork(self, of, name, tokens, max_new_tokens):
        """It shares what is committed. One that was preempted with a result due had committed all it knew."""
        parent = self.find(of)
        launched = parent.lease.committed >= parent.prompt if parent.lease else parent.prompt_launched
        must(launched, "its prompt is not launched whole")
        must(tokens, "a fork without a token of its own")
        shared = parent.lease.committed if parent.lease else len(parent.tokens)
        s = Sequence(name, parent.scope, parent.tokens[:shared] + tokens, parent.prompt,
                     shared + max(max_new_tokens, len(tokens)), parent.ahead, parent.reuse)
        s.prompt_launched = True
        self.join(s, shared)
        lease = self.cache.fork(parent.lease)[1] if parent.lease else None
        self.happened["fork of one that was preempted"] += parent.lease is None
        self.happened["fork that waits in line" if lease is None else "fork at once"] += 1
        if lease:  # it need not wait for those who came before
            self.cache.append(lease, tokens)
            s.lease, s.matched, s.launched = lease, shared, shared
            self.started(s)

    def propose(self, name, tokens):
        s = self.find(name)
        must(not s.ahead, "drafts of one that goes ahead")
        must(s.due == 0, "drafts while a result is due")
        s.proposed = tokens

    def accept(self, name, tokens):
        s = self.find(name)
        must(s.due > 0, "no result is due")
        if s.lost > 0:
            s.due, s.lost = s.due - 1, s.lost - 1
            self.happened["result that rests on a failed copy"] += 1
            must(False, "its state was lost")
        must(1 <= len(tokens) <= s.drafts + 1, "other than one token, and one for each draft")
        must(len(s.tokens) + len(tokens) <= s.limit, "more tokens than it may have")
        s.due -= 1
        wrong = s.drafts + 1 - len(tokens)
        self.stats["accepted drafts"] += len(tokens) - 1
        self.happened["wrong draft"] += wrong
        s.tokens += tokens
        s.drafts = 0
        if s.lease:
            self.cache.append(s.lease, tokens)
            s.launched, s.unsure = s.launched - wrong, 0
            self.commit(s, s.last_step)
        else:
            self.happened["result of one that was preempted"] += 1

    def end(self, name, aborted=False):
        s = self.find(name)
        if s.lease:
            (self.cache.abort if aborted else self.cache.release)(s.lease)
        self.line.remove(s)
        self.coming.append(s.last_step)
        self.let_go_now = True
        self.happened["end of one that waits" if s.lease is None else "end of one that runs"] += 1

    def started(self, s):
        self.stats["admitted"] += 1
        self.stats["matched"] += s.matched

    def commit(self, s, step):
        """What is launched and known."""
        n = min(s.launched - s.unsure, len(s.tokens)) - s.lease.committed
        if n > 0:
            self.cache.commit(s.lease, n, (0, step))

    # ---- steps

    def schedule(self, point, given, bad):
        """`given`: each sequence's row, for the order of slots that are evicted together; `bad`: whom the
        cache does not take."""
        self.step, self.given, self.bad, self.left = point[1], given, bad, self.step_tokens
        self.work, self.tokens, self.failed_now = [], [], []
        if self.let_go_now or any(step > self.finished_to for step in self.coming):
            self.settling = 3
        else:
            self.settling = max(0, self.settling - 1)
        lacking = False
        for s in self.running():
            if s.lease is None:  # preempted a moment ago
                continue
            if self.plan(s, takes=not lacking):
                continue
            self.stats["stalled"] += 1
            if not lacking:
                lacking = True
                self.preempt_for(s)
        if lacking:
            self.happened["nobody admitted while one lacks slots"] += bool(self.waiting())
        else:
            self.admit()
        rows = [list(s.lease.table) for s, *_ in self.work]
        copies = self.cache.take_step(1 << 30)
        self.moving += [(self.step, self.cache.taken.index(e)) for e in copies]
        self.stats["copies"] += len(copies)
        self.stats["steps"] += 1
        self.happened["empty step"] += not self.work
        self.let_go_now = False
        self.cache.end_step(point)
        return rows, copies

    def chunk(self, s):
        """What it would compute now: (end, drafts, whether the token of its only position is not known)."""
        if s.launched < s.end_of_known:
            end = min(s.end_of_known, s.launched + self.left)
            self.happened["prompt in chunks"] += s.launched < end < s.prompt
            drafts = 0
            if end == len(s.tokens) and end > s.launched:
                drafts = min(len(s.proposed), self.left - (end - s.launched), s.states - end)
            return end + drafts, drafts, False
        if s.launched == len(s.tokens) < s.states and s.due > s.lost == 0 and s.ahead and self.left > 0:
            return s.launched + 1, 0, True
        return s.launched, 0, False

    def plan(self, s, takes=True):
        """Its part of this step. False if it lacks slots."""
        if s.follows:
            ready, _, must_compute = self.cache.refresh(s.lease)
            s.launched = s.matched = ready
            s.follows = not must_compute
            if s.follows:
                self.stats["followed"] += 1
                self.happened["waits for what another computes"] += 1
                return True
        begin = s.launched
        end, drafts, ahead = self.chunk(s)
        if end == begin:
            return True
        if not self.take_slots(s, end, takes):
            if drafts == 0:
                return False
            self.happened["drafts that found no slots"] += 1
            end, drafts = end - drafts, 0
            if not self.take_slots(s, end, takes):
                return False
        samples = end >= len(s.tokens) < s.limit
        known = s.tokens + s.proposed[:drafts] + [NOT_KNOWN] * ahead
        self.work.append((s, begin, end, drafts, len(self.tokens), samples, ahead))
        self.tokens += known[begin:end]
        self.happened["one goes on while others lack slots"] += not takes
        self.happened["step ahead"] += ahead
        self.happened["step with drafts"] += drafts > 0
        s.prompt_launched |= end >= s.prompt
        s.launched, s.unsure, s.drafts, s.proposed, s.last_step = end, drafts + ahead, drafts, [], self.step
        s.due += samples
        self.commit(s, self.step)
        self.left -= end - begin
        self.stats["computed"] += end - begin
        self.stats["drafts"] += drafts
        return True

    def take_slots(self, s, end, takes):
        """A prompt gets all its slots at once."""
        wanted = max(0, max(end, s.end_of_known) - s.lease.reserved)
        s.lacks = max(1, self.cache.quote(s.lease, wanted))
        if not takes and self.cache.quote(s.lease, wanted) > 0:
            self.happened["younger one that takes nothing"] += 1
            return False
        return wanted == 0 or self.cache.reserve(s.lease, wanted, self.given.get(s.name, ())) == "ok"

    def admit(self):
        """In the order of the line; nobody passes one that has to wait."""
        for s in self.waiting():
            if self.left == 0:
                return
            if s.due > s.lost:
                self.happened["waits for its result before it is admitted"] += 1
                return
            free = len(self.cache.pool.free)
            if s is self.tried and self.settling == 0 and self.running() and free <= self.tried_free:
                self.happened["not tried again yet"] += 1
                return
            if s.name in self.bad and None in self.cache.leases:
                self.cache.refuse("out_of_range")
                self.failed_now.append(s.name)
                self.line.remove(s)
                self.happened["request with a foreign token"] += 1
                continue
            _, lease = self.cache.acquire(s.scope, s.tokens, s.reuse)
            if lease is None:
                self.happened["waits for a lease"] += 1
                return
            s.lease, s.follows, s.unsure, s.drafts = lease, True, 0, 0
            if not self.plan(s):
                self.cache.abort(lease)
                s.lease, s.launched = None, 0
                self.tried, self.tried_free = s, len(self.cache.pool.free)
                self.happened["waits for slots"] += 1
                return
            self.started(s)
            self.happened["admitted again"] += s.had is not None

    def preempt_for(self, s):
        """Slots that somebody let go of are waited for. Else the youngest go, until what only they hold is
        enough for s; if s is the youngest it goes, unless it is alone."""
        if self.let_go_now or any(step > self.finished_to for step in self.coming):
            self.happened["slots that were let go of are waited for"] += 1
            return
        younger = self.running()[self.running().index(s) + 1:]
        if not younger and s is not self.running()[0]:
            self.preempt(s)
            self.happened["the youngest gives way itself"] += 1
        slots = 0
        while younger and slots < s.lacks:
            slots += self.cache.exclusive_slots(younger[-1].lease)
            self.preempt(younger.pop())

    def preempt(self, s):
        self.settling = 3
        self.coming.append(s.last_step)
        began = s.lease.reserved > s.matched  # else it is an attempt that nobody counts
        (self.cache.release if began else self.cache.abort)(s.lease)
        s.had = s.lease, s.launched - s.unsure
        s.lease, s.follows, s.proposed, s.launched, s.unsure = None, False, [], 0, 0
        self.stats["preempted"] += 1

    def finished(self, point):
        for step, number in self.moving:
            if step <= point[1]:
                self.cache.complete(number, True)
        self.moving = [m for m in self.moving if m[0] > point[1]]
        self.finished_to = max(self.finished_to, point[1])
        self.cache.reach(point)

    def failed(self, number):
        """Whose state rests on the copy computes again; what its steps under way choose is worth nothing."""
        must(self.cache.complete(number, False) == "ok", "a copy that is not under way")
        self.settling = 3
        self.moving = [m for m in self.moving if m[1] != number]
        for s in self.line:
            lease, sure = (s.lease, s.launched - s.unsure) if s.lease else s.had or (None, 0)
            if lease and lease.committed < sure:
                s.lost = s.due
                s.launched, s.unsure = (lease.committed, 0) if s.lease else (0, 0)
                self.happened["computes again, as a copy failed"] += 1
