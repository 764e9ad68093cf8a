"""Environment -> Settings: what is taken, what is refused, and what is never shown."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bootstrap.config import fields
from bootstrap.config.fields import Variable
from bootstrap.config.settings import Settings, settings_table, variables
from bootstrap.core.findings import Severity
from bootstrap.core.redact import Secret

TOKEN = "tok-marker-5f1c"


def refused(arguments: str) -> str:
    settings, findings = Settings.from_env({"COMFYUI_ARGS": arguments})
    assert settings.comfyui_args == (), arguments
    assert [f.code for f in findings] == ["settings.invalid"], arguments
    return findings[0].message


def test_an_empty_environment_gives_the_defaults_and_no_finding() -> None:
    assert Settings.from_env({}) == (Settings(), ())


def test_a_blank_value_is_the_default() -> None:
    env = {variable.name: " \t" for variable in variables().values()}
    assert Settings.from_env(env) == (Settings(), ())


def test_values_become_what_they_stand_for() -> None:
    settings, findings = Settings.from_env(
        {
            "VOLUME_PATH": " /data ",
            "COMFYUI_PORT": "0",
            "MAX_WAIT": "12.5",
            "COMFYUI_ARGS": "--cpu --preview-method 'none'",
            "COMFYUI_ENV_PASS": "HF_TOKEN, CIVITAI_TOKEN",
            "GPU": "None",
        }
    )
    assert findings == ()
    assert settings.volume_path == Path("/data")
    assert settings.comfyui_port == 0
    assert settings.max_wait == 12.5
    assert settings.comfyui_args == ("--cpu", "--preview-method", "none")
    assert settings.comfyui_env_pass == ("HF_TOKEN", "CIVITAI_TOKEN")
    assert settings.gpu == "none"


def test_all_wrong_values_are_reported_at_once_and_fall_back_to_their_defaults() -> None:
    env = {
        "VOLUME_PATH": "data",
        "COMFYUI_PORT": "65536",
        "MAX_WAIT": "nan",
        "GPU": "maybe",
        "COMFYUI_ENV_PASS": "A=B",
        "COMFYUI_ARGS": "--cpu 'unclosed",
    }
    settings, findings = Settings.from_env(env)
    assert settings == Settings()
    assert {f.details["name"] for f in findings} == set(env)
    for finding in findings:
        name = finding.details["name"]
        assert finding.severity is Severity.ERROR
        assert name in finding.message and repr(env[name]) in finding.message
        allowed = next(v.kind.allowed for v in variables().values() if v.name == name)
        assert f"Set {name} to {allowed}, or remove it" in finding.fix


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("COMFYUI_PORT", "-1"),
        ("COMFYUI_PORT", "80.0"),
        ("COMFYUI_PORT", "http"),
        ("MAX_WAIT", "0"),
        ("MAX_WAIT", "inf"),
        ("MAX_WAIT", "300s"),
        ("MAX_REPLY_MB", "1e9"),
        ("WORK_DIR", "./work"),
        ("WORK_DIR", "/a\0b"),
        ("COMFYUI_ENV_PASS", "1A"),
    ],
)
def test_a_value_out_of_range_or_of_the_wrong_kind_is_refused(name: str, value: str) -> None:
    _, findings = Settings.from_env({name: value})
    assert [f.details["name"] for f in findings] == [name]


def test_a_very_long_wrong_value_is_cut_in_the_message() -> None:
    _, (finding,) = Settings.from_env({"GPU": "x" * 5000})
    assert len(finding.message) < 300


@pytest.mark.parametrize(
    "arguments",
    [
        "--listen",
        "--listen 0.0.0.0",
        "--listen=0.0.0.0",
        "--liste 0.0.0.0",
        "--lis=0.0.0.0",
        "--l 0.0.0.0",
        "--cpu --port 1",
        "--output-dir /x",
        "--database sqlite://",
        "--input-d /x",
        "--front-end-version latest",
        "--enable-cors-h",
        "'--li'sten 0.0.0.0",
        "--cpu --",
        "--help",
        "--he",
        "--cpu -h",
    ],
)
def test_flags_that_the_worker_sets_are_refused_abbreviations_included(arguments: str) -> None:
    refused(arguments)


def test_the_refusal_of_an_abbreviation_names_the_flag_it_stands_for() -> None:
    assert "--liste can be read as --listen" in refused("--liste 0.0.0.0")


@pytest.mark.parametrize(
    "arguments",
    ["--lowvram", "--reserve-vram -1", "--disable-mmap --cache-none", "--preview-method=auto"],
)
def test_other_flags_pass(arguments: str) -> None:
    settings, findings = Settings.from_env({"COMFYUI_ARGS": arguments})
    assert findings == ()
    assert settings.comfyui_args == tuple(arguments.split())


def test_a_first_argument_that_is_not_a_flag_is_refused() -> None:
    assert "'0.0.0.0' is not a flag" in refused("0.0.0.0 --cpu")


@given(st.sampled_from(sorted(fields.OUR_FLAGS)), st.data())
def test_no_beginning_of_our_flags_gets_through(flag: str, data: st.DataObject) -> None:
    length = data.draw(st.integers(2, len(flag)))
    with pytest.raises(ValueError, match="set by the worker"):
        fields.COMFYUI_ARGUMENTS.parse(f"--cpu {flag[:length]}=x")


def test_the_first_spelling_that_is_set_wins() -> None:
    variable = Variable("NEW", fields.NAMES, "", "", aliases=("OLD", "OLDER"))
    assert variable.raw({"NEW": " ", "OLD": "b", "OLDER": "c"}) == ("OLD", "b")
    assert variable.raw({"NEW": "a", "OLD": "b"}) == ("NEW", "a")
    assert variable.raw({}) is None


def test_a_wrong_value_is_reported_under_the_spelling_that_was_used() -> None:
    _, (finding,) = Settings.from_env({"HUGGING_FACE_HUB_TOKEN": "a b"})
    assert finding.details["name"] == "HUGGING_FACE_HUB_TOKEN"


@pytest.mark.parametrize("name", ["HF_TOKEN", "civitai_token", "DOWNLOAD_TOKEN"])
@pytest.mark.parametrize("value", [f"{TOKEN}\nX-Evil: 1", f"{TOKEN}\r{TOKEN}", f"\0{TOKEN}"])
def test_a_token_with_a_line_end_is_refused_and_not_shown(name: str, value: str) -> None:
    settings, (finding,) = Settings.from_env({name: value})
    assert finding.code == "settings.invalid" and name in finding.message
    assert TOKEN not in repr((settings, finding))
    assert (settings.hf_token, settings.civitai_token, settings.download_token) == (None,) * 3


def test_a_secret_shows_in_no_repr_and_no_masked_settings() -> None:
    names = [v.name for v in variables().values() if v.kind.secret]
    assert "HF_TOKEN" in names
    settings, findings = Settings.from_env(dict.fromkeys(names, TOKEN))
    assert findings == ()
    assert settings.hf_token is not None and settings.hf_token.reveal() == TOKEN
    shown = f"{settings!r} {settings.hf_token} {dataclasses.asdict(settings)} {settings.masked()}"
    assert TOKEN not in shown
    assert settings.masked()["hf_token"] == "***"


def test_masked_settings_are_ready_for_json() -> None:
    masked = Settings(volume_path=Path("/data"), comfyui_args=("--cpu",)).masked()
    assert masked["comfyui_args"] == ["--cpu"]
    assert masked["volume_path"] == "/data"
    assert masked["max_wait"] == 300.0
    assert json.loads(json.dumps(masked)) == masked


def test_a_wrong_secret_is_not_quoted() -> None:
    _, (finding,) = Settings.from_env({"HF_TOKEN": f"{TOKEN} and more"})
    assert TOKEN not in str(finding)
    assert "white space" in finding.message


def test_secrets_are_equal_by_their_text() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert hash(Secret("a")) == hash(Secret("a"))


@pytest.mark.parametrize(("text", "value"), [("TRUE", True), ("on", True), ("0", False)])
def test_booleans_take_the_usual_words(text: str, value: bool) -> None:
    assert fields.BOOLEAN.parse(text) is value


def test_other_words_are_not_boolean() -> None:
    with pytest.raises(ValueError, match=r"^$"):
        fields.BOOLEAN.parse("maybe")


def test_every_row_of_the_table_has_four_cells_with_something_in_them() -> None:
    header, _, *rows = settings_table().splitlines()
    assert len(rows) == len(variables())
    for row in (header, *rows):
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 4 and all(cells), row


def test_names_and_aliases_are_declared_once() -> None:
    names = [n for v in variables().values() for n in (v.name, *v.aliases)]
    assert len(names) == len(set(names))


def test_every_default_that_is_shown_as_a_value_is_allowed() -> None:
    for attribute, variable in variables().items():
        default = getattr(Settings(), attribute)
        if default is not None and default != () and not isinstance(default, Secret):
            assert variable.kind.parse(variable.default) == default, variable.name
