"""Packs fetched from real servers that cut, lie and send bombs: complete or not at all, and never
over the user's own."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bootstrap.core.archive import Limits
from bootstrap.core.files import Disk, key_of
from bootstrap.core.findings import Severity
from bootstrap.net.addresses import AddressPolicy
from bootstrap.nodes import install
from bootstrap.nodes import pull as module
from bootstrap.nodes.manifest import PackSpec
from bootstrap.nodes.presence import RECEIPT, TRACKING, read_receipt, verify
from bootstrap.nodes.pull import PackResult, PullContext, pull, summary
from tests.support.pack_server import (
    COMMIT,
    FILES,
    OTHER,
    PackServer,
    from_git,
    from_registry,
    zipped,
)
from tests.support.provisioning import options, sha256
from tests.support.sources import ROOT
from tests.support.waiting import wait_until


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    return tmp_path / "volume"


def bring(spec: PackSpec, context: PullContext, **more: Any) -> PackResult:
    (result,) = pull([spec], context, **more)
    return result


def files_in(folder: Path) -> dict[str, str]:
    """The files of a pack, without what is written beside them."""
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (RECEIPT, ".tracking")
    }


def leftovers(context: PullContext) -> list[str]:
    return sorted(os.listdir(context.own)) if context.own.is_dir() else []


def failed(result: PackResult, code: str, context: PullContext) -> str:
    """It failed with `code`, says so with a fix, and left nothing in custom_nodes."""
    assert (result.state, result.problem and result.problem.code) == ("failed", code), result
    (finding,) = result.findings()
    assert finding.fix and result.spec.name in finding.message
    assert not (context.nodes / result.spec.name).exists()
    assert [name for name in leftovers(context) if not name.startswith(".model-")] == []
    return finding.message


def test_a_version_of_the_registry_is_fetched_once(server: PackServer, volume: Path) -> None:
    server.pack("some-pack", "1.2.3")
    context = server.place(volume)
    result = bring(from_registry(), context)
    assert (result.state, result.path) == ("fetched", context.nodes / "some-pack")
    assert files_in(context.nodes / "some-pack") == FILES
    assert leftovers(context) == []
    receipt = read_receipt(context.nodes / "some-pack")
    assert receipt is not None and receipt.source == "some-pack@1.2.3"
    assert receipt.files["src/nodes.py"] == sha256(b"A = 1\n")
    seen = len(server.seen)
    assert bring(from_registry(), context).state == "present" and len(server.seen) == seen
    (finding,) = summary([result])
    assert (finding.code, finding.severity) == ("nodes.fetched", Severity.OK)


def test_the_log_says_where_it_came_from(
    server: PackServer, volume: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.pack("some-pack", "1.2.3")
    with caplog.at_level("INFO", "nodes"):
        bring(from_registry(), server.place(volume, make_meter=module.PackMeter))
    lines = [record.getMessage() for record in caplog.records if record.name == "nodes"]
    assert lines and "some-pack: fetched from 127.0.0.1" in lines[-1]


def test_the_manager_knows_it_as_its_own(server: PackServer, volume: Path) -> None:
    """By the file beside it that lists what it brought (cnr_utils.py, read_cnr_info)."""
    project = '[project]\nname = "Some-Pack"\nversion = "1.2.3"\n'
    server.pack("some-pack", "1.2.3", zipped({**FILES, "pyproject.toml": project}))
    context = server.place(volume)
    bring(from_registry(), context)
    pack = context.nodes / "some-pack"
    assert set((pack / ".tracking").read_text().splitlines()) == {*FILES, "pyproject.toml"}
    (pack / RECEIPT).unlink()  # and the reverse: one that the manager brought counts
    assert bring(from_registry(), context).state == "present"
    assert bring(from_registry(version="2.0.0"), context).problem.code == "nodes.occupied"  # type: ignore[union-attr]


def test_a_commit_of_a_repository_is_fetched_without_its_top_folder(
    server: PackServer, volume: Path
) -> None:
    url = server.repository("owner/A-Pack")
    context = server.place(volume)
    assert bring(from_git(url), context).state == "fetched"
    assert files_in(context.nodes / "A-Pack") == FILES
    assert not (context.nodes / "A-Pack/.tracking").exists()


def git(folder: Path, *words: str) -> bytes:
    identity = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "tag.gpgSign=false")
    return subprocess.check_output(["git", "-C", str(folder), *identity, *words])


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_what_a_real_git_lists_and_packs_is_understood(
    server: PackServer, volume: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    git(source, "init", "--quiet", "--initial-branch", "trunk")
    for name, content in FILES.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(content)
    git(source, "add", ".")
    git(source, "commit", "--quiet", "--no-gpg-sign", "-m", "one")
    git(source, "tag", "-a", "v1", "-m", "annotated")
    commit = git(source, "rev-parse", "HEAD").decode().strip()
    listed = git(source, "upload-pack", "--advertise-refs", "--stateless-rpc", ".")
    server.serve("/o/Real/info/refs", b"001e# service=git-upload-pack\n0000" + listed)
    packed = git(source, "archive", "--format=zip", f"--prefix=Real-{commit}/", commit)
    server.serve(f"/o/Real/archive/{commit}.zip", packed)
    for ref in (None, "trunk", "v1"):
        assert server.sources().pin(f"{server.url}/o/Real", ref).commit == commit
    context = server.place(volume)
    assert bring(from_git(f"{server.url}/o/Real", commit), context).state == "fetched"
    assert files_in(context.nodes / "Real") == FILES
    server.serve(f"/o/Real/archive/{OTHER}.zip", packed)
    shutil.rmtree(context.nodes / "Real")
    wrong = bring(from_git(f"{server.url}/o/Real", OTHER), context)
    failed(wrong, "nodes.other_commit", context)


@pytest.mark.parametrize("form", ["-/archive/{0}/A-Pack-{0}.zip", "get/{0}.zip"])
def test_other_hosts_keep_the_archive_elsewhere(
    server: PackServer, volume: Path, form: str
) -> None:
    url = server.repository("owner/A-Pack")
    served = server.files.pop(f"/owner/A-Pack/archive/{COMMIT}.zip")
    server.files["/owner/A-Pack/" + form.format(COMMIT)] = served
    assert bring(from_git(url), server.place(volume)).state == "fetched"


def test_an_archive_of_another_commit_is_refused(server: PackServer, volume: Path) -> None:
    url, context = server.repository("owner/A-Pack"), server.place(volume)
    lie = zipped(FILES, "A-Pack", OTHER)
    server.serve(f"/owner/A-Pack/archive/{COMMIT}.zip", lie)
    failed(bring(from_git(url), context), "nodes.other_commit", context)


def test_a_hash_in_the_manifest_is_compared(server: PackServer, volume: Path) -> None:
    content = zipped(FILES)
    server.pack("some-pack", "1.2.3", content)
    context = server.place(volume)
    wrong = from_registry(sha256="0" * 64)
    failed(bring(wrong, context), "download.hash_mismatch", context)
    assert bring(from_registry(sha256=sha256(content)), context).state == "fetched"


def _with_link() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as made:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        made.writestr(link, "/etc/passwd")
    return target.getvalue()


BAD: dict[str, Callable[[], bytes]] = {
    "climbs": lambda: zipped({"../evil.py": "x"}),
    "absolute": lambda: zipped({"/tmp/evil.py": "x"}),
    "cut": lambda: zipped(FILES)[:-20],
    "not a zip": lambda: b"hello" * 100,
    "link": _with_link,
}


@pytest.mark.parametrize("kind", BAD)
def test_a_hostile_or_damaged_archive_leaves_nothing(
    server: PackServer, volume: Path, kind: str
) -> None:
    server.pack("some-pack", "1.2.3", BAD[kind]())
    context = server.place(volume)
    failed(bring(from_registry(), context), "nodes.bad_archive", context)
    assert not list(volume.parent.rglob("evil.py"))


def test_a_bomb_is_stopped(
    server: PackServer, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.pack("some-pack", "1.2.3", zipped({"a": b"\0" * 3_000_000}))
    monkeypatch.setattr(install, "_LIMITS", Limits(1_000_000))
    context = server.place(volume)
    failed(bring(from_registry(), context), "nodes.too_large", context)


@pytest.mark.parametrize(
    "vices",
    [{}, {"no_length": True, "ranges": False, "etag": None}, {"chunked": True, "ranges": False}],
)
def test_an_archive_without_end_is_not_fetched_to_it(
    server: PackServer, volume: Path, monkeypatch: pytest.MonkeyPatch, vices: dict[str, Any]
) -> None:
    """Neither one that says how long it is nor one that does not."""
    for name in (module, sys.modules["bootstrap.nodes.sources"]):
        monkeypatch.setattr(name, "MOST_ARCHIVE", 1_000_000)
    server.pack("some-pack", "1.2.3", os.urandom(5_000_000), **vices)
    context = server.place(volume)
    result = bring(from_registry(), context)
    assert result.problem is not None and result.problem.code == "nodes.too_large", result
    assert sum(path.stat().st_size for path in context.own.iterdir()) == 0
    assert vices or server.asked("/cdn/") == 1, "one that says so is not even begun"


def test_a_server_need_not_say_how_long_an_archive_is(server: PackServer, volume: Path) -> None:
    """GitHub's does not; that it is whole shows when it is unpacked."""
    url = server.repository("owner/A-Pack", no_length=True)
    context = server.place(volume)
    assert bring(from_git(url), context).state == "fetched"
    url = server.repository("owner/B-Pack", no_length=True, cut_after=200)
    failed(bring(from_git(url), context), "nodes.bad_archive", context)


