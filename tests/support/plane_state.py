"""A control plane's state: jobs, which worker took them, their results, and all events."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from tests.support.plane_records import Event, Kind, PlaneTimeout, now


class PlaneState:
    """Shared by the server's threads and the test; every change wakes all who wait on it."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.closing = threading.Event()
        self.polls = {"take": 0, "stop": 0}
        self._events: list[Event] = []
        self._pending: deque[tuple[str, Any]] = deque()
        self._known: set[str] = set()
        self._taken_by: dict[str, str] = {}
        self._results: dict[str, Any] = {}
        self._stops: dict[str, list[str]] = {}
        self._started = now()

    def close(self) -> None:
        self.closing.set()
        with self.changed:
            self.changed.notify_all()

    # --- jobs ---------------------------------------------------------------------------------

    def fresh_name(self, prefix: str) -> str:
        return f"{prefix}-{len(self._known) + 1}"

    def enqueue(self, name: str, body: Any) -> None:
        with self.changed:
            if name in self._known:
                raise ValueError(f"job {name} was submitted before: a job is handed out once")
            self._known.add(name)
            self._pending.append((name, body))
            self.record("submit", job_id=name, body=body)

    def hand_out(self, worker: str, size: int) -> list[tuple[str, Any]]:
        """Up to `size` waiting jobs. Bytes go alone: they are a whole answer, not a list item."""
        taken: list[tuple[str, Any]] = []
        with self.changed:
            while self._pending and len(taken) < size:
                alone = isinstance(self._pending[0][1], bytes)
                if alone and taken:
                    break
                name, body = self._pending.popleft()
                self._taken_by[name] = worker
                taken.append((name, body))
                if alone:
                    break
        return taken

    def cancel(self, job_id: str) -> None:
        with self.changed:
            self._pending = deque(job for job in self._pending if job[0] != job_id)
            if job_id in self._taken_by and job_id not in self._results:
                self._stops.setdefault(self._taken_by[job_id], []).append(job_id)
            self.record("cancel", job_id=job_id)

    def send_stop(self, worker: str, job_id: str) -> None:
        with self.changed:
            self._stops.setdefault(worker, []).append(job_id)

    def take_stops(self, worker: str) -> list[str]:
        with self.changed:
            return self._stops.pop(worker, [])

    def accept_result(self, job_id: str, body: Any) -> None:
        """Keep the first result; a second one stays visible in the events."""
        with self.changed:
            self._results.setdefault(job_id, body)
            self.changed.notify_all()

    def result(self, job_id: str, timeout: float) -> Any:
        self.wait(lambda: job_id in self._results, timeout, f"accepted result of {job_id}")
        return self._results[job_id]

    def pending(self) -> list[str]:
        with self.changed:
            return [name for name, _ in self._pending]

    def handed_out(self) -> list[str]:
        with self.changed:
            return list(self._taken_by)

    # --- events -------------------------------------------------------------------------------

    def record(self, kind: Kind, *, at: float | None = None, **fields: Any) -> None:
        """`at`: when it happened, by time.monotonic(), if before now."""
        with self.changed:
            self._events.append(Event(kind, now() if at is None else at, **fields))
            self.changed.notify_all()

    def note_first_take(self, worker: str) -> None:
        with self.changed:
            if all(event.worker != worker for event in self.select("ready")):
                self.record("ready", worker=worker)

    def select(self, kind: Kind | None = None, job_id: str | None = None) -> list[Event]:
        with self.changed:
            return [
                event
                for event in self._events
                if kind in (None, event.kind) and job_id in (None, event.job_id)
            ]

    def wait(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        with self.changed:
            if not self.changed.wait_for(condition, timeout):
                raise PlaneTimeout(f"no {what} within {timeout} s\n{self.recent()}")

    def recent(self, count: int = 25) -> str:
        lines = [event.line(self._started) for event in self.select()[-count:]]
        waiting = f"pending {self.pending()}, handed out {self.handed_out()}, polls {self.polls}"
        return "\n".join([*(lines or ["nothing has happened"]), waiting])
