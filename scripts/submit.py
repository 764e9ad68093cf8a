#!/usr/bin/env python3
"""Send a workflow to an endpoint, watch it, save what it made.

    export RUNPOD_API_KEY=… RUNPOD_ENDPOINT_ID=…
    python3 scripts/submit.py workflow_api.json --set 6.text="a cat" --image photo.png=cat.png
    python3 scripts/submit.py workflow_api.json --url http://127.0.0.1:8000    # a local worker
    python3 scripts/submit.py --diagnostics --html worker.html

Needs Python 3.10 or newer with requests and tqdm. The paths of saved files go to standard output
(with --json the whole reply), everything else to standard error.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 10):  # noqa: UP036  # said before anything fails to parse
    sys.stderr.write(f"submit.py needs Python 3.10 or newer; this is {sys.version.split()[0]}\n")
    sys.exit(2)

import argparse
import errno
import math
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    from scripts.api_key import is_safe_for_a_key, usable_key
    from scripts.endpoint import PUBLIC_API, Endpoint, Job
    from scripts.preview import Previews
    from scripts.request_form import (
        RUN_LIMIT_BYTES,
        check_sendable,
        named_input,
        workflow_input,
    )
    from scripts.watching import Waiting, Watching
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(f"submit.py needs {missing.name}: python3 -m pip install requests tqdm", file=sys.stderr)
    sys.exit(2)

from bootstrap.core.terminal import Parser, as_typed, closing
from scripts.errors import EXIT_CODES, ClientError, EndpointError, TooSlow, UsageError
from scripts.outcome import Ended, report

_POLL_SECONDS = 1.0
DEFAULT_PORT = 8000  # of a local worker
_A_DAY = 86_400.0  # what a request's `max_wait` may be


class _OutOfTime(Exception):
    pass


def main(argv: list[str], env: Mapping[str, str] = os.environ, prog: str = "submit.py") -> int:
    """Send, watch, save; the exit code."""
    arguments = _parser(prog).parse_args(argv)
    begun = time.monotonic()
    with Watching() as watching:
        try:
            job_input = _input(arguments)
            endpoint = _endpoint(arguments, env, watching, prog)
            limit = math.inf if endpoint.local else RUN_LIMIT_BYTES
            check_sendable(job_input, limit, arguments.workflow or "")
            if not arguments.diagnostics:
                _check_room(arguments.output)
            previews = Previews(env, sys.stderr.isatty())
            ended = _run(endpoint, job_input, arguments.timeout, watching, previews)
            _save_preview(previews, arguments.output, watching)
        except ClientError as problem:
            ended = Ended(problem=problem)
        except KeyboardInterrupt:
            said = "Stopped before the endpoint had named the job."
            ended = Ended(problem=ClientError("client.interrupted", said))
    seconds = time.monotonic() - begun
    return report(ended, arguments.output, arguments.json, arguments.html, seconds)


def _parser(prog: str = "submit.py") -> argparse.ArgumentParser:
    command = as_typed("submit", prog)
    parser = Parser(
        prog=prog,
        description="Send a workflow to a Runpod endpoint or a local worker and save its results.",
        epilog=closing(
            {
                "RUNPOD_API_KEY": "the key; never on the command line",
                "RUNPOD_ENDPOINT_ID": "the endpoint, if --endpoint does not name it",
            },
            [
                f'{command} workflow_api.json --set 6.text="a cat"',
                f"{command} picture.png --url http://127.0.0.1:8000",
            ],
            EXIT_CODES,
        ),
    )
    add = parser.add_argument
    add(
        "workflow",
        nargs="?",
        help="workflow in API format, a picture that ComfyUI saved, or a whole request; - is stdin",
    )
    add("--set", action="append", default=[], metavar="NODE.INPUT=VALUE", help="replace an input")
    add("--name", metavar="NAME", help="a workflow on the endpoint's volume, instead of a file")
    add("--param", action="append", default=[], metavar="NAME=VALUE", help="with --name")
    add("--image", action="append", default=[], metavar="[NAME=]PATH", help="send an input image")
    add("--max-wait", type=_up_to(_A_DAY), metavar="S", help="seconds the worker may take for it")
    add(
        "--output",
        type=Path,
        default=Path("output"),
        metavar="DIR",
        help="where results go (default: %(default)s)",
    )
    add("--endpoint", metavar="ID", help="instead of RUNPOD_ENDPOINT_ID")
    add("--url", help="the local API of a worker, such as http://127.0.0.1:8000; gets no key")
    add(
        "--timeout",
        type=_up_to(7 * _A_DAY),  # Runpod keeps jobs no longer
        default=1800.0,
        metavar="S",
        help="cancel after so many seconds (default: %(default)g)",
    )
    add("--diagnostics", action="store_true", help="show a worker's diagnostics instead")
    add("--deep", action="store_true", help="with --diagnostics: also measure the volume")
    add("--html", type=Path, metavar="FILE", help="with --diagnostics: also write it as a page")
    add("--previews", action="store_true", help="show previews, and save the last one")
    add("--json", action="store_true", help="one JSON object on standard output")
    return parser


def _up_to(most: float) -> Callable[[str], float]:
    """The type of an option in seconds."""

    def seconds(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(
                f"'{text}' is not a number of seconds above 0, at most {most:,.0f}"
            )
        return value

    return seconds


def _input(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.diagnostics:
        if arguments.workflow or arguments.name or arguments.set or arguments.image:
            raise UsageError("--diagnostics goes without a workflow, --set and --image.")
        return {"type": "diagnostics", "deep": arguments.deep}
    if bool(arguments.workflow) == bool(arguments.name):
        raise UsageError("Name a workflow file in API format, or --name, or ask for --diagnostics.")
    if arguments.deep or arguments.html:
        raise UsageError("--deep and --html go with --diagnostics.")
    request = _workflow_input(arguments)
    if arguments.previews:
        request["progress"] = {**(request.get("progress") or {}), "previews": True}
    return request


def _workflow_input(arguments: argparse.Namespace) -> dict[str, Any]:
    about = (arguments.image, arguments.max_wait)
    if arguments.name:
        if arguments.set:
            raise UsageError("--set goes with a workflow file; with --name there is --param.")
        return named_input(arguments.name, arguments.param, *about)
    if arguments.param:
        raise UsageError("--param goes with --name; with a workflow file there is --set.")
    return workflow_input(arguments.workflow, arguments.set, *about)


def _endpoint(
    arguments: argparse.Namespace, env: Mapping[str, str], watching: Watching, prog: str
) -> Endpoint:
    if arguments.url:
        if not arguments.url.startswith(("http://", "https://")):
            raise UsageError(f"--url {arguments.url} does not begin with http:// or https://.")
        serve = _serving(arguments.url, prog)
        return Endpoint(arguments.url.rstrip("/"), None, watching.say, serve=serve)
    key = usable_key(env.get("RUNPOD_API_KEY"))
    endpoint_id = (arguments.endpoint or env.get("RUNPOD_ENDPOINT_ID", "")).strip()
    if not endpoint_id:
        raise UsageError(
            "RUNPOD_ENDPOINT_ID is not set.", "It is in the console's list of endpoints."
        )
    # The name the SDK knows it by.
    base = (env.get("RUNPOD_ENDPOINT_BASE_URL", "").strip() or PUBLIC_API).rstrip("/")
    if not is_safe_for_a_key(base):
        raise UsageError(f"RUNPOD_ENDPOINT_BASE_URL is {base}; the key is sent by https only.")
    return Endpoint(f"{base}/{quote(endpoint_id, safe='')}", key, watching.say)


def _serving(url: str, prog: str) -> str:
    """The command that starts the local worker that `url` means."""
    command = as_typed("serve --local", prog)
    with suppress(ValueError):
        if (port := urlsplit(url).port) not in (None, DEFAULT_PORT):
            option = "--rp_api_port" if "--rp_serve_api" in command else "--port"
            return f"{command} {option} {port}"
    return command


def _check_room(folder: Path) -> None:
    """Check before anything is paid for that results can be saved there. A folder created for that
    is removed again, since there may be no files."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as problem:
        raise UsageError(
            f"--output {folder} cannot be used: {problem.strerror}.", "Name another folder."
        ) from None
    finally:
        for place in missing:
            with suppress(OSError):  # another program has put a file in
                place.rmdir()


