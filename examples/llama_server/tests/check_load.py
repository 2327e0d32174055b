#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""Many clients at once, and bad ones among them: who behaves gets the same tokens, in as many steps of the engine as alone."""
import json
import re
import socket
import threading
import time
import unittest

import support
from support import Offline, Server, words

MOST_OVERTAKEN = 8
BATCH = 512  # most tokens in a call of a prompt
# Batches round differently than a request alone: how much less likely than the likeliest token one may be, as a logit.
ROUNDING = 0.1


def prompts(n, seed):
    """n prompts of 500 tokens and more, in families that share a beginning."""
    families = [words(400, f"{seed} family {i}") for i in range(5)]
    return [families[i % 5] + words(100 + i, f"{seed} {i}") for i in range(n)]


def body(prompt, **fields):
    return {"prompt": prompt, "max_tokens": 32, "temperature": 0, "ignore_eos": True, "return_token_ids": True} | fields


class Clients:
    """Requests that are sent at once, each on a thread of its own."""

    def __init__(self, server, requests):
        self.answers = [None] * len(requests)
        self.wrong = []
        def ask(i):
            try:
                self.answers[i] = server.post("/v1/completions", requests[i])
            except Exception as e:  # shown by `join`
                self.wrong.append((i, e))
        self.threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(requests))]
        for thread in self.threads:
            thread.start()

    def join(self):
        for thread in self.threads:
            thread.join()
        assert not self.wrong, self.wrong[:3]
        return self.answers


def send(server, request, stream=True):
    """A request by hand; returns the socket."""
    data = json.dumps(request | {"stream": stream}).encode()
    s = server.connect()
    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
              b"Content-Length: %d\r\n\r\n" % len(data) + data)
    return s


def vanish(server, request, after, stream=True):
    """Reads a number of bytes of the answer, and is gone."""
    s = send(server, request, stream)
    got = 0
    while got < after:
        data = s.recv(min(256, after - got))
        if not data:
            break
        got += len(data)
    # With data unread the kernel tells the server at once that nobody reads any more.
    s.close()


def trickle(server, request, enough):
    """Reads one byte a second until `enough` is set; then the rest."""
    with send(server, request) as s:
        data = b""
        while not enough.is_set():
            data += s.recv(1)
            enough.wait(1)
        while more := s.recv(65536):
            data += more
            if data.endswith(b"0\r\n\r\n"):
                break
        return data


