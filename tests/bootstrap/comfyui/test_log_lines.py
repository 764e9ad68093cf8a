"""Which of ComfyUI's lines are shown, with lines from its logs, 0.3.7 to 0.33."""

from __future__ import annotations

import logging

import pytest

from bootstrap.comfyui.process import LogLines

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
        judged += sorter.feed(line)
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
    held = [(bool(sorter.feed(line)), sorter.holds) for line in ("got prompt", PACK.split("\n")[0])]
    assert held == [(True, False), (False, True)]
    assert sorter.flush() == [(logging.INFO, "Traceback (most recent call last):")]
    assert (sorter.flush(), sorter.holds) == ([], False)
