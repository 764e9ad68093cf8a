"""Packages that node packs lack: a real pip, a real index, several workers, and a real ComfyUI."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from bootstrap.core.findings import Finding, Outcome
from bootstrap.doctor.facts.comfyui import gather_comfyui
from bootstrap.environment import archive as package_archive
from bootstrap.environment.archive import KEPT_DAYS, Record, pack, read_record, unpack, with_added
from bootstrap.environment.install import Added, Place, add_packages
from bootstrap.environment.pip_text import reason_in
from bootstrap.environment.site_packages import PackagesFacts, gather_packages
from demo.volume import DemoVolume
from tests.conftest import BootedWorker
from tests.support.package_index import PackageIndex, make_wheel, serving
from tests.support.process_tree import family
from tests.support.waiting import wait_until

SECRET = "pass-word-marker"
PIP_SECONDS = 120.0


@pytest.fixture
def index(tmp_path: Path) -> Iterator[PackageIndex]:
    (tmp_path / "wheels").mkdir()
    with serving(tmp_path / "wheels") as served:
        yield served


@pytest.fixture(scope="session")
def packages(demo: DemoVolume) -> PackagesFacts:
    """What ComfyUI's Python has before anything is added."""
    return gather_packages(demo.python)


class Rig:
    """Workers on one volume whose ComfyUI is nothing but node packs."""

    def __init__(self, root: Path, python: Path, packages: PackagesFacts) -> None:
        self.root = root
        self.python = python
        self.packages = packages
        self.volume = root / "volume"
        self.comfyui = self.volume / "ComfyUI"
        (self.comfyui / "custom_nodes").mkdir(parents=True)

    def pack(self, name: str, *requirements: str) -> None:
        """A node pack that requires these."""
        add_pack(self.comfyui, name, *requirements)

    def place(self, work: str, timeout: float = PIP_SECONDS, stale: float = 20.0) -> Place:
        folder = self.root / work
        folder.mkdir()
        return Place(self.python, self.comfyui, self.volume, folder, timeout, 0.2, stale)

    def add(self, env: Mapping[str, str], work: str = "work", **how: float) -> Added:
        """One worker's start."""
        return add_packages(self.place(work, **how), self.packages, {**os.environ, **env})

    def archives(self) -> list[Path]:
        """All that lies in the folder for archives, whatever it is."""
        return sorted((self.volume / ".comfyui-worker" / "packages").glob("*"))

    def imported(self, added: Added, *words: str) -> str:
        """What a program prints in ComfyUI's Python with the packages added."""
        env = {**os.environ, "PYTHONPATH": str(added.path)}
        done = subprocess.run(
            [self.python, "-c", *words], env=env, capture_output=True, text=True, check=False
        )
        return done.stdout.strip() or done.stderr


@pytest.fixture
def rig(tmp_path: Path, demo: DemoVolume, packages: PackagesFacts) -> Rig:
    return Rig(tmp_path, demo.python, packages)


def add_pack(comfyui: Path, name: str, *requirements: str, code: str = "") -> Path:
    pack = comfyui / "custom_nodes" / name
    pack.mkdir()
    (pack / "__init__.py").write_text(f"{code}\nNODE_CLASS_MAPPINGS = {{}}\n")
    (pack / "requirements.txt").write_text("".join(f"{r}\n" for r in requirements))
    return pack


def one(added: Added, code: str) -> Finding:
    found = [finding for finding in added.findings if finding.code == code]
    assert len(found) == 1, added.findings
    return found[0]


