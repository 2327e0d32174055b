#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""Whatever is sent: an answer in the API's shape, no crash, no hang, and the same text as before to whom comes next."""
import itertools
import json
import os
import re
import select
import socket
import subprocess
import threading
import unittest

import support
from support import SERVER, Server, wait_until

COMPLETIONS, CHAT, TOKENIZE = "/v1/completions", "/v1/chat/completions", "/tokenize"
USER = [{"role": "user", "content": "hello"}]
VALID = {COMPLETIONS: {"prompt": [5, 6, 7], "max_tokens": 1}, CHAT: {"messages": USER, "max_tokens": 1}, TOKENIZE: {"content": "hello"}}
TYPES = {401: "authentication_error", 429: "rate_limit_error", 503: "server_error", 504: "server_error"}
BODY = b'{"prompt":[5,6],"max_tokens":1}'
END = b"Connection: close\r\n\r\n"


def post(path=COMPLETIONS, *lines, body=b"", length=True):
    """A request as bytes, of these header lines."""
    lines = [f"POST {path} HTTP/1.1", "Host: here", *lines] + ([f"Content-Length: {len(body)}"] if length else [])
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def chunks(body, size=1 << 16):
    return b"".join(b"%x\r\n%s\r\n" % (len(body[i:i + size]), body[i:i + size]) for i in range(0, len(body), size)) + b"0\r\n\r\n"


class Answer:
    def __init__(self, file, head=False):
        """Reads one; `status` is None where the connection ended instead."""
        line = file.readline()
        self.status = None
        if not line:
            return
        self.status = int(re.fullmatch(rb"HTTP/1\.1 (\d{3}) [^\r\n]*\r\n", line).group(1))
        self.headers = {}
        while (line := file.readline()) != b"\r\n":
            name, value = line.decode("latin-1").rstrip("\r\n").split(": ", 1)
            self.headers[name.lower()] = value
        if self.status == 100:
            self.__init__(file, head)
            return
        if "content-length" not in self.headers:
            self.body = b"".join(iter(lambda: self.chunk(file), b""))
        else:
            self.body = b"" if head else file.read(int(self.headers["content-length"]))

    @staticmethod
    def chunk(file):
        piece = file.read(int(file.readline(), 16) + 2)
        return piece[:-2]


def talk(server, data, answers=1, shut=False, head=False):
    """Sends these bytes; returns as many answers."""
    with server.connect() as connection, connection.makefile("rb") as file:
        connection.sendall(data)
        if shut:
            connection.shutdown(socket.SHUT_WR)
        got = [Answer(file, head) for _ in range(answers)]
    return got if answers > 1 else got[0]


class OnOneServer(unittest.TestCase):
    """All tests of a class share a server; after each it is asked what it was asked at the beginning."""
    arguments, model, key = (), support.TINY, None

    @classmethod
    def setUpClass(cls):
        cls.server = Server(*cls.arguments, model=cls.model)
        cls.reference = cls.ask()
        cls.files = cls.idle_files()

    @classmethod
    def tearDownClass(cls):
        wait_until(lambda: cls.server.files() <= cls.files, "all connections are closed")
        support.check_books(cls.server.metrics(cls.key))
        cls.server.__exit__(None, None, None)

    @classmethod
    def ask(cls):
        answer = cls.server.complete("the town and the other", cls.key, max_tokens=16)
        return answer["choices"][0]["text"], answer["usage"]["prompt_tokens"]

    @classmethod
    def idle_files(cls):
        cls.idle()
        return cls.server.files()

    @classmethod
    def idle(cls):
        def still():
            m = cls.server.metrics(cls.key)
            return m.get("kvstem_running", 0) == m.get("kvstem_waiting", 0) == 0
        wait_until(still, "nothing runs or waits")

    def tearDown(self):
        self.idle()
        self.assertEqual(self.ask(), self.reference)

    def error(self, status, headers, body, expected, param=any, code=any):
        """That this answer is an error in the API's shape."""
        self.assertEqual(status, expected, body[:300])
        self.assertEqual(headers["content-type"], "application/json")
        whole = json.loads(body)
        self.assertEqual(list(whole), ["error"])
        error = whole["error"]
        self.assertEqual(list(error), ["message", "type", "param", "code"])
        self.assertIsInstance(error["message"], str)
        self.assertGreater(len(error["message"].split()), 2, error)
        self.assertLess(len(error["message"]), 1000)
        self.assertEqual(error["type"], TYPES.get(status, "invalid_request_error"))
        for name, wanted in (("param", param), ("code", code)):
            self.assertIsInstance(error[name], (str, type(None)))
            self.assertNotEqual(error[name], "")
            if wanted is not any:
                self.assertEqual(error[name], wanted, error)
        return error

    def refused(self, path, body, status=400, method="POST", key=None, **expected):
        if isinstance(body, (dict, list)):
            body = json.dumps(body)
        got, headers, answer = self.server.request(method, path, body, key or self.key)
        error = self.error(got, {k.lower(): v for k, v in headers.items()}, answer, status, **expected)
        return error

    def refused_bytes(self, data, status=400, **expected):
        answer = talk(self.server, data)
        return self.error(answer.status, answer.headers, answer.body, status, **expected)

    def accepted(self, data):
        answer = talk(self.server, data)
        self.assertEqual(answer.status, 200, answer.body)
        return answer

    def complete(self, prompt, **fields):
        """Checks the shape of an answer, and that no choice is missing."""
        answer = self.server.complete(prompt, self.key, **fields)
        many = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
        choices = answer["choices"]
        self.assertEqual([c["index"] for c in choices], list(range(many * fields.get("n", 1))))
        for choice in choices:
            self.assertIn(choice["finish_reason"], ("stop", "length"))
        return answer

    def context(self):
        return int(re.search(r"context is (\d+) tokens", self.refused(COMPLETIONS, {"prompt": [5], "max_tokens": 2**31 - 1})["message"])[1])


