"""`comfyui-worker` as it is installed and typed."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from demo.volume import DemoVolume
from scripts.cli import COMMANDS, main
from tests.support.sources import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

PACKAGES = ("bootstrap", "handler", "scripts")


def typed(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """What a person sees."""
    done = subprocess.run(
        [sys.executable, "-m", "scripts.cli", *arguments],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Traceback" not in done.stderr
    return done


SUBCOMMANDS: list[list[str]] = [
    [],
    *([name] for name in COMMANDS),
    *(["models", name] for name in ("add", "list", "plan", "pull", "verify")),
    *(["nodes", name] for name in ("add", "list", "plan", "pull", "verify", "map")),
]


@pytest.mark.parametrize("words", SUBCOMMANDS, ids=" ".join)
def test_help_has_variables_two_examples_and_exit_codes(
    words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    try:
        code = main([*words, "--help"])
    except SystemExit as ended:
        code = int(ended.code or 0)
    said = capsys.readouterr().out
    name = " ".join(("comfyui-worker", *words))
    assert code == 0 and said.startswith(f"usage: {name}")
    parts = {part.splitlines()[0]: part.splitlines()[1:] for part in said.split("\n\n")}
    assert ("environment:" in parts) != (words in (["completion"], ["params"]))
    assert parts.get("environment:", True) and parts["exit codes:"][0].startswith("  0")
    examples = parts["examples:"]
    assert len(examples) == 2 and all(name in line for line in examples)
    assert all(len(line) <= 80 for line in said.splitlines())
    assert "python -m" not in said and "scripts/" not in said


def test_options_are_those_that_are_completed(capsys: pytest.CaptureFixture[str]) -> None:
    for command in sorted(set(COMMANDS) - {"models", "nodes", "completion"}):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        said = capsys.readouterr().out
        options = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", said, re.MULTILINE)) - {"--help"}
        assert options == set(COMMANDS[command].options)


@pytest.mark.parametrize("command", ["models", "nodes"])
def test_the_subcommands_and_their_options_are_those_that_are_completed(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    walked = {words[1] for words in SUBCOMMANDS if words[:1] == [command] and words[1:]}
    assert walked == set(COMMANDS[command].below)
    for name, completed in COMMANDS[command].below.items():
        with pytest.raises(SystemExit):
            main([command, name, "--help"])
        said = capsys.readouterr().out
        options = set(re.findall(r"^  (?:-\w, )?(--[a-z-]+)", said, re.MULTILINE)) - {"--help"}
        assert options == set(completed.split()), name


def test_messages_name_the_program_that_was_typed(tmp_path: Path) -> None:
    said = typed("models", "list", VOLUME_PATH=str(tmp_path)).stdout
    assert "  comfyui-worker models add https" in said and "python -m" not in said
    workflow = str(ROOT / "examples/workflow_api.json")
    refused = typed("submit", workflow, "--url", "http://127.0.0.1:9")
    assert "`comfyui-worker serve --local --port 9`" in refused.stderr
    assert refused.returncode == 3 and "running" not in refused.stderr


def test_all_of_it_is_named() -> None:
    assert typed().returncode == 2
    said = typed("--help")
    assert said.returncode == 0 and all(f"\n  {name} " in said.stdout for name in COMMANDS)
    assert re.fullmatch(r"comfyui-worker \d+\.\d+\.\d+\n", typed("--version").stdout)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["docter"], "comfyui-worker: there is no command 'docter'. Did you mean doctor?"),
        (["xyz"], "comfyui-worker: there is no command 'xyz'. There are: serve, boot, doctor"),
        (["doctor", "--fixx"], "unrecognized arguments: --fixx. Did you mean --fix?"),
        (["models", "pul"], "Did you mean pull?"),
        (["nodes", "veriffy"], "Did you mean verify?"),
        (["submit", "--outptu", "x"], "unrecognized arguments: --outptu. Did you mean --output?"),
        (["doctor", "/workspac"], "Did you mean this?\n  comfyui-worker doctor /workspace\n"),
        (["serve", "--port", "many"], "argument --port: invalid int value: 'many'"),
        (["serve", "--local", "--port", "70000"], "70000 (a port is a number from 1 to 65535)"),
        (["serve", "--local", "--port", "0"], "one: `comfyui-worker serve --local --port 8"),
        (["serve", "--local", "--host", "192.0.2.1"], "one: `comfyui-worker serve --local`\n"),
    ],
)
def test_what_is_typed_wrongly_is_a_line_or_two(arguments: list[str], said: str) -> None:
    done = typed(*arguments)
    assert done.returncode == 2 and said in done.stderr
    assert len(done.stderr.splitlines()) <= 2


def test_a_port_in_use_is_said_before_anything_is_started() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = typed("serve", "--local", "--port", str(port))
    assert done.returncode == 2
    said, hint = done.stderr.splitlines()
    assert said == (
        f"error[worker.cannot_listen]: The local API cannot listen on 127.0.0.1:{port} (Address "
        "already in use)."
    )
    assert re.fullmatch(
        r"hint: Choose another one: `comfyui-worker serve --local --port \d+`", hint
    )


def test_a_package_that_is_missing_is_named(tmp_path: Path) -> None:
    venv = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    for command, package in (("submit", "requests"), ("serve", "runpod|aiohttp|cpuinfo")):
        done = subprocess.run(
            [venv / "bin" / "python", "-m", "scripts.cli", command],
            cwd=ROOT,
            env={"PATH": "/usr/bin:/bin", "VOLUME_PATH": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 2 and "Traceback" not in done.stderr
        assert re.search(rf"needs (the package )?({package})", done.stderr), done.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("do", "doctor"),
        ("doctor --dr", "--dry-run"),
        ("doctor mine", "mine.json"),
        ("models ''", "add list plan pull verify --help"),
        ("nodes p", "plan pull"),
        ("models add --", "--manifest --directory --name --optional --allow-pickle --help"),
        ("nodes add --from mi", "mine.json"),
        ("health ''", "--help"),
    ],
)
def test_a_shell_completes_commands_options_and_files(
    tmp_path: Path, words: str, completed: str
) -> None:
    (tmp_path / "mine.json").write_text("")
    asking = (
        f"{typed('completion', 'bash').stdout}\nCOMP_WORDS=(comfyui-worker {words})\n"
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _comfyui_worker; echo ${COMPREPLY[@]}"
    )
    said = subprocess.check_output(["bash", "-c", asking], text=True, cwd=tmp_path)
    assert said.strip() == completed


def test_zsh_completes_as_bash_does() -> None:
    assert "bashcompinit" in typed("completion", "zsh").stdout


@pytest.mark.parametrize(
    ("words", "code"), [(["completion", "bash"], 0), (["--help"], 0), (["models", "list"], 1)]
)
def test_a_reader_that_has_seen_enough_is_no_fault(words: list[str], code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        program = [sys.executable, "-m", "scripts.cli", *words]
        done = subprocess.run(
            program, cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (code, "")


def test_a_target_of_make_fits_in_a_terminal() -> None:
    said = subprocess.check_output(["make", "-s", "help"], cwd=ROOT, text=True)
    assert "make demo" in said and max(map(len, said.splitlines())) <= 80


def test_it_installs_what_the_worker_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements" / "worker.txt").read_text().splitlines()
    assert project["dependencies"] == [line.strip() for line in lines if "==" in line]


def test_what_is_installed_is_all_that_git_has(tmp_path: Path) -> None:
    """Every file of the packages, pages and other data too."""
    listed = subprocess.check_output(["git", "ls-files", "-z", *PACKAGES], cwd=ROOT, text=True)
    kept = {name for name in listed.split("\0") if name and (ROOT / name).exists()}
    for name in (*kept, "pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    build = [sys.executable, "-m", "uv", "build", "-q", "--wheel", "--out-dir", "made", "."]
    subprocess.run(build, check=True, cwd=tmp_path, timeout=120)
    (wheel,) = (tmp_path / "made").glob("*.whl")
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert packed == kept
    assert "bootstrap/doctor/page.html" in packed


def test_it_runs_where_it_is_installed(demo: DemoVolume, tmp_path: Path) -> None:
    source, venv = tmp_path / "source", tmp_path / "venv"
    source.mkdir()
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", source)
    uv: list[str | Path] = [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "-q", "--python", sys.executable, venv], check=True)
    # Its packages are those of this Python: see the test before.
    install = [*uv, "pip", "install", "-q", "--no-deps", "--python", venv / "bin" / "python"]
    subprocess.run([*install, source], check=True, cwd=tmp_path)
    done = subprocess.run(
        [venv / "bin" / "comfyui-worker", "doctor", demo.path, "--html", "page.html"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "page.html").stat().st_size > 10_000
