"""Jobs in a SQLite file: durable, on one machine, for any number of its processes (zzz_jobs: DbStore)."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec.structs import replace

from jobs_async.clock import SystemClock
from jobs_async.core.errors import OptionError, StoreClosed, StoreError
from jobs_async.core.job import FINAL, Job, JobState
from jobs_async.core.store import (
    MAX_PAGE,
    Beat,
    Clock,
    Fetched,
    JobQuery,
    Lifeline,
    Node,
    QueueInfo,
    Store,
    Tick,
    cutoff,
)
from jobs_async.stores import rows, work
from jobs_async.stores.due import Dues
from jobs_async.stores.select import may_scan, params, select
from jobs_async.stores.sqlite import file, guest
from jobs_async.stores.sqlite.lifeline import SqliteLifeline
from jobs_async.stores.sqlite.log import Log
from jobs_async.stores.sqlite.records import SqliteRecords
from jobs_async.stores.sqlite.schema import SqliteSchema
from jobs_async.stores.sqlite.writer import MAX_ROWS, SQL, Row, Session, Writer, typed
from jobs_async.tasks import to_the_end

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime

    import aiosqlite

    from jobs_async.core.lifecycle import Transition
    from jobs_async.core.limits import Seconds
    from jobs_async.core.options import NewJob
    from jobs_async.stores.session import Params

ENQUEUE_PATIENCE = 5.0
ENQUEUE_ADVICE = "; pass connection= or commit first"


class SqliteStore(SqliteRecords, SqliteSchema, Store):
    """A file of jobs, in WAL mode, each commit synced to disk.

    `path` is created, its folder is not. Any number of stores, in this process and in others on this machine, may
    work on one file; network file systems are not supported. `insert` and `apply` can join a transaction that the
    application has open on the same file, with `connection=`.
    """

    def __init__(self, path: str | os.PathLike[str], *, clock: Clock | None = None) -> None:
        self._path = os.fspath(path)
        if not self._path or ":memory:" in self._path or "mode=memory" in self._path:
            raise OptionError("SqliteStore needs the path of a file; for jobs in memory use MemoryStore()")
        self._clock = clock or SystemClock()
        self._opening = asyncio.Lock()
        self._writer: Writer | None = None
        self._write_connection: aiosqlite.Connection | None = None
        self._reader: Session | None = None
        self._read_connection: aiosqlite.Connection | None = None
        self._searching = asyncio.Lock()
        self._searcher: Session | None = None
        self._search_connection: aiosqlite.Connection | None = None
        self._due = Dues()

    def __repr__(self) -> str:
        return f"SqliteStore({self._path!r})"

    # --- life time ---

    async def open(self) -> None:
        """Connect, and bring the schema up to date.

        Raises:
            SchemaError: the file was written by a newer version, or is no database of jobs.
            StoreBusy: somebody's write transaction is in the way of making a new file, or an old one, ready.
            StoreError: the file cannot be opened, or SQLite is older than 3.38.
        """
        began = self._writer is None
        try:
            await to_the_end(self._open())
        except asyncio.CancelledError:
            if began:
                await self.close()
            raise

    async def _open(self) -> None:
        async with self._opening:
            if self.is_open:
                return
            await self._disconnect()  # of an event loop that has ended
            if sqlite3.sqlite_version_info < (3, 38):
                raise StoreError(f"SQLite 3.38 or newer is needed, this Python brings {sqlite3.sqlite_version}")
            try:
                self._write_connection = await file.connect(self._path)
                await file.migrate(self._write_connection)
                self._read_connection = await file.connect(self._path)
            except BaseException as error:
                await self._disconnect()
                if isinstance(error, sqlite3.Error):
                    raise file.unopened(self._path, error) from error
                raise
            self._reader = Session(self._read_connection)
            self._writer = Writer(self._write_connection, Log(self._path))

    async def close(self) -> None:
        await to_the_end(self._close())

    async def _close(self) -> None:
        async with self._opening:
            writer, self._writer, self._reader = self._writer, None, None
            if writer is not None:
                await writer.close()
            await self._disconnect()

    async def _disconnect(self) -> None:
        self._searcher = None
        await self._give_up_search()
        await file.disconnect(self._search_connection, self._read_connection, self._write_connection)

    @property
    def is_open(self) -> bool:
        return self._writer is not None and self._writer.is_alive

    def _open_writer(self) -> Writer:
        if self._writer is None:
            raise self._not_open()
        return self._writer

    async def _read(self, sql: str, params: Params | Sequence[Any] = ()) -> list[Row]:
        if self._reader is None:
            raise self._not_open()
        return await _answer(self._reader, sql, params)

    async def _search(self, sql: str, params: Params | Sequence[Any] = ()) -> list[Row]:
        """Ask what may take long on a connection of its own, opened for the first such question: no claim waits."""
        async with self._searching:  # what was given up before it began never begins
            if self._searcher is None:
                await to_the_end(self._open_searcher())
            if self._searcher is None:
                raise self._not_open()
            try:
                return await _answer(self._searcher, sql, params)
            except asyncio.CancelledError:
                await self._give_up_search()
                raise
            except StoreError as error:
                if self._writer is None:  # given up by the close
                    raise self._not_open() from error
                raise

    async def _give_up_search(self) -> None:
        if self._search_connection is not None:
            with suppress(ValueError, sqlite3.Error):  # closed meanwhile
                await self._search_connection.interrupt()

    async def _open_searcher(self) -> None:
        async with self._opening:
            if self.is_open and self._searcher is None:
                try:
                    self._search_connection = await file.connect(self._path)
                except sqlite3.Error as error:
                    raise typed(error) from error
                self._searcher = Session(self._search_connection)

    def _lease(self) -> dict[str, Any]:
        """The time by which leases are judged: that of this boot of the machine."""
        boot, uptime = self._clock.uptime()
        return {"boot": boot, "uptime": uptime}

    def _not_open(self) -> StoreClosed:
        return StoreClosed(f"{self!r} is not open: use `async with`, or give it to a Supervisor")

    # --- jobs in ---

    async def insert(
        self, new: Sequence[NewJob], *, tick: Tick | None = None, connection: object = None
    ) -> list[Job[Any]]:
        """As `Store.insert`; with a `connection` of aiosqlite or SQLAlchemy, inside the transaction that is open there.

        Raises:
            StoreBusy: another connection has held a write transaction for 5 seconds.
            OptionError, SchemaError: `connection` is none that leads to this file.
        """
        if connection is not None:
            now = self._clock.now()
            return await guest.visit(connection, self._path, lambda session: work.insert_keyed(session, new, tick, now))
        keyed = tick is not None or any(item.unique_key or item.idempotency_key for item in new)
        writer = self._open_writer()
        if keyed:
            jobs = await writer.do(self._insert_keyed, (new, tick), patience=ENQUEUE_PATIENCE, advice=ENQUEUE_ADVICE)
        elif new:
            jobs = await writer.do(
                self._insert_plain, new, single=len(new) <= MAX_ROWS, patience=ENQUEUE_PATIENCE, advice=ENQUEUE_ADVICE
            )
        else:
            jobs = []
        self._due.mind(jobs)
        return jobs

    async def _insert_plain(self, session: Session, asked: list[Sequence[NewJob]]) -> list[list[Job[Any]]]:
        jobs = iter(await work.insert_plain(session, [new for batch in asked for new in batch], self._clock.now()))
        return [list(islice(jobs, len(batch))) for batch in asked]

    async def _insert_keyed(
        self, session: Session, asked: list[tuple[Sequence[NewJob], Tick | None]]
    ) -> list[list[Job[Any]]]:
        return [await work.insert_keyed(session, new, tick, self._clock.now()) for new, tick in asked]

    # --- jobs out, and what becomes of them ---

    async def fetch(self, queue: str, limit: int, *, node: str | None) -> Fetched:
        writer, due = self._open_writer(), self._due[queue]
        now, (_, uptime) = self._clock.now(), self._clock.uptime()
        stage = due.is_due(now)
        if stage or due.is_old(uptime):
            ((ready, at),) = await self._read(SQL["peek"], {"queue": queue})
            due.at, due.looked_at = None if at is None else rows.instant(at), uptime
            stage = due.is_due(now)
            if not ready and not stage:
                due.busy = False
                return Fetched([], due.seconds(now))
        claim = self._stage_and_claim if stage else self._claim
        jobs = await writer.do(claim, (queue, limit, node), single=not stage)
        due.busy = len(jobs) == limit
        return Fetched(jobs, due.seconds(now))

    async def _claim(self, session: Session, asked: list[tuple[str, int, str | None]]) -> list[list[Job[Any]]]:
        return [await self._claim_one(session, *each) for each in asked]

    async def _stage_and_claim(
        self, session: Session, asked: list[tuple[str, int, str | None]]
    ) -> list[list[Job[Any]]]:
        now = rows.micros(self._clock.now())
        for queue in {queue for queue, _, _ in asked}:
            await session.run("stage", {"queue": queue, "now": now})
            ((_, at),) = await session.run("peek", {"queue": queue})
            self._due[queue].at = None if at is None else rows.instant(at)
        return await self._claim(session, asked)

    async def _claim_one(self, session: Session, queue: str, limit: int, node: str | None) -> list[Job[Any]]:
        now = rows.micros(self._clock.now())
        asked = {"queue": queue, "limit": limit, "node": node, "now": now, **self._lease()}
        jobs = [session.mapping.to_job(row) for row in await session.run("claim", asked)]
        jobs.sort(key=_claim_order)
        return jobs

    async def apply(self, steps: Sequence[Transition], *, connection: object = None) -> list[Job[Any] | None]:
        """As `Store.apply`; with a `connection`, inside the transaction that is open there.

        Raises:
            OptionError, SchemaError: `connection` is none that leads to this file.
            StoreBusy: another connection has held a write transaction for too long.
        """
        if connection is not None:
            now = self._clock.now()
            return await guest.visit(connection, self._path, lambda session: work.apply_within(session, steps, now))
        if not steps:
            return []
        batch = work.Batch(steps)
        applied = await self._open_writer().do(self._apply, batch, single=batch.is_single(MAX_ROWS))
        self._due.mind(applied)
        return applied

    async def _apply(self, session: Session, asked: list[work.Batch]) -> list[list[Job[Any] | None]]:
        return [await work.apply_steps(session, batch, self._clock.now()) for batch in asked]

    # --- questions and housekeeping ---

    async def select(self, query: JobQuery) -> list[Job[Any]]:
        sql = select(query, SQL)
        asked = {**params(query, Session.mapping, self._clock.now()), **self._lease()}
        found = await (self._search(sql, asked) if may_scan(query) else self._read(sql, asked))
        return [Session.mapping.to_job(row) for row in found]

    async def delete(self, ids: Sequence[int], *, states: Iterable[JobState] | None = None) -> int:
        chosen = frozenset(JobState if states is None else states)
        return len(await self._change("delete", {"ids": rows.dumps(list(ids)), "states": rows.dumps(sorted(chosen))}))

    async def purge(self, states: Iterable[JobState], older_than: Seconds | datetime, limit: int = MAX_PAGE) -> int:
        before, purged = rows.micros(cutoff(older_than, self._clock.now())), 0
        for state in sorted(FINAL.intersection(states)):
            asked = {"state": int(state), "before": before, "limit": limit - purged}
            purged += len(await self._change("purge", asked))
        return purged

    async def tally(self) -> Mapping[tuple[str, JobState], int]:
        return {(queue, JobState(state)): count for queue, state, count in await self._search(SQL["tally"])}

    async def set_queue(self, name: str, *, paused: bool | None = None, limit: int | None = None) -> bool:
        return await self._open_writer().do(self._set_queues, (name, paused, limit))

    async def _set_queues(self, session: Session, asked: list[tuple[str, bool | None, int | None]]) -> list[bool]:
        return [await work.set_queue(session, *each) for each in asked]

    async def queues(self) -> Mapping[str, QueueInfo]:
        return work.to_queues(await self._read(SQL["queues"]))

    async def _change(self, statement: str, params: dict[str, Any]) -> list[Row]:
        """Run one writing statement."""

        async def change(session: Session, asked: list[dict[str, Any]]) -> list[list[Row]]:
            return [await session.run(statement, each) for each in asked]

        return await self._open_writer().do(change, params, single=True)

    # --- nodes ---

    async def beat(self, node: Node, ttl: float, *, join: bool = False) -> Beat:
        return await self._open_writer().do(self._beat, (node, ttl, join))

    async def _beat(self, session: Session, asked: list[tuple[Node, float, bool]]) -> list[Beat]:
        now, lease = self._clock.now(), self._lease()
        return [await work.beat(session, node, ttl, now, lease, join=join) for node, ttl, join in asked]

    def lifeline(self) -> Lifeline:
        return SqliteLifeline(self._path, self._clock)

    async def nodes(self) -> list[Node]:
        boot, uptime = self._clock.uptime()
        return [
            replace(
                msgspec.json.decode(info, type=Node),
                started_at=rows.instant(started),
                beat_at=rows.instant(beaten),
                alive=its_boot == boot and expires > uptime,
            )
            for _, its_boot, expires, started, beaten, info in await self._read(SQL["nodes"])
        ]


async def _answer(session: Session, sql: str, params: Params | Sequence[Any]) -> list[Row]:
    try:
        return await session.rows(sql, params)
    except (sqlite3.Error, ValueError) as error:
        raise typed(error) from error


def _claim_order(job: Job[Any]) -> tuple[int, int]:
    return job.priority, job.id
