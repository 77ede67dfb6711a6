"""Whatever a test of the kit does, no task and no thread of it is left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

KEPT = ("asyncio_", "AnyIO worker thread", "jobs_async exit")
"""Threads that wait for the next piece of work for as long as the loop lives, or for the end of the process."""


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    before = set(threading.enumerate())
    yield
    for _ in range(3):  # what was cancelled has its last word
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    while threads := [each for each in threading.enumerate() if each not in before and not each.name.startswith(KEPT)]:
        await asyncio.to_thread(threads[0].join, 30)
        assert not threads[0].is_alive()
