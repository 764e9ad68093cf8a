"""An interpreter's packages: real venvs, real broken links, hand-made records."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from bootstrap.environment import PackagesFacts
from bootstrap.environment.python_probe import PythonTrouble
from bootstrap.environment.site_packages import MOST_LISTED
from tests.bootstrap.environment.venvs import gather_packages

VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """A virtual environment with nothing in it."""
    folder = tmp_path / "a venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    return folder


@pytest.fixture
def site(venv: Path) -> Path:
    """Its folder of packages."""
    return venv / "lib" / f"python{VERSION}" / "site-packages"


def record(site: Path, folder: str, text: str, file: str = "METADATA") -> None:
    (site / folder).mkdir()
    (site / folder / file).write_text(text, encoding="utf-8")


def ask(venv: Path) -> PackagesFacts:
    return gather_packages(venv / "bin" / "python")


def failure(venv: Path) -> PythonTrouble:
    found = ask(venv).failure
    assert found is not None
    return found.trouble


def test_this_very_interpreter_as_its_own_library_sees_it() -> None:
    found = gather_packages(Path(sys.executable))
    real = {
        canonicalize_name(d.metadata["Name"]): d.version for d in importlib.metadata.distributions()
    }
    assert {p.name: p.version for p in found.packages} == real
    assert found.usable
    assert found.version == ".".join(map(str, sys.version_info[:3]))
    assert found.markers["python_version"] == VERSION


def test_an_empty_venv(venv: Path, site: Path) -> None:
    found = ask(venv)
    assert found.failure is None
    assert found.packages == ()
    assert found.folders == ()
    assert not found.sees_nothing
    assert found.venv is not None
    assert found.venv.version == VERSION


def test_all_kinds_of_records(venv: Path, site: Path) -> None:
    record(
        site,
        "Foo.Bar_baz-1.2.dist-info",
        "Metadata-Version: 2.1\nName: Foo.Bar_baz\nVersion: 1.2+cu128\n\nName: not\n",
    )
    record(site, "old-0.9-py3.10.egg-info", "Name: old\nVersion: 0.9\n", "PKG-INFO")
    (site / "oldest-0.1.egg-info").write_text("Name: oldest\nVersion: 0.1\n")
    record(site, "folded-4.dist-info", "name:\n Folded\nVERSION:\n\t4\n")
    record(site, "~orch-2.0.dist-info", "Name: torch\nVersion: 2.0\n")
    (site / "cut_off-3.0.dist-info").mkdir()
    found = ask(venv)
    assert {p.name: p.version for p in found.packages} == {
        "foo-bar-baz": "1.2+cu128",
        "old": "0.9",
        "oldest": "0.1",
        "folded": "4",
        "cut-off": None,
    }
    assert found.versions_of("foo-bar-baz") == ("1.2+cu128",)
    assert found.versions_of("torch") == ()


def test_nothing_is_imported_or_run(venv: Path, site: Path, tmp_path: Path) -> None:
    record(site, "evil-1.dist-info", "Name: evil\nVersion: 1\n")
    (site / "evil").mkdir()
    (site / "evil" / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    assert ask(venv).versions_of("evil") == ("1",)
    assert not (tmp_path / "ran").exists()


def test_what_a_pth_file_prints_does_no_harm(venv: Path, site: Path) -> None:
    (site / "loud.pth").write_text("import sys; print('hello {')\n")
    assert ask(venv).failure is None


def test_the_first_folder_counts(venv: Path, site: Path, tmp_path: Path) -> None:
    other = tmp_path / "added"
    other.mkdir()
    record(site, "one-2.dist-info", "Name: one\nVersion: 2\n")
    record(other, "one-1.dist-info", "Name: one\nVersion: 1\n")
    record(other, "two-1.dist-info", "Name: two\nVersion: 1\n")
    (site / "added.pth").write_text(f"{other}\n")
    found = ask(venv)
    assert found.versions_of("one") == ("2",)
    assert found.versions_of("two") == ("1",)


def test_packages_of_another_python_version(venv: Path, site: Path) -> None:
    record(site, "torch-2.9.dist-info", "Name: torch\nVersion: 2.9\n")
    (venv / "lib" / f"python{VERSION}").rename(venv / "lib" / "python3.9")
    config = venv / "pyvenv.cfg"
    config.write_text(re.sub(r"version = .*", "version = 3.9.1", config.read_text()))
    found = ask(venv)
    assert found.sees_nothing
    assert not found.usable
    assert found.other_versions == ("3.9",)


def test_a_link_that_leads_nowhere(venv: Path) -> None:
    for name in ("python", "python3", f"python{VERSION}"):
        (venv / "bin" / name).unlink(missing_ok=True)
    (venv / "bin" / "python").symlink_to("/usr/bin/python3.99")
    found = ask(venv)
    assert found.failure is not None
    assert found.failure.trouble is PythonTrouble.LINK_BROKEN
    assert "/usr/bin/python3.99" in found.failure.reason
    assert found.venv is not None
    assert found.venv.version == VERSION


@pytest.mark.parametrize(
    ("content", "mode", "trouble"),
    [
        (None, 0, PythonTrouble.MISSING),
        (b"#!/nowhere/python\n", 0o755, PythonTrouble.NO_LOADER),
        (b"\x7fELF\x02\x01\x01" + bytes(60), 0o755, PythonTrouble.OTHER_MACHINE),
        (b"#!/bin/sh\n", 0o644, PythonTrouble.NOT_EXECUTABLE),
        (
            b"#!/bin/sh\necho 'libpython3.10.so: not found' >&2; exit 127\n",
            0o755,
            PythonTrouble.FAILED,
        ),
        (b"#!/bin/sh\nexit 0\n", 0o755, PythonTrouble.FAILED),
        (b"#!/bin/sh\necho '[]'\n", 0o755, PythonTrouble.FAILED),
    ],
)
def test_interpreters_that_do_not_start(
    tmp_path: Path, content: bytes | None, mode: int, trouble: PythonTrouble
) -> None:
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    if content is not None:
        python.write_bytes(content)
        python.chmod(mode)
    assert failure(tmp_path) is trouble


def test_the_last_words_of_an_interpreter_are_kept(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'libpython3.10.so: not found' >&2; exit 127\n")
    python.chmod(0o755)
    found = gather_packages(python).failure
    assert found is not None
    assert found.reason == "libpython3.10.so: not found"


def test_an_interpreter_that_does_not_answer(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 30\n")
    python.chmod(0o755)
    found = gather_packages(python, timeout=0.2).failure
    assert found is not None
    assert found.trouble is PythonTrouble.SILENT


def test_scripts_that_name_another_place(venv: Path) -> None:
    pip = venv / "bin" / "pip"
    pip.write_text(f"#!{venv}/bin/python\n")
    assert ask(venv).scripts_python is None
    pip.write_text("#!/workspace/venv/bin/python3\nimport pip\n")
    assert ask(venv).scripts_python == "/workspace/venv/bin/python3"
    pip.write_text("#!/bin/sh\n'''exec' \"/work space/venv/bin/python3\" \"$0\" \"$@\"\n' '''\n")
    assert ask(venv).scripts_python == "/work space/venv/bin/python3"


def test_no_secret_reaches_the_child(venv: Path, site: Path, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    (site / "spy.pth").write_text(
        f"import os; open({str(seen)!r}, 'w').write(repr(dict(os.environ)))\n"
    )
    env = {**os.environ, "HF_TOKEN": "marker-token", "PYTHONPATH": "/marker-path"}
    assert gather_packages(venv / "bin" / "python", env).failure is None
    assert "marker" not in seen.read_text()


def test_the_facts_are_bounded_and_fit_into_json(venv: Path, site: Path) -> None:
    for number in range(MOST_LISTED + 20):
        (site / f"p{number}-1.egg-info").write_text(f"Name: p{number}\nVersion: 1\n")
    reported = ask(venv).as_dict()
    assert reported["package_count"] == MOST_LISTED + 20
    assert len(reported["packages"]) == MOST_LISTED
    assert len(json.dumps(reported)) < 60_000
    assert json.dumps(gather_packages(Path("/nowhere/python")).as_dict())
