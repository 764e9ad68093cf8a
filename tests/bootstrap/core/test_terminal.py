"""Findings on a terminal of any width and in a file, and which commands can be copied."""

from __future__ import annotations

import io
import re
import subprocess

import pytest

from bootstrap.core.findings import docs_url, error, info, ok, warning
from bootstrap.core.terminal import PLAIN, Style, findings_text, report

COMMAND = "mv -n -t /workspace/models/loras /workspace/loras/a-rather-long-name-of-a-lora.pt"
FOUND = [
    ok("models.found", "13 models."),
    warning(
        "volume.models_misplaced",
        "ComfyUI does not read models in /workspace/loras; they belong in /workspace/models/loras.",
        f"On a Pod with this volume: `{COMMAND}`. Names that are taken there stay.",
    ),
    error("volume.read_only", "The volume is mounted read-only.", "Mount it for writing."),
    info("volume.local", "It is on a disk of this machine."),
]
BARE = re.compile("\033(?:\\[[0-9;]*m|\\]8;;[^\033]*\033\\\\)")


@pytest.mark.parametrize("width", [40, 80, 200])
def test_it_keeps_to_the_width_but_for_commands(width: int) -> None:
    text = BARE.sub("", findings_text(FOUND, Style(width, True, True), "/workspace"))
    lines = text.splitlines()
    whole = re.sub(r" \\\n +", " ", text).splitlines()
    assert f"      {COMMAND}" in whole, "alone, as it is typed"
    longest = max(map(len, COMMAND.split())) + 10  # a word is never cut
    assert max(map(len, lines)) <= max(width, longest)
    assert [line[0] for line in lines if line[0] != " "] == ["✗", "!", "•", "✓"]
    assert "models in loras; they" in " ".join(text.split()), "relative to the volume"
    assert "On a Pod" not in text, "that is where it is read"


def test_off_a_terminal_it_is_plain_a_line_for_each() -> None:
    lines = findings_text(FOUND, PLAIN).splitlines()
    assert "".join(lines).isascii() and "\033" not in "".join(lines)
    assert lines[0] == "x The volume is mounted read-only. [volume.read_only]"
    assert lines[1] == "    Mount it for writing."
    assert lines[2].startswith("! ComfyUI does not read models in /workspace/loras;")
    assert lines[3] == "    On a Pod with this volume:"
    assert lines[5] == "    Names that are taken there stay."


def test_code_within_a_sentence_stays_there() -> None:
    found = [error("a.b", "It is wrong.", "Run `chmod -R a+rX` on it, or set `X=1`.")]
    assert findings_text(found).splitlines()[1] == "    Run `chmod -R a+rX` on it, or set `X=1`."


def test_a_code_is_a_link_to_what_it_means_on_a_terminal() -> None:
    text = findings_text(FOUND, Style(80, True, True))
    assert f"\033]8;;{docs_url('volume.read_only')}\033\\" in text


def test_a_report_of_a_command_keeps_to_the_width(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "60")
    out = Terminal()
    assert report([FOUND[1], FOUND[2]], out)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("warning[volume.models_misplaced]: ComfyUI does")
    assert lines[-2:] == [
        "error[volume.read_only]: The volume is mounted read-only.",
        "hint: Mount it for writing.",
    ]
    assert all(len(line) <= 60 for line in lines if COMMAND not in line)


def test_what_can_be_repaired_says_so() -> None:
    lines = findings_text(FOUND, PLAIN, repaired={"volume.models_misplaced"}).splitlines()
    assert lines.count("    --fix repairs this.") == 1


def test_a_name_that_is_longer_than_the_line_is_not_cut() -> None:
    path = "models/checkpoints/" + "a" * 90 + ".safetensors"
    text = findings_text([error("a.b", f"{path} is damaged.", "")], Style(80))
    assert path in text.split()


@pytest.mark.parametrize(
    "command",
    [
        "mkdir -p /w/models/loras && mv -n /w/loras/x.safetensors /w/models/loras/ && rmdir /w/a",
        "printf '%s && ' one two three four five six seven eight && echo 'a && b; c' | cat; true",
        'printf "it\'s && so %s " one two three four five six seven eight nine ten && echo x',
    ],
)
def test_a_long_command_is_broken_where_bash_reads_on(command: str) -> None:
    lines = Style(width=60).command(command, "    ")
    assert len(lines) > 1 and all(x.startswith("    ") and len(x) <= 60 for x in lines)
    echoed = [
        subprocess.run(
            ["bash", "-c", f"mkdir() {{ echo mkdir $@; }}; mv() {{ echo $@; }}\n{text}"],
            capture_output=True,
            check=False,
        ).stdout
        for text in (command, "\n".join(lines))
    ]
    assert echoed[0] == echoed[1] != b""


def test_what_stands_between_backticks_is_not_broken() -> None:
    lines = Style(width=40).wrapped("Type this on a Pod, please: `comfyui-worker nodes pull`, now.")
    assert "`comfyui-worker nodes pull`, now." in lines
