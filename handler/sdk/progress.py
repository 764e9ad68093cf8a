"""Sends a job's progress to its caller: in order, not too often, and never after the reply.

The SDK's own `progress_update` sends each update from a new thread: they overtake each other, and
one that arrives after the result leaves the job IN_PROGRESS forever. So one task sends updates one
by one, only the newest, and `drain` ends it before the reply is sent.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from handler.common.blocking import is_set_within
from handler.common.reply import postable

_log = logging.getLogger(__name__)

SECONDS_APART = 1.0  # between updates of one stage; a new stage is sent at once
_DRAIN_SECONDS = 5.0
Post = Callable[[dict[str, Any]], Awaitable[None]]


class Progress:
    """One job's progress. Create it in the event loop; `update` may be called from any thread.

    `post` delivers one update; None uses the SDK, if it has a control plane. Without one (the SDK's
    local modes, tests) nothing is sent, nor in the first `quiet` seconds: a reply waits for the
    update being sent, so short jobs send none.
    """

    def __init__(
        self, job: Mapping[str, Any], post: Post | None = None, quiet: float = 0.0
    ) -> None:
        self._quiet_until = time.monotonic() + quiet
        self._post = post or (_through_the_sdk(job) if has_control_plane() else None)
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._news: dict[str, Any] | None = None
        self._last: dict[str, Any] | None = None
        self._preview: str | None = None
        self._sent_stage: object = None
        self._closed = False
        self._has_news = asyncio.Event()
        self._posting = asyncio.Lock()
        self._sender: asyncio.Task[None] | None = None

    def update(self, stage: str, percent: float | None = None, **more: Any) -> None:
        """The job is in `stage`, `percent` (0 to 100) done. Cheap, and never raises; of updates
        that come too fast only the newest is sent."""
        if self._post is None:
            return
        news = {"stage": stage, **more}
        if percent is not None:
            news["percent"] = round(min(max(percent, 0.0), 100.0), 1)
        self._put(news)

    def preview(self, image: str) -> None:
        """Send `image`, a data URI, with each update of the current stage, until another stage or a
        newer image."""
        with self._lock:
            news = self._news or self._last
            self._preview = None if news is None else image
        if self._post is not None and news is not None:
            self._put(news)

    def _put(self, news: dict[str, Any]) -> None:
        stage = news["stage"]
        with self._lock:
            if self._last is not None and self._last["stage"] != stage:
                self._preview = None
            # The waiting sender checks by itself; wake it only for what cannot wait.
            idle = self._news is None or self._news["stage"] != stage
            self._news = self._last = news
        if idle and not self._closed:
            try:
                self._loop.call_soon_threadsafe(self._wake)
            except RuntimeError:
                pass  # the loop is closed: the job is over

    async def drain(self) -> None:
        """Send nothing more: wait for the update being sent, drop later ones."""
        self._closed = True
        if self._sender is None:
            return
        try:
            await asyncio.wait_for(self._posting.acquire(), _DRAIN_SECONDS)
        except asyncio.TimeoutError:
            pass  # cancelled below, which closes its connection
        finally:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)

    def _wake(self) -> None:
        self._has_news.set()
        if self._sender is None and not self._closed:
            self._sender = asyncio.create_task(self._send_all())

    async def _send_all(self) -> None:
        sent_at = -SECONDS_APART
        await asyncio.sleep(max(self._quiet_until - time.monotonic(), 0.0))
        while True:
            await self._has_news.wait()
            await self._wait_until_due(sent_at)
            async with self._posting:
                with self._lock:
                    update, self._news = self._news, None
                    if update is not None and self._preview is not None:
                        update = {**update, "preview": self._preview}
                    self._has_news.clear()
                if update is not None:
                    sent_at = time.monotonic()
                    self._sent_stage = update["stage"]
                    await self._send(update)

    async def _wait_until_due(self, sent_at: float) -> None:
        """Wait until the newest update is of another stage than the last one sent, or is due."""
        while (rest := sent_at + SECONDS_APART - time.monotonic()) > 0:
            with self._lock:
                if self._news is not None and self._news["stage"] != self._sent_stage:
                    return
            self._has_news.clear()
            if not await is_set_within(self._has_news, rest):
                return

    async def _send(self, update: dict[str, Any]) -> None:
        assert self._post is not None
        try:
            await self._post(postable({**update, "message": in_words(update)}))
        except Exception as problem:  # noqa: BLE001 - a job does not fail for this
            _log.warning("could not send progress: %s: %s", type(problem).__name__, problem)


def in_words(update: Mapping[str, Any]) -> str:
    """An update as one line, for clients that show only that."""
    parts = [str(update[name]) for name in ("class_type", "model", "detail") if update.get(name)]
    if update.get("steps"):
        parts.append(f"step {update.get('step', 0):g} of {update['steps']:g}")
    if "position" in update:
        parts.append(f"position {update['position']} in the queue")
    return ", ".join(parts) or str(update["stage"])


def has_control_plane() -> bool:
    """Does the SDK have a control plane? It has none in its local modes and in tests."""
    return bool(os.environ.get("RUNPOD_WEBHOOK_POST_OUTPUT"))


def _through_the_sdk(job: Mapping[str, Any]) -> Post:
    """Like `runpod.serverless.progress_update`, but awaited."""

    async def post(update: dict[str, Any]) -> None:
        from runpod.http_client import AsyncClientSession
        from runpod.serverless.modules.rp_http import send_result

        async with AsyncClientSession() as session:
            await send_result(session, {"status": "IN_PROGRESS", "output": update}, dict(job))

    return post
