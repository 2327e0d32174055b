#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""An agent that reads a folder of source files to do a task, with helpers, on any server that speaks OpenAI's API.

For each turn it shows how much of the prompt the server had already computed.

  agent.py --url http://127.0.0.1:8080/v1 --root DIR "What does this program do?"

Exit status: 0 it answered; 1 it ended before (turns or context used up, server lost), and what it has is shown; 2 it could
not begin.
"""
import argparse
import dataclasses
import sys
import time

try:
    import openai
except ImportError:
    print("this needs the package openai: python3 -m venv V && V/bin/pip install openai, then V/bin/python", sys.argv[0], file=sys.stderr)
    sys.exit(2)

import tools

SUB_AGENT = "You are a helper now. Do only this part of the work, then write ANSWER: and what you found.\nTASK: "
LAST = "\n\nThis was the last call. Write ANSWER: and the answer now."
AGAIN = "that call was made before, and its result is above. Make another one, or write ANSWER: and the answer."
FIRST_CALL = tools.Call("list", (".",))
NO_CALL = "that was neither a call nor an answer. Write one line such as TOOL: list . or write ANSWER: and the answer."


class Lost(Exception):
    """The server cannot go on; in the user's words."""


class ContextFull(Exception):
    """The messages do not fit into the model's context any more."""


# ---- the server


@dataclasses.dataclass
class Turn:
    """One answer, and what it cost. `cached` is None where the server does not say."""
    text: str = ""
    prompt: int = 0
    completion: int = 0
    cached: int | None = None
    first_token: float = 0.0  # seconds from asking, waiting included


class Chat:
    """The server's chat, with its errors in words. Threads: any."""

    TRIES = 6  # while the server is busy

    def __init__(self, url, key=None, say=lambda words: None):
        self.url, self.say = url, say
        self.client = openai.OpenAI(base_url=url, api_key=key or "none", max_retries=0, timeout=600)
        self.model = self._patiently(lambda: next(iter(self.client.models.list().data)).id)

    def close(self):
        self.client.close()

    def ask(self, messages, max_tokens, **fields):
        begin = time.monotonic()
        return self._patiently(lambda: self._stream(begin, messages=messages, max_tokens=max_tokens, **fields))

    def _stream(self, begin, **fields):
        turn, seen = Turn(), False
        try:
            for chunk in self._chunks(**fields):
                if chunk.choices and not seen:  # comes with the first token, also if that has no text
                    turn.first_token, seen = time.monotonic() - begin, True
                for choice in chunk.choices:
                    turn.text += choice.delta.content or ""
                if chunk.usage:
                    turn.prompt, turn.completion = chunk.usage.prompt_tokens, chunk.usage.completion_tokens
                turn.cached = _cached(chunk, turn.cached)
        except openai.APIConnectionError as error:
            if not seen:
                raise
            raise Lost("the server broke off its answer") from error
        if not turn.prompt:
            raise Lost("the server's answer does not end with its count of tokens")
        return turn

    def _chunks(self, **fields):
        with self.client.chat.completions.create(model=self.model, stream=True, stream_options={"include_usage": True},
                                                 **fields) as stream:
            yield from stream

    def _patiently(self, ask):
        """Asks again while the server is busy; other errors in words."""
        for attempt in range(self.TRIES):
            try:
                return ask()
            except openai.APIStatusError as error:
                if error.status_code not in (429, 503) or attempt == self.TRIES - 1:
                    raise self._in_words(error) from error
                wait = _retry_after(error, default=min(2 ** attempt, 8))
                self.say(f"the server is busy; trying again in {wait:g} s")
                time.sleep(wait)
            except openai.OpenAIError as error:
                raise self._in_words(error) from error
            except StopIteration:
                raise Lost(f"the server at {self.url} has no model") from None
        raise AssertionError

    def _in_words(self, error):
        if isinstance(error, openai.APITimeoutError):
            return Lost(f"the server at {self.url} did not answer in time")
        if isinstance(error, openai.APIConnectionError):
            return Lost(f"no server answers at {self.url}; is it running?")
        status = getattr(error, "status_code", None)
        said = error.body.get("message") if isinstance(error.body, dict) else None
        said = said or getattr(error, "message", "") or str(error)
        # The second is what llama-server calls it.
        if error.code == "context_length_exceeded" or error.type == "exceed_context_size_error":
            return ContextFull(said)
        return Lost({401: "the server does not know this key; give one with --key", 403: "this key may not do that",
                     404: f"there is no such thing at {self.url} (does the address end in /v1?)",
                     429: "the server stayed busy; try again later"}.get(status, "the server refused") + f": {said}")


