"""A fault at every statement of the PostgreSQL store: no job is lost, no transaction left open, nothing left behind."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobs_async import JobQuery, JobState, StoreError, UniqueConflict, UniqueStrategy
from jobs_async.core.lifecycle import Transition
from jobs_async.core.records import Record
from jobs_async.core.store import Node, Tick
from jobs_async.stores.postgres import PostgresStore, diagnosis
from jobs_async.stores.postgres.dialect import SQL
from tests.conftest import Measured
from tests.faults.scene import Row
from tests.faults.server_statements import broken, dying, failing, hanging, watched
from tests.faults.statements import Fault, Statement, Statements, current, meanwhile
from tests.faults.sweep import Kind, Visit, quiet, sweep
from tests.postgres.pace import hurried as hurried
from tests.postgres.remains import leaving_nothing, no_backends, no_open_transaction
from tests.postgres.support import ask, done, new

SIDE_BY_SIDE = 12
"""Scenes that are played at the same time, each on eight connections at most."""
HANG = 2.0
"""Seconds, longer than a call may take here."""

PARTS = {"is_one_of", "in_queues", "has_worker", "has_external_id", "has_error", "is_orphaned", "is_due", "is_due_in"}
PARTS |= {"has_tags", "has_args"}
"""Terms of questions that the store puts together."""
ALONE = {"spend_tick", "link_tick", "forget_ticks", "purge", "put_record", "get_records", "drop_records"}
ALONE |= {"prolong_node", "by_ids", *diagnosis.QUESTIONS}
"""What the scene has no use for: visited one call at a time, further down."""

KINDS: dict[str, Kind] = {
    "its callers are cancelled": lambda scene: meanwhile(scene.cancel_callers),
    "its callers are cancelled while it is slow": lambda scene: meanwhile(scene.cancel_callers, 0.1),
    "the run is cancelled": lambda scene: meanwhile(scene.cancel_run),
    "the run is cancelled while it is slow": lambda scene: meanwhile(scene.cancel_run, 0.1),
    "the Supervisor is stopped": lambda scene: meanwhile(scene.stop_soon),
    "the connection breaks": lambda _: broken(after=False),
    "its answer gets lost once it is done": lambda _: broken(after=True),
    "the server ends the connection": lambda _: dying(),
    "the server is out of disk": lambda _: failing("53100"),
    "the server refuses for good": lambda _: failing("22P05"),
    "another transaction is in the way": lambda _: failing("40001"),
    "there is no answer in time": lambda _: hanging(HANG),
}
REFUSING = {"the server refuses for good"}

DUMP = """
    SELECT args #>> '{}', state, coalesce(errors::text, '') LIKE '%SettlementRefused%' FROM jobs_async_jobs
"""
OURS = """
    SELECT state, query FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = $1 AND state LIKE 'idle in transaction%'
"""
EMPTY = ("jobs", "ticks", "queues", "nodes", "records")

pytestmark = pytest.mark.usefixtures("hurried")


@pytest.fixture(autouse=True)
def nothing_critical(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What ends a loop for good is logged as critical; the rest of the log is not worth its time here."""
    caplog.set_level(logging.CRITICAL, "jobs_async")
    yield
    assert not caplog.records


@pytest.fixture(autouse=True)
async def nothing_left(pg_dsn: str) -> AsyncGenerator[None]:
    async with leaving_nothing():
        with watched():
            yield
    await no_backends(pg_dsn)


class SchemaPlace:
    """A schema of its own, in which scenes are played one after the other."""

    def __init__(self, dsn: str, number: int) -> None:
        self._name = f"scene{number}"
        self._dsn = dsn

    def store(self) -> PostgresStore:
        return PostgresStore(f"{self._dsn}?application_name={self._name}", schema=self._name, pool_size=3)

    async def rows(self) -> list[Row]:
        if not await self._ask(
            "SELECT to_regclass('jobs_async_jobs') WHERE to_regclass('jobs_async_jobs') IS NOT NULL"
        ):
            return []
        return [Row(key, JobState(state), refused) for key, state, refused in await self._ask(DUMP)]

    async def is_free(self) -> bool:
        return not await self._ask(OURS, self._name)

    async def wrongs(self) -> list[str]:
        """The connections of a store that was cut are found at the end of the test: they go within a moment."""
        return []

    async def empty(self) -> None:
        await self._ask("CREATE SCHEMA IF NOT EXISTS " + self._name)
        if await self._ask("SELECT 1 WHERE to_regclass('jobs_async_records') IS NOT NULL"):
            for table in EMPTY:
                await self._ask(f"DELETE FROM jobs_async_{table}")

    async def _ask(self, sql: str, *params: Any) -> list[tuple[Any, ...]]:
        token = current.set(None)  # type: ignore[arg-type]
        try:
            return await ask(f"{self._dsn}?search_path={self._name}", sql, *params)
        finally:
            current.reset(token)