@pytest.mark.parametrize("vices", [{"cut_after": 300, "cuts": 2}, {"statuses": {1: 503, 2: 429}}])
def test_a_server_that_fails_now_and_then_is_asked_again(
    server: PackServer, volume: Path, vices: dict[str, Any]
) -> None:
    noise: dict[str, str | bytes] = {**FILES, "noise.bin": os.urandom(2000)}
    server.pack("some-pack", "1.2.3", zipped(noise), **vices)
    assert bring(from_registry(), server.place(volume)).state == "fetched"


@pytest.mark.parametrize("what", ["registry", "git"])
def test_a_server_that_is_away_is_asked_a_few_times_in_all(
    server: PackServer, volume: Path, what: str
) -> None:
    """Not a few times per attempt."""
    away: dict[str, Any] = {"status": 503}
    url = server.repository("owner/A-Pack", **away)
    server.serve("/nodes/some-pack/install?version=1.2.3", b"", **away)
    context = server.place(volume)
    result = bring(from_registry() if what == "registry" else from_git(url), context)
    assert result.problem is not None and result.problem.code == "download.http_status"
    assert len(server.seen) == 1 + context.sources.options.attempts


def test_a_withdrawn_version_is_not_fetched(server: PackServer, volume: Path) -> None:
    path = server.pack("some-pack", "1.2.3")
    about = {
        "version": "1.2.3",
        "downloadUrl": server.url + path,
        "status": "NodeVersionStatusBanned",
    }
    server.answer("/nodes/some-pack/install?version=1.2.3", about)
    context = server.place(volume)
    assert "banned" in failed(bring(from_registry(), context), "nodes.withdrawn", context)
    assert server.asked("/cdn/") == 0


