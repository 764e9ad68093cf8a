"""Colours go to people's terminals only."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from tests.support.sources import ROOT

PROGRAM = (
    "import sys; from bootstrap.core.terminal import style_of as s; print(s(sys.stdout).colour)"
)


@pytest.mark.parametrize(("no_color", "wanted"), [("", b"True"), ("1", b"False")])
def test_a_terminal_has_colours_unless_someone_says_no(no_color: str, wanted: bytes) -> None:
    ours, its = pty.openpty()
    env = {**os.environ, "NO_COLOR": no_color, "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=env, stdout=its, check=True)
    assert os.read(ours, 100).strip() == wanted
    os.close(its)
    os.close(ours)


def test_a_pipe_has_none() -> None:
    assert subprocess.check_output([sys.executable, "-c", PROGRAM], cwd=ROOT) == b"False\n"
