"""Provisioning in a boot, and what it reports meanwhile."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bootstrap.config import Settings
from bootstrap.core import log
from bootstrap.core.findings import Outcome, outcome_of
from bootstrap.models.download import progress
from bootstrap.models.download.part import read_state
from bootstrap.models.download.progress import BarMeter, LogMeter, clock, meters_for
from bootstrap.models.manifest_file import wanted_here
from bootstrap.models.provision import ProvisionResult
from bootstrap.models.provisioner import (
    Provisioner,
    cached_by_platform,
    link_cached,
    models_folder,
    provision_context,
)
from bootstrap.volume import locate
from tests.support.provisioning import (
    MARKER,
    bring,
    bytes_asked,
    context,
    options,
    sha256,
    spec,
    tensors,
)
from tests.support.vicious_server import ViciousServer
from tests.support.waiting import wait_until

DATA = tensors(9_000_000)


def test_required_models_hold_back_and_optional_ones_do_not(
    server: ViciousServer, tmp_path: Path
) -> None:
    url = server.serve("/slow", DATA, stall_after=100_000)
    wanted = [
        spec(server.serve("/m", DATA), "a.safetensors"),
        spec(url, "b.safetensors", optional=True),
    ]
    work = Provisioner(wanted, context(tmp_path))
    ready_before = work.ready
    work.start()
    assert work.wait_for_required(60)
    assert (ready_before, work.ready) == (False, True)
    assert not (tmp_path / "loras/b.safetensors").exists()
    work.stop()
    assert outcome_of(work.findings()) is Outcome.READY


def test_all_that_a_download_logs_is_of_the_job_that_began_it(
    server: ViciousServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """What its own thread says, those of the pool, and each connection."""
    monkeypatch.setattr(progress, "EVERY", 0)
    place = context(tmp_path, make_meter=LogMeter)
    with log.of_job("job-7"):
        work = Provisioner([spec(server.serve("/m", DATA), "a.safetensors")], place)
        work.start()
    assert work.wait_for_all(60)
    said = [line for line in capfd.readouterr().err.splitlines() if "a.safetensors" in line]
    assert len(said) > 4, "the connections tell how far they are"
    assert not [line for line in said if not line.startswith("[models] job job-7: ")]


def test_past_the_limit_it_is_degraded_and_goes_on(server: ViciousServer, tmp_path: Path) -> None:
    url = server.serve("/m.safetensors", DATA, stall_after=100_000)
    work = Provisioner([spec(url)], context(tmp_path, options=options(stall=30.0)))
    work.start()
    assert not work.wait_for_required(0.1)
    (finding,) = work.findings()
    assert finding.code == "provision.pending"
    assert "loras/m.safetensors" in finding.message
    server.files["/m.safetensors"].go_on.set()
    assert work.wait_for_required(60)
    assert [f.code for f in work.findings()] == ["provision.ready"]


def test_a_fault_of_ours_is_reported_without_its_text(tmp_path: Path) -> None:
    def broken(_wanted: Any) -> Path | None:
        raise RuntimeError(MARKER)

    work = Provisioner([spec("https://x.invalid/m")], context(tmp_path, cached=broken))
    work.start()
    assert work.wait_for_required(10)
    (finding,) = work.findings()
    assert finding.code == "download.crashed"
    assert MARKER not in finding.message


def test_lines_for_a_log(
    server: ViciousServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One each two seconds, of a MB per second."""
    made: list[LogMeter] = []

    def make(*given: Any) -> LogMeter:
        made.append(LogMeter(*given))
        return made[-1]

    clock = SimpleNamespace(monotonic=lambda: 9.0 + sum(meter.done for meter in made) / 1e6)
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr(progress, "EVERY", 2.0)
    url = server.serve("/m.safetensors", DATA) + "?token=s3cret"
    bring(tmp_path, spec(url), make_meter=make, options=options(stall=30.0))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 + 4 + 1
    assert all("% of 8.6 MiB, 1.0 MB/s, 0:0" in line and "left" in line for line in lines[1:-1])
    assert "there, 8.6 MiB" in lines[-1]
    assert "s3cret" not in str(lines)


