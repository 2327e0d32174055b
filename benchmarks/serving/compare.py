#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""compare.py --server KVSTEM_LLAMA_SERVER --incumbent LLAMA_SERVER --model GGUF [--quick] [--json FILE] [--only NAME,...]

Our server beside llama.cpp's own llama-server, on the same model, with the same sizes (-c 8192 -np 2 -t 2), and with
llama-server's pure defaults as a second row. All run at once, and are asked in turn, so that what else happens on the
machine meets each alike, and nobody before the others are quiet; one request at a time but where it is said. Prompts are
token ids, and what both make of the same text is asserted to be the same ids. Greedy, past the end of text.

  shared     conversations with one common opening of 1,500 tokens; a turn adds 84 tokens and 16 of answer
  different  conversations with an opening of 1,500 tokens each
  nothing    prompts that have nothing in common, two at a time; llama-server with cache_prompt off
  agents     eight scripted agents at once, with tools and sub-agents (examples/agents/scripted.py), five turns each
  agents-12  the same with twelve turns: recorded coding agents take 44 (median), and repeat 96 % of what they send

A conversation goes on from the server's own answer, as its clients do. Rounding makes some answers differ; that all else in
the prompts is the same, token by token, is asserted, and how many answers were the same is shown.
"""
import argparse
import functools
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
OPENING, FRESH, ANSWER = 1500, 84, 16


def quartiles(values):
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


class Progress:
    """One line on a terminal, nothing elsewhere."""

    def __init__(self):
        self.on, self.start = sys.stderr.isatty(), time.monotonic()

    def show(self, text):
        if self.on:
            sys.stderr.write(f"\r\033[K{int(time.monotonic() - self.start):4} s  {text}")
            sys.stderr.flush()

    def clear(self):
        if self.on:
            sys.stderr.write("\r\033[K")


class Server:
    """A server process, and how to ask it."""

    def __init__(self, name, command, ours):
        self.name, self.ours = name, ours
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        self.log = tempfile.NamedTemporaryFile()
        self.process = subprocess.Popen([*command, "--port", str(self.port)], stdout=self.log, stderr=self.log)
        for _ in range(1200):
            if self.process.poll() is not None:
                sys.exit(f"{name} ended with status {self.process.returncode}:\n{self.said()[-3000:]}")
            try:
                if self.get("/health")[0] == 200:
                    self.complete(list(range(1000, 1600)), 2, cache=False)  # what it makes at the first request only
                    self.ready = self.memory()
                    return
            except OSError:
                pass
            time.sleep(0.1)
        sys.exit(f"{name} does not answer:\n{self.said()[-3000:]}")

    def said(self):
        return pathlib.Path(self.log.name).read_text(errors="replace")

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def get(self, path):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def post(self, path, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        try:
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = json.loads(response.read())
            if response.status != 200:
                sys.exit(f"{self.name}: {answer}")
            return answer
        finally:
            connection.close()

    def tokenize(self, text):
        return self.post("/tokenize", {"content": text, "add_special": False})["tokens"]

    def complete(self, prompt, new, cache=True):
        """Streams a completion. Returns seconds to the first token, its tokens, and how many of the prompt were found."""
        if self.ours:
            path = "/v1/completions"
            body = {"prompt": prompt, "max_tokens": new, "stream_options": {"include_usage": True}, "return_token_ids": True}
        else:
            path = "/completion"
            body = {"prompt": prompt, "n_predict": new, "return_tokens": True}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        data = json.dumps(body | {"cache_prompt": cache, "temperature": 0, "stream": True, "ignore_eos": True})
        start, first, tokens, cached = time.perf_counter(), None, [], None
        try:
            connection.request("POST", path, data, {"Content-Type": "application/json"})
            response = connection.getresponse()
            while line := response.readline():
                if not line.startswith(b"data: ") or line.startswith(b"data: [DONE]"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    sys.exit(f"{self.name}: {event}")
                first = first or time.perf_counter() - start
                if self.ours:
                    for choice in event["choices"]:
                        tokens += choice.get("token_ids", [])
                    if event.get("usage"):
                        cached = event["usage"]["prompt_tokens_details"]["cached_tokens"]
                else:
                    tokens += event.get("tokens", [])
                    cached = event.get("timings", {}).get("cache_n", cached)
        finally:
            connection.close()
        if len(tokens) != new:
            sys.exit(f"{self.name}: asked for {new} tokens, got {len(tokens)}")
        return first, tokens, cached

    def memory(self):
        """Bytes of memory that it has written to, files apart."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"RssAnon:\s+(\d+) kB", status)[1]) << 10

    def held_bytes(self):
        """How much its memory grew since it stood ready: no less than what it keeps of prompts, and whatever else grew. The
        cells of sequences are taken at the start and not counted. Ours tells as well how much of it are blocks."""
        held = {"grown": self.memory() - self.ready}
        if self.ours:
            metrics = dict(line.rsplit(" ", 1) for line in self.get("/metrics")[1].decode().splitlines() if line[0] != "#")
            held["blocks"] = int(metrics["kvstem_host_blocks_used"]) * int(metrics["kvstem_block_bytes"])
        return held


