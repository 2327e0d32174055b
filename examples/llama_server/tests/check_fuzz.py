#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""Damaged requests, in parallel, against one server that must go on giving the same answers: check_fuzz.py [SECONDS]

The requests in corpus_requests are damaged in their bytes, in their JSON, and in how they are sent. A request that ends the
server is added to them as crash-N.http. KVSTEM_SEED=N repeats a run's requests (not how they meet).
"""
import collections
import copy
import json
import os
import random
import socket
import sys
import threading
import time

import support
from support import Server, wait_until

CORPUS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "corpus_requests")
THREADS, PER_ROUND = 4, 40  # requests of a thread between two looks at the server
SERVER = ("--quiet", "--slots", "3", "--ctx", "2048", "--kv-resident", "512", "--kv-host", "16MiB", "--queue", "48", "--max-tokens", "16", "--max-body", "64KiB")
REFUSALS = {400: "invalid_request_error", 404: "invalid_request_error", 405: "invalid_request_error", 413: "invalid_request_error",
            431: "invalid_request_error", 429: "rate_limit_error", 408: "invalid_request_error"}
GROWTH = 128 << 20  # bytes of memory, after the first rounds

STRINGS = ("", " ", "\0", "a" * 5000, "\U0001f600" * 100, "\u202e\ufeff\ufffe", "é" * 300, "<|im_start|>" * 40, "<|im_end|>", "7" * 900, "\n" * 500, "null", "system", "user",
           "assistant", "tool", "developer", "text", "llama", "</s><s>", "\"}]}", "\\u0000", "%s%n", "the ")
NUMBERS = (0, 1, -1, 2, 3, 16, 17, 63, 64, 65, 127, 128, 255, 256, 300, 1000, 4096, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -2**31, -2**63,
           -2**63 - 1, 0.0, -0.0, 0.1, 0.5, 1.0, 1.5, 1e-30, 1e-45, 5e-324, 1.7e308, -1e300)
FIELDS = ("model", "prompt", "messages", "n", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "stream", "stream_options", "ignore_eos", "logprobs",
          "echo", "tools", "best_of", "logit_bias", "content", "role", "add_special", "parse_special", "top_k", "unknown")
RAW = (b"1e999", b"NaN", b"-", b"01", b"tru", b"[" * 70 + b"]" * 70, b"[" * 1000, b'"\xff"', b'"\\ud800"', b'{"a":1,"a":2}', b'"\x01"', b"", b"1" * 400, b"{}{}", b"\0")
BYTES = (b"\0", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\xff", b"\x7f", b":", b" ", b"\t", b'"', b"{", b"}", b"[", b"]", b"-1", b"0", b"99999999999999999999", b"\xc3\x28",
         b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"HTTP/1.1", b"%00", b"../", b"A" * 3000, b"\\u0000", b"Expect: 100-continue\r\n")


class Wrong(Exception):
    """An answer that must not be."""


# ---- requests

def assemble(head, body):
    """With a Content-Length that is right, unless the head says something else."""
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"content-length:", b"transfer-encoding:"))]
    return b"\r\n".join([*lines, b"Content-Length: %d" % len(body)]) + b"\r\n\r\n" + body


def places(value, into=None):
    """All containers of a JSON value with their keys."""
    into = [] if into is None else into
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        into.append((value, key))
        places(value[key], into)
    return into


def any_value(r, depth=0):
    kind = r.randrange(8 if depth < 3 else 5)
    if kind <= 1:
        return r.choice(NUMBERS)
    if kind <= 3:
        return r.choice(STRINGS)
    if kind == 4:
        return r.choice((None, True, False))
    if kind == 5:
        return [any_value(r, depth + 1) for _ in range(r.choice((0, 1, 2, 5, 70)))]
    if kind == 6:
        return {r.choice(FIELDS): any_value(r, depth + 1) for _ in range(r.randrange(4))}
    return [r.randrange(300) for _ in range(r.choice((1, 3, 64, 300, 2047, 2048)))]


def damage_json(r, body, kinds):
    """Returns the body as bytes; None if it is no object."""
    try:
        whole = json.loads(body)
    except ValueError:
        return None
    if not isinstance(whole, dict) or not whole:
        return None
    raw = None
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        container, key = r.choice(places(whole) or [(whole, "unknown")])
        how = r.choice(("value", "value", "near", "near", "remove", "double", "nest", "add", "rename", "swap", "grow", "raw"))
        kinds["json " + how] += 1
        old = container[key] if isinstance(container, list) or key in container else None
        if how == "value":
            container[key] = any_value(r)
        elif how == "near":
            if isinstance(old, bool):
                container[key] = not old
            elif isinstance(old, (int, float)):
                container[key] = r.choice((old + 1, old - 1, -old, old * 2, float(old), str(old), old / 2))
            elif isinstance(old, str):
                at = r.randrange(len(old) + 1)
                container[key] = old[:at] + r.choice(STRINGS) + old[at:]
            else:
                container[key] = [old]
        elif how == "remove":
            del container[key]
        elif how == "double":
            if isinstance(container, list):
                container.insert(key, copy.deepcopy(old))
            else:
                raw = b'"%s":%s,' % (json.dumps(key)[1:-1].encode(), json.dumps(old).encode())
        elif how == "nest":
            for _ in range(r.choice((1, 2, 10, 64))):
                container[key] = r.choice((lambda v: [v], lambda v: {"a": v}))(container[key])
        elif how == "add":
            whole[r.choice(FIELDS)] = any_value(r)
        elif how == "rename" and isinstance(container, dict):
            container[r.choice((*FIELDS, key.upper(), key + " ", ""))] = container.pop(key)
        elif how == "swap":
            other, at = r.choice(places(whole))
            other[at], container[key] = copy.deepcopy(old), copy.deepcopy(other[at])
        elif how == "grow" and isinstance(old, (str, list)):
            container[key] = (old or ["a"]) * r.choice((2, 10, 100))
        elif how == "raw":
            container[key] = "@RAW@"
        if not whole:
            break
    text = json.dumps(whole, ensure_ascii=r.random() < 0.5).encode("utf-8", "surrogatepass").replace(b'"@RAW@"', r.choice(RAW))
    return text[:1] + raw + text[1:] if raw else text


def damage_bytes(r, data, others, kinds):
    for _ in range(r.choice((1, 1, 2, 4, 16))):
        at, length = r.randrange(len(data) + 1), r.choice((1, 1, 2, 8, 100))
        how = r.choice(("flip", "byte", "insert", "remove", "repeat", "cut", "splice"))
        kinds["bytes " + how] += 1
        if how == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ 1 << r.randrange(8)]) + data[at + 1:]
        elif how == "byte":
            data = data[:at] + bytes([r.randrange(256)]) + data[at + 1:]
        elif how == "insert":
            data = data[:at] + r.choice(BYTES) + data[at:]
        elif how == "remove":
            data = data[:at] + data[at + length:]
        elif how == "repeat":
            data = data[:at] + data[at:at + length] * r.choice((2, 3, 50)) + data[at + length:]
        elif how == "cut" and r.random() < 0.3:
            data = data[:at]
        elif how == "splice":
            other = r.choice(others)
            data = data[:at] + other[r.randrange(len(other)):]
    return data


def new_request(r, corpus, kinds):
    """The bytes, and whether they are surely a whole request."""
    data = r.choice(corpus)
    head, _, body = data.partition(b"\r\n\r\n")
    level = r.random()
    if level < 0.1:
        kinds["as it is"] += 1
        return data, True
    if level < 0.6:
        damaged = damage_json(r, body, kinds)
        if damaged is not None:
            return assemble(head, damaged), True
    if level < 0.8 and body:
        return assemble(head, damage_bytes(r, body, corpus, kinds)), True
    return damage_bytes(r, data, corpus, kinds), False


# ---- answers

class Reader:
    """Answers from a socket, as far as they come."""

    def __init__(self, connection):
        self.connection, self.data, self.ended = connection, b"", False

    def more(self, seconds):
        """False: nothing came in that time, or the connection has ended."""
        if self.ended:
            return False
        self.connection.settimeout(max(seconds, 0.001))
        try:
            piece = self.connection.recv(1 << 16)
        except TimeoutError:
            return False
        except OSError:
            piece = b""
        self.ended = not piece
        self.data += piece
        return bool(piece)

    def parse(self):
        """Takes one whole answer: status, headers, body, whether it came in pieces. None: there is none yet."""
        while True:
            head, found, rest = self.data.partition(b"\r\n\r\n")
            if not found:
                return None
            first, *lines = head.split(b"\r\n")
            if not first.startswith(b"HTTP/1.1 ") or not first[9:12].isdigit():
                raise Wrong(f"no answer in HTTP: {first[:100]}")
            if first[9:12] != b"100":
                break
            self.data = rest
        headers = {}
        for line in lines:
            name, found, value = line.partition(b": ")
            if not found or name.lower() in headers:
                raise Wrong(f"a header that is none, or twice: {line[:100]}")
            headers[name.lower()] = value
        status = int(first[9:12])
        if rest.startswith(b"HTTP/1.1 ") or (not rest and self.head):
            self.data = rest
            return status, headers, None
        if b"content-length" in headers:
            length = int(headers[b"content-length"])
            if len(rest) < length:
                return None
            self.data = rest[length:]
            return status, headers, rest[:length]
        if b"transfer-encoding" not in headers:  # to the end of the connection
            if not self.ended:
                return None
            self.data = b""
            return status, headers, rest
        body = b""
        while True:
            line, found, rest = rest.partition(b"\r\n")
            if not found:
                return None
            size = int(line, 16)
            if len(rest) < size + 2:
                return None
            if rest[size:size + 2] != b"\r\n":
                raise Wrong("a chunk without its end")
            body, rest = body + rest[:size], rest[size + 2:]
            if size == 0:
                self.data = rest
                return status, headers, body

    head = False


def check_error(error, status):
    if list(error) != ["message", "type", "param", "code"] or not error["message"] or not isinstance(error["message"], str):
        raise Wrong(f"an error in another shape: {error}")
    if error["type"] != REFUSALS[status] or error["param"] == "" or error["code"] == "":
        raise Wrong(f"an error with a wrong type, or an empty field: {status} {error}")


def check_answer(answer, seen):
    """Counts what it was; raises `Wrong` if it is none of the API's."""
    status, headers, body = answer
    seen[status] += 1
    if status not in (200, *REFUSALS):
        raise Wrong(f"status {status}: {body}")
    if body is None:
        return
    kind = headers[b"content-type"]
    if status != 200:
        if kind != b"application/json":
            raise Wrong(f"an error of type {kind}")
        whole = json.loads(body)
        if list(whole) != ["error"]:
            raise Wrong(f"an error in another shape: {body[:200]}")
        check_error(whole["error"], status)
        if whole["error"]["param"]:
            seen["for a field"] += 1
        if whole["error"]["code"]:
            seen[whole["error"]["code"]] += 1
        if status == 405 and b"allow" not in headers:
            raise Wrong("405 without Allow")
    elif kind == b"text/event-stream":
        events = body.decode("utf-8").split("\n\n")
        if events[-2:] != ["data: [DONE]", ""]:
            raise Wrong(f"a stream without its end: {body[-200:]}")
        for event in events[:-2]:
            if not event.startswith("data: ") or not isinstance(json.loads(event[6:])["choices"], list):
                raise Wrong(f"no event: {event[:200]}")
        seen["streams"] += 1
    elif kind == b"application/json":
        whole = json.loads(body)
        if "choices" in whole:
            for i, choice in enumerate(whole["choices"]):
                if choice["index"] != i or choice["finish_reason"] not in ("stop", "length"):
                    raise Wrong(f"no choice: {choice}")
            seen["answers"] += 1
        elif not {"tokens", "data", "id", "status"} & whole.keys():
            raise Wrong(f"no answer of the API: {body[:200]}")


