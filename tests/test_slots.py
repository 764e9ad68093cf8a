"""When a worker may take another job."""

from __future__ import annotations

import asyncio

from handler.slots import JobSlots


def test_one_runs_and_as_many_wait_as_are_to_be_prefetched() -> None:
    slots = JobSlots(2)
    for job in "abc":
        assert slots.free()
        slots.take(job)
    assert not slots.free()
    slots.computed("a")
    assert slots.free(), "its result is on its way, and ComfyUI works for another"


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
