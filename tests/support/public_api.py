"""Runpod's public API on loopback, in front of a control plane: what clients talk to.

    with ControlPlane() as plane, PublicApi(plane) as api:
        requests.post(f"{api.url}/run", headers=…, json={"input": {…}})

Paths and answers are those of https://docs.runpod.io/serverless/endpoints/send-requests:

    POST /v2/<endpoint>/run            {"id", "status": "IN_QUEUE"}
    POST /v2/<endpoint>/runsync        the ended job, or its state when that takes too long
    GET  /v2/<endpoint>/status/<job>   {"id", "status", "output"?, "error"?}
    POST /v2/<endpoint>/cancel/<job>   {"id", "status": "CANCELLED"}
    GET  /v2/<endpoint>/health         {"jobs": {…}, "workers": {…}}
"""

from __future__ import annotations

import json
import re
import threading
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.support.control_plane import ENDPOINT, ControlPlane
from tests.support.plane_http import Answer, LoopbackServer, Request
from tests.support.waiting import wait_until

CLIENT_KEY = "rpa_LOOPBACKCLIENTKEY0123456789"
# Instead of an answer: hang up, whether the request was handled or not.
HANG_UP = None
_PATH = re.compile(r"/v2/(?P<endpoint>[^/]+)/(?P<call>[a-z-]+)(?:/(?P<job>.+))?")
_REQUEST_LIMIT = {"run": 10_000_000, "runsync": 20_000_000}


class PublicApi:
    """`sync_seconds`: how long /runsync waits for the job before it answers with its state."""

    def __init__(self, plane: ControlPlane, *, sync_seconds: float = 60.0) -> None:
        self._plane = plane
        self._sync_seconds = sync_seconds
        self._cancelled: set[str] = set()
        self._faults: dict[str, deque[Answer | None]] = {}
        self._closing = threading.Event()
        self._server: LoopbackServer | None = None
        self.requests: list[Request] = []
        self.lose_answers_to_run = 0  # for that many requests, queue the job and hang up

    def __enter__(self) -> PublicApi:
        self._server = LoopbackServer(self._answer)
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        if self._server is not None:
            self._server.close()

    @property
    def base(self) -> str:
        """The counterpart of `https://api.runpod.ai/v2`."""
        assert self._server is not None
        return f"{self._server.url}/v2"

    @property
    def url(self) -> str:
        return f"{self.base}/{ENDPOINT}"

    def client_env(self) -> dict[str, str]:
        """Variables that make a client come here instead."""
        return {
            "RUNPOD_API_KEY": CLIENT_KEY,
            "RUNPOD_ENDPOINT_ID": ENDPOINT,
            "RUNPOD_ENDPOINT_BASE_URL": self.base,
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def answer_next(self, call: str, *answers: Answer | None) -> None:
        """Give the next requests of this kind these answers, then answer normally."""
        self._faults.setdefault(call, deque()).extend(answers)

    def _answer(self, request: Request) -> Answer | None:
        self.requests.append(request)
        match = _PATH.fullmatch(request.path)
        if match is None:
            return Answer(404)
        if self._faults.get(match["call"]):
            return self._faults[match["call"]].popleft()
        if request.headers.get("authorization") != f"Bearer {CLIENT_KEY}":
            return Answer(401)
        call = self._calls().get(f"{request.method} {match['call']}")
        if call is None or match["endpoint"] != ENDPOINT:
            return Answer(404)
        return call(request, match["job"] or "")

    def _calls(self) -> dict[str, Callable[[Request, str], Answer | None]]:
        return {
            "POST run": self._run,
            "POST runsync": self._runsync,
            "GET status": lambda _, job: _json(self._state(job)),
            "POST cancel": self._cancel,
            "GET health": self._health,
        }

    def _run(self, request: Request, _: str) -> Answer | None:
        body = _body_within(request, "run")
        if isinstance(body, Answer):
            return body
        job = self._queue(body, "")
        if self.lose_answers_to_run:
            self.lose_answers_to_run -= 1
            return HANG_UP
        return _json({"id": job, "status": "IN_QUEUE"})

    def _runsync(self, request: Request, _: str) -> Answer:
        body = _body_within(request, "runsync")
        if isinstance(body, Answer):
            return body
        job = self._queue(body, "sync-")

        def ended() -> bool:
            state = self._state(job)
            over = state is None or state["status"] not in ("IN_QUEUE", "IN_PROGRESS")
            return over or request.client_gone() or self._closing.is_set()

        try:
            wait_until(ended, self._sync_seconds)
        except AssertionError:
            pass
        return _json(self._state(job))

    def _queue(self, body: Any, prefix: str) -> str:
        return self._plane.submit_raw({**body, "id": f"{prefix}{uuid.uuid4()}-u1"})

    def _cancel(self, _: Request, job: str) -> Answer:
        state = self._state(job)
        if state is None:
            return Answer(404)
        if state["status"] in ("IN_QUEUE", "IN_PROGRESS"):
            self._plane.cancel(job)
            self._cancelled.add(job)
        return _json(self._state(job))

    def _health(self, _: Request, __: str) -> Answer:
        done, taken = self._plane.select("done"), self._plane.handed_out
        workers = {event.worker for event in self._plane.select("ready")}
        jobs = {"completed": len(done), "inProgress": len(taken) - len(done)}
        return _json(
            {
                "jobs": {**jobs, "inQueue": len(self._plane.pending), "failed": 0, "retried": 0},
                "workers": {"ready": len(workers), "running": 0, "idle": 0, "initializing": 0},
            }
        )

    def _state(self, job: str) -> dict[str, Any] | None:
        """A job as /status reports it; None for an unknown one."""
        if not self._plane.select("submit", job):
            return None
        if job in self._cancelled:
            return {"id": job, "status": "CANCELLED"}
        done = self._plane.select("done", job)
        if done:
            return {"id": job, **_ended(done[0].body, done[0].status)}
        if job in self._plane.pending:
            return {"id": job, "status": "IN_QUEUE"}
        reported = self._plane.select("progress", job)
        progress = {"output": reported[-1].body["output"]} if reported else {}
        return {"id": job, "status": "IN_PROGRESS", **progress}


def _ended(body: Any, status: int | None) -> dict[str, Any]:
    """A result that was rejected for its size leaves the job completed, without output."""
    if status != 200:
        return {"status": "COMPLETED"}
    return {"status": "FAILED" if body.get("error") else "COMPLETED", **body}


def _body_within(request: Request, call: str) -> Any:
    """The body, or the error for one that is too large or not a job."""
    if len(request.body) > _REQUEST_LIMIT[call]:
        return Answer(413, b'{"error": "request too large"}')
    try:
        body = json.loads(request.body)
    except ValueError:
        return Answer(400, b'{"error": "not JSON"}')
    if not isinstance(body, dict) or "input" not in body:
        return Answer(400, b'{"error": "input is required"}')
    return body


def _json(value: Any) -> Answer:
    return Answer(404) if value is None else Answer(200, json.dumps(value).encode())
