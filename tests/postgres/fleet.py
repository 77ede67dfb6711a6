"""Nodes of one database in one process: each a Supervisor on a store of its own, as in processes of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from jobs_async import Supervisor, WorkerDef
from jobs_async.core.hint import Hint
from jobs_async.stores.postgres import PostgresStore
from jobs_async.stores.postgres.listener import Listener
from tests.postgres.support import connected, until

NEVER = 3600.0
"""Seconds between two polls where only a hint can bring a job in the time that a test takes."""
ON_HINTS: dict[str, Any] = {"poll_interval": NEVER, "heartbeat": NEVER, "lease": 4 * NEVER, "rescue_interval": NEVER}
FAST: dict[str, Any] = {"poll_interval": 0.1, "heartbeat": 0.25, "lease": 3.0, "rescue_interval": 0.25}


def supervisor(dsn: str, *workers: WorkerDef, store: PostgresStore | None = None, **options: Any) -> Supervisor:
    """A node, not started; `FAST` unless told otherwise."""
    return Supervisor(store or PostgresStore(dsn), workers=workers, **{**FAST, **options})


@asynccontextmanager
async def operator(dsn: str, **options: Any) -> AsyncGenerator[Supervisor]:
    """Somebody else, who runs nothing."""
    async with Supervisor(PostgresStore(dsn, **options), queues={}) as jobs:
        yield jobs


def ear(store: PostgresStore) -> Listener:
    listener = store._listener
    assert listener is not None
    return listener


async def all_ears(jobs: Supervisor) -> None:
    """Until a node hears what others say, and has looked at its queues since: from now on it sleeps."""
    store = jobs.store
    assert isinstance(store, PostgresStore)
    await until(lambda: holds(lambda: not ear(store).is_deaf))
    assert jobs._engine is not None
    await jobs._engine.crew.look()


async def holds(fact: Callable[[], object]) -> bool:
    return bool(fact())


def hints_of(store: PostgresStore) -> list[Hint]:
    """What the store hands on from now on."""
    heard: list[Hint] = []
    store.wakes(heard.append)
    return heard


@asynccontextmanager
async def words(dsn: str, store: PostgresStore) -> AsyncGenerator[Callable[[], Awaitable[list[str]]]]:
    """What is said on the channel of a store, without who said it; asking is a word of its own, the last of them."""
    said: list[str] = []
    async with connected(dsn) as connection:
        channel = store._server.hints.channel
        await connection.add_listener(channel, lambda *got: said.append(str(got[3])))

        async def so_far() -> list[str]:
            await connection.execute("SELECT pg_notify($1, 'asker ends')", channel)
            await until(lambda: holds(lambda: said and said[-1] == "asker ends"))
            heard = [text.partition(" ")[2] for text in said[:-1]]
            said.clear()
            return heard

        yield so_far


GRANTS = """
    GRANT USAGE ON SCHEMA jobs TO {role};
    GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA jobs TO {role};
    GRANT USAGE ON ALL SEQUENCES IN SCHEMA jobs TO {role}
"""


@asynccontextmanager
async def with_role(dsn: str, grants: str) -> AsyncGenerator[str]:
    """The DSN of a role that may do what it was granted, and nothing more."""
    role = f"role_{urlsplit(dsn).path[-12:]}"
    await script(dsn, f"CREATE ROLE {role} LOGIN; REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    try:
        await script(dsn, f"SELECT 1; {grants.format(role=role)}")
        yield dsn.replace(f"{urlsplit(dsn).username}@", f"{role}@", 1)
    finally:
        await script(dsn, f"DROP OWNED BY {role}; DROP ROLE {role}")


async def script(dsn: str, *steps: str) -> None:
    async with connected(dsn) as connection:
        for step in steps:
            await connection.execute(step)


class Door:
    """Handlers wait behind it until it is opened; `inside` are the ids of the jobs that came so far."""

    def __init__(self) -> None:
        self.inside: list[int] = []
        self.opened = asyncio.Event()

    async def pass_through(self, job_id: int) -> None:
        self.inside.append(job_id)
        await self.opened.wait()

    async def holds(self, *job_ids: int) -> None:
        await until(lambda: holds(lambda: set(job_ids) <= set(self.inside)))
