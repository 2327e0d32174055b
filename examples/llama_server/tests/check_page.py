#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""check_page.py [--screenshots FOLDER]: the live page in a real browser: what it shows is what /metrics says.

With --screenshots it only takes pictures of a busy server for the documentation, dark and light.
"""
import pathlib
import sys
import threading
import time
import unittest

from playwright.sync_api import sync_playwright

import support
from support import Server, words

SHOWN = {  # id on the page: series of /metrics
    "total-queried": ("kvstem_cache_queried_tokens_total", {}),
    "total-device": ("kvstem_cache_hit_tokens_total", {"tier": "device"}),
    "total-host": ("kvstem_cache_hit_tokens_total", {"tier": "host"}),
    "total-frontier": ("kvstem_cache_hit_tokens_total", {"tier": "frontier"}),
    "total-missed": ("kvstem_cache_missed_tokens_total", {}),
    "total-generated": ("kvstem_generated_tokens_total", {}),
    "engine-running": ("kvstem_running", {}),
    "engine-waiting": ("kvstem_waiting", {}),
    "host-blocks-used": ("kvstem_host_blocks_used", {}),
    "resident-tokens": ("kvstem_resident_tokens", {}),
}
SECRET = "goose pond password"  # a text that must never reach the page


def numbers(page):
    return page.evaluate("ids => Object.fromEntries(ids.map(id => [id, Number(document.getElementById(id).dataset.value)]))",
                         list(SHOWN))


def wanted(metrics):
    return {id: support.total(metrics, name, **labels) for id, (name, labels) in SHOWN.items()}


class Browser:
    def __enter__(self):
        self.playwright = sync_playwright().start()
        self.browser = self.playwright.chromium.launch(executable_path="/usr/bin/chromium", headless=True,
                                                       args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        return self

    def __exit__(self, *_):
        self.browser.close()
        self.playwright.stop()

    def open(self, url, width=1280, height=1500, **options):
        page = self.browser.new_page(viewport={"width": width, "height": height}, **options)
        page.said, page.asked = [], []
        page.on("console", lambda m: page.said.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: page.said.append(str(e)))
        page.on("request", lambda r: page.asked.append(r.url))
        page.goto(url, wait_until="load")
        return page


def until(page, condition, seconds=30):
    """Polls from outside: the page's policy lets nothing be evaluated inside it."""
    def holds():
        page.wait_for_timeout(50)
        return page.evaluate(condition)
    support.wait_until(holds, condition, seconds)


def traffic(server, requests):
    for i in range(requests):
        server.complete(SECRET + " " + "the town and the other " * (10 + i % 3), n=1 + i % 2)