class Fields(OnOneServer):
    def test_what_is_no_json_is_refused(self):
        for path, body in itertools.product(VALID, (
                "", " ", "{", "}", "nul", "[]", "1", "null", '"text"', "{}{}", '{"prompt":}', '{"prompt":"a",}', "{'prompt':'a'}",
                '{"prompt":"a"} x', '\ufeff{"prompt":"a"}'.encode("utf-16"), '{"prompt":"a\n"}', '{"prompt":"\\x"}', '{"prompt":"\\ud800"}',
                '{"prompt":01}', "{\"prompt\":\"a\"\0}", "\0", '{"prompt":"a" /* b */}', '{"a":1,"a":1}', '{prompt:"a"}', '{"prompt":tru}')):
            with self.subTest(path=path, body=body):
                self.refused(path, body, param=None)

    def test_the_message_for_what_is_no_json_quotes_little(self):
        self.assertLess(len(self.refused(COMPLETIONS, '{"' + "x" * 100000 + '":1,"' + "x" * 100000 + '":1}')["message"]), 300)

    def test_wrong_types_are_refused_with_the_name_of_the_field(self):
        numbers, others = ["1", True, [], {}, [1]], [True, 1, {}, []]
        common = {
            "model": others, "n": [*numbers, 1.5, 0, -1, 2**31, 2**64, -2**63], "max_tokens": [*numbers, 0.5, 0, -1, -2**63, 2**31, 2**63, 2**64, 1e300],
            "temperature": [*numbers, -1, 2.1, 1e300, -1e300], "top_p": [*numbers, -0.1, 1.1, 1e300], "seed": ["1", True, [], {}, 1.5, 2**64, -2**63 - 1],
            "stop": [1, True, {}, [], [1], ["a", None], "", [""], "x" * 257, ["a"] * 17, [["a"]]], "stream": [1, 0, "true", [], {}],
            "stream_options": [1, "a", [], True, {"include_usage": True}], "ignore_eos": [1, "true", []],
        }
        paths = {
            COMPLETIONS: common | {"prompt": [None, True, 1, 1.5, {}, [], "", [""], [[]], [None], [True], [{}], ["a", 1], [1, "a"], [[1], "a"], ["a", [1]],
                                              [[1], [[1]]], [[[1]]], ["a", ""], [[1], []], [1, None], [1, [1]], ["a"] * 65, [[1]] * 65]},
            CHAT: common | {"messages": [None, True, 1, "a", {}, []], "max_completion_tokens": [*numbers, 0, -1, 2**31]},
            TOKENIZE: {"content": [True, 1, [], {}, ["a"]], "add_special": [1, "true", []], "parse_special": [1, "true", []]},
        }
        for path, table in paths.items():
            for field, values in table.items():
                for value in values:
                    with self.subTest(path=path, field=field, value=str(value)[:40]):
                        self.assertIn(field, self.refused(path, VALID[path] | {field: value}, param=field)["message"])
        for path in (COMPLETIONS, CHAT):
            self.refused(path, VALID[path] | {"stream": True, "stream_options": {"include_usage": 1}}, param="stream_options.include_usage")
        self.refused(COMPLETIONS, {}, param="prompt")
        self.refused(CHAT, {}, param="messages")
        self.refused(TOKENIZE, {}, param="content")

    def test_wrong_messages_are_refused_with_their_place(self):
        for message, at in ((1, ""), (None, ""), ("hello", ""), ([], ""), ({}, ".role"), ({"role": 1, "content": "a"}, ".role"),
                            ({"role": "wizard", "content": "a"}, ".role"), ({"role": "tool", "content": "a"}, ".role"), ({"role": "function", "content": "a"}, ".role"),
                            ({"role": "User", "content": "a"}, ".role"), ({"role": "", "content": "a"}, ".role"), ({"role": "user"}, ".content"),
                            ({"role": "user", "content": None}, ".content"), ({"role": "user", "content": 1}, ".content"), ({"role": "user", "content": {}}, ".content"),
                            ({"role": "user", "content": [1]}, ".content[0]"), ({"role": "user", "content": [{}]}, ".content[0]"),
                            ({"role": "user", "content": [{"type": 1}]}, ".content[0]"), ({"role": "user", "content": [{"type": "text"}]}, ".content[0]"),
                            ({"role": "user", "content": [{"type": "text", "text": 1}]}, ".content[0]"),
                            ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "a"}}]}, ".content[1]"),
                            ({"role": "assistant", "content": "a", "tool_calls": [{}]}, ".tool_calls"), ({"role": "assistant", "function_call": {}}, ".function_call")):
            with self.subTest(message=message):
                self.refused(CHAT, {"messages": [*USER, message]}, param="messages[1]" + at)

    def test_unknown_models_are_not_found(self):
        for name in ("gpt-9", "", "LLAMA", "llama\0", "x" * 10000, "../llama", "\u202e", self.server.model + " "):
            for path in (COMPLETIONS, CHAT):
                self.assertIn(self.server.model, self.refused(path, VALID[path] | {"model": name}, 404, param="model", code="model_not_found")["message"])
        for name in ("gpt-9", "..", "%256clama", "", "llama/", "llama/x", "%00", "%ff"):
            self.refused("/v1/models/" + name, None, 404, method="GET", param="model", code="model_not_found")

    def test_what_is_not_supported_is_refused_and_not_ignored(self):
        for path in (COMPLETIONS, CHAT):
            for field, value in {
                    "tools": [{"type": "function"}], "tool_choice": "required", "functions": [{}], "function_call": {"name": "f"}, "response_format": {"type": "json_object"},
                    "logprobs": True, "top_logprobs": 5, "logit_bias": {"5": -100}, "presence_penalty": 0.5, "frequency_penalty": -1, "best_of": 2, "echo": True,
                    "suffix": "end", "modalities": ["audio"], "audio": {}, "prediction": {}, "web_search_options": {}, "top_k": 40, "min_p": 0.1, "typical_p": 0.5,
                    "repetition_penalty": 1.1, "repeat_penalty": 1.1, "mirostat": 2, "grammar": "root ::= a", "json_schema": {}, "guided_json": {}, "n_probs": 3}.items():
                with self.subTest(path=path, field=field):
                    self.assertIn(field, self.refused(path, VALID[path] | {field: value}, param=field)["message"])
                    self.refused(path, VALID[path] | {field: [[value]]}, param=field)

    def test_deep_nesting_is_refused(self):
        for depth in (65, 1000, 100000):
            for opening, closing in (("[", "]"), ('{"a":', "}")):
                deep = opening * depth + "1" + closing * depth
                for path in VALID:
                    self.assertIn("nested", self.refused(path, deep)["message"])
                    self.refused(path, '{"unknown":' + deep + "}")
                    self.refused(path, '{"prompt":' + opening * depth)
                self.refused(CHAT, '{"messages":[{"role":"user","content":' + deep + "}]}")

    def test_numbers_that_are_none_are_refused(self):
        for field in ("temperature", "top_p", "max_tokens", "n", "seed"):
            for number in ("NaN", "nan", "Infinity", "-Infinity", "inf", "1e999", "-1e999", "1e", "+1", ".5", "5.", "0x10", "1_000", "--1", "9" * 400):
                self.refused(COMPLETIONS, '{"prompt":[5],"max_tokens":1,"%s":%s}' % (field, number))

    def test_too_many_choices_are_refused(self):
        for n in (65, 1000, 2**31 - 1):
            self.refused(COMPLETIONS, VALID[COMPLETIONS] | {"n": n}, param="n")
            self.refused(CHAT, VALID[CHAT] | {"n": n}, param="n")
        for prompts, n in ((2, 33), (33, 2), (64, 2), (64, 2**31 - 1)):
            self.refused(COMPLETIONS, {"prompt": [[5]] * prompts, "n": n, "max_tokens": 1}, param="n")
        self.assertEqual(len(self.complete([[5, 6]] * 64, max_tokens=2)["choices"]), 64)
        self.complete([[5, 6]] * 32, n=2, max_tokens=2)

    def test_what_the_context_cannot_hold_is_refused(self):
        most, code = self.context(), "context_length_exceeded"
        long = support.words(most, "long")
        for body in ({"prompt": long}, {"prompt": long, "max_tokens": 1}, {"prompt": long[:-1], "max_tokens": 2}, {"prompt": [5], "max_tokens": most},
                     {"prompt": long * 4}, {"prompt": "the town " * most}, {"prompt": "x" * 900000}, {"prompt": [[5], long], "max_tokens": 1},
                     {"prompt": [5], "max_tokens": 2**31 - 1}, {"prompt": "hello", "max_tokens": most, "n": 4, "stream": True}):
            self.refused(COMPLETIONS, body, code=code)
        for body in ({"messages": [{"role": "user", "content": "the town " * most}]}, {"messages": USER, "max_tokens": most}, {"messages": USER * most, "max_tokens": 1},
                     {"messages": USER, "max_completion_tokens": 2**31 - 1}):
            self.refused(CHAT, body, code=code)

    def test_a_prompt_and_its_answer_may_fill_the_context_exactly(self):
        most = self.context()
        self.complete(support.words(most - 1, "full"), max_tokens=1)
        answer = self.complete(support.words(most - 20, "full"), max_tokens=20, n=3, ignore_eos=True, temperature=1)
        self.assertEqual(answer["usage"]["completion_tokens"], 60)
        self.complete(support.words(most - 5, "rest"), max_tokens=None)

    def test_a_prompt_longer_than_a_batch_is_computed(self):
        for tokens in (63, 64, 65, 127, 128, 129, 511, 512, 513, 2049, 4000):
            self.complete(support.words(tokens, f"batch {tokens}"), max_tokens=2)

    def test_token_ids_outside_the_vocabulary_are_refused(self):
        for token in (-1, -2**31, -2**63, -2**63 - 1, 2**31 - 1, 2**31, 2**32, 2**32 + 5, 2**63, 2**64, 2**64 + 5, 100000, 1.5, 5.0, 1e300, True, False, None, "5"):
            for prompt in ([token] if token != "5" else [5, token, 5], [5, token], [[5], [token]], [[5, token]]):
                with self.subTest(prompt=prompt):
                    self.refused(COMPLETIONS, {"prompt": prompt, "max_tokens": 1}, param="prompt")
        refused = [i for i in range(0, 100000, 97) if self.server.request("POST", COMPLETIONS, {"prompt": [i], "max_tokens": 1})[0] == 400][:1]
        first = refused[0]
        while self.server.request("POST", COMPLETIONS, {"prompt": [first - 1], "max_tokens": 1})[0] == 400:
            first -= 1
        self.assertIn(str(first), self.refused(COMPLETIONS, {"prompt": [first], "max_tokens": 1}, param="prompt")["message"])
        for token in range(first):
            if token < 300 or token > first - 8:
                self.complete([token], max_tokens=1)

    def test_a_prompt_without_tokens_is_refused_or_has_one(self):
        for prompt in ("", [], [""], [[]]):
            self.refused(COMPLETIONS, {"prompt": prompt}, param="prompt")
        for prompt in (" ", "\n", "\0", "\u200b", "<s>", "</s>", "<|im_start|>", "<|im_end|>" * 50, "<s></s><unk>", "\ufeff"):
            for fields in ({}, {"ignore_eos": True}, {"n": 2}):
                self.complete(prompt, **fields)
        for content in ("", " ", "<|im_end|>", []):
            for role in ("system", "user", "assistant"):
                self.server.post(CHAT, {"messages": [{"role": role, "content": content}], "max_tokens": 2})
        self.server.post(CHAT, {"messages": [{"role": "assistant"}], "max_tokens": 2})
        self.refused(CHAT, {"messages": []}, param="messages")
        self.assertEqual(self.server.post(TOKENIZE, {"content": ""}), {"tokens": []})

    def test_no_text_of_a_chat_is_left_out(self):
        # Whatever the bytes: refused, or longer than without them.
        def tokens(content):
            status, _, body = self.server.request("POST", CHAT, {"messages": [{"role": "user", "content": content}], "max_tokens": 1})
            self.assertIn(status, (200, 400), body)
            return json.loads(body)["usage"]["prompt_tokens"] if status == 200 else None
        short = tokens("a")
        for between in ("\0", "\x01", "\x7f", "\ufffe", "\U0010ffff", "\r", "\u2028"):
            with self.subTest(between=between):
                long = tokens("a" + between + "the town and the other town and the river")
                self.assertTrue(long is None or long > short, (long, short))

    def test_a_sampler_takes_every_number_that_is_allowed(self):
        prompt = support.words(20, "sampler")
        greedy = self.complete(prompt)["choices"][0]["text"]
        for temperature, top_p in itertools.product((0, 5e-324, 1e-45, 1e-40, 1e-38, 1e-30, 0.5, 1.9999999, 2), (0, 5e-324, 1e-46, 1e-38, 1e-30, 0.5, 1)):
            for fields in ({"max_tokens": 1}, {"max_tokens": 8, "n": 3}):
                answer = self.complete(prompt, temperature=temperature, top_p=top_p, seed=1, **fields)
                if (temperature <= 1e-30 or top_p <= 1e-30) and fields["max_tokens"] == 8:
                    with self.subTest(temperature=temperature, top_p=top_p):
                        self.assertEqual({c["text"] for c in answer["choices"]}, {greedy})

    def test_a_seed_of_any_integer_repeats_its_answer(self):
        prompt, texts = support.words(20, "seeds"), {}
        for seed in (0, 1, -1, 2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1, -2**63, -2**31):
            for _ in range(2):
                answer = self.complete(prompt, temperature=2, seed=seed, n=3, max_tokens=10)
                text = tuple(c["text"] for c in answer["choices"])
                with self.subTest(seed=seed):
                    self.assertEqual(texts.setdefault(seed & 0xffffffff, text), text)

    def test_many_choices_of_one_token_each(self):
        for fields in ({"n": 64}, {"n": 64, "temperature": 2}, {"n": 5, "stop": ["a"]}, {"n": 64, "temperature": 1, "seed": 2**32 - 1}):
            self.complete([5, 6, 7], **{"max_tokens": 1} | fields)

    def test_invalid_utf8_is_refused(self):
        for bad in (b"\xff", b"\xc3", b"\x80", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xe2\x82"):
            for path, body in ((TOKENIZE, b'{"content":"a%sb"}'), (COMPLETIONS, b'{"prompt":"a%sb"}'), (COMPLETIONS, b'{"prompt":"a","stop":"%s"}'),
                               (COMPLETIONS, b'{"prompt":"a","model":"%s"}'), (COMPLETIONS, b'{"prompt":"a","%s":1}'), (COMPLETIONS, b'{"prompt":"a"}%s'),
                               (CHAT, b'{"messages":[{"role":"user","content":"%s"}]}'), (CHAT, b'{"messages":[{"role":"%s","content":"a"}]}')):
                self.refused(path, body % bad)

    def test_output_that_is_no_utf8_is_still_an_answer_in_utf8(self):
        # The tiny model says bytes without sense.
        seen = ""
        for seed in range(6):
            for stream in (False, True):
                body = {"prompt": support.words(10, seed), "max_tokens": 60, "temperature": 2, "seed": seed, "n": 2, "stream": stream, "ignore_eos": True}
                status, _, answer = self.server.request("POST", COMPLETIONS, body)
                self.assertEqual(status, 200)
                seen += answer.decode("utf-8")
        self.assertIn("\ufffd", seen)


class Text(OnOneServer):
    arguments = ("--max-body", "8MiB")

    def test_a_megabyte_of_any_text_is_tokenized_or_refused(self):
        size = 1 << 20
        for text in ("a", " ", "7", "\n", "\U0001f600", "</s>", "ab ", "é", "\0", "'s", "\u200d\U0001f469", "!", "\u4e2d", "a\u0301", "</"):
            text *= size // len(text.encode())
            with self.subTest(text=text[:12]):
                tokens = self.server.post(TOKENIZE, {"content": text})["tokens"]
                self.assertGreater(len(tokens), 100)
                self.assertTrue(all(isinstance(t, int) and t >= 0 for t in tokens))
                self.refused(COMPLETIONS, {"prompt": text, "max_tokens": 1}, code="context_length_exceeded")
                if text[0] == "\0":
                    self.refused(CHAT, {"messages": [{"role": "user", "content": text}], "max_tokens": 1})
                else:
                    self.refused(CHAT, {"messages": [{"role": "user", "content": text}], "max_tokens": 1}, code="context_length_exceeded")
                self.complete(text[:200], max_tokens=1)

    def test_a_megabyte_of_special_tokens_is_tokenized_or_refused(self):
        for text in ("<|im_start|>", "<|im_end|>", "<|im_start|>a"):
            text *= (1 << 20) // len(text)
            status, headers, body = self.server.request("POST", TOKENIZE, {"content": text})
            if status == 200:
                self.assertGreater(len(json.loads(body)["tokens"]), 10000)
            else:
                self.error(status, {k.lower(): v for k, v in headers.items()}, body, 400)
            self.refused(COMPLETIONS, {"prompt": text, "max_tokens": 1}, code="context_length_exceeded")
            self.assertGreater(len(self.server.post(TOKENIZE, {"content": text, "parse_special": False})["tokens"]), 100000)
        self.complete("<|im_start|>" * 1000 if self.model == support.TINY else "<|im_start|>" * 50, max_tokens=1)

    def test_a_stop_string_may_be_any_text(self):
        for stop in ("\0", "\U0001f600" * 60, "a" * 256, "\ufffd", [" ", "\n", "\ufffd\ufffd"], ["ab" * i for i in range(1, 17)]):
            self.complete([5, 6, 7], stop=stop, max_tokens=30, temperature=1.5, n=2, ignore_eos=True)


class TextOfARealModel(Text):
    model = support.SMOL
    arguments = ("--max-body", "8MiB", "--slots", "2")

    test_a_stop_string_may_be_any_text = None


class Connections(OnOneServer):
    def test_a_body_of_a_hundred_megabytes_is_refused_by_its_length(self):
        with self.server.connect() as connection, connection.makefile("rb") as file:
            connection.sendall(post(length=False)[:-2] + b"Content-Length: 104857600\r\n\r\n")
            answer = Answer(file)
            self.error(answer.status, answer.headers, answer.body, 413)
            self.assertEqual(answer.headers["connection"], "close")
            self.assertEqual(file.read(), b"")

    def send_while_it_is_taken(self, data):
        """Sends 100 MB and reads the answer as soon as there is one; what comes after that may be cut off."""
        with self.server.connect() as connection, connection.makefile("rb") as file:
            view, answer = memoryview(data), None
            while len(view) > 0:
                readable, writable, _ = select.select([connection] if answer is None else [], [connection], [], 60)
                if readable:
                    answer = Answer(file)
                try:
                    if writable:
                        view = view[connection.send(view[:1 << 16]):]
                except OSError:
                    break
            return answer or Answer(file)

    def test_a_body_of_a_hundred_megabytes_that_comes_is_refused_and_not_kept(self):
        text = b'{"prompt":"' + b"a" * (100 << 20) + b'"}'
        before = self.server.rss()
        for data in (post(body=text), post(COMPLETIONS, "Transfer-Encoding: chunked", length=False) + chunks(text, 1 << 20), post(TOKENIZE, "Expect: 100-continue", body=text)):
            answer = self.send_while_it_is_taken(data)
            self.error(answer.status, answer.headers, answer.body, 413)
        self.assertLess(self.server.rss() - before, 64 << 20)

    def test_paths_that_are_not_there(self):
        for path in ("//", "/v1", "/v1/", "/v2/models", "/v1/completions/", "/v1/../health", "/health/..", "/../../etc/passwd", "//health", "/%68ealth", "/health%00",
                     "/%2e%2e/health", "/v1/completions%20", "/%", "/%zz", "/%ff%fe", "/\xe4\xff", "/health;a=b", "/" + "a" * 8000, "*", "/v1/embeddings"):
            for method in ("GET", "POST", "OPTIONS"):
                self.refused_bytes(f"{method} {path} HTTP/1.1\r\n".encode("latin-1") + END, 404)
        for path in ("/health?", "/health?a=b&c=%00", "/health?\xff", "http://here/health", "http://here:1/health?x"):
            self.accepted(f"GET {path} HTTP/1.1\r\n".encode("latin-1") + END)

    def test_wrong_methods_are_told_the_right_one(self):
        for path, right in (("/health", "GET"), ("/metrics", "GET"), ("/v1/models", "GET"), ("/v1/models/llama", "GET"), (COMPLETIONS, "POST"), (CHAT, "POST"), (TOKENIZE, "POST")):
            for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "FOO", "X" * 1000):
                if method != right:
                    answer = talk(self.server, f"{method} {path} HTTP/1.1\r\n".encode() + END)
                    self.assertIn(right, self.error(answer.status, answer.headers, answer.body, 405)["message"])
                    self.assertIn(right, answer.headers["allow"])
            answer = talk(self.server, f"HEAD {path} HTTP/1.1\r\n".encode() + END, head=True)
            self.assertEqual(answer.status, 200 if right == "GET" else 405)

    def test_lines_that_are_no_http_are_refused(self):
        for line in ("GET /health", "GET", "hello", "GET  /health HTTP/1.1", "GET /hea lth HTTP/1.1", "GET /health HTTP/2.0", "GET /health HTTP/1.2", "GET /health HTTP/1",
                     "GET /health HTTP/11", "GET /health http/1.1", "GET /health HTTP/1.1 ", " GET /health HTTP/1.1", "GET\t/health HTTP/1.1", "GET /hea\0lth HTTP/1.1",
                     "G\0T /health HTTP/1.1", "\0", "\xff\xfe", "\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03", "PRI * HTTP/2.0", "GET /health FTP/1.1", "G\xe4T / HTTP/1.1", "HTTP/1.1 200 OK",
                     "GET /health\x7f HTTP/1.1", "(): / HTTP/1.1"):
            with self.subTest(line=line):
                self.refused_bytes(line.encode("latin-1") + b"\r\n" + END)
        for data in (b"GET /health\n" + b"\n", b"GET /health HTTP/1.1\nHost: here\nConnection: close\n\n", b"GET /health\r\n\r\n"):
            self.refused_bytes(data)

    def test_headers_that_are_none_are_refused(self):
        for line in ("Host : here", "Host", ": here", "Ho\0st: a", "Host: a\0b", "Host: a\x7fb", "Ho st: a", "Hö: a", "\0", "Host: a\rb", "(Host): a"):
            with self.subTest(line=line):
                self.refused_bytes(b"GET /health HTTP/1.1\r\n" + line.encode("latin-1") + b"\r\n" + END)
        self.refused_bytes(b"GET /health HTTP/1.1\r\n Host: here\r\n" + END)
        for line in ("Host:", "A: \xe4\xff", "A:\t b \t", "Accept: " + "a," * 2000, "Content-Type: text/nonsense", "Expect: nonsense", "Upgrade: websocket"):
            self.accepted(b"GET /health HTTP/1.1\r\n" + line.encode("latin-1") + b"\r\n" + END)

    def test_huge_headers_are_refused(self):
        for data in (b"A: " + b"a" * 20000 + b"\r\n", b"A: a\r\n" * 5000, b"a" * 20000, b"A: a\r\n " + b" " * 20000, b"Authorization: Bearer " + b"k" * 100000 + b"\r\n"):
            self.refused_bytes(b"GET /health HTTP/1.1\r\n" + data + END, 431)
        self.refused_bytes(b"GET /" + b"a" * 20000 + b" HTTP/1.1\r\n" + END, 431)
        self.refused_bytes(b"G" * 20000, 431)
        self.refused_bytes(post(COMPLETIONS, "Transfer-Encoding: chunked", length=False) + b"2;" + b"a" * 20000, 431)

    def test_lengths_that_are_none_are_refused(self):
        for value in ("-1", "+31", "0x1f", "31a", "", "1e1", "3 1", "31.0", "18446744073709551616", "9" * 100, "31, 32", "31\0", "\xb2"):
            with self.subTest(value=value):
                self.refused_bytes(post(COMPLETIONS, f"Content-Length: {value}", length=False) + BODY)
        self.refused_bytes(post(COMPLETIONS, "Content-Length: 31", "Content-Length: 32", length=False) + BODY)
        self.refused_bytes(post(COMPLETIONS, "Content-Length: 31", "Transfer-Encoding: chunked", length=False) + chunks(BODY))
        self.refused_bytes(post(COMPLETIONS, "Transfer-Encoding: chunked", "Content-Length: 31", length=False) + chunks(BODY))
        for value in ("18446744073709551615", "9223372036854775808", "4294967297"):
            self.refused_bytes(post(COMPLETIONS, f"Content-Length: {value}", length=False) + BODY, 413)
        self.refused_bytes(post(COMPLETIONS, length=False) + BODY)  # no length: no body

    def test_a_length_that_is_less_than_the_body_spoils_that_connection_only(self):
        first, second = talk(self.server, post(COMPLETIONS, f"Content-Length: {len(BODY) - 3}", length=False) + BODY + b"\r\n\r\n", answers=2)
        self.error(first.status, first.headers, first.body, 400)
        self.error(second.status, second.headers, second.body, 400)
        self.assertEqual(second.headers["connection"], "close")

    def test_a_length_that_is_more_than_the_body_gets_no_answer(self):
        data = post(COMPLETIONS, f"Content-Length: {len(BODY) + 3}", length=False) + BODY
        self.assertIsNone(talk(self.server, data, shut=True).status)
        for cut in range(0, len(data), 7):
            self.assertIsNone(talk(self.server, data[:cut], shut=True).status)

    def test_transfer_encodings_other_than_chunked_are_refused(self):
        for lines in (["gzip"], ["gzip, chunked"], ["chunked, gzip"], ["chunked, chunked"], ["chunked", "chunked"], ["chunked", "identity"], ["identity"], ["chunkedx"], [""], ["\x01"], ["xchunked"]):
            with self.subTest(lines=lines):
                self.refused_bytes(post(COMPLETIONS, *[f"Transfer-Encoding: {v}" for v in lines], length=False) + chunks(BODY))
        self.refused_bytes(b"POST /v1/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks(BODY))
        self.accepted(post(COMPLETIONS, "Transfer-Encoding: CHUNKED", "Connection: close", length=False) + chunks(BODY, 1))

    def test_chunks_that_are_none_are_refused(self):
        head = post(COMPLETIONS, "Transfer-Encoding: chunked", length=False)
        for data in (b"zz\r\n", b"-1\r\n", b"\r\n\r\n", b" 2\r\n{}\r\n", b"2\r\n{}xx\r\n\r\n", b"2\n{}\n0\n\n\r\n\r\n", b"f" * 17 + b"\r\n", b"2\r\n{}\r\n0\r\nbad trailer\r\n\r\n", b"0x2\r\n{}\r\n0\r\n\r\n"):
            with self.subTest(data=data):
                self.refused_bytes(head + data)
        self.refused_bytes(head + b"f" * 16 + b"\r\n", 413)
        self.accepted(head + b"%x;a=b\r\n%s\r\n0;c\r\nAuthorization: Bearer x\r\nA: b\r\n\r\n" % (len(BODY), BODY))

    def test_older_versions_of_http(self):
        for line in (b"GET /health HTTP/1.0\r\n\r\n", b"GET /health HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"):
            self.accepted(line)
        stream = b'{"prompt":[5],"max_tokens":3,"stream":true}'
        with self.server.connect() as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.0\r\nContent-Length: %d\r\n\r\n%s" % (len(stream), stream))
            whole = b"".join(iter(lambda: connection.recv(65536), b""))
        self.assertNotIn(b"Transfer-Encoding", whole)
        self.assertTrue(whole.endswith(b"data: [DONE]\n\n"), whole)
        self.refused_bytes(b"GET /health\r\n\r\n")

    def test_pipelined_requests_are_answered_in_order(self):
        answers = talk(self.server, post(body=BODY) + b"GET /health HTTP/1.1\r\n\r\n" + post(body=b"{") + b"GET /nothing HTTP/1.1\r\n\r\n" + post(body=BODY) + b"nonsense\r\n\r\n", 7)
        self.assertEqual([a.status for a in answers], [200, 200, 400, 404, 200, 400, None])

    def test_a_thousand_bytes_one_by_one(self):
        with self.server.connect() as connection, connection.makefile("rb") as file:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in post(COMPLETIONS, "A: " + "a" * 800, body=BODY):
                connection.sendall(bytes([byte]))
            self.assertEqual(Answer(file).status, 200)

    def test_clients_that_leave_in_mid_answer_cost_nothing(self):
        body = json.dumps({"prompt": [5, 6, 7], "max_tokens": 3000, "ignore_eos": True, "stream": True, "n": 2}).encode()
        for wait in (False, True):
            for _ in range(5):
                with self.server.connect() as connection:
                    connection.sendall(post(body=body))
                    if wait:
                        self.assertTrue(connection.recv(100))
        self.idle()


class Keys(OnOneServer):
    arguments, key = ("--api-key", "alice=secret", "--api-key", "bob=other", "--admin-key", "root"), "secret"

    def test_without_the_right_key_nothing_is_served(self):
        wrong = ("", "Bearer", "Bearer ", "Bearer  ", "Bearer secre", "Bearer secret1", "Bearer SECRET", "Bearer secret secret", "Bearer secret,other", "secret", "Basic c2VjcmV0",
                 "Bearersecret", "Bearer:secret", "Bearer alice", "Bearer alice=secret", "Bearer \xff", "Bearer " + "k" * 10000, "Token secret", "Bearer \tsecret\t1")
        for method, path in (("POST", COMPLETIONS), ("POST", CHAT), ("POST", TOKENIZE), ("GET", "/v1/models"), ("GET", "/v1/models/llama"), ("GET", "/metrics")):
            for value in (None, *wrong):
                with self.subTest(path=path, value=value):
                    lines = b"" if value is None else b"Authorization: " + value.encode("latin-1") + b"\r\n"
                    answer = talk(self.server, f"{method} {path} HTTP/1.1\r\n".encode() + lines + b"Content-Length: 0\r\n" + END)
                    self.error(answer.status, answer.headers, answer.body, 401, code="invalid_api_key")
                    self.assertIn("www-authenticate", answer.headers)
        self.assertEqual(self.server.request("GET", "/health")[0], 200)
        self.refused("/nothing", None, 404, method="GET")

    def test_a_key_in_the_trailer_or_in_the_query_is_none(self):
        self.refused_bytes(post(COMPLETIONS, "Transfer-Encoding: chunked", length=False) + b"%x\r\n%s\r\n0\r\nAuthorization: Bearer secret\r\n\r\n" % (len(BODY), BODY), 401)
        self.refused_bytes(b"GET /v1/models?Authorization=Bearer%20secret HTTP/1.1\r\n" + END, 401)

    def test_a_key_of_any_case_of_the_scheme_is_taken(self):
        for scheme in ("Bearer", "bearer", "BEARER"):
            self.assertEqual(self.server.request("GET", "/v1/models", headers={"Authorization": scheme + " secret"})[0], 200)

    def test_mistakes_are_counted_for_who_made_them(self):
        before = support.total(self.server.metrics("root"), "kvstem_choices_total", outcome="refused", tenant="bob")
        for _ in range(3):
            self.refused(COMPLETIONS, "{", key="other")
        self.assertEqual(support.total(self.server.metrics("root"), "kvstem_choices_total", outcome="refused", tenant="bob"), before + 3)


class Narrow(OnOneServer):
    """A context that one request fills, and more slots than it has room for."""
    arguments = ("--ctx", "256", "--slots", "8", "--kv-resident", "1000000")

    def fill(self, requests):
        """All at once."""
        answers = [None] * len(requests)
        def ask(i):
            answers[i] = self.server.request("POST", COMPLETIONS, requests[i])
        threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(requests))]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        return answers

    def test_requests_that_each_fill_the_context_all_come_to_their_end(self):
        self.assertEqual(self.context(), 256)
        for prompt, n in ((200, 1), (255, 1), (1, 1), (100, 4), (128, 2)):
            answers = self.fill([{"prompt": support.words(prompt, i), "max_tokens": 256 - prompt, "n": n, "ignore_eos": True} for i in range(8)])
            for status, _, body in answers:
                self.assertEqual(status, 200, body)
                self.assertEqual(json.loads(body)["usage"]["completion_tokens"], n * (256 - prompt))

    def test_many_choices_in_a_narrow_context(self):
        for prompts, n, prompt, new in ((1, 64, 200, 56), (64, 1, 30, 10), (8, 8, 100, 20), (1, 64, 255, 1), (64, 1, 255, 1)):
            answer = self.complete([support.words(prompt, i) for i in range(prompts)], n=n, max_tokens=new, ignore_eos=True, temperature=1)
            self.assertEqual(answer["usage"]["completion_tokens"], prompts * n * new)

    def test_one_more_token_than_the_context_is_refused(self):
        for prompt, new in ((256, 1), (255, 2), (1, 256), (200, 57)):
            self.refused(COMPLETIONS, {"prompt": support.words(prompt, 1), "max_tokens": new, "n": 8}, code="context_length_exceeded")


