"""Custom nodes in a boot's log."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from bootstrap.environment.imports import MOST_PACKS, check_node_imports, read_imports
from bootstrap.environment.site_packages import PackagesFacts
from tests.conftest import BootedWorker

LOG = """
Traceback (most recent call last):
ModuleNotFoundError: No module named 'cv2'
Cannot import /v/ComfyUI/custom_nodes/Pack module for custom nodes: No module named 'cv2'
Import times for custom nodes:
   0.0 seconds: /v/ComfyUI/custom_nodes/websocket_image_save.py
   7.5 seconds: /v/ComfyUI/custom_nodes/Slow one
   0.1 seconds (IMPORT FAILED): /v/ComfyUI/custom_nodes/Pack
IMPORT FAILED: nodes_canny.py
""".splitlines()
PACKAGES = PackagesFacts("/opt/comfyui/bin/python")


def test_names_times_and_reasons_are_read() -> None:
    imports, extras = read_imports(LOG)
    assert [i.name for i in imports] == ["websocket_image_save.py", "Slow one", "Pack"]
    assert [i.failed for i in imports] == [False, False, True]
    assert imports[2].reason == "No module named 'cv2'"
    assert extras == ["nodes_canny.py"]


def test_a_reason_is_read_after_what_a_node_printed_on_its_line() -> None:
    printed = "### Loading: Pack with a long name, version 1.2.3 (2026-11-29) ... "
    log = [f"{printed}{line}" if line.startswith("Cannot") else line for line in LOG]
    assert read_imports(log) == read_imports(LOG)


def test_the_last_boot_in_the_log_counts() -> None:
    again = ["Import times for custom nodes:", "   0.2 seconds: /v/ComfyUI/custom_nodes/Pack"]
    imports, _ = read_imports([*LOG, *again])
    assert [i.failed for i in imports] == [False]


def test_a_failed_pack_is_named_with_the_pip_line_of_the_right_interpreter() -> None:
    found = {f.code: f for f in check_node_imports(LOG, PACKAGES, "/v/ComfyUI")}
    assert set(found) == {"nodes.import_failed", "nodes.extras_failed", "nodes.import_slow"}
    failed = found["nodes.import_failed"]
    assert "Pack" in failed.message
    assert "cv2" in failed.message
    assert "/opt/comfyui/bin/python -m pip install opencv-python" in failed.fix
    assert "Slow one" in found["nodes.import_slow"].message


def test_another_reason_gets_another_fix() -> None:
    log = [line.replace("No module named 'cv2'", "invalid syntax (x.py, line 3)") for line in LOG]
    (failed,) = [f for f in check_node_imports(log, PACKAGES, "/v/ComfyUI") if f.severity.rank > 1]
    assert "invalid syntax" in failed.message
    assert ".disabled" in failed.fix


def test_all_well_and_nothing_at_all() -> None:
    good = ["Import times for custom nodes:", "   0.2 seconds: /v/ComfyUI/custom_nodes/Pack"]
    assert [f.code for f in check_node_imports(good, None, "")] == ["nodes.imported"]
    assert check_node_imports([], None, "") == []


def test_many_failures_share_a_finding() -> None:
    log = ["Import times for custom nodes:"]
    log += [f"   0.0 seconds (IMPORT FAILED): /v/n/pack{i}" for i in range(100)]
    found = check_node_imports(log, None, "/v")
    assert len(found) == MOST_PACKS + 1


def test_a_pack_that_fails_in_a_real_comfyui_is_reported(
    worker_env: dict[str, str],
    volume: Path,
    boot_worker: Callable[[Mapping[str, str]], BootedWorker],
) -> None:
    pack = volume / "ComfyUI" / "custom_nodes" / "Broken pack"
    pack.mkdir()
    (pack / "__init__.py").write_text("import surely_not_installed\n")
    worker = boot_worker(worker_env)
    assert "nodes.import_failed" in {f.code for f in worker.report.noticed}, "in the boot report"
    reported = worker.ask({"type": "diagnostics", "sections": ["comfyui"]})
    found = {f["code"]: f for f in reported["diagnostics"]["findings"]}
    assert "surely_not_installed" in found["nodes.import_failed"]["fix"]
    assert worker_env["COMFYUI_PYTHON"] in found["nodes.import_failed"]["fix"]
    assert "nodes_canny.py" in found["nodes.extras_failed"]["message"]


@pytest.mark.parametrize("line", ["", "   seconds: x", "Cannot import", "IMPORT FAILED", "\0"])
def test_odd_lines_do_no_harm(line: str) -> None:
    read_imports([line])