class Page(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.browser = Browser().__enter__()

    @classmethod
    def tearDownClass(cls):
        cls.browser.__exit__()

    def agrees(self, page, server):
        """Waits until the page shows the numbers of an idle server."""
        want = wanted(server.idle())
        def same():
            page.wait_for_timeout(50)
            return numbers(page) == want
        support.wait_until(same, f"the page shows {want}, not {numbers(page)}", 20)

    def test_its_numbers_are_those_of_the_metrics_before_and_after_traffic_and_reconnecting(self):
        with Server() as server:
            page = self.browser.open(server.url)
            until(page, "document.body.dataset.sequence > 0")
            self.agrees(page, server)
            traffic(server, 6)
            self.agrees(page, server)
            self.assertGreater(numbers(page)["total-device"] + numbers(page)["total-host"], 0)
            self.assertGreater(page.locator("#ended-rows tr").count(), 5)
            self.assertGreater(page.locator("#stem-rows tr").count(), 0)
            page.reload()
            self.agrees(page, server)
            self.assertNotIn(SECRET, page.content())
            self.assertEqual(page.said, [])
            self.assertTrue(all(url.startswith(server.url) for url in page.asked), page.asked)
            page.close()

    def test_it_shows_who_runs_and_who_waits_while_they_do(self):
        with Server("--slots", "1") as server:
            page = self.browser.open(server.url)
            threads = [threading.Thread(target=server.complete, args=(words(1500, i),),
                                        kwargs={"max_tokens": 2400, "ignore_eos": True}) for i in range(3)]
            for thread in threads:
                thread.start()
            until(page, "document.querySelectorAll('#running-rows tr').length === 1 && "
                        "document.querySelectorAll('#queue-rows tr').length >= 1")
            for thread in threads:
                thread.join()
            self.agrees(page, server)
            self.assertEqual(page.said, [])
            page.close()

    def test_mochi_is_glad_when_prompts_repeat_cross_when_not_and_dozes_when_nothing_comes(self):
        with Server() as server:
            page = self.browser.open(server.url)
            mood = lambda m: until(page, f"document.getElementById('mochi').dataset.mood === '{m}'")
            mood("dozing")
            for i in range(3):
                server.complete(words(100, i))
            mood("cross")
            for _ in range(8):
                server.complete(words(100, 0))
            mood("glad")
            page.close()

    def test_with_keys_it_asks_for_one_and_shows_a_tenant_itself_only(self):
        with Server("--api-key", "alice=alpha key", "--api-key", "bob=beta+key%", "--admin-key", "root") as server:
            server.complete(words(100, "a"), key="alpha key")
            server.complete(words(70, "b"), key="beta+key%")
            page = self.browser.open(server.url)
            page.wait_for_selector("#key-form:visible")
            page.fill("#key", "wrong")
            page.click("#key-form button")
            page.wait_for_selector("#key-wrong:visible")
            for key, queried, all in (("alpha key", 100, False), ("beta+key%", 70, False), ("root", 170, True)):
                page = self.browser.open(server.url)
                page.wait_for_selector("#key-form:visible")
                page.fill("#key", key)
                page.click("#key-form button")
                until(page, "document.body.dataset.sequence > 0")
                self.assertEqual(page.evaluate("Number(document.getElementById('total-queried').dataset.value)"), queried)
                self.assertEqual(page.locator("#engine").is_visible(), all)
                self.assertEqual(page.locator("#stems").is_visible(), all)
                if key.startswith("alpha"):
                    self.assertNotIn("bob", page.inner_text("body"))
                page.close()

    def test_it_says_when_the_server_is_gone_and_comes_back_with_it(self):
        with Server() as server:
            page = self.browser.open(server.url)
            until(page, "document.getElementById('status').dataset.state === 'live'")
            server.stop()
            until(page, "document.getElementById('status').dataset.state === 'lost'")
            with Server(port=server.port) as again:
                until(page, "document.getElementById('status').dataset.state === 'live'")
                traffic(again, 2)
                self.agrees(page, again)
                page.close()

    def test_it_fits_a_narrow_screen(self):
        with Server() as server:
            traffic(server, 4)
            page = self.browser.open(server.url, width=360, height=800)
            until(page, "document.body.dataset.sequence > 0")
            self.assertLessEqual(page.evaluate("document.documentElement.scrollWidth"), 360)
            page.close()


def take_screenshots(folder):
    """A real model with agents on it."""
    with Browser() as browser, Server("--slots", "2", "--kv-host", "64MiB", model=support.SMOL, threads=2) as server:
        system = "You are one of several agents who look after a pond with geese. " * 30
        def agent(i):
            messages = system + f"Agent {i}. "
            for turn in range(3):
                messages += f"Turn {turn}: what did you see at post {i * 7 + turn}? " * 4
                messages += server.complete(messages, max_tokens=24, ignore_eos=True)["choices"][0]["text"]
        agent(9)
        threads = [threading.Thread(target=agent, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        pages = {scheme: browser.open(server.url, height=1250, color_scheme=scheme) for scheme in ("dark", "light")}
        for page in pages.values():
            until(page, "document.querySelectorAll('#queue-rows tr').length >= 2 && "
                        "document.querySelectorAll('#ended-rows tr').length >= 6 && "
                        "document.querySelectorAll('#chart *').length > 0", 120)
        for scheme, page in pages.items():
            page.screenshot(path=str(pathlib.Path(folder) / f"server-page-{scheme}.png"))
        for thread in threads:
            thread.join()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--screenshots"]:
        take_screenshots(sys.argv[2])
    else:
        unittest.main(verbosity=2)
