"""Statements go by their index, whatever the planner knew when it planned them and however large the table is now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from jobs_async.core.errors import StoreBusy, UniqueConflict
from jobs_async.core.job import Job, JobState
from jobs_async.core.lifecycle import Patch, Transition, decide, rerun
from jobs_async.core.options import UniqueStrategy
from jobs_async.core.outcome import Failed, Failure
from jobs_async.core.store import JobQuery, Node
from jobs_async.stores.postgres import PostgresStore
from tests.cluster import VERSIONS
from tests.conftest import Measured
from tests.postgres.support import PATIENCE, ask, connected, done, new

WARM = 12
"""So often is each statement run before there is anything to be found: by then its plan is kept, and used for ever."""

_FILL = """
INSERT INTO jobs_async_jobs (
    state, queue, worker, args, priority, attempt, max_attempts, scheduled_at, inserted_at, attempted_at,
    completed_at, rescues, claim, node, cancel_requested, unique_key, idempotency_key, external_id
)
SELECT $2::smallint, $3, 'work', '{}', n % 7, 1, 20, now() + $4::interval + n * interval '1 ms', now(),
    CASE WHEN $2 <> 0 THEN now() - interval '1 hour' END, now() + $5::interval + n * interval '1 us', 0, 1, $6,
    $2 = 1 AND n % 5 = 0, CASE WHEN n % 100 = 0 THEN $7 || n END, CASE WHEN n % 100 = 0 THEN $7 || n END,
    CASE WHEN n % 100 = 0 THEN $7 || n END
