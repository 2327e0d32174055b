#!/usr/bin/env python3
# SPDX-FileCopyrightText: 2026 The kvstem authors
# SPDX-License-Identifier: Apache-2.0
"""mutants.py NAME|none|--list SOURCE_FOLDER WORK_FOLDER COMPILER [COMPILE-ARGUMENT...]: would the model check notice?

Breaks the library in one way, compiles a model check against the broken headers as one unit, and runs it: it must fail. That
is the oracle engine's, and for groups the walk in unit/groups_lease.cpp (a device that keeps the order, as there, cannot see
a state that is published early: that one has a test of its own). `none` breaks nothing, and the check must pass. What a mutant replaces must be in the sources exactly once, so
a change of the sources that makes a mutant meaningless is an error here.
"""
import os
import re
import shutil
import subprocess
import sys

ORACLE = ("model/oracle_model_check.cpp", [])
WALK = ("unit/groups_lease.cpp", ["whatever leases do*"])
NOTICED_BY = {"window_one_short": WALK, "state_one_block_off": WALK, "pin_of_another_group": WALK,
              "state_before_its_point": ("unit/groups_match.cpp", ["a state waits for its own point*"])}
OPERATIONS = 300_000  # effective ones; a mutant is found long before, or not at all

# name: (what goes wrong, [(header below include/kvstem, text, its replacement)])
MUTANTS = {
    "matched_block_evicted": ("what a lease was matched to is not pinned", [
        ("cache/room.hpp", "info.children == 0 && info.references == 0 &&\n", "info.children == 0 &&\n"),
        ("index/prefix_index.hpp", "    if ((state & 0xffffffffu) != 0 ||\n        !run.state.compare_exchange_strong(state, state | kEvicting",
         "    if (!run.state.compare_exchange_strong(state, state | kEvicting")]),
    "draft_published": ("a commit takes what was reserved for drafts as verified", [
        ("cache/cache.hpp", "    r.committed += n;\n    r.scheduled = std::max(r.scheduled, r.committed);",
         "    r.committed = std::max(r.committed + n, std::min(r.known, r.scheduled));\n"
         "    r.scheduled = std::max(r.scheduled, r.committed);")]),
    "stale_handle": ("a handle is good for whatever lease has its number", [
        ("cache/cache.hpp", "return r.active && !r.releasing && r.generation == generation ? &r : nullptr;",
         "return r.active && !r.releasing ? &r : nullptr;")]),
    "double_release": ("a slot that was given back still counts as the lease's", [
        ("cache/branches.hpp", "if (std::exchange(own_[row(lease) + b], std::uint8_t{0}) == kOwnToLoad)",
         "if (own_[row(lease) + b] == kOwnToLoad)")]),
    "no_copy_on_write": ("two that share a block both write into it", [
        ("cache/branches.hpp", "return slots_.users(slot) > 1 || slots_.read_tokens(slot) > filled;", "return slot == kNoSlot;")]),
    "slot_reused_in_its_step": ("a slot is free before the step that may touch it has ended", [
        ("cache/slot_books.hpp", "at_once ? pool_.free_at_once(slot, last_step_) : pool_.free(slot);",
         "pool_.free_at_once(slot, at_once ? last_step_ : last_step_);")]),
    "truncate_below_shared": ("a lease may cut what it began with", [
        ("cache/branches.hpp", "  if (n < r.prompt_tokens)\n", "  if (n < r.prompt_tokens && n == 0xffffffffu)\n")]),
    "pending_outlives_owner": ("blocks stay claimed by a lease that is gone", [
        ("cache/cache.hpp", "if (owner == lease + 1) owner = kOrphan;", "if (owner == lease + 1 && owner == 0) owner = kOrphan;")]),
    "late_load_into_given_slot": ("a load under way does not keep its slot", [
        ("cache/branches.hpp", "if (std::exchange(own_[row(lease) + b], std::uint8_t{0}) == kOwnToLoad)",
         "own_[row(lease) + b] = 0; while (slots_.writes(slot) > 0)")]),
    "window_one_short": ("a window gives back one token too much", [
        ("cache/group_set.hpp", "return (tokens - g.facts.window_tokens) / g.tokens;",
         "return (tokens - g.facts.window_tokens + 1) / g.tokens;")]),
    "state_one_block_off": ("a state is served for the block before its own", [
        ("cache/group_set.hpp", "const BlockPos at = v.pos[blocks - 1]; if (g.share[at] != 0) return false;",
         "const BlockPos at = v.pos[blocks - (blocks > 1 ? 2 : 1)]; if (g.share[at] != 0) return false;")]),
    "pin_of_another_group": ("only the first group's shares are pinned, and the others go by its pins", [
        ("cache/group_set.hpp", "if (g.links[at].pins++ > 0) return;", "if (&g != &groups_[0] || g.links[at].pins++ > 0) return;"),
        ("cache/group_set.hpp", "if (--g.links[at].pins == 0) link(g, at);", "if (&g == &groups_[0] && --g.links[at].pins == 0) link(g, at);")]),
    "state_before_its_point": ("a state is published before its point is reached", [
        ("cache/group_set.hpp", "if (!v.shared || s.tokens > v.valid || blocks > std::min(v.settled, v.in_tree)) return false;",
         "if (!v.shared || blocks > v.in_tree) return false;"),
        ("cache/group_set.hpp", "if (s.tokens > v.valid) part.states[left++] = s;", "if (s.tokens == 0) part.states[left++] = s;")]),
    "failed_load_served": ("a load that failed counts as one that did not", [
        ("cache/moves.hpp", "  if (ok) {\n    stats_.onboarded_blocks += !copy;", "  if (ok || !copy) {\n    stats_.onboarded_blocks += !copy;")]),
}


