"""Questions that may take long: one that was given up is interrupted, and one that had not begun never begins."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from jobs_async.core.errors import StoreError
from jobs_async.core.job import JobState
from jobs_async.core.store import JobQuery
from jobs_async.stores.sqlite import SqliteStore
from tests.sqlite.support import PATIENCE, new, until

JOBS = 1000
STEP = 10
"""Instructions of SQLite's machine from one look at a question to the next; a job takes about half of that."""
A_FEW = 3
"""Looks at a question that ends where it stands."""
SLOW = JobQuery(error="timeout")


class Watch:
    """Looks at what the search connection does, and holds its thread in the middle of a question."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self.begun: list[str] = []
        self.looks = 0
        self._held, self._go = threading.Event(), threading.Event()
        self._go.set()

    async def begin(self) -> None:
        await self._connection.set_trace_callback(self.begun.append)
        await self._connection.set_progress_handler(self._look, STEP)

    async def has_seen_all(self) -> None:
        """Wait until the thread has come to what is asked of it last."""
        await self._connection.set_trace_callback(self.begun.append)

    def _look(self) -> None:
        self.looks += 1
        self._held.set()
        self._go.wait(PATIENCE)

    def let_go(self) -> None:
        self.looks = 0
        self._go.set()

    async def hold(self, store: SqliteStore) -> asyncio.Task[Any]:
        """A question that has begun and stands still."""
        self._held.clear()
        self._go.clear()
        asking = asyncio.create_task(store.select(SLOW))
        assert await asyncio.to_thread(self._held.wait, PATIENCE)
        return asking


@pytest.fixture
async def watch(store: SqliteStore) -> AsyncIterator[Watch]:
    """Over a store with jobs, none of which is meant by the question."""
    await store.insert([new() for _ in range(JOBS)])
    assert await store.select(SLOW) == []
    assert store._search_connection is not None
    watch = Watch(store._search_connection)
    await watch.begin()
    yield watch
    watch.let_go()


async def test_a_question_that_nobody_gives_up_is_looked_at_again_and_again(store: SqliteStore, watch: Watch) -> None:
    """What the others are measured by."""
    assert await store.select(SLOW) == []
    assert watch.looks > 100 * A_FEW


async def test_a_question_that_was_given_up_is_interrupted_and_the_next_one_answered(
    store: SqliteStore, watch: Watch
) -> None:
    for _ in range(3):
        asking = await watch.hold(store)
        asking.cancel()
        await asyncio.wait({asking})
        watch.let_go()
        await watch.has_seen_all()
        assert watch.looks <= A_FEW
    assert await store.tally() == {("default", JobState.available): JOBS}


async def test_a_question_that_was_given_up_in_the_queue_never_begins(store: SqliteStore, watch: Watch) -> None:
    asking = await watch.hold(store)
    queued = [asyncio.create_task(store.select(SLOW)) for _ in range(5)]
    for _ in range(10):
        await asyncio.sleep(0)
    for one in queued:
        one.cancel()
    await asyncio.wait(queued)
    watch.let_go()
    assert await asking == []
    assert await store.tally() == {("default", JobState.available): JOBS}
    assert len(watch.begun) == 2, watch.begun


async def test_a_close_interrupts_the_question_under_way(store: SqliteStore, watch: Watch) -> None:
    asking = await watch.hold(store)
    closing = asyncio.create_task(store.close())

    async def has_left_the_question() -> bool:
        return store._searcher is None

    await until(has_left_the_question)
    watch.let_go()
    with pytest.raises(StoreError):
        await asking
    await closing
    assert watch.looks <= A_FEW


async def test_a_file_that_cannot_be_opened_once_more_is_a_store_error(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    folder.mkdir()
    async with SqliteStore(folder / "jobs.db") as store:
        folder.rename(elsewhere)
        with pytest.raises(StoreError, match="unable to open"):
            await store.select(SLOW)
        elsewhere.rename(folder)
        assert await store.select(SLOW) == []
