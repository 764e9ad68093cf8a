"""What Runpod's control plane answers to a worker, request by request.

The paths and bodies are those of runpod 1.12.0 (serverless/modules/rp_job.py, rp_http.py,
rp_ping.py, rp_fitness.py):

    GET  /v2/<endpoint>/job-take/<worker>?…               one job, long poll
    GET  /v2/<endpoint>/job-take-batch/<worker>?…&batch_size=N   a list of jobs
    GET  /v2/<endpoint>/job-stop/<worker>?…               {"jobsToStop": [id]}, long poll
    POST /v2/<endpoint>/job-done/<worker>/<job>?…         results, and progress updates
    POST /v2/<endpoint>/job-stream/<worker>/<job>?…       what a generator handler yields
    GET  /v2/<endpoint>/ping/<worker>?…                   heartbeat, or status=unhealthy
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from tests.support.plane_http import Answer, Request
from tests.support.plane_records import DROP, Faults, Faulty, Kind, now
from tests.support.plane_state import PlaneState

_PATH = re.compile(r"/v2/[^/]+/(?P<route>[a-z-]+)/(?P<worker>[^/]+)(?:/(?P<job>.+))?")
_POLL_SECONDS = 0.05


class PlaneProtocol:
    """Answers a worker's requests out of `state`, unless a fault is due.

    `hold_seconds`: how long an empty take or stop poll is held. `result_limit`: bytes.
    """

    def __init__(
        self, state: PlaneState, faults: Faults, *, hold_seconds: float, result_limit: int
    ) -> None:
        self._state = state
        self._faults = faults
        self._hold_seconds = hold_seconds
        self._result_limit = result_limit

    def answer(self, request: Request) -> Answer | None:
        match = _PATH.fullmatch(request.path)
        route = f"{request.method} {match['route']}" if match else ""
        if match and route in ("GET job-take", "GET job-take-batch"):
            return self._take(request, match["worker"], batch=route.endswith("batch"))
        if match and route == "GET job-stop":
            return self._stop(request, match["worker"])
        if match and route == "GET ping":
            return self._ping(request, match["worker"])
        if match and route in ("POST job-done", "POST job-stream") and match["job"]:
            return self._post(request, match["worker"], match["job"], route.endswith("stream"))
        self._state.record("unknown", body=f"{request.method} {request.path}", status=404)
        return Answer(404)

    def _take(self, request: Request, worker: str, *, batch: bool) -> Answer | None:
        self._state.note_first_take(worker)
        if (status := self._fault("take")) is not None:
            return _plain(status)
        size = int(request.query["batch_size"]) if batch else 1
        jobs = self._hold(request, "take", lambda: self._hand_out(request, worker, size))
        if not jobs:
            return Answer(204)
        if isinstance(jobs[0], bytes):
            return Answer(200, jobs[0])
        return Answer(200, _encode(jobs if batch else jobs[0]))

    def _hand_out(self, request: Request, worker: str, size: int) -> list[Any]:
        if self._faults.hold_jobs:
            return []
        taken = self._state.hand_out(worker, size)
        for name, body in taken:
            self._state.record(
                "take",
                worker=worker,
                job_id=name,
                body=body,
                status=200,
                query=request.query,
                headers=request.headers,
            )
        return [body for _, body in taken]

    def _stop(self, request: Request, worker: str) -> Answer | None:
        if (status := self._fault("stop")) is not None:
            return _plain(status)
        ids = self._hold(request, "stop", lambda: self._state.take_stops(worker))
        for job_id in ids:
            self._state.record("stop", worker=worker, job_id=job_id, status=200)
        return Answer(200, _encode({"jobsToStop": ids})) if ids else Answer(204)

    def _hold(self, request: Request, poll: str, look: Callable[[], list[Any]]) -> list[Any]:
        """What `look` finds before the hold ends. Nothing is given to a client that hung up:
        a worker killed while its take was held must not swallow the next worker's job."""
        state = self._state
        deadline = now() + self._hold_seconds
        with state.changed:
            state.polls[poll] += 1
            while now() < deadline and not state.closing.is_set() and not request.client_gone():
                if found := look():
                    return found
                state.changed.wait(_POLL_SECONDS)
        return []

    def _post(self, request: Request, worker: str, job_id: str, stream: bool) -> Answer | None:
        text = request.body.decode("utf-8", errors="replace")
        body, is_json = _strict_json(text)
        in_progress = isinstance(body, dict) and body.get("status") == "IN_PROGRESS"
        kind: Faulty = "stream" if stream else "progress" if in_progress else "done"
        status = self._faults.next_status(kind)
        if status is None:
            status = 200 if is_json and len(request.body) <= self._result_limit else 400
        self._state.record(
            kind,
            at=request.at,
            worker=worker,
            job_id=job_id,
            body=body,
            status=status,
            text=text,
            query=request.query,
            headers=request.headers,
        )
        # After the record, so that events are in order of arrival; before the result, so that it
        # is not available before the worker could have finished sending it.
        self._delay(kind)
        if kind == "done" and 200 <= status < 300:
            self._state.accept_result(job_id, body)
        return _plain(status)

    def _ping(self, request: Request, worker: str) -> Answer | None:
        kind: Kind = "unhealthy" if request.query.get("status") == "unhealthy" else "ping"
        fault = self._fault("ping")
        status = 200 if fault is None else fault
        self._state.record(
            kind, worker=worker, body=request.query, status=status, headers=request.headers
        )
        return _plain(status)

    def _fault(self, kind: Faulty) -> int | None:
        self._delay(kind)
        return self._faults.next_status(kind)

    def _delay(self, kind: Faulty) -> None:
        self._state.closing.wait(self._faults.delay.get(kind, 0))
        while kind in self._faults.held and not self._state.closing.wait(_POLL_SECONDS):
            pass


def _plain(status: int) -> Answer | None:
    return None if status == DROP else Answer(status, b"{}")


def _encode(value: Any) -> bytes:
    return json.dumps(value).encode()


def _strict_json(text: str) -> tuple[Any, bool]:
    """The value and True, or None and False. NaN and Infinity are Python's, not JSON's."""

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse), True
    except ValueError:
        return None, False