class Texts:
    """Token ids of real prose, as many as wanted, never twice the same."""

    def __init__(self, servers):
        folder = pathlib.Path("/usr/share/common-licenses")
        names = ["GPL-3", "Apache-2.0", "LGPL-2.1", "GFDL-1.3", "GPL-2", "MPL-2.0"]
        text = "\n".join((folder / n).read_text(errors="replace") for n in names if (folder / n).exists())
        both = [s.tokenize(text) for s in servers]
        if any(tokens != both[0] for tokens in both):
            sys.exit("the servers make different token ids of the same text: nothing could be compared")
        self.tokens, self.at = both[0], 0
        self.round = 0

    def take(self, n):
        if n > len(self.tokens):
            sys.exit("there is not enough text in /usr/share/common-licenses to make prompts of")
        if self.at + n > len(self.tokens):
            self.at, self.round = 0, self.round + 1
        taken = self.tokens[self.at:self.at + n]
        self.at += n
        # The same words again, later: from the second round on every fourth token is another, so that nothing repeats.
        return [t if self.round == 0 or i % 4 else (t + 37 * self.round) % 40000 + 100 for i, t in enumerate(taken)]


class Report:
    def __init__(self):
        self.checks, self.figures = [], []

    def check(self, name, value, unit, bar, ok, low=None, high=None):
        self.checks.append({"name": name, "value": value, "unit": unit, "bar": bar, "ok": ok, "low": low, "high": high})

    def at_least(self, name, values, unit, bar):
        low, middle, high = quartiles(values)
        self.check(name, middle, unit, f">= {bar}", middle >= bar, low, high)

    def figure(self, name, values, unit):
        low, middle, high = quartiles(values)
        self.figures.append({"name": name, "value": middle, "unit": unit, "low": low, "high": high})

    def show(self):
        for rows, title in ((self.checks, "check"), (self.figures, "figure")):
            print(f"\n{title:64} {'value':>10} {'quartiles':>21}  {'unit':10} bar")
            for c in rows:
                spread = f"{c['low']:10.3f}-{c['high']:.3f}" if c.get("low") is not None else ""
                met = "" if title == "figure" else f"{c['bar']:8} {'met' if c['ok'] else 'NOT MET'}"
                print(f"{c['name']:64} {c['value']:10.3f} {spread:>21}  {c['unit']:10} {met}")


def settle(servers):
    """Waits until no server works any more: llama.cpp's threads go on spinning for a while after an answer, and would take
    the time from whoever is asked next."""
    def used():
        fields = [pathlib.Path(f"/proc/{s.process.pid}/stat").read_text().rsplit(")", 1)[1].split() for s in servers]
        return sum(int(f[11]) + int(f[12]) for f in fields)  # in hundredths of a second
    before, quiet = used(), 0
    while quiet < 4:
        time.sleep(0.02)
        now = used()
        before, quiet = now, quiet + 1 if now == before else 0


def in_turn(items, k):
    """The same items, another one first each time."""
    k %= len(items)
    return items[k:] + items[:k]


