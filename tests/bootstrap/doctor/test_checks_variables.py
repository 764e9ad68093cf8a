"""Names, tokens, HF_*, RUNPOD_* and contradictions; and that no token is ever shown."""

from __future__ import annotations

import json

import pytest

from bootstrap.config import Settings
from bootstrap.core.findings import Severity
from bootstrap.doctor.checks import tokens, variables
from tests.support.check_cases import CHECKS, ENV, HEALTHY, Case, assert_case, look

OK, INFO, WARNING, ERROR = Severity
MARKER = "mArKeRtOkEn4711"
HF = f"hf_{MARKER}"
HOOK = "https://example.org/job?gpu=x"

TOKEN_CASES = [
    Case("env.token_blank", WARNING, env={"HF_TOKEN": "  "}, cured={"HF_TOKEN": HF}),
    Case("env.token_blank", WARNING, env={"AWS_SECRET_ACCESS_KEY": ""}),
    Case("env.token_quoted", WARNING, env={"HF_TOKEN": f'"{HF}"'}, cured={"HF_TOKEN": HF}),
    Case("env.token_quoted", WARNING, env={"civitai_token": f"'{MARKER}"}),
    Case("env.token_space", WARNING, env={"HF_TOKEN": f"{HF}\n"}, cured={"HF_TOKEN": HF}),
    Case("env.token_space", WARNING, env={"RUNPOD_API_KEY": f"{MARKER} {MARKER}"}),
    Case("env.token_unresolved", WARNING, env={"RUNPOD_API_KEY": "{{ RUNPOD_SECRET_key }}"}),
    Case("env.token_unresolved", WARNING, env={"RUNPOD_API_KEY": "{{ secrets.key }}"}),
    Case("env.token_placeholder", WARNING, env={"RUNPOD_API_KEY": "your-key-here"}),
    Case("env.token_placeholder", WARNING, env={"RUNPOD_API_KEY": "<token>"}),
    Case("env.token_prefix", WARNING, env={"RUNPOD_API_KEY": f"Bearer{chr(32)}{MARKER}"}),
    Case("env.token_shape", WARNING, env={"HF_TOKEN": MARKER}, cured={"HF_TOKEN": HF}),
    Case(
        "env.token_conflict",
        WARNING,
        env={"HF_TOKEN": HF, "HUGGING_FACE_HUB_TOKEN": f"{HF}x"},
        cured={"HF_TOKEN": HF, "HUGGING_FACE_HUB_TOKEN": HF},
    ),
    Case(
        "env.token_other_name",
        WARNING,
        env={"HUGGINGFACE_API_KEY": HF},
        cured={"HF_TOKEN": HF},
    ),
]
MISSPELT = [
    ("MAX_WIAT", {"MAX_WAIT": "60"}),
    ("MAXWAIT", {"MAX_WAIT": "60"}),
    ("COMFY_ARGS", {"COMFYUI_ARGS": ""}),
    ("COMFYUI_AGRS", {"COMFYUI_ARGS": ""}),
    ("COMFY_PATH", {"COMFYUI_PATH": "v"}),
    ("RESPONSE_FROMAT", {"RESPONSE_FORMAT": "native"}),
    ("BOOT_TIMEUOT", {"BOOT_TIMEOUT": "60"}),
    ("BUCKET_ENDPOINT", {"BUCKET_ENDPOINT_URL": ""}),
]
CASES = [
    Case("env.name_case", WARNING, env={"Volume_Path": "/v"}, cured={"VOLUME_PATH": "/v"}),
    Case("env.name_case", WARNING, env={"hf_token": HF}, cured={"HF_TOKEN": HF}),
    Case("env.name_near", WARNING, env={"COMFYUI_ARG": "--cpu"}, cured={"COMFYUI_ARGS": ""}),
    Case("env.hf_offline", WARNING, env={"HF_HUB_OFFLINE": "1"}, cured={"HF_HUB_OFFLINE": "0"}),
    Case(
        "env.hf_endpoint",
        WARNING,
        env={"HF_ENDPOINT": "http://mirror.example.org"},
        cured={"HF_ENDPOINT": "https://mirror.example.org"},
    ),
    Case("env.hf_transfer", INFO, env={"HF_HUB_ENABLE_HF_TRANSFER": "1"}),
    Case("env.boot_timeout_long", WARNING, env={"BOOT_TIMEOUT": "600"}),
    Case(
        "env.boot_timeout_long",
        WARNING,
        env={"RUNPOD_INIT_TIMEOUT": "300"},
        cured={"RUNPOD_INIT_TIMEOUT": "300", "BOOT_TIMEOUT": "270"},
    ),
    Case(
        "env.boot_timeout_long",
        WARNING,
        env={"BOOT_TIMEOUT": "900"},
        cured={"BOOT_TIMEOUT": "900", "RUNPOD_INIT_TIMEOUT": "930"},
    ),
    Case("env.init_timeout_value", WARNING, env={"RUNPOD_INIT_TIMEOUT": "10min"}),
    Case("env.reply_limit", WARNING, env={"MAX_REPLY_MB": "50"}, cured={"MAX_REPLY_MB": "20"}),
    Case("env.request_limit", INFO, env={"MAX_REQUEST_MB": "100"}),
    Case(
        "env.runpod_webhook",
        WARNING,
        env={"RUNPOD_WEBHOOK_GET_JOB": HOOK},
        cured={"RUNPOD_WEBHOOK_GET_JOB": HOOK, "RUNPOD_WEBHOOK_POST_OUTPUT": HOOK},
    ),
    Case(
        "env.runpod_webhook",
        WARNING,
        env={
            "RUNPOD_WEBHOOK_GET_JOB": HOOK,
            "RUNPOD_WEBHOOK_POST_OUTPUT": "https://example.org/done",
        },
    ),
    Case(
        "env.bucket_incomplete",
        WARNING,
        env={"BUCKET_NAME": "b", "BUCKET_ENDPOINT_URL": "https://s3.example.com"},
        cured={
            "BUCKET_NAME": "b",
            "BUCKET_ENDPOINT_URL": "https://s3.example.com",
            "BUCKET_ACCESS_KEY_ID": MARKER,
            "BUCKET_SECRET_ACCESS_KEY": MARKER,
        },
    ),
    Case(
        "env.bucket_by_month",
        WARNING,
        env={
            "BUCKET_ENDPOINT_URL": "https://s3.example.com",
            "BUCKET_ACCESS_KEY_ID": MARKER,
            "BUCKET_SECRET_ACCESS_KEY": MARKER,
        },
        cured={
            "BUCKET_ENDPOINT_URL": "https://s3.example.com/mine",
            "BUCKET_ACCESS_KEY_ID": MARKER,
            "BUCKET_SECRET_ACCESS_KEY": MARKER,
        },
    ),
    *(Case("env.not_read", INFO, env={name: "1"}) for name in variables._NOT_READ),
    *(Case("env.name_near", WARNING, env={name: "x"}, cured=cured) for name, cured in MISSPELT),
    Case("env.private_downloads", WARNING, env={"RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS": "true"}),
    Case(
        "env.gpu_contradiction",
        WARNING,
        env={"GPU": "required", "COMFYUI_ARGS": "--cpu"},
        cured={"GPU": "required"},
    ),
]


