"""Requirements judged in ComfyUI's Python: lines, files, what is installed, hard imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bootstrap.environment import requirements
from bootstrap.environment.imports import hard_imports
from bootstrap.environment.node_packs import RequirementFile, Requirements, requirement_file
from bootstrap.environment.requirements import Judgement, RequirementState, judge
from tests.support.small_python import SmallPython

ENV = dict(os.environ)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> SmallPython:
    found = SmallPython(tmp_path_factory.mktemp("small") / "a venv")
    found.add("numpy", "2.0.1")
    found.add("odd", "2023-nightly")
    found.add("candidate", "2.0rc1")
    found.add("library", "1.0", ["inner>=1; extra == 'fast'", "numpy; extra == 'slow'"])
    found.module("cv2")
    found.record("opencv-python-headless", "4.10.0")
    found.module("untracked_one")
    found.module("triton")
    (found.site / "av").mkdir()
    (found.site / "left_behind").mkdir()
    (found.site / "cut_off-3.0.dist-info").mkdir()
    (found.site / "~ld-3.0.dist-info").mkdir()
    direct = found.site / "from_git-1.0.dist-info"
    found.add("from-git", "1.0")
    (direct / "direct_url.json").write_text('{"url": "https://example.com/from-git.git"}')
    return found


def asked(*files: RequirementFile) -> Requirements:
    return Requirements(files=files)


def of_lines(small: SmallPython, *lines: str) -> list[RequirementState]:
    made = judge(small.python, ENV, asked(RequirementFile("node", "", lines)))
    assert made.packages.failure is None
    return [verdict.state for verdict in made.verdicts]


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("numpy", "met"),
        ("NumPy>=2,<3", "met"),
        ("numpy (>=2)", "met"),
        ("numpy<2", "wrong"),
        ("numpy~=2.0.0; python_version > '3'", "met"),
        ("numpy<2; python_version < '3'", "skipped"),
        ("numpy<2; no_such_marker == 'x'", "unread"),
        ("torch==2.13.0", "met"),
        ("torch==2.13.0+cu130", "wrong"),
        ("candidate>=2.0rc1", "met"),
        ("candidate>=2", "wrong"),
        ("odd>1", "unread"),
        ("cut-off", "unread"),
        ("ld", "missing"),
        ("nothing-like-it", "missing"),
        ("left-behind", "missing"),
        ("untracked-one", "untracked"),
        ("opencv-python>=4", "met"),
        ("dataclasses", "untracked"),
        ("library[slow]", "met"),
        ("library[fast]", "missing"),
        ("library[none]", "met"),
        ("name @ https://example.com/name-1.0.tar.gz", "missing"),
        ("numpy @ https://example.com/numpy.zip", "met"),
        ("https://example.com/numpy-2.0-py3-none-any.whl", "met"),
        ("https://example.com/other-2.0-cp311-cp311-linux_x86_64.whl#sha256=0", "missing"),
        ("git+https://example.com/x.git#egg=numpy", "met"),
        ("git+https://example.com/from-git.git", "met"),
        ("git+https://example.com/from-git.git@v1 ; python_version > '3'", "met"),
        ("git+https://example.com/x.git ; python_version < '3'", "skipped"),
        ("git+https://example.com/unknown.git", "missing"),
        ("git+https://${TOKEN}@example.com/unknown.git", "unread"),
        ("./wheels/local.whl", "unread"),
        ("two words", "unread"),
        ("", "unread"),
        ("x" * 2000, "unread"),
    ],
)
def test_a_line(small: SmallPython, line: str, state: str) -> None:
    assert of_lines(small, line) == [RequirementState(state)]


def test_what_to_ask_an_installer_for(small: SmallPython) -> None:
    lines = ("kornia[x] >=0.7 ; sys_platform == 'linux'", "git+https://example.com/x.git#egg=y")
    made = judge(small.python, ENV, asked(RequirementFile("node", "", lines)))
    assert [(v.text, v.name) for v in made.verdicts] == [
        ("kornia[x]>=0.7", "kornia"),
        ("git+https://example.com/x.git#egg=y", "y"),
    ]


def test_a_project_file(small: SmallPython) -> None:
    text = '[project]\nname = "x"\ndependencies = [\n "numpy<2", # no\n \'kornia\',\n 3]\n'
    files = [RequirementFile("a", "", toml=text), RequirementFile("b", "", toml="[broken")]
    assert [(v.owner, str(v)) for v in judge(small.python, ENV, asked(*files)).verdicts] == [
        ("a", "numpy<2 (2.0.1 is installed)"),
        ("a", "kornia"),
    ]


def test_a_folder_of_modules_is_a_module_and_what_an_uninstall_left_is_not(
    tmp_path: Path,
) -> None:
    """comfy-aimdo 0.4.13 has no `__init__.py`."""
    small = SmallPython(tmp_path / "venv")
    (folder := small.site / "comfy_aimdo" / "__pycache__").mkdir(parents=True)
    (folder / "control.cpython-311.pyc").touch()
    made = judge(small.python, ENV, Requirements("0.33.0"))
    assert "comfy_aimdo" in {each.module for each in made.absent}
    (small.site / "comfy_aimdo" / "control.py").touch()
    made = judge(small.python, ENV, Requirements("0.33.0"))
    assert "comfy_aimdo" not in {each.module for each in made.absent}


def test_the_interpreter_and_what_it_has(small: SmallPython) -> None:
    made = judge(small.python, ENV, Requirements("0.33.0"), needs=True)
    assert made.packages.prefix == str(small.python.parent.parent)
    assert made.packages.tag == sys.implementation.cache_tag
    assert made.judged_with == "packaging"
    assert made.installed["torch"] == "2.13.0+cpu"
    assert made.installed["cut-off"] is None
    assert "ld" not in made.installed
    absent = {each.module for each in made.absent}
    assert absent >= {"comfy_aimdo", "av", "torchvision"}
    assert not absent & {"torch", "yaml"}
    assert made.untracked_kin == ("triton",)
    assert made.needs["library"].extras == ("fast", "slow")
    assert made.needs["library"].requires == ()


def test_packages_are_never_run(small: SmallPython, tmp_path: Path) -> None:
    """Neither those that are searched for, nor a module in the worker's current folder."""
    loud = SmallPython(tmp_path / "loud")
    loud.add("av", "1.0", text="raise SystemExit('I ran')\n")
    (tmp_path / "json.py").write_text("raise SystemExit('I ran')\n")
    code = (
        "import os; from bootstrap.environment.requirements import judge\n"
        "from pathlib import Path\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "from bootstrap.environment.node_packs import Requirements\n"
        f"print(judge(Path({str(loud.python)!r}), os.environ, Requirements('0.33.0')).absent)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "'torchvision'" in done.stdout
    assert "'av'" not in done.stdout


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("#!/nowhere/python\n", "No such file"),
        ("#!/bin/sh\necho 'error: libpython is gone' >&2; exit 127\n", "libpython is gone"),
        ("#!/bin/sh\necho '[1]'\n", "could not be parsed"),
        ("#!/bin/sh\necho '{}'\n", "could not be parsed"),
        ("#!/bin/sh\nexec sleep 60\n", "no answer in 1 s"),
        ("#!/bin/sh\nexit 3\n", "exit code 3"),
    ],
)
def test_an_interpreter_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    monkeypatch.setattr(requirements, "ASK_SECONDS", 1)
    python = tmp_path / "python"
    python.write_text(script)
    python.chmod(0o755)
    made = judge(python, ENV, Requirements())
    assert made.packages.failure is not None
    assert reason in made.packages.failure.reason
    assert made.verdicts == ()


