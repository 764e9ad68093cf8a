"""What we rely on in the SDK beyond its documented interface. They fail at an upgrade that changes
it, each with the name that is missing or different."""

from __future__ import annotations

import ast
import asyncio
import inspect
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.volume import DemoVolume
from handler.sdk import import_sdk
from tests.conftest import environment
from tests.support.control_plane import ControlPlane
from tests.support.sources import ROOT, modules

# Methods of rp_scale.JobScaler that JobLoop overrides or calls, with their parameters.
METHODS = {
    "__init__": "self, config",
    "run": "self",
    "run_jobs": "self, session",
    "stop_job": "self, job_id",
    "handle_job": "self, session, job",
    "is_alive": "self",
    "kill_worker": "self",
}
COROUTINES = {"run", "run_jobs", "stop_job", "handle_job"}
# What its __init__ sets and JobLoop reads or replaces.
ATTRIBUTES = {"jobs_fetcher", "jobs_fetcher_timeout", "job_progress", "jobs_queue", "jobs_tasks"}
VERSION = "1.12.0"


@pytest.fixture(scope="module")
def rp_scale() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AUTO_SYSTEM_CHECKS", "GPU_CHECK"):
            patch.setenv(f"RUNPOD_SKIP_{name}", "true")
        patch.setenv("RUNPOD_LOG_LEVEL", "INFO")
        import_sdk()
        from runpod.serverless.modules import rp_scale

        yield rp_scale


def scaled(rp_scale: Any, work: Callable[[Any], Any]) -> Any:
    """What the coroutine `work` makes of a JobScaler in its event loop."""

    async def run() -> Any:
        return await work(rp_scale.JobScaler({"concurrency_modifier": lambda _: 3}))

    return asyncio.run(run())


def used_by_our_loop() -> set[str]:
    """Names of the base class that JobLoop overrides, or reads through `self` and `super()`."""
    classes = [n for n in modules()["handler.sdk.job_loop"].body if isinstance(n, ast.ClassDef)]
    ours = next(n for n in classes if n.name == "JobLoop")
    defined = {n.name for n in ours.body if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))}
    read = {
        node.attr
        for node in ast.walk(ours)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "super()")
    }
    return {name for name in defined | read if not name.startswith("_") or name == "__init__"}


def test_the_list_is_of_all_that_our_loop_uses() -> None:
    assert used_by_our_loop() == {*METHODS, *ATTRIBUTES}


def test_the_version_is_the_one_that_was_read() -> None:
    """Another one: read serverless/modules/rp_scale.py again, then change it here."""
    pins = (ROOT / "requirements" / "worker.txt").read_text("utf-8").splitlines()
    assert f"runpod=={VERSION}" in pins


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_the_parameters_that_we_give_and_take(rp_scale: Any, name: str) -> None:
    method = getattr(rp_scale.JobScaler, name)
    assert ", ".join(inspect.signature(method).parameters) == METHODS[name]
    assert inspect.iscoroutinefunction(method) == (name in COROUTINES)


def test_the_attributes_are_set_when_it_is_made(rp_scale: Any) -> None:
    async def look(scaler: Any) -> None:
        assert set(vars(scaler)) >= ATTRIBUTES
        assert isinstance(scaler.jobs_queue, asyncio.Queue) and scaler.jobs_tasks == {}
        assert list(inspect.signature(scaler.jobs_fetcher).parameters) == ["session", "num_jobs"]
        assert scaler.job_progress.get_job_count() == 0

    scaled(rp_scale, look)


def test_the_workers_loop_is_looked_up_when_it_starts() -> None:
    """`with_slots` puts JobLoop in the place of JobScaler, in the module."""
    from runpod.serverless import worker

    assert "rp_scale.JobScaler(config)" in inspect.getsource(worker.run_worker)


def test_jobs_are_fetched_with_no_limit_of_its_own_and_none_may_come(rp_scale: Any) -> None:
    """JobLoop's fetcher waits for a slot, begins the job itself and returns nothing."""

    async def fetch_twice(scaler: Any) -> list[int]:
        asked: list[int] = []

        async def fetcher(_: Any, most: int) -> None:
            asked.append(most)
            if len(asked) == 2:
                scaler.kill_worker()

        scaler.jobs_fetcher, scaler.jobs_fetcher_timeout = fetcher, None
        await asyncio.wait_for(scaler.get_jobs(None), 10)
        return asked

    assert scaled(rp_scale, fetch_twice) == [3, 3]


def test_a_job_that_was_handled_is_forgotten_by_its_queue_and_its_tables(rp_scale: Any) -> None:
    """Why JobLoop passes each job through the queue although it begins with it at once."""

    async def handle(scaler: Any) -> tuple[int, dict[str, Any], list[Any]]:
        handled: list[Any] = []
        job = {"id": "one", "input": {}}

        async def handler(*given: Any) -> None:
            handled.append(given[2])

        scaler.jobs_handler = handler
        scaler.job_progress.add(job)
        scaler.jobs_queue.put_nowait(job)
        scaler.jobs_queue.get_nowait()
        scaler.jobs_tasks["one"] = asyncio.ensure_future(scaler.handle_job(None, job))
        await scaler.jobs_tasks["one"]
        await asyncio.wait_for(scaler.jobs_queue.join(), 10)
        return scaler.job_progress.get_job_count(), scaler.jobs_tasks, handled

    assert scaled(rp_scale, handle) == (0, {}, [{"id": "one", "input": {}}])


