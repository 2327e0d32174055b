#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""Agents whose way is fixed by a script, to compare servers: any two are asked exactly the same.

Many agents at once, each with a helper in between, really read the folder; what they read, and in which order, is drawn from
the seed. The model answers every turn, with a fixed number of tokens, but what is appended to the messages is the script's
text. So prompts, and the counts of their tokens, depend on seed and folder alone: `digest` is the same for two servers, or
they were not asked the same. Prompts grow from about 1,000 tokens to 3,000 (source text, a usual vocabulary) and fit, with
the answer, into a context of 4,096.

All agents begin together; each asks its next turn as soon as it has the answer to the last.

  scripted.py --url http://127.0.0.1:8080/v1 --root DIR --agents 8 --turns 5 --seed 1 --max-tokens 24 --json FILE

Exit status: 0 all agents went to their end; 1 one did not, and there are no numbers; 2 they could not begin.
"""
import argparse
import collections
import dataclasses
import hashlib
import json
import random
import re
import statistics
import sys
import threading
import time

import agent
import tools

CONVENTIONS = """
How we work:

1. Look before you speak. An answer names the file and the lines that it rests on. What you have not read you do not know; \
say so, rather than guess from a name.
2. Go from the outside in. The listing tells which parts there are, a header says what a part promises, its tests say what \
it must never do. The body of a function is the last thing to look at, not the first.
3. Read in pieces. A range of forty to eighty lines is enough to judge a function; a whole file fills the room that you will \
need later. Remember where you stopped, and go on from there only if the question asks for it.
4. Search for names, not for sentences. Choose a word that is written the same way everywhere: a type, a function, a constant. \
When a search finds too much, name a folder; when it finds nothing, try the singular, the prefix, or the caller.
5. Say who owns what. For each object in question: who makes it, who may change it, who ends it, and on which thread. Most \
mistakes in a code base of this kind are two owners of one thing.
6. Keep apart what the code does, what its comment claims, and what you would have written. Report the first; mention the \
second where it differs; leave out the third.
7. Give a helper work that can be told in one sentence and answered in three: "find who calls X", "list what Y may throw". \
Never hand over the whole task, and do not repeat what the helper did.
8. Errors count as behaviour. Note for each step what happens when memory is short, the input is malformed, the other side \
goes away, or the same thing arrives twice.
9. Speed is a claim and needs a number. If a comment says that something is constant in time, look for the loop that says \
otherwise.
10. The answer comes last, and is short: what was asked, in the order of its weight, without a story of the search. Names are \
written as in the source. If something remains open, the last sentence says what it is, and where one would look next.