def converse(servers, texts, progress, label, openings, turns, rounds):
    """Conversations that take turns. Returns seconds to the first token by server, turn, and in order of asking, and the
    tokens found by server and turn. All servers are asked the same prompts."""
    first = {s.name: [[] for _ in range(turns)] for s in servers}
    found = {s.name: [[] for _ in range(turns)] for s in servers}
    asked, cold, same_answers = 0, {s.name: [] for s in servers}, []
    for r in range(rounds):
        histories = [{s.name: list(o) for s in servers} for o in openings(r)]
        given = [list(range(len(h[servers[0].name]))) for h in histories]  # positions that are no server's answer
        for turn in range(turns):
            for c, history in enumerate(histories):
                fresh, answers = texts.take(FRESH), {}
                length = len(history[servers[0].name])
                given[c] += range(length, length + FRESH)
                for server in in_turn(servers, asked):
                    prompt = history[server.name] = history[server.name] + fresh
                    settle(servers)
                    seconds, tokens, cached = server.complete(prompt, ANSWER)
                    answers[server.name] = tokens
                    if label == "shared" and turn == 0 and c == 0:
                        cold[server.name].append(seconds)  # nobody has the opening yet
                    else:
                        first[server.name][turn].append(seconds)
                        found[server.name][turn].append(cached)
                asked += 1
                progress.show(f"{label}: round {r + 1} of {rounds}, turn {turn}, conversation {c + 1} of {len(histories)}")
                asked_by = [[history[s.name][i] for i in given[c]] for s in servers]
                if any(ids != asked_by[0] for ids in asked_by):
                    sys.exit("the servers were not asked the same: nothing can be compared")
                same_answers.append(answers["kvstem"] == answers["llama-server"])
                for s in servers:
                    history[s.name] += answers[s.name]
    return first, found, cold, same_answers


def ratios(first, turn, other):
    return [theirs / ours for ours, theirs in zip(first["kvstem"][turn], first[other][turn])]


def run_shared(servers, texts, report, progress, options):
    turns, conversations = 3, 6
    rounds = 1 if options.quick else 3

    def openings(_):
        common = texts.take(OPENING)
        return [common] * conversations
    first, found, cold, same = converse(servers, texts, progress, "shared", openings, turns, rounds)
    progress.clear()
    report.figure("shared: answers that both gave alike", [sum(same) / len(same)], "share")
    for s in servers:
        report.figure(f"shared: {s.name}, the very first request", cold[s.name], "s")
        for t in range(turns):
            report.figure(f"shared: {s.name}, turn {t}, to the first token", first[s.name][t], "s")
            report.figure(f"shared: {s.name}, turn {t}, tokens found", found[s.name][t], "tokens")
    for t, bar in ((1, 1.8), (2, 2.5)):
        report.at_least(f"shared: first token sooner than llama-server, turn {t}", ratios(first, t, "llama-server"), "x", bar)
        report.figure(f"shared: first token sooner than its defaults, turn {t}", ratios(first, t, "defaults"), "x")
    gaps = [statistics.median(ratios(first, t, "llama-server")) for t in range(turns)]
    report.check("shared: the gap grows with the turns", gaps[2] - gaps[0], "x", "> 0 each", gaps[0] < gaps[1] < gaps[2])
    hits = {s.name: sum(map(sum, found[s.name])) for s in servers}
    held = {s.name: s.held_bytes() for s in servers}
    for s in servers:
        report.figure(f"shared: {s.name}, tokens found in all", [hits[s.name]], "tokens")
        report.figure(f"shared: {s.name}, memory grown by", [held[s.name]["grown"] / (1 << 20)], "MiB")
    return {"held": held, "hits": hits}


def run_different(servers, texts, report, progress, options):
    conversations, turns = 3 if options.quick else 10, 2
    first, found, _, _ = converse(servers, texts, progress, "different", lambda _: [texts.take(OPENING) for _ in range(conversations)],
                               turns, 1)
    progress.clear()
    for s in servers:
        for t in range(turns):
            report.figure(f"different: {s.name}, turn {t}, to the first token", first[s.name][t], "s")
            report.figure(f"different: {s.name}, turn {t}, tokens found", found[s.name][t], "tokens")
    for t in range(turns):
        # Not slower, by the medians: noise is what the quartiles show.
        ours, theirs = (statistics.median(first[n][t]) for n in ("kvstem", "llama-server"))
        report.check(f"different: first token beside llama-server's, turn {t}", theirs / ours, "x", ">= 1", theirs >= ours,
                     *(lambda q: (q[0], q[2]))(quartiles(ratios(first, t, "llama-server"))))
    held = {s.name: s.held_bytes() for s in servers}
    for s in servers:
        report.figure(f"different: {s.name}, memory grown by", [held[s.name]["grown"] / (1 << 20)], "MiB")
    return {"held": held}


