"""Several workers, one folder: one fetches, the others use it; what is there needs no network."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bootstrap.core import temp_files
from bootstrap.core.files import Disk
from bootstrap.core.findings import Severity
from bootstrap.core.temp_files import Lease, LeaseState
from bootstrap.models.download import progress
from bootstrap.models.download.progress import LogMeter
from bootstrap.models.presence import PathConflict, Present, find_present, receipt_path
from bootstrap.models.provision import ProvisionResult, provision, summary
from tests.prove.kill_provisioners import DISKS, run
from tests.support.provisioning import (
    bring,
    context,
    options,
    sha256,
    spec,
    tensors,
    visible,
)
from tests.support.vicious_server import ViciousServer
from tests.support.waiting import wait_until

DATA = tensors(9_000_000)
NOWHERE = "https://models.invalid/m.safetensors"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket, "socket", forbidden)
    monkeypatch.setattr(socket, "getaddrinfo", forbidden)
    monkeypatch.setattr(socket, "create_connection", forbidden)


def put(models: Path, data: bytes = DATA, place: str = "loras/m.safetensors") -> Path:
    path = models / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.usefixtures("no_network")
class TestWithoutNetwork:
    """No connection and no look-up of a name, as sockets are forbidden."""

    @pytest.mark.parametrize("known", [{}, {"size": len(DATA)}, {"hash": sha256(DATA)}])
    def test_what_is_there_and_right_is_taken(self, known: dict[str, Any], models: Path) -> None:
        put(models)
        result = bring(models, spec(NOWHERE, **known))
        assert result.state == "present"
        assert result.receipt is not None
        assert ("sha256" in result.receipt.checked) is ("hash" in known)

    def test_a_receipt_spares_reading_the_file(
        self, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = put(models)
        wanted = spec(NOWHERE, hash=sha256(DATA))
        assert bring(models, wanted).state == "present"
        monkeypatch.setattr("bootstrap.models.presence.examine", None)
        assert bring(models, wanted).state == "present"
        os.utime(path, (1, 1))
        with pytest.raises(TypeError):
            bring(models, wanted)

    @pytest.mark.parametrize("receipt", ["{", "[]", '{"version": 1}', '{"version": 2}', "null"])
    def test_a_damaged_receipt_is_none(self, receipt: str, models: Path) -> None:
        put(models)
        path = receipt_path(models, spec(NOWHERE).relative_path)
        path.parent.mkdir(parents=True)
        path.write_text(receipt)
        assert bring(models, spec(NOWHERE)).state == "present"

    def test_a_broken_link_that_vanishes_while_it_is_read(
        self, models: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another worker removes it: a conflict now, and nothing at the next look."""
        (models / "loras").mkdir(parents=True)
        (models / "loras/m.safetensors").symlink_to("gone")

        def vanished(path: object) -> str:
            raise FileNotFoundError(path)

        monkeypatch.setattr(os, "readlink", vanished)
        assert isinstance(find_present(spec(NOWHERE), models), PathConflict)

    @pytest.mark.timeout(20)
    def test_a_pipe_in_place_of_a_receipt_is_not_waited_for(self, models: Path) -> None:
        put(models)
        path = receipt_path(models, spec(NOWHERE).relative_path)
        path.parent.mkdir(parents=True)
        os.mkfifo(path)
        assert bring(models, spec(NOWHERE)).state == "present"

    @pytest.mark.parametrize("place", ["text_encoders/m.safetensors", "clip/m.safetensors"])
    def test_a_folder_of_the_same_category_counts(self, place: str, models: Path) -> None:
        path = put(models, place=place)
        result = bring(models, spec(NOWHERE, directory="text_encoders"))
        assert (result.state, result.path) == ("present", path)

    def test_another_root_counts(self, models: Path, tmp_path: Path) -> None:
        path = put(tmp_path / "image")
        result = bring(models, spec(NOWHERE), also=(tmp_path / "image",))
        assert (result.state, result.path) == ("present", path)

    @pytest.mark.parametrize(
        ("content", "known"),
        [
            (DATA[:-5], {}),
            (b"", {}),
            (DATA, {"size": 5}),
            (DATA, {"hash": "0" * 64}),
            (b"<html>", {}),
        ],
    )
    def test_a_wrong_file_in_the_place_is_kept_and_named(
        self, content: bytes, known: dict[str, Any], models: Path
    ) -> None:
        path = put(models, content)
        result = bring(models, spec(NOWHERE, **known))
        assert result.problem is not None
        assert result.problem.code == "download.occupied"
        assert f"rm '{path}'" in result.problem.fix
        assert path.read_bytes() == content

    def test_a_link_to_nowhere_is_named(self, models: Path) -> None:
        (models / "loras").mkdir(parents=True)
        (models / "loras/m.safetensors").symlink_to("gone")
        problem = bring(models, spec(NOWHERE)).problem
        assert problem is not None
        assert problem.code == "download.occupied"

    def test_the_platform_s_cache_comes_before_the_network(
        self, models: Path, tmp_path: Path
    ) -> None:
        cached = put(tmp_path / "cache")
        result = bring(models, spec(NOWHERE), cached=lambda wanted: cached)
        assert (result.state, result.path) == ("cached", cached)
        assert visible(models) == []


