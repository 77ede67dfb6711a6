"""Statements of the hot path go by their index, however large the table and whatever is known of it."""

from __future__ import annotations

import asyncio
import re
import shutil
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from jobs_async.core.job import JobState
from jobs_async.core.lifecycle import rerun
from jobs_async.core.options import UniqueStrategy
from jobs_async.core.store import JobQuery, Node
from jobs_async.stores.rows import EPOCH
from jobs_async.stores.sqlite import SqliteStore
from jobs_async.testing import FakeClock
from tests.sqlite.support import done, new

FINISHED = 1_000_000
FUTURE = 300_000
CLAIMABLE = 100

Connection = sqlite3.Connection
Statement = tuple[str, Any]

_FILL = """
WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < :count)
INSERT INTO jobs_async_jobs (
    state, queue, worker, args, priority, attempt, max_attempts, scheduled_at, inserted_at, attempted_at,
    completed_at, rescues, claim, node, cancel_requested, unique_key, idempotency_key, external_id
)
SELECT :state, :queue, 'work', '{}', n % 7, 1, 20, :at + n, 0, 0, :ended + n, 0, 1, :node, 0,
    iif(n % 100 = 0, :name || n, NULL), iif(n % 100 = 0, :name || n, NULL), iif(n % 100 = 0, :name || n, NULL)
FROM number
"""
_FAR = 4_000_000_000_000_000
"""An instant in 2096, in microseconds."""


def fill(connection: Connection, count: int, state: JobState, **values: Any) -> None:
    given = {"queue": "default", "at": 0, "ended": None, "node": None, "name": state.name, **values}
    connection.execute(_FILL, {"count": count, "state": int(state), **given})


async def _create(path: Path, node: str | None = None) -> None:
    async with SqliteStore(path, clock=FakeClock()) as store:
        if node is not None:
            await store.beat(Node(id=node), 3600.0, join=True)