def notes(server):
    """What the access log says of each completed request: prompt, cached, new, chunks, overtaken, waited, ran."""
    found = []
    for line in server.said().splitlines():
        if " 200 " in line and " gone" not in line and "ran=" in line:
            found.append({k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", line)})
    return found


class Load(unittest.TestCase):
    def check_steps(self, notes):
        for n in notes:
            computed = n["prompt"] - n["cached"]
            self.assertEqual(n["chunks"], -(-computed // BATCH), n)
            self.assertEqual(n["ran"], n["chunks"] + n["new"] - 1, n)
            self.assertLessEqual(n["overtaken"], MOST_OVERTAKEN, n)

    def check_tokens(self, requests, answers):
        """Each token was the likeliest one, but for rounding."""
        with Offline(cells=16384) as offline:
            for request, answer in zip(requests, answers):
                tokens = answer["choices"][0]["token_ids"]
                self.assertEqual(len(tokens), request["max_tokens"])
                self.assertLess(offline.ask(prompt=request["prompt"], max_tokens=len(tokens), given=tokens)["worst"], ROUNDING)

    def test_fifty_clients_on_four_slots_all_finish_in_order_and_the_counters_add_up(self):
        requests = [body(p) for p in prompts(50, "fifty")]
        with Server("--slots", "4", "--ctx", "16384") as server:
            answers = Clients(server, requests).join()
            metrics = server.idle()
            said = notes(server)
        self.assertEqual(len(said), 50)
        self.check_steps(said)
        self.check_tokens(requests, answers)
        prompt_tokens = sum(len(r["prompt"]) for r in requests)
        queried, hit = support.check_books(metrics)
        self.assertEqual(queried, prompt_tokens)
        self.assertEqual(hit, sum(a["usage"]["prompt_tokens_details"]["cached_tokens"] for a in answers))
        self.assertEqual(metrics["kvstem_generated_tokens_total"], 50 * 32)
        self.assertEqual(metrics['kvstem_choices_total{outcome="length"}'], 50)
        self.assertEqual(support.total(metrics, "kvstem_choices_total"), 50)
        self.assertEqual(metrics["kvstem_time_to_first_token_seconds_count"], 50)
        self.assertEqual(metrics["kvstem_overtaken_total"], sum(n["overtaken"] for n in said))
        # Each of the five families' beginnings is computed once, and found 45 times: in whole blocks at least.
        self.assertGreaterEqual(hit, 45 * (400 // 16 * 16))

    def test_clients_that_vanish_dawdle_or_stop_half_way_cost_the_others_nothing(self):
        requests = [body(p) for p in prompts(20, "good")]
        with Server("--slots", "4", "--ctx", "16384", "--kv-host", "64MiB") as server:
            for round in range(2):  # the first one warms up: memory is compared from there
                enough = threading.Event()
                half = []
                for i in range(5):
                    s = server.connect()
                    s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{\"prompt\": [1,"[:60 + 10 * i])
                    half.append(s)
                slow_requests = [body(p) for p in prompts(5, f"slow {round}")]
                slow_answers = [None] * 5
                def dawdle(i):
                    slow_answers[i] = trickle(server, slow_requests[i], enough)
                slow = [threading.Thread(target=dawdle, args=(i,)) for i in range(5)]
                gone = [threading.Thread(target=vanish, args=(server, body(p, max_tokens=2000), 200 + 400 * (i % 5)))
                        for i, p in enumerate(prompts(18, f"gone {round}"))]
                gone += [threading.Thread(target=vanish, args=(server, body(p, max_tokens=2000), 0, False))
                         for p in prompts(2, f"gone early {round}")]
                for thread in slow + gone:
                    thread.start()
                answers = Clients(server, requests).join()
                enough.set()
                for thread in slow + gone:
                    thread.join()
                for s in half:
                    s.close()
                metrics = server.idle()
                self.check_tokens(requests, answers)
                for data in slow_answers:
                    self.assertIn(b"data: [DONE]", data)
                files = support.wait_until(lambda: (lambda n: n if round == 0 or n <= self.files else None)(server.files()),
                                           "all connections are closed")
                if round == 0:
                    self.files, memory = files, server.rss()
            self.check_steps(notes(server))
            self.assertEqual(len(notes(server)), 2 * 25)
            cancelled = metrics['kvstem_choices_total{outcome="cancelled"}']
            self.assertEqual(cancelled, 40)
            self.assertLess(metrics["kvstem_generated_tokens_total"], 2 * (25 * 32 + 20 * 1000))
            self.assertLess(server.rss(), memory + (16 << 20))
            support.check_books(metrics)
            # All of the engine is free again: a request that needs nearly all of it runs.
            self.assertEqual(server.complete(words(4000, "whole"), max_tokens=90, ignore_eos=True)["usage"]["completion_tokens"], 90)

    def test_with_one_slot_bad_clients_change_no_token_and_no_step(self):
        # One request at a time in an empty context: bit for bit the same, whatever else happens around it.
        requests = [body(p) for p in prompts(8, "exact")]
        alone, steps = [], []
        for disturbed in (False, True):
            with Server("--slots", "1", "--no-kvstem") as server:
                enough = threading.Event()
                half = [server.connect() for _ in range(5 if disturbed else 0)]
                if disturbed:
                    for s in half:
                        s.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Le")
                    slow = [threading.Thread(target=trickle, args=(server, r, enough)) for r in requests[:5]]
                else:
                    slow = [threading.Thread(target=server.post, args=("/v1/completions", r)) for r in requests[:5]]
                for thread in slow:
                    thread.start()
                answers = Clients(server, requests).join()
                alone.append([a["choices"][0]["token_ids"] for a in answers])
                enough.set()
                for thread in slow:
                    thread.join()
                for s in half:
                    s.close()
                metrics = server.idle()
                said = notes(server)
                self.check_steps(said)
                self.assertEqual(len(said), 13)
                # Not one step of the engine that was not some request's own.
                self.assertEqual(metrics["kvstem_engine_steps_total"], sum(n["ran"] for n in said))
                steps.append(metrics["kvstem_engine_steps_total"])
        self.assertEqual(alone[0], alone[1])
        self.assertEqual(steps[0], steps[1])

    def test_a_full_queue_tells_clients_to_come_later(self):
        with Server("--slots", "1", "--queue", "3") as server:
            clients = Clients(server, [body(words(600, f"queue {i}"), max_tokens=1500) for i in range(3)])
            support.wait_until(lambda: server.metrics()["kvstem_waiting"] == 2, "two wait")
            status, headers, answer = server.request("POST", "/v1/completions", body(words(5, "x")))
            self.assertEqual(status, 429)
            self.assertEqual(headers["Retry-After"], "1")
            self.assertEqual(json.loads(answer)["error"]["type"], "rate_limit_error")
            self.assertEqual(server.request("GET", "/health")[0], 200)
            clients.join()
            server.complete(words(5, "x"))

    def test_a_request_that_takes_too_long_is_told_and_frees_its_slot(self):
        with Server("--slots", "1", "--timeout", "0.3") as server:
            request = body(words(100, "late"), max_tokens=3900)
            status, _, answer = server.request("POST", "/v1/completions", request)
            self.assertEqual(status, 504)
            self.assertEqual(json.loads(answer)["error"]["code"], "timeout")
            with send(server, request) as s:
                data = b""
                while b"[DONE]" not in data and b'"error"' not in data:
                    data += s.recv(65536)
            self.assertIn(b'"code":"timeout"', data)
            self.assertEqual(server.idle()['kvstem_choices_total{outcome="failed"}'], 2)


if __name__ == "__main__":
    unittest.main(verbosity=2)
