"""Where the jobs of a scenario are, looked at through connections that have nothing to do with the library."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol, TypeVar

import asyncpg

from jobs_async import PostgresStore, SqliteStore, Store
from jobs_async.core.job import JobState
from tests.chaos.ledger import SECOND, Node, Row, Snapshot, now
from tests.cluster import PgCluster

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds after which a fact that does not come is a failure."""
POOL_SIZE = 5
AT_MOST = 4 + 1 + 1 + POOL_SIZE
"""Connections of one process to PostgreSQL: claims, settlements, inserts and beats, a listener, a lifeline, a pool."""

_BY_ROW = "SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off"
"""What is to be found are wrong rows, and an index may be what is wrong with them."""
_INDEXED = {
    "id": "TRUE",
    "queue, priority, id": "state = 0",
    "unique_key": "unique_key IS NOT NULL AND state IN (0, 1, 3, 6)",
}
_ROWS = "SELECT id, state, attempt, claim, rescues, node, unique_key FROM jobs_async_jobs"


class Database(Protocol):
    """The jobs of one scenario."""

    jobs: str
    """The table of jobs, where it must be read row by row and not by an index."""
    last_id: str
    """The question for the number that the newest job was given."""

    def store(self) -> Store:
        """As one process of the scenario opens it."""
        ...

    def ask(self, sql: str) -> list[Any]:
        """The rows that answer a question."""
        ...

    def snapshot(self) -> Snapshot:
        """All of one moment."""
        ...

    def unsound(self) -> list[str]:
        """What is wrong with it, whatever it holds."""
        ...

    def deadlocks(self) -> int:
        """How often transactions stood in each other's way for ever, had nobody been made to begin anew."""
        ...

    def connections(self) -> Counter[int]:
        """How many the server has of each process of the scenario."""
        ...


class SqliteFile:
    """A file, which knows of no connections."""

    jobs = "jobs_async_jobs NOT INDEXED"
    last_id = "SELECT coalesce(max(seq), 0) FROM sqlite_sequence"

    def __init__(self, path: Path) -> None:
        self.path = path

    def store(self) -> Store:
        return SqliteStore(self.path)

    def ask(self, sql: str) -> list[Any]:
        with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as db:
            return db.execute(sql).fetchall()

    def snapshot(self) -> Snapshot:
        with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as db:
            db.execute("BEGIN")
            at = now()
            rows = db.execute(_ROWS).fetchall()
            nodes = db.execute("SELECT id, info, expires_at FROM jobs_async_nodes").fetchall()
        return _snapshot(at, rows, [(name, info, int(expires * SECOND)) for name, info, expires in nodes])

    def unsound(self) -> list[str]:
        return [f"integrity_check: {text}" for (text,) in self.ask("PRAGMA integrity_check") if text != "ok"]

    def deadlocks(self) -> int:
        return 0

    def connections(self) -> Counter[int]:
        return Counter()


class PostgresDatabase:
    """A database of a server that the scenario may harm; a question waits until the server is back."""

    jobs = "jobs_async_jobs"
    last_id = "SELECT last_value FROM jobs_async_jobs_id_seq"

    def __init__(self, server: PgCluster) -> None:
        self.server = server
        self._dsn = server.create_database()

    def store(self) -> Store:
        return PostgresStore(f"{self._dsn}?application_name=process-{os.getpid()}", pool_size=POOL_SIZE)

    def ask(self, sql: str) -> list[Any]:
        async def fetch(connection: asyncpg.Connection[Any]) -> list[Any]:
            return [tuple(row) for row in await connection.fetch(sql)]

        return self._do(fetch)

    def snapshot(self) -> Snapshot:
        """Leases are judged by the server's clock, which is this machine's."""

        async def fetch(connection: asyncpg.Connection[Any]) -> Snapshot:
            async with connection.transaction(isolation="repeatable_read"):
                at, wall = now(), time.time()
                rows = await connection.fetch(_ROWS)
                nodes = await connection.fetch(
                    "SELECT id, info, extract(epoch FROM expires_at)::float AS expires FROM jobs_async_nodes"
                )
            left = [(name, info, at + int((expires - wall) * SECOND)) for name, info, expires in nodes]
            return _snapshot(at, [tuple(row) for row in rows], left)

        return self._do(fetch)

    def unsound(self) -> list[str]:
        """Indexes that lead to more rows than there are, or to fewer."""

        async def compare(connection: asyncpg.Connection[Any]) -> list[str]:
            wrong: list[str] = []
            async with connection.transaction(isolation="repeatable_read"):
                for columns, where in _INDEXED.items():
                    counts = []
                    for plan in ("enable_indexscan", "enable_seqscan"):
                        await connection.execute(f"RESET ALL; SET enable_bitmapscan = off; SET {plan} = off")
                        indexed = f"SELECT 1 FROM jobs_async_jobs WHERE {where} ORDER BY {columns} OFFSET 0"
                        counts.append(await connection.fetchval(f"SELECT count(*) FROM ({indexed}) AS indexed"))
                    if counts[0] != counts[1]:
                        wrong.append(f"{counts[0]} rows, and {counts[1]} by the index on {columns}")
            return wrong

        return self._do(compare)

    def deadlocks(self) -> int:
        [(number,)] = self.ask("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        return int(number)

    def connections(self) -> Counter[int]:
        found = self.ask(
            "SELECT substr(application_name, 9)::int, count(*) FROM pg_stat_activity "
            "WHERE datname = current_database() AND application_name LIKE 'process-%' GROUP BY 1"
        )
        return Counter(dict(found))

    def leave(self, path: Path) -> None:
        """Write down what is not over, to be looked at when the server is gone."""
        with path.open("w") as file:
            for table in ("jobs_async_queues", "jobs_async_nodes", "jobs_async_jobs WHERE completed_at IS NULL"):
                file.writelines(
                    f"{row}\n" for (row,) in self.ask(f"SELECT row_to_json(it) FROM (SELECT * FROM {table}) AS it")
                )

    def _do(self, do: Callable[[asyncpg.Connection[Any]], Awaitable[T]]) -> T:
        """In a thread, for the caller's may run a loop; it has ended when this returns, so that a process may fork."""

        async def visit() -> T:
            connection = await asyncpg.connect(self._dsn)
            try:
                await connection.execute(_BY_ROW)
                return await do(connection)
            finally:
                await connection.close()

        async def insist() -> T:
            async with asyncio.timeout(PATIENCE):
                while True:
                    try:
                        return await visit()
                    except (OSError, asyncpg.PostgresConnectionError, asyncpg.OperatorInterventionError):
                        await asyncio.sleep(0.05)

        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, insist()).result()


def _snapshot(at: int, rows: list[Any], nodes: list[tuple[str, str, int]]) -> Snapshot:
    infos = [(name, json.loads(info), expires) for name, info, expires in nodes]
    return Snapshot(
        at,
        {row[0]: Row(row[0], JobState(row[1]), *row[2:]) for row in rows},
        {name: Node(info["host"], info["pid"], expires) for name, info, expires in infos},
    )
