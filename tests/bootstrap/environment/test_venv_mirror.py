"""A venv on the volume and its mirror behave the same, whatever was copied, linked or changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

from bootstrap.core.findings import Finding
from bootstrap.environment.node_packs import Requirements
from bootstrap.environment.requirements import judge
from bootstrap.environment.venv_mirror import Mirror, deferred, record_opened
from bootstrap.environment.venv_mirror.archive import read_archive
from bootstrap.environment.venv_mirror.archive_writer import archive_at
from tests.bootstrap.environment.venvs import LIBRARY, VolumeVenv, ask, contents, make_venv


@pytest.fixture
def venv(tmp_path: Path) -> VolumeVenv:
    (tmp_path / "volume").mkdir()
    return make_venv(tmp_path / "volume", tmp_path / "local")


def archive_of(venv: VolumeVenv) -> Path:
    return archive_at(venv.store, venv.path, f"cpython-{LIBRARY[6:].replace('.', '')}")


def origin(mirror: Mirror, name: str) -> str:
    """Where a module comes from, links followed."""
    return str(ask(mirror.python, f"import {name} as m, os", "os.path.realpath(m.__file__)"))


def test_the_mirror_is_the_same_python(venv: VolumeVenv) -> None:
    mirror = venv.mirror()
    prefix, base = ask(mirror.python, "import sys", "[sys.prefix, sys.base_prefix]")
    assert prefix == str(mirror.python.parent.parent)
    assert base == sys.base_prefix
    program = "import importlib.metadata as m, importlib.resources as r, alpha, space.one"
    answer = (
        "[m.version('alpha'), [e.load() for e in m.entry_points(group='alpha.plugins')], "
        "(r.files('alpha') / 'data.txt').read_text(), space.one.name]"
    )
    assert ask(mirror.python, program, answer) == ["1.0", [1], "beside alpha", "one"]


def test_commands_for_people_name_the_venv_on_the_volume(venv: VolumeVenv) -> None:
    judged = judge(venv.mirror().python, dict(os.environ), Requirements("0.33.0"))
    assert judged.packages.python == str(venv.path / "bin/python")


def test_what_a_start_may_import_is_local_and_the_rest_linked(venv: VolumeVenv) -> None:
    site = venv.mirror().site
    assert not (site / "alpha/__init__.py").is_symlink()
    assert os.readlink(site / "alpha/include/alpha.h") == str(venv.site / "alpha/include/alpha.h")
    assert (site / "alpha/tests/test_alpha.py").is_symlink()
    assert not (site / "alpha/include").is_symlink(), "pip would write through it"


def test_no_name_is_missing_while_folders_of_links_take_their_place(venv: VolumeVenv) -> None:
    for number in range(300):
        venv.write(f"alpha/include/sub{number % 7}/h{number}.h", str(number))
        venv.write(f"seldom{number}/tests/t.py", "")
    made = venv.try_to_mirror()
    assert isinstance(made, Mirror)
    looked = 0
    while made.deferred.is_alive() or not looked:
        for number in range(0, 300, 10):
            header = made.site / f"alpha/include/sub{number % 7}/h{number}.h"
            assert header.read_text() == str(number)
            assert (made.site / f"seldom{number}/tests/t.py").exists()
            looked += 1
    assert not any(path.is_symlink() and path.is_dir() for path in made.site.rglob("*"))
    assert {p.name for p in made.python.parent.parent.iterdir()} >= {"bin", "lib", "pyvenv.cfg"}
    assert not (made.python.parent.parent / "deferred").exists()


def test_a_file_system_that_cannot_exchange_two_names(
    venv: VolumeVenv, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deferred, "_RENAME_EXCHANGE", 1 << 20)  # EINVAL
    site = venv.mirror().site
    assert not (site / "alpha/include").is_symlink()
    assert (site / "alpha/include/alpha.h").read_text() == "#define ALPHA\n"


def test_the_second_start_uses_the_archive(venv: VolumeVenv) -> None:
    venv.recorded()
    mirror = venv.mirror()
    assert "from the archive" in mirror.note
    assert origin(mirror, "alpha") == str(mirror.site / "alpha/__init__.py")
    assert (mirror.site / "alpha/data.txt").is_symlink(), "the last start did not open it"
    assert record_opened(mirror) == "the archive is up to date"


def test_both_starts_show_what_the_volume_holds(venv: VolumeVenv) -> None:
    (venv.site / "alpha/same.txt").symlink_to("data.txt")
    (venv.site / "away").symlink_to("../../../share")
    (venv.path / "share").mkdir()
    (venv.path / "share/note.txt").write_text("shared")
    for mirror in (venv.recorded(), venv.mirror()):
        seen = contents(mirror.site)
        for name, text in contents(venv.site).items():
            place = mirror.site / name
            assert place.exists(), name
            if not (venv.site / name).is_symlink():
                assert place.read_bytes() == text, name
        own = {name for name in seen if name.startswith("_worker_files_opened")}
        assert seen.keys() - contents(venv.site).keys() == own
        assert os.readlink(mirror.site / "alpha/same.txt") == "data.txt"
        assert (mirror.site / "away/note.txt").read_text() == "shared"


def test_bytecode_is_compiled_once_for_all_workers(venv: VolumeVenv) -> None:
    venv.recorded()
    mirror = venv.mirror()
    compiled = mirror.site / "alpha/__pycache__"
    before = {path: path.stat().st_ino for path in compiled.iterdir()}
    ask(mirror.python, "import alpha")
    assert {path: path.stat().st_ino for path in compiled.iterdir()} == before != {}
    assert not (venv.site / "alpha/__pycache__").exists(), "the volume is left alone"


def test_a_changed_file_is_seen_though_its_size_is_the_same(venv: VolumeVenv) -> None:
    venv.recorded()
    venv.write("alpha/deep/__init__.py", "value = 'later'\n", age=30)
    mirror = venv.mirror()
    assert "1 changed" in mirror.note
    assert ask(mirror.python, "import alpha", "alpha.value") == "later"


def test_an_added_module_and_a_removed_one_are_seen(venv: VolumeVenv) -> None:
    venv.recorded()
    venv.write("alpha/late.py", "y = 2\n")
    venv.write("brandnew/sub/__init__.py", "z = 3\n")
    (venv.site / "single.py").unlink()
    shutil.rmtree(venv.site / "space")
    mirror = venv.mirror()
    assert ask(mirror.python, "import alpha.late, brandnew.sub as b", "[alpha.late.y, b.z]") == [
        2,
        3,
    ]
    program = "from importlib.util import find_spec"
    assert ask(mirror.python, program, "[find_spec(n) is None for n in ('single', 'space')]") == [
        True,
        True,
    ]


def test_an_upgraded_package_is_seen_as_a_whole(venv: VolumeVenv) -> None:
    venv.recorded()
    shutil.rmtree(venv.site / "alpha")
    shutil.rmtree(venv.site / "alpha-1.0.dist-info")
    venv.write("alpha.py", "VERSION = 2\n")
    venv.write("alpha-2.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: alpha\nVersion: 2.0\n")
    mirror = venv.mirror()
    program = "import alpha, importlib.metadata as m"
    assert ask(mirror.python, program, "[alpha.VERSION, m.version('alpha')]") == [2, "2.0"]
    assert not (mirror.site / "alpha").exists()


def test_a_folder_that_became_a_link_and_back(venv: VolumeVenv) -> None:
    venv.recorded()
    (venv.site / "alpha").rename(venv.path / "moved")
    (venv.site / "alpha").symlink_to(venv.path / "moved")
    mirror = venv.mirror()
    assert (mirror.site / "alpha").is_symlink()
    assert ask(mirror.python, "import alpha", "alpha.value") == "first"
    (venv.site / "alpha").unlink()
    (venv.path / "moved").rename(venv.site / "alpha")
    assert origin(venv.mirror(), "alpha").startswith(str(venv.scratch))


def test_paths_in_pth_files_mean_what_they_meant(venv: VolumeVenv) -> None:
    source = venv.path.parent / "source"
    (source / "near").mkdir(parents=True)
    (source / "near/edited.py").write_text("w = 4\n")
    (source / "far").mkdir()
    (source / "far/editable.py").write_text("v = 5\n")
    relative = os.path.relpath(source / "near", venv.site)
    venv.write("near.pth", f"# a remark\n{relative}\n")
    venv.write("far.pth", f"{source / 'far'}\n")
    for mirror in (venv.recorded("import edited, editable"), venv.mirror()):
        assert ask(mirror.python, "import edited, editable as e", "[edited.w, e.v]") == [4, 5]


def test_a_thin_venv_still_sees_the_systems_packages(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    venv = make_venv(tmp_path / "volume", tmp_path / "local", "--system-site-packages")
    for mirror in (venv.recorded(), venv.mirror()):
        own, theirs = (
            ask(p, "import sys", "sys.path") for p in (mirror.python, venv.path / "bin/python")
        )
        assert [p.replace(str(mirror.site), str(venv.site)) for p in own] == theirs
        assert len(theirs) > len(ask(Path(sys.executable), "import sys", "sys.path")) - 2


def test_a_python_that_is_not_here_is_replaced_by_one_that_is(venv: VolumeVenv) -> None:
    for name in ("python", "python3", LIBRARY):
        (venv.path / "bin" / name).unlink(missing_ok=True)
    (venv.path / "bin/python").symlink_to("/nowhere/bin/python")
    settings = venv.path / "pyvenv.cfg"
    lines = ["home = /nowhere/bin", *settings.read_text().splitlines()[1:]]
    settings.write_text("\n".join(lines))
    found = venv.try_to_mirror()
    assert isinstance(found, Finding)
    assert "its Python is not on this machine (/nowhere/bin/python)" in found.message
    real = Path(os.path.realpath(sys.executable))
    mirror = venv.mirror(interpreter=real)
    assert ask(mirror.python, "import alpha", "alpha.value") == "first"


def test_a_python_of_another_version_at_that_place_is_passed_by(
    venv: VolumeVenv, tmp_path: Path
) -> None:
    """`/usr/bin/python3` is 3.10 on the Pod and 3.12 in the image; a stand-in was chosen."""
    other = tmp_path / "usr" / "bin" / "python3"
    other.parent.mkdir(parents=True)
    other.write_text("#!/bin/sh\necho another version\n")
    other.chmod(0o755)
    for name in ("python", "python3", LIBRARY):
        (venv.path / "bin" / name).unlink(missing_ok=True)
    (venv.path / "bin/python").symlink_to(other)
    settings = venv.path / "pyvenv.cfg"
    rest = settings.read_text().splitlines()[1:]
    settings.write_text("\n".join([f"home = {other.parent}", *rest]))
    real = Path(os.path.realpath(sys.executable))
    mirror = venv.mirror(interpreter=real)
    assert ask(mirror.python, "import alpha", "alpha.value") == "first"


def test_a_folder_that_is_not_a_venv(tmp_path: Path) -> None:
    (tmp_path / "venv").mkdir()
    found = VolumeVenv(tmp_path / "venv", tmp_path).try_to_mirror()
    assert isinstance(found, Finding)
    assert found.code == "python.not_copied"


def test_pip_in_the_mirror_leaves_the_volume_alone(tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    venv = make_venv(tmp_path / "volume", tmp_path / "local")
    subprocess.run([venv.path / "bin/python", "-m", "ensurepip"], check=True, capture_output=True)
    wheel = tmp_path / "alpha-2.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("alpha/__init__.py", "VERSION = 2\n")
        packed.writestr("alpha/include/alpha.h", "#define ALPHA 2\n")
        info = "alpha-2.0.dist-info"
        packed.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: alpha\nVersion: 2.0\n")
        packed.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        packed.writestr(f"{info}/RECORD", "alpha/__init__.py,,\nalpha/include/alpha.h,,\n")
    before = contents(venv.path)
    for mirror in (venv.recorded("import alpha"), venv.mirror()):
        install = ["install", "--no-index", "--no-deps", str(wheel)]
        pip = mirror.python.parent / "pip3"
        done = subprocess.run([pip, *install], check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        program = "import alpha, importlib.metadata as m"
        assert ask(mirror.python, program, "[alpha.VERSION, m.version('alpha')]") == [2, "2.0"]
        assert contents(venv.path) == before
        assert "archived" in record_opened(mirror) or mirror.recorded
    assert ask(venv.mirror().python, "import alpha", "alpha.VERSION") == 1


def test_what_a_node_has_changed_in_the_mirror_is_not_archived(venv: VolumeVenv) -> None:
    mirror = venv.mirror()
    (mirror.site / "alpha/deep/__init__.py").write_text("value = 'broken'\n")
    assert ask(mirror.python, "import alpha", "alpha.value") == "broken"
    record_opened(mirror)
    assert ask(venv.mirror().python, "import alpha", "alpha.value") == "first"


def test_what_has_only_just_changed_is_not_archived(venv: VolumeVenv) -> None:
    venv.write("alpha/deep/__init__.py", "value = 'fresh'\n", age=0)
    venv.recorded()
    names = {packed.path for packed in read_archive(archive_of(venv)).files}
    assert "alpha/__init__.py" in names
    assert "alpha/deep/__init__.py" not in names


def test_two_workers_record_at_once(venv: VolumeVenv) -> None:
    mirrors = [venv.mirror() for _ in range(4)]
    for mirror in mirrors:
        ask(mirror.python, "import alpha, single")
    said: list[str] = []
    threads = [threading.Thread(target=lambda m=m: said.append(record_opened(m))) for m in mirrors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any(text.endswith("archived") for text in said), said
    assert [p.name for p in venv.store.iterdir()] == [archive_of(venv).name]
    assert "from the archive" in venv.mirror().note


def test_a_store_that_cannot_be_written_to(venv: VolumeVenv) -> None:
    venv.store.parent.write_text("a file where the folder should be")
    mirror = venv.mirror()
    ask(mirror.python, "import alpha")
    assert record_opened(mirror).startswith("no archive was made: ")


def test_other_venvs_archives_go_when_no_start_has_used_them(venv: VolumeVenv) -> None:
    venv.store.mkdir(parents=True)
    old, other = venv.store / f"{'0' * 24}.venv", venv.store / "keep.txt"
    fresh = venv.store / f"{'1' * 24}.venv"
    for path in (old, other, fresh):
        path.write_bytes(b"")
    for path in (old, other):
        os.utime(path, (1, 1))
    venv.recorded()
    assert {p.name for p in venv.store.iterdir()} == {"keep.txt", fresh.name, archive_of(venv).name}
