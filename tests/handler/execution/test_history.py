"""A prompt's history, and which socket messages are a reason to read it."""

from __future__ import annotations

from typing import Any

import pytest

from bootstrap.comfyui import prompt_hooks
from handler.common.errors import CODES, ComfyBroken, JobError
from handler.execution import history, node_progress, refusal

ID = "11111111-2222-3333-4444-555555555555"
OUTPUTS = {"9": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}}


def entry(status: str, *messages: list[Any]) -> dict[str, Any]:
    reported = {"status_str": status, "completed": status == "success", "messages": list(messages)}
    return {"prompt": [], "outputs": OUTPUTS, "status": reported, "meta": {}}


def failure(given: dict[str, Any]) -> JobError:
    ended = history.read_entry(given)
    assert ended is not None and ended.failure is not None
    assert ended.failure.code in CODES and ended.failure.fix
    return ended.failure


def test_an_error_without_a_message_still_says_where_to_look() -> None:
    assert "--diagnostics" in failure(entry("error")).fix


def raised(kind: str, message: str = "it broke\n") -> dict[str, Any]:
    return entry(
        "error",
        ["execution_start", {"prompt_id": ID}],
        [
            "execution_error",
            {
                "prompt_id": ID,
                "node_id": "4",
                "node_type": "KSampler",
                "exception_type": kind,
                "exception_message": message,
                "traceback": [f"  File {n}\n" for n in range(40)],
            },
        ],
    )


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ({"type": "executing", "data": {"node": None, "prompt_id": ID}}, True),
        ({"type": "execution_success", "data": {"prompt_id": ID}}, False),
        ({"type": "execution_error", "data": {"prompt_id": ID}}, False),
        ({"type": "execution_interrupted", "data": {"prompt_id": ID}}, False),
        ({"type": "executing", "data": {"node": "4", "prompt_id": ID}}, False),
        ({"type": "executing", "data": {"node": None, "prompt_id": "another"}}, False),
        ({"type": "progress", "data": {"value": 1, "max": 2, "prompt_id": ID}}, False),
        ({"type": "status", "data": {"status": {"exec_info": {}}}}, False),
        ({"type": "execution_success", "data": None}, False),
        ({"type": "execution_success"}, False),
        ({}, False),
    ],
)
def test_only_the_end_of_this_prompt_is_news(message: dict[str, Any], expected: bool) -> None:
    assert node_progress.announces_end(message, ID) is expected


def test_without_an_entry_nothing_has_ended() -> None:
    assert history.read_entry(None) is None


def test_an_entry_of_success_has_its_outputs() -> None:
    ended = history.read_entry(entry("success", ["execution_success", {"prompt_id": ID}]))
    assert ended == history.HistoryEntry(OUTPUTS, None)


def test_an_entry_of_2023_without_status_means_success() -> None:
    assert history.read_entry({"prompt": [], "outputs": OUTPUTS}) == history.HistoryEntry(
        OUTPUTS, None
    )
    assert history.read_entry({"outputs": None, "status": None}) == history.HistoryEntry({}, None)


def test_a_node_that_raised_is_named_with_the_end_of_its_traceback() -> None:
    error = failure(raised("ValueError"))
    assert error.code == "job.node_failed"
    assert error.message == "Node 4 (KSampler) failed with ValueError: it broke."
    assert error.details["node_id"] == "4"
    assert error.details["traceback"][-1] == "  File 39"
    assert len(error.details["traceback"]) == 12


@pytest.mark.parametrize(
    ("said", "end"), [("no sampler\n", "no sampler. "), ("Why?", "Why? "), ("", "ValueError. ")]
)
def test_what_python_said_ends_before_the_advice_begins(said: str, end: str) -> None:
    assert f"{end}The traceback in" in str(failure(raised("ValueError", said)))


@pytest.mark.parametrize(
    "kind", ["torch.cuda.OutOfMemoryError", "torch.OutOfMemoryError", "OutOfMemoryError"]
)
def test_gpu_memory_that_ran_out_has_its_own_code(kind: str) -> None:
    error = failure(raised(kind, "Allocation on device 0 would exceed allowed memory"))
    assert error.code == "job.out_of_memory"
    assert "node 4 (KSampler)" in error.message


def test_a_long_message_is_cut() -> None:
    assert len(str(failure(raised("ValueError", "x" * 100_000)))) < 1500