def test_a_python_whose_pip_has_packaging(tmp_path: Path) -> None:
    bare = SmallPython(tmp_path / "bare", packaging=False)
    bare.add("numpy", "2.0")
    file = RequirementFile("node", "", ("numpy<2",))

    def made() -> Judgement:
        return judge(bare.python, ENV, asked(file))

    assert made().judged_with is None
    assert made().verdicts[0].state is RequirementState.UNJUDGED
    assert made().installed["numpy"] == "2.0"
    vendored = next(Path(p) for p in map(Path, sys.path) if (Path(p) / "pip").is_dir())
    (bare.site / "pip").symlink_to(vendored / "pip")
    assert made().judged_with == "pip._vendor.packaging"
    assert made().verdicts[0].state is RequirementState.WRONG


# Files ------------------------------------------------------------------------------------------


def read(folder: Path, owner: str = "node") -> tuple[str, ...]:
    found = requirement_file(owner, str(folder))
    return found.lines if found else ()


def test_lines_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text(
        "# a comment\n"
        "numpy>=1 # why\n"
        "numpy>=1\n"
        "--index-url https://evil.example/simple\n-f ./wheels\n--pre\n"
        "torch \\\n  >=2 \\\n  --hash=sha256:00\n"
        "-e git+https://example.com/x.git#egg=x\n"
        "-r more.txt\n--requirement=deeper/most.txt\n-r ../outside.txt\n-r missing.txt\n"
        "-c constraints.txt\nnul\0byte\nlast"
    )
    (tmp_path / "more.txt").write_text("einops\n-r requirements.txt\n")
    (tmp_path / "deeper").mkdir()
    (tmp_path / "deeper" / "most.txt").write_text("-r ../more.txt\nkornia\n")
    assert read(tmp_path) == (
        "numpy>=1",
        "torch   >=2",
        "git+https://example.com/x.git#egg=x",
        "last",
        "einops",
        "kornia",
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "requirements.txt").write_bytes("numpy # für\r\nkornia\r".encode(encoding))
    assert read(tmp_path) == ("numpy", "kornia")