def run_nothing(servers, texts, report, progress, options):
    batches, requests, prompt, new = 2 if options.quick else 20, 4, 512, 32
    rates = {s.name: [] for s in servers}
    for b in range(batches):
        prompts = [texts.take(prompt) for _ in range(requests)]
        for server in in_turn(servers, b):
            waiting, done = list(prompts), []

            def client():
                while True:
                    try:
                        mine = waiting.pop()
                    except IndexError:
                        return
                    done.append(server.complete(mine, new, cache=server.ours))
            settle(servers)
            start = time.perf_counter()
            threads = [threading.Thread(target=client) for _ in range(2)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            if len(done) != requests:
                sys.exit(f"{server.name}: only {len(done)} of {requests} requests were answered")
            rates[server.name].append(requests / (time.perf_counter() - start))
            progress.show(f"nothing: batch {b + 1} of {batches}")
    progress.clear()
    for s in servers:
        report.figure(f"nothing: {s.name}, requests a second", rates[s.name], "1/s")
    report.at_least("nothing: requests a second beside llama-server's", [o / t for o, t in zip(rates["kvstem"], rates["llama-server"])],
                    "x", 0.97)
    return {}


def run_agents(servers, _, report, progress, options, turns, runs):
    agents = 8
    if options.quick:
        agents, turns, runs = 4, (turns + 1) // 2, 1
    script, label = ROOT / "examples" / "agents" / "scripted.py", f"{agents} agents, {turns} turns"
    seconds, computed, results = ({s.name: [] for s in servers} for _ in range(3))
    for r in range(runs):
        digests = set()
        for server in in_turn(servers, r):
            progress.show(f"{label}: run {r + 1} of {runs}, {server.name}")
            settle(servers)
            with tempfile.NamedTemporaryFile(suffix=".json") as out:
                subprocess.run([options.python, str(script), "--url", f"http://127.0.0.1:{server.port}/v1", "--root", str(ROOT / "include"),
                                "--agents", str(agents), "--turns", str(turns), "--seed", str(r + 1), "--max-tokens", "24",
                                "--json", out.name], check=True, stdout=subprocess.DEVNULL)
                result = json.loads(pathlib.Path(out.name).read_text())
            for name in ("turns", "url", "model"):  # hundreds of lines; where it ran
                del result[name]
            digests.add((result["digest"], result["prompt_tokens"], result["completion_tokens"]))
            seconds[server.name].append(result["wall_seconds"])
            computed[server.name].append(result["prompt_tokens"] - result["cached_tokens"])
            results[server.name].append(result)
        if len(digests) != 1:
            sys.exit(f"{label}: the servers were asked different things: {digests}")
    progress.clear()
    held = {s.name: s.held_bytes() for s in servers}
    for s in servers:
        report.figure(f"{label}: {s.name}, until all have finished", seconds[s.name], "s")
        report.figure(f"{label}: {s.name}, prompt tokens computed", computed[s.name], "tokens")
        report.figure(f"{label}: {s.name}, memory grown by", [held[s.name]["grown"] / (1 << 20)], "MiB")
    report.at_least(f"{label}: finished sooner than on llama-server",
                    [t / o for o, t in zip(seconds["kvstem"], seconds["llama-server"])], "x", 1.5)
    return {"held": held, "runs": results}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", required=True)
    parser.add_argument("--incumbent", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--python", default=sys.executable, help="one that has the package openai, for the agents")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="shared,different,nothing,agents,agents-12")
    parser.add_argument("--json")
    o = parser.parse_args()
    workloads = {"shared": run_shared, "different": run_different, "nothing": run_nothing,
                 "agents": functools.partial(run_agents, turns=5, runs=3),
                 "agents-12": functools.partial(run_agents, turns=12, runs=2)}
    if unknown := set(o.only.split(",")) - set(workloads):
        parser.error(f"--only knows {', '.join(workloads)}, not {', '.join(unknown)}")
    report, progress, fields = Report(), Progress(), {}
    for name, run in workloads.items():
        if name not in o.only.split(","):
            continue
        # New servers for each: what one workload left behind is not the next one's business.
        progress.show(f"{name}: loading the model")
        servers = [Server("kvstem", [o.server, "--model", o.model, "-c", "8192", "-n", "2", "-t", "2", "--quiet"], True),
                   Server("llama-server", [o.incumbent, "-m", o.model, "-c", "8192", "-np", "2", "-t", "2", "--offline"], False)]
        if name in ("shared", "different"):
            servers.append(Server("defaults", [o.incumbent, "-m", o.model, "--offline"], False))
        try:
            texts = Texts(servers)
            fields[name] = run(servers, texts, report, progress, o)
        finally:
            for s in servers:
                s.stop()
    report.show()
    if o.json:
        pathlib.Path(o.json).write_text(json.dumps({"checks": report.checks, "figures": report.figures, "workloads": fields}, indent=1) + "\n")


if __name__ == "__main__":
    main()
