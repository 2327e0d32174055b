#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""check_bad_input.py KVSTEM: what is wrong with the input is said in one line, with status 2, and nothing is written."""
import gzip
import json
import os
import subprocess
import sys
import tempfile

kvstem = sys.argv[1]
wrong = []


def line(**changes):
    fields = {"timestamp": 0, "input_length": 1024, "output_length": 5, "hash_ids": [1, 2]} | changes
    return json.dumps({k: v for k, v in fields.items() if v is not None})


def run(arguments, stdin=b""):
    return subprocess.run([kvstem, *arguments], input=stdin, capture_output=True, timeout=60)


def refused(what, says, content, arguments=(), trace="trace", command="replay"):
    """`says`: what the message must hold. `content`: bytes of the trace, or None for no file."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, trace)
        if content is not None:
            with open(path, "wb") as file:
                file.write(content)
        outputs = ["--json", os.path.join(folder, "out.json")]
        result = run([command, path, *outputs, *arguments])
        message = result.stderr.decode()
        left = sorted(set(os.listdir(folder)) - {trace})
        if result.returncode != 2 or message.count("\n") != 1 or says not in message or left:
            wrong.append(f"{what}: status {result.returncode}, left {left}, said {message!r}, expected {says!r}")


good = (line() + "\n").encode()
refused("fewer ids than a given block size asks for", "line 1: 2 hash_ids for 1024 tokens", good, ["--trace-block-tokens", "16"])
refused("a seed below 0", "--seed", good, ["--seed", "-1"])
refused("a truncated line", "line 2: is no JSON", good + line()[:40].encode())
refused("text", "line 1: is no JSON", b"hello\n")
refused("an array", "line 1: is an array", b"[1, 2]\n")
refused("a number", "line 1: is a number", b"17\n")
refused("a negative length", "line 2: input_length is negative", good + line(input_length=-5).encode())
refused("a negative output length", "line 1: output_length is negative", line(output_length=-1).encode())
refused("a negative id", "line 1: hash_ids is negative", line(hash_ids=[1, -2]).encode())
refused("a huge length", "line 1: input_length is more than 2^30", line(input_length=2**40).encode())
refused("an absurd length", "line 1: input_length", line(input_length=2**70).encode())
refused("a fraction", "line 1: input_length is a number with a fraction", line(input_length=10.5).encode())
refused("a length that is text", "line 1: input_length is a string", line(input_length="10").encode())
refused("an id that is text", "line 1: hash_ids holds a string", line(hash_ids=["a"]).encode())
refused("ids that are no list", "line 1: hash_ids is a number", line(hash_ids=5).encode())
refused("a field that is null", "line 1: hash_ids is null", (line()[:-1].replace("[1, 2]", "null") + "}").encode())
for field in ("timestamp", "input_length", "output_length", "hash_ids"):
    refused(f"no {field}", f"line 2: {field} is missing", good + line(**{field: None}).encode())
refused("more ids than the length allows", "line 2: 3 hash_ids for 1000 tokens", good + line(input_length=1000, hash_ids=[1, 2, 3]).encode())
refused("fewer ids than whole blocks", "line 2: 1 hash_ids for 4000 tokens", good + line(input_length=4000, hash_ids=[1]).encode())
refused("more ids than tokens", "line 1: 3 hash_ids for 2 tokens", line(input_length=2, hash_ids=[1, 2, 3]).encode())
refused("more ids than a given block size allows", "line 1: 2 hash_ids for 1024 tokens", good, ["--trace-block-tokens", "1024"])
refused("ids without tokens", "line 1: hash_ids without tokens", line(input_length=0).encode())
refused("time running backwards", "line 2: time runs backwards", (line(timestamp=7) + "\n" + line(timestamp=6)).encode())
refused("an empty file", "holds no request", b"")
refused("blank lines only", "holds no request", b"\n \n")
refused("no whole block", "nothing can be cached", line(input_length=10, hash_ids=[1]).encode(), ["--trace-block-tokens", "512"])
refused("a missing file", "No such file", None)
refused("a folder", "is a folder", good, [tempfile.gettempdir(), "--capacity", "1"])
refused("capacity 0", "must be more than 0", good, ["--capacity", "0"])
refused("a negative capacity", "must be more than 0", good, ["--capacity=-5"])
refused("a capacity that is none", "is no number", good, ["--capacity", "much"])
refused("bytes of unknown tokens", "need --bytes-per-token", good, ["--capacity", "1GiB"])
refused("less than a block", "is less than one block", good, ["--capacity", "1kB", "--bytes-per-token", "1000"])
refused("an unknown policy", "there are lru", good, ["--policy", "clock"])
refused("unknown hints", "there are none, engine, session", good, ["--hints", "oracle"])
refused("noise without an oracle", "need --hints session", good, ["--capacity", "1", "--hint-recall", "0.5"])
refused("more than all ends", "are fractions", good, ["--hints", "session", "--hint-recall", "1.5"])
refused("an unknown option", "--frobnicate", good, ["--frobnicate"])
refused("a part that is empty", "leave no request", good, ["--capacity", "1", "--from", "0.9", "--to", "0.95"])
refused("a part that is backwards", "--from and --to", good, ["--from", "0.9", "--to", "0.1"])
refused("a negative pin", "--pin-seconds", good, ["--pin-seconds=-1,0"])
refused("half a pin", "--pin-seconds", good, ["--pin-seconds", "1"])
refused("several replays in one --per-request", "--per-request takes one", good, ["--per-request", "/dev/null"])
refused("a place that cannot be written", "cannot be written", good, ["--capacity", "1", "--per-request", "/nowhere/file"])
refused("a cut gzip file", "ends early", gzip.compress(good * 1000)[:-30])
refused("a gzip file with wrong bytes", "the gzip data is damaged", gzip.compress(good)[:10] + b"\xff" * 4000)
refused("a cut zstd file", "ends early", b"\x28\xb5\x2f\xfd\x04")

refused("a zstd file with wrong bytes", "the zstd data is damaged", b"\x28\xb5\x2f\xfd" + b"\xff" * 40)

for command, needed in (("why", []), ("plan", ["--bytes-per-token", "1000"])):
    def also(what, says, content, arguments=(), command=command, needed=needed):
        refused(f"{command}: {what}", says, content, [*needed, *arguments], command=command)
    also("a truncated line", "line 2: is no JSON", good + line()[:40].encode())
    also("time running backwards", "line 2: time runs backwards", (line(timestamp=7) + "\n" + line(timestamp=6)).encode())
    also("an empty file", "holds no request", b"")
    also("a missing file", "No such file", None)
    also("a part that is backwards", "--from and --to", good, ["--from", "0.9", "--to", "0.1"])
    also("an unknown option", "--frobnicate", good, ["--frobnicate"])
refused("why: capacity 0", "must be more than 0", good, ["--capacity", "0"], command="why")
refused("why: no places", "--top", good, ["--top", "0"], command="why")
refused("plan: nothing said of a token", "--model", good, command="plan")
refused("plan: a negative size", "must be more than 0", good, ["--bytes-per-token", "1", "--disk=-1GiB"], command="plan")
refused("plan: a size without unit", "no unit of bytes", good, ["--bytes-per-token", "1", "--disk", "100"], command="plan")
refused("plan: half of the gain", "both", good, ["--bytes-per-token", "1", "--prefill-speed", "100"], command="plan")
refused("plan: a missing model", "nowhere", good, ["--model", "/nowhere"], command="plan")
refused("plan: an element without a model", "needs --model", good, ["--bytes-per-token", "1", "--kv-element-bytes", "1"], command="plan")

for arguments in ([], ["frobnicate"], ["replay"], ["why"], ["plan"], ["trace"]):
    result = run(arguments)
    if result.returncode != 2 or result.stderr.count(b"\n") != 1:
        wrong.append(f"kvstem {arguments}: status {result.returncode}, said {result.stderr!r}")
for arguments in (["--help"], ["replay", "--help"], ["why", "--help"], ["plan", "--help"], ["trace", "--help"], ["--version"]):
    result = run(arguments)
    if result.returncode != 0 or not result.stdout or result.stderr:
        wrong.append(f"kvstem {arguments}: status {result.returncode}, said {result.stderr!r}")

# What is right: standard input, every compression, and no progress in a pipe.
expected = None
for name, content in (("plain", good * 50), ("gzip", gzip.compress(good * 20) + gzip.compress(good * 30)),
                      ("zstd", subprocess.run(["zstd", "-c"], input=good * 50, capture_output=True, check=True).stdout)):
    result = run(["replay", "-", "--capacity", "1,2"], content)
    text = result.stdout.replace(b"standard input", b"")
    rows = [row.rsplit(None, 1)[0] for row in text.splitlines() if row.startswith(b"lru")]
    if result.returncode != 0 or result.stderr or len(rows) != 2 or (expected or rows) != rows:
        wrong.append(f"{name}: status {result.returncode}, printed {result.stdout!r}, said {result.stderr!r}")
    expected = rows

# Outputs: never the input, never one for two, through links, and into pipes and devices as they are.
with tempfile.TemporaryDirectory() as folder:
    path, link, target = (os.path.join(folder, name) for name in ("trace", "link", "target"))
    with open(path, "wb") as file:
        file.write(good)
    with open(target, "w") as file:
        file.write("old")
    os.symlink(target, link)
    for arguments, says in ((["replay", path, "--capacity", "1", "--json", path], b"is read as well"),
                            (["why", path, "--json", os.path.join(folder, ".", "trace")], b"is read as well"),
                            (["plan", path, "--bytes-per-token", "1", "--json", path], b"is read as well"),
                            (["replay", path, "--capacity", "1", "--json", target, "--per-request", link], b"is written twice"),
                            (["replay", path, "--json", folder], b"is a folder"), (["replay", path, "--json", "-"], b"is no file")):
        result = run(arguments)
        with open(path, "rb") as file:
            kept = file.read() == good
        if result.returncode != 2 or says not in result.stderr or result.stderr.count(b"\n") != 1 or result.stdout or not kept:
            wrong.append(f"{arguments}: status {result.returncode}, said {result.stderr!r}, input kept: {kept}")
    result = run(["replay", path, "--capacity", "1", "--json", link])
    with open(target) as file:
        if result.returncode != 0 or not os.path.islink(link) or json.load(file)["results"][0]["policy"] != "lru":
            wrong.append(f"a link was not followed: {result}")
    pipe = os.path.join(folder, "pipe")
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    result = run(["replay", path, "--capacity", "1", "--json", pipe])
    if result.returncode != 0 or b"hit_rate" not in reader.communicate(timeout=60)[0]:
        wrong.append(f"a named pipe: {result}")
    with open("/dev/full", "wb") as full:
        for arguments in (["replay", path, "--capacity", "1"], ["why", path], ["plan", path, "--bytes-per-token", "1"]):
            result = subprocess.run([kvstem, *arguments], stdout=full, stderr=subprocess.PIPE)
            if result.returncode != 2 or b"standard output could not be written" not in result.stderr:
                wrong.append(f"{arguments} to a full device: {result}")
    if sorted(os.listdir(folder)) != ["link", "pipe", "target", "trace"]:
        wrong.append(f"left behind: {os.listdir(folder)}")

for text in wrong:
    print(text)
sys.exit(bool(wrong))
