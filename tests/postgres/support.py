"""What the tests of the PostgreSQL store share: empty tables in no time, looks at the server from outside, programs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from jobs_async.stores.postgres import PostgresStore
from jobs_async.testing import FakeClock
from tests.sqlite.support import PATIENCE, done, new, output, until

__all__ = ["PATIENCE", "done", "new", "output", "until"]

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"

_STRICT = ("-W", "error", "-W", "ignore::ResourceWarning")
"""What nobody closed is complained of by the driver, and rightly so; every other warning is an error."""

TABLES = tuple(f"jobs_async_{name}" for name in ("jobs", "ticks", "queues", "nodes", "records"))
_EMPTY = [*(f"DELETE FROM {table}" for table in TABLES), "ALTER TABLE jobs_async_jobs ALTER id RESTART"]


class EmptiedStore(PostgresStore):
    """A store of a database that others have used before: it finds nothing there when it is first opened.

    Emptying tables takes a hundredth of the time of a new database.
    """

    def __init__(self, dsn: str, clock: FakeClock) -> None:
        super().__init__(dsn, clock=clock)
        self._used_dsn: str | None = dsn

    async def open(self) -> None:
        if (dsn := self._used_dsn) is not None:
            self._used_dsn = None
            async with connected(dsn) as connection:
                if await connection.fetchval("SELECT to_regclass('jobs_async_records')") is not None:
                    await connection.execute("; ".join(_EMPTY))
        await super().open()


# --- the server, seen from outside ---


@asynccontextmanager
async def connected(dsn: str, **options: Any) -> AsyncGenerator[asyncpg.Connection[Any]]:
    """A connection that has nothing to do with the library."""
    connection = await asyncpg.connect(dsn, server_settings={"application_name": "onlooker"}, **options)
    try:
        yield connection
    finally:
        connection.terminate()


async def ask(dsn: str, sql: str, *params: Any) -> list[tuple[Any, ...]]:
    async with connected(dsn) as connection:
        return [tuple(row) for row in await connection.fetch(sql, *params)]


# --- programs ---


@contextmanager
def running(program: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """A program of this folder in a process of its own, gone at the end whatever happens."""
    command = [sys.executable, *_STRICT, str(PROGRAMS / f"{program}.py"), *map(str, args)]
    pipes: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, text=True, **pipes)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