def test_one_fetches_and_the_others_use_it(server: ViciousServer, models: Path) -> None:
    urls = {n: server.serve(f"/{n}.safetensors", DATA, bytes_per_second=4e6) for n in range(3)}
    wanted = [spec(url, f"{n}.safetensors") for n, url in urls.items()]
    results: list[tuple[ProvisionResult, ...]] = []

    def work() -> None:
        results.append(provision(wanted, context(models, stale=20.0)))

    pool = [threading.Thread(target=work) for _ in range(4)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    states = [[result.state for result in worker] for worker in results]
    for of_one_model in zip(*states, strict=True):
        assert sorted(of_one_model) == ["fetched", "present", "present", "present"]
    begun = [path for path, headers in server.seen if headers.get("range") == "bytes=0-0"]
    assert sorted(begun) == [f"/{n}.safetensors" for n in range(3)]


def test_a_silent_holder_is_taken_over_and_a_live_one_waited_for(
    server: ViciousServer, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks of the waiter pass 15 seconds, and one beat of the holder."""
    url = server.serve("/m.safetensors", DATA)
    (models / "loras").mkdir(parents=True)
    holder = Lease(models / "loras", "m.safetensors", Disk(), beat=1e6)
    assert holder.acquire()
    looks, really_look = [0], Lease.look

    def look(lease: Lease) -> LeaseState | None:
        looks[0] += 1
        if looks[0] < 20:
            holder._write_beat()
        return really_look(lease)

    monkeypatch.setattr(temp_files, "time", SimpleNamespace(monotonic=lambda: 15.0 * looks[0]))
    monkeypatch.setattr(Lease, "look", look)
    assert bring(models, spec(url), stale=20.0).state == "fetched"
    assert looks == [21]
    holder.release()
    assert visible(models) == ["loras/m.safetensors"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_lease_that_cannot_be_read_is_waited_for_as_a_silent_one(
    server: ViciousServer, models: Path, make: Callable[[Path], None]
) -> None:
    url = server.serve("/m.safetensors", DATA)
    (models / "loras").mkdir(parents=True)
    lease = Lease(models / "loras", "m.safetensors", Disk(), stale=60.0)
    make(lease.path)
    assert not lease.acquire()
    assert lease.look() is not None, "else a waiter would try again at once, and again"
    assert not lease.break_stale()
    assert bring(models, spec(url), stale=0.3).state == "fetched"


def test_a_dead_lease_that_another_waiter_gets_is_not_taken_over(models: Path) -> None:
    """Else the part of that one, which is alive, would be taken."""
    (models / "loras").mkdir(parents=True)
    dead, slow, fast = (
        Lease(models / "loras", "m.safetensors", Disk(), beat=1e6, stale=0.0) for _ in range(3)
    )
    assert dead.acquire() and slow.look() and slow.break_stale()
    assert fast.acquire() and not slow.acquire()
    assert not slow.taken_over
    for lease in (dead, fast):
        lease.release()


def test_waiting_is_bounded(server: ViciousServer, models: Path) -> None:
    url = server.serve("/m.safetensors", DATA)
    (models / "loras").mkdir(parents=True)
    holder = Lease(models / "loras", "m.safetensors", Disk(), beat=0.05)
    holder.acquire()
    assert bring(models, spec(url), longest_wait=0.3).state == "fetched"
    holder.release()


def test_a_part_taken_from_a_live_owner_costs_time_only(
    server: ViciousServer, models: Path
) -> None:
    """As with a worker that was frozen and thawed: it finds its part gone, and uses the file."""
    url = server.serve("/m.safetensors", DATA, stall_after=1_000_000)
    frozen = options(note_every=0.1, stall=30.0)
    results: list[ProvisionResult] = []
    owner = threading.Thread(
        target=lambda: results.append(bring(models, spec(url), options=frozen, beat=1e6, stale=1e6))
    )
    owner.start()
    wait_until(lambda: bool(list(models.glob("loras/.*.state"))))
    server.files["/m.safetensors"].stall_after = None
    thief = bring(models, spec(url), stale=0.2)  # holds the owner for dead
    server.files["/m.safetensors"].go_on.set()
    owner.join(60)
    assert thief.state == "fetched" and not owner.is_alive()
    assert results[0].state in ("present", "fetched")
    assert (models / "loras/m.safetensors").read_bytes() == DATA


def test_required_come_first_and_optional_failures_are_warnings(
    server: ViciousServer, models: Path
) -> None:
    order: list[str] = []
    good = server.serve("/m.safetensors", DATA)
    wanted = [
        spec(server.url + "/none", "a.safetensors", optional=True),
        spec(good, "b.safetensors"),
        spec(server.url + "/none", "c.safetensors"),
    ]
    results = provision(
        wanted, context(models), on_result=lambda result: order.append(result.spec.name)
    )
    assert order == ["b.safetensors", "c.safetensors", "a.safetensors"]
    assert [result.state for result in results] == ["failed", "fetched", "failed"]
    severities = {f.details["model"]: f.severity for f in summary(results)}
    assert severities == {
        "loras/a.safetensors": Severity.WARNING,
        "loras/c.safetensors": Severity.ERROR,
    }


def test_a_waiting_worker_logs_the_other_ones_progress(
    server: ViciousServer,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The other one does not go on before."""
    url = server.serve("/m.safetensors", DATA, stall_after=1_000_000)
    go_on = server.files["/m.safetensors"].go_on

    class Shown(LogMeter):
        def add(self, count: int) -> None:
            super().add(count)
            if self.done:
                go_on.set()

    monkeypatch.setattr(progress, "EVERY", 0.0)
    fetching = threading.Thread(target=lambda: bring(models, spec(url), beat=0.05))
    fetching.start()
    wait_until(lambda: bool(list(models.glob("loras/.*.lease"))))
    waited = bring(models, spec(url), make_meter=Shown, stale=60.0)
    fetching.join()
    assert waited.state == "present"
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if "(another worker): " in line and "%" in line]) >= 2


