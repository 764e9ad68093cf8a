"""Why ComfyUI ended, from real versions' logs."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from bootstrap.comfyui.exits import LOG_LINES_IN_DETAILS, Exit, explain_exit, with_cause
from bootstrap.core.findings import Finding, error, info, ok, warning

PYTHON = Path("/opt/comfyui/bin/python")


def explain(code: int, log: str = "") -> Finding:
    return explain_exit(Exit(code, tuple(log.splitlines()), PYTHON, 3.2))


CUSTOM_NODE_FAILED = """
Traceback (most recent call last):
  File "/v/ComfyUI/nodes.py", line 2129, in load_custom_node
    module_spec.loader.exec_module(module)
ModuleNotFoundError: No module named 'insightface'

Cannot import /v/ComfyUI/custom_nodes/reactor module for custom nodes: No module named 'insightface'
"""
IMPORT_TIMES = """
Import times for custom nodes:
   0.1 seconds (IMPORT FAILED): /v/ComfyUI/custom_nodes/reactor
"""
LOGS = {
    "comfyui.bad_flag": (
        2,
        "usage: main.py [-h] [--listen [IP]]\nmain.py: error: unrecognized arguments: --nope",
    ),
    "comfyui.module_missing": (
        1,
        (
            'Traceback (most recent call last):\n  File "main.py", line 9, in <module>\n'
            "    import torch\nModuleNotFoundError: No module named 'torch'"
        ),
    ),
    "comfyui.front_end_missing": (
        255,
        (
            "********** ERROR ***********\n\ncomfyui-frontend-package is not installed. \n"
            "Please install the updated requirements.txt file by running:"
        ),
    ),
    "comfyui.port_taken": (
        1,
        (
            "OSError: [Errno 98] error while attempting to bind on address ('127.0.0.1', 8188): "
            "address already in use"
        ),
    ),
    "comfyui.assets": (1, "ASSETS_STARTUP_FAILED: newer_revision\nsome detail of it"),
    "comfyui.database": (1, "sqlite3.OperationalError: unable to open database file"),
    "comfyui.model_paths_bad": (
        1,
        (
            'File "utils/extra_config.py", line 8, in load_extra_path_config\n'
            "yaml.scanner.ScannerError: mapping values are not allowed here"
        ),
    ),
    "comfyui.torch_without_gpu": (1, "AssertionError: Torch not compiled with CUDA enabled"),
    "comfyui.gpu_unusable": (
        1,
        "RuntimeError: Found no NVIDIA driver on your system. Please check that you have one",
    ),
    "comfyui.no_gpu_code": (
        1,
        "RuntimeError: CUDA error: no kernel image is available for execution on the device",
    ),
    "comfyui.path_unusable": (
        1,
        "FileNotFoundError: [Errno 2] No such file or directory: '/workspace/custom_nodes'",
    ),
    "comfyui.disk_full": (1, "OSError: [Errno 28] No space left on device: '/tmp/x'"),
    "comfyui.killed": (-9, "loading model"),
    "comfyui.prompt_thread_ended": (
        70,
        (
            'File "/v/ComfyUI/custom_nodes/bad/__init__.py", line 7, in run\n    sys.exit(3)\n'
            "SystemExit: 3\nComfyUI's prompt thread ended: SystemExit: 3"
        ),
    ),
    "comfyui.output_not_json": (1, "TypeError: Object of type Tensor is not JSON serializable"),
    "comfyui.exited": (1, "something odd"),
}


@pytest.mark.parametrize(
    "log",
    [
        "TypeError: Prompt executed in 0.01 seconds\nObject of type X is not JSON serializable",
        "Prompt executed in 0.01 secondsTypeError: Object of type X is not JSON serializable\n",
    ],
)
def test_what_another_thread_logs_between_hides_nothing(log: str) -> None:
    assert explain(1, log).code == "comfyui.output_not_json"


@pytest.mark.parametrize("code", LOGS)
def test_the_cause_is_named_from_exit_code_and_log(code: str) -> None:
    finding = explain(*LOGS[code])
    assert finding.code == code
    assert finding.fix
    assert finding.details["exit_code"] == LOGS[code][0]
    assert finding.details["log"] == LOGS[code][1].splitlines()


def test_only_a_gpu_that_fails_is_the_machines_fault() -> None:
    faulty = {code for code, given in LOGS.items() if explain(*given).host_fault}
    assert faulty == {"comfyui.gpu_unusable"}


ONNX = (
    "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 209: no kernel image is available for execution "
    "on the device ; GPU=0 ; hostname=a"
)


@pytest.mark.parametrize(
    "line",
    [
        ONNX,
        "CUDA error (flash_fwd_launch_template.h:188): no kernel image is available for execution",
        "torch.AcceleratorError: CUDA error: invalid device function",
    ],
)
def test_a_package_without_code_for_this_gpu_is_not_the_machines_fault(line: str) -> None:
    finding = explain(1, line)
    assert (finding.code, finding.host_fault) == ("comfyui.no_gpu_code", False)
    assert line.removesuffix(".") in finding.message and "onnxruntime-gpu" in finding.fix


FOUND = warning("volume.paths_other_mount", "It names /workspace/x.", "sed it", paths=["/w/nodes"])


@pytest.mark.parametrize(
    ("log", "noticed", "carries"),
    [
        ("FileNotFoundError: [Errno 2] No such file: '/w/nodes/a'", FOUND, True),
        ("FileNotFoundError: [Errno 2] No such file: '/w/nodes'", FOUND, True),
        ("FileNotFoundError: [Errno 2] No such file: '/workspace/x'", FOUND, True),
        ("FileNotFoundError: [Errno 2] No such file: '/w/nodes2'", FOUND, False),
        ("something odd", FOUND, False),
        ("yaml.scanner.ScannerError in extra_model_paths.yaml", FOUND, True),
        (ONNX, warning("gpu.torch_too_old", "torch 2.4 is too old.", "Install 2.8."), True),
        (ONNX, FOUND, False),
        ("FileNotFoundError: [Errno 2] No such file: '/w/nodes'", info("a.b", "/w/nodes"), False),
    ],
)
def test_an_exit_carries_what_a_check_has_found_of_its_cause(
    log: str, noticed: Finding, carries: bool
) -> None:
    exit = explain(1, log)
    reported = with_cause(exit, [ok("volume.found", "/w/nodes"), noticed])
    assert reported.code == exit.code
    if carries:
        assert reported.fix == noticed.fix and noticed.message in reported.message
        assert reported.details["cause"] == noticed.code
    else:
        assert reported == exit


def test_only_errors_carry_a_cause() -> None:
    note = info("volume.comfyui_elsewhere", "ComfyUI is at /w/a.", "Nothing to do.", path="/w/a")
    cause = error("comfyui.python_missing", "No Python: tried /w/a/.venv.", "Set one.")
    assert with_cause(note, [cause]) == note


def test_a_bad_flag_is_quoted() -> None:
    assert "unrecognized arguments: --nope" in explain(*LOGS["comfyui.bad_flag"]).message


def test_a_missing_module_is_named_with_the_command_that_installs_it() -> None:
    finding = explain(1, "ModuleNotFoundError: No module named 'comfy_aimdo.control'")
    assert finding.details["module"] == "comfy_aimdo.control"
    assert f"{PYTHON} -m pip install comfy_aimdo" in finding.fix


def test_137_is_the_same_as_signal_9() -> None:
    assert explain(137).code == explain(-9).code == "comfyui.killed"


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGTERM])
def test_any_other_signal_is_called_by_its_name(number: signal.Signals) -> None:
    finding = explain(-number)
    assert finding.code == "comfyui.exited" and number.name in finding.message


def test_a_signal_without_a_name_is_called_by_its_number() -> None:
    assert "ended by 40 " in explain(-40).message


def test_of_two_causes_the_later_one_counts() -> None:
    log = CUSTOM_NODE_FAILED + LOGS["comfyui.database"][1]
    assert explain(1, log).code == "comfyui.database"
    log = f"{LOGS['comfyui.database'][1]}\n{LOGS['comfyui.module_missing'][1]}"
    assert explain(1, log).code == "comfyui.module_missing"


def test_a_custom_node_that_failed_and_was_survived_is_not_the_cause() -> None:
    finding = explain(1, CUSTOM_NODE_FAILED + IMPORT_TIMES + "Starting server\nbroken pipe")
    assert finding.code == "comfyui.exited" and "broken pipe" in finding.message
    printed = CUSTOM_NODE_FAILED.replace("Cannot import", "Loading … Cannot import")
    for log in (CUSTOM_NODE_FAILED, printed):
        assert explain(9, log).code == "comfyui.exited", "the next one, silently"


def test_what_was_said_long_before_the_end_is_not_the_cause() -> None:
    log = LOGS["comfyui.module_missing"][1] + "\nfine" * 40
    assert explain(1, log).code == "comfyui.exited"


def test_an_end_without_a_word_says_so() -> None:
    assert "it last said: nothing" in explain(1).message


def test_a_long_last_line_is_cut_and_the_log_in_the_details_too() -> None:
    finding = explain(1, "line\n" * 100 + "x" * 5000)
    assert len(finding.message) < 500
    assert len(finding.details["log"]) == LOG_LINES_IN_DETAILS
