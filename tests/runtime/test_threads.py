"""Handlers in threads: many of them that block hold up nobody else's threads."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio.to_thread

from jobs_async import JobState, Supervisor

BLOCKED = 60
"""More than the threads that anyio gives an application by default, which are 40."""
PATIENCE = 60.0


def poll(fact: Callable[[], bool]) -> None:
    """Wait in a thread until something is so."""
    end = time.monotonic() + PATIENCE
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.005)


@asynccontextmanager
async def blocked() -> AsyncIterator[Supervisor]:
    """A queue with sixty threads that block for as long as the body runs, and another with room for one job."""
    gate, inside = threading.Event(), list[int]()
    async with Supervisor(queues={"a": BLOCKED, "b": 1}) as jobs:

        @jobs.worker(queue="a")
        def blocks(n: int) -> int:
            inside.append(n)
            assert gate.wait(PATIENCE)
            return n

        stored = await jobs.enqueue_many([blocks.draft(n) for n in range(BLOCKED)])
        try:
            await asyncio.to_thread(poll, lambda: len(inside) == BLOCKED)
            yield jobs
        finally:
            gate.set()
        assert [await jobs.result(job) for job in stored] == list(range(BLOCKED))


async def test_sixty_blocked_threads_of_a_queue_starve_no_other_queue() -> None:
    async with blocked() as jobs:

        @jobs.worker(queue="b")
        def elsewhere(n: int) -> int:
            return n

        async with asyncio.timeout(PATIENCE):
            for n in range(3):
                assert await jobs.result(await elsewhere.enqueue(n)) == n
        assert (await jobs.counts())["a", JobState.executing] == BLOCKED


async def test_sixty_blocked_threads_of_a_queue_take_none_of_the_applications() -> None:
    async with blocked() as jobs:
        mine = anyio.to_thread.current_default_thread_limiter()
        assert mine.total_tokens < BLOCKED
        assert mine.borrowed_tokens == 0
        async with asyncio.timeout(PATIENCE):
            assert await anyio.to_thread.run_sync(threading.get_ident) != threading.get_ident()
            assert await asyncio.to_thread(threading.get_ident) != threading.get_ident()
        assert (await jobs.counts())["a", JobState.executing] == BLOCKED


async def test_an_application_that_uses_up_its_threads_starves_no_queue() -> None:
    gate = threading.Event()
    async with Supervisor() as jobs:

        @jobs.worker
        def in_a_thread() -> int:
            return threading.get_ident()

        limiter = anyio.to_thread.current_default_thread_limiter()
        async with anyio.create_task_group() as tasks:
            for _ in range(int(limiter.total_tokens)):
                tasks.start_soon(anyio.to_thread.run_sync, gate.wait, PATIENCE)
            try:
                async with asyncio.timeout(PATIENCE):
                    while limiter.available_tokens:
                        await asyncio.sleep(0)
                    assert await jobs.result(await in_a_thread.enqueue()) != threading.get_ident()
            finally:
                gate.set()
