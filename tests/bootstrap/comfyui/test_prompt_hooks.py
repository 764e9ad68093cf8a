"""Hooks in a ComfyUI with different internals: it starts, and runs its prompts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from bootstrap.comfyui import run_main

MAIN = """
import execution
executor = execution.PromptExecutor()
print(executor.execute({"1": {"inputs": {}}}, "id", {"comfyui_worker": {"rerun": ["1"]}, "a": 1},
                       EXECUTE))
"""
WITHOUT_QUEUE = """
class PromptExecutor:
    server = None
    def execute(self, prompt, prompt_id, extra_data={}, execute_outputs=[], later=0):
        return sorted(extra_data), execute_outputs, later
"""
OTHERWISE = (
    WITHOUT_QUEUE
    + """
class Odd:
    cache_key_set = None
class PromptQueue:
    def put(self, item, front=False):
        return item, front
PromptExecutor.caches = type("Caches", (), {"outputs": Odd()})
PromptExecutor.history_result = {"outputs": None}
"""
)


@pytest.mark.parametrize(
    ("module", "call", "said"),
    [
        (WITHOUT_QUEUE, "['1']", "(['a', 'comfyui_worker'], ['1'], 0)"),
        (OTHERWISE, "['1']", "(['a'], ['1'], 0)"),
        (OTHERWISE, "['1'], 7", "(['a'], ['1'], 7)"),
        (OTHERWISE, "execute_outputs=['1'], later=7", "(['a'], ['1'], 7)"),
    ],
)
def test_a_comfyui_that_looks_otherwise_runs_its_prompts(
    tmp_path: Path, module: str, call: str, said: str
) -> None:
    (tmp_path / "execution.py").write_text(module)
    (tmp_path / "main.py").write_text(MAIN.replace("EXECUTE", call))
    command = [sys.executable, run_main.__file__, "main.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == said, done.stderr
    assert done.returncode == 0 and done.stderr, "what is left out is said"


def test_a_prompt_of_another_shape_is_queued_unchanged(tmp_path: Path) -> None:
    (tmp_path / "execution.py").write_text(OTHERWISE)
    (tmp_path / "main.py").write_text(
        "import execution\nqueue = execution.PromptQueue()\n"
        "print(queue.put((1, 'id'), front=True))\n"
        "queue.currently_running = {0: (1, 'x')}\nprint(queue.put((1, 'id')))\n"
    )
    command = [sys.executable, run_main.__file__, "main.py"]
    said = subprocess.check_output(command, cwd=tmp_path, text=True, stderr=subprocess.DEVNULL)
    assert said.splitlines() == ["((1, 'id'), True)", "((1, 'id'), False)"]


def test_garbage_is_collected_once_the_nodes_are_imported_without_passing_over_them(
    tmp_path: Path,
) -> None:
    """Also where hooks are left out; an executor that a node makes later changes nothing."""
    (tmp_path / "execution.py").write_text(WITHOUT_QUEUE)
    (tmp_path / "main.py").write_text(
        "import execution, gc\n"
        "for _ in range(2):\n"
        "    print(gc.isenabled(), gc.get_freeze_count() > 1000)\n"
        "    execution.PromptExecutor()\n"
        "frozen = gc.get_freeze_count()\n"
        "later = [[] for _ in range(9)]\n"
        "execution.PromptExecutor()\n"
        "print(gc.isenabled(), gc.get_freeze_count() == frozen)\n"
    )
    command = [sys.executable, run_main.__file__, "main.py"]
    said = subprocess.check_output(command, cwd=tmp_path, text=True, stderr=subprocess.DEVNULL)
    assert said.splitlines() == ["False False", "True True", "True True"]
