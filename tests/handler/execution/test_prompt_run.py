"""Whatever stops a job, no other prompt is touched.

ComfyUI before 0.3.57 interrupts whatever runs: it is asked only while the job's own prompt does.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from bootstrap.comfyui import ComfyUI, prompt_hooks
from handler.common.blocking import Calls
from handler.common.errors import Deadline, JobError
from handler.execution.comfy_client import KnownClasses, connect, remove_prompts
from handler.execution.prompt_run import run_prompt
from handler.execution.queue import Prompt, PromptQueue, PromptResult
from tests.end_to_end.test_worker import plain
from tests.support import fake_comfyui

OUR_HISTORY = "/history/own-id-of-comfyui"


class OldComfyUI:
    """Answers like 2023's: ignores prompt ids, interrupts whatever runs, has no socket for us."""

    def __init__(self, running: list[str]) -> None:
        self.running = running
        self.pending: list[str] = []
        self.interrupts = 0
        self.queues: dict[str, list[str]] = {}  # what each prompt's nodes have queued
        self.ended: list[str] = []
        self.oddities: dict[str, Any] = {}  # other answers, by path

    def app(self) -> web.Application:
        @web.middleware
        async def oddly(request: web.Request, handler: Any) -> Any:
            if request.path in self.oddities:
                return web.Response(text=self.oddities[request.path])
            return await handler(request)

        app = web.Application(middlewares=[oddly])
        app.router.add_post("/prompt", self._prompt)
        app.router.add_get("/queue", self._queue)
        app.router.add_post("/queue", self._delete)
        app.router.add_post("/interrupt", self._interrupt)
        app.router.add_get("/history/{id}", self._history)
        return app

    async def _prompt(self, _: web.Request) -> web.Response:
        (self.pending if self.running else self.running).append("own-id-of-comfyui")
        return web.json_response({"prompt_id": "own-id-of-comfyui", "number": 1})

    async def _queue(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "queue_running": [[0, name, {}, {}, []] for name in self.running],
                "queue_pending": [[1, name, {}, {}, []] for name in self.pending],
            }
        )

    async def _delete(self, request: web.Request) -> web.Response:
        for name in (await request.json())["delete"]:
            self.pending.remove(name)
        return web.Response()

    async def _interrupt(self, _: web.Request) -> web.Response:
        self.interrupts += 1
        self.ended += self.running
        self.running[:] = self.pending[:1]
        del self.pending[:1]
        return web.Response()

    async def _history(self, request: web.Request) -> web.Response:
        name = request.match_info["id"]
        if name not in self.ended:
            return web.json_response({})
        queued = [prompt_hooks.QUEUED, {"prompt_ids": self.queues.get(name, [])}]
        return web.json_response({name: {"outputs": {}, "status": {"messages": [queued]}}})


def test_a_message_that_cannot_be_read_ends_the_progress_only_and_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old = OldComfyUI([])

    async def socket(request: web.Request) -> web.WebSocketResponse:
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        await answer.send_str("[]")
        old.ended.append("own-id-of-comfyui")
        return answer

    async def job() -> PromptResult:
        app = old.app()
        app.router.add_get("/ws", socket)
        async with (
            TestServer(app, host="127.0.0.1") as server,
            PromptQueue().enter(Deadline(30)) as entry,
        ):
            comfyui = started(tmp_path)
            comfyui.port, own = int(server.port or 0), comfyui.port
            try:
                return await run_prompt(
                    *(comfyui, Prompt(plain()), entry, tmp_path, KnownClasses()),
                    Calls.on(tmp_path),
                )
            finally:
                comfyui.port = own
                comfyui.stop()

    assert asyncio.run(job()).history.failure is None
    assert "progress was no longer reported" in caplog.text and "AttributeError" in caplog.text


