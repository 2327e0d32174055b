#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""Traces of requests, for comparing which lengths several prefix caches match.

    trace.py SEED [LOOKUPS]   a random walk of agents' conversations
    trace.py edges            cases at the edges of the rules, whose lengths are known: see `edges`

A trace is lines of words, and nothing in it depends on what a cache answers:

    start ID SALT TOKEN...   a request comes, and its prompt is looked up; SALT is - for none
    compute ID END           the state of its prompt is computed up to END, from where it is there already
    append ID TOKEN...       of a request whose prompt is computed: tokens are decoded, and computed
    finish ID                the request is over, perhaps before all of its prompt was computed
    probe SALT TOKEN...      a text is looked up for nobody, its last token too

What is computed can be found from then on by everybody. `start` and `probe` are the lookups.
"""
import random
import sys

BLOCK = 16
VOCABULARY = 50000
SALTS = ("-", "alice", "bob")
LIVE = 6  # requests at once
LONGEST = 1600  # tokens; a conversation ends there


class Request:
    def __init__(self, name, salt, prompt, conversation=None):
        self.name = name
        self.salt = salt
        self.prompt = prompt
        self.conversation = conversation
        self.computed = 0  # of the prompt
        self.answer = []

    @property
    def text(self):
        return self.prompt[: self.computed] + self.answer


class Conversation:
    def __init__(self, salt, history):
        self.salt = salt
        self.history = history
        self.busy = False


class Agents:
    """Conversations that grow turn by turn, several at once, with system prompts that they share."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.lines = []
        self.lookups = self.requests = 0
        self.live = []
        self.prompts = []  # (salt, tokens) of the last ones
        phrase = self.words(BLOCK)
        self.system_prompts = [
            self.words(200),
            self.words(333),
            self.words(5 * BLOCK),
            self.words(5),
            phrase * 6,  # blocks with the same tokens, which differ in what lies before them
            self.words(1) * 70,
        ]
        self.conversations = [self.begin() for _ in range(12)]

    # ---- texts -----------------------------------------------------------------------------------------

    def words(self, n):
        return [self.random.randrange(VOCABULARY) for _ in range(n)]

    def chance(self, probability):
        return self.random.random() < probability

    def begin(self):
        return Conversation(self.random.choice(SALTS), list(self.random.choice(self.system_prompts)))

    def message(self, before):
        """A user's message; now and then the prompt is then whole blocks, or one token more or less."""
        n = self.random.randrange(1, 120)
        if self.chance(0.3):
            n += -(before + n) % BLOCK + self.random.choice((-1, 0, 0, 1))
        return self.words(max(n, 1))

    def cut(self, tokens):
        """A beginning of them, not empty; in half of the cases whole blocks."""
        n = self.random.randrange(1, len(tokens) + 1)
        if self.chance(0.5):
            n = max(n // BLOCK * BLOCK, 1)
        return tokens[:n]

    def next_prompt(self):
        """(salt, tokens, conversation if it is a turn of one)."""
        kind = self.random.random()
        if kind < 0.08 and self.live:  # another sample of a live request, or an agent beside it
            twin = self.random.choice(self.live)
            return twin.salt, twin.prompt, None
        if kind < 0.14 and self.live:  # goes on from what a live request has decoded so far
            other = self.random.choice(self.live)
            return other.salt, other.text + self.message(len(other.text)), None
        if kind < 0.22 and self.prompts:  # one of the last prompts again, or a beginning of it
            salt, tokens = self.random.choice(self.prompts)
            return salt, tokens if self.chance(0.5) else self.cut(tokens), None
        if kind < 0.26 and self.prompts:  # the same text of another tenant
            salt, tokens = self.random.choice(self.prompts)
            return self.random.choice([s for s in SALTS if s != salt]), tokens, None
        if kind < 0.30:
            return self.random.choice(SALTS), [self.random.choice((7, 8))], None
        idle = [i for i, c in enumerate(self.conversations) if not c.busy]
        index = self.random.choice(idle)
        if len(self.conversations[index].history) > LONGEST:
            self.conversations[index] = self.begin()
        conversation = self.conversations[index]
        if self.chance(0.12):  # somebody edits what was said
            conversation.history = self.cut(conversation.history)
        if not self.chance(0.06):  # else the turn is tried again
            conversation.history = conversation.history + self.message(len(conversation.history))
        return conversation.salt, list(conversation.history), conversation

    # ---- lines -----------------------------------------------------------------------------------------

    def line(self, *words):
        self.lines.append(" ".join(map(str, words)))

    def start(self):
        salt, prompt, conversation = self.next_prompt()
        self.requests += 1
        self.lookups += 1
        request = Request(self.requests, salt, prompt, conversation)
        if conversation:
            conversation.busy = True
        self.live.append(request)
        self.prompts = self.prompts[-30:] + [(salt, prompt)]
        self.line("start", request.name, salt, *prompt)

    def compute(self, request):
        """All at once, or a chunk: of blocks, or of any number of tokens."""
        end = len(request.prompt)
        if self.chance(0.4):
            chunk = self.random.choice((BLOCK, 4 * BLOCK, self.random.randrange(1, 200)))
            end = min(end, request.computed + chunk)
        request.computed = end
        self.line("compute", request.name, end)

    def append(self, request):
        tokens = self.words(self.random.choice((1, 1, 3, BLOCK, self.random.randrange(1, 60))))
        same = (request.salt, request.prompt)
        twins = [r for r in self.live if (r.salt, r.prompt) == same and r is not request]
        if twins and self.chance(0.6):  # two samples that say the same
            twin = self.random.choice(twins)
            if twin.answer[: len(request.answer)] == request.answer:
                tokens = twin.answer[len(request.answer) :] or tokens
        request.answer = request.answer + tokens
        self.line("append", request.name, *tokens)

    def finish(self, request):
        self.live.remove(request)
        self.line("finish", request.name)
        if request.conversation:
            request.conversation.busy = False
            if request.computed == len(request.prompt):
                # The last token that a request samples is never computed by it.
                request.conversation.history = request.prompt + request.answer + self.words(1)

    def probe(self):
        salt, tokens = self.random.choice(self.prompts)
        if self.live and self.chance(0.5):
            request = self.random.choice(self.live)
            salt, tokens = request.salt, request.text or request.prompt
        self.lookups += 1
        self.line("probe", salt, *(self.cut(tokens) if self.chance(0.5) else tokens))

    def step(self):
        if not self.live or (len(self.live) < LIVE and self.chance(0.35)):
            return self.start()
        if self.chance(0.08):
            return self.probe()
        request = self.random.choice(self.live)
        if request.computed < len(request.prompt):
            return self.finish(request) if self.chance(0.04) else self.compute(request)
        return self.finish(request) if self.chance(0.35) else self.append(request)

    def walk(self, lookups):
        while self.lookups < lookups:
            self.step()
        for request in list(self.live):
            self.finish(request)
        return self.lines


class Edges:
    """Cases that were thought of, each on tokens of its own, with the length that every lookup must match."""

    def __init__(self):
        self.lines = []
        self.expected = []
        self.requests = self.token = 0

    def words(self, n):
        self.token += n
        return list(range(self.token - n, self.token))

    def line(self, *words):
        self.lines.append(" ".join(map(str, words)))

    def start(self, tokens, matched, salt="-"):
        self.requests += 1
        self.line("start", self.requests, salt, *tokens)
        self.expected.append(matched)
        return self.requests

    def compute(self, request, end):
        self.line("compute", request, end)

    def append(self, request, tokens):
        self.line("append", request, *tokens)

    def finish(self, request):
        self.line("finish", request)

    def probe(self, tokens, matched, salt="-"):
        self.line("probe", salt, *tokens)
        self.expected.append(matched)

    def whole(self, tokens, matched, salt="-"):
        """A request from its begin to its end."""
        request = self.start(tokens, matched, salt)
        self.compute(request, len(tokens))
        self.finish(request)

    def write(self):
        # One token; less than a block.
        text = self.words(1)
        self.whole(text, 0)
        self.whole(text, 0)
        self.probe(text, 0)
        text = self.words(15)
        self.whole(text, 0)
        self.whole(text, 0)
        self.probe(text, 0)

        # Exactly one block: a request computes its last token itself, and with it the block.
        text = self.words(16)
        self.whole(text, 0)
        self.whole(text, 0)
        self.probe(text, 16)
        self.probe(text[:15], 0)
        self.whole(text + self.words(1), 16)

        # Exactly n blocks, one token less, one more.
        text = self.words(64)
        self.whole(text, 0)
        self.whole(text, 48)
        self.whole(text[:63], 48)
        self.whole(text + self.words(1), 64)
        self.probe(text, 64)
        self.probe(text[:63], 48)

        # A prompt that is the beginning of another, and one that goes on from it.
        text = self.words(100)
        self.whole(text, 0)
        self.whole(text[:50], 48)
        self.whole(text[:49], 48)
        self.whole(text[:48], 32)
        self.whole(text[:17], 16)
        self.whole(text + self.words(100), 96)
        self.whole(text, 96)

        # The longer one came second.
        text = self.words(100)
        self.whole(text[:50], 0)
        self.whole(text, 48)
        self.whole(text[:50], 48)

        # The same prompt while the first request is live and computed; and after both are gone.
        text = self.words(40)
        first = self.start(text, 0)
        self.compute(first, 40)
        second = self.start(text, 32)
        self.compute(second, 40)
        self.finish(first)
        self.probe(text, 32)
        self.finish(second)
        self.whole(text, 32)

        # The same prompt, looked up by both before either has computed; then in chunks, by turns.
        text = self.words(80)
        first, second = self.start(text, 0), self.start(text, 0)
        self.probe(text, 0)
        self.compute(first, 20)
        self.probe(text, 16)
        third = self.start(text, 16)
        self.compute(second, 64)
        self.probe(text, 64)
        self.compute(first, 80)
        self.probe(text, 80)
        self.compute(third, 40)
        self.finish(first)
        self.compute(second, 80)
        self.compute(third, 80)
        self.finish(third)
        self.finish(second)
        self.whole(text, 64)

        # Whoever came first gives up: at once, or half way.
        text = self.words(80)
        first, second = self.start(text, 0), self.start(text, 0)
        self.finish(first)
        self.probe(text, 0)
        self.compute(second, 80)
        self.probe(text, 80)
        self.finish(second)
        text = self.words(80)
        first, second = self.start(text, 0), self.start(text + self.words(10), 0)
        self.compute(first, 40)
        self.finish(first)
        self.probe(text, 32)
        third = self.start(text, 32)
        self.finish(second)
        self.compute(third, 80)
        self.finish(third)
        self.whole(text, 64)

        # Two that part inside a block, and at a block's end.
        for part in (40, 48):
            text = self.words(part)
            left, right = text + self.words(40), text + self.words(40)
            self.whole(left, 0)
            self.whole(right, part // 16 * 16)
            self.whole(left, 64 if part == 40 else 80)
            self.probe(right, len(right) // 16 * 16)

        # What was decoded is found while the request is live: a block as soon as it is full.
        text, answer = self.words(30), self.words(20)
        request = self.start(text, 0)
        self.compute(request, 30)
        self.append(request, answer[:1])
        self.probe(text + answer, 16)
        self.append(request, answer[1:2])
        self.probe(text + answer, 32)
        self.append(request, answer[2:17])
        self.probe(text + answer, 32)
        self.append(request, answer[17:18])
        self.probe(text + answer, 48)
        other = self.start(text + answer, 48)
        self.compute(other, 50)
        self.finish(request)
        self.finish(other)
        self.whole(text + answer, 48)

        # Two samples that say the same, and one that says something else.
        text, answer = self.words(20), self.words(30)
        samples = [self.start(text, 0), self.start(text, 0), self.start(text, 0)]
        for sample in samples:
            self.compute(sample, 20)
        self.append(samples[0], answer)
        self.append(samples[1], answer[:13])
        self.append(samples[2], answer[:12] + self.words(20))
        self.probe(text + answer, 48)
        self.append(samples[1], answer[13:])
        for sample in samples:
            self.finish(sample)
        self.whole(text + answer, 48)
        self.whole(text + answer[:12] + self.words(8), 32)

        # Blocks of the same tokens, which differ only in what lies before them.
        text = self.words(1) * 64
        self.whole(text, 0)
        self.whole(text, 48)
        self.whole(text + text, 64)
        self.probe(text[:33], 32)
        phrase = self.words(16)
        self.whole(phrase * 3, 0)
        self.whole(phrase * 2 + self.words(16) + phrase, 32)
        self.probe(phrase[1:] + phrase[:1] + phrase, 0)

        # Tenants.
        text = self.words(40)
        self.whole(text, 0)
        self.whole(text, 0, "alice")
        self.whole(text, 32, "alice")
        self.probe(text, 0, "bob")
        self.whole(text, 0, "bob")
        self.whole(text, 32)


def edges():
    """(lines, the length of every lookup)."""
    cases = Edges()
    cases.write()
    return cases.lines, cases.expected


def walk(seed, lookups=250):
    return Agents(seed).walk(lookups)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    print("\n".join(edges()[0] if sys.argv[1] == "edges" else walk(*map(int, sys.argv[1:]))))