# ---- the client

class Client:
    """Sends damaged requests, one after another."""

    def __init__(self, server, corpus, seen, kinds):
        self.server, self.corpus, self.seen, self.kinds = server, corpus, seen, kinds
        self.sent = []  # the bytes of the last connections
        self.failure = None

    def run(self, r, count):
        try:
            for _ in range(count):
                data, whole = new_request(r, self.corpus, self.kinds)
                self.sent = self.sent[-3:] + [data]
                self.one(r, data, whole)
        except Wrong as e:
            self.failure = f"{e}\nfor {self.sent[-1][:2000]!r}"
        except Exception as e:  # the server's end is noticed by who started this
            self.failure = f"{type(e).__name__}: {e}\nfor {self.sent[-1][:2000]!r}"

    def one(self, r, data, whole):
        how = r.choice(("whole", "whole", "whole", "whole", "pieces", "slow", "half", "pipelined", "left", "shut"))
        self.kinds["sent " + how] += 1
        self.seen["connections"] += 1
        expected = 1
        if how == "pipelined":
            for _ in range(r.choice((1, 2, 5))):
                more, other = new_request(r, self.corpus, self.kinds)
                data, whole, expected = data + more, whole and other, expected + 1
            self.sent[-1] = data
        with self.server.connect() as connection:
            try:
                if how in ("pieces", "slow"):
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    cuts = sorted(r.randrange(len(data) + 1) for _ in range(r.choice((1, 2, 7))))
                    for begin, end in zip([0, *cuts], [*cuts, len(data)]):
                        connection.sendall(data[begin:end])
                        if how == "slow":
                            time.sleep(r.choice((0, 0.001, 0.02)))
                elif how == "half":
                    connection.sendall(data[:r.randrange(len(data) + 1)])
                    return
                else:
                    connection.sendall(data)
                if how == "left":
                    time.sleep(r.choice((0, 0.001, 0.01, 0.05)))
                    return
                if how == "shut":
                    connection.shutdown(socket.SHUT_WR)
            except OSError:  # refused before all was sent
                self.seen["cut off while sending"] += 1
            self.listen(connection, data, expected if whole else 1, 3 if whole and b"/events" not in data else 0.3, how != "shut")

    def listen(self, connection, data, expected, patience, to_the_end=True):
        reader, got = Reader(connection), 0
        reader.head = data.startswith(b"HEAD ") and expected == 1
        end = time.monotonic() + patience
        while True:
            while (answer := reader.parse()) is not None:
                got += 1
                check_answer(answer, self.seen)
                if got >= expected:
                    end = min(end, time.monotonic() + 0.01)
            if not reader.more(end - time.monotonic()):
                break
        # One that ends with its connection. Who has shut down sending counts as gone, and may get a part of it.
        if to_the_end and (answer := reader.parse()) is not None:
            got += 1
            check_answer(answer, self.seen)
        if reader.ended and reader.data and to_the_end and b"HEAD " not in data:
            raise Wrong(f"cut off in mid answer: {reader.data[:200]}")
        if got == 0:
            self.seen["closed without an answer" if reader.ended else "not waited for any longer"] += 1