def test_a_bar_for_a_terminal(server: ViciousServer, tmp_path: Path) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    make = meters_for(terminal)
    assert isinstance(make("m", None), BarMeter)
    assert meters_for(io.StringIO()) is LogMeter
    bring(tmp_path, spec(server.serve("/m.safetensors", DATA)), make_meter=make)
    assert "9.00M" in terminal.getvalue()
    assert terminal.getvalue().endswith("checked: header\n")


def test_clock() -> None:
    assert [clock(0), clock(61.4), clock(3723)] == ["0:00", "1:01", "1:02:03"]


def test_the_platform_s_models_are_linked_locally(tmp_path: Path) -> None:
    blob = tmp_path / "models--org--repo/blobs" / sha256(DATA)
    snapshot = tmp_path / "models--org--repo/snapshots/c0ffee/m.safetensors"
    for path in (blob, snapshot):
        path.parent.mkdir(parents=True)
    blob.write_bytes(DATA)
    snapshot.symlink_to(blob)
    wanted = spec("hf://org/repo/m.safetensors", hash=sha256(DATA))
    assert cached_by_platform(wanted, tmp_path) == snapshot
    assert cached_by_platform(spec(wanted.url, hash="0" * 64), tmp_path) is None
    assert cached_by_platform(spec(wanted.url, size=5), tmp_path) is None
    results = [ProvisionResult(wanted, "cached", snapshot)]
    (link,) = link_cached(results, tmp_path / "local")
    assert link == tmp_path / "local/loras/m.safetensors"
    assert link.read_bytes() == DATA
    assert link_cached(results, tmp_path / "local") == []


def test_where_models_go(tmp_path: Path) -> None:
    layout = locate(Settings(volume_path=tmp_path))
    assert models_folder(layout) == tmp_path / "models"
    (tmp_path / "ComfyUI/models").mkdir(parents=True)
    assert models_folder(layout) == tmp_path / "ComfyUI/models"
    (tmp_path / "models").mkdir()
    assert models_folder(layout) == tmp_path / "models"
    settings = Settings(volume_path=tmp_path, download_max_mbps=5, download_connections=3)
    place = provision_context(settings, layout)
    assert place.also == (tmp_path / "ComfyUI/models",)
    assert place.options.connections == 3
    assert wanted_here(settings, layout).models == ()


def test_tokens_show_nowhere(tmp_path: Path) -> None:
    env = dict.fromkeys(("civitai_token", "HF_TOKEN", "DOWNLOAD_TOKEN"), MARKER)
    settings, _ = Settings.from_env({**env, "DOWNLOAD_TOKEN_HOST": "x.example"})
    place = provision_context(settings, locate(settings))
    assert MARKER not in repr((settings, place, place.sources, vars(place.options)))


def test_a_killed_pull_is_resumed_by_the_next(server: ViciousServer, tmp_path: Path) -> None:
    """SIGKILL on the way; what the note tells is not fetched again."""
    url = server.serve("/m.safetensors", DATA, stall_after=1_000_000)
    script = (
        "import sys; from pathlib import Path\n"
        "from tests.support.provisioning import *\n"
        "bring(Path(sys.argv[1]), spec(sys.argv[2]), options=options(note_every=0.1, stall=30))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), url])
    folder = tmp_path / "loras"

    def noted() -> int:
        states = [state for path in folder.glob(".*.state") if (state := read_state(path))]
        return sum(end - first for state in states for first, end in state.done)

    wait_until(lambda: noted() > 1_000_000, 30)
    process.kill()
    process.wait()
    server.files["/m.safetensors"].stall_after = None
    server.seen.clear()
    result = bring(tmp_path, spec(url))
    assert result.state == "fetched"
    assert bytes_asked(server) < len(DATA) * 0.9
    assert sorted(os.listdir(folder)) == ["m.safetensors"]