def test_an_interrupted_prompt_names_the_node_that_ran() -> None:
    reported = {"prompt_id": ID, "node_id": "4", "node_type": "StopIf"}
    error = failure(entry("error", ["execution_interrupted", reported]))
    assert error.code == "job.interrupted" and "node 4 (StopIf)" in error.message


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA failure 700: an illegal memory access was encountered ; GPU=0",
        "CUDA error: device-side assert triggered",
        "CUDA error: unspecified launch failure",
        "CUDA error: misaligned address",
        "CUDA error: an illegal instruction was encountered",
        "CUDA error: the launch timed out and was terminated",
        "CUDA error: unknown error",
        "CUDA error: uncorrectable ECC error encountered",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
    ],
)
def test_what_poisons_the_context_is_reported_apart(said: str) -> None:
    assert failure(raised("torch.AcceleratorError", said)).code == "job.cuda_failed"


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: invalid argument",
        "CUDA error: invalid configuration argument",
        "CUDA error: invalid device ordinal",
        "CUDA error: operation not supported",
        "CUDA error: peer access is not supported between these two devices",
    ],
)
def test_what_concerns_one_call_does_not_restart_comfyui(said: str) -> None:
    assert failure(raised("RuntimeError", said)).code == "job.node_failed"


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: no kernel image is available for execution on the device",
        "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 209: no kernel image is available ; GPU=0",
        "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 98: invalid device function ; GPU=0",
        "CUDA error: named symbol not found",
        "FlashAttention only supports Ampere GPUs or newer.",
        "Unsupported CUDA architecture: sm75",
        "ptxas fatal : Value 'sm_120' is not defined for option 'gpu-name'",
    ],
)
def test_a_package_without_code_for_this_gpu_is_neither_the_hosts_fault_nor_a_reason_to_restart(
    said: str,
) -> None:
    error = failure(raised("RuntimeError", said))
    assert error.code == "job.no_gpu_code" and not isinstance(error, ComfyBroken)
    assert said in error.message and "faulty" not in str(error)
    assert "onnxruntime-gpu" in error.fix and "{" not in error.fix


GATED = (
    "You are trying to access a gated repo.\nMake sure to have access to it at "
    "https://huggingface.co/black-forest-labs/FLUX.1-dev.\n401 Client Error."
)
MISSING = "401 Client Error. Repository Not Found for url: https://huggingface.co/api/models/a/b."
SECRETS = [
    "AWS_SECRET_ACCESS_KEY",
    "BUCKET_ENDPOINT_URL",
    "COMFY_ORG_API_KEY",
    "HF_TOKEN",
    "OPENAI_API_KEY",
    "RUNPOD_API_KEY",
]


@pytest.mark.parametrize(
    ("kind", "said", "names"),
    [
        ("OSError", GATED, ["HF_TOKEN"]),
        ("huggingface_hub.errors.GatedRepoError", "Access is restricted.", ["HF_TOKEN"]),
        ("huggingface_hub.errors.RepositoryNotFoundError", MISSING, ["HF_TOKEN"]),
        ("HTTPError", "403 Client Error: Forbidden for url: https://hf.co/x", ["HF_TOKEN"]),
        ("openai.AuthenticationError", "Error code: 401 - no key", ["OPENAI_API_KEY"]),
        ("HTTPError", "401 Client Error: Unauthorized for url: https://example.com", []),
        ("ValueError", "the model from huggingface.co has 401 layers", []),
        ("HTTPError", "404 Client Error: huggingface.co", []),
    ],
)
def test_a_node_that_lacks_a_token_which_is_withheld_is_reported_how_to_get_it(
    kind: str, said: str, names: list[str]
) -> None:
    error = failure(raised(kind, said))
    reported = history.with_withheld(error, SECRETS, ["CIVITAI_TOKEN"])
    if not names:
        assert reported is error
        return
    assert reported.code == "job.node_failed" and reported.details["withheld"] == names
    assert (
        f"COMFYUI_ENV_PASS=CIVITAI_TOKEN,{names[0]} " in reported.fix and said in reported.message
    )
    assert history.with_withheld(error, [], []) is error, "nothing is withheld"


def test_only_a_node_that_simply_failed_gets_a_hint() -> None:
    """One that ran out of memory gets none, whatever its message."""
    said = "CUDA out of memory. 403 Client Error: Forbidden for url: https://hf.co/x"
    error = failure(raised("torch.OutOfMemoryError", said))
    assert error.code == "job.out_of_memory"
    assert history.with_withheld(error, SECRETS, []) is error
    hint = JobError("workflow.missing_model", "There is none.", node_id=error.details["node_id"])
    assert refusal.hint_for([hint], error) is error
    plain = failure(raised("ValueError", "none"))
    assert refusal.hint_for([hint], plain).code == "workflow.missing_model"


def test_an_error_without_a_message_is_still_one() -> None:
    assert failure(entry("error")).code == "job.node_failed"
    assert failure(entry("error", ["execution_error", {}])).code == "job.node_failed"


def test_blocked_nodes_and_queued_prompts_are_read() -> None:
    blocked = {"node_id": "4", "node_type": "Save", "exception_message": "Execution Blocked: no"}
    ended = history.read_entry(
        entry(
            "success",
            [prompt_hooks.BLOCKED, blocked],
            [prompt_hooks.BLOCKED, {**blocked, "node_id": "5"}],
            [prompt_hooks.QUEUED, {"prompt_ids": ["a", "b"]}],
        )
    )
    assert ended is not None and ended.queued == ("a", "b")
    assert ended.warnings[0] == "node 4 (Save) did not run. Execution Blocked: no"
    assert "node 5" in ended.warnings[1]


def test_messages_of_another_shape_are_passed_over() -> None:
    odd = entry("success", [], ["one"], ["a", "b", "c"])
    assert history.read_entry(odd) == history.HistoryEntry(OUTPUTS, None)
