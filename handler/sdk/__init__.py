"""Runpod's loop: taking jobs, progress, shutdown. The only room that uses the SDK's internals."""

from __future__ import annotations

import errno
import importlib
import json
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from types import ModuleType
from typing import Any

from bootstrap.core.findings import Finding, error

# Modules, not names: `job_loop` imports the SDK, which takes a second.
__all__ = [
    "check_arguments",
    "complete_local_api",
    "import_sdk",
    "job_loop",
    "job_slots",
    "progress",
    "shutdown",
]
CODES = {"worker.cannot_listen": "The local API cannot listen on the address or port it is given"}
_PORT, _LAST_PORT = 8000, 65535
_NO_SUCH_ADDRESS = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


def import_sdk() -> Any:
    """Import the SDK without its own system checks: they import torch into this process, which
    leaves a CUDA context there, and check the host's memory instead of the container's."""
    os.environ.setdefault("RUNPOD_SKIP_AUTO_SYSTEM_CHECKS", "true")
    os.environ.setdefault("RUNPOD_SKIP_GPU_CHECK", "true")
    os.environ.setdefault("RUNPOD_LOG_LEVEL", "INFO")  # DEBUG, its default, logs whole results
    with _without_unused_modules():
        import runpod

    return runpod


def check_arguments() -> None:
    """Exit now, not after ComfyUI has been started in vain, if this program's arguments are wrong,
    only ask for help, or name a port that is taken."""
    if not sys.argv[1:]:
        return
    import_sdk()
    from runpod.serverless import parser

    from bootstrap.core.terminal import WRONG_USE, report

    given, _ = parser.parse_known_args()
    try:
        json.loads(given.test_input or "{}")
    except ValueError as problem:
        parser.error(f"--test_input is not valid JSON: {problem}")
    if given.rp_serve_api:
        fault = local_api_fault(given.rp_api_host, given.rp_api_port, sys.argv[0])
        if fault is not None:
            report([fault], sys.stderr)
            sys.exit(WRONG_USE)


def local_api_fault(host: str, port: int, program: str) -> Finding | None:
    """Why the local API cannot listen there, and what to type instead; None if it can. `program` is
    `comfyui-worker serve`, or a path where it is run as a module."""
    problem = _cannot_listen(host, port)
    if problem is None:
        return None
    why = getattr(problem, "strerror", None) or str(problem)
    at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    as_module = os.sep in program
    typed = "python -m handler --rp_serve_api" if as_module else f"{program} --local"
    for option, value in _other(problem, host, port):
        typed += f" --{'rp_api_' if as_module else ''}{option} {value}"
    return error(
        "worker.cannot_listen",
        f"The local API cannot listen on {at} ({why}).",
        f"Choose another one: `{typed}`",
    )


def _cannot_listen(host: str, port: int) -> Exception | None:
    """What the local API would fail with: it listens on all addresses of a name that exist here."""
    if not 1 <= port <= _LAST_PORT:
        return OSError(errno.ERANGE, f"a port is a number from 1 to {_LAST_PORT}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as problem:
        return problem
    problems = [_cannot_bind(family, address) for family, *_, address in found]
    grave = [p for p in problems if p is not None and p.errno not in _NO_SUCH_ADDRESS]
    return next(iter(grave), None if None in problems else problems[0])


def _cannot_bind(family: int, address: tuple[Any, ...]) -> OSError | None:
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as problem:
        return problem
    return None


def _other(problem: Exception, host: str, port: int) -> Iterator[tuple[str, str | int]]:
    """Options for an address that can be listened on."""
    if getattr(problem, "errno", None) not in (errno.EADDRINUSE, errno.EACCES, errno.ERANGE):
        if port != _PORT:
            yield "port", port  # on the usual host
        return
    if host not in ("127.0.0.1", "localhost"):
        yield "host", host
    near = range(max(port, _PORT), min(max(port, _PORT) + 100, _LAST_PORT))
    free = (other for other in (*near, _PORT) if _cannot_listen(host, other) is None)
    yield "port", next(free, _PORT)


@dataclass
class LocalJob:
    """A job for the local API; as on an endpoint, the handler judges `input`, even if absent."""

    input: Any = None
    webhook: str | None = None


def complete_local_api(describe: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Make the local API's (`--rp_serve_api`) `/openapi.json` what `describe` makes of the SDK's
    own, and let it take and answer jobs as an endpoint does: the SDK's takes only an object as
    `input`, and its answer to a failed job has the sentence without `output`. Does nothing without
    that API, whose import takes half a second."""
    if "--rp_serve_api" not in sys.argv:
        return
    from runpod.serverless.modules import rp_fastapi

    begin, run = rp_fastapi.WorkerAPI.__init__, rp_fastapi.run_job
    output: ContextVar[Any] = ContextVar("output", default=None)

    def with_description(api: Any, config: dict[str, Any]) -> None:
        begin(api, config)
        own = api.rp_app.openapi
        api.rp_app.openapi = lambda: describe(own())

    async def noted(*given: Any) -> dict[str, Any]:
        ended: dict[str, Any] = await run(*given)
        output.set(ended.get("output"))
        return ended

    def with_output(answer: Callable[..., Awaitable[dict[str, Any]]]) -> Any:
        @wraps(answer)  # the SDK's web framework reads its parameters
        async def complete(*given: Any, **named: Any) -> dict[str, Any]:
            ended = await answer(*given, **named)
            return {"output": output.get(), **ended}

        return complete

    rp_fastapi.WorkerAPI.__init__ = with_description
    rp_fastapi.run_job = noted
    for name in ("_sim_run", "_sim_runsync"):
        getattr(rp_fastapi.WorkerAPI, name).__annotations__["job_request"] = LocalJob
    for name in ("_sim_runsync", "_sim_status"):
        setattr(rp_fastapi.WorkerAPI, name, with_output(getattr(rp_fastapi.WorkerAPI, name)))


class _Later(ModuleType):
    """Stands for a module, which is imported when one of its names is used."""

    def __getattr__(self, name: str) -> Any:
        self.step_aside()
        return getattr(importlib.import_module(self.__name__), name)

    def step_aside(self) -> None:
        """From now on `import` finds the module itself."""
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]


@contextmanager
def _without_unused_modules() -> Iterator[None]:
    """Keep the SDK from importing what only its command line uses, a quarter of its own import, and
    from querying the CPU's name for its debugger, which starts processes and takes a second."""
    names = [name for name in ("cpuinfo", "paramiko", "tomlkit") if name not in sys.modules]
    stand_ins = {name: _Later(name) for name in names}
    if "cpuinfo" in stand_ins:
        vars(stand_ins["cpuinfo"])["get_cpu_info"] = dict
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for stand_in in stand_ins.values():
            stand_in.step_aside()
