#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""The end of a server: told under load it ends in good order and in time; killed, the next one starts clean."""
import signal
import threading
import time
import unittest

import support
from support import Server, wait_until, words


def ask(server, results, **fields):
    """Appends (status, body), or the exception."""
    try:
        status, _, body = server.request("POST", "/v1/completions", {"temperature": 0, "ignore_eos": True} | fields)
        results.append((status, body))
    except Exception as e:
        results.append((0, repr(e).encode()))


def under_load(server, requests):
    results = []
    threads = [threading.Thread(target=ask, args=(server, results), kwargs=r) for r in requests]
    for thread in threads:
        thread.start()
    return threads, results


class Shutdown(unittest.TestCase):
    def test_told_to_end_it_lets_short_requests_finish_and_tells_the_others_within_ten_seconds(self):
        short = [{"prompt": words(300, f"short {i}"), "max_tokens": 5} for i in range(3)]
        # More than it could ever do in ten seconds, streaming and not.
        long = [{"prompt": words(2000, f"long {i}"), "max_tokens": 2000, "stream": i % 2 == 0} for i in range(200)]
        with Server("--slots", "4", "--queue", "1000", "--ctx", "16384", "--no-kvstem") as server:
            threads, results = under_load(server, short + long)
            wait_until(lambda: server.metrics()["kvstem_waiting"] >= 196, "all have come: four run")
            begin = time.monotonic()
            server.stop(15)
            took = time.monotonic() - begin
            for thread in threads:
                thread.join(5)
                self.assertFalse(thread.is_alive())
        self.assertLess(took, 10)
        self.assertEqual(len(results), 203)
        finished = told = 0
        for status, body in results:
            if status == 503 or (status == 200 and b'"error"' in body):
                self.assertIn(b"shutting down", body)
                told += 1
            else:
                self.assertEqual(status, 200, body)
                finished += 1
        print(f"{finished} finished, {told} were told, in {took:.1f} s")
        self.assertGreaterEqual(finished, 3)
        self.assertGreater(told, 100)

    def test_with_nothing_to_do_it_ends_at_once(self):
        with Server() as server:
            begin = time.monotonic()
            server.stop(5)
            self.assertLess(time.monotonic() - begin, 3)

    def test_a_second_signal_ends_it_at_once_under_load(self):
        with Server() as server:
            threads, results = under_load(server, [{"prompt": words(500, "x"), "max_tokens": 3000}] * 20)
            wait_until(lambda: server.metrics()["kvstem_running"] > 0, "a load")
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: "shutting down" in server.said(), "it heard")
            begin = time.monotonic()
            server.stop(5)
            self.assertLess(time.monotonic() - begin, 3)
            for thread in threads:
                thread.join()
            self.assertEqual(len(results), 20)

    def test_after_a_kill_under_load_the_next_one_starts_clean_on_the_same_port(self):
        texts, port = [], 0
        for _ in range(3):
            with Server(port=port) as server:
                port = server.port
                texts.append(server.complete(words(200, "clean"))["choices"][0]["text"])
                threads, _ = under_load(server, [{"prompt": words(500, "x"), "max_tokens": 3000}] * 8)
                wait_until(lambda: server.metrics()["kvstem_running"] > 0, "a load")
                server.ended = True
                server.process.kill()
                server.process.wait()
                for thread in threads:
                    thread.join()
        self.assertEqual(len(set(texts)), 1)


if __name__ == "__main__":
    unittest.main(verbosity=2)