@pytest.mark.parametrize(
    "answer",
    [
        *([], "text", {}, {"downloadUrl": 5}),
        {"version": "9.9.9", "downloadUrl": "https://x"},
        {"node_id": "other-pack", "version": "1.2.3", "downloadUrl": "https://x"},
    ],
)
def test_a_registry_that_answers_nonsense(server: PackServer, volume: Path, answer: Any) -> None:
    server.answer("/nodes/some-pack/install?version=1.2.3", answer)
    context = server.place(volume)
    failed(bring(from_registry(), context), "nodes.bad_answer", context)


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "\ud800", f"https://{'x' * 100_000}/a", "https://./a", "//x/a"]
)
def test_an_address_that_cannot_be_is_refused_in_few_words(
    server: PackServer, volume: Path, url: str
) -> None:
    about = {"version": "1.2.3", "downloadUrl": url}
    server.answer("/nodes/some-pack/install?version=1.2.3", about)
    context = server.place(volume)
    message = failed(bring(from_registry(), context), "download.url_refused", context)
    assert len(message) < 1000


@pytest.mark.parametrize("where", ["registry", "archive", "git"])
def test_no_answer_leads_to_a_private_address(server: PackServer, volume: Path, where: str) -> None:
    """The server itself is allowed here, another port of this machine is not."""
    with PackServer() as inner:
        inner.pack("some-pack", "1.2.3")
        url = inner.url + inner.pack("some-pack", "1.2.3")
        server.pack("some-pack", "1.2.3")
        spec = from_registry()
        if where == "registry":
            about = {"version": "1.2.3", "downloadUrl": url}
            server.answer("/nodes/some-pack/install?version=1.2.3", about)
        elif where == "archive":
            server.serve("/cdn/some-pack/1.2.3.zip", b"", redirect=url)
        else:
            spec = from_git(f"{server.url}/owner/A-Pack")
            server.serve(f"/owner/A-Pack/archive/{COMMIT}.zip", b"", redirect=url)
        guarded = options(policy=AddressPolicy(exempt={server.host_port}))
        context = server.place(volume, guarded)
        result = bring(spec, context)
        assert result.problem is not None
        assert result.problem.code in (
            "download.private_address",
            "download.redirect_refused",
            "download.url_refused",
        )
        assert inner.seen == []