How a good search goes, for the task "Who frees a block?":

  TOOL: search release( src/pool
  RESULT: pool.c:88: void pool_release(struct pool *p, int block)
  TOOL: read src/pool/pool.c 80-110
  RESULT: pool_release checks the owner, and puts the block on the free list; who calls it is not said there.
  TOOL: delegate find who calls pool_release outside src/pool
  RESULT: session_end in src/session.c:140, and the tests.
  ANSWER: session_end (src/session.c:140), through pool_release (src/pool/pool.c:88). A block of another owner is refused.
"""

THOUGHTS = (
    "The names above show where this belongs. I take the next piece and look only at what the task asks for.",
    "This part says what is promised, but not who keeps the promise. I look at the place that it points to.",
    "So far nothing speaks against it. Before I say so, I check one more place where the same thing is used.",
    "That explains the first half of the task. The other half depends on how it is called, which I look up now.",
)
TASK = "Find out what {file} is for, what it relies on, and what happens there when something goes wrong."
HELPER_TASK = "find where {word} is used, and whether {file} has a say in it."
FOUND = "ANSWER: {word} is declared in {file} and used in the places that the search shows; none of them changes it."
DONE = "ANSWER: {file} does what its first lines say; it relies on what it includes, and reports errors to its caller."


# ---- the script


@dataclasses.dataclass
class Step:
    """What an agent says instead of the model, and the call in it (None: the end)."""
    said: str
    call: tools.Call | None = None
    helper: list | None = None  # of `delegate`: the helper's steps


class Script:
    """What `agents` agents do in `turns` turns each. The same for the same folder and seed, whoever asks."""

    HELPER_TURNS = 2

    def __init__(self, root, agents, turns, seed, short=False):
        # However many turns there are, the last prompt is about as long: a turn's result is a share of what there is room for.
        limit = min(1700, 5100 // max(1, turns - 2)) // (4 if short else 1)
        self.tree = tools.Tree(root, limit)
        self.manual = tools.MANUAL + ("" if short else CONVENTIONS)
        files = self._files()
        random.Random(seed).shuffle(files)
        each = max(1, turns - 1)
        self.agents = []
        for i in range(agents):
            mine = [files[(i * each + k) % len(files)] for k in range(each)]
            self.agents.append((TASK.format(file=mine[0]), self._steps(random.Random(f"{seed}/{i}"), mine, turns)))

    def _files(self):
        """Names of text files, those that fill a result if there are any."""
        sizes = {}
        for path in self.tree.files():
            try:
                sizes[path.relative_to(self.tree.root).as_posix()] = len("\n".join(self.tree.lines(path)))
            except tools.Refused:
                pass
        names = [n for n, size in sizes.items() if size >= self.tree.limit] or [n for n, size in sizes.items() if size]
        if not names:
            raise tools.Refused(f"there are no text files in {self.tree.root}")
        return names

    def _steps(self, draw, files, turns):
        kinds = (["read", "delegate", "search"] + ["read", "list", "read"] * turns)[:turns - 1]
        draw.shuffle(kinds)
        if kinds[-1:] == ["delegate"]:
            kinds.insert(0, kinds.pop())  # a helper at the end would have the longest prompt of all
        steps = []
        for kind, file in zip(kinds, files):
            word = self._word(draw, file)
            helper = None
            if kind == "delegate":
                call = tools.Call(kind, (HELPER_TASK.format(word=word, file=file),))
                helper = [self._tool(draw, draw.choice(("read", "search", "list")), file, word),
                          Step(FOUND.format(word=word, file=file))]
                steps.append(Step(f"{draw.choice(THOUGHTS)}\nTOOL: {call}", call, helper))
            else:
                steps.append(self._tool(draw, kind, file, word))
        return [*steps, Step(DONE.format(file=files[0]))]

    def _tool(self, draw, kind, file, word):
        arguments = {"read": lambda: (file, *self._range(draw, file)), "search": lambda: (word,),
                     "list": lambda: (file.rpartition("/")[0] or ".",)}[kind]()
        call = tools.Call(kind, arguments)
        return Step(f"{draw.choice(THOUGHTS)}\nTOOL: {call}", call)

    def _range(self, draw, file):
        """Lines that fill a result, if the file has that many."""
        lines = self.tree.lines(self.tree.root / file)
        starts, size = 1, 0
        for number in range(len(lines), 0, -1):
            size += len(lines[number - 1]) + 1
            if size > self.tree.limit:
                starts = number
                break
        return draw.randint(1, starts), len(lines)

    def _word(self, draw, file):
        """One of the file's frequent words."""
        text = "\n".join(self.tree.lines(self.tree.root / file))
        counts = collections.Counter(re.findall(r"[A-Za-z_]{5,24}", text))
        return draw.choice(sorted(counts, key=lambda w: (-counts[w], w))[:12] or ["the"])


# ---- the run


@dataclasses.dataclass
class Asked:
    """A turn that was asked and answered."""
    agent: int
    turn: str             # "1", "2", ...; a helper's "helper 1", ...
    tool: str             # what the script did then
    prompt_tokens: int
    cached_tokens: int | None
    completion_tokens: int
    first_token_seconds: float
    begin_seconds: float  # since all began
    end_seconds: float


class Run:
    """All agents of a script, once. Each goes its way on a thread of its own."""

    def __init__(self, chat, script, max_tokens):
        self.chat, self.script, self.max_tokens = chat, script, max_tokens
        self.asked, self.prompts, self.errors = [], {}, []
        self.lock = threading.Lock()

    def run(self):
        """The numbers of the run. Raises what stopped the first agent that did not reach its end."""
        ready = threading.Barrier(len(self.script.agents) + 1)
        threads = [threading.Thread(target=self._one, args=(i, ready), daemon=True) for i in range(len(self.script.agents))]
        for thread in threads:
            thread.start()
        self.begin = time.monotonic()
        ready.wait()
        for thread in threads:
            thread.join()
        wall = time.monotonic() - self.begin
        if self.errors:
            raise self.errors[0]
        return self._numbers(wall)

    def _one(self, number, ready):
        task, steps = self.script.agents[number]
        messages = agent.first_messages(self.script.tree, task, self.script.manual)
        ready.wait()
        try:
            self._walk(number, messages, steps, "")
        except Exception as error:  # told by the thread that waits
            with self.lock:
                self.errors.append(error)

    def _walk(self, number, messages, steps, prefix):
        """An agent's steps, or its helper's; returns the last words."""
        for turn, step in enumerate(steps, 1):
            if self.errors:
                break  # the run has failed already
            self._ask(number, f"{prefix}{turn}", step, messages)
            messages.append({"role": "assistant", "content": step.said})
            if step.helper:
                theirs = [*messages, {"role": "user", "content": f"RESULT: {agent.SUB_AGENT}{step.call.arguments[0]}"}]
                result = self._walk(number, theirs, step.helper, "helper ")
            elif step.call:
                result = self.script.tree.run(step.call)
            else:
                break
            messages.append({"role": "user", "content": f"RESULT: {result}"})
        return steps[-1].said.removeprefix("ANSWER: ")

    def _ask(self, number, name, step, messages):
        begin = time.monotonic()
        answer = self.chat.ask(messages, self.max_tokens, temperature=0, extra_body={"ignore_eos": True})
        asked = Asked(number, name, step.call.tool if step.call else "answer", answer.prompt, answer.cached,
                      answer.completion, round(answer.first_token, 4), round(begin - self.begin, 4),
                      round(time.monotonic() - self.begin, 4))
        with self.lock:
            self.asked.append(asked)
            self.prompts[number, name] = [*messages]

    def _numbers(self, wall):
        asked = sorted(self.asked, key=lambda a: (a.agent, len(a.turn), a.turn))
        cached = [a.cached_tokens for a in asked]
        first = collections.defaultdict(list)
        for a in asked:
            first[a.turn].append(a.first_token_seconds)
        # Sorted by agent and turn, so that it does not matter who came first.
        text = json.dumps([[*key, messages] for key, messages in sorted(self.prompts.items())], sort_keys=True)
        return {
            "wall_seconds": round(wall, 3),
            "requests": len(asked),
            "prompt_tokens": sum(a.prompt_tokens for a in asked),
            "completion_tokens": sum(a.completion_tokens for a in asked),
            "cached_tokens": None if None in cached else sum(cached),
            "smallest_prompt": min(a.prompt_tokens for a in asked),
            "largest_prompt": max(a.prompt_tokens for a in asked),
            "first_token_median_seconds": {turn: round(statistics.median(times), 4) for turn, times in
                                           sorted(first.items(), key=lambda t: (len(t[0]), t[0]))},
            "digest": hashlib.sha256(text.encode()).hexdigest(),
            "turns": [dataclasses.asdict(a) for a in asked],
        }


def show(numbers):
    asked, cached = numbers["prompt_tokens"], numbers["cached_tokens"]
    print(f"{numbers['requests']} requests in {numbers['wall_seconds']:.1f} s; prompts of {numbers['smallest_prompt']:,} to "
          f"{numbers['largest_prompt']:,} tokens")
    print("repeated: " + ("the server does not say" if cached is None else f"{cached:,} of {asked:,} prompt tokens, "
                          f"{100 * cached / asked:.1f} %; computed: {asked - cached:,}")
          + f"; answered: {numbers['completion_tokens']:,}")
    print("first token, median by turn: " + ", ".join(f"{turn}: {seconds:.2f} s" for turn, seconds in
                                                      numbers["first_token_median_seconds"].items()))
    print(f"digest of all prompts: {numbers['digest']}")


def main():
    parser = argparse.ArgumentParser(description="Agents that follow a script, to compare servers.")
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1", help="the server's API (%(default)s)")
    parser.add_argument("--key", help="key, if the server wants one")
    parser.add_argument("--root", required=True, metavar="DIR", help="the folder that they read")
    parser.add_argument("--agents", type=agent.count, default=8, metavar="N", help="at once (%(default)s)")
    parser.add_argument("--turns", type=agent.count, default=5, metavar="N", help="of each agent, without its helper's; at most 20 (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="chooses files, tools and their order (%(default)s)")
    parser.add_argument("--max-tokens", type=agent.count, default=24, metavar="N", help="of each answer (%(default)s)")
    parser.add_argument("--short", action="store_true", help="short prompts, for models whose tokens are short")
    parser.add_argument("--json", metavar="FILE", help="writes the numbers there as well, with those of each turn")
    options = parser.parse_args()
    if options.turns > 20:
        parser.error("--turns: at most 20, or the prompts would not fit into 4,096 tokens")
    try:
        script = Script(options.root, options.agents, options.turns, options.seed, options.short)
        chat = agent.Chat(options.url, options.key, lambda words: print(words, file=sys.stderr))
    except (tools.Refused, agent.Lost) as problem:
        print(problem, file=sys.stderr)
        return 2
    try:
        numbers = Run(chat, script, options.max_tokens).run()
    except (tools.Refused, agent.Lost, agent.ContextFull) as problem:
        print(f"not all agents reached their end: {problem}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 1
    finally:
        chat.close()
    settings = {k: getattr(options, k) for k in ("url", "agents", "turns", "seed", "max_tokens", "short")}
    show(numbers)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(settings | {"model": chat.model} | numbers, file, indent=1)
            file.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
