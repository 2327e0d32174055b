#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""OpenAI's own Python client, unmodified, against the server; answers beside those of the engine without one."""
import json
import pathlib
import subprocess
import unittest

import openai

import support
from support import Offline, Server, wait_until

CHAT = [{"role": "system", "content": "You count things."}, {"role": "user", "content": "How many geese fly over the town?"}]


class Exact(unittest.TestCase):
    """Both engines go through the same requests in the same order, so that they round alike."""

    def setUp(self):
        self.server, self.offline = Server(), Offline()
        self.client = openai.OpenAI(base_url=self.server.url + "/v1", api_key="any", max_retries=0)
        self.model = self.server.model

    def tearDown(self):
        self.client.close()
        self.offline.__exit__()
        self.server.__exit__(None, None, None)

    def both(self, chat, prompt, **fields):
        """An answer of the server, and the engine's own."""
        if chat:
            answer = self.client.chat.completions.create(model=self.model, messages=prompt, **fields)
        else:
            answer = self.client.completions.create(model=self.model, prompt=prompt, **fields)
        known = {k: v for k, v in fields.items() if k in ("max_tokens", "temperature", "top_p", "seed", "n")}
        return answer, self.offline.ask(**({"messages": prompt} if chat else {"prompt": prompt}), **known)

    def test_answers_are_those_of_the_engine_without_http(self):
        # One after another, so that both engines go through the same states: greedy, sampled, chat, text, tokens; twice.
        for turn in range(2):
            for fields in ({"temperature": 0}, {"temperature": 1.2, "seed": 5}, {"temperature": 0.7, "top_p": 0.9, "seed": 77}):
                for chat, prompt in ((True, CHAT), (False, "the town and the other"), (False, support.words(300, "x"))):
                    answer, own = self.both(chat, prompt, max_tokens=24, **fields)
                    choice = answer.choices[0]
                    self.assertEqual(choice.message.content if chat else choice.text, own["texts"][0])
                    self.assertEqual(answer.usage.completion_tokens, len(own["tokens"][0]))
                    self.assertEqual(answer.usage.prompt_tokens_details.cached_tokens, own["cached"])
                    self.assertEqual(choice.finish_reason, "length" if len(own["tokens"][0]) == 24 else "stop")

    def test_several_choices_share_one_prefill(self):
        prompt = support.words(400, "choices")
        before = self.server.metrics()
        answer, own = self.both(False, prompt, max_tokens=12, temperature=1.5, seed=9, n=4)
        after = self.server.idle()
        self.assertEqual([c.text for c in answer.choices], own["texts"])
        self.assertEqual([c.index for c in answer.choices], [0, 1, 2, 3])
        self.assertGreater(len(set(own["texts"])), 1)
        self.assertEqual(answer.usage.prompt_tokens, 400)
        missed = "kvstem_cache_missed_tokens_total"
        self.assertEqual(after[missed] - before[missed] + answer.usage.prompt_tokens_details.cached_tokens, 400)
        self.assertEqual(after["kvstem_forks_total"] - before["kvstem_forks_total"], 3)