def test_a_link_that_leads_out_of_the_volume_is_not_followed(
    server: ViciousServer, models: Path, tmp_path: Path
) -> None:
    url = server.serve("/m.safetensors", DATA)
    elsewhere, shared = tmp_path / "elsewhere", tmp_path / "volume" / "shared"
    for folder in (models, elsewhere, shared):
        folder.mkdir(parents=True)
    (models / "loras").symlink_to(elsewhere)
    (models / "vae").symlink_to(shared)
    for directory in ("loras", "loras/new"):
        problem = bring(models, spec(url, directory=directory)).problem
        assert problem is not None and problem.code == "download.outside", problem
    assert list(elsewhere.iterdir()) == [] and server.seen == []
    within = (tmp_path / "volume",)
    assert bring(models, spec(url, directory="vae"), within=within).state == "fetched"
    assert (shared / "m.safetensors").is_file()


@pytest.mark.parametrize("linked", ["models", "models/loras"])
def test_old_parts_behind_a_link_that_leaves_the_volume_stay(
    server: ViciousServer, tmp_path: Path, linked: str
) -> None:
    """Nothing is swept there, and nothing fetched."""
    volume, elsewhere = tmp_path / "volume", tmp_path / "elsewhere"
    old = elsewhere / ("loras" if linked == "models" else "") / f".model-{'0' * 16}-{'0' * 16}.part"
    old.parent.mkdir(parents=True)
    old.write_bytes(b"part")
    os.utime(old, (0, 0))
    (volume / linked).parent.mkdir(parents=True)
    (volume / linked).symlink_to(elsewhere)
    wanted = spec(server.serve("/m.safetensors", DATA))
    problem = bring(volume / "models", wanted, within=(volume,)).problem
    assert problem is not None and problem.code == "download.outside"
    assert [path for path in elsewhere.rglob("*") if path.is_file()] == [old]


def test_a_receipt_says_what_was_checked(server: ViciousServer, models: Path) -> None:
    url = server.serve("/m.safetensors", DATA) + "?X-Amz-Signature=s3cret"
    wanted = spec(url, hash=sha256(DATA), size=len(DATA))
    bring(models, wanted)
    text = receipt_path(models, wanted.relative_path).read_text()
    data = json.loads(text)
    assert data["checked"] == ["size", "header", "sha256"]
    assert data["sha256"] == sha256(DATA)
    assert "s3cret" not in text
    assert isinstance(find_present(wanted, models), Present)


@pytest.mark.parametrize("disk", DISKS)
def test_killed_provisioners_leave_nothing_wrong(disk: str) -> None:
    """The short version of `python -m tests.prove.kill_provisioners`."""
    tally = run(5, disk, workers=3, seed=1, sizes=(300_000, 5_000_000))
    assert tally.good, str(tally)
