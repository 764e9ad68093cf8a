"""Package sets: a real uv, a real index, several workers, faults of index, disk and volume."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from bootstrap.core.concurrency import BoundedCaller
from bootstrap.core.findings import Finding, Outcome, Severity
from bootstrap.environment import package_loading, package_set, package_store
from bootstrap.environment.imports import hard_imports
from bootstrap.environment.node_packs import read_requirements
from bootstrap.environment.package_loading import load
from bootstrap.environment.package_set import PackageContext, PackageSet, kept_set, prepare_packages
from bootstrap.environment.package_store import KEPT_DAYS, KEPT_SETS, BadSet, Record, keep
from bootstrap.environment.requirements import RequirementState, judge
from bootstrap.environment.uv import pip_settings
from tests.conftest import BootedWorker
from tests.end_to_end.test_worker import plain
from tests.support.package_index import PackageIndex, make_wheel, serving
from tests.support.process_tree import family
from tests.support.small_python import SmallPython
from tests.support.waiting import wait_until

SECRET = "pass-word-marker"
SECONDS = 120.0
VERSION = "import tiny_one; print(tiny_one.VERSION)"


@pytest.fixture
def index(tmp_path: Path) -> Iterator[PackageIndex]:
    (tmp_path / "wheels").mkdir()
    with serving(tmp_path / "wheels") as served:
        yield served


class Rig:
    """Workers on one volume whose ComfyUI is nothing but requirements."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.small = SmallPython(root / "venv")
        self.volume = root / "volume"
        self.comfyui = self.volume / "ComfyUI"
        (self.comfyui / "custom_nodes").mkdir(parents=True)

    def set_version(self, version: str) -> None:
        """Which ComfyUI it is."""
        (self.comfyui / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')

    def core(self, *requirements: str) -> None:
        """ComfyUI's own requirements."""
        (self.comfyui / "requirements.txt").write_text("".join(f"{r}\n" for r in requirements))

    def node(self, name: str, *requirements: str) -> Path:
        """A custom node that requires these."""
        pack = self.comfyui / "custom_nodes" / name
        pack.mkdir()
        (pack / "__init__.py").write_text("NODE_CLASS_MAPPINGS = {}\n")
        (pack / "requirements.txt").write_text("".join(f"{r}\n" for r in requirements))
        return pack

    def place(self, work: str, timeout: float = SECONDS, stale: float = 20.0) -> PackageContext:
        folder = self.root / work
        folder.mkdir(exist_ok=True)
        return PackageContext(
            python=self.small.python,
            comfyui=self.comfyui,
            volume=self.volume,
            work=folder,
            timeout=timeout,
            beat=0.2,
            stale=stale,
        )

    def prepare(
        self, env: Mapping[str, str], work: str = "work", mode: str = "install", **how: float
    ) -> PackageSet:
        """One worker's start."""
        return prepare_packages(self.place(work, **how), {**os.environ, **env}, mode)

    def sets(self) -> list[Path]:
        """Everything in the folder for sets."""
        return sorted((self.volume / ".comfyui-worker" / "packages").glob("*"))

    def prints(self, made: PackageSet, program: str) -> str:
        """What a program prints in ComfyUI's Python with the packages on its path."""
        env = made.environment(os.environ)
        done = subprocess.run(
            [self.small.python, "-c", program], env=env, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() or done.stderr.strip()


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def codes(made: PackageSet) -> list[str]:
    return sorted(finding.code for finding in made.findings)


def one(made: PackageSet, code: str) -> Finding:
    found = [finding for finding in made.findings if finding.code == code]
    assert len(found) == 1, made.findings
    return found[0]


def test_what_is_missing_and_what_that_needs_is_added(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5", ["tiny-two>=2", "torch>=2"])
    make_wheel(index.folder, "tiny-two", "2.0")
    rig.core("torch", "tiny_one>=1", "not-here; sys_platform == 'win32'")
    rig.node("a", "tiny-two")
    made = rig.prepare(index.env())
    assert rig.prints(made, f"import tiny_two; {VERSION}") == "1.5"
    assert made.record.installed == {"tiny-one": "1.5", "tiny-two": "2.0"}
    asked_by = one(made, "packages.installed").details["asked_by"]
    assert asked_by == {"tiny_one>=1": ["ComfyUI"], "tiny-two": ["a"]}
    assert codes(made) == ["packages.installed"]
    assert not any("torch" in name for name in index.asked)
    assert [path.suffix for path in rig.sets()] == [".zip"]
    assert list((rig.root / "work").iterdir()) != []


def test_the_second_worker_needs_no_network(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.core("tiny-one")
    first = rig.prepare(index.env())
    asked = len(index.asked)
    made = rig.prepare({"UV_OFFLINE": "1"}, "second")
    assert rig.prints(made, "import tiny_one; print(tiny_one.__file__)").startswith(
        str(rig.root / "second")
    )
    assert len(index.asked) == asked > 0
    assert made.findings == first.findings
    assert "load" in made.seconds and "build" in first.seconds


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        ([], ["torch", "one", "two"]),
        (["--disable-all-custom-nodes"], ["torch"]),
        (
            ["--disable-all-custom-nodes", "--whitelist-custom-nodes", "b", "--cpu"],
            ["torch", "two"],
        ),
        (["--enable-manager", "--disable-all-custom-nodes"], ["torch", "comfyui_manager==4.2.2"]),
        (["--whitelist-custom-nodes", "b"], ["torch", "one", "two"]),
    ],
)
def test_what_is_asked_for_follows_the_command_line(
    rig: Rig, arguments: list[str], lines: list[str]
) -> None:
    rig.core("torch")
    (rig.comfyui / "manager_requirements.txt").write_text("comfyui_manager==4.2.2\n")
    rig.node("a", "one")
    rig.node("b", "two")
    asked = read_requirements(str(rig.comfyui), BoundedCaller(10), arguments=arguments)
    assert [line for file in asked.files for line in file.lines] == lines


def test_nothing_missing_asks_no_one_and_writes_nothing(rig: Rig, index: PackageIndex) -> None:
    rig.core("torch>=2", "packaging")
    made = rig.prepare(index.env())
    assert (made.path, made.findings, index.asked, rig.sets()) == (None, (), [], [])
    assert list((rig.root / "work").iterdir()) == []


def test_comfyuis_exact_version_wins_over_an_older_copy(rig: Rig, index: PackageIndex) -> None:
    rig.small.add("tiny-one", "0.9")
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.core("tiny-one==1.5")
    made = rig.prepare(index.env())
    program = f"import importlib.metadata as m; print(m.version('tiny-one')); {VERSION}"
    assert rig.prints(made, program) == "1.5\n1.5"
    assert made.record.replaced == {"tiny-one": "0.9"}
    assert "replace tiny-one 0.9" in one(made, "packages.installed").message
    where = rig.prints(made, "import torch; print(torch.__file__)")
    assert where.startswith(str(rig.small.site))


def test_what_another_package_needs_changes_along_for_comfyui(
    rig: Rig, index: PackageIndex
) -> None:
    """Its pin needs a version that conflicts with the installed copy of another requirement."""
    rig.small.add("library", "1.0", ["helper<2"])
    rig.small.add("helper", "1.0")
    make_wheel(index.folder, "library", "1.0", ["helper<2"])
    make_wheel(index.folder, "library", "1.1", ["helper<3"])
    make_wheel(index.folder, "helper", "1.0")
    make_wheel(index.folder, "helper", "2.0")
    rig.core("library", "helper>=2")
    made = rig.prepare(index.env())
    assert made.record.installed == {"library": "1.1", "helper": "2.0"}
    assert codes(made) == ["packages.installed"]


def test_a_node_never_replaces_what_others_need(rig: Rig, index: PackageIndex) -> None:
    for version in ("1.0", "2.0"):
        for name in ("of-core", "of-node", "of-package", "of-none"):
            make_wheel(index.folder, name, version)
    for name in ("of-core", "of-node", "of-package", "of-none"):
        rig.small.add(name, "1.0")
    rig.small.add("package", "1.0", ["of-package<2"])
    rig.core("of-core")
    rig.node("happy", "of-node<2")
    rig.node("wishful", "of-core>=2", "of-node>=2", "of-package>=2", "of-none>=2")
    made = rig.prepare(index.env())
    assert made.record.installed == {"of-none": "2.0"}
    reported = one(made, "packages.conflict")
    assert reported.details["owner"] == "wishful"
    assert {r["wanted"] for r in reported.details["requirements"]} == {
        "of-core>=2",
        "of-node>=2",
        "of-package>=2",
    }
    assert all(r["reason"] for r in reported.details["requirements"])


def test_another_torch_is_never_installed(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "old-friend", "1.0", ["torch<2"])
    make_wheel(index.folder, "torch", "1.13.1")
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.node("old", "old-friend")
    rig.node("tiny", "tiny-one")
    rig.node("older", "torch==1.13.1")
    made = rig.prepare(index.env())
    refused = {f.details["owner"]: f.message for f in made.findings if "owner" in f.details}
    assert refused.keys() == {"old", "older"}
    assert "torch<2" in refused["old"]
    assert "2.13.0+cpu is installed" in refused["older"]
    assert made.record.installed == {"tiny-one": "1.5"}
    assert not [name for name in index.wheels_fetched() if name.startswith("torch")]
    asked = len(index.asked)
    again = rig.prepare(index.env(), "second")
    assert again.findings == made.findings
    assert len(index.asked) == asked


def test_the_largest_rest_that_goes_together(rig: Rig, index: PackageIndex) -> None:
    """Requirements of most nodes come first; one that blocks two others is dropped."""
    for version in ("1.0", "2.0"):
        make_wheel(index.folder, "tiny-one", version)
        make_wheel(index.folder, "tiny-two", version)
    make_wheel(index.folder, "a-greedy", "1.0", ["tiny-one<2", "tiny-two<2"])
    rig.node("a", "a-greedy")
    rig.node("b", "tiny-one==2.0")
    rig.node("c", "tiny-two==2.0")
    made = rig.prepare(index.env())
    assert made.record.installed == {"tiny-one": "2.0", "tiny-two": "2.0"}
    assert one(made, "packages.conflict").details["owner"] == "a"


def test_what_no_one_has_is_refused_and_the_others_come(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.node("a", "no-such-package", "tiny-one", "!!", "git+http://127.0.0.1:9/x/gone.git")
    made = rig.prepare(index.env())
    reported = one(made, "packages.conflict")
    assert {r["wanted"] for r in reported.details["requirements"]} == {
        "no-such-package",
        "git+http://127.0.0.1:9/x/gone.git",
    }
    assert str(rig.sets()[0]) in reported.fix
    assert rig.prints(made, VERSION) == "1.5"


def test_extras_of_what_is_installed(rig: Rig, index: PackageIndex) -> None:
    rig.small.add("library", "1.0", ["tiny-one; extra == 'fast'", "never; extra == 'other'"])
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.node("a", "library[fast]")
    made = rig.prepare(index.env())
    assert made.record.installed == {"tiny-one": "1.5"}
    assert codes(made) == ["packages.installed"]


def test_what_is_added_hides_nothing(rig: Rig, index: PackageIndex) -> None:
    """Of the standard library, of the interpreter's packages, and its own sitecustomize."""
    (rig.small.site / "sitecustomize.py").write_text("import sys; sys.own_hook = True\n")
    rig.small.add("numpy", "2.0")
    files = {
        "enum.py": "raise ImportError('hidden')\n",
        "numpy/__init__.py": "raise ImportError('hidden')\n",
        "tiny_one.py": "VERSION = '1.5'\n",
    }
    make_wheel(index.folder, "tiny-one", "1.5", files=files)
    rig.core("tiny-one")
    made = rig.prepare(index.env())
    program = f"import enum, numpy, sys; print(sys.own_hook); {VERSION}"
    assert rig.prints(made, program) == "True\n1.5"
    replacing = {"enum.py": "raise ImportError('hidden')\n", "numpy/__init__.py": "VERSION = '3'\n"}
    make_wheel(index.folder, "numpy", "3.0", files=replacing)
    rig.core("tiny-one", "numpy>=3")
    made = rig.prepare(index.env(), "second")
    assert rig.prints(made, f"import enum, numpy; print(numpy.VERSION); {VERSION}") == "3\n1.5"


def test_resources_entry_points_programs_and_path_files(rig: Rig, index: PackageIndex) -> None:
    files = {
        "tiny_one/__init__.py": "VERSION = '1.5'\ndef main(): print('ran', VERSION)\n",
        "tiny_one/static/index.html": "<html>",
        "tiny_one/bin/tool": "#!/bin/sh\necho works\n",
        "tiny_one.pth": "import sys; sys.from_pth = True\n",
        "tiny_one-1.5.dist-info/entry_points.txt": "[console_scripts]\ntiny = tiny_one:main\n",
    }
    make_wheel(index.folder, "tiny-one", "1.5", files=files, executable="tiny_one/bin/tool")
    rig.core("tiny-one")
    rig.prepare(index.env())
    made = rig.prepare(index.env(), "second")
    program = (
        "import importlib.metadata as m, importlib.resources as r, subprocess, sys, tiny_one\n"
        "print((r.files(tiny_one) / 'static/index.html').read_text(), sys.from_pth)\n"
        "print([e.value for e in m.entry_points(group='console_scripts') if e.name == 'tiny'])\n"
        "print(subprocess.check_output(r.files(tiny_one) / 'bin/tool', text=True).strip())\n"
        "print(subprocess.check_output('tiny', text=True).strip())"
    )
    assert rig.prints(made, program).splitlines() == [
        "<html> True",
        "['tiny_one:main']",
        "works",
        "ran 1.5",
    ]


def test_another_interpreter_that_comfyui_starts_sees_none_of_it(
    rig: Rig, index: PackageIndex
) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.core("tiny-one")
    made = rig.prepare(index.env())
    other = f"import subprocess; subprocess.run([{sys.executable!r}, '-c', {VERSION!r}])"
    assert "No module named 'tiny_one'" in rig.prints(made, other)


def test_bytecode_is_made_once_for_all(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.core("tiny-one")
    rig.prepare(index.env())
    made = rig.prepare(index.env(), "second")
    (compiled,) = (rig.root / "second").rglob("tiny_one/__pycache__/*.pyc")
    before = compiled.stat()
    rig.prints(made, "import tiny_one")
    assert compiled.stat().st_mtime_ns == before.st_mtime_ns
    (compiled.parent.parent / "__init__.py").write_text("VERSION = 'from the source'\n")
    assert rig.prints(made, VERSION) == "1.5"


def test_what_does_not_load_with_this_torch_is_left_out(rig: Rig, index: PackageIndex) -> None:
    broken = {"torchaudio/__init__.py": "raise OSError('libcudart.so.13: cannot open')\n"}
    make_wheel(index.folder, "torchaudio", "2.11.1", ["torch>=2.11"], files=broken)
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.set_version("0.33.0")
    rig.core("torchaudio", "tiny-one")
    made = rig.prepare(index.env())
    assert made.record.installed == {"tiny-one": "1.5"}
    assert "libcudart.so.13" in one(made, "packages.conflict").message
    error = one(made, "comfyui.requirement_missing")
    assert "torchaudio" in error.details["modules"]
    assert "libcudart.so.13" in error.message
    assert rig.prints(made, "import torchaudio").endswith("No module named 'torchaudio'")


def test_missing_hard_imports_are_errors_by_version(rig: Rig, index: PackageIndex) -> None:
    for each in hard_imports("0.11.0"):
        if each.module not in ("torch", "packaging"):
            rig.small.module(each.module)
    rig.core("comfy-aimdo==0.4.13")
    rig.set_version("0.11.0")
    assert "comfyui.requirement_missing" not in codes(rig.prepare(index.env(), mode="report"))
    rig.set_version("0.12.3")
    error = one(rig.prepare(index.env(), mode="report"), "comfyui.requirement_missing")
    assert error.details["modules"] == ["comfy_aimdo"]
    assert "comfy-aimdo==0.4.13" in error.message and "0.12.3" in error.message
    make_wheel(index.folder, "comfy-aimdo", "0.4.13")
    assert codes(rig.prepare(index.env())) == ["packages.installed"]


def test_an_index_that_is_down_keeps_nothing_and_says_so(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.core("tiny-one")
    rig.node("a", "tiny-two")
    down = {**index.env(), "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    made = rig.prepare(down)
    assert made.path is None
    reported = one(made, "packages.failed")
    assert reported.details["missing"] == {"ComfyUI": ["tiny-one"], "a": ["tiny-two"]}
    assert "127.0.0.1:9" in reported.message
    assert rig.sets() == []
    assert list((rig.root / "work").iterdir()) == []
    refused = {**index.env(), "PIP_INDEX_URL": f"http://127.0.0.1:{index.port}/status/403/"}
    assert codes(rig.prepare(refused, "forbidden")) == ["packages.failed"]
    make_wheel(index.folder, "tiny-two", "1.0")
    assert codes(rig.prepare(index.env(), "second")) == ["packages.installed"]


def test_an_index_that_cuts_off(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.core("tiny-one")
    index.cut = 100
    made = rig.prepare({**index.env(), "PIP_RETRIES": "0"})
    assert codes(made) == ["packages.failed"]
    assert rig.sets() == []
    index.cut = None
    assert codes(rig.prepare(index.env(), "second")) == ["packages.installed"]


def test_too_slow_an_index_is_given_up(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.core("tiny-one")
    index.gate.clear()
    start = time.monotonic()
    reported = one(rig.prepare(index.env(), timeout=4), "packages.failed")
    assert time.monotonic() - start < 45, "it would answer after a minute"
    assert "4 s" in reported.fix
    assert rig.sets() == []


def test_settings_of_uv_and_of_pip(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.core("tiny-one")
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_CONFIG_FILE": "/dev/null"}
    uvs = {**nowhere, "UV_DEFAULT_INDEX": index.env()["PIP_INDEX_URL"]}
    assert codes(rig.prepare(uvs)) == ["packages.installed"]
    for each in rig.sets():
        each.unlink()
    file = rig.root / "pip.conf"
    file.write_text(f"[global]\nindex-url = {index.env()['PIP_INDEX_URL']}\n")
    assert codes(rig.prepare({"PIP_CONFIG_FILE": str(file)}, "second")) == ["packages.installed"]
    for each in rig.sets():
        each.unlink()
    links = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index.folder)}
    asked = len(index.asked)
    assert codes(rig.prepare({**nowhere, **links}, "third")) == ["packages.installed"]
    assert len(index.asked) == asked
    pinned = rig.root / "constraints.txt"
    pinned.write_text("tiny-one<1.5\n")
    make_wheel(index.folder, "tiny-one", "1.4")
    for each in rig.sets():
        each.unlink()
    made = rig.prepare({**nowhere, **links, "PIP_CONSTRAINT": str(pinned)}, "fourth")
    assert made.record.installed == {"tiny-one": "1.4"}


def test_the_password_of_an_index_is_never_reported(
    rig: Rig, index: PackageIndex, capfd: pytest.CaptureFixture[str]
) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    word = "print(os.environ['UV_DEFAULT_INDEX']); raise SystemExit('no')"
    talking = source_of(rig.root, "talking", "", word)
    elsewhere = f"other @ http://me:other-{SECRET}@127.0.0.1:9/other-1.0.tar.gz"
    make_wheel(index.folder, "by-address", "1.0")
    wheel = f"127.0.0.1:{index.port}/files/by_address-1.0-py3-none-any.whl"
    by_address = f"by-address @ http://me:wheel-{SECRET}@{wheel}"
    rig.node("a", "tiny-one", "no-such-package", talking, elsewhere, by_address)
    made = rig.prepare({**index.env(f"me:{SECRET}@"), "PIP_RETRIES": "0"})
    assert made.record.installed == {"tiny-one": "1.5", "by-address": "1.0"}
    rig.node("b", "also-not-there")
    down = {"PIP_INDEX_URL": f"http://me:{SECRET}@127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    failed = rig.prepare({**index.env(), **down}, "second")
    one(failed, "packages.failed")
    log = capfd.readouterr().err
    assert "[uv] " in log
    assert SECRET not in log
    assert SECRET not in repr([*made.findings, *failed.findings])
    assert all(SECRET.encode() not in path.read_bytes() for path in rig.sets())


def test_a_build_gets_none_of_the_workers_tokens(rig: Rig, index: PackageIndex) -> None:
    """Building a package from source runs its setup.py, which anyone may have written."""
    seen = rig.root / "seen"
    code = f"import os; open({str(seen)!r}, 'a').write(repr(dict(os.environ)))"
    rig.node("a", source_of(rig.root, "spy", code, "raise SystemExit('not today')"))
    rig.prepare({**index.env(), "HF_TOKEN": SECRET, "RUNPOD_API_KEY": SECRET})
    assert "UV_DEFAULT_INDEX" in seen.read_text()
    assert SECRET not in seen.read_text()


def test_what_cannot_be_built_is_refused_and_the_others_come(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    fault = "import os; raise SystemExit('no compiler at ' + os.environ['TMPDIR'] + '/bin')"
    rig.node("a", source_of(rig.root, "broken", "", fault), "tiny-one")
    made = rig.prepare(index.env())
    (refused,) = one(made, "packages.conflict").details["requirements"]
    assert refused["wanted"].startswith("broken @ file://")
    assert "no compiler at bin" in refused["reason"], "the folder is gone by then"
    assert rig.prints(made, VERSION) == "1.5"


def source_of(root: Path, name: str, at_once: str, in_build: str) -> str:
    """A requirement that is built from source; what is run when it is looked at, and built."""
    source = root / name
    source.mkdir()
    (source / "pyproject.toml").write_text(
        "[build-system]\nrequires = []\nbuild-backend = 'backend'\nbackend-path = ['.']\n"
        f"[project]\nname = '{name}'\nversion = '1.0'\n"
    )
    (source / "backend.py").write_text(
        f"import os\n{at_once}\n"
        "def prepare_metadata_for_build_wheel(folder, config_settings=None):\n"
        f"    os.mkdir(os.path.join(folder, '{name}-1.0.dist-info'))\n"
        f"    with open(os.path.join(folder, '{name}-1.0.dist-info', 'METADATA'), 'w') as file:\n"
        f"        file.write('Metadata-Version: 2.1\\nName: {name}\\nVersion: 1.0\\n')\n"
        f"    return '{name}-1.0.dist-info'\n"
        f"def build_wheel(folder, config_settings=None, metadata_directory=None):\n    {in_build}\n"
    )
    return f"{name} @ file://{source}"


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ("echo \"error: unexpected argument '--overrides' found\" >&2; exit 2", "unexpected"),
        ("kill -9 $$", "signal 9"),
        ("exit 0", "not there after installing"),
        ("", "No such file"),
    ],
)
def test_a_uv_that_cannot_do_it(
    rig: Rig, index: PackageIndex, monkeypatch: pytest.MonkeyPatch, says: str, reason: str
) -> None:
    rig.core("tiny-one")
    uv = rig.root / "uv"
    # It answers the question, so that only the installation is missing.
    answer = 'test "$2" = compile && echo tiny-one==1.5 > answer.txt\n'
    uv.write_text(f"#!/bin/sh\n{answer}{says}\n" if says else "#!/nowhere\n")
    uv.chmod(0o755)
    monkeypatch.setattr(package_set, "find_uv", lambda: uv)
    made = rig.prepare(index.env())
    assert reason in one(made, "packages.failed").message
    assert rig.sets() == []


def test_without_uv_it_is_said(
    rig: Rig, index: PackageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.core("tiny-one")
    monkeypatch.setattr("bootstrap.environment.package_set.find_uv", lambda: None)
    made = rig.prepare(index.env())
    assert codes(made) == ["packages.no_uv"]
    assert made.path is None


def test_a_python_without_packaging_is_not_judged(tmp_path: Path, index: PackageIndex) -> None:
    rig = Rig(tmp_path)
    bare = SmallPython(tmp_path / "bare", packaging=False)
    rig.small = bare
    rig.core("tiny-one")
    made = rig.prepare(index.env())
    assert codes(made) == ["packages.not_judged"]
    assert index.asked == []


def test_several_workers_at_once_install_once(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.core("tiny-one")
    index.gate.clear()
    results: list[PackageSet] = []
    workers = [
        threading.Thread(target=lambda n=n: results.append(rig.prepare(index.env(), f"work{n}")))
        for n in range(4)
    ]
    for worker in workers:
        worker.start()
    assert index.waiting.wait(60)
    time.sleep(1)  # the others have come as far as they can
    index.gate.set()
    for worker in workers:
        worker.join()
    for made in results:
        assert rig.prints(made, VERSION) == "1.5"
    assert sorted(way for made in results for way in made.seconds if way != "judge") == [
        "build",
        *["load"] * 3,
    ]
    assert len(rig.sets()) == 1


_WORKER = """
import os, sys
from pathlib import Path
from bootstrap.environment.package_set import PackageContext, prepare_packages
python, comfyui, volume, work = map(Path, sys.argv[1:])
place = PackageContext(python, comfyui, volume, work, 120.0, beat=0.2, stale=2.0)
prepare_packages(place, os.environ)
"""


def test_a_worker_killed_in_the_middle_leaves_nothing_half(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.core("tiny-one")
    index.gate.clear()
    (rig.root / "killed").mkdir()
    mark = f"KILLED_WORKER={rig.root}"
    words = [rig.small.python, rig.comfyui, rig.volume, rig.root / "killed"]
    env = {**os.environ, **index.env(), "KILLED_WORKER": str(rig.root)}
    with subprocess.Popen([sys.executable, "-c", _WORKER, *words], env=env) as worker:
        assert index.waiting.wait(60)
        assert family(worker.pid, mark)
        worker.kill()
    wait_until(lambda: not family(worker.pid, mark))  # uv goes along
    assert not [path for path in rig.sets() if path.suffix == ".zip"]
    index.gate.set()
    made = rig.prepare(index.env(), stale=2.0)
    assert rig.prints(made, VERSION) == "1.5"
    assert [path.suffix for path in rig.sets()] == [".zip"]


def test_a_damaged_set_is_made_again(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.core("tiny-one")
    rig.prepare(index.env())
    (kept,) = rig.sets()
    whole = kept.read_bytes()
    where = whole.index(b"VERSION = ")
    damaged = [
        whole[:where] + b"version" + whole[where + 7 :],
        whole[: len(whole) // 2],
        b"",
        whole.replace(b'"installed"', b'"Installed"'),
    ]
    for number, content in enumerate(damaged):
        kept.write_bytes(content)
        made = rig.prepare(index.env(), f"again{number}")
        assert rig.prints(made, VERSION) == "1.5"
        assert zipfile.ZipFile(kept).testzip() is None


def all_late(monkeypatch: pytest.MonkeyPatch, wait: Callable[[], object]) -> None:
    """Each package comes late, after this."""
    monkeypatch.setattr(package_loading, "_SOON_SECONDS", -1.0)
    real = package_loading._load_batch

    def slowly(source: int, folder: Path, batch: Sequence[zipfile.ZipInfo]) -> None:
        if any(entry.filename.endswith("tiny_one/__init__.py") for entry in batch):
            wait()
        real(source, folder, batch)

    monkeypatch.setattr(package_loading, "_load_batch", slowly)


def test_an_import_waits_for_what_is_still_being_unpacked(
    rig: Rig, index: PackageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"tiny_one/__init__.py": "VERSION = '1.5'\n", "tiny_one.pth": "import sys; sys.a = 1\n"}
    make_wheel(index.folder, "tiny-one", "1.5", files=files)
    rig.core("tiny-one")
    rig.prepare(index.env())
    asked = rig.root / "asked"
    all_late(monkeypatch, lambda: wait_until(asked.exists, 60))
    made = rig.prepare(index.env(), "second")
    module = rig.root / "second" / "packages" / "after" / "tiny_one" / "__init__.py"
    assert not module.exists()
    program = (
        "import importlib.metadata as m, os, sys\n"
        f"print(sys.a, m.version('tiny-one'), os.path.exists({str(module)!r}))\n"
        f"open({str(asked)!r}, 'w').close()\n"
        f"{VERSION}\nprint(sys.meta_path[0])"
    )
    lines = rig.prints(made, program).splitlines()
    assert lines[:2] == ["1 1.5 False", "1.5"]
    assert "_Late" not in lines[2]
    assert made.late_findings() == []


def damaged_set(rig: Rig, index: PackageIndex) -> tuple[Path, bytes]:
    """The set with tiny-one 1.5, and what it holds if the package in it is damaged."""
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.core("tiny-one")
    rig.prepare(index.env())
    (kept,) = rig.sets()
    return kept, kept.read_bytes().replace(b"VERSION = ", b"version = ", 1)


def test_a_set_that_breaks_off_late(
    rig: Rig, index: PackageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, damaged = damaged_set(rig, index)
    kept.write_bytes(damaged)
    all_late(monkeypatch, lambda: time.sleep(1))
    made = rig.prepare(index.env(), "second")
    assert rig.prints(made, VERSION).endswith("No module named 'tiny_one'")
    (reported,) = made.late_findings()
    assert reported.code == "packages.failed"
    assert rig.sets() == []


@pytest.mark.timeout(100)
def test_nothing_waits_for_a_damaged_set_that_cannot_be_removed(
    rig: Rig, index: PackageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a volume that is mounted read-only."""
    kept, damaged = damaged_set(rig, index)
    real = Path.unlink

    def refused(path: Path, missing_ok: bool = False) -> None:
        if path == kept:
            raise OSError(errno.EROFS, "Read-only file system", str(kept))
        real(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)
    kept.write_bytes(damaged[: len(damaged) // 2])
    assert rig.prints(rig.prepare(index.env(), "second"), VERSION) == "1.5"
    kept.write_bytes(damaged)
    all_late(monkeypatch, lambda: time.sleep(1))
    made = rig.prepare(index.env(), "third")
    assert rig.prints(made, VERSION).endswith("No module named 'tiny_one'")
    assert [finding.code for finding in made.late_findings()] == ["packages.failed"]


def test_what_pip_says_in_another_encoding_is_read(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\nprintf \"global.x='\\\\377'\\nglobal.index-url='https://a.b'\\n\"\n"
    )
    python.chmod(0o755)
    assert pip_settings(python, dict(os.environ))["index-url"] == "https://a.b"


def test_large_files_in_parts(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    (folder / "after" / "deep").mkdir(parents=True)
    (folder / "before").mkdir()
    large = os.urandom(package_store.BLOCK * 2 + 17)
    (folder / "after" / "deep" / "large.so").write_bytes(large)
    (folder / "after" / "deep" / "large.so").chmod(0o755)
    for number in range(300):
        (folder / "after" / f"small{number}").write_bytes(b"x" * (number * 331))
    (folder / "after" / "näme").write_text("")
    (folder / "after" / "link").symlink_to("/etc/passwd")
    (tmp_path / "scratch").mkdir()
    kept = tmp_path / "kept.zip"
    keep(folder, Record({"a": "1"}), tmp_path / "scratch", kept)
    assert load(kept, tmp_path / "out", 30) == Record({"a": "1"})
    (folder / "after" / "link").unlink()
    names = {p.relative_to(folder) for p in folder.rglob("*")}
    assert {p.relative_to(tmp_path / "out") for p in (tmp_path / "out").rglob("*")} == names
    for name in names:
        if (folder / name).is_file():
            assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert os.access(tmp_path / "out" / "after" / "deep" / "large.so", os.X_OK)
    content = bytearray(kept.read_bytes())
    content[content.index(large[-17:])] ^= 1
    kept.write_bytes(content)
    with pytest.raises(BadSet, match=r"large\.so is damaged"):
        load(kept, tmp_path / "again", 30)
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("name", ["../evil", "/evil", "after/../../evil", "elsewhere/evil", "evil"])
def test_no_name_in_a_set_leads_out_of_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "scratch").mkdir()
    keep(tmp_path / "in", Record(), tmp_path / "scratch", tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr(name, "text")
    with pytest.raises(BadSet):
        load(tmp_path / "a.zip", tmp_path / "out", 10)
    assert list(tmp_path.rglob("evil")) == []


def used_days_ago(kept: Path, days: float) -> None:
    then = time.time() - days * 24 * 3600
    os.utime(kept, (then, then))


def test_sets_that_no_start_uses_any_more_are_removed(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.core("tiny-one")
    folder = rig.volume / ".comfyui-worker" / "packages"
    folder.mkdir(parents=True)
    ages = [0.1, 0.2, 0.3, 0.4, 0.5, 2, 3, KEPT_DAYS + 1]
    names = [f"cpython-311-x86_64-torch2.9-{number:016x}.zip" for number in range(len(ages))]
    for name, days in zip(names, ages, strict=True):
        (folder / name).write_text("a set")
        used_days_ago(folder / name, days)
    (folder / "mine.zip").write_text("not made by us")
    used_days_ago(folder / "mine.zip", 400)
    for half, days in ((f".{'a' * 32}.part", 400), (f".{'b' * 32}.part", 0)):
        (folder / half).write_text("half")
        used_days_ago(folder / half, days)
    rig.prepare(index.env())
    left = {path.name for path in rig.sets()}
    assert left >= {*names[:5], "mine.zip", f".{'b' * 32}.part"}
    assert not left & {*names[5:], f".{'a' * 32}.part"}
    assert KEPT_SETS < 5


def test_a_set_that_a_start_uses_is_marked(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.core("tiny-one")
    rig.prepare(index.env())
    (kept,) = rig.sets()
    used_days_ago(kept, 400)
    rig.prepare({"UV_OFFLINE": "1"}, "second")
    assert time.time() - kept.stat().st_mtime < 3600


def test_a_volume_that_takes_no_files(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.core("tiny-one")
    (rig.volume / ".comfyui-worker").write_text("a file where the folder should be")
    made = rig.prepare(index.env())
    one(made, "packages.not_kept")
    assert rig.prints(made, VERSION) == "1.5"


def test_anything_that_changes_the_answer_makes_another_set(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    make_wheel(index.folder, "tiny-two", "1.5")
    rig.core("tiny-one")
    rig.prepare(index.env(), "first")
    rig.small.add("something", "1.0")
    rig.prepare(index.env(), "second")
    rig.node("a", "tiny-two")
    rig.prepare(index.env(), "third")
    assert len(rig.sets()) == 3


def test_the_checker_says_what_the_worker_says(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.core("tiny-one", "comfyui-frontend-package==1.48.7")
    rig.node("a", "no-such-package")
    asked = read_requirements(str(rig.comfyui), BoundedCaller(10))
    before = judge(rig.small.python, os.environ, asked)
    assert kept_set(rig.volume, before) is None
    made = rig.prepare(index.env())
    assert kept_set(rig.volume, before) == (made.record, rig.sets()[0])
    assert made.judgement is not None
    assert made.judgement.verdicts == before.verdicts  # the doctor takes this one over
    states = {v.text: v.state for v in made.record.on(made.judgement).verdicts}
    assert states["tiny-one"] is RequirementState.MET
    assert states["no-such-package"] is RequirementState.MISSING
    assert states["comfyui-frontend-package==1.48.7"] is RequirementState.MISSING
    assert "comfyui-frontend-package" not in made.record.installed


def noticed(worker: BootedWorker) -> set[str]:
    return {finding.code for finding in worker.report.noticed}


def test_a_boot_of_comfyui_with_and_without(
    boot_worker: Callable[[Mapping[str, str]], BootedWorker],
    volume: Path,
    worker_env: dict[str, str],
    index: PackageIndex,
) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    pack = volume / "ComfyUI" / "custom_nodes" / "needy"
    pack.mkdir()
    (pack / "__init__.py").write_text("import tiny_one\nNODE_CLASS_MAPPINGS = {}\n")
    (pack / "requirements.txt").write_text("tiny-one\n")
    env = {**worker_env, **index.env()}
    without = boot_worker(env)
    assert without.report.outcome is Outcome.READY
    assert {"nodes.import_failed", "nodes.requirements_unmet"} <= noticed(without)
    without.boot.stop()
    assert index.asked == []

    installing = boot_worker({**env, "PACKAGES": "install"})
    assert installing.report.outcome is Outcome.READY
    assert not {"nodes.import_failed", "nodes.requirements_unmet"} & noticed(installing)
    reported = [f for f in installing.report.findings if f.code.startswith("packages.")]
    # The index has nothing for ComfyUI itself.
    assert [f.code for f in reported] == ["packages.installed", "packages.conflict"]
    assert reported[1].details["owner"] == "ComfyUI"
    assert "nodes.imported" in noticed(installing)
    assert not any("tiny_one" in path for path in sys.path)
    said = [(f.code, f.message) for f in (*installing.report.findings, *installing.report.noticed)]
    assert len(said) == len(set(said))
    installing.boot.stop()

    asked = len(index.asked)
    again = boot_worker({**env, "PACKAGES": "install"})
    assert "nodes.import_failed" not in noticed(again)
    assert len(index.asked) == asked


def test_a_boot_without_what_comfyui_cannot_start_without(
    boot_worker: Callable[[Mapping[str, str]], BootedWorker],
    volume: Path,
    worker_env: dict[str, str],
    index: PackageIndex,
) -> None:
    version = volume / "ComfyUI" / "comfyui_version.py"
    version.write_text('__version__ = "0.33.0"\n')
    (volume / "ComfyUI" / "requirements.txt").write_text("torch\ncomfy-aimdo==0.4.13\n")
    worker = boot_worker({**worker_env, **index.env(), "PACKAGES": "install"})
    assert worker.report.outcome is Outcome.DEGRADED
    (error,) = [f for f in worker.report.findings if f.severity is Severity.ERROR]
    assert error.code == "comfyui.requirement_missing"
    assert "comfy-aimdo==0.4.13" in error.message
    assert worker.runtime.serving is None


def test_the_packages_of_a_new_comfyui_from_the_real_index(
    boot_worker: Callable[[Mapping[str, str]], BootedWorker],
    volume: Path,
    worker_env: dict[str, str],
) -> None:
    """Exact pins of 0.33, imported as it does at its start; once installed, and once kept."""
    comfyui = volume / "ComfyUI"
    (comfyui / "comfyui_version.py").write_text('__version__ = "0.38.0"\n')
    pins = "comfy-kitchen==0.2.31\ncomfy-aimdo==0.4.13\nblake3\n"
    (comfyui / "requirements.txt").write_text(f"torch\n{pins}")
    nodes = (comfyui / "nodes.py").read_text()
    imports = "import comfy_aimdo.control\nimport comfy_aimdo.host_buffer\nimport comfy_kitchen\n"
    future = "from __future__ import annotations\n"
    assert nodes.startswith(future)
    (comfyui / "nodes.py").write_text(future + imports + nodes.removeprefix(future))
    for offline in ({}, {"UV_OFFLINE": "1"}):
        worker = boot_worker({**worker_env, "PACKAGES": "install", **offline})
        assert worker.report.outcome is Outcome.READY, worker.report.findings
        assert worker.ask({"workflow": plain()})["status"] == "completed"
        worker.boot.stop()