def main():
    if sys.argv[1] == "--list":
        print(*MUTANTS, sep=";")
        return
    name, source, work, compiler, *arguments = sys.argv[1:]
    what, changes = MUTANTS[name] if name != "none" else ("nothing", [])
    folder = os.path.join(work, name)
    shutil.rmtree(folder, ignore_errors=True)
    include = os.path.join(folder, "include")
    shutil.copytree(os.path.join(source, "include"), include)
    for header, before, after in changes:
        path = os.path.join(include, "kvstem", header)
        with open(path) as file:
            text = file.read()
        # Line breaks are the formatter's affair.
        pattern = re.compile(r"\s+".join(re.escape(word) for word in before.split()))
        if len(pattern.findall(text)) != 1:
            sys.exit(f"{name}: {header} has this {len(pattern.findall(text))} times, adapt the mutant:\n{before}")
        with open(path, "w") as file:
            file.write(pattern.sub(lambda _: after.strip(), text))
    program = os.path.join(folder, "check")
    tests = os.path.join(source, "tests")
    unit, case = NOTICED_BY.get(name, ORACLE)
    subprocess.run([compiler, "-std=c++20", "-O1", "-w", f"-I{include}", f"-I{tests}",
                    os.path.join(tests, unit), "-o", program, *arguments], check=True)
    environment = dict(os.environ, KVSTEM_MODEL_OPS=str(OPERATIONS))
    try:
        run = subprocess.run([program, *case], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=240)
        failed, output = run.returncode != 0, run.stdout
    except subprocess.TimeoutExpired as expired:
        failed, output = True, (expired.stdout or b"").decode(errors="replace") + "\nit hangs"
    shutil.rmtree(folder)
    print("\n".join(output.splitlines()[-12:]))
    if failed != (name != "none"):
        sys.exit(f"{name}: {what}, and the check {'fails' if failed else 'does not notice'}")
    print(f"{name}: {what}; the check {'notices' if failed else 'passes'}")


if __name__ == "__main__":
    main()