def test_a_folder_of_the_users_is_left_alone_and_moved_with_force_only(
    server: PackServer, volume: Path
) -> None:
    server.pack("some-pack", "1.2.3")
    context = server.place(volume)
    mine = context.nodes / "some-pack"
    mine.mkdir(parents=True)
    (mine / "mine.py").write_text("precious")
    result = bring(from_registry(), context)
    assert result.problem is not None and result.problem.code == "nodes.occupied"
    assert files_in(mine) == {"mine.py": "precious"} and server.seen == []
    forced = bring(from_registry(), context, force=True)
    assert forced.state == "updated" and files_in(mine) == FILES
    assert forced.aside is not None and forced.aside.parent == context.nodes / ".disabled"
    assert files_in(forced.aside) == {"mine.py": "precious"}


def test_a_checkout_at_the_wanted_commit_counts(server: PackServer, volume: Path) -> None:
    context, spec = server.place(volume), from_git("https://github.com/owner/A-Pack")
    git = context.nodes / "A-Pack/.git"
    git.mkdir(parents=True)
    (git / "HEAD").write_text(f"{COMMIT}\n")
    assert bring(spec, context).state == "present"
    (git / "HEAD").write_text(f"{OTHER}\n")
    result = bring(spec, context)
    assert result.problem is not None and result.problem.code == "nodes.occupied"
    assert OTHER in result.problem.message


@pytest.mark.parametrize("there", ["our pack", "an empty folder", "nothing"])
def test_a_link_of_the_users_is_left_alone(server: PackServer, volume: Path, there: str) -> None:
    server.pack("some-pack", "1.2.3")
    context, elsewhere = server.place(volume), volume / "elsewhere"
    link = context.nodes / "some-pack"
    bring(from_registry(), context)
    if there == "our pack":
        link.rename(elsewhere)
    else:
        shutil.rmtree(link)
        elsewhere.mkdir()
    link.symlink_to(elsewhere)
    if there == "our pack":
        assert bring(from_registry(), context).state == "present"
    if there == "nothing":
        elsewhere.rmdir()
    server.pack("some-pack", "2.0.0")
    result = bring(from_registry(version="2.0.0"), context)
    assert result.problem is not None and result.problem.code == "nodes.occupied"
    assert "a link" in result.problem.message and link.is_symlink()
    assert bring(from_registry(version="2.0.0"), context, force=True).state == "updated"