def test_a_missing_package_and_what_it_needs_is_added(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5", ["tiny-two>=2"])
    make_wheel(index.folder, "tiny-two", "2.0")
    rig.pack("pack", "tiny_one>=1", "numpy", "not-here; sys_platform == 'win32'")
    added = rig.add(index.env())
    assert added.path, added
    assert rig.imported(added, "import tiny_one, tiny_two; print(tiny_one.VERSION)") == "1.5"
    told = one(added, "nodes.packages_added")
    assert told.details["packages"] == {"tiny-one": "1.5", "tiny-two": "2.0"}
    assert [path.suffix for path in rig.archives()] == [".zip"]
    where = rig.imported(added, "import numpy; print(numpy.__file__)")
    assert str(rig.root) not in where


def test_the_next_worker_asks_nobody(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.pack("pack", "tiny-one")
    rig.add(index.env())
    asked = len(index.asked)
    assert asked > 0
    added = rig.add({"PIP_NO_INDEX": "1"}, "second")
    assert rig.imported(added, "import tiny_one; print(tiny_one.__file__)").startswith(
        str(rig.root / "second")
    )
    assert len(index.asked) == asked
    assert one(added, "nodes.packages_added").details["packages"] == {"tiny-one": "1.5"}


def test_bytecode_is_made_once_for_all(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.pack("pack", "tiny-one")
    rig.add(index.env())
    added = rig.add(index.env(), "second")
    (compiled,) = (rig.root / "second").rglob("tiny_one/__pycache__/*.pyc")
    before = compiled.stat()
    rig.imported(added, "import tiny_one")
    assert compiled.stat().st_mtime_ns == before.st_mtime_ns
    source = compiled.parent.parent / "__init__.py"
    source.write_text("VERSION = 'from the source'\n")
    assert rig.imported(added, "import tiny_one; print(tiny_one.VERSION)") == "1.5"


def test_nothing_missing_makes_nothing(rig: Rig, index: PackageIndex) -> None:
    rig.pack("pack", "numpy", "torch")
    assert rig.add(index.env()) == Added(None, [])
    assert index.asked == []
    assert rig.archives() == []
    assert list((rig.root / "work").iterdir()) == []


def test_a_package_that_would_replace_torch_is_refused(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "old-friend", "1.0", ["torch<2"])
    make_wheel(index.folder, "torch", "1.13.1")
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.pack("old", "old-friend")
    rig.pack("tiny", "tiny-one")
    rig.pack("older", "numpy<1")
    added = rig.add(index.env())
    refused = one(added, "nodes.packages_refused")
    assert "torch<2" in refused.details["refused"]["old-friend"]
    (numpy,) = [text for text in refused.details["refused"] if text.startswith("numpy<1")]
    assert "is installed" in numpy
    assert one(added, "nodes.packages_added").details["packages"] == {"tiny-one": "1.5"}
    assert not [name for name in index.wheels_fetched() if name.startswith(("torch", "numpy"))]
    asked = len(index.asked)
    again = rig.add(index.env(), "second")
    assert one(again, "nodes.packages_refused") == refused
    assert len(index.asked) == asked


def test_two_packs_that_contradict_each_other(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.0")
    make_wheel(index.folder, "tiny-one", "2.0")
    rig.pack("a", "tiny-one==1.0")
    rig.pack("b", "tiny-one==2.0")
    added = rig.add(index.env())
    assert list(one(added, "nodes.packages_refused").details["refused"]) == ["tiny-one==2.0"]
    assert rig.imported(added, "import tiny_one; print(tiny_one.VERSION)") == "1.0"


def test_a_package_that_nobody_has_is_refused_and_the_others_come(
    rig: Rig, index: PackageIndex
) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.pack("a", "no-such-package", "tiny-one")
    added = rig.add(index.env())
    refused = one(added, "nodes.packages_refused")
    assert "no-such-package" in refused.details["refused"]
    assert str(rig.archives()[0]) in refused.fix
    assert rig.imported(added, "import tiny_one; print(tiny_one.VERSION)") == "1.5"


def test_what_is_there_already_is_never_hidden(rig: Rig, index: PackageIndex) -> None:
    """Of the standard library, of the interpreter's packages, and its own sitecustomize."""
    files = {
        "enum.py": "raise ImportError('hidden')\n",
        "numpy/__init__.py": "raise ImportError('hidden')\n",
        "tiny_one.py": "VERSION = '1.5'\n",
    }
    make_wheel(index.folder, "tiny-one", "1.5", files=files)
    rig.pack("a", "tiny-one")
    added = rig.add(index.env())
    program = "import enum, numpy, tiny_one, sys; print(tiny_one.VERSION, sys.path[-1])"
    assert rig.imported(added, program) == f"1.5 {rig.root / 'work' / 'packages'}"


def test_programs_stay_executable(rig: Rig, index: PackageIndex) -> None:
    files = {"tiny_one/__init__.py": "", "tiny_one/bin/tool": "#!/bin/sh\necho works\n"}
    make_wheel(index.folder, "tiny-one", "1.5", files=files, executable="tiny_one/bin/tool")
    rig.pack("a", "tiny-one")
    rig.add(index.env())
    rig.add(index.env(), "second")
    tool = rig.root / "second" / "packages" / "tiny_one" / "bin" / "tool"
    assert subprocess.check_output([tool], text=True) == "works\n"


def test_an_index_that_is_down_keeps_nothing_and_says_so(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.pack("a", "tiny-one")
    down = {**index.env(), "PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    added = rig.add(down)
    assert added.path is None
    assert "tiny-one" in one(added, "nodes.packages_failed").message
    assert rig.archives() == []
    assert list((rig.root / "work").iterdir()) == []
    assert rig.add(index.env(), "second").path is not None


def test_the_password_of_an_index_is_never_told(
    rig: Rig, index: PackageIndex, capfd: pytest.CaptureFixture[str]
) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    word = "print(os.environ['PIP_INDEX_URL'].split('@')[0]); raise SystemExit('no')"
    talking = source_of(rig.root, "talking", "", word)
    elsewhere = f"other @ http://me:other-{SECRET}@127.0.0.1:9/other-1.0.tar.gz"
    rig.pack("a", "tiny-one", "no-such-package", talking)
    added = rig.add({**index.env(f"me:{SECRET}@"), "PIP_RETRIES": "0"})
    one(added, "nodes.packages_added")
    down = {"PIP_INDEX_URL": f"http://me:{SECRET}@127.0.0.1:9/simple", "PIP_RETRIES": "0"}
    rig.pack("b", "also-not-there", elsewhere)
    failed = rig.add({**index.env(), **down}, "second")
    one(failed, "nodes.packages_failed")
    log = capfd.readouterr().err
    assert "http://***" in log or "me:***" in log
    assert "[pip] " in log
    assert SECRET not in log
    assert SECRET not in repr([*added.findings, *failed.findings])
    assert all(SECRET.encode() not in path.read_bytes() for path in rig.archives())


def test_pip_gets_no_token_of_the_worker(rig: Rig, index: PackageIndex) -> None:
    """Building a package from source runs its setup.py, which anybody may have written."""
    seen = rig.root / "seen"
    code = f"import os; open({str(seen)!r}, 'a').write(repr(dict(os.environ)))"
    rig.pack("a", source_of(rig.root, "spy", code, "raise SystemExit('not today')"))
    rig.add({**index.env(), "HF_TOKEN": SECRET, "RUNPOD_API_KEY": SECRET})
    assert "PIP_INDEX_URL" in seen.read_text()
    assert SECRET not in seen.read_text()


def test_a_package_that_cannot_be_built_and_the_others_come(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    broken = source_of(rig.root, "broken", "", "raise SystemExit('no compiler here')")
    rig.pack("a", broken, "tiny-one")
    added = rig.add(index.env())
    ((refused, why),) = one(added, "nodes.packages_refused").details["refused"].items()
    assert refused.startswith("broken @ file://")
    assert "no compiler here" in why
    assert rig.imported(added, "import tiny_one; print(tiny_one.VERSION)") == "1.5"


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
        ("echo 'no such option: --report'; exit 2", "no such option"),
        ("echo '/opt/python: No module named pip'; exit 1", "No module named pip"),
        ("kill -9 $$", "signal 9"),
        ("exit 0", "report"),
    ],
)
def test_a_pip_that_cannot_do_it(rig: Rig, index: PackageIndex, says: str, reason: str) -> None:
    rig.pack("a", "tiny-one")
    rig.python = rig.root / "python"
    rig.python.write_text(f"#!/bin/sh\n{says}\n")
    rig.python.chmod(0o755)
    failed = one(rig.add(index.env()), "nodes.packages_failed")
    assert reason in failed.message
    assert rig.archives() == []


def test_too_slow_an_index_is_given_up(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.pack("a", "tiny-one")
    index.gate.clear()
    added = rig.add(index.env(), timeout=4)
    failed = one(added, "nodes.packages_failed")
    assert "4 s" in failed.fix
    assert rig.archives() == []


def test_two_workers_at_once_install_once(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.pack("a", "tiny-one")
    index.gate.clear()
    results: list[Added] = []
    workers = [
        threading.Thread(target=lambda n=n: results.append(rig.add(index.env(), f"work{n}")))
        for n in range(3)
    ]
    for worker in workers:
        worker.start()
    assert index.waiting.wait(60)
    time.sleep(1)  # the others have come as far as they can
    index.gate.set()
    for worker in workers:
        worker.join()
    for added in results:
        assert rig.imported(added, "import tiny_one; print(tiny_one.VERSION)") == "1.5"
    assert len(index.wheels_fetched()) <= 2  # once to look, once to install: one worker's
    assert len(rig.archives()) == 1


_WORKER = """
import os, sys
from pathlib import Path
from bootstrap.environment import gather_packages
from bootstrap.environment.install import Place, add_packages
python, comfyui, volume, work = map(Path, sys.argv[1:])
place = Place(python, comfyui, volume, work, 120.0, 0.2, 2.0)
add_packages(place, gather_packages(python), os.environ)
"""


def test_a_worker_killed_in_the_middle_leaves_nothing_half(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.pack("a", "tiny-one")
    index.gate.clear()
    (rig.root / "killed").mkdir()
    mark = f"KILLED_WORKER={rig.root}"
    words = [rig.python, rig.comfyui, rig.volume, rig.root / "killed"]
    env = {**os.environ, **index.env(), "KILLED_WORKER": str(rig.root)}
    with subprocess.Popen([sys.executable, "-c", _WORKER, *words], env=env) as worker:
        assert index.waiting.wait(60)
        assert family(worker.pid, mark)
        worker.kill()
    wait_until(lambda: not family(worker.pid, mark), 10)  # pip goes along
    assert not [path for path in rig.archives() if path.suffix == ".zip"]
    index.gate.set()
    added = rig.add(index.env(), stale=2.0)
    assert rig.imported(added, "import tiny_one; print(tiny_one.VERSION)") == "1.5"
    assert [path.suffix for path in rig.archives()] == [".zip"]


def test_a_damaged_archive_is_made_anew(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.pack("a", "tiny-one")
    rig.add(index.env())
    (archive,) = rig.archives()
    whole = archive.read_bytes()
    where = whole.index(b"VERSION = ")
    archive.write_bytes(whole[:where] + b"version" + whole[where + 7 :])
    added = rig.add(index.env(), "second")
    assert rig.imported(added, "import tiny_one; print(tiny_one.VERSION)") == "1.5"
    archive.write_bytes(whole[: len(whole) // 2])
    added = rig.add(index.env(), "third")
    assert rig.imported(added, "import tiny_one; print(tiny_one.VERSION)") == "1.5"
    assert zipfile.ZipFile(archive).testzip() is None


def test_what_a_killed_worker_left_half_copied_is_swept(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.pack("a", "tiny-one")
    folder = rig.volume / ".comfyui-worker" / "packages"
    folder.mkdir(parents=True)
    names = [f".{'a' * 32}.part", f".{'b' * 32}.part", "mine.part"]
    for name in names:
        (folder / name).write_text("half")
    for name in (names[0], names[2]):
        os.utime(folder / name, (1_600_000_000, 1_600_000_000))
    rig.add(index.env())
    assert {path.name for path in rig.archives() if path.suffix == ".part"} == set(names[1:])


def used_days_ago(archive: Path, days: float) -> None:
    then = time.time() - days * 24 * 3600
    os.utime(archive, (then, then))


def test_archives_that_no_start_uses_any_more_are_removed(rig: Rig, index: PackageIndex) -> None:
    for name in ("one", "two", "three"):
        make_wheel(index.folder, f"tiny-{name}", "1.5")
    rig.pack("a", "tiny-one")
    rig.add(index.env(), "first")
    (forgotten,) = rig.archives()
    rig.pack("b", "tiny-two")
    rig.add(index.env(), "second")
    (another_endpoints,) = set(rig.archives()) - {forgotten}
    somebodys = forgotten.with_name("mine.zip")
    somebodys.write_text("not made by us")
    used_days_ago(somebodys, 400)
    used_days_ago(forgotten, KEPT_DAYS + 1)
    used_days_ago(another_endpoints, KEPT_DAYS - 1)
    rig.pack("c", "tiny-three")
    rig.add(index.env(), "third")
    left = set(rig.archives())
    assert {another_endpoints, somebodys} < left
    assert forgotten not in left and len(left) == 3


def test_an_archive_that_a_start_uses_is_marked(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.pack("a", "tiny-one")
    rig.add(index.env())
    (archive,) = rig.archives()
    used_days_ago(archive, 400)
    rig.add({"PIP_NO_INDEX": "1"}, "second")
    assert time.time() - archive.stat().st_mtime < 3600


def test_an_archive_that_is_removed_while_it_is_read_is_made_anew(
    rig: Rig, index: PackageIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.pack("a", "tiny-one")
    rig.add(index.env())
    (archive,) = rig.archives()

    def gone(*_: object) -> None:
        """As NFS answers who reads a file that another machine removed."""
        archive.unlink(missing_ok=True)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(package_archive, "_copy", gone)
    added = rig.add(index.env(), "second")
    assert rig.imported(added, "import tiny_one; print(tiny_one.VERSION)") == "1.5"
    assert rig.archives() == [archive]


def test_a_volume_that_takes_no_files(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.pack("a", "tiny-one")
    (rig.volume / ".comfyui-worker").write_text("a file where the folder should be")
    added = rig.add(index.env())
    one(added, "nodes.packages_not_kept")
    assert rig.imported(added, "import tiny_one; print(tiny_one.VERSION)") == "1.5"


def test_no_name_in_an_archive_leads_out_of_its_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pack(tmp_path / "in", Record(), tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("../../evil", "text")
        archive.writestr(f"{tmp_path}/evil", "text")
    (tmp_path / "deep").mkdir()
    unpack(tmp_path / "a.zip", tmp_path / "deep" / "out", 10)
    evil = list(tmp_path.rglob("evil"))
    assert evil and all(path.is_relative_to(tmp_path / "deep" / "out") for path in evil)


def test_another_image_uses_an_archive_of_its_own(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.pack("a", "tiny-one")
    rig.add(index.env())
    changed = [replace(p, version="9.9") if p.name == "pip" else p for p in rig.packages.packages]
    rig.packages = replace(rig.packages, packages=tuple(changed))
    rig.add(index.env(), "second")
    assert len(rig.archives()) == 2


def test_the_doctor_counts_what_is_added(rig: Rig, index: PackageIndex) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    rig.pack("a", "tiny-one")
    comfyui = gather_comfyui(rig.comfyui)
    assert with_added(rig.packages, comfyui.active, rig.volume) == rig.packages
    rig.add(index.env())
    seen = with_added(rig.packages, comfyui.active, rig.volume)
    assert seen.versions_of("tiny-one") == ("1.5",)
    assert read_record(rig.archives()[0]).requirements == ("tiny-one",)


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["No module named pip"], "No module named pip"),
        (["ERROR: one", "more", "ERROR: two"], "one"),
        ([], "it gave no reason"),
        (
            [
                "ERROR: Cannot install",
                "The conflict is caused by:",
                "    a 1 depends on b<2",
                "",
                "x",
            ],
            "a 1 depends on b<2",
        ),
    ],
)
def test_the_reason_in_pips_own_words(lines: list[str], reason: str) -> None:
    assert reason_in(lines) == reason


def test_a_boot_of_comfyui_with_and_without(
    boot_worker: Callable[[Mapping[str, str]], BootedWorker],
    volume: Path,
    worker_env: dict[str, str],
    index: PackageIndex,
) -> None:
    make_wheel(index.folder, "tiny-one", "1.5")
    add_pack(volume / "ComfyUI", "needy", "tiny-one", code="import tiny_one")
    env = {**worker_env, **index.env()}
    without = boot_worker(env)
    assert without.report.outcome is Outcome.READY
    assert {"nodes.import_failed", "nodes.requirements_unmet"} <= noticed(without)
    without.boot.stop()
    assert index.asked == []

    installing = boot_worker({**env, "NODE_REQUIREMENTS": "install"})
    assert installing.report.outcome is Outcome.READY
    assert not {"nodes.import_failed", "nodes.requirements_unmet"} & noticed(installing)
    assert "nodes.packages_added" in {f.code for f in installing.report.findings}
    assert "nodes.imported" in noticed(installing)
    assert not any("tiny_one" in path for path in sys.path)
    installing.boot.stop()

    asked = len(index.asked)
    again = boot_worker({**env, "NODE_REQUIREMENTS": "install"})
    assert "nodes.import_failed" not in noticed(again)
    assert len(index.asked) == asked


def noticed(worker: BootedWorker) -> set[str]:
    return {finding.code for finding in worker.report.noticed}
