"""When a worker may take another job."""

from __future__ import annotations

import asyncio

from handler.sdk.job_slots import JobSlots


def test_one_runs_and_as_many_wait_as_are_to_be_prefetched() -> None:
    slots = JobSlots(2)
    for job in "abc":
        assert slots.free()
        slots.take(job)
    assert not slots.free()
    slots.computed("a")
    assert slots.free(), "its result is on its way, and ComfyUI works for another"


def test_several_comfyuis_have_a_job_each() -> None:
    slots = JobSlots(0, running=2)
    slots.take("a")
    assert slots.free()
    slots.take("b")
    assert not slots.free()
    more = JobSlots(1, running=2)
    for job in "abc":
        assert more.free()
        more.take(job)
    assert not more.free()


def test_results_that_pile_up_hold_back_the_next_job() -> None:
    slots = JobSlots(1)
    for job in "abc":
        slots.take(job)
        slots.computed(job)
    assert slots.free()
    slots.take("d")
    assert not slots.free()
    slots.release("a")
    assert slots.free()


def test_without_prefetch_a_job_is_over_before_the_next_one_comes() -> None:
    slots = JobSlots(0)
    slots.take("a")
    slots.computed("a")
    assert not slots.free()
    slots.release("a")
    assert slots.free()


def test_room_is_waited_for_and_ends_with_the_worker() -> None:
    async def scenario() -> list[bool]:
        slots = JobSlots(0)
        slots.take("a")
        waiting = asyncio.create_task(slots.wait_for_slot())
        await asyncio.sleep(0.01)
        assert not waiting.done()
        slots.release("a")
        found = [await asyncio.wait_for(waiting, 5)]
        slots.take("b")
        waiting = asyncio.create_task(slots.wait_for_slot())
        await asyncio.sleep(0.01)
        slots.close()
        return [*found, await asyncio.wait_for(waiting, 5), await slots.wait_for_slot()]

    assert asyncio.run(scenario()) == [True, False, False]


def test_a_cancel_that_overtook_its_job_is_remembered() -> None:
    slots = JobSlots(1)
    slots.cancel_early("a")
    assert slots.is_cancelled("a") and not slots.is_cancelled("b")


def test_a_loop_that_no_longer_asks_for_jobs_is_a_fault_and_one_that_is_full_is_not() -> None:
    slots = JobSlots(1)
    for _ in range(240):
        slots.tick()
    assert slots.fault() is None
    slots.tick()
    fault = slots.fault()
    assert fault is not None and fault.code == "worker.take_stuck" and fault.fix
    slots.polled()
    assert slots.fault() is None

    async def full() -> None:
        slots.take("a")
        slots.take("b")
        waiting = asyncio.create_task(slots.wait_for_slot())
        await asyncio.sleep(0.01)
        for _ in range(300):
            slots.tick()
        assert slots.fault() is None
        slots.close()
        await waiting

    asyncio.run(full())


def test_a_worker_without_threads_to_spare_takes_no_job_until_it_has_some() -> None:
    exhausted = True

    async def scenario() -> bool:
        nonlocal exhausted
        slots = JobSlots(1, lambda: exhausted)
        waiting = asyncio.create_task(slots.wait_for_slot())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        exhausted = False
        return await asyncio.wait_for(waiting, 5)

    assert asyncio.run(scenario())
