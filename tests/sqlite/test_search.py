"""Questions that may take long: one that was given up is interrupted, and one that never began never begins."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from jobs_async.core.errors import StoreError
from jobs_async.core.job import JobState
from jobs_async.core.store import JobQuery
from jobs_async.stores.sqlite import SqliteStore
from tests.sqlite.support import PATIENCE, new

JOBS = 1000
STEP = 100
"""Instructions of SQLite's machine from one look to the next: some rows of a question that reads them all."""
SLOW = JobQuery(error="timeout")


class Watch:
    """Sees what the search connection does, and holds its thread in the middle of a question."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.steps = 0
        self._held, self._go = threading.Event(), threading.Event()
        self._go.set()

    def step(self) -> None:
        self.steps += 1
        self._held.set()
        self._go.wait(PATIENCE)

    def hold(self) -> None:
        self._held.clear()
        self._go.clear()

    def let_go(self) -> None:
        self.steps = 0
        self._go.set()

    async def held(self) -> None:
        assert await asyncio.to_thread(self._held.wait, PATIENCE)


@pytest.fixture
async def watch(store: SqliteStore) -> AsyncIterator[Watch]:
    """Over a store with jobs, whose search connection is open."""
    await store.insert([new() for _ in range(JOBS)])
    assert await store.select(SLOW) == []
    connection, watch = store._search_connection, Watch()
    assert connection is not None
    await connection.set_trace_callback(watch.begun.append)
    await connection.set_progress_handler(watch.step, STEP)
    yield watch
    watch.let_go()


async def held_up(store: SqliteStore, watch: Watch) -> asyncio.Task[list[object]]:
    """A question that has begun and stands still."""
    watch.hold()
    asking = asyncio.create_task(store.select(SLOW))
    await watch.held()
    return asking


async def test_a_question_that_is_given_up_is_interrupted(store: SqliteStore, watch: Watch) -> None:
    watch.let_go()
    await store.select(SLOW)
    whole = watch.steps
    assert whole > 100
    asking = await held_up(store, watch)
    asking.cancel()
    await asyncio.wait({asking})
    watch.let_go()
    await store.
