"""A Runpod control plane on loopback, for tests and benchmarks of the real SDK.

It speaks the protocol of runpod 1.12.0 in production mode (see plane_protocol.py), hands out each
submitted job once, and keeps an ordered record of all that workers do.

    with ControlPlane() as plane:
        with WorkerProcess.module("handler", env=plane.worker_env()) as worker:
            job = plane.submit({"workflow": {...}})
            reply = plane.result(job)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.support.plane_http import LoopbackServer
from tests.support.plane_protocol import PlaneProtocol
from tests.support.plane_records import DROP, Event, Faults, Kind, PlaneTimeout
from tests.support.plane_state import PlaneState

__all__ = ["API_KEY", "DROP", "ENDPOINT", "ControlPlane", "Event", "Faults", "PlaneTimeout"]

ENDPOINT = "loopback-endpoint"
API_KEY = "loopback-api-key"
# Runpod takes 10 MB from /run and 20 MB from /runsync, and answers 400 to a job-done beyond that
# (https://docs.runpod.io/serverless/endpoints/send-requests). The smaller limit is the safe one.
RESULT_LIMIT_BYTES = 10_000_000


class ControlPlane:
    """`hold_seconds`: how long an empty take or stop poll is held before the 204. The SDK polls
    again at once, and after SIGTERM it waits for its open polls to end, so a few seconds at most.
    """

    def __init__(
        self, *, hold_seconds: float = 2.0, result_limit: int = RESULT_LIMIT_BYTES
    ) -> None:
        self.faults = Faults()
        self._state = PlaneState()
        self._protocol = PlaneProtocol(
            self._state, self.faults, hold_seconds=hold_seconds, result_limit=result_limit
        )
        self._server: LoopbackServer | None = None

    def __enter__(self) -> ControlPlane:
        self._server = LoopbackServer(self._protocol.answer)
        return self

    def __exit__(self, *_: object) -> None:
        self._state.close()
        if self._server is not None:
            self._server.close()

    def worker_env(
        self, worker_id: str = "worker-1", *, skip_fitness: bool = False, ping_seconds: int = 1
    ) -> dict[str, str]:
        """What Runpod puts into a worker's environment; merge it into the child's.

        `skip_fitness` leaves out the SDK's own checks of GPU, memory, disk and of the connection
        to 8.8.8.8:53, which fails in a sandbox without internet. Checks that the worker itself
        registers still run. `ping_seconds` is 1 or more: the SDK divides milliseconds by 1000
        as integers, and a timeout of 0 ends its ping process.
        """
        if self._server is None:
            raise RuntimeError("enter the ControlPlane first: it has no address yet")
        if ping_seconds < 1:
            raise ValueError(f"ping_seconds is {ping_seconds}; allowed: 1 or more")
        base = f"{self._server.url}/v2/{ENDPOINT}"
        # The SDK appends `&…` to most of them, so each has its `?` already, as Runpod's have.
        gpu = "?gpu=NVIDIA+L4"
        env = {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID{gpu}",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID{gpu}",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID{gpu}",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID{gpu}",
            "RUNPOD_PING_INTERVAL": str(ping_seconds * 1000),
            "RUNPOD_POD_ID": worker_id,
            "RUNPOD_ENDPOINT_ID": ENDPOINT,
            "RUNPOD_AI_API_KEY": API_KEY,
            # requests, which sends the pings, would ask a proxy for 127.0.0.1.
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        if skip_fitness:
            env |= {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true", "RUNPOD_SKIP_GPU_CHECK": "true"}
        return env

    def submit(self, job_input: Any, job_id: str | None = None) -> str:
        """Queue `{"id": …, "input": job_input}`; returns its id."""
        job_id = job_id or self._state.fresh_name("job")
        self._state.enqueue(job_id, {"id": job_id, "input": job_input})
        return job_id

    def submit_raw(self, body: Any) -> str:
        """Queue a job exactly as given: any JSON value, or bytes that need not be JSON.

        Bytes are the whole answer to one take. Returns the name that events have it under: its id
        if that is a string, else `raw-N`.
        """
        own_id = body.get("id") if isinstance(body, dict) else None
        name = own_id if isinstance(own_id, str) else self._state.fresh_name("raw")
        self._state.enqueue(name, body)
        return name

    def cancel(self, job_id: str) -> None:
        """Cancel as /cancel does: drop a waiting job, send the worker a stop for one handed out."""
        self._state.cancel(job_id)

    def cancel_ahead(self, job_id: str, worker_id: str = "worker-1") -> None:
        """Send a worker a stop for a job it does not have yet, as when a cancel overtakes it."""
        self._state.send_stop(worker_id, job_id)

    def result(self, job_id: str, timeout: float = 60) -> Any:
        """The first job-done body that was accepted for this job; PlaneTimeout after `timeout`."""
        return self._state.result(job_id, timeout)

    def wait_for(
        self, kind: Kind, job_id: str | None = None, *, count: int = 1, timeout: float = 30
    ) -> Event:
        """The `count`-th event of this kind (of this job), waiting up to `timeout` seconds."""
        what = f"{kind} number {count}" + (f" of {job_id}" if job_id else "")
        self._state.wait(lambda: len(self.select(kind, job_id)) >= count, timeout, what)
        return self.select(kind, job_id)[count - 1]

    def select(self, kind: Kind | None = None, job_id: str | None = None) -> list[Event]:
        """The events so far of this kind and this job; None leaves a condition out."""
        return self._state.select(kind, job_id)

    @property
    def events(self) -> list[Event]:
        """All that happened so far, in order of arrival."""
        return self._state.select()

    @property
    def pending(self) -> list[str]:
        """Jobs that no worker has taken yet."""
        return self._state.pending()

    @property
    def handed_out(self) -> list[str]:
        """Jobs that workers have taken, in that order, finished ones too."""
        return self._state.handed_out()

    @property
    def polls(self) -> Mapping[str, int]:
        """How often workers polled: {"take": n, "stop": n}."""
        return dict(self._state.polls)

    def recent(self, count: int = 25) -> str:
        """The last events and what is waiting, as readable text."""
        return self._state.recent(count)