@pytest.mark.parametrize("other_runs", [True, False])
def test_only_the_jobs_own_prompt_is_stopped(tmp_path: Path, other_runs: bool) -> None:
    old = OldComfyUI(["another-jobs"] if other_runs else [])
    steps: list[Any] = []

    async def job() -> None:
        async with TestServer(old.app(), host="127.0.0.1") as server:
            comfyui = started(tmp_path)
            comfyui.port, own = int(server.port or 0), comfyui.port
            try:
                async with PromptQueue().enter(Deadline(2.5)) as entry:
                    prompt = Prompt(plain(), on_progress=steps.append)
                    await run_prompt(
                        comfyui, prompt, entry, tmp_path, KnownClasses(), Calls.on(tmp_path)
                    )
            finally:
                comfyui.port = own
                comfyui.stop()

    with pytest.raises(JobError) as caught:
        asyncio.run(job())
    assert caught.value.code == "job.timeout"
    assert old.pending == []
    assert old.running == (["another-jobs"] if other_runs else [])
    assert old.interrupts == (0 if other_runs else 1)
    positions = {step.more.get("position") for step in steps if step.stage == "queued"}
    assert positions == ({None, 2} if other_runs else {None}), (
        "reported though the socket is not there"
    )
    assert ("running" in {step.stage for step in steps}) is not other_runs


def ran_oddly(folder: Path, old: OldComfyUI) -> None:
    async def job() -> None:
        async with TestServer(old.app(), host="127.0.0.1") as server:
            comfyui = started(folder)
            comfyui.port, own = int(server.port or 0), comfyui.port
            try:
                async with PromptQueue().enter(Deadline(10)) as entry:
                    await run_prompt(
                        *(comfyui, Prompt(plain()), entry, folder, KnownClasses()),
                        Calls.on(folder),
                    )
            finally:
                comfyui.port = own
                comfyui.stop()

    asyncio.run(job())


@pytest.mark.parametrize(
    ("path", "code"),
    [("/prompt", "workflow.invalid"), (OUR_HISTORY, "comfyui.history_unreadable")],
)
def test_a_page_instead_of_an_answer_is_quoted(tmp_path: Path, path: str, code: str) -> None:
    """As a custom node gives that puts a login before all of ComfyUI."""
    old = OldComfyUI([])
    old.oddities[path] = "<html>Please log in</html>"
    with pytest.raises(JobError) as caught:
        ran_oddly(tmp_path, old)
    assert caught.value.code == code and "Please log in" in caught.value.message


def test_an_answer_of_another_shape_leaves_no_prompt_running(tmp_path: Path) -> None:
    old = OldComfyUI([])
    old.oddities[OUR_HISTORY] = '{"own-id-of-comfyui": {"status": 7}}'
    with pytest.raises(AttributeError):
        ran_oddly(tmp_path, old)
    assert (old.interrupts, old.running) == (1, [])


@pytest.mark.parametrize(("endless", "gone"), [(False, True), (True, False)])
def test_what_a_stopped_prompt_has_queued_goes_with_it(endless: bool, gone: bool) -> None:
    """Its history names it once it has ended; the first of it runs by then, and has queued one
    more. Where that has no end, it is given up."""
    old = OldComfyUI(["ours"])
    old.pending = ["first", "inner", "second", "another-jobs"]
    old.queues = {"ours": ["first", "second"], "first": ["inner"]}
    if endless:
        old.pending = [str(number) for number in range(50)]
        old.queues = {"ours": ["0"]} | {str(number): [str(number + 1)] for number in range(50)}

    async def job() -> bool:
        async with (
            TestServer(old.app(), host="127.0.0.1") as server,
            connect(str(server.make_url("")).rstrip("/")) as client,
        ):
            return await remove_prompts(client, ["ours"])

    assert asyncio.run(job()) is gone
    if not endless:
        assert (old.running, old.pending) == (["another-jobs"], [])


def started(folder: Path) -> ComfyUI:
    """A process that lives; what answers for it is the server of the test."""
    comfyui = fake_comfyui.write(folder / "ComfyUI", folder / "work")
    comfyui.start()
    return comfyui


def test_messages_that_nothing_uses_are_left_out() -> None:
    """ComfyUI sends the state of all nodes at each step, by the same call as here."""

    async def socket(request: web.Request) -> web.WebSocketResponse:
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        for kind in ("progress_state", "progress", "executing"):
            await answer.send_json({"type": kind, "data": {}})
        await answer.close()
        return answer

    async def heard() -> list[str]:
        app = web.Application()
        app.router.add_get("/ws", socket)
        async with (
            TestServer(app, host="127.0.0.1") as server,
            connect(str(server.make_url("")).rstrip("/")) as client,
        ):
            messages = await client.listen("me")
            assert messages is not None
            return [message["type"] async for message in messages if isinstance(message, dict)]

    assert asyncio.run(heard()) == ["progress", "executing"]