class Clients(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server()
        cls.client = openai.OpenAI(base_url=cls.server.url + "/v1", api_key="any", max_retries=0)
        cls.model = cls.server.model

    @classmethod
    def tearDownClass(cls):
        cls.client.close()
        cls.server.__exit__(None, None, None)

    def test_a_stream_is_the_answer_in_pieces(self):
        fields = dict(max_tokens=30, temperature=1.0, seed=3)
        whole = self.client.chat.completions.create(model=self.model, messages=CHAT, n=2, **fields)
        texts, ends, usages = {0: "", 1: ""}, {}, []
        for chunk in self.client.chat.completions.create(model=self.model, messages=CHAT, n=2, stream=True,
                                                         stream_options={"include_usage": True}, **fields):
            if chunk.usage is not None:
                usages.append(chunk.usage)
            for choice in chunk.choices:
                self.assertNotIn(choice.index, ends)
                texts[choice.index] += choice.delta.content or ""
                if choice.finish_reason:
                    ends[choice.index] = choice.finish_reason
        self.assertEqual(texts, {c.index: c.message.content for c in whole.choices})
        self.assertEqual(ends, {c.index: c.finish_reason for c in whole.choices})
        self.assertEqual(len(usages), 1)
        self.assertEqual(usages[0].completion_tokens, whole.usage.completion_tokens)
        self.assertEqual(usages[0].prompt_tokens, whole.usage.prompt_tokens)

    def test_the_second_turn_reads_its_first_from_the_cache(self):
        messages = [{"role": "user", "content": "Tell me of the river and the hill and of nothing else. " * 8}]
        first = self.client.chat.completions.create(model=self.model, messages=messages, max_tokens=20, temperature=0)
        messages += [{"role": "assistant", "content": first.choices[0].message.content}, {"role": "user", "content": "And?"}]
        second = self.client.chat.completions.create(model=self.model, messages=messages, max_tokens=20, temperature=0)
        # The tiny model's answer is no text that comes back as the same tokens; up to it all is found, in whole blocks.
        self.assertGreaterEqual(second.usage.prompt_tokens_details.cached_tokens, first.usage.prompt_tokens // 32 * 32)

    def test_stop_strings_end_an_answer_and_are_not_in_it(self):
        prompt = support.words(60, "stop")
        whole = self.client.completions.create(model=self.model, prompt=prompt, max_tokens=40, temperature=0)
        text = whole.choices[0].text
        stop = next(text[i:i + 2] for i in range(8, len(text) - 2) if "\ufffd" not in text[i:i + 2])
        for stream in (False, True):
            answer = self.client.completions.create(model=self.model, prompt=prompt, max_tokens=40, temperature=0,
                                                    stop=["never said", stop], stream=stream)
            chunks = list(answer) if stream else [answer]
            said = "".join(c.choices[0].text for c in chunks)
            self.assertEqual(said, text[:text.index(stop)])
            self.assertEqual(chunks[-1].choices[0].finish_reason, "stop")

    def test_cancelling_in_mid_stream_frees_the_slot_and_counts_as_cancelled(self):
        before = self.server.metrics()
        stream = self.client.completions.create(model=self.model, prompt=support.words(100, "cancel"), max_tokens=2000,
                                                temperature=0, stream=True, extra_body={"ignore_eos": True})
        for i, _ in enumerate(stream):
            if i == 5:
                break
        stream.close()
        after = self.server.idle()
        cancelled = 'kvstem_choices_total{outcome="cancelled"}'
        self.assertEqual(after[cancelled] - before[cancelled], 1)
        self.assertLess(after["kvstem_generated_tokens_total"] - before["kvstem_generated_tokens_total"], 1900)

    def test_a_cold_run_can_be_asked_for_and_leaves_nothing_behind(self):
        prompt = support.words(200, "cold")
        cached = [self.client.completions.create(model=self.model, prompt=prompt, max_tokens=4, extra_body={"cache_prompt": warm})
                  .usage.prompt_tokens_details.cached_tokens for warm in (False, False, True, False, True)]
        self.assertEqual(cached, [0, 0, 0, 0, 199])

    def test_a_model_says_how_many_tokens_prompt_and_answer_may_have(self):
        most = self.client.models.retrieve(self.model).max_model_len
        self.client.completions.create(model=self.model, prompt=[5] * 8, max_tokens=most - 8, stream=True).close()
        with self.assertRaises(openai.BadRequestError):
            self.client.completions.create(model=self.model, prompt=[5] * 8, max_tokens=most - 7, stream=True)

    def test_a_model_may_have_any_name(self):
        name = "birds/grey goose+1%"
        with Server("--alias", name) as server, openai.OpenAI(base_url=server.url + "/v1", api_key="any") as client:
            self.assertEqual(client.models.retrieve(name).id, name)
            self.assertEqual(client.completions.create(model=name, prompt="hello", max_tokens=1).model, name)

    def test_models_are_listed_and_unknown_ones_refused(self):
        self.assertEqual([m.id for m in self.client.models.list()], [self.model])
        self.assertEqual(self.client.models.retrieve(self.model).id, self.model)
        with self.assertRaises(openai.NotFoundError) as caught:
            self.client.completions.create(model="gpt-9", prompt="hello")
        self.assertEqual(caught.exception.code, "model_not_found")

    def test_mistakes_reach_the_client_as_its_own_exceptions(self):
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.completions.create(model=self.model, prompt="hello", max_tokens=-1)
        self.assertIn("max_tokens", caught.exception.message)
        with self.assertRaises(openai.BadRequestError) as caught:
            self.client.completions.create(model=self.model, prompt=[5] * 5000, max_tokens=10)
        self.assertEqual(caught.exception.code, "context_length_exceeded")

    def test_several_prompts_are_answered_in_order(self):
        prompts = [support.words(50, i) for i in range(3)]
        answer = self.client.completions.create(model=self.model, prompt=prompts, n=2, max_tokens=6, temperature=0)
        self.assertEqual([c.index for c in answer.choices], list(range(6)))
        for i in (0, 2, 4):
            self.assertEqual(answer.choices[i].text, answer.choices[i + 1].text)  # greedy
        self.assertEqual(answer.usage.prompt_tokens, 150)

    def test_tokenize_gives_the_ids_that_a_completion_counts(self):
        text = "in the town, Ärger <|im_end|>"
        tokens = self.server.post("/tokenize", {"content": text})["tokens"]
        answer = self.client.completions.create(model=self.model, prompt=text, max_tokens=1)
        self.assertEqual(answer.usage.prompt_tokens, len(tokens))

    def test_health_and_metrics_answer_and_the_books_balance(self):
        self.assertEqual(self.server.request("GET", "/health")[0], 200)
        support.check_books(self.server.idle())


    def test_the_curl_lines_of_the_readme_run(self):
        readme = pathlib.Path(__file__).parents[3].joinpath("README.md").read_text()
        section = readme.split("<!-- curl lines -->")[1].split("<!-- end -->")[0]
        lines = [line for line in section.splitlines() if line.startswith("curl ")]
        self.assertGreaterEqual(len(lines), 5)
        for line in lines:
            line = line.replace("127.0.0.1:8080", f"127.0.0.1:{self.server.port}").replace("curl ", "curl -sS --fail ", 1)
            result = subprocess.run(["bash", "-c", line], capture_output=True, timeout=60)
            self.assertEqual(result.returncode, 0, (line, result.stderr))
            if '"stream": true' in line:
                self.assertTrue(result.stdout.endswith(b"data: [DONE]\n\n"))
            elif not line.endswith("/metrics"):
                json.loads(result.stdout)


class RealModel(unittest.TestCase):
    def test_a_chat_without_a_system_message_gets_the_models_own_and_a_repeated_question_is_found(self):
        with Server("--slots", "2", model=support.SMOL) as server, Offline(support.SMOL, slots=2) as offline:
            client = openai.OpenAI(base_url=server.url + "/v1", api_key="any", max_retries=0)
            bare = [{"role": "user", "content": "What is the capital of France?"}]
            own = [{"role": "system", "content": "You are a helpful AI assistant named SmolLM, trained by Hugging Face"}, *bare]
            answers = [client.chat.completions.create(model=server.model, messages=m, max_tokens=12, temperature=0)
                       for m in (bare, own)]
            for answer, messages in zip(answers, (bare, own)):
                self.assertEqual(answer.choices[0].message.content,
                                 offline.ask(messages=messages, max_tokens=12, temperature=0)["texts"][0])
            self.assertEqual(answers[0].usage.prompt_tokens, answers[1].usage.prompt_tokens)
            # In whole blocks; one token is always computed.
            self.assertGreaterEqual(answers[1].usage.prompt_tokens_details.cached_tokens, (answers[1].usage.prompt_tokens - 1) // 16 * 16)


if __name__ == "__main__":
    unittest.main(verbosity=2)
