"""`.runpod/`: the files for Runpod's Hub fit its schema, our settings, our image and our worker."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError, validate

import bootstrap
from bootstrap.config import Settings, variables
from demo.volume import DemoVolume
from tests.conftest import BootedWorker, environment
from tests.support.control_plane import ControlPlane
from tests.support.worker_process import WorkerProcess

ROOT = Path(__file__).parents[2]
SCHEMAS = json.loads((ROOT / "tests" / "support" / "hub_schema.json").read_text())
HUB = json.loads((ROOT / ".runpod" / "hub.json").read_text())
TESTS = json.loads((ROOT / ".runpod" / "tests.json").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()
ASKED = {entry["key"]: entry["input"] for entry in HUB["config"]["env"] if "input" in entry}
FIXED = {entry["key"]: entry["value"] for entry in HUB["config"]["env"] if "value" in entry}
DECLARED = {
    name: attribute
    for attribute, variable in variables().items()
    for name in (variable.name, *variable.aliases)
}


def schema(name: str) -> dict[str, Any]:
    return {**SCHEMAS, "$ref": f"#/$defs/{name}"}


def as_env(key: str, value: Any) -> str:
    """A value of the form as Runpod puts it into the environment."""
    if isinstance(value, bool):
        return str(ASKED[key]["trueValue" if value else "falseValue"])
    return str(value)


@pytest.mark.parametrize(("name", "given"), [("hub", HUB), ("tests", TESTS)])
def test_the_files_fit_the_hubs_schema(name: str, given: Any) -> None:
    Draft202012Validator.check_schema(schema(name))
    validate(given, schema(name))
    with pytest.raises(ValidationError):
        validate({**given, "unknown": 1}, schema(name))


@pytest.mark.parametrize("key", ASKED)
def test_what_is_asked_for_is_a_setting_with_the_same_default(key: str) -> None:
    attribute, given = DECLARED[key], ASKED[key]["default"]
    settings, findings = Settings.from_env({key: as_env(key, given)})
    assert findings == ()
    assert settings == Settings(), attribute
    assert not (variables()[attribute].kind.secret and given), "no secret has a default"


def test_the_limits_of_numbers_are_the_settings() -> None:
    for key, given in ASKED.items():
        if given["type"] == "number":
            allowed = variables()[DECLARED[key]].kind.allowed
            assert re.findall(r"\d+", allowed.replace(",", "")) == [
                str(given["min"]),
                str(given["max"]),
            ]


def test_the_options_are_the_settings() -> None:
    for key, given in ASKED.items():
        for option in given.get("options", ()):
            assert Settings.from_env({key: option["value"]})[1] == ()


def test_presets_set_what_is_asked_for() -> None:
    for preset in HUB["config"]["presets"]:
        env = {key: as_env(key, value) for key, value in preset["defaults"].items()}
        assert set(env) <= set(ASKED)
        assert Settings.from_env(env)[1] == ()


def test_what_is_fixed_is_what_the_image_sets() -> None:
    for key, value in FIXED.items():
        assert f"{key}={value}" in DOCKERFILE
    assert {e["key"]: e["value"] for e in TESTS["config"]["env"]} == FIXED


def test_the_cuda_versions_are_those_the_image_is_built_for() -> None:
    base = re.search(r"^ARG BASE_IMAGE=nvidia/cuda:(\d+\.\d+)", DOCKERFILE, re.MULTILINE)
    assert base is not None
    for config in (HUB["config"], TESTS["config"]):
        assert config["allowedCudaVersions"][-1] == base[1], "the oldest that it runs on"
        assert config["allowedCudaVersions"] == sorted(config["allowedCudaVersions"], reverse=True)


def test_the_hub_takes_the_released_image_that_has_a_comfyui() -> None:
    """Its tests run on a machine without a volume."""
    text = (ROOT / ".runpod" / "Dockerfile").read_text()
    (image,) = re.findall(r"^FROM (\S+)$", text, re.MULTILINE)
    assert image.endswith(f":{bootstrap.__version__}-comfyui")
    assert image.startswith("ghcr.io/comfyui-volume-worker/")


def test_the_icon_is_in_the_repository() -> None:
    _, _, path = HUB["iconUrl"].partition("/main/")
    assert (ROOT / path).read_bytes().startswith(b"\x89PNG")


def test_the_files_that_the_hub_needs_are_there() -> None:
    for name in ("Dockerfile", "README.md", ".runpod/handler.py"):
        assert (ROOT / name).is_file()


def test_its_tests_pass_on_a_volume_without_a_model(worker: BootedWorker) -> None:
    for each in TESTS["tests"]:
        reply = worker.ask(each["input"])
        assert reply["status"] == "completed", reply
        assert "warnings" not in reply


def test_its_tests_are_answered_where_no_volume_is(demo: DemoVolume, tmp_path: Path) -> None:
    """As on the Hub's own machines, started by the file the Hub looks for."""
    with ControlPlane() as plane:
        env = environment(demo, tmp_path / "nowhere", tmp_path / "work") | plane.worker_env()
        with WorkerProcess([sys.executable, ROOT / ".runpod" / "handler.py"], env=env):
            bodies = [plane.result(plane.submit(t["input"]), 60) for t in TESTS["tests"]]
    assert bodies[0]["output"]["diagnostics"]["boot"]["outcome"] == "degraded"
    assert bodies[1]["output"]["error_code"] == "volume.not_found"