@pytest.fixture(scope="module")
def large(memory_folder: Path) -> Path:
    """A file with a history, with jobs for later, and with a few to be run now."""
    path = memory_folder / "large.db"
    asyncio.run(_create(path, "alive"))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute("PRAGMA cache_size = -400000")
        connection.execute("BEGIN")
        fill(connection, FINISHED, JobState.completed, ended=1)
        fill(connection, FUTURE // 2, JobState.scheduled, at=_FAR)
        fill(connection, FUTURE // 2, JobState.retryable, at=_FAR)
        fill(connection, CLAIMABLE, JobState.available)
        fill(connection, 50, JobState.executing, node="alive")
        fill(connection, 5, JobState.executing, node="dead", name="dead")
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@pytest.fixture(scope="module")
def empty(memory_folder: Path) -> Path:
    path = memory_folder / "empty.db"
    asyncio.run(_create(path))
    return path


def analysed(path: Path) -> Path:
    """A copy of a file, with statistics."""
    copy = path.with_name(f"analysed {path.name}")
    shutil.copy(path, copy)
    with closing(sqlite3.connect(copy, isolation_level=None)) as connection:
        connection.execute("ANALYZE")
    return copy


@pytest.fixture(scope="module")
def large_analysed(large: Path) -> Path:
    return analysed(large)


@pytest.fixture(scope="module")
def empty_analysed(empty: Path) -> Path:
    return analysed(empty)


def opened(path: Path) -> Iterator[Connection]:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA cache_size = -400000")
        yield connection


@pytest.fixture(scope="module", params=["large", "large_analysed", "empty", "empty_analysed"])
def connection(request: pytest.FixtureRequest) -> Iterator[Connection]:
    yield from opened(request.getfixturevalue(request.param))


# --- what the store says to the database ---


async def claim(store: SqliteStore, _: FakeClock) -> None:
    await store.insert([new()])
    assert (await store.fetch("default", 10, node="alive")).jobs


async def stage(store: SqliteStore, clock: FakeClock) -> None:
    await store.insert([new(delay=1.0)])
    clock.advance(1.0)
    assert (await store.fetch("default", 10, node="alive")).jobs


async def apply(store: SqliteStore, _: FakeClock) -> None:
    for count in (1, 3, 100):
        await store.insert([new() for _ in range(count)])
        jobs = (await store.fetch("default", count, node="alive")).jobs
        assert all(await store.apply([done(job) for job in jobs]))


async def meet_unique_key(store: SqliteStore, _: FakeClock) -> None:
    await store.insert([new(unique_key="one"), new(unique_key="two")])
    await store.insert([new(unique_key="one", unique_strategy=UniqueStrategy.CANCEL_EXISTING)])


async def meet_idempotency_key(store: SqliteStore, _: FakeClock) -> None:
    await store.insert([new(idempotency_key="one"), new(idempotency_key="two")])


async def run_again(store: SqliteStore, _: FakeClock) -> None:
    await store.insert([new(unique_key="again")])
    [job] = (await store.fetch("default", 10, node="alive")).jobs
    [ended] = await store.apply([done(job)])
    assert ended is not None
    assert all(await store.apply([rerun(ended)]))


async def find_orphans(store: SqliteStore, _: FakeClock) -> None:
    await store.select(JobQuery(orphaned=True, newest_first=False, limit=1000))
    await store.select(JobQuery(orphaned=True, newest_first=False, after=5, limit=1000))


async def find_a_nodes_own(store: SqliteStore, _: FakeClock) -> None:
    await store.select(JobQuery(states=[JobState.executing], node="alive", newest_first=False, limit=1000))


async def find_by_external_id(store: SqliteStore, _: FakeClock) -> None:
    for external_id in ("completed100", ["scheduled100", "completed100", "unknown"]):
        for newest_first in (True, False):
            await store.select(JobQuery(external_id=external_id, newest_first=newest_first))
            await store.select(JobQuery(external_id=external_id, newest_first=newest_first, after=120, limit=1000))
    await store.select(JobQuery(external_id="completed100", queue="default", states=[JobState.completed]))


async def find_what_is_due(store: SqliteStore, clock: FakeClock) -> None:
    for queue in ("default", ["default", "elsewhere"]):
        for newest_first in (True, False):
            await store.select(JobQuery(due=True, queue=queue, newest_first=newest_first, limit=10))
            await store.select(JobQuery(due=True, queue=queue, newest_first=newest_first, after=120, limit=1000))
    await store.select(JobQuery(due=True, queue="default", worker="work", inserted_before=clock.now()))


async def rescue_stuck(store: SqliteStore, clock: FakeClock) -> None:
    await store.insert([new()])
    await store.fetch("default", 1, node="alive")
    clock.advance(400)
    assert await store.rescue_stuck(300) == 1


async def purge(store: SqliteStore, clock: FakeClock) -> None:
    await store.purge([JobState.completed], EPOCH)


async def purge_what_is_rare(store: SqliteStore, clock: FakeClock) -> None:
    """Of all that has ended before now, only a state of which there is none."""
    await store.purge([JobState.discarded], clock.now())


async def by_id(store: SqliteStore, _: FakeClock) -> None:
    [job] = await store.insert([new()])
    await store.get(job.id)
    await store.select(JobQuery(ids=[1, 2, 3]))
    await store.delete([job.id])


async def renew(store: SqliteStore, _: FakeClock) -> None:
    assert (await store.beat(Node(id="alive"), 3600.0)).alive


OPERATIONS: dict[str, tuple[Callable[[SqliteStore, FakeClock], Awaitable[None]], tuple[str, ...]]] = {
    "claim": (claim, ("jobs_async_claimable", "jobs_async_due")),
    "stage": (stage, ("jobs_async_claimable", "jobs_async_due")),
    "apply": (apply, ("INTEGER PRIMARY KEY",)),
    "meet a unique key": (meet_unique_key, ("jobs_async_unique",)),
    "meet an idempotency key": (meet_idempotency_key, ("jobs_async_idempotent",)),
    "run again": (run_again, ("jobs_async_unique", "INTEGER PRIMARY KEY")),
    "find orphans": (find_orphans, ("jobs_async_executing",)),
    "find a node's own": (find_a_nodes_own, ("jobs_async_executing",)),
    "find by external id": (find_by_external_id, ("jobs_async_external",)),
    "find what is due": (find_what_is_due, ("jobs_async_claimable", "jobs_async_due")),
    "rescue stuck": (rescue_stuck, ("jobs_async_executing",)),
    "purge": (purge, ("jobs_async_ended",)),
    "purge what is rare": (purge_what_is_rare, ("jobs_async_ended (state=?",)),
    "by id": (by_id, ("INTEGER PRIMARY KEY",)),
    "renew": (renew, ("jobs_async_executing",)),
}
SCAN = re.compile(r"SCAN (jobs_async_jobs|job|owner|jobs_async_nodes)\b(?!.* INDEX jobs_async_executing\b)")
"""What grows with the history. To walk over what runs right now is no harm."""


@pytest.fixture(scope="module")
def spoken(memory_folder: Path) -> dict[str, list[Statement]]:
    """The statements of each operation, as a store sends them to a small file."""
    said: list[Statement] = []
    send = aiosqlite.Connection.execute_fetchall

    def record(connection: aiosqlite.Connection, sql: str, parameters: Any = None) -> Any:
        if "jobs_async_" in sql:
            said.append((sql, parameters))
        return send(connection, sql, parameters)

    async def listen(name: str, path: Path) -> list[Statement]:
        clock = FakeClock()
        async with SqliteStore(path, clock=clock) as store:
            await store.beat(Node(id="alive"), 3600.0, join=True)
            said.clear()
            await OPERATIONS[name][0](store, clock)
            return list(said)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aiosqlite.Connection, "execute_fetchall", record)
        found = {name: asyncio.run(listen(name, memory_folder / f"spoken {name}.db")) for name in OPERATIONS}
    assert all(found.values())
    return found


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_statement_goes_by_its_index_and_never_scans_the_jobs(
    connection: Connection, spoken: dict[str, list[Statement]], name: str
) -> None:
    steps: list[str] = []
    for sql, params in spoken[name]:
        plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", params)]
        assert not [step for step in plan if SCAN.match(step)], (sql, plan)
        steps += plan
    for index in OPERATIONS[name][1]:
        assert [step for step in steps if index in step], steps


def test_what_ended_first_is_purged_first_without_a_sort(
    connection: Connection, spoken: dict[str, list[Statement]]
) -> None:
    [(sql, params)] = spoken["purge"]
    plan = [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", params)]
    assert not [step for step in plan if "TEMP B-TREE" in step], plan


LIMIT = 100_000
"""Where counting ends: far less than a table of a million rows takes, far more than any statement should."""


def effort(connection: Connection, statement: Statement) -> int:
    """How many instructions of SQLite's machine a statement takes; what it writes is taken back."""
    count = 0

    def tick() -> bool:
        nonlocal count
        count += 1
        return count > LIMIT

    sql, params = statement
    connection.execute("SAVEPOINT effort")
    connection.set_progress_handler(tick, 1)
    try:
        connection.execute(sql, params).fetchall()
    except sqlite3.OperationalError:
        assert count > LIMIT
    finally:
        connection.set_progress_handler(None, 1)
        connection.execute("ROLLBACK TO effort")
        connection.execute("RELEASE effort")
    return count


@pytest.fixture(scope="module")
def small(memory_folder: Path) -> Iterator[Connection]:
    """As the large file, without what should not matter."""
    path = memory_folder / "small.db"
    asyncio.run(_create(path, "alive"))
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("BEGIN")
        fill(connection, 100, JobState.completed, ended=1)
        fill(connection, 100, JobState.scheduled, at=_FAR)
        fill(connection, CLAIMABLE, JobState.available)
        fill(connection, 50, JobState.executing, node="alive")
        fill(connection, 5, JobState.executing, node="dead", name="dead")
        connection.execute("COMMIT")
        yield connection


@pytest.fixture(scope="module", params=["large", "large_analysed"])
def grown(request: pytest.FixtureRequest) -> Iterator[Connection]:
    yield from opened(request.getfixturevalue(request.param))


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_effort_does_not_grow_with_the_table(
    grown: Connection, small: Connection, spoken: dict[str, list[Statement]], name: str
) -> None:
    for statement in spoken[name]:
        many, few = effort(grown, statement), effort(small, statement)
        assert few > 5, statement
        assert many <= 10 * few + 1000, statement


async def test_a_fetch_of_ten_reads_few_pages_of_a_large_file(large: Path) -> None:
    """Measured from outside: what the process reads of a file that is in no cache of SQLite's yet."""
    async with SqliteStore(large, clock=FakeClock()) as store:
        before = _read_bytes()
        fetched = (await store.fetch("default", 10, node="alive")).jobs
        assert len(fetched) == 10
        assert _read_bytes() - before < 400_000
        before = _read_bytes()
        await store.insert([new(queue="elsewhere") for _ in range(10)])
        assert _read_bytes() - before < 400_000


def _read_bytes() -> int:
    """Bytes this process has asked the system for, cached or not."""
    return int(Path("/proc/self/io").read_text().split()[1])