# ---- the run

class Run:
    def __init__(self, seconds, seed):
        self.seed, self.end = seed, time.monotonic() + seconds
        self.names = sorted(os.listdir(CORPUS))
        self.corpus = [open(os.path.join(CORPUS, name), "rb").read() for name in self.names]
        self.seen, self.kinds = collections.Counter(), collections.Counter()
        self.checks = 0

    def reference(self, server):
        return (server.complete("the town and the other", max_tokens=24)["choices"][0]["text"],
                server.post("/v1/chat/completions", {"messages": [{"role": "user", "content": "How many geese?"}], "max_tokens": 16, "temperature": 0})["choices"][0]["message"])

    def check(self, server, wanted):
        """Nothing is left of the requests so far, and the answers are the same."""
        support.check_books(server.idle())
        got = self.reference(server)
        assert got == wanted, f"the answer has changed: {got} was {wanted}"
        self.checks += 1

    def keep_killers(self, clients):
        """Finds out which of the last requests end a server, and keeps them; all, if it is none alone."""
        last = [data for client in clients for data in client.sent]
        killers = []
        for data in last:
            try:
                with Server(*SERVER) as server:
                    with server.connect() as connection:
                        connection.sendall(data)
                        Reader(connection).more(2)
                    self.reference(server)
            except (AssertionError, OSError):
                killers.append(data)
        number = 1
        for data in killers or last:
            while os.path.exists(path := os.path.join(CORPUS, f"crash-{number}.http")):
                number += 1
            with open(path, "wb") as file:
                file.write(data)
            print("kept", path)

    def round(self, server, number):
        clients = [Client(server, self.corpus, collections.Counter(), collections.Counter()) for _ in range(THREADS)]
        threads = [threading.Thread(target=c.run, args=(random.Random(f"{self.seed} {number} {i}"), PER_ROUND)) for i, c in enumerate(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for client in clients:
            self.seen += client.seen
            self.kinds += client.kinds
        ended = server.process.poll()
        if ended is not None:
            self.keep_killers(clients)
            raise AssertionError(f"round {number}: the server ended with {ended}: {server.said()[-3000:]}")
        for client in clients:
            assert client.failure is None, f"round {number}: {client.failure}"

    def undamaged(self, server):
        for name, data in zip(self.names, self.corpus):
            client = Client(server, [data], collections.Counter(), collections.Counter())
            with server.connect() as connection:
                connection.sendall(data)
                client.listen(connection, data, 1, 1 if name.startswith("events") else 30)
            assert server.process.poll() is None, f"{name} ends the server"
            assert name.startswith(("crash-", "events")) or any(isinstance(s, int) for s in client.seen), f"{name} has no answer: {client.seen}"

    def all(self):
        with Server(*SERVER) as server:
            wanted = self.reference(server)
            self.undamaged(server)
            self.check(server, wanted)
            files, memory, number = server.files(), 0, 0
            while time.monotonic() < self.end or number < 4:
                number += 1
                self.round(server, number)
                self.check(server, wanted)
                if number == 3:
                    memory = server.rss()
            metrics = server.idle()
            wait_until(lambda: server.files() <= files, "all connections are closed")
            grown = server.rss() - memory
            assert grown < GROWTH, f"{grown} bytes of memory more than after the third round"
            for series in ('kvstem_choices_total{outcome="stop"}', 'kvstem_choices_total{outcome="length"}', 'kvstem_choices_total{outcome="cancelled"}',
                           'kvstem_choices_total{outcome="refused"}'):
                assert metrics[series] > 0, f"no {series}"
            assert metrics.get('kvstem_choices_total{outcome="failed"}', 0) == 0, "choices failed"
        self.report(number, grown)

    def report(self, rounds, grown):
        print(f"{rounds} rounds of {THREADS * PER_ROUND} connections, {self.checks} times the same answers, memory grew by {grown >> 20} MiB")
        for title, counts in (("what came back", self.seen), ("what was done", self.kinds)):
            print(title)
            for name, count in sorted(counts.items(), key=lambda item: -item[1]):
                print(f"  {count:7} {name}")
        seen, connections = self.seen, self.seen["connections"]
        answered = sum(count for status, count in seen.items() if isinstance(status, int))
        assert answered > connections * 0.5, "most connections brought no answer"
        assert seen[200] > 60 and seen[200] > answered * 0.1, "too few requests were accepted"
        assert seen["answers"] > 30 and seen["streams"] > 10, "too few completions"
        assert seen["for a field"] > 60 and seen["for a field"] > answered * 0.1, "too few requests were refused for a field"
        assert seen["context_length_exceeded"] > 3 and seen["model_not_found"] > 3, "too few were refused for the context, or the model"
        assert seen["not waited for any longer"] < connections * 0.2, "too many answers took too long"


def main():
    seed = int(os.environ.get("KVSTEM_SEED") or random.SystemRandom().randrange(2**32))
    print(f"KVSTEM_SEED={seed}", flush=True)
    Run(float(sys.argv[1]) if len(sys.argv) > 1 else 60, seed).all()


if __name__ == "__main__":
    main()
