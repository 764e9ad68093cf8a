"""Which of ComfyUI's lines are shown, with lines from its logs, 0.3.7 to 0.33."""

from __future__ import annotations

import logging

import pytest

from bootstrap.comfyui.process import LogLines, read_line

OPTIONAL = """\
Traceback (most recent call last):
  File "/v/ComfyUI/nodes.py", line 2146, in load_custom_node
    module_spec.loader.exec_module(module)
ModuleNotFoundError: No module named 'kornia'
Cannot import /v/ComfyUI/comfy_extras/nodes_canny.py module for custom nodes: No module"""
CHAINED = """\
Traceback (most recent call last):
  File "a.py", line 1, in <module>
KeyError: 'x'
During handling of the above exception, another exception occurred:
Traceback (most recent call last):
  File "b.py", line 1, in <module>
ImportError: no x
Cannot import /v/ComfyUI/comfy_extras/nodes_x.py module for custom nodes: no x"""
PACK = OPTIONAL.replace("comfy_extras/nodes_canny.py", "custom_nodes/pack")
BANNER = """\
********** ERROR ***********
comfyui-workflow-templates is not installed.
Please install the updated requirements.txt file by running:
This error is happening because the ComfyUI frontend is no longer shipped as part of the main repo
********** ERROR ***********"""
OLD_FRONT_END = """\
________________________________________________________________________
WARNING WARNING WARNING WARNING WARNING
Installed frontend version 1.9 is lower than the recommended version 1.10.
________________________________________________________________________"""
ROUTINE = """\
Adding extra search path loras /local/models/loras
Setting output directory to: /local/output
Total VRAM 24106 MB, total RAM 24106 MB
Set vram state to: NORMAL_VRAM
Device: cuda:0 NVIDIA A40 : cudaMallocAsync
Using pytorch attention
[Prompt Server] web root: /local/front-end
Import times for custom nodes:
   0.0 seconds: /v/ComfyUI/custom_nodes/websocket_image_save.py
Context impl SQLiteImpl.
Will assume non-transactional DDL.
Starting server
To see the GUI go to: http://127.0.0.1:8188"""


def shown(text: str) -> list[str]:
    """The lines at INFO; all lines must come out, each once and in order."""
    sorter, judged = LogLines(), []
    for line in text.splitlines():
        judged += sorter.feed(line, logging.INFO)
    judged += sorter.flush()
    assert [line for _, line in judged] == text.splitlines()
    return [line for level, line in judged if level >= logging.INFO]


@pytest.mark.parametrize("text", [ROUTINE, BANNER, OLD_FRONT_END], ids=["start", "banner", "old"])
def test_what_every_worker_writes_is_not_shown(text: str) -> None:
    assert shown(text) == []


@pytest.mark.parametrize("text", [OPTIONAL, CHAINED], ids=["plain", "chained"])
def test_a_node_of_comfyuis_own_that_lacks_a_package_is_one_line(text: str) -> None:
    assert shown(text) == text.splitlines()[-1:]
    assert shown(f"{text}\n{OPTIONAL}") == [text.splitlines()[-1], OPTIONAL.splitlines()[-1]]


@pytest.mark.parametrize(
    "text",
    [
        PACK,
        "got prompt",
        "!!! Exception during processing !!! out of memory",
        "   5.3 seconds (IMPORT FAILED): /v/ComfyUI/custom_nodes/pack",
        "Traceback (most recent call last):\n  File a\nValueError: x\nsomething else",
        "Traceback (most recent call last):\n  File a",
        "Traceback (most recent call last):\n" + "  File a\n" * 200,
        BANNER.replace("workflow-templates", "x").replace("frontend", "y"),
        BANNER.rpartition("\n")[0],
    ],
)
def test_what_may_matter_is_shown_whole(text: str) -> None:
    expected = [line for line in text.splitlines() if not line.startswith("   0.")]
    assert shown(text) == expected


def test_a_traceback_that_something_else_follows_hides_nothing() -> None:
    own = "Traceback (most recent call last):\n  File a\nValueError: of a pack"
    text = f"{own}\n{OPTIONAL}"
    assert shown(text) == [*own.splitlines(), OPTIONAL.splitlines()[-1]]


def test_what_is_held_is_known_to_be() -> None:
    sorter = LogLines()
    held = [
        (bool(sorter.feed(line, logging.INFO)), sorter.holds)
        for line in ("got prompt", PACK.split("\n")[0])
    ]
    assert held == [(True, False), (False, True)]
    assert sorter.flush() == [(logging.INFO, "Traceback (most recent call last):")]
    assert (sorter.flush(), sorter.holds) == ([], False)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("\x1b[32m[INFO]\x1b[0m got prompt\n", (logging.INFO, "got prompt")),
        (
            "\x1b[32m[INFO]\x1b[0m \x1b[32mPrompt executed in 1.00 seconds\x1b[0m\n",
            (logging.INFO, "Prompt executed in 1.00 seconds"),
        ),
        ("\x1b[36m[DEBUG]\x1b[0m it was asked for\n", (logging.INFO, "it was asked for")),
        ("\x1b[1m\x1b[33m[WARNING]\x1b[0m slow\n", (logging.WARNING, "slow")),
        ("\x1b[1m\x1b[31m[ERROR]\x1b[0m bad\n", (logging.ERROR, "bad")),
        ("\x1b[1m\x1b[35m[CRITICAL]\x1b[0m worst\n", (logging.CRITICAL, "worst")),
        (
            "  a node's print \x1b[1m\x1b[33m[WARNING]\x1b[0m    0.1 seconds: a\n",
            (logging.WARNING, "  a node's print    0.1 seconds: a"),
        ),
        ("\x1b[92m[a pack]\x1b[0m ready\x1b[K \n", (logging.INFO, "[a pack] ready")),
        ("[ERROR] a node's own tag\n", (logging.INFO, "[ERROR] a node's own tag")),
        ("\x1b[32m[INFO]\x1b[0m \n", (logging.INFO, "")),
    ],
)
def test_lines_since_may_2026_lose_their_colours_and_tell_their_level(
    written: str, expected: tuple[int, str]
) -> None:
    text, level = read_line(written.encode())
    assert (level, text) == expected


def test_lines_keep_their_level_unless_they_are_routine() -> None:
    sorter = LogLines()
    assert sorter.feed("slow", logging.WARNING) == [(logging.WARNING, "slow")]
    assert sorter.feed("torchaudio missing, ACE", logging.WARNING)[0][0] == logging.DEBUG
    first, *rest = PACK.splitlines()
    judged = sorter.feed(first, logging.ERROR)
    for line in rest:
        judged += sorter.feed(line, logging.INFO)
    trace = [(logging.ERROR, line) for line in (first, *rest[:-1])]
    assert judged == [*trace, (logging.INFO, rest[-1])], "a traceback has one level"
    assert sorter.feed("got prompt", logging.INFO) == [(logging.INFO, "got prompt")]
