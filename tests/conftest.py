"""Real parts for all tests: a demo volume, a booted worker, production mode."""

from __future__ import annotations

import asyncio
import copy
import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bootstrap.boot import Boot, Serving
from bootstrap.config import Settings
from bootstrap.core import log
from bootstrap.core.findings import Outcome
from demo.volume import DemoVolume, ensure
from handler.jobs.worker import Worker
from tests.support.bytecode import add_bytecode

FAULTY_NODES = Path(__file__).parent / "support" / "faulty_nodes"
log.set_up()  # as a program does
WORKFLOWS = Path(__file__).parent.parent / "demo" / "workflows"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What tests log may hold halves of characters on purpose; what xdist sends must not."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def pytest_configure() -> None:
    """No test's worker makes /workspace or /runpod-volume a link, unless requested: it would
    outlive a killed worker, and break other tests."""
    os.environ.setdefault("LINK_OTHER_MOUNT", "false")


@pytest.fixture(scope="session")
def demo() -> DemoVolume:
    """The demo volume in the cache; look at it, change nothing."""
    return ensure()


@pytest.fixture
def volume(demo: DemoVolume, tmp_path: Path) -> Path:
    """A copy of the demo volume for one test to change."""
    return furnished(demo, tmp_path / "volume")


@pytest.fixture
def worker_env(demo: DemoVolume, volume: Path, tmp_path: Path) -> dict[str, str]:
    """Environment for a worker process on `volume`."""
    return environment(demo, volume, tmp_path / "work")


def furnished(demo: DemoVolume, place: Path) -> Path:
    """A copy of the demo volume with the nodes that misbehave on demand."""
    volume = demo.copy_to(place)
    add_bytecode(demo, volume / "ComfyUI")
    shutil.copytree(FAULTY_NODES, volume / "ComfyUI" / "custom_nodes" / FAULTY_NODES.name)
    return volume


def environment(demo: DemoVolume, volume: Path, work: Path) -> dict[str, str]:
    """This process's environment, and what a worker on `volume` needs."""
    return {
        **os.environ,
        "VOLUME_PATH": str(volume),
        "COMFYUI_PYTHON": str(demo.python),
        # Importing the nodes of paid services takes a second of processor time.
        "COMFYUI_ARGS": "--cpu --disable-api-nodes",
        "PACKAGES": "report",
        "COMFYUI_PORT": "0",
        "WORK_DIR": str(work),
        # A name that all tests on this machine would share.
        "LINK_OTHER_MOUNT": "false",
    }


class BootedWorker:
    """A worker in this process on a real ComfyUI: `ask` runs one job."""

    def __init__(self, boot: Boot) -> None:
        self.boot = boot
        boot.begin()
        self.runtime = boot.finish()
        self.report = self.runtime.report
        self.worker = Worker(self.runtime)

    @property
    def serving(self) -> Serving:
        """What its jobs run with; only of a worker whose ComfyUI was started."""
        assert self.runtime.serving is not None
        return self.runtime.serving

    def ask(self, given: Any, job_id: str = "test") -> dict[str, Any]:
        """The reply to `{"input": given}`."""
        return asyncio.run(self.worker.handle({"id": job_id, "input": given}))


@contextmanager
def ready_worker(env: Mapping[str, str]) -> Iterator[BootedWorker]:
    """A worker that booted well, stopped at the end."""
    settings, problems = Settings.from_env(env)
    booted = BootedWorker(Boot(settings, problems, env))
    assert booted.report.outcome is Outcome.READY, booted.report.findings
    yield booted
    booted.boot.stop()


@pytest.fixture(scope="session")
def shared_volume(demo: DemoVolume, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The volume of the session-wide worker; tests may add files to it."""
    return furnished(demo, tmp_path_factory.mktemp("shared") / "volume")


@pytest.fixture(scope="session")
def worker(
    demo: DemoVolume, shared_volume: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BootedWorker]:
    """One booted worker for all tests that leave it healthy."""
    env = environment(demo, shared_volume, tmp_path_factory.mktemp("work"))
    with ready_worker(env) as booted:
        yield booted


@pytest.fixture
def boot_worker() -> Iterator[Callable[[Mapping[str, str]], BootedWorker]]:
    """Boots a worker of one's own with a given environment; stopped after the test."""
    booted: list[BootedWorker] = []

    def boot(env: Mapping[str, str]) -> BootedWorker:
        settings, problems = Settings.from_env(env)
        booted.append(BootedWorker(Boot(settings, problems, env)))
        return booted[-1]

    yield boot
    for each in booted:
        each.boot.stop()


def workflow(name: str) -> dict[str, Any]:
    """A workflow of the demo, by file name without extension; one's own copy."""
    loaded: dict[str, Any] = json.loads((WORKFLOWS / f"{name}.json").read_text())
    return copy.deepcopy(loaded)
