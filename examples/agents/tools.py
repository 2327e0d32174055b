# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""What an agent may do: read one folder, and no more; and the lines in which it asks for it.

Tools only read, and never leave the root: names are resolved, symlinks included, before anything is opened. Everything that
goes wrong is a `Refused`, whose words are for the model to read. Results depend on the folder alone, not on where it lies.
"""
import os
import pathlib
import re
from dataclasses import dataclass

NAMES = ("list", "read", "search", "delegate")
ALIASES = {"ls": "list", "dir": "list", "cat": "read", "open": "read", "view": "read", "grep": "search", "find": "search"}
USAGE = {"list": "TOOL: list DIR", "read": "TOOL: read FILE FROM-TO", "search": "TOOL: search TEXT DIR",
         "delegate": "TOOL: delegate TASK"}

MANUAL = """\
You work on a folder of source files. You see it through tools. To use one, write one line, and nothing after it:

TOOL: list DIR
  the names in a folder; "." is the top
TOOL: read FILE FROM-TO
  lines of a file; without FROM-TO from its beginning
TOOL: search TEXT DIR
  lines that contain TEXT, with file and number; without DIR everywhere
TOOL: delegate TASK
  a helper that knows all you know does a part of the work, and tells you what it found

The next message begins with RESULT: and is what came back. Long results are cut. Use one tool at a time. Once you know enough, \
write ANSWER: and the answer, in few sentences.

