# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""What the tests of the server share: a server of one's own, requests by hand, and the numbers that it shows.

The tests are run with KVSTEM_SERVER (the program), KVSTEM_OFFLINE (the engine without a server) and KVSTEM_LLAMA_MODELS.
"""
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import tempfile
import time

SERVER = os.environ["KVSTEM_SERVER"]
OFFLINE = os.environ["KVSTEM_OFFLINE"]
MODELS = os.environ["KVSTEM_LLAMA_MODELS"]
TINY = os.path.join(MODELS, "tiny", "llama.gguf")
SMOL = os.path.join(MODELS, "SmolLM2-135M-Instruct.Q4_1.gguf")


def wait_until(condition, what, seconds=60):
    """Polls until `condition()` is true, and returns what it returned."""
    end = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.01)


class Server:
    """A running server on a port of its own. Use it in a `with`; leaving it checks that it ends well when told to."""

    def __init__(self, *arguments, model=TINY, threads=1, port=0):
        self.ended = False
        self.log = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [SERVER, "--model", model, "--port", str(port), "--threads", str(threads), *arguments],
            stdout=self.log, stderr=self.log)
        def listening():
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}: {self.said()}")
            return re.search(r"serving (.+) on http://[^:]+:(\d+)", self.said())
        found = wait_until(listening, "the server listens")
        self.model, self.port = found.group(1), int(found.group(2))
        self.url = f"http://127.0.0.1:{self.port}"

    def said(self):
        # Through a path of its own: the server's offset is not ours.
        with open(f"/proc/self/fd/{self.log.fileno()}", "rb") as file:
            return file.read().decode(errors="replace")

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        try:
            if kind is None and not self.ended:
                assert self.process.poll() is None, f"the server ended by itself with {self.process.poll()}: {self.said()[-2000:]}"
                self.stop()
            else:
                print(self.said()[-2000:])
        finally:
            self.process.kill()
            self.process.wait()
            self.log.close()

    def stop(self, seconds=15):
        self.ended = True
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(seconds)
        assert status == 0, f"status {status}: {self.said()[-2000:]}"

    def rss(self):
        """Bytes of memory in use."""
        with open(f"/proc/{self.process.pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    # ---- requests

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def request(self, method, path, body=None, key=None, headers=None, timeout=120):
        """Returns status, headers, and the body as bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        headers = dict(headers or {})
        if key:
            headers["Authorization"] = "Bearer " + key
        if isinstance(body, dict):
            body = json.dumps(body)
            headers.setdefault("Content-Type", "application/json")
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, response.headers, response.read()
        finally:
            connection.close()

    def post(self, path, body, key=None):
        """A call that must succeed; returns its answer."""
        status, _, answer = self.request("POST", path, body, key)
        assert status == 200, (status, answer)
        return json.loads(answer)

    def complete(self, prompt, key=None, **fields):
        return self.post("/v1/completions", {"prompt": prompt, "max_tokens": 8, "temperature": 0} | fields, key)

    def metrics(self, key=None):
        """By name with labels."""
        status, _, text = self.request("GET", "/metrics", key=key)
        assert status == 200, (status, text)
        values = {}
        for line in text.decode().splitlines():
            if not line.startswith("#"):
                name, value = line.rsplit(" ", 1)
                values[name] = float(value)
        return values

    def idle(self):
        """Waits until nothing runs or waits; returns the metrics."""
        return wait_until(lambda: (lambda m: m if m["kvstem_running"] == m["kvstem_waiting"] == 0 else None)(self.metrics()),
                          "the server is idle")


def total(metrics, name, **labels):
    """The sum over all series of that name that have these labels."""
    wanted = [f'{k}="{v}"' for k, v in labels.items()]
    return sum(value for series, value in metrics.items()
               if series.split("{")[0] == name and all(w in series for w in wanted))


def check_books(metrics):
    """Hits of all tiers and misses are the queries."""
    queried = total(metrics, "kvstem_cache_queried_tokens_total")
    hit = total(metrics, "kvstem_cache_hit_tokens_total")
    missed = total(metrics, "kvstem_cache_missed_tokens_total")
    assert hit + missed == queried, (hit, missed, queried)
    return queried, hit


class Offline:
    """The engine without a server."""

    def __init__(self, model=TINY, slots=4, cells=8192):
        self.process = subprocess.Popen([OFFLINE, model, str(slots), str(cells)], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.stdout.close()
        assert self.process.wait(30) == 0


def words(n, seed):
    """n tokens of the tiny model that nobody else has."""
    import random
    return [3 + random.Random(f"{seed} {i}").randrange(250) for i in range(n)]