class ManySlots(OnOneServer):
    arguments = ("--slots", "64", "--kv-resident", "0")

    def test_as_many_answers_at_once_as_there_are_slots(self):
        for fields in ({"max_tokens": 1}, {"max_tokens": 20, "temperature": 1}, {"max_tokens": 20, "stop": [" "]}):
            self.complete([support.words(5 + i, i) for i in range(64)], **fields)
            self.complete(support.words(70, "wide"), n=64, **fields)


class Queue(OnOneServer):
    arguments = ("--slots", "1", "--queue", "1")

    def test_who_comes_when_all_places_are_taken_is_told_to_come_later(self):
        body = json.dumps({"prompt": [5, 6, 7], "max_tokens": 4000, "ignore_eos": True, "stream": True}).encode()
        with self.server.connect() as connection:
            connection.sendall(post(body=body))
            self.assertTrue(connection.recv(100))
            status, headers, answer = self.server.request("POST", COMPLETIONS, VALID[COMPLETIONS])
            self.error(status, {k.lower(): v for k, v in headers.items()}, answer, 429)
            self.assertIn("Retry-After", headers)
        wait_until(lambda: self.server.request("POST", COMPLETIONS, VALID[COMPLETIONS])[0] == 200, "the place is free")


class Program(unittest.TestCase):
    def refused(self, *arguments, says, model=support.TINY):
        with self.subTest(arguments=arguments, model=model):
            port = () if any(a.startswith("--port") for a in arguments) else ("--port", "0")
            try:
                ended = subprocess.run([SERVER, "--model", model, *port, "--threads", "1", *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=20)
            except subprocess.TimeoutExpired as e:
                self.fail(f"it did not end, and said {e.stderr}")
            said = (ended.stdout + ended.stderr).decode()
            self.assertEqual(ended.returncode, 2, said)
            self.assertRegex(said, says)
            lines = [line for line in said.splitlines() if line and not line.startswith(("loading ", "Run with --help"))]
            self.assertLessEqual(len(lines), 5, said)  # llama.cpp's own words come behind

    def test_models_that_cannot_be_served_are_refused(self):
        folder = os.path.dirname(support.TINY)
        self.refused(model="/no/such/model.gguf", says="model.*no file")
        self.refused(model=folder, says="model.*no file")
        self.refused(model="/dev/null", says="model.*no file")
        self.refused(model=os.path.join(folder, "mamba.gguf"), says="recurrent model.*use one with full attention")
        self.refused(model=os.path.join(folder, "gemma2.gguf"), says="sliding-window layers.*use one with full attention")
        self.refused(model=os.path.join(folder, "jamba.gguf"), says="hybrid model.*use one with full attention")
        self.refused(model=__file__, says="cannot load this model file")

    def test_addresses_that_cannot_be_had_are_refused(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.refused("--port", str(taken.getsockname()[1]), says="cannot listen on 127.0.0.1:.*in use")
        self.refused("--host", "a" * 300, says="cannot listen on")
        self.refused("--host", "203.0.113.1", says="cannot listen on")
        self.refused("--host", "", says="host|cannot listen")

    def test_options_that_make_no_sense_are_refused(self):
        for option, *values in (("--slots", "0", "-1", "65", "x", "1.5"), ("--ctx", "0", "255", "-1", "99999999999"), ("--port", "-1", "65536", "x"),
                                ("--block-tokens", "0", "1025"), ("--kv-host", "1XB", "x", ""), ("--kv-resident", "-1", "x"), ("--threads", "-1", "x"),
                                ("--max-tokens", "0", "-1"), ("--queue", "0"), ("--timeout", "0", "-1", "x", "nan"), ("--max-body", "1XB")):
            for value in values:
                self.refused(f"{option}={value}", says=option)
        self.refused("--no-such-option", says="no-such-option")
        self.refused("--kv-host", "16EiB", says="kv-host")
        self.refused("--kv-host", "1000", says="(kv-host|host_bytes).*block")
        self.refused("--kv-host", "0", says="(kv-host|host_bytes).*block")

    def test_blocks_larger_than_the_context_are_refused(self):
        self.refused("--ctx", "256", "--block-tokens", "512", says="block-tokens")

    def test_keys_that_are_none_or_the_same_are_refused(self):
        self.refused("--api-key", "a=key one", "--api-key", "b=key one", says="same key")
        self.refused("--api-key", "a=key one", "--api-key", "a=key two", says="same key or name")
        self.refused("--api-key", "a=key one", "--admin-key", "key one", says="same key")
        # What may be a bare key never becomes a name, nor its padding the key.
        for wrong in ("bare", "c2VjcmV0LWtleQ==", "a=abc", "a b=key one", "a/b=key one", "=key one", "admin=key one"):
            self.refused("--api-key", wrong, says="--api-key")
        self.refused("--api-key", "a=key one", "--admin-key", "abc", says="--admin-key")
        self.refused("--api-key", "a=", says="api-key")
        self.refused("--api-key", "=k", says="api-key")
        self.refused("--admin-key", "some key", says="admin-key goes with")
        self.refused("--api-key-file", "/no/such/file", says="api-key-file: cannot read")
        self.refused("--api-key-file", "/dev/null", says="api-key-file: there is no key")


del OnOneServer  # has no tests of its own

if __name__ == "__main__":
    unittest.main(verbosity=2)
