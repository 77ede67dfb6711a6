"""Whoever waits for the Supervisor may be cancelled at any turn of the event loop: nothing stays half done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import pytest

from jobs_async import (
    ConstantBackoff,
    IllegalTransition,
    JobEnqueued,
    JobState,
    MemoryStore,
    current_context,
)
from jobs_async.core.store import PRIMITIVES
from tests.runtime.support import World, now, virtual

MAX_TURNS = 50
"""Calls that take time of the clock are waiting for it by then."""


class Cut:
    """Cancels a task so many turns of the event loop after something was begun, unless it is done by then."""

    def __init__(self, turns: int) -> None:
        self._turns = turns
        self.was_made = False

    async def __call__(self, call: Awaitable[Any]) -> Any:
        """Wait for a call in a task of its own; what it returned, or None where it was cancelled."""

        async def calling() -> Any:
            with self.within():
                return await call

        task = asyncio.get_running_loop().create_task(calling())
        await asyncio.wait({task})
        return None if task.cancelled() else task.result()

    @contextmanager
    def within(self) -> Iterator[None]:
        """Cancel the current task if it is still in here then."""
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        self._is_over = False
        loop.call_soon(self._count, self._turns, task, loop)
        try:
            yield
        finally:
            self._is_over = True

    def _count(self, left: int, task: asyncio.Task[Any], loop: asyncio.AbstractEventLoop) -> None:
        if self._is_over:
            return
        if left:
            loop.call_soon(self._count, left - 1, task, loop)
        else:
            self.was_made |= task.cancel()


class Hesitant(MemoryStore):
    """A store whose calls take some turns of the event loop, as those of a database do."""


async def _turns(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def _hesitant(name: str) -> Callable[..., Awaitable[Any]]:
    do = getattr(MemoryStore, name)

    async def call(self: Hesitant, *args: Any, **options: Any) -> Any:
        await _turns(2)
        answer = await do(self, *args, **options)
        await _turns(2)
        return answer

    return call


for _name in PRIMITIVES:
    setattr(Hesitant, _name, _hesitant(_name))


def at_every_turn(scenario: Callable[[World, Cut], Coroutine[Any, Any, None]]) -> Callable[[type[MemoryStore]], None]:
    """Play a scenario once for each turn at which its call can be cancelled, each time in another world."""

    def play(turn: int, store: type[MemoryStore]) -> bool:
        cut = Cut(turn)

        @virtual
        async def main(world: World) -> None:
            complaints: list[str] = []
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(str(context)))
            world.store = store(clock=world.clock)
            async with asyncio.timeout(1000):
                await scenario(world, cut)
            assert not complaints

        main()
        return cut.was_made

    @pytest.mark.parametrize("store", [MemoryStore, Hesitant])
    def test(store: type[MemoryStore]) -> None:
        made = 0
        for turn in range(MAX_TURNS):
            made += play(turn, store)
            if turn >= made + 3:
                break
        assert made > 3 or store is MemoryStore, "it was cancelled at hardly any turn"

    test.__name__, test.__doc__ = scenario.__name__, scenario.__doc__
    return test


@at_every_turn
async def test_f12_an_enqueue_stores_a_job_that_is_told_of_and_runs_or_none(world: World, cut: Cut) -> None:
    async with world.supervisor(poll_interval=3600) as jobs:

        @jobs.worker
        async def work() -> None: ...

        returned = await cut(work.enqueue())
        await asyncio.sleep(1)
        rows = await jobs.find()
        assert [row.state for row in rows] in ([], [JobState.completed])
        assert rows or returned is None
        assert len(world.seen.of(JobEnqueued)) == len(rows)


@at_every_turn
async def test_f12_an_enqueue_of_many_stores_all_or_none(world: World, cut: Cut) -> None:
    async with world.supervisor(poll_interval=3600) as jobs:

        @jobs.worker
        async def work(n: int) -> None: ...

        returned = await cut(jobs.enqueue_many([work.draft(n) for n in range(5)]))
        await asyncio.sleep(1)
        rows = await jobs.find()
        assert [row.state for row in rows] in ([], [JobState.completed] * 5)
        assert rows or returned is None
        assert len(world.seen.of(JobEnqueued)) == len(rows)


@at_every_turn
async def test_f12_a_handler_cancelled_while_it_enqueues_under_a_key_has_one_child_in_the_end(
    world: World, cut: Cut
) -> None:
    async with world.supervisor(poll_interval=3600) as jobs:

        @jobs.worker
        async def child() -> None: ...

        @jobs.worker(retry_strategy=ConstantBackoff(1))
        async def parent() -> int:
            with cut.within() if current_context().attempt == 1 else nullcontext():
                await child.options(idempotency_key="child").enqueue()
            return current_context().attempt

        job = await parent.enqueue()
        assert await jobs.result(job) == (2 if cut.was_made else 1)
        await asyncio.sleep(1)
        (only,) = [row for row in await jobs.find() if row.worker == "child"]
        assert only.state is JobState.completed


@at_every_turn
async def test_f12_who_waits_no_longer_leaves_nothing_behind(world: World, cut: Cut) -> None:
    async with world.supervisor() as jobs:

        @jobs.worker
        async def work() -> int:
            await asyncio.sleep(3)
            return 1

        job = await work.enqueue()
        await asyncio.sleep(0.5)
        before = asyncio.all_tasks()
        await cut(jobs.wait(job))
        if cut.was_made:
            await asyncio.sleep(2)
            assert asyncio.all_tasks() <= before
        await cut(jobs.result(job))
        assert await jobs.result(job) == 1


@at_every_turn
async def test_f12_a_cancel_of_a_waiting_job_is_made_or_can_be_repeated(world: World, cut: Cut) -> None:
    async with world.supervisor() as jobs:
        job = await jobs.enqueue("work", delay=1000)
        await cut(jobs.cancel(job.id))
        row = await jobs.get(job.id)
        assert (row.state, row.claim) in ((JobState.scheduled, 0), (JobState.cancelled, 1))
        with suppress(IllegalTransition):
            await jobs.cancel(job.id)
            assert row.state is JobState.scheduled
        assert (await jobs.wait(job)).state is JobState.cancelled


@at_every_turn
async def test_f12_a_cancel_of_a_running_job_reaches_it_if_it_was_made(world: World, cut: Cut) -> None:
    async with world.supervisor(shutdown_timeout=0) as jobs:

        @jobs.worker(timeout_seconds=None)
        async def work() -> None:
            await current_context().cancelled.wait()

        job = await work.enqueue()
        await asyncio.sleep(1)
        await cut(jobs.cancel(job.id))
        if not (await jobs.get(job.id)).cancel_requested:
            await jobs.cancel(job.id)
        assert (await jobs.wait(job)).state is JobState.cancelled
        assert now() < 10


@at_every_turn
async def test_f12_a_pause_holds_or_can_be_repeated_and_undone(world: World, cut: Cut) -> None:
    async with world.supervisor() as jobs:
        await cut(jobs.pause_queue("default"))
        assert cut.was_made or await world.store.is_paused("default")
        await jobs.pause_queue("default")
        assert await world.store.is_paused("default")
        await cut(jobs.resume_queue("default"))
        await jobs.resume_queue("default")

        @jobs.worker
        async def work() -> int:
            return 1

        assert await jobs.result(await work.enqueue()) == 1


@at_every_turn
async def test_f12_an_edit_is_made_as_a_whole_or_not_at_all(world: World, cut: Cut) -> None:
    async with world.supervisor() as jobs:

        @jobs.worker
        async def work(n: int) -> int:
            return n

        job = await work.options(delay=100).enqueue(1)
        await cut(jobs.edit(job.id, args={"n": 2}, priority=-5, delay=10))
        row = await jobs.get(job.id)
        before, after = ({"n": 1}, 0, job.scheduled_at), ({"n": 2}, -5, row.scheduled_at)
        assert (row.args, row.priority, row.scheduled_at) in (before, after)
        row = await jobs.wait(job)  # an edit that was begun goes on to its end, though its caller has gone
        assert row.result == row.args["n"]
        assert now() == pytest.approx(10 if row.args == {"n": 2} else 100, abs=1)


@at_every_turn
async def test_f12_a_start_is_made_or_can_be_repeated(world: World, cut: Cut) -> None:
    jobs = world.supervisor()

    @jobs.worker
    async def work() -> int:
        return 1

    await cut(jobs.start())
    assert jobs.is_running is not cut.was_made
    await jobs.start()
    assert await jobs.result(await work.enqueue()) == 1
    assert (await jobs.stop()).is_clean
    assert not any(node.alive for node in await world.store.nodes())


@at_every_turn
async def test_f12_a_supervisor_used_as_a_context_is_stopped_wherever_its_user_is_cancelled(
    world: World, cut: Cut
) -> None:
    jobs = world.supervisor()
    ended: list[JobState] = []

    @jobs.worker
    async def work() -> None: ...

    async def use() -> None:
        async with jobs:
            ended.append((await jobs.wait(await work.enqueue())).state)

    await cut(use())
    assert not jobs.is_running
    assert cut.was_made or ended == [JobState.completed]
    async with jobs:
        assert (await jobs.wait(await work.enqueue())).state is JobState.completed


@at_every_turn
async def test_f12_a_run_is_stopped_wherever_it_is_cancelled(world: World, cut: Cut) -> None:
    jobs = world.supervisor()

    @jobs.worker
    async def work() -> None:
        await asyncio.sleep(1)

    async def stop() -> None:
        while not jobs.is_running:
            await asyncio.sleep(0)
        await jobs.stop()

    job = await jobs.enqueue("work")
    stopping = asyncio.get_running_loop().create_task(stop())
    await cut(jobs.run())
    assert not jobs.is_running
    stopping.cancel()
    async with jobs:
        assert (await jobs.wait(job)).state is JobState.completed


@at_every_turn
async def test_f12_a_stop_goes_on_to_its_end_whoever_waits_for_it(world: World, cut: Cut) -> None:
    jobs = world.supervisor()

    @jobs.worker
    async def work() -> None:
        await asyncio.sleep(3)

    await jobs.start()
    job = await work.enqueue()
    await asyncio.sleep(1)
    await cut(jobs.stop())
    await asyncio.sleep(5)
    assert jobs.is_stopped
    assert (await world.store.get(job.id)).state is JobState.completed