FROM generate_series(1, $1::integer) AS n
"""


@dataclass
class Size:
    finished: int
    future: int
    claimable: int


SMALL = Size(50_000, 25_000, 2_000)
LARGE = Size(1_000_000, 500_000, 10_000)


async def fill(connection: asyncpg.Connection[Any], count: int, state: JobState, **values: Any) -> None:
    given = {"queue": "default", "in": timedelta(), "ended": None, "node": None, "name": state.name, **values}
    await connection.execute(_FILL, count, int(state), *given.values())


async def load(connection: asyncpg.Connection[Any], size: Size) -> None:
    """A history, jobs for later, a few to be run now, and what runs."""
    century, year = timedelta(days=36_500), timedelta(days=-365)
    await fill(connection, size.finished, JobState.completed, ended=year)
    await fill(connection, size.future // 2, JobState.scheduled, queue="later", **{"in": century})
    await fill(connection, size.future // 2, JobState.retryable, queue="later", **{"in": century})
    await fill(connection, size.claimable, JobState.available)
    await fill(connection, 50, JobState.executing, node="alive")
    await fill(connection, 5, JobState.executing, node="dead", name="dead")


# --- what the store does ---


@dataclass
class Scene:
    store: PostgresStore
    onlooker: asyncpg.Connection[Any]
    turn: int = 0

    def key(self, name: str) -> str:
        self.turn += 1
        return f"{name} {id(self)} {self.turn}"


Operation = Callable[[Scene], Awaitable[None]]


async def claim(scene: Scene) -> None:
    await scene.store.insert([new() for _ in range(10)])
    jobs = (await scene.store.fetch("default", 10, node="alive")).jobs
    assert len(jobs) == 10
    await scene.store.apply([done(job) for job in jobs])


async def claim_one(scene: Scene) -> None:
    await scene.store.insert([new()])
    [job] = (await scene.store.fetch("default", 1, node=None)).jobs
    await scene.store.apply([done(job)])


async def find_nothing(scene: Scene) -> None:
    assert (await scene.store.fetch("later", 10, node="alive")).jobs == []


async def stage(scene: Scene) -> None:
    await fill(scene.onlooker, 3, JobState.retryable, queue="later", **{"in": timedelta(hours=-1)})
    jobs = (await scene.store.fetch("later", 10, node="alive")).jobs
    assert len(jobs) == 3
    await scene.store.apply([done(job) for job in jobs])


async def end(scene: Scene) -> None:
    for count in (1, 3, 30):
        await scene.store.insert([new(queue="end") for _ in range(count)])
        jobs = (await scene.store.fetch("end", count, node="alive")).jobs
        assert all(await scene.store.apply([done(job) for job in jobs]))


async def apply(scene: Scene) -> None:
    for count in (1, 3, 30):
        await scene.store.insert([new(queue="apply") for _ in range(count)])
        jobs = (await scene.store.fetch("apply", count, node="alive")).jobs
        failed = await scene.store.apply([decide(job, Failed(Failure("E", "E")), 1e8) for job in jobs])
        assert await scene.store.delete([job.id for job in failed if job is not None]) == count


async def meet_unique_key(scene: Scene) -> None:
    key = scene.key("unique")
    await scene.store.insert([new(queue="keys", unique_key=key), new(queue="keys", unique_key=scene.key("unique"))])
    again = new(queue="keys", unique_key=key, unique_strategy=UniqueStrategy.CANCEL_EXISTING)
    assert (await scene.store.insert([again]))[0].replaces


async def meet_idempotency_key(scene: Scene) -> None:
    job = new(queue="keys", idempotency_key=scene.key("idempotency"))
    await scene.store.insert([job])
    assert (await scene.store.insert([job, new(queue="keys", idempotency_key=scene.key("other"))]))[0].duplicate


async def run_again(scene: Scene) -> None:
    key = scene.key("again")
    await scene.store.insert([new(queue="again", unique_key=key)])
    [job] = (await scene.store.fetch("again", 1, node="alive")).jobs
    [ended] = await scene.store.apply([done(job)])
    assert ended is not None
    [twin] = await scene.store.insert([new(queue="again", unique_key=key)])
    with pytest.raises(UniqueConflict):
        await scene.store.apply([rerun(ended)])
    await scene.store.delete([twin.id])
    [live] = await scene.store.apply([rerun(ended)])
    assert live is not None
    await scene.store.delete([live.id])


async def find_orphans(scene: Scene) -> None:
    await scene.store.select(JobQuery(orphaned=True, newest_first=False, limit=1000))
    await scene.store.select(JobQuery(orphaned=True, newest_first=False, after=5, limit=1000))


async def find_a_nodes_own(scene: Scene) -> None:
    await scene.store.select(JobQuery(states=[JobState.executing], node="alive", newest_first=False, limit=1000))


async def find_by_external_id(scene: Scene) -> None:
    for external_id in ("completed100", ["scheduled100", "completed100", "unknown"]):
        for newest_first in (True, False):
            await scene.store.select(JobQuery(external_id=external_id, newest_first=newest_first))
            await scene.store.select(JobQuery(external_id=external_id, newest_first=newest_first, after=9, limit=1000))
    await scene.store.select(JobQuery(external_id="completed100", queue="default", states=[JobState.completed]))


async def find_what_is_due(scene: Scene) -> None:
    for queue in ("later", ["later", "elsewhere"]):
        for newest_first in (True, False):
            await scene.store.select(JobQuery(due=True, queue=queue, newest_first=newest_first, limit=10))
            await scene.store.select(JobQuery(due=True, queue=queue, newest_first=newest_first, after=1, limit=1000))


async def purge(scene: Scene) -> None:
    await scene.store.purge([JobState.completed], 180 * 86_400, 10)


async def purge_what_is_rare(scene: Scene) -> None:
    """Of all that has ended, only a state of which there is none."""
    await scene.store.purge([JobState.discarded], 0)


async def by_id(scene: Scene) -> None:
    [job] = await scene.store.insert([new(queue="by id")])
    await scene.store.get(job.id)
    await scene.store.select(JobQuery(ids=[1, 2, 3]))
    assert await scene.store.delete([job.id]) == 1


async def renew(scene: Scene) -> None:
    assert (await scene.store.beat(Node(id="alive"), 1e6)).alive


JOBS, CLAIMABLE, DUE, EXECUTING = (
    "jobs_async_jobs_pkey",
    "jobs_async_claimable",
    "jobs_async_due",
    "jobs_async_executing",
)
OPERATIONS: dict[str, tuple[Operation, set[str]]] = {
    "claim": (claim, {CLAIMABLE, JOBS}),
    "claim one": (claim_one, {CLAIMABLE, JOBS}),
    "find nothing": (find_nothing, {CLAIMABLE, DUE}),
    "stage": (stage, {DUE, JOBS, CLAIMABLE}),
    "end": (end, {JOBS}),
    "apply": (apply, {JOBS}),
    "meet a unique key": (meet_unique_key, {"jobs_async_unique"}),
    "meet an idempotency key": (meet_idempotency_key, {"jobs_async_idempotent"}),
    "run again": (run_again, {"jobs_async_unique", JOBS}),
    "find orphans": (find_orphans, {EXECUTING}),
    "find a node's own": (find_a_nodes_own, {EXECUTING}),
    "find by external id": (find_by_external_id, {"jobs_async_external"}),
    "find what is due": (find_what_is_due, {CLAIMABLE, DUE}),
    "purge": (purge, {"jobs_async_ended"}),
    "purge what is rare": (purge_what_is_rare, {"jobs_async_ended"}),
    "by id": (by_id, {JOBS}),
    "renew": (renew, {EXECUTING}),
}

AVOIDED = {"end": EXECUTING}
"""An index every job passes through, so that it holds what is dead wherever an old transaction keeps that alive."""


# --- what that costs ---


@dataclass
class Effort:
    scans: int
    """Sequential scans of the jobs."""
    rows: dict[str, int]
    """Entries read, by index."""
    pages: int
    """Of the jobs and their indexes, from a cache or not."""


_COUNTED = """
SELECT seq_scan, heap_blks_read + heap_blks_hit + idx_blks_read + idx_blks_hit
FROM pg_stat_user_tables JOIN pg_statio_user_tables USING (relid)
WHERE pg_stat_user_tables.relname = 'jobs_async_jobs'
"""
_BY_INDEX = "SELECT indexrelname, idx_scan, idx_tup_read FROM pg_stat_user_indexes WHERE relname = 'jobs_async_jobs'"


class Watched:
    """A store, and the counters of the server for what it does."""

    def __init__(self, dsn: str, onlooker: asyncpg.Connection[Any]) -> None:
        self._dsn = dsn
        self._connections: list[asyncpg.Connection[Any]] = []
        self.store = PostgresStore(connect=self._connect, listen=False)
        self.scene = Scene(self.store, onlooker)

    async def _connect(self) -> asyncpg.Connection[Any]:
        connection = await asyncpg.connect(self._dsn)
        self._connections.append(connection)
        return connection

    async def _counters(self) -> tuple[int, int, dict[str, tuple[int, int]]]:
        for connection in [*self._connections, self.scene.onlooker]:
            if not connection.is_closed():
                await connection.execute("SELECT pg_stat_force_next_flush()")
        [(scans, pages)] = await self.scene.onlooker.fetch(_COUNTED)
        indexes = await self.scene.onlooker.fetch(_BY_INDEX)
        return scans, pages, {name: (scanned, read) for name, scanned, read in indexes}

    async def effort(self, operation: Operation) -> Effort:
        """What an operation takes."""
        scans, pages, before = await self._counters()
        await operation(self.scene)
        scans_after, pages_after, after = await self._counters()
        used = {name: read - before[name][1] for name, (scanned, read) in after.items() if scanned > before[name][0]}
        return Effort(scans_after - scans, used, pages_after - pages)


async def complaints(watched: Watched, few: dict[str, Effort], when: str) -> list[str]:
    """What a store does that it need not."""
    found: list[str] = []
    for name, (operation, indexes) in OPERATIONS.items():
        effort = await watched.effort(operation)
        by_index = indexes <= effort.rows.keys() and AVOIDED.get(name) not in effort.rows
        if effort.scans or not by_index or effort.pages > 2 * few[name].pages + 200:
            found.append(f"{when}: {name}: {effort}, {few[name].pages} pages of the small table")
    return found


async def survey(dsn: str, size: Size, *, analysed_young: bool) -> list[str]:
    """What is wrong with the plans of a store whose table has grown since they were made, and of others since."""
    async with connected(dsn) as onlooker, AsyncExitStack() as stack:

        async def opened() -> Watched:
            watched = Watched(dsn, onlooker)
            await stack.enter_async_context(watched.store)
            return watched

        old = await opened()
        await onlooker.execute("ALTER TABLE jobs_async_jobs SET (autovacuum_enabled = false)")
        await old.store.beat(Node(id="alive"), 1e6, join=True)
        for turn in range(WARM):
            for operation, _ in OPERATIONS.values():
                await operation(old.scene)
            if turn == WARM // 2 and analysed_young:
                await onlooker.execute("ANALYZE jobs_async_jobs")
        few = {name: await old.effort(operation) for name, (operation, _) in OPERATIONS.items()}
        await load(onlooker, size)
        found = await complaints(old, few, "planned when the table was small")
        found += await complaints(await opened(), few, "planned without knowing that it grew")
        await onlooker.execute("ANALYZE jobs_async_jobs")
        found += await complaints(old, few, "planned anew")
        return found + await complaints(await opened(), few, "planned with true statistics")


async def test_no_statement_reads_the_table_whatever_the_planner_knew(pg_dsn: str) -> None:
    assert await survey(pg_dsn, SMALL, analysed_young=False) == []


@pytest.mark.soak
@pytest.mark.parametrize("analysed_young", [False, True], ids=["never analysed", "analysed when small"])
@pytest.mark.parametrize("pg_version", VERSIONS, indirect=True)
async def test_no_statement_reads_a_table_of_a_million_whatever_the_planner_knew(
    pg_dsn: str, pg_version: int, analysed_young: bool, measured: Measured
) -> None:
    assert await survey(pg_dsn, LARGE, analysed_young=analysed_young) == []
    known = "analysed when small" if analysed_young else "never analysed"
    load = f"1,000,000 finished, 500,000 later, 10,000 waiting; {known}; PostgreSQL {pg_version}"
    measured("plans", load, f"{len(OPERATIONS)} operations, scans 0")


# --- limits, and what an old transaction keeps alive ---


async def test_row_24_no_claim_takes_more_than_its_limit_whatever_the_planner_knew(pg_dsn: str) -> None:
    async with connected(pg_dsn) as onlooker, AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(PostgresStore(pg_dsn, listen=False)) for _ in range(3)]
        await onlooker.execute("ALTER TABLE jobs_async_jobs SET (autovacuum_enabled = false)")
        for _ in range(WARM):
            await stores[0].insert([new()])
            assert len((await stores[0].fetch("default", 1, node=None)).jobs) == 1
        seen: set[int] = set()
        for number in range(3):
            await fill(onlooker, 5_000, JobState.available, name=f"turn {number} ")
            if number == 2:
                await onlooker.execute("ANALYZE jobs_async_jobs")
            for limit in (1, 7, 100):
                claims = await asyncio.gather(*(store.fetch("default", limit, node=None) for store in stores * 5))
                for claim in claims:
                    assert len(claim.jobs) == limit
                    assert [job.priority for job in claim.jobs] == sorted(job.priority for job in claim.jobs)
                    assert {job.attempt for job in claim.jobs} == {2}, "each was claimed once, and had one before"
                ids = [job.id for claim in claims for job in claim.jobs]
                assert len(ids) == len(set(ids))
                assert not seen & set(ids)
                seen.update(ids)


class Held:
    """A store at work while somebody else's transaction sees the database as it was."""

    def __init__(self, dsn: str, onlooker: asyncpg.Connection[Any]) -> None:
        self._watched = Watched(dsn, onlooker)
        self._jobs: list[Job[Any]] = []

    async def __aenter__(self) -> Held:
        await self._watched.store.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._watched.store.close()

    async def _insert(self, scene: Scene) -> None:
        await scene.store.insert([new() for _ in range(10)])

    async def _claim(self, scene: Scene) -> None:
        self._jobs = (await scene.store.fetch("default", 10, node=None)).jobs
        assert len(self._jobs) == 10

    async def _settle(self, scene: Scene) -> None:
        assert all(await scene.store.apply([done(job) for job in self._jobs]))

    async def work(self, rounds: int) -> float:
        """So many times ten jobs; how many a second."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        for _ in range(rounds):
            for step in (self._insert, self._claim, self._settle):
                await step(self._watched.scene)
        return 10 * rounds / (loop.time() - begun)

    async def pages(self) -> tuple[int, int, int]:
        """What inserting, claiming and settling ten jobs takes."""
        insert = await self._watched.effort(self._insert)
        claim = await self._watched.effort(self._claim)
        settle = await self._watched.effort(self._settle)
        return insert.pages, claim.pages, settle.pages


OLD = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1 FROM jobs_async_jobs LIMIT 1"


async def test_row_56_what_an_old_transaction_keeps_alive_costs_claims_little_and_once_it_ended_nothing(
    pg_dsn: str,
) -> None:
    async with connected(pg_dsn) as onlooker, connected(pg_dsn) as old, Held(pg_dsn, onlooker) as held:
        await onlooker.execute("ALTER TABLE jobs_async_jobs SET (autovacuum_enabled = false)")
        await held.work(30)
        insert, claim, settle = await held.pages()
        await old.execute(OLD)
        await held.work(100)
        insert_then, claim_then, settle_then = await held.pages()
        assert insert_then <= 2 * insert
        assert settle_then <= 2 * settle
        assert claim_then <= 2 * claim + 1_000 / 8, "of what is dead, eight or more share a page"
        await old.execute("ROLLBACK")
        await held.work(2)
        assert (await held.pages())[1] <= 2 * claim


@pytest.mark.soak
async def test_row_56_a_minute_of_an_old_transaction_costs_less_than_two_fifths(
    pg_dsn: str, measured: Measured
) -> None:
    async with connected(pg_dsn) as onlooker, connected(pg_dsn) as old, Held(pg_dsn, onlooker) as held:
        await held.work(100)
        before = await held.work(300)
        await old.execute(OLD)
        async with asyncio.timeout(300):
            begun = asyncio.get_running_loop().time()
            while asyncio.get_running_loop().time() < begun + 60:
                await held.work(10)
        then = await held.work(300)
        await old.execute("ROLLBACK")
        await held.work(10)
        after = await held.work(300)
        claims = (await held.pages())[1]
    measured("row 56", "a transaction open for 60 s", f"{before:.0f} jobs/s before, {then:.0f}, {after:.0f} after")
    assert then >= 0.6 * before
    assert claims < 300


async def test_whoever_writes_several_rows_locks_them_in_the_order_of_their_ids(pg_dsn: str) -> None:
    async with PostgresStore(pg_dsn) as store, connected(pg_dsn) as other, connected(pg_dsn) as onlooker:
        await store.insert([new() for _ in range(3)])
        claimed = (await store.fetch("default", 3, node=None)).jobs
        for steps in (
            [done(job) for job in claimed],
            [Transition(job, job.state, patch=Patch(priority=1)) for job in claimed],
        ):
            async with asyncio.timeout(PATIENCE), other.transaction():
                await other.execute("SELECT FROM jobs_async_jobs WHERE id = $1 FOR UPDATE", claimed[1].id)
                writing = asyncio.create_task(store.apply(steps[::-1]))
                while not await onlooker.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                    await asyncio.sleep(0.005)
                free = await onlooker.fetch("SELECT id FROM jobs_async_jobs FOR UPDATE SKIP LOCKED")
            assert [id for (id,) in free] == [claimed[2].id]
            with suppress(StoreBusy):
                await writing
            await ask(pg_dsn, "UPDATE jobs_async_jobs SET state = 1, completed_at = NULL")
