"""Our regular expressions on long input: none takes time that grows out of proportion."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.pattern_fuzz import Used, slow_ones, texts, used_patterns

ROOT = Path(__file__).resolve().parents[1]
# As long as the files on a volume that are read (64 KB), and so much processor time for one text as
# a quadratic pattern takes there; a linear one takes milliseconds.
LENGTH, SECONDS = 64_000, 3.0


def test_no_pattern_takes_long_on_long_input() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.pattern_fuzz", str(LENGTH), str(SECONDS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=150,
        check=True,
    )
    reported = json.loads(done.stdout)
    assert reported["patterns"] > 100, "they are not found any more"
    assert reported["unknown"] == []
    assert reported["slow"] == []


def test_the_fuzzing_finds_what_it_looks_for() -> None:
    """The pattern that hung a boot, and a nested quantifier."""
    import re

    for pattern in (r'^\[remote "origin"\]\n(?:\s+.*\n)*?\s+url\s*=\s*(\S+)', r"(?:a+)+b"):
        used = Used("here", re.compile(pattern, re.MULTILINE), frozenset({"search"}))
        assert slow_ones([used], 1000, 0.5), pattern
        assert len(list(texts(used.pattern, 100))) > 5


def test_patterns_are_found_with_the_way_they_are_used() -> None:
    used, _ = used_patterns()
    (commit,) = [one for one in used if "{40}|" in str(one.pattern.pattern)]
    assert commit.methods == {"fullmatch"}
