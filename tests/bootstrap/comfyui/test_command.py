"""ComfyUI's command line and environment: only flags it knows, and no one's secrets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bootstrap.comfyui.launch import Folders, arguments, flags_in, flags_of
from bootstrap.core.redact import child_environment
from bootstrap.environment import ask_help
from demo.volume import DemoVolume

FOLDERS = Folders(
    input=Path("/w/input"),
    output=Path("/w/output"),
    user=Path("/w/user"),
    temp_parent=Path("/w"),
    front_end=Path("/w/front-end"),
    database="sqlite:////w/comfyui.db",
)
HELP = """usage: main.py [-h] [--listen [IP]] [--port PORT] [--output-directory OUTPUT_DIRECTORY]
               [--lowvram | --novram] [--preview-method [none,auto]]

options:
  --lowvram             Split the unet, see also--nothing and no-flag--at-all.
  --cache-lru N         Use LRU caching, instead of --cache-classic.
"""
TOKEN = "tok-marker-7d2e"
ALL = frozenset(
    "--listen --port --disable-auto-launch --input-directory --output-directory --temp-directory "
    "--user-directory --database-url --front-end-root --cpu --preview-method".split()
)


def test_flags_are_those_that_the_help_lists() -> None:
    assert flags_in(HELP) == {
        "--listen",
        "--port",
        "--output-directory",
        "--lowvram",
        "--novram",
        "--preview-method",
        "--cache-lru",
        "--cache-classic",
    }


def test_flags_are_found_in_a_help_with_colours() -> None:
    assert flags_in("\x1b[1;34m--listen\x1b[0m [\x1b[32m--port\x1b[0m]") == {"--listen", "--port"}


def test_the_code_defines_the_flags_that_its_help_lists(demo: DemoVolume) -> None:
    """An argument in the help may be broken after a hyphen, as `--base-`."""
    listed = flags_in(str(ask_help(Path(demo.python), demo.comfyui, dict(os.environ))))
    whole = {flag for flag in listed if not flag.endswith("-")}
    assert flags_of(demo.comfyui, ["--cpu", "--preview-method", "none", "--port=1"]) == whole - {
        "--help"
    }
    assert flags_of(demo.comfyui, ["--defined-elsewhere"]) == frozenset()


def test_a_help_that_is_not_utf_8_is_read_all_the_same(tmp_path: Path) -> None:
    code = r"import sys; sys.stdout.buffer.write(b'--port \xff --listen')"
    (tmp_path / "main.py").write_text(code)
    said = ask_help(Path(sys.executable), tmp_path, dict(os.environ))
    assert flags_in(str(said)) == {"--port", "--listen"}


DEFINED = "".join(
    f"parser.add_argument(\n    '-x', '{flag}')\r\n"
    for flag in "--listen --port --output-directory --extra-model-paths-config".split()
)


@pytest.mark.parametrize(
    "code",
    [
        None,
        "for name in FLAGS: parser.add_argument('--' + name)",
        f"{DEFINED}# parser.add_argument('--front-end-root')",
        f"{DEFINED}'''\nparser.add_argument('--front-end-root')\n'''",
        f"{DEFINED}of a newer Python",
        f"{DEFINED}if WINDOWS:\n    parser.add_argument('--front-end-root')",
        f"{DEFINED}for name in FLAGS:\n    parser.add_argument(name)",
        f"{DEFINED}parser.add_argument(dest='old', *OLD)",
    ],
)
def test_flags_defined_in_another_way_are_asked_for(code: str | None, tmp_path: Path) -> None:
    """One that is not defined after all would end ComfyUI; one that is missed would not be set."""
    (tmp_path / "comfy").mkdir()
    place = tmp_path / "comfy" / "cli_args.py"
    place.write_text(DEFINED)
    assert flags_of(tmp_path, ["--port", "1"]) >= {"--listen", "--port"}
    place.unlink()
    if code is not None:
        place.write_text(code)
    assert flags_of(tmp_path, []) == frozenset()


def test_all_our_flags_are_set_when_they_are_known() -> None:
    made, findings = arguments(ALL, FOLDERS, 8190, ())
    assert findings == []
    assert (
        made
        == (
            "--listen 127.0.0.1 --port 8190 --disable-auto-launch --input-directory /w/input "
            "--output-directory /w/output --temp-directory /w --user-directory /w/user "
            "--database-url sqlite:////w/comfyui.db --front-end-root /w/front-end"
        ).split()
    )


def test_a_flag_that_this_version_does_not_know_is_left_out_with_its_value() -> None:
    made, findings = arguments(frozenset({"--listen", "--port"}), FOLDERS, 8190, ())
    assert made == "--listen 127.0.0.1 --port 8190".split()
    assert findings == []


def test_assets_are_off_where_they_can_be_and_no_one_asks_for_them() -> None:
    both = ALL | {"--disable-assets", "--enable-assets"}
    assert "--disable-assets" in arguments(both, FOLDERS, 1, ())[0]
    assert "--disable-assets" not in arguments(both, FOLDERS, 1, ("--enable-assets",))[0]
    assert "--disable-assets" not in arguments(ALL, FOLDERS, 1, ())[0]


def test_the_users_flags_come_last_with_their_values() -> None:
    made, _ = arguments(ALL, FOLDERS, 1, ("--cpu", "--preview-method", "none"))
    assert made[-3:] == ["--cpu", "--preview-method", "none"]


def test_the_users_unknown_flags_are_left_out_with_their_values_and_reported() -> None:
    made, findings = arguments(ALL, FOLDERS, 1, ("--gone", "7", "8", "--cpu"))
    assert made[-1] == "--cpu" and "7" not in made and "8" not in made
    assert [(f.code, f.details) for f in findings] == [("comfyui.flag_unknown", {"flag": "--gone"})]


def test_a_value_after_an_equals_sign_belongs_to_its_flag() -> None:
    made, findings = arguments(ALL, FOLDERS, 1, ("--preview-method=auto", "--gone=1"))
    assert made[-1] == "--preview-method=auto"
    assert [f.details["flag"] for f in findings] == ["--gone"]


@pytest.mark.parametrize(
    "name",
    "HF_TOKEN HUGGING_FACE_HUB_TOKEN CIVITAI_API_KEY DOWNLOAD_TOKEN RUNPOD_API_KEY "
    "RUNPOD_AI_API_KEY AWS_SECRET_ACCESS_KEY AWS_ACCESS_KEY_ID BUCKET_ENDPOINT_URL "
    "OPENAI_APIKEY FAL_KEY GITHUB_PAT DB_PASSWORD DB_PASS DB_PWD ssh_private_key MY_SECRET "
    "SMTP_AUTH GOOGLE_CREDENTIALS".split(),
)
def test_what_looks_like_a_secret_is_kept_from_comfyui_unless_it_is_named(name: str) -> None:
    python = Path("/opt/comfyui/bin/python")
    assert TOKEN not in str(child_environment({name: TOKEN}, (), python))
    assert child_environment({name: TOKEN}, (name,), python)[name] == TOKEN


@pytest.mark.parametrize("name", ["PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX_URL"])
def test_a_password_in_an_index_address_is_kept_from_comfyui(name: str) -> None:
    python = Path("/usr/bin/python3")
    with_password = f"https://me:{TOKEN}@packages.example/simple"
    assert name not in child_environment({name: with_password}, (), python)
    assert child_environment({name: with_password}, (name,), python)[name] == with_password
    assert child_environment({name: "https://packages.example"}, (), python)[name]
    assert child_environment({"HTTPS_PROXY": with_password}, (), python)["HTTPS_PROXY"]


def test_naming_one_secret_passes_no_other() -> None:
    env = {"HF_TOKEN": "wanted", "CIVITAI_TOKEN": TOKEN}
    child = child_environment(env, ("HF_TOKEN", "NOT_THERE"), Path("/usr/bin/python3"))
    assert child["HF_TOKEN"] == "wanted" and TOKEN not in str(child)
    assert "NOT_THERE" not in child


@pytest.mark.parametrize(
    "name",
    "HOME PWD OLDPWD LANG CUDA_VISIBLE_DEVICES PYTORCH_CUDA_ALLOC_CONF HF_HOME LD_LIBRARY_PATH "
    "TOKENIZERS_PARALLELISM NVIDIA_VISIBLE_DEVICES KEYBOARD PATCH_LEVEL AUTHOR COMPASS".split(),
)
def test_ordinary_variables_pass(name: str) -> None:
    assert child_environment({name: "x"}, (), Path("/usr/bin/python3"))[name] == "x"


def test_the_workers_own_python_does_not_leak_even_when_it_is_named() -> None:
    env = {"PYTHONPATH": "/app", "PYTHONHOME": "/x", "VIRTUAL_ENV": "/app/.venv", "A": "b"}
    child = child_environment(env, ("PYTHONPATH",), Path("/opt/comfyui/bin/python"))
    assert set(child) == {"A", "PATH", "PYTHONUNBUFFERED"}


def test_comfyuis_interpreter_comes_first_on_its_path() -> None:
    child = child_environment({"PATH": "/usr/bin"}, (), Path("/opt/comfyui/bin/python"))
    assert child["PATH"] == "/opt/comfyui/bin:/usr/bin"


def test_a_real_child_sees_no_marker_token() -> None:
    env = {**os.environ, "HF_TOKEN": TOKEN, "CIVITAI_TOKEN": TOKEN, "RUNPOD_AI_API_KEY": TOKEN}
    child = child_environment(env, (), Path(sys.executable))
    script = "import os; print(os.environ, open('/proc/self/environ').read())"
    done = subprocess.run(
        [sys.executable, "-c", script], env=child, capture_output=True, text=True, check=True
    )
    assert "PYTHONUNBUFFERED" in done.stdout and TOKEN not in done.stdout
