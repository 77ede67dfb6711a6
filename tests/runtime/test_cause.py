"""A handler can see why it is to come to an end, whatever it is that ends it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from jobs_async import Job, JobContext, JobStarted, MemoryStore, StoreBusy, Supervisor
from jobs_async.core.context import CancelCause
from jobs_async.core.store import Beat, Node
from tests.runtime.support import World, virtual

GUARD = 30.0
"""Real seconds after which a thread takes a fact for one that never comes."""


class Cut(MemoryStore):
    """Hears no sign of life while it is away."""

    away = False

    async def beat(self, node: Node, ttl: float, *, join: bool = False) -> Beat:
        if self.away:
            raise StoreBusy("away")
        return await super().beat(node, ttl, join=join)


class Scene:
    """A Supervisor with one job that runs until it is told to end."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.store = Cut(clock=world.clock)
        self.jobs = world.supervisor(self.store, shutdown_timeout=0)
        self.job: Job[Any]

    async def begin(self, handler: Callable[[Any, JobContext], Any], timeout_seconds: float | None = None) -> None:
        self.jobs.register_worker("work", handler)
        await self.jobs.start()
        self.job = await self.jobs.enqueue("work", max_attempts=1, timeout_seconds=timeout_seconds)
        await self.world.seen.wait(JobStarted)


async def out_of_time(_scene: Scene) -> None:
    await asyncio.sleep(2)


async def cancelled(scene: Scene) -> None:
    await scene.jobs.cancel(scene.job.id)


async def deleted(scene: Scene) -> None:
    scene.store._forget(scene.job.id)


async def stopped(scene: Scene) -> None:
    await scene.jobs.stop()


async def taken_for_dead(scene: Scene) -> None:
    scene.store.away = True
    await asyncio.sleep(40)
    scene.store.away = False


CAUSES = [
    (out_of_time, CancelCause.TIMEOUT, "timeout"),
    (cancelled, CancelCause.CANCELLED, "cancelled on request"),
    (deleted, CancelCause.TAKEN, "taken over"),
    (stopped, CancelCause.STOP, "stop"),
    (taken_for_dead, CancelCause.LEASE_LOST, "lease lost"),
]


@pytest.mark.parametrize(("end", "cause", "text"), CAUSES, ids=[text for _, _, text in CAUSES])
def test_the_cause_is_known_when_the_flag_is_set_and_in_what_runs_at_the_end(
    end: Callable[[Scene], Awaitable[None]], cause: CancelCause, text: str
) -> None:
    seen: list[CancelCause | None] = []

    async def handler(_args: object, ctx: JobContext) -> None:
        if ctx.attempt > 1 or seen:
            return  # it runs again after a lost lease
        seen.append(ctx.cause)
        try:
            await ctx.cancelled.wait()
            seen.append(ctx.cause)
            await asyncio.Event().wait()
        finally:
            seen.append(ctx.cause)

    @virtual
    async def scenario(world: World) -> None:
        scene = Scene(world)
        timeout_seconds = 1 if cause is CancelCause.TIMEOUT else None
        await scene.begin(handler, timeout_seconds)
        await end(scene)
        await asyncio.sleep(60)
        await scene.jobs.stop()

    scenario()
    first, *later = seen
    assert first is None
    assert set(later) == {cause}
    assert later[-1] == text


@virtual
async def test_of_several_causes_the_first_counts(world: World) -> None:
    scene, seen = Scene(world), list[CancelCause | None]()

    async def handler(_args: object, ctx: JobContext) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append(ctx.cause)

    await scene.begin(handler)
    await cancelled(scene)  # its task has five seconds from then on
    await scene.jobs.stop()
    assert seen == [CancelCause.CANCELLED]


@virtual
async def test_a_thread_can_read_it(world: World) -> None:
    scene, seen = Scene(world), list[CancelCause | None]()

    def handler(_args: object, ctx: JobContext) -> None:
        guard = time.monotonic() + GUARD
        while not ctx.cancelled.is_set():
            assert time.monotonic() < guard
            time.sleep(0.001)
        seen.append(ctx.cause)

    await scene.begin(handler, timeout_seconds=0.01)
    await scene.jobs.wait(scene.job)
    await scene.jobs.stop()
    assert seen == [CancelCause.TIMEOUT]


async def test_it_is_none_in_a_run_that_nothing_ends() -> None:
    async with Supervisor() as jobs:

        @jobs.worker(context=True)
        async def work(ctx: JobContext) -> str:
            return repr(ctx.cause)

        assert await jobs.result(await work.enqueue(), timeout=GUARD) == "None"