def _save_preview(previews: Previews, folder: Path, watching: Watching) -> None:
    try:
        place = previews.save(folder)
    except OSError as problem:
        watching.say(f"the preview could not be saved in {folder}: {problem.strerror}")
        return
    if place is not None:
        watching.say(f"last preview: {place}")


def _run(
    endpoint: Endpoint,
    job_input: dict[str, Any],
    timeout: float,
    watching: Watching,
    previews: Previews,
) -> Ended:
    if endpoint.local:
        return _run_locally(endpoint, job_input, timeout, watching)
    deadline = time.monotonic() + timeout
    job = endpoint.submit(job_input)
    watching.say(f"job {job.id}")
    waiting = Waiting(endpoint.health)
    pause = _POLL_SECONDS / 4  # a job of a warm worker may be done at once
    try:
        while not job.ended:
            if time.monotonic() >= deadline:
                raise _OutOfTime
            watching.show(job.status, job.output, waiting.words(job.status))
            watching.draw(previews.drawn(job.output))
            time.sleep(pause)
            pause = min(2 * pause, _POLL_SECONDS)
            job = endpoint.status(job.id)
    except EndpointError as problem:
        said = f"{problem.message} Job {job.id} may go on without being watched."
        return Ended(job, EndpointError(problem.code, said, problem.fix))
    except KeyboardInterrupt:
        stopped = f"Stopped. {_cancelled(endpoint, job)}"
        return Ended(job, ClientError("client.interrupted", stopped))
    except _OutOfTime:
        late = f"Not done within {timeout:g} s. {_cancelled(endpoint, job)}"
        return Ended(job, ClientError("client.timeout", late))
    return Ended(job)


def _run_locally(
    endpoint: Endpoint, job_input: dict[str, Any], timeout: float, watching: Watching
) -> Ended:
    endpoint.reach()
    watching.show("IN_PROGRESS", "running (a local worker reports no progress)")
    goes_on = "A local worker cannot cancel: it goes on."
    try:
        return Ended(endpoint.run_and_wait(job_input, timeout))
    except TooSlow:
        said = f"Not done within {timeout:g} s. {goes_on}"
        return Ended(problem=ClientError("client.timeout", said))
    except KeyboardInterrupt:
        return Ended(problem=ClientError("client.interrupted", f"Stopped. {goes_on}"))


def _cancelled(endpoint: Endpoint, job: Job) -> str:
    try:
        endpoint.cancel(job.id)
    except EndpointError as problem:
        return f"Job {job.id} could not be cancelled: {problem}"
    except KeyboardInterrupt:
        return f"Job {job.id} may go on: stopped again before it was cancelled."
    return f"Job {job.id} was cancelled."


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stopped, as by Ctrl-C
    sys.exit(main(sys.argv[1:]))