def _cached(chunk, known):
    """Prompt tokens that were not computed anew: in usage, or where llama-server tells its timings."""
    details = getattr(chunk.usage, "prompt_tokens_details", None)
    if details is not None and details.cached_tokens is not None:
        return details.cached_tokens
    timings = (chunk.model_extra or {}).get("timings")
    return timings.get("cache_n", known) if isinstance(timings, dict) else known


def _retry_after(error, default):
    try:
        return min(30.0, max(0.1, float(error.response.headers["retry-after"])))
    except (KeyError, ValueError):
        return float(default)


# ---- the agent


@dataclasses.dataclass
class Outcome:
    text: str            # the answer, or what there is of one
    ended: str = ""      # why it ended early; empty: it answered


class Agent:
    """Asks, runs the tool that the answer names, appends both, and asks again."""

    STUCK = 3

    def __init__(self, chat, tree, messages, turns, max_tokens, report, name="main", made=(FIRST_CALL,)):
        # Messages are only ever appended. A prefix cache lives on that: each prompt begins with the whole one before, so only
        # the last answer and its result are new. One changed word at the front (a clock, a count of turns left, old results
        # cut to save room) would make every token behind it new.
        self.messages = messages
        self.chat, self.tree, self.report, self.name = chat, tree, report, name
        self.turns, self.max_tokens = turns, max_tokens
        self.last, self.helpers, self.made = "", 0, set(made)  # its last words besides calls; its helpers; calls made

    def run(self):
        stuck = 0  # turns in a row that brought nothing new
        for left in reversed(range(self.turns)):
            try:
                turn = self.chat.ask(self.messages, self.max_tokens, temperature=0, stop=["\nRESULT:"])
            except ContextFull as full:
                return Outcome(self.last, f"the context is full ({full})")
            step, result = self._understand(turn)
            self.report(self.name, step or "(no valid call)", turn)
            if isinstance(step, tools.Answer):
                return Outcome(step.text)
            stuck = stuck + 1 if result in (NO_CALL, AGAIN) else 0
            if stuck == self.STUCK:  # it will not learn the form; if it said something, these are its words
                return Outcome(self.last, "it repeats itself" if result == AGAIN else "it wrote neither calls nor an answer")
            if left:
                self._append("user", f"RESULT: {result or self._result(step, left)}" + (LAST if left == 1 else ""))
        return Outcome(self.last, f"its {self.turns} turns are used up")

    def _understand(self, turn):
        """The call or answer, if there is one, and what is wrong with it, if something is. Appends what was said."""
        wrong = None
        try:
            step, said = tools.parse(turn.text)
            wrong = NO_CALL if step is None else AGAIN if step in self.made else None
            self.made.add(step)
        except tools.Refused as mistake:
            step, (wrong, said) = None, mistake.args
        words = said if step is None else said.rpartition("\n")[0].strip(" \n`")
        self.last = words or self.last
        # Never empty, and without spaces at its ends: those could grow together with the tokens around it.
        self._append("assistant", said or "(nothing)")
        return step, wrong

    def _result(self, call, left):
        try:
            return self._delegate(call.arguments[0], left) if call.tool == "delegate" else self.tree.run(call)
        except tools.Refused as refusal:
            return f"not done: {refusal}"

    def _delegate(self, task, left):
        """A helper's answer. It begins with these very messages, so what was computed for them serves it too."""
        if self.name != "main":
            raise tools.Refused("a helper has no helpers; do it yourself")
        self.helpers += 1
        turns = max(1, left // 2)
        helper = Agent(self.chat, self.tree, [*self.messages], turns, self.max_tokens, self.report, f"helper {self.helpers}",
                       self.made)
        helper._append("user", f"RESULT: {SUB_AGENT}{task}" + (LAST if turns == 1 else ""))
        outcome = helper.run()
        ended = f"(the helper did not finish: {outcome.ended[:100]}) " if outcome.ended else ""
        return (ended + (outcome.text or "it found nothing"))[:self.tree.limit]

    def _append(self, role, content):
        self.messages.append({"role": role, "content": content})


def first_messages(tree, task, manual=tools.MANUAL):
    """What is common to many tasks comes first, this one's own last: so tasks share the most. The call shows the form."""
    return [{"role": "system", "content": manual},
            {"role": "user", "content": "Look at the folder first."},
            {"role": "assistant", "content": f"TOOL: {FIRST_CALL}"},
            {"role": "user", "content": f"RESULT: {tree.run(FIRST_CALL)}\n\nTASK: {task}"}]


# ---- the command


class Table:
    """A line for each turn, as it happens, and one of totals."""

    def __init__(self):
        self.turns = []
        self._line("agent", "tool", "prompt", "cached", "new", "first token")

    def __call__(self, name, step, turn):
        self.turns.append(turn)
        what = "answer" if isinstance(step, tools.Answer) else str(step)
        known = turn.cached is not None
        self._line(name, what, f"{turn.prompt:,}", f"{turn.cached:,}" if known else "?",
                   f"{turn.prompt - turn.cached:,}" if known else "?", f"{turn.first_token:.2f} s")

    def totals(self):
        asked = sum(t.prompt for t in self.turns)
        cached = [t.cached for t in self.turns]
        if not asked:
            return "no turn was answered"
        if None in cached:
            return f"{len(cached)} turns asked {asked:,} tokens; the server does not say how many were repeated"
        return (f"{len(cached)} turns asked {asked:,} tokens: {100 * sum(cached) / asked:.1f} % repeated, "
                f"{asked - sum(cached):,} computed")

    @staticmethod
    def _line(agent, tool, *numbers):
        tool = " ".join(tool.split())
        print(f"{agent:<10}{tool if len(tool) <= 40 else tool[:39] + '…':<42}" + "".join(f"{n:>9}" for n in numbers[:-1])
              + f"{numbers[-1]:>13}", flush=True)


def count(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def main():
    parser = argparse.ArgumentParser(description="An agent that reads a folder of source files to do a task.")
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1", help="the server's API (%(default)s)")
    parser.add_argument("--key", help="key, if the server wants one")
    parser.add_argument("--root", required=True, metavar="DIR", help="the folder; nothing else is read")
    parser.add_argument("--turns", type=count, default=8, metavar="N", help="at most (%(default)s)")
    parser.add_argument("--max-tokens", type=count, default=128, metavar="N", help="of one answer (%(default)s)")
    parser.add_argument("task", metavar="TASK")
    options = parser.parse_args()

    def complain(words):
        print(words, file=sys.stderr, flush=True)

    try:
        tree = tools.Tree(options.root)
        first = first_messages(tree, options.task)
        chat = Chat(options.url, options.key, complain)
    except (tools.Refused, Lost) as problem:
        complain(problem)
        return 2
    table = Table()
    agent = Agent(chat, tree, first, options.turns, options.max_tokens, table)
    try:
        outcome = agent.run()
    except Lost as lost:
        if not table.turns:
            complain(lost)
            return 2
        outcome = Outcome(agent.last, str(lost))
    except KeyboardInterrupt:
        outcome = Outcome(agent.last, "you stopped it")
    finally:
        chat.close()
    print(f"\n{outcome.text or '(it said nothing besides calls)'}\n\n{table.totals()}")
    if outcome.ended:
        complain(f"ended without an answer: {outcome.ended}")
    return 1 if outcome.ended else 0


if __name__ == "__main__":
    sys.exit(main())
