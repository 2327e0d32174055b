#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""What one tenant sent, no other can find out: not by counts, not by metrics, not by how much had to be computed."""
import json
import unittest

import support
from support import Server, words

KEYS = {"alice": "key of alice", "bob": "key of bob", "admin": "key of admin"}
ARGUMENTS = ["--api-key", "alice=" + KEYS["alice"], "--api-key", "bob=" + KEYS["bob"], "--admin-key", KEYS["admin"]]


def cached(answer):
    return answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def without_times(metrics):
    return {k: v for k, v in metrics.items() if "_seconds" not in k}


class Isolation(unittest.TestCase):
    def test_a_prompt_that_another_sent_is_a_miss_and_looks_like_one_that_nobody_sent(self):
        prompt, unknown = words(600, "secret"), words(600, "never sent")
        with Server(*ARGUMENTS, "--slots", "2") as server:
            self.assertEqual(cached(server.complete(prompt, key=KEYS["alice"])), 0)
            self.assertEqual(cached(server.complete(prompt, key=KEYS["alice"])), 599)
            before = server.metrics(KEYS["bob"])
            probes = []
            for p in (prompt, unknown):
                self.assertEqual(cached(server.complete(p, key=KEYS["bob"])), 0)
                after = server.metrics(KEYS["bob"])
                probes.append({k: v - before[k] for k, v in without_times(after).items()})
                before = after
            # All numbers that bob can see went up by the same, for a prompt that alice had sent and one that nobody had.
            self.assertEqual(probes[0], probes[1])
            self.assertEqual(probes[0]['kvstem_cache_missed_tokens_total{tenant="bob"}'], 600)
            # And so did the work: as many chunks were computed.
            steps = [line.rsplit("ran=", 1)[1] for line in server.said().splitlines() if " bob " in line and "ran=" in line]
            self.assertEqual(len(set(steps)), 1, steps)
            # Own prompts are found, by each for itself.
            self.assertEqual(cached(server.complete(unknown, key=KEYS["bob"])), 599)
            self.assertEqual(cached(server.complete(unknown, key=KEYS["alice"])), 0)

    def test_a_tenant_sees_its_own_counters_and_the_admin_all(self):
        with Server(*ARGUMENTS) as server:
            server.complete(words(50, 1), key=KEYS["alice"])
            for tenant in ("alice", "bob"):
                for name in server.metrics(KEYS[tenant]):
                    self.assertIn(f'tenant="{tenant}"', name)
            all = server.metrics(KEYS["admin"])
            for tenant in KEYS:
                self.assertIn(f'kvstem_cache_queried_tokens_total{{tenant="{tenant}"}}', all)
            self.assertIn("kvstem_slots", all)
            self.assertEqual(all['kvstem_cache_queried_tokens_total{tenant="alice"}'], 50)
            self.assertEqual(all['kvstem_cache_queried_tokens_total{tenant="bob"}'], 0)

    def first_event(self, server, key):
        import http.client
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        try:
            connection.request("GET", "/events", headers={"Authorization": "Bearer " + key})
            return json.loads(connection.getresponse().readline()[6:])
        finally:
            connection.close()

    def test_the_live_page_tells_a_tenant_of_itself_only(self):
        with Server(*ARGUMENTS) as server:
            for i in range(5):
                server.complete(words(100, i), key=KEYS["alice"])
            server.complete(words(40, "b"), key=KEYS["bob"])
            event = self.first_event(server, KEYS["bob"])
            self.assertEqual(event["tenant"], "bob")
            self.assertIsNone(event["engine"])
            self.assertIsNone(event["stems"])
            self.assertEqual(event["totals"]["queried"], 40)
            # Its own requests, counted by itself: not even how many others there were.
            self.assertEqual([(r["tenant"], r["number"]) for r in event["requests"]], [("bob", 1)])
            self.assertNotIn("alice", json.dumps(event))
            all = self.first_event(server, KEYS["admin"])
            self.assertEqual([r["tenant"] for r in all["requests"]], ["bob"] + 5 * ["alice"])  # the last ones first
            self.assertEqual(all["totals"]["queried"], 540)

    def test_keys_from_a_file_are_those_in_it_whatever_its_line_ends(self):
        import tempfile
        with tempfile.NamedTemporaryFile("w", newline="") as file:
            file.write("# keys\r\n\r\n dave=key of dave \r\neve=key=of=eve==\n")
            file.flush()
            with Server("--api-key-file", file.name) as server:
                for key in ("key of dave", "key=of=eve=="):
                    self.assertEqual(cached(server.complete(words(40, "x"), key=key)), 0)

    def test_without_a_key_nothing_but_health_answers(self):
        with Server(*ARGUMENTS) as server:
            self.assertEqual(server.request("GET", "/health")[0], 200)
            for method, path in (("GET", "/metrics"), ("GET", "/v1/models"), ("POST", "/v1/completions"),
                                 ("POST", "/v1/chat/completions"), ("POST", "/tokenize")):
                for key in (None, "key of nobody", KEYS["alice"] + "x", KEYS["alice"][:-1]):
                    status, headers, body = server.request(method, path, {"prompt": "x"}, key=key)
                    self.assertEqual(status, 401, (path, key))
                    self.assertEqual(headers["WWW-Authenticate"], "Bearer")
                    self.assertEqual(json.loads(body)["error"]["type"], "authentication_error")

    def test_keys_are_not_in_the_log(self):
        server = Server(*ARGUMENTS)
        with server:
            server.complete("hello", key=KEYS["alice"])
            server.request("GET", "/metrics?key=" + KEYS["bob"].replace(" ", "%20"))
            said = server.said()
        for key in KEYS.values():
            self.assertNotIn(key, said)
            self.assertNotIn(key.replace(" ", "%20"), said)
        self.assertIn("alice", said)


if __name__ == "__main__":
    unittest.main(verbosity=2)