class Places:
    """As many schemas as scenes are played at the same time."""

    def __init__(self, dsn: str) -> None:
        self._free = [SchemaPlace(dsn, number) for number in range(SIDE_BY_SIDE)]

    @asynccontextmanager
    async def __call__(self) -> AsyncGenerator[SchemaPlace]:
        place = self._free.pop()
        try:
            await place.empty()
            yield place
        finally:
            self._free.append(place)


async def sweep_schemas(dsn: str, every: int) -> int:
    """Play a scene for every statement and each kind of fault, or for every so many of these; how many."""
    places = Places(dsn)
    found = await quiet(places, SQL.keys() - PARTS - ALONE)
    visits: list[Visit] = [(name, each) for name in KINDS for each in found]
    return await sweep(places, visits[::every], KINDS, side_by_side=SIDE_BY_SIDE, refusing=REFUSING)


async def test_f12_rows_3_and_50_whatever_a_statement_meets_leaves_nothing_open_and_loses_nothing(pg_dsn: str) -> None:
    await sweep_schemas(pg_dsn, every=67)


@pytest.mark.soak
@pytest.mark.timeout(1800)
async def test_f12_rows_3_and_50_whatever_any_statement_meets(pg_dsn: str, measured: Measured) -> None:
    visited = await sweep_schemas(pg_dsn, every=1)
    load = f"{len(KINDS)} kinds of faults, each at every statement of a scene of 12 jobs"
    measured("F12, statements of PostgreSQL", load, f"{visited} points, all visited; lost 0, open transactions 0")


# --- one call at a time ---


