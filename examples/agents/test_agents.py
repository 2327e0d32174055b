#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""The agents against the server: what tools may do, what is understood, what is found again, and how things end.

Run with KVSTEM_SERVER, KVSTEM_OFFLINE and KVSTEM_LLAMA_MODELS, as the tests of the server.
"""
import http.server
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import unittest

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "llama_server" / "tests")]

import agent
import scripted
import tools
from support import Server
from tools import Answer, Call, parse

BLOCK = 32  # tokens that are found or not together


def blocks(tokens):
    return tokens // BLOCK * BLOCK


def write_tree(folder, files=12):
    """A small source tree, always the same."""
    for i in range(files):
        file = pathlib.Path(folder, "src" if i % 2 else "lib", f"part_{i}.c")
        file.parent.mkdir(exist_ok=True)
        file.write_text("".join(f"int goose_{i}_{n}(int flock) {{ return flock + {n}; }}\n" for n in range(40)))
    pathlib.Path(folder, "README").write_text("Geese, in C.\n")


class Folder(unittest.TestCase):
    def setUp(self):
        self.outside = tempfile.TemporaryDirectory()
        self.addCleanup(self.outside.cleanup)
        self.root = pathlib.Path(self.outside.name, "root")
        self.root.mkdir()
        write_tree(self.root)
        pathlib.Path(self.outside.name, "secret.c").write_text("the secret goose\n")
        pathlib.Path(self.outside.name, "root2").mkdir()
        self.tree = tools.Tree(self.root, 600)

    def refused(self, tool, *arguments):
        with self.assertRaises(tools.Refused) as caught:
            self.tree.run(Call(tool, arguments))
        self.assertNotIn("secret goose", str(caught.exception))
        return str(caught.exception)

    def test_nothing_outside_the_root_is_read_or_listed(self):
        (self.root / "link.c").symlink_to("../secret.c")
        (self.root / "up").symlink_to("..")
        (self.root / "far").symlink_to("/etc")
        for name in ("../secret.c", "src/../../secret.c", f"{self.outside.name}/secret.c", "/etc/passwd", "link.c",
                     "up/secret.c", "far/passwd", "../nothing.c"):
            self.assertIn("outside", self.refused("read", name), name)
        for name in ("..", "/", "up", "far", "../root2", "src/../.."):
            self.assertIn("outside", self.refused("list", name), name)
            self.assertIn("outside", self.refused("search", "goose", name), name)

    def test_a_search_follows_no_links(self):
        (self.root / "link.c").symlink_to("../secret.c")
        (self.root / "up").symlink_to("..")
        self.assertIn("no line contains", self.tree.search("secret goose"))
        self.assertIn("up@", self.tree.list())

    def test_what_is_inside_is_read_by_any_name(self):
        (self.root / "alias.c").symlink_to("src/part_1.c")
        for name in ("src/part_1.c", "./src/part_1.c", "lib/../src/part_1.c", "alias.c", str(self.root / "src/part_1.c")):
            self.assertIn("goose_1_0", self.tree.read(name))

    def test_what_is_no_text_missing_or_huge_is_refused_in_words(self):
        (self.root / "zero.bin").write_bytes(b"abc\0def")
        (self.root / "latin.txt").write_bytes("Gänse".encode("latin-1"))
        with open(self.root / "huge.txt", "wb") as file:
            file.truncate(10 << 30)  # takes no room
        os.mkfifo(self.root / "pipe")
        (self.root / "ring").symlink_to("ring")
        self.assertIn("no text", self.refused("read", "zero.bin"))
        self.assertIn("no text", self.refused("read", "latin.txt"))
        self.assertIn("too large", self.refused("read", "huge.txt"))
        self.assertIn("no ordinary file", self.refused("read", "pipe"))
        self.assertIn("no file nothing.c", self.refused("read", "nothing.c"))
        self.assertIn("list it", self.refused("read", "src"))
        self.assertIn("read it", self.refused("list", "README"))
        self.assertIn("only 40 lines", self.refused("read", "src/part_1.c", 41, None))
        for name in ("ring", "a\0b", "x" * 5000):
            self.refused("read", name)
        self.assertIn("README:1", self.tree.search("Geese"))  # and a search passes over them

    def test_results_are_cut_to_their_size_and_say_so(self):
        text = self.tree.read("src/part_1.c", 3, 30)
        self.assertTrue(text.startswith("src/part_1.c, lines 3-"), text)
        self.assertLess(len(text), 700)
        self.assertIn("(cut; it goes on at line", text)
        self.assertEqual(len(self.tree.read("src/part_1.c", 3, 4).splitlines()), 3)
        self.assertIn("(cut;", self.tree.search("flock"))
        (self.root / "line.txt").write_text("x" * 100_000)
        self.assertLess(len(self.tree.read("line.txt")), 700)
        (self.root / "empty").write_text("")
        self.assertIn("of 0", self.tree.read("empty"))

    def test_a_search_takes_a_folder_behind_its_text(self):
        self.assertNotIn("lib/", self.tree.run(parse("TOOL: search int goose src")[0]))
        self.assertIn("no line", self.tree.run(parse('TOOL: search "goose_1_" lib')[0]))


class Parser(unittest.TestCase):
    def test_decorated_calls_are_understood(self):
        read = Call("read", ("src/main.c", 1, 40))
        for text in ("TOOL: read src/main.c 1-40", "tool: READ \"src/main.c\" 1:40", "```\nTOOL: read src/main.c 1-40\n```",
                     "**TOOL:** read `src/main.c` lines 1 to 40", "- TOOL: read(\"src/main.c\", 1, 40)", "> Tool: cat src/main.c:1-40",
                     "`read src/main.c 1-40`", "```sh\nread src/main.c 1..40\n```", "I look.\n\n  1. TOOL: read 'src/main.c' [1-40]",
                     "TOOL: read src/main.c 1-40\nRESULT: int main() {}\nTOOL: list ."):
            self.assertEqual(parse(text)[0], read, text)
        self.assertEqual(parse("TOOL: list")[0], Call("list", (".",)))
        self.assertEqual(parse("tool: grep foo(x)")[0], Call("search", ("foo(x)",)))
        self.assertEqual(parse("TOOL: delegate find who calls f")[0], Call("delegate", ("find who calls f",)))

    def test_what_follows_a_call_is_dropped(self):
        self.assertEqual(parse("First this.\nTOOL: list .\nRESULT: a b c")[1], "First this.\nTOOL: list .")

    def test_answers_and_neither(self):
        self.assertEqual(parse("**Answer:** it is\na goose")[0], Answer("it is\na goose"))
        for text in ("", "   ", "I would use the tool now", "read the file", "\ufffd\x00{}"):
            self.assertIsNone(parse(text)[0], text)

    def test_mistakes_are_named(self):
        for text, word in (("TOOL: read", "needs more"), ("TOOL: frobnicate x", "no tool 'frobnicate'"), ("TOOL:", "no tool's name"),
                           ("TOOL: read a.c 9-3", "no range"), ("TOOL: read a.c 0-3", "no range"), ("TOOL: delegate", "needs more")):
            with self.assertRaises(tools.Refused) as caught:
                parse(text)
            self.assertIn(word, str(caught.exception))


class Says:
    """A chat whose model says what it is told to; the server answers all the same, so that tokens are counted."""

    def __init__(self, chat, *texts):
        self.chat, self.texts = chat, list(texts)

    def ask(self, messages, max_tokens, **fields):
        turn = self.chat.ask(messages, max_tokens, **fields)
        turn.text = self.texts.pop(0)
        return turn


class OnServer(unittest.TestCase):
    """With the tiny model: its tokens are bytes, and it writes no calls."""

    @classmethod
    def setUpClass(cls):
        cls.server = Server("--ctx", "16384", "--slots", "4")
        cls.addClassCleanup(lambda: cls.server.__exit__(None, None, None))
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.root = folder.name
        write_tree(cls.root)
        cls.url = cls.server.url + "/v1"
        cls.chat = agent.Chat(cls.url)
        cls.addClassCleanup(cls.chat.close)

    def agent(self, chat, task, turns=6):
        self.lines = []
        tree = tools.Tree(self.root, 400)
        return agent.Agent(chat, tree, agent.first_messages(tree, task), turns, 16,
                           lambda name, step, turn: self.lines.append((name, step, turn)))

    def command(self, program, *arguments, url=None):
        done = subprocess.run([sys.executable, HERE / program, "--url", url or self.url, "--root", self.root, *arguments],
                              capture_output=True, text=True, timeout=60)
        self.assertNotIn("Traceback", done.stderr)
        return done

    def test_the_model_itself_comes_to_an_end_and_each_turn_finds_the_one_before(self):
        done = self.agent(self.chat, "Count the geese.")
        outcome = done.run()
        self.assertEqual(outcome.ended, "it wrote neither calls nor an answer")
        turns = [turn for _, _, turn in self.lines]
        self.assertEqual(len(turns), agent.Agent.STUCK)
        for before, after in zip(turns, turns[1:]):
            self.assertGreater(after.prompt, before.prompt)
            self.assertGreaterEqual(after.cached, blocks(before.prompt))

    def test_a_helper_shares_all_that_its_parent_had(self):
        work = self.agent(Says(self.chat, "TOOL: read src/part_1.c 1-5", "TOOL: delegate look at src/part_3.c", "TOOL: read src/part_3.c",
                               "TOOL: delegate this", "ANSWER: forty", "ANSWER: forty geese"), "Count more geese.", turns=8)
        self.assertEqual(work.run(), agent.Outcome("forty geese"))
        self.assertEqual([(name, str(getattr(step, "tool", "answer"))) for name, step, _ in self.lines],
                         [("main", "read"), ("main", "delegate"), ("helper 1", "read"), ("helper 1", "delegate"),
                          ("helper 1", "answer"), ("main", "answer")])
        turns = [turn for _, _, turn in self.lines]
        for before, after in zip(turns[:4], turns[1:5]):
            self.assertGreaterEqual(after.cached, blocks(before.prompt))
        self.assertGreaterEqual(turns[5].cached, blocks(turns[1].prompt))  # and the parent goes on from where it was
        self.assertEqual(work.messages[-2]["content"], "RESULT: forty")
        self.assertIn("goose_1_0", work.messages[5]["content"])

    def test_a_helpers_budget_is_smaller_and_mistakes_come_back_as_results(self):
        work = self.agent(Says(self.chat, "TOOL: delegate all", "TOOL: read ../x", "TOOL: read nothing.c", "TOOL: frob", "TOOL: list src",
                               "TOOL: list src", "hm"), "Count on.", turns=5)
        outcome = work.run()
        self.assertEqual([name for name, _, _ in self.lines], ["main", "helper 1", "helper 1", "main", "main", "main", "main"])
        self.assertIn("turns are used up", outcome.ended)
        results = [m["content"] for m in work.messages if m["role"] == "user"][2:]
        self.assertIn("did not finish", results[0])
        self.assertIn("no tool 'frob'", results[1])
        self.assertIn("part_1.c", results[2])
        self.assertEqual(results[3], "RESULT: " + agent.AGAIN + agent.LAST)
        self.assertEqual(outcome.text, "hm")

    def test_a_full_context_ends_with_what_there_is(self):
        (pathlib.Path(self.root) / "long.c").write_text("".join(f"{n * n:x}\n" for n in range(4000)))
        self.addCleanup((pathlib.Path(self.root) / "long.c").unlink)
        work = self.agent(Says(self.chat, *(f"It has {i}.\nTOOL: read long.c {1 + 300 * i}-" for i in range(9))), "Read.", turns=9)
        work.tree.limit = 1000
        outcome = work.run()
        self.assertIn("context", outcome.ended)
        self.assertLess(1, len(self.lines))
        self.assertEqual(outcome.text, f"It has {len(self.lines) - 1}.")

    def test_the_command_shows_turns_and_totals(self):
        done = self.command("agent.py", "--turns", "2", "--max-tokens", "8", "Count the geese of the town.")
        self.assertEqual(done.returncode, 1, done)
        lines = done.stdout.splitlines()
        self.assertRegex(lines[0], r"agent +tool +prompt +cached +new +first token")
        self.assertRegex(lines[1], r"main .* s$")
        self.assertRegex(lines[-1], r"2 turns asked [\d,]+ tokens: [\d.]+ % repeated, [\d,]+ computed")
        self.assertIn("2 turns are used up", done.stderr)

    def test_what_cannot_begin_is_said_in_words(self):
        for arguments, word in ((("--max-tokens", "5000", "Count."), "context"), (("--turns", "0", "Count."), "at least 1")):
            done = self.command("agent.py", *arguments)
            self.assertIn(word, done.stderr)
            self.assertNotEqual(done.returncode, 0)
        done = self.command("agent.py", "Count.", url="http://127.0.0.1:9/v1")
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertIn("no server answers", done.stderr)
        done = self.command("agent.py", "Count.", url=self.server.url)
        self.assertEqual(done.returncode, 2)
        self.assertIn("/v1", done.stderr)
        done = self.command("scripted.py", url="http://127.0.0.1:9/v1")
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        done = self.command("scripted.py", "--agents", "2", "--max-tokens", "5000")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("context", done.stderr)

    def scripted(self, agents=4, turns=5, seed=1, url=None):
        chat = agent.Chat(url or self.url)
        self.addCleanup(chat.close)
        return scripted.Run(chat, scripted.Script(self.root, agents, turns, seed, short=True), 4).run()

    def test_scripted_runs_ask_the_same_of_any_server(self):
        with tempfile.NamedTemporaryFile() as file:
            done = self.command("scripted.py", "--short", "--max-tokens", "4", "--agents", "4", "--json", file.name)
            self.assertEqual(done.returncode, 0, done)
            one = json.load(file)
        self.assertIn(one["digest"], done.stdout)
        two = self.scripted()
        with Server("--ctx", "8192", "--slots", "1") as other, Server("--no-kvstem", "--ctx", "16384", "--slots", "3") as plain:
            three = self.scripted(url=other.url + "/v1")
            four = self.scripted(url=plain.url + "/v1")
        for run in (two, three, four):
            for field in ("digest", "requests", "prompt_tokens", "completion_tokens", "smallest_prompt", "largest_prompt"):
                self.assertEqual(one[field], run[field], field)
            self.assertEqual([(t["agent"], t["turn"], t["tool"], t["prompt_tokens"]) for t in one["turns"]],
                             [(t["agent"], t["turn"], t["tool"], t["prompt_tokens"]) for t in run["turns"]])
        self.assertEqual(one["requests"], 4 * (5 + scripted.Script.HELPER_TURNS))
        self.assertEqual(one["completion_tokens"], 4 * one["requests"])
        self.assertEqual(four["cached_tokens"], 0)
        self.assertGreater(two["cached_tokens"], one["prompt_tokens"] * 0.9)  # it was all there from the first run
        self.assertEqual(list(one["first_token_median_seconds"]), ["1", "2", "3", "4", "5", "helper 1", "helper 2"])
        self.assertNotEqual(one["digest"], self.scripted(seed=2)["digest"])

    def test_prompts_fit_whatever_the_number_of_turns(self):
        for turns in (1, 2, 3, 8):
            run = self.scripted(agents=1, turns=turns)
            self.assertLess(run["largest_prompt"], 4000)
            self.assertEqual(run["requests"], turns + (2 if turns > 2 else 0))


class OtherServers(unittest.TestCase):
    """What other servers do: be busy, tell tokens in their own ways, break off."""

    def serve(self, *answers):
        """A server that gives these answers to chats: (status, headers, body)."""
        left = list(answers)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(200, {}, '{"object": "list", "data": [{"id": "m", "object": "model"}]}')

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.reply(*left.pop(0))

            def reply(self, status, headers, body):
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.addCleanup(server.server_close)
        self.addCleanup(server.shutdown)
        self.said = []
        chat = agent.Chat(f"http://127.0.0.1:{server.server_port}/v1", say=self.said.append)
        self.addCleanup(chat.close)
        return chat

    @staticmethod
    def stream(*events):
        return 200, {"Content-Type": "text/event-stream"}, "".join(f"data: {e if isinstance(e, str) else json.dumps(e)}\n\n" for e in events)

    HELLO = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m",
             "choices": [{"index": 0, "delta": {"role": "assistant", "content": "hello"}, "finish_reason": None}]}
    BUSY = (429, {"Retry-After": "0.1"}, '{"error": {"message": "too many", "type": "rate_limit_error", "code": null}}')

    def usage(self, details=None, **more):
        return self.HELLO | {"choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 1, "total_tokens": 101} | (details or {})} | more

    def test_cached_tokens_are_found_where_a_server_tells_them(self):
        for last, cached in ((self.usage(), None), (self.usage({"prompt_tokens_details": None}), None),
                             (self.usage({"prompt_tokens_details": {"cached_tokens": 64}}), 64),
                             (self.usage(timings={"cache_n": 70, "prompt_n": 30}), 70)):
            turn = self.serve(self.stream(self.HELLO, last, "[DONE]")).ask([], 1)
            self.assertEqual((turn.text, turn.prompt, turn.cached), ("hello", 100, cached))

    def test_a_busy_server_is_asked_again_a_few_times(self):
        chat = self.serve(self.BUSY, self.BUSY, self.stream(self.HELLO, self.usage(), "[DONE]"), *[self.BUSY] * agent.Chat.TRIES)
        self.assertEqual(chat.ask([], 1).text, "hello")
        self.assertEqual(len(self.said), 2)
        with self.assertRaisesRegex(agent.Lost, "busy"):
            chat.ask([], 1)

    def test_other_ends_are_told(self):
        too_long = (400, {}, '{"error": {"code": 400, "message": "too long", "type": "exceed_context_size_error"}}')
        with self.assertRaisesRegex(agent.ContextFull, "too long"):
            self.serve(too_long).ask([], 1)
        for answer, words in (((401, {}, '{"error": {"message": "no"}}'), "--key"), ((500, {}, "oh"), "refused"),
                              (self.stream(self.HELLO, {"error": {"message": "it broke"}}), "it broke"),
                              (self.stream(self.HELLO), "does not end"), ((200, {"Content-Length": "1000"}, "data: "), "")):
            with self.assertRaisesRegex(agent.Lost, words):
                self.serve(answer).ask([], 1)


if __name__ == "__main__":
    unittest.main()
