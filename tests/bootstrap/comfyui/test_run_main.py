"""What the wrapper around ComfyUI's main.py does: real processes, a real control group."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from bootstrap.comfyui import ComfyUI, Launch, run_main, wait_until_ready
from bootstrap.comfyui.launch import Folders
from bootstrap.comfyui.readiness import importing_node, innermost_call
from tests.prove.places import CannotInject, Container, container
from tests.support.waiting import wait_until

MB = 1 << 20
MEMORY = """
import json, psutil
before = psutil.virtual_memory()
held = bytearray(100 << 20)
print(json.dumps([before._asdict(), psutil.virtual_memory()._asdict()]))
"""


@pytest.fixture
def limited() -> Iterator[Container]:
    try:
        with container(600 * MB) as made:
            yield made
    except CannotInject as problem:
        pytest.skip(str(problem))


def test_psutil_reports_the_containers_memory(tmp_path: Path, limited: Container) -> None:
    (tmp_path / "main.py").write_text(MEMORY)
    command = [sys.executable, run_main.__file__, "main.py"]
    said = subprocess.check_output(limited.around(command), cwd=tmp_path, text=True)
    before, after = json.loads(said)
    assert before["total"] == 600 * MB < psutil.virtual_memory().total
    assert 400 * MB < before["available"] < 600 * MB
    assert 90 * MB < before["available"] - after["available"] < 150 * MB
    assert after["used"] == after["total"] - after["available"]
    assert 15 < after["percent"] < 40


def test_without_a_limit_psutil_reports_the_machines_memory(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(MEMORY)
    command = [sys.executable, run_main.__file__, "main.py"]
    before, _ = json.loads(subprocess.check_output(command, cwd=tmp_path, text=True))
    assert before["total"] <= psutil.virtual_memory().total


def test_comfyuis_of_one_machine_share_its_memory(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(MEMORY)
    command = [sys.executable, run_main.__file__, "main.py"]
    totals = []
    for count in ("1", "4"):
        env = {**os.environ, run_main.INSTANCES: count}
        said = subprocess.check_output(command, cwd=tmp_path, text=True, env=env)
        totals.append(json.loads(said)[0]["total"])
    assert totals[1] == totals[0] // 4


def test_a_python_without_psutil_runs_main_as_well(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("print('it runs')")
    command = [sys.executable, "-S", run_main.__file__, "main.py"]
    assert subprocess.check_output(command, cwd=tmp_path, text=True) == "it runs\n"


def starting(tmp_path: Path, python: Path = Path(sys.executable)) -> ComfyUI:
    folders = Folders(tmp_path, tmp_path, tmp_path, tmp_path, tmp_path, "sqlite://")
    return ComfyUI(Launch(python, tmp_path, folders, frozenset(), (), dict(os.environ), 0))


HANGING = """
import importlib, sys, threading
threading.Thread(target=threading.Event().wait, daemon=True).start()
def load_custom_node(name):
    sys.path.insert(0, "custom_nodes")
    importlib.import_module(name)
print("loading", flush=True)
load_custom_node("slow_pack")
"""


@pytest.mark.parametrize(
    "line",
    [
        "import time; time.sleep(600)",
        # Holds Python's lock: nothing written in Python would get to say anything.
        "import re; re.match(r'(a+)+$', 'a' * 64 + 'b')",
    ],
)
def test_a_node_that_hangs_at_its_import_is_named_with_the_place(tmp_path: Path, line: str) -> None:
    (tmp_path / "main.py").write_text(HANGING)
    pack = tmp_path / "custom_nodes/slow_pack"
    pack.mkdir(parents=True)
    (pack / "__init__.py").write_text(f"print('here', flush=True)\n{line}\n")
    comfyui = starting(tmp_path)
    comfyui.start()
    try:
        wait_until(lambda: "here" in comfyui.log_tail())
        waited = wait_until_ready(comfyui, 1)
    finally:
        comfyui.stop()
    assert waited.finding is not None and waited.finding.code == "comfyui.node_hangs"
    assert "slow_pack" in waited.finding.message
    assert f"{pack}/__init__.py:2 in <module>" in waited.finding.message
    assert f"{pack}.disabled" in waited.finding.fix


def test_where_no_node_is_imported_the_place_is_named(tmp_path: Path) -> None:
    script = "import time\n\ndef wait():\n    print('here', flush=True); time.sleep(600)\nwait()\n"
    (tmp_path / "main.py").write_text(script)
    comfyui = starting(tmp_path)
    comfyui.start()
    try:
        wait_until(lambda: "here" in comfyui.log_tail())
        waited = wait_until_ready(comfyui, 0.5)
    finally:
        comfyui.stop()
    assert waited.finding is not None and waited.finding.code == "comfyui.start_timeout"
    assert "main.py:4 in wait" in waited.finding.message


def test_a_process_that_does_not_listen_yet_is_not_killed_by_the_question(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho here\nsleep 1\n")
    python.chmod(0o755)
    comfyui = starting(tmp_path, python)
    comfyui.start()
    wait_until(lambda: bool(comfyui.log_tail()))
    assert comfyui.stacks(0.1) == []
    wait_until(lambda: comfyui.ended() is not None)
    ended = comfyui.ended()
    assert ended is not None and ended.code == 0


def test_stacks_without_a_node_and_without_sense() -> None:
    assert importing_node([]) is None and innermost_call(["Current thread 0x1 ("]) is None
    elsewhere = ["Thread 0x1 (x):", '  File "/v/custom_nodes/a/b.py", line 3 in run']
    assert importing_node(elsewhere) is None
    assert innermost_call(elsewhere) == "/v/custom_nodes/a/b.py:3 in run"
