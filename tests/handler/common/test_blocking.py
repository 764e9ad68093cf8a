"""Blocking calls: limited in time and threads, and never waiting for each other."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from handler.common.blocking import Background, Calls, Pool, TimeUp, gather_all
from tests.support.waiting import Hang, until, wait_until


def after_a_moment(result: int) -> int:
    time.sleep(0.001)
    return result


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """Hanging calls hang until this is set."""
    event = threading.Event()
    yield event
    event.set()


def give_up(
    pool: Pool, over: threading.Event, on_abandon: Callable[[], None] | None = None
) -> None:
    """A call that hangs."""

    async def scene() -> None:
        with pytest.raises(TimeUp):
            await pool.run(Hang(over), 50, on_abandon)

    asyncio.run(scene())


def test_what_a_call_returns_and_raises_comes_through() -> None:
    pool = Pool("p", 2, 2)
    assert asyncio.run(pool.run(lambda: 7, 5)) == 7
    with pytest.raises(ZeroDivisionError):
        asyncio.run(pool.run(lambda: 1 // 0, 5))


def test_a_leaf_that_waits_for_another_leaf_is_refused() -> None:
    """The deadlock that hung workers, made impossible: even in a pool with a thread to spare."""
    pool = Pool("p", 8, 8)

    def nested() -> int:
        call = pool.run(lambda: 1, 1)
        try:
            return asyncio.run(call)  # no: a loop of one's own in a leaf
        finally:
            call.close()

    def submits() -> object:
        return pool.submit(lambda: 1)

    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.run(pool.run(submits, 5))
    with pytest.raises(RuntimeError, match="in a leaf"):
        asyncio.run(pool.run(nested, 5))


def test_many_callers_of_many_leaves_all_come_through_a_pool_of_two() -> None:
    pool = Pool("many", 2, 2)

    async def job(number: int) -> list[int]:
        return await gather_all(
            pool.run(partial(after_a_moment, n), 30) for n in range(number, number + 5)
        )

    async def jobs() -> list[list[int]]:
        return await gather_all(job(n) for n in range(50))

    assert asyncio.run(jobs()) == [list(range(n, n + 5)) for n in range(50)]
    assert len([t for t in threading.enumerate() if t.name == "many"]) <= 2


def test_a_call_that_hangs_is_given_up_replaced_and_counted(over: threading.Event) -> None:
    pool, woken = Pool("p", 1, 2), threading.Event()
    for _ in range(2):
        give_up(pool, over, woken.set)
        assert woken.is_set()
        woken.clear()
        assert asyncio.run(pool.run(lambda: "still works", 5)) == "still works"
    assert pool.hanging == 2 and pool.exhausted
    over.set()
    wait_until(lambda: not pool.exhausted)
    assert pool.hanging == 0


def test_a_pool_without_spare_threads_keeps_its_regular_ones_and_grows_no_further(
    over: threading.Event,
) -> None:
    pool = Pool("no more", 2, 2)
    for _ in range(10):
        with pytest.raises(TimeUp):
            asyncio.run(pool.run(over.wait, 0.02))
    assert len([t for t in threading.enumerate() if t.name == "no more"]) <= 4
    assert pool.hanging <= 4


def test_a_thread_that_the_system_refuses_is_not_counted_and_its_call_never_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool, ran = Pool("p", 1, 0), threading.Event()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="new thread"):
            asyncio.run(pool.run(ran.set, 5))
    assert asyncio.run(pool.run(lambda: "works", 5)) == "works"
    assert not ran.is_set()


def test_where_the_system_refuses_a_further_thread_a_call_waits_for_those_there_are(
    over: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, begun = Pool("p", 2, 0), threading.Event()

    def busy() -> None:
        begun.set()
        over.wait(30)

    async def scene() -> str:
        first = asyncio.ensure_future(pool.run(busy, 30))
        await until(begun.is_set)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        second = asyncio.ensure_future(pool.run(lambda: "works", 30))
        await asyncio.sleep(0)
        over.set()
        await first
        return await second

    assert asyncio.run(scene()) == "works"


def refuse(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_a_call_that_was_not_begun_is_never_run(over: threading.Event) -> None:
    pool, ran = Pool("p", 1, 0), threading.Event()

    async def scene() -> None:
        first = asyncio.ensure_future(pool.run(over.wait, 30))
        await asyncio.sleep(0.05)
        with pytest.raises(TimeUp):
            await pool.run(ran.set, 0.05)
        over.set()
        await first
        await pool.run(lambda: None, 5)

    asyncio.run(scene())
    assert not ran.is_set()


def test_a_cancelled_caller_goes_at_once(over: threading.Event) -> None:
    pool, woken, begun = Pool("p", 1, 1), threading.Event(), threading.Event()

    def hang() -> None:
        begun.set()
        over.wait(30)

    async def scene() -> None:
        calling = asyncio.ensure_future(pool.run(hang, 30, woken.set))
        await until(begun.is_set)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling

    asyncio.run(scene())
    assert woken.is_set() and pool.hanging == 1


def test_the_first_failure_ends_the_others() -> None:
    ended: list[str] = []

    async def waits() -> None:
        try:
            await asyncio.sleep(30)
        finally:
            ended.append("waits")

    async def fails() -> None:
        raise ValueError("of the second")

    async def scene() -> None:
        with pytest.raises(ValueError, match="of the second"):
            await gather_all([waits(), fails()])
        await asyncio.sleep(0)

    asyncio.run(scene())
    assert ended == ["waits"]


def test_what_replies_do_not_wait_for_is_waited_for_at_the_end() -> None:
    done: list[int] = []

    async def later() -> None:
        await asyncio.sleep(0.05)
        done.append(1)

    async def scene() -> None:
        background = Background()
        background.add(later())
        await background.finish(5)

    asyncio.run(scene())
    assert done == [1]


def test_a_worker_whose_threads_hang_says_so(over: threading.Event) -> None:
    calls = Calls.on(Path("/"))
    assert (fault := calls.fault()) is None
    while (fault := calls.fault()) is None:
        give_up(calls.network, over)
    assert fault.code == "worker.threads_exhausted"
    assert "network" in fault.message and fault.fix