def test_nothing_outside_the_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret\n")
    node = tmp_path / "node"
    node.mkdir()
    (node / "requirements.txt").symlink_to("../secret.txt")
    assert read(node) == ()
    (node / "requirements.txt").unlink()
    (node / "requirements.txt").write_text("numpy\n-r link.txt\n-r /etc/passwd\n-r pipe\n-r .\n")
    (node / "link.txt").symlink_to("/etc/hostname")
    os.mkfifo(node / "pipe")
    assert read(node) == ("numpy",)
    linked = tmp_path / "linked"
    linked.symlink_to(node)
    assert read(linked) == ("numpy",)


def test_pyproject_counts_if_there_is_no_other_file(tmp_path: Path) -> None:
    assert requirement_file("node", str(tmp_path)) is None
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    found = requirement_file("node", str(tmp_path))
    assert found is not None and found.toml == "[project]\n"
    assert requirement_file("ComfyUI", str(tmp_path)) is None
    (tmp_path / "requirements.txt").write_text("")
    found = requirement_file("node", str(tmp_path))
    assert found is not None and (found.lines, found.toml) == ((), None)


def test_a_file_that_never_ends(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("".join(f"p{n}\n" for n in range(100_000)))
    assert len(read(tmp_path)) == 300


# Hard imports -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "there", "not_there"),
    [
        (None, {"torch", "yaml"}, {"torchvision", "av", "comfy_aimdo"}),
        ("0.0.3", {"torchvision"}, {"requests", "tokenizers", "av"}),
        ("0.3.47", {"tokenizers"}, {"av", "torchaudio"}),
        ("0.3.48", {"av", "packaging", "torchaudio"}, {"pydantic"}),
        ("0.3.75", {"av"}, {"torchaudio", "comfy_aimdo"}),
        ("v0.11.1-4-gabc", {"sqlalchemy"}, {"comfy_aimdo"}),
        ("0.12.0", {"comfy_aimdo"}, {"filelock"}),
        ("0.19.9", {"filelock"}, {"torchaudio"}),
        ("0.20.0", {"torchaudio"}, {"comfy_kitchen"}),
        ("0.33.0", {"torchaudio", "comfy_kitchen", "comfy_aimdo"}, {"alembic", "blake3"}),
        ("0.38.0", {"comfy_kitchen", "alembic", "blake3"}, {"torchaudio"}),
    ],
)
def test_hard_imports_by_version(version: str | None, there: set[str], not_there: set[str]) -> None:
    found = {each.module for each in hard_imports(version)}
    assert there <= found
    assert not not_there & found


def test_the_assets_database_can_be_switched_off() -> None:
    found = {each.module for each in hard_imports("0.38.1", ("--disable-assets",))}
    assert not {"alembic", "blake3"} & found