@pytest.mark.parametrize("case", TOKEN_CASES + CASES, ids=lambda case: case.code)
def test_finding(case: Case) -> None:
    assert_case(case)


def test_every_code_has_a_case() -> None:
    assert {case.code for case in TOKEN_CASES} == set(tokens.CODES)
    assert {case.code for case in CASES} == set(variables.CODES)


@pytest.mark.parametrize("case", TOKEN_CASES, ids=lambda case: case.code)
def test_no_finding_shows_a_token(case: Case) -> None:
    shown = json.dumps([f.as_dict() for f in look(case.facts, case.env)])
    assert MARKER not in shown and "4711" not in shown


def test_no_finding_shows_a_token_whatever_its_name() -> None:
    names = (
        *tokens.token_names(),
        "hf_token",
        "HUGGINGFACE_API_KEY",
        "SOME_SECRET",
        "Civitai_Token",
    )
    for value in (f'"{MARKER}"', f" {MARKER} x", MARKER, f"Bearer {MARKER}", f"{MARKER}\n"):
        env = {**ENV, **dict.fromkeys(names, value)}
        found = [f for check in CHECKS for f in check(HEALTHY, Settings(), env)]
        assert found
        assert MARKER not in json.dumps([f.as_dict() for f in found])


def test_the_length_of_a_token_changes_nothing() -> None:
    short, long = ([f.as_dict() for f in look({}, {"HF_TOKEN": f'"{"a" * n}"'})] for n in (4, 400))
    assert short == long


def test_both_spellings_of_civitais_token_are_fine() -> None:
    for name in ("CIVITAI_TOKEN", "civitai_token"):
        assert all(f.severity is OK for f in look({}, {name: MARKER}))
    (finding,) = [f for f in look({}, {"Civitai_Token": MARKER}) if f.code == "env.name_case"]
    assert "Did you mean CIVITAI_TOKEN?" in finding.message


def test_other_peoples_variables_are_left_alone() -> None:
    env = {"http_proxy": "http://p", "PATH": "/bin", "COMFYUI_VERSION": "0.3", "GPUS": "1"}
    assert all(f.severity is OK for f in look({}, env))


def test_a_healthy_machine_has_good_news_only() -> None:
    assert {f.severity for f in look({}, {})} == {OK}


def test_there_is_time_left_to_say_why_a_boot_failed() -> None:
    for seconds, fine in (("405", True), ("406", False)):
        found = look({}, {"BOOT_TIMEOUT": seconds})
        assert ("env.boot_timeout_long" not in {f.code for f in found}) is fine


@pytest.mark.parametrize(("name", "right"), MISSPELT)
def test_a_misspelt_name_is_reported_which_one_was_meant(name: str, right: dict[str, str]) -> None:
    (found,) = [f for f in look({}, {name: "x"}) if f.code == "env.name_near"]
    assert [found.details["right"]] == list(right)


@pytest.mark.parametrize(
    "name",
    "COMFYUI_HOST COMFYUI_URL COMFYUI_VERSION MODEL_PATH MODELS_DIR VOLUME MAX_TOKENS MAX_WORKERS "
    "PYTHON_VERSION CUDA_VERSION HF_TOKEN_PATH GPUS GPU_COUNT PORT PATH WORKERS".split(),
)
def test_a_name_of_others_is_not_taken_for_a_misspelt_one(name: str) -> None:
    assert "env.name_near" not in {f.code for f in look({}, {name: "x"})}