def test_an_update_keeps_what_was_added_and_swaps_the_rest(
    server: PackServer, volume: Path
) -> None:
    server.pack("some-pack", "1.2.3")
    server.pack("some-pack", "2.0.0", zipped({"__init__.py": "new = 1\n"}))
    context = server.place(volume)
    bring(from_registry(), context)
    pack = context.nodes / "some-pack"
    (pack / "config.json").write_text("{}")
    (pack / "__pycache__").mkdir()
    (pack / "__pycache__/x.pyc").write_bytes(b"")
    (pack / "link").symlink_to("config.json")
    result = bring(from_registry(version="2.0.0"), context)
    assert (result.state, result.aside) == ("updated", None)
    assert files_in(pack) == {"__init__.py": "new = 1\n", "config.json": "{}", "link": "{}"}
    assert os.readlink(pack / "link") == "config.json"
    assert leftovers(context) == []


def test_what_is_saved_in_a_pack_while_it_is_updated_is_kept(
    server: PackServer, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A running ComfyUI keeps writing after the comparison, in place or to new files."""
    server.pack("some-pack", "1.2.3")
    context = server.place(volume)
    bring(from_registry(), context)
    pack = context.nodes / "some-pack"
    (pack / "settings.json").write_text("old")
    swap = install._swap

    def late(new: Path, final: Path, aside: Path | None) -> None:
        (final / "part").write_text("saved")
        os.replace(final / "part", final / "settings.json")
        (final / "late").mkdir()
        (final / "late/found.db").write_text("found")
        swap(new, final, aside)

    monkeypatch.setattr(install, "_swap", late)
    server.pack("some-pack", "2.0.0")
    assert bring(from_registry(version="2.0.0"), context).state == "updated"
    assert (pack / "settings.json").read_text() == "saved"
    assert (pack / "late/found.db").read_text() == "found"
    assert leftovers(context) == []


def test_what_a_killed_update_left_does_not_replace_what_was_saved_since(
    server: PackServer, volume: Path
) -> None:
    server.pack("some-pack", "1.2.3")
    context = server.place(volume)
    bring(from_registry(), context)
    pack, old = context.nodes / "some-pack", context.own / f"{key_of('some-pack')}-{'0' * 16}.old"
    shutil.copytree(pack, old)
    (old / "settings.json").write_text("before")
    (old / "only.db").write_text("found")
    (pack / "settings.json").write_text("since")
    server.pack("some-pack", "2.0.0")
    assert bring(from_registry(version="2.0.0"), context).state == "updated"
    assert (pack / "settings.json").read_text() == "since"
    assert (pack / "only.db").read_text() == "found"
    assert leftovers(context) == []


@pytest.mark.parametrize("how", ["edited", "in the way"])
def test_an_update_over_what_was_changed_needs_force_and_loses_nothing(
    server: PackServer, volume: Path, how: str
) -> None:
    server.pack("some-pack", "1.2.3")
    server.pack("some-pack", "2.0.0", zipped({"__init__.py": "new = 1\n", "theirs.py": ""}))
    context = server.place(volume)
    bring(from_registry(), context)
    pack = context.nodes / "some-pack"
    changed = pack / ("__init__.py" if how == "edited" else "theirs.py")
    changed.write_text("mine")
    before = files_in(pack)
    result = bring(from_registry(version="2.0.0"), context)
    assert result.problem is not None and result.problem.code == "nodes.edited"
    assert changed.name in result.problem.message
    assert files_in(pack) == before and leftovers(context) == []
    forced = bring(from_registry(version="2.0.0"), context, force=True)
    assert forced.state == "updated" and forced.aside is not None
    assert files_in(forced.aside) == before
    assert files_in(pack)["__init__.py"] == "new = 1\n"


def test_verify_names_what_was_changed_and_overwrites_nothing(
    server: PackServer, volume: Path
) -> None:
    server.pack("some-pack", "1.2.3")
    context = server.place(volume)
    assert verify(from_registry(), context.nodes)[:2] == (False, "not there")
    bring(from_registry(), context)
    pack = context.nodes / "some-pack"
    good, what, problem = verify(from_registry(), context.nodes)
    assert (good, problem) == (True, None) and "2 files as fetched" in what
    (pack / "__init__.py").write_text("mine")
    (pack / "src/nodes.py").unlink()
    (pack / "more.json").write_text("{}")
    good, what, problem = verify(from_registry(), context.nodes)
    assert not good and problem is not None and problem.code == "nodes.edited"
    assert "__init__.py" in what and "src/nodes.py (gone)" in what
    assert bring(from_registry(), context).state == "present"
    assert (pack / "__init__.py").read_text() == "mine"
    assert verify(from_registry(version="2.0.0"), context.nodes)[1].startswith("another version")


def test_install_scripts_and_submodules_are_named_and_nothing_is_run(
    server: PackServer, volume: Path
) -> None:
    script = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()\n"
    files = {**FILES, "install.py": script, ".gitmodules": "", "__init__.py": script}
    url, context = server.repository("owner/A-Pack", files), server.place(volume)
    result = bring(from_git(url), context)
    assert [note.code for note in result.findings()] == ["nodes.install_script", "nodes.submodules"]
    assert not list(volume.rglob("ran"))


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", [RECEIPT, ".git", ".git/HEAD", ".git/config", "pyproject.toml"])
def test_nothing_waits_for_a_writer_of_a_pipe(server: PackServer, volume: Path, name: str) -> None:
    server.pack("some-pack", "1.2.3")
    context = server.place(volume)
    pipe = context.nodes / "some-pack" / name
    pipe.parent.mkdir(parents=True)
    if name == ".git/config":
        pipe.with_name("HEAD").write_text(COMMIT)
    if name == "pyproject.toml":
        pipe.with_name(TRACKING).touch()
    os.mkfifo(pipe)
    result = bring(from_registry(), context)
    assert result.problem is not None and result.problem.code == "nodes.occupied"


@pytest.mark.parametrize("name", [TRACKING, f"{TRACKING}/inside", ".git/config"])
def test_what_git_and_the_manager_keep_in_a_pack_is_not_taken_from_an_archive(
    server: PackServer, volume: Path, name: str
) -> None:
    server.pack("some-pack", "1.2.3", zipped({**FILES, name: "[core]\nfsmonitor = touch ran\n"}))
    context = server.place(volume)
    assert bring(from_registry(), context).state == "fetched"
    pack = context.nodes / "some-pack"
    assert verify(from_registry(), context.nodes)[0]
    assert not (pack / ".git").exists()
    assert (pack / TRACKING).read_text().split() == list(FILES)


def test_bytecode_in_an_archive_is_as_fetched_until_python_makes_its_own(
    server: PackServer, volume: Path
) -> None:
    """Many a pack is published with its __pycache__."""
    cache = "__pycache__/a.cpython-312.pyc"
    server.pack("some-pack", "1.2.3", zipped({**FILES, cache: "old", "sourceless.pyc": "x"}))
    context = server.place(volume)
    bring(from_registry(), context)
    pack = context.nodes / "some-pack"
    assert verify(from_registry(), context.nodes)[0]
    (pack / cache).write_text("new")
    assert verify(from_registry(), context.nodes)[0]
    (pack / "sourceless.pyc").write_text("another's")
    assert verify(from_registry(), context.nodes)[1] == "changed: sourceless.pyc"


def test_a_folder_with_the_longest_name_can_be_put_aside(server: PackServer, volume: Path) -> None:
    server.pack("some-pack", "1.2.3")
    context, spec = server.place(volume), PackSpec("é" * 120, from_registry().pin)
    (context.nodes / spec.name).mkdir(parents=True)
    (context.nodes / spec.name / "mine").touch()
    result = bring(spec, context, force=True)
    assert result.state == "updated" and result.aside is not None
    assert (result.aside / "mine").exists()


@pytest.mark.parametrize("name", [RECEIPT, f"{RECEIPT}/inside"])
def test_a_receipt_in_an_archive_is_not_believed(
    server: PackServer, volume: Path, name: str
) -> None:
    lie = json.dumps({"version": 1, "source": "other@9.9.9", "files": {}})
    server.pack("some-pack", "1.2.3", zipped({**FILES, name: lie}))
    context = server.place(volume)
    bring(from_registry(), context)
    receipt = read_receipt(context.nodes / "some-pack")
    assert receipt is not None and receipt.source == "some-pack@1.2.3"
    assert verify(from_registry(), context.nodes)[0]


def test_custom_nodes_outside_the_volume_are_not_written_to(
    server: PackServer, volume: Path, tmp_path: Path
) -> None:
    server.pack("some-pack", "1.2.3")
    (tmp_path / "elsewhere").mkdir()
    (volume / "ComfyUI").mkdir(parents=True)
    (volume / "ComfyUI/custom_nodes").symlink_to(tmp_path / "elsewhere")
    context = server.place(volume)
    failed(bring(from_registry(), context), "nodes.outside", context)
    assert list((tmp_path / "elsewhere").iterdir()) == []


class FullDisk(Disk):
    def write_at(self, descriptor: int, data: memoryview, position: int) -> None:
        raise OSError(28, "No space left on device")


def test_a_full_disk_is_named(server: PackServer, volume: Path) -> None:
    server.pack("some-pack", "1.2.3")
    context = server.place(volume, options(disk=FullDisk()))
    failed(bring(from_registry(), context), "download.no_space", context)


def test_a_disk_that_fails_while_it_is_unpacked_leaves_nothing(
    server: PackServer, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> list[str]:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(install, "unpack", broken)
    server.pack("some-pack", "1.2.3")
    context = server.place(volume)
    failed(bring(from_registry(), context), "download.disk", context)


def test_past_its_time_what_is_not_done_is_said_and_the_rest_is_there(
    server: PackServer, volume: Path
) -> None:
    server.pack("some-pack", "1.2.3")
    server.pack("slow-pack", "1.0.0", os.urandom(4_000_000), bytes_per_second=20_000)
    wanted = [from_registry(), from_registry("slow-pack", "1.0.0")]
    context, timeout = server.place(volume), 1.0
    while (results := pull(wanted, context, timeout=timeout))[0].state == "stopped":
        timeout *= 2  # on a busy machine
    assert (context.nodes / "some-pack").exists() and results[1].state == "stopped"
    (late,) = [f for f in summary(results) if f.code == "nodes.late"]
    assert late.severity is Severity.WARNING and "NODES_TIMEOUT" in late.fix


def test_two_at_once_fetch_it_once(server: PackServer, volume: Path) -> None:
    noise = zipped({**FILES, "noise.bin": os.urandom(300_000)})
    server.pack("some-pack", "1.2.3", noise, bytes_per_second=400_000, ranges=False)
    results: list[PackResult] = []
    threads = [
        threading.Thread(
            target=lambda: results.append(bring(from_registry(), server.place(volume)))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(result.state for result in results) == ["fetched", *["present"] * 3]
    # The first byte, which tells what it is, and the whole.
    assert server.asked("/cdn/") == 2
    assert leftovers(server.place(volume)) == []


_CHILD = """
import sys
from pathlib import Path
from bootstrap.nodes.pull import pull
from tests.support.pack_server import PackServer, from_registry
class There(PackServer):
    url = sys.argv[2]
print(pull([from_registry()], There().place(Path(sys.argv[1])))[0].state, flush=True)
"""


def start_pull(volume: Path, server: PackServer) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _CHILD, str(volume), server.url]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def test_after_a_kill_nothing_is_half_there_and_the_next_goes_on(
    server: PackServer, volume: Path
) -> None:
    noise = zipped({**FILES, "noise.bin": os.urandom(1_000_000)})
    server.pack("some-pack", "1.2.3", noise, stall_after=200_000)
    context = server.place(volume)
    with start_pull(volume, server) as child:
        wait_until(lambda: any(name.endswith(".part") for name in leftovers(context)))
        child.send_signal(signal.SIGKILL)
    assert not (context.nodes / "some-pack").exists()
    server.files["/cdn/some-pack/1.2.3.zip"].stall_after = None
    assert bring(from_registry(), context).state == "fetched"
    assert set(files_in_bytes(context.nodes / "some-pack")) == {*FILES, "noise.bin"}


_UPDATES = """
import sys
from pathlib import Path
from bootstrap.nodes.pull import pull
from tests.support.pack_server import PackServer, from_registry
class There(PackServer):
    url = sys.argv[2]
context = There().place(Path(sys.argv[1]))
for round in range(1000):
    (result,) = pull([from_registry(version=("1.2.3", "2.0.0")[round % 2])], context)
    print(result.state, flush=True)
"""


def test_a_killed_update_leaves_a_complete_pack_with_the_users_files(
    server: PackServer, volume: Path
) -> None:
    versions = {
        version: {"__init__.py": f"v = {version!r}\n", **{f"{n}.py": version for n in range(40)}}
        for version in ("1.2.3", "2.0.0")
    }
    for version, files in versions.items():
        server.pack("some-pack", version, zipped(files))
    context = server.place(volume)
    bring(from_registry(), context)
    pack = context.nodes / "some-pack"
    (pack / "settings.json").write_text("mine")
    command = [sys.executable, "-c", _UPDATES, str(volume), server.url]
    for moment in range(8):
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None and child.stdout.readline().strip()
            time.sleep(moment * 0.013)
            child.send_signal(signal.SIGKILL)
        if pack.exists():
            found = files_in(pack)
            assert found.pop("settings.json") == "mine"
            assert found in versions.values(), "one version, whole"
        bring(from_registry(), context)
        assert files_in(pack) == {**versions["1.2.3"], "settings.json": "mine"}


def files_in_bytes(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    hidden = (RECEIPT, ".tracking")
    return {str(p.relative_to(folder)): p.read_bytes() for p in found if p.name not in hidden}


def test_what_a_kill_in_an_update_put_aside_comes_back(server: PackServer, volume: Path) -> None:
    """Between its two renames, the only moment without the pack."""
    server.pack("some-pack", "1.2.3")
    context = server.place(volume)
    bring(from_registry(), context)
    pack = context.nodes / "some-pack"
    (pack / "config.json").write_text("{}")
    aside = context.own / f"{key_of('some-pack')}-{'0' * 16}.old"
    pack.rename(aside)
    asked = len(server.seen)
    assert bring(from_registry(), context).state == "present"
    assert files_in(pack) == {**FILES, "config.json": "{}"}
    assert len(server.seen) == asked and leftovers(context) == []


def test_what_killed_workers_left_is_removed_once_it_is_old(
    server: PackServer, volume: Path
) -> None:
    context = server.place(volume)
    names = [f"{'1' * 16}-{'2' * 16}.new", f"{'1' * 16}.zip", "mine.txt"]
    context.own.mkdir(parents=True)
    for name in names:
        (context.own / name).mkdir() if name.endswith(".new") else (context.own / name).write_text(
            ""
        )
    pull([], context)
    assert leftovers(context) == sorted(names), "another worker may be at it"
    for name in names:
        os.utime(context.own / name, (1, 1))
    pull([], context)
    assert leftovers(context) == ["mine.txt"]