Example:
TOOL: search main( src
"""


class Refused(Exception):
    """A call that cannot be done; its text says why, to the model."""


# ---- the folder


class Tree:
    """A folder and what may be read of it. `limit`: characters of a result."""

    MAX_FILE = 4 << 20   # bytes; larger ones are data, not source
    MAX_FILES = 5000     # that one search looks at

    def __init__(self, root, limit=2000):
        self.root = pathlib.Path(root).resolve()
        self.limit = limit
        if not self.root.is_dir():
            raise Refused(f"{root} is no folder")

    def run(self, call):
        """The result of a call of `list`, `read` or `search`."""
        try:
            return {"list": self.list, "read": self.read, "search": self.search}[call.tool](*call.arguments)
        except OSError as error:
            raise Refused(f"{call}: {error.strerror}") from None

    def list(self, folder="."):
        path = self._folder(folder)
        # A link is shown as one: what it points to may be outside, and is nobody's business here.
        names = sorted(e.name + ("@" if e.is_symlink() else "/" if e.is_dir() else "")
                       for e in os.scandir(path) if not e.name.startswith("."))
        return self._cut(f"in {self._name(path)}:", names or ["(nothing)"], "there are more; list a folder of these")

    def read(self, file, first=1, last=None):
        path = self._inside(file)
        lines = self.lines(path)
        name, count = self._name(path), len(lines)
        if first > max(1, count):
            raise Refused(f"{name} has only {count} lines")
        shown, size = [], 0
        for line in lines[first - 1:last]:
            size += len(line) + 1
            if shown and size > self.limit:
                break
            shown.append(line[:self.limit])
        end = first - 1 + len(shown)
        text = "\n".join([f"{name}, lines {first}-{end} of {count}:", *shown])
        return text + (f"\n(cut; it goes on at line {end + 1})" if end < min(count, last or count) else "")

    def search(self, text, folder=None):
        words = text.split()
        if folder is None and len(words) > 1 and self._is_folder(words[-1]):  # search TEXT DIR, without quotes
            text, folder = text[:text.rindex(words[-1])].strip(), words[-1]
        hits, sizes, wanted = [], 0, text.lower()
        for path in self.files(folder or "."):
            try:
                lines = self.lines(path)
            except Refused:
                continue  # no text, or too large: nothing to find there
            for number, line in enumerate(lines, 1):
                if wanted in line.lower():
                    hits.append(f"{self._name(path)}:{number}: {line.strip()[:120]}")
                    sizes += len(hits[-1])
            if sizes > self.limit:
                break
        if not hits:
            return f"no line contains {text!r}"
        return self._cut(f"lines with {text!r}:", hits, "there are more; name a folder or a longer text")

    def files(self, folder="."):
        """Paths of all ordinary files below, always in the same order; neither links nor hidden ones."""
        found = 0
        for place, folders, names in os.walk(self._folder(folder)):
            folders[:] = sorted(n for n in folders if not n.startswith("."))
            for name in sorted(names):
                path = pathlib.Path(place, name)
                if not name.startswith(".") and path.is_file() and not path.is_symlink():
                    found += 1
                    if found > self.MAX_FILES:
                        return
                    yield path

    def lines(self, path):
        """A text file's lines."""
        name = self._name(path)
        if path.is_dir():
            raise Refused(f"{name} is a folder; list it")
        if not path.exists():
            raise Refused(f"there is no file {name}")
        if not path.is_file():  # a pipe would wait for ever
            raise Refused(f"{name} is no ordinary file")
        try:
            with open(path, "rb") as file:
                data = file.read(self.MAX_FILE + 1)
        except OSError as error:
            raise Refused(f"{name} cannot be read: {error.strerror}") from None
        if len(data) > self.MAX_FILE:
            raise Refused(f"{name} is too large: files of up to {self.MAX_FILE >> 20} MiB can be read")
        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            raise Refused(f"{name} is no text")
        return [line.rstrip("\r") for line in text.removesuffix("\n").split("\n")] if text else []

    def _inside(self, name):
        """The path that is meant, if it is below the root once all links are followed."""
        try:
            path = (self.root / name).resolve()
            path.exists()
        except (OSError, ValueError, RuntimeError):  # too long, a zero byte, links in a ring
            raise Refused(f"{name[:80]!r} is no name of a file") from None
        if not path.is_relative_to(self.root):
            raise Refused(f"{name} is outside the folder that I may read; names begin at its top, as in src/main.c")
        return path

    def _folder(self, name):
        path = self._inside(name)
        if not path.is_dir():
            raise Refused(f"{self._name(path)} is a file; read it" if path.exists() else f"there is no folder {name}")
        return path

    def _is_folder(self, name):
        try:
            return bool(self._folder(name))
        except Refused:
            return False

    def _name(self, path):
        return path.relative_to(self.root).as_posix()

    def _cut(self, head, lines, advice):
        """As many whole lines as the limit allows."""
        size, shown = 0, []
        for line in lines:
            size += len(line) + 1
            if size > self.limit:
                return "\n".join([head, *shown, f"(cut; {advice})"])
            shown.append(line)
        return "\n".join([head, *shown])


# ---- what the model wrote


@dataclass(frozen=True)
class Call:
    tool: str
    arguments: tuple = ()

    def __str__(self):
        if self.tool == "read" and len(self.arguments) > 1:
            file, first, last = self.arguments
            return f"read {file} {first}-{last or ''}"
        return " ".join([self.tool, *map(str, self.arguments)])


@dataclass(frozen=True)
class Answer:
    text: str


QUOTES = "`\"'“”‘’"
CALL = re.compile(r"(?:tool|call|action)(?:\s*[:=]\s*|\s+(?=(?:list|read|search|delegate)\b))(.*)", re.IGNORECASE)
ANSWER = re.compile(r"(?:final\s+)?answer\s*[:=]\s*(.*)", re.IGNORECASE)
RANGE = re.compile(r"(.+?)[\s,:]+(?:lines?\s*)?\[?(\d+)(?:\s*(?:-|–|:|,|\.\.|to|\s)\s*(\d+)?)?\]?")


def parse(text):
    """(`Call`, `Answer` or None, the text up to there). What follows a call is the model's guess at its result: dropped.

    Small models decorate: lists, quotations, bold, code fences, quotes, capitals. All that is looked through. What is a call
    but makes no sense is Refused, with the text as the exception's second argument.
    """
    lines, fenced = text.strip().splitlines(), False
    for i, line in enumerate(lines):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        bare = _undecorated(line)
        code = fenced or line.strip().startswith("`")  # there a call may stand without TOOL:
        call = CALL.match(bare) or (code and re.match(rf"((?:{'|'.join(NAMES)})\b.*)", bare))
        kept = "\n".join(lines[:i + 1])
        if call:
            try:
                return _call(call[1]), kept
            except Refused as mistake:
                raise Refused(str(mistake), kept) from None
        if answer := ANSWER.match(bare):
            return Answer("\n".join([answer[1], *lines[i + 1:]]).strip(" \n*`")), text.strip()
    return None, text.strip()


def _undecorated(line):
    line = re.sub(r"^(?:[\s>#*+-]|\d+[.)]\s|`{1,3}(?:\w*$)?)+", "", line)
    return re.sub(r"\*\*|__(?=\s|$)", "", line).rstrip(" `")


def _call(text):
    """From what stands behind TOOL: ."""
    found = re.match(r"[\s" + QUOTES + r"]*([A-Za-z_]+)[" + QUOTES + r"]?\s*:?\s*(.*)", text)
    if not found:
        raise Refused("behind TOOL: there is no tool's name; write one of " + ", ".join(USAGE.values()))
    tool = ALIASES.get(found[1].lower(), found[1].lower())
    if tool not in NAMES:
        raise Refused(f"there is no tool {found[1]!r}; write one of " + ", ".join(USAGE.values()))
    rest = found[2].strip()
    if rest.startswith("(") and rest.endswith(")"):  # as a function: read("a.c", 1, 40), read(file="a.c")
        rest = re.sub(r"\b\w+\s*=\s*(?=[\w" + QUOTES + "])", "", rest[1:-1]).strip()
    if not rest and tool != "list":
        raise Refused(f"{tool} needs more: {USAGE[tool]}")
    return Call(tool, {"list": _list, "read": _read, "search": _search, "delegate": lambda r: (r.strip(QUOTES),)}[tool](rest))


def _list(rest):
    return (rest.strip(QUOTES + " ") or ".",)


def _read(rest):
    found = RANGE.fullmatch(rest.strip(" ."))
    if not found:
        return (rest.strip(QUOTES + " ,"),)
    first, last = int(found[2]), int(found[3]) if found[3] else None
    if first < 1 or (last is not None and last < first):
        raise Refused(f"{first}-{last} is no range of lines; they count from 1: {USAGE['read']}")
    return found[1].strip(QUOTES + " ,"), first, last


def _search(rest):
    quoted = re.fullmatch(r"([\"'`])(.+?)\1[\s,]*(?:in\s+)?(.*)", rest)
    if not quoted:
        return (rest.strip(QUOTES),)
    return (quoted[2], quoted[3].strip(QUOTES)) if quoted[3] else (quoted[2],)