class Calls:
    """What a Supervisor asks for seldom; each call can be repeated until it is answered, and has come about once."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self._number = 0

    async def prepare(self) -> None:
        """What a call is about: a tick that is new, a job under a key that has ended, another one that runs."""
        self._number += 1
        await self._store.beat(NODE, 600, join=True)
        old = new("old", queue=f"q{self._number}", unique_key=f"u{self._number}")
        running = new("running", queue=f"q{self._number}")
        await self._store.insert([old, running])
        first, self.running = (await self._store.fetch(old.queue, 2, node=NODE.id)).jobs
        (self.ended,) = [job for job in await self._store.apply([done(first)]) if job is not None]
        self.tick = Tick("tick", EPOCH + timedelta(hours=self._number))

    def all(self) -> dict[str, Callable[[], Awaitable[Any]]]:
        store, job = self._store, new(f"at {self._number}")
        again = Transition(self.ended, JobState.available)
        records = [Record("kind", f"{self._number} {n}", "1") for n in range(3)]
        return {
            "insert at a tick": lambda: store.insert([job], tick=self.tick),
            "run again, and end": lambda: store.apply([again, done(self.running)]),
            "purge": lambda: store.purge([JobState.completed], 0),
            "put records": lambda: store.put_records(records),
            "get records": lambda: store.get_records("kind"),
            "drop records": lambda: store.drop_records("kind"),
            "diagnose": store.diagnose,
            "the lifeline": lambda: asyncio.to_thread(self._renew),
        }

    def _renew(self) -> bool:
        life = self._store.lifeline()
        try:
            return life.renew(NODE.id, 60)
        finally:
            life.close()

    async def half_done(self) -> list[str]:
        """What has come about in part."""
        jobs = await self._store.select(JobQuery(limit=1000))
        at_tick = [job for job in jobs if job.worker == f"at {self._number}"]
        states = {job.id: job.state for job in jobs}
        ours = [states.get(self.ended.id), states[self.running.id]]
        records = [one for one in await self._store.get_records("kind") if one.key.startswith(f"{self._number} ")]
        wrong = [] if len(records) in (0, 3) else [f"{len(records)} records"]
        if ours[0] is JobState.available and ours[1] is not JobState.completed:
            wrong.append(f"of two steps one was taken: {ours}")
        spent = not await self._store.insert([new("unheard")], tick=self.tick)
        if (spent, len(at_tick)) not in ((True, 1), (False, 0)):
            wrong.append(f"the tick is {spent=}, with {len(at_tick)} jobs")
        return wrong


EPOCH = datetime(2030, 1, 1, tzinfo=UTC)
NODE = Node(id="ours")
STRIKES: dict[str, Fault] = {
    "the connection breaks": broken(after=False),
    "its answer gets lost once it is done": broken(after=True),
    "the server ends the connection": dying(),
    "the server refuses for good": failing("22P05"),
    "another transaction is in the way": failing("40001"),
    "there is no answer in time": hanging(HANG),
}
CANCELLED = "its caller is cancelled"


async def visit_each_alone(dsn: str, every: int) -> int:
    """Strike at each statement of each call, or at every so many of these; how many."""
    statements = Statements()
    statements.is_on = False
    current.set(statements)
    async with PostgresStore(dsn) as store:
        calls = Calls(store)
        found = await count_alone(calls, statements)
        missing = ALONE - {each.name for _, each in found}
        assert not missing, f"no call makes {missing}"
        visits = [(call, target, fault) for call, target in found for fault in [*STRIKES, CANCELLED]][::every]
        for call, target, fault in visits:
            await surely(calls.prepare)
            await strike(calls.all()[call], statements, target, fault)
            assert not await half_done(calls), (call, target, fault)
            await surely(calls.all()[call])
    return len(visits)


async def count_alone(calls: Calls, statements: Statements) -> list[tuple[str, Statement]]:
    found: list[tuple[str, Statement]] = []
    await calls.prepare()
    for name in calls.all():
        await calls.prepare()
        statements.passed.clear()
        statements.is_on = True
        await calls.all()[name]()
        statements.is_on = False
        for (phase, statement), count in statements.passed.items():
            found += [(name, Statement(phase, statement, nth)) for nth in range(1, count + 1)]
    return found


async def half_done(calls: Calls) -> list[str]:
    found: list[list[str]] = []

    async def look() -> None:
        found.append(await calls.half_done())

    await surely(look)
    return found[-1]


async def surely(call: Callable[[], Awaitable[Any]]) -> None:
    """Until it is answered; a busy machine may need more time than a call is given here."""
    async with asyncio.timeout(GUARD):
        while True:
            with suppress(StoreError):
                await call()
                return


async def strike(call: Callable[[], Awaitable[Any]], statements: Statements, target: Statement, fault: str) -> None:
    async def asking() -> None:
        with suppress(StoreError):
            await call()

    task = asyncio.get_running_loop().create_task(asking())
    statements.fault = STRIKES.get(fault) or meanwhile(task.cancel, 0.01)
    statements.target = target
    statements.passed.clear()
    statements.is_on = True
    async with asyncio.timeout(GUARD):
        await asyncio.wait({task})
        if task.cancelled():
            await asyncio.sleep(0.05)  # what was begun goes on
    statements.is_on = False


GUARD = 30.0


async def test_f12_row_54_a_call_that_is_struck_at_a_statement_leaves_nothing_half_done(pg_dsn: str) -> None:
    await visit_each_alone(pg_dsn, every=7)


@pytest.mark.soak
async def test_f12_row_54_a_call_that_is_struck_at_any_statement_leaves_nothing_half_done(
    pg_dsn: str, measured: Measured
) -> None:
    visited = await visit_each_alone(pg_dsn, every=1)
    measured("F12, calls of PostgreSQL", f"{len(STRIKES) + 1} kinds of faults, {visited} points", "half done 0")


async def test_row_55_a_rollback_that_fails_leaves_no_transaction_open(pg_dsn: str) -> None:
    statements = Statements(Statement("play", "ROLLBACK", 1), failing("53100"))
    current.set(statements)
    async with PostgresStore(pg_dsn, pool_size=1) as store:
        await store.insert([new(unique_key="k")])
        with pytest.raises((StoreError, UniqueConflict)):
            await store.insert([new(unique_key="k", unique_strategy=UniqueStrategy.REJECT)])
        assert statements.struck.is_set()
        await store.insert([new("later", unique_key="later")])
        statements.is_on = False
        assert await ask(pg_dsn, "SELECT count(*) FROM jobs_async_jobs WHERE worker = 'later'") == [(1,)]
        await no_open_transaction(pg_dsn)
