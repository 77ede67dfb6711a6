"""What a test of the PostgreSQL store may not leave behind: tasks, threads, complaints, backends, transactions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest_asyncio

from tests.postgres.support import ask, until
from tests.sqlite.support import threads

BACKENDS = """
    SELECT state, query FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND application_name <> 'onlooker'
"""
OPEN = f"{BACKENDS} AND state LIKE 'idle in transaction%'"


@asynccontextmanager
async def leaving_nothing(seconds: float = 10.0) -> AsyncGenerator[None]:
    """No task, no thread, no complaint of the event loop, a moment after the end."""
    complaints: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(str(context)))
    tasks, before = asyncio.all_tasks(), threads()
    yield

    def left() -> set[Any]:
        ours = {thread for thread in threads() - before if not thread.name.startswith("asyncio_")}  # kept by the loop
        return ours | (asyncio.all_tasks() - tasks - {asyncio.current_task()})

    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while left():
                await asyncio.sleep(0.01)
    assert not left(), left()
    assert not complaints, complaints


@pytest_asyncio.fixture
async def nothing_left() -> AsyncGenerator[None]:
    async with leaving_nothing():
        yield


async def no_backends(dsn: str) -> None:
    """Wait until nobody but onlookers is connected to this database."""

    async def fact() -> bool:
        return not await ask(dsn, BACKENDS)

    try:
        await until(fact)
    except TimeoutError:
        raise AssertionError(f"still connected: {await ask(dsn, BACKENDS)}") from None


async def no_open_transaction(dsn: str) -> None:
    """Wait until no transaction is open that does nothing."""

    async def fact() -> bool:
        return not await ask(dsn, OPEN)

    try:
        await until(fact)
    except TimeoutError:
        raise AssertionError(f"left open: {await ask(dsn, OPEN)}") from None