def test_stopping_a_job_cancels_its_task_and_says_whether_there_is_one(rp_scale: Any) -> None:
    async def stop(scaler: Any) -> tuple[bool, bool, bool]:
        task = asyncio.ensure_future(asyncio.sleep(60))
        scaler.jobs_tasks["one"] = task
        found = await scaler.stop_job("one"), await scaler.stop_job("two")
        await asyncio.wait({task}, timeout=10)
        return *found, task.cancelled()

    assert scaled(rp_scale, stop) == (True, False, True)


def test_an_end_is_only_noted_for_the_loop_to_see(rp_scale: Any) -> None:
    """`kill_worker` is called by a signal handler, in between whatever the loop is at."""

    async def end(scaler: Any) -> tuple[bool, bool]:
        before = scaler.is_alive()
        scaler.kill_worker()
        return before, scaler.is_alive()

    assert scaled(rp_scale, end) == (True, False)


def test_progress_is_sent_by_these_functions() -> None:
    from runpod.http_client import AsyncClientSession
    from runpod.serverless.modules.rp_http import send_result

    sent = list(inspect.signature(send_result).parameters.values())
    assert [p.name for p in sent[:3]] == ["session", "job_data", "job"]
    assert all(p.default is not p.empty for p in sent[3:])
    assert inspect.iscoroutinefunction(send_result)
    inspect.signature(AsyncClientSession).bind()


def test_the_checks_that_import_torch_are_skipped_by_these_variables() -> None:
    from runpod.serverless.modules import rp_fitness, rp_gpu_fitness

    sources = inspect.getsource(rp_fitness) + inspect.getsource(rp_gpu_fitness)
    for name in ("RUNPOD_SKIP_AUTO_SYSTEM_CHECKS", "RUNPOD_SKIP_GPU_CHECK"):
        assert name in sources


def test_the_sdk_is_imported_without_what_only_its_command_line_and_debugger_use() -> None:
    """The debugger would query the CPU's name, counting ticks for a second."""
    script = """
import sys
from handler.sdk import import_sdk
import_sdk()
unused = {"cpuinfo", "paramiko", "tomlkit", "cryptography"}
assert not unused & sys.modules.keys(), unused & sys.modules.keys()
from runpod.cli.groups.config import functions as config
from runpod.cli.groups.ssh import functions as ssh
from runpod.serverless.utils.rp_debugger import PROCESSOR
assert ssh.paramiko.RSAKey and config.tomlkit.parse("a = 1")["a"] == 1
assert issubclass(config.tomlkit.exceptions.ParseError, Exception)
import cpuinfo, paramiko, tomlkit
assert paramiko.RSAKey is ssh.paramiko.RSAKey and cpuinfo.get_cpu_info is not dict
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)


def test_an_sdk_that_uses_such_a_module_during_its_own_import_gets_it(tmp_path: Path) -> None:
    (tmp_path / "runpod.py").write_text(
        "import cpuinfo, tomlkit\n"
        "assert tomlkit.parse('a = 1')['a'] == 1 and cpuinfo.get_cpu_info() == {}\n"
        "from tomlkit import document\n"
    )
    script = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import paramiko\n"
        "from handler.sdk import import_sdk\n"
        "assert import_sdk().document\n"
        "assert sys.modules['paramiko'] is paramiko and 'cpuinfo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=60)


def test_a_worker_whose_dev_shm_is_read_only_says_so_where_the_sdk_would_fail(
    demo: DemoVolume, tmp_path: Path
) -> None:
    """In a namespace of mounts of its own, which takes rights that not every machine gives."""
    mount = "mount -t tmpfs -o ro tmpfs /dev/shm"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], check=False).returncode != 0:
        pytest.skip("no namespace of mounts")
    with ControlPlane() as plane:
        env = environment(demo, tmp_path / "nowhere", tmp_path / "work") | plane.worker_env()
        serving = f"{mount} && exec {shlex.quote(sys.executable)} -m handler"
        done = subprocess.run(
            ["unshare", "-m", "sh", "-c", serving],
            cwd=ROOT,
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "Traceback" not in said, said
    assert "Fitness check failed" in said and "machine.locks_unusable" in said


_DESCRIBED = """
import sys
from handler.sdk import complete_local_api, import_sdk
import_sdk()
complete_local_api(lambda document: {**document, "x-ours": True})
print("fastapi" in sys.modules)
if "fastapi" in sys.modules:
    from runpod.serverless.modules.rp_fastapi import WorkerAPI
    api = WorkerAPI({"handler": lambda job: job, "rp_args": {}})
    print(api.rp_app.openapi()["x-ours"], "/runsync" in api.rp_app.openapi()["paths"])
"""


@pytest.mark.parametrize(
    ("arguments", "said"), [([], "False"), (["--rp_serve_api"], "True\nTrue True")]
)
def test_the_local_apis_document_can_be_added_to_and_costs_nothing_without_it(
    arguments: list[str], said: str
) -> None:
    """The web framework's import takes half a second of a cold start."""
    done = subprocess.run(
        [sys.executable, "-c", _DESCRIBED, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.strip() == said, done.stderr
