"""A fourth store, written from the page "Write a store in an hour".

`ShelfStore` uses SQLite as a plain shelf: one table of keys and JSON documents. Beside it stand a catalogue, `card`, by
which jobs are found, and the list of spent ticks.

A `Desk` does the primitives, inside one transaction. The store has a thread of its own, which alone touches the
connection, and lays a desk there for each call.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import msgspec
from msgspec.structs import replace

from jobs_async import (
    Job,
    JobQuery,
    JobState,
    Store,
    StoreBusy,
    StoreClosed,
    StoreError,
    StoreFull,
    UniqueConflict,
    UniqueStrategy,
    WriteRefused,
)
from jobs_async.clock import SystemClock
from jobs_async.core import lifecycle
from jobs_async.core.job import DEFERRED, FINAL, LIVE
from jobs_async.core.lifecycle import Transition
from jobs_async.core.options import NewJob
from jobs_async.core.store import MAX_PAGE, Beat, Clock, Fetched, Node, QueueInfo, Tick, cutoff

P = ParamSpec("P")
T = TypeVar("T")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
PATIENCE = 5.0  # seconds to wait for another process's lock; the runtime waits 11 for us
WEEK = timedelta(days=7) // timedelta(microseconds=1)

FURNITURE = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS shelf (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (name TEXT, at INTEGER, PRIMARY KEY (name, at)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS card (
    id INTEGER PRIMARY KEY, queue TEXT NOT NULL, state INTEGER NOT NULL, priority INTEGER NOT NULL,
    due INTEGER, ended INTEGER, node TEXT, held TEXT, worker TEXT NOT NULL, once TEXT
);
CREATE INDEX IF NOT EXISTS card_ready ON card (queue, state, priority, id);
CREATE INDEX IF NOT EXISTS card_due ON card (queue, state, due);
CREATE INDEX IF NOT EXISTS card_ended ON card (state, ended);
CREATE UNIQUE INDEX IF NOT EXISTS card_held ON card (held) WHERE held IS NOT NULL;
CREATE UNIQUE INDEX IF NOT EXISTS card_once ON card (worker, once) WHERE once IS NOT NULL;
"""
FILE_CARD = """
INSERT INTO card VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE SET queue = excluded.queue, state = excluded.state, priority = excluded.priority,
    due = excluded.due, ended = excluded.ended, node = excluded.node, held = excluded.held
"""
ONE_OF = "IN (SELECT value FROM json_each(?))"


class Lease(msgspec.Struct, frozen=True):
    """What a node said of itself, and until when it is believed: `ends` counts in the uptime named `boot`."""

    node: Node
    boot: str
    ends: float


def micros(at: datetime) -> int:
    """The instant in whole microseconds, which compare as instants do."""
    return (at - EPOCH) // timedelta(microseconds=1)


def listed(values: Iterable[object]) -> str:
    """The values as one parameter for `ONE_OF`."""
    return msgspec.json.encode(list(values)).decode()


class Desk:
    """The primitives, inside one transaction of `db`, and at one instant."""

    def __init__(self, db: sqlite3.Connection, clock: Clock) -> None:
        self.db = db
        self.now = clock.now()
        self.boot, self.uptime = clock.uptime()

    # The shelf

    def read(self, key: str, kind: type[T]) -> T | None:
        row = self.db.execute("SELECT value FROM shelf WHERE key = ?", (key,)).fetchone()
        return None if row is None else msgspec.json.decode(row[0], type=kind)

    def range(self, prefix: str, kind: type[T]) -> dict[str, T]:
        """All documents whose key begins with "prefix/", by the rest of it."""
        rows = self.db.execute("SELECT key, value FROM shelf WHERE key > ? AND key < ?", (f"{prefix}/", f"{prefix}0"))
        return {key[len(prefix) + 1 :]: msgspec.json.decode(value, type=kind) for key, value in rows}

    def keep(self, key: str, document: object) -> None:
        self.db.execute("INSERT OR REPLACE INTO shelf VALUES (?, ?)", (key, msgspec.json.encode(document)))

    def file(self, job: Job) -> Job:
        """Keep the job, and its card with it."""
        held = job.unique_key if job.state in LIVE else None
        ended = None if job.completed_at is None else micros(job.completed_at)
        what = (job.id, job.queue, job.state.value, job.priority, micros(job.scheduled_at), ended)
        self.db.execute(FILE_CARD, (*what, job.node, held, job.worker, job.idempotency_key))
        self.keep(f"job/{job.id}", job)
        return job

    def find(self, where: str, *values: object) -> Iterator[Job]:
        """The jobs whose cards meet the condition, as it says `ORDER BY`."""
        sql = f"SELECT shelf.value FROM card JOIN shelf ON shelf.key = 'job/' || card.id WHERE {where}"
        return (msgspec.json.decode(value, type=Job) for (value,) in self.db.execute(sql, values))

    # Jobs

    def insert(self, new: Sequence[NewJob], *, tick: Tick | None = None) -> list[Job]:
        if tick is not None and not self.spend(tick):
            return []
        return [self.admit(each) for each in new]

    def spend(self, tick: Tick) -> bool:
        earlier, at = "SELECT 1 FROM spent WHERE name = ? AND at < ?", micros(tick.at)
        if tick.late is not None and self.db.execute(earlier, (tick.late, at)).fetchone() is None:
            return False
        fresh = self.db.execute("INSERT OR IGNORE INTO spent VALUES (?, ?)", (tick.name, at)).rowcount == 1
        if fresh:
            self.db.execute("DELETE FROM spent WHERE name = ? AND at < ?", (tick.name, at - WEEK))
        return fresh

    def admit(self, new: NewJob) -> Job:
        if new.idempotency_key is not None:
            for twin in self.find("worker = ? AND once = ?", new.worker, new.idempotency_key):
                return replace(twin, duplicate=True)
        holder = self.holder(new.unique_key)
        if holder is not None:
            if new.unique_strategy is UniqueStrategy.IGNORE_NEW:
                return replace(holder, duplicate=True)
            if new.unique_strategy is UniqueStrategy.REJECT:
                raise UniqueConflict(holder)
            self.file(lifecycle.replaced(holder, self.now))
        number = (self.read("last-id", int) or 0) + 1
        self.keep("last-id", number)
        job = self.file(lifecycle.born(new, number, self.now))
        return job if holder is None else replace(job, replaces=holder.id)

    def holder(self, key: str | None) -> Job | None:
        return None if key is None else next(self.find("held = ?", key), None)

    def fetch(self, queue: str, limit: int, *, node: str | None) -> Fetched:
        info = self.read(f"queue/{queue}", QueueInfo)
        if (info and info.paused) or (node is not None and node not in self.living):
            return Fetched([])
        waiting, now = listed(state.value for state in DEFERRED), micros(self.now)
        for job in list(self.find(f"queue = ? AND state {ONE_OF} AND due <= ?", queue, waiting, now)):
            self.file(replace(job, state=JobState.available))
        ready = "queue = ? AND state = ? ORDER BY priority, id LIMIT ?"
        found = list(self.find(ready, queue, JobState.available.value, limit))
        taken = [self.file(lifecycle.claimed(job, node, self.now)) for job in found]
        deferred = self.find(f"queue = ? AND state {ONE_OF} ORDER BY due LIMIT 1", queue, waiting)
        waits = [(job.scheduled_at - self.now).total_seconds() for job in deferred]
        return Fetched(taken, min(waits, default=None))

    def apply(self, steps: Sequence[Transition]) -> list[Job | None]:
        return [self.step(step) for step in steps]

    def step(self, step: Transition) -> Job | None:
        row = self.read(f"job/{step.job.id}", Job)
        if row is None or not lifecycle.fits(row, step.job):
            return None
        revived = row.state in FINAL and step.target not in FINAL
        if revived and (holder := self.holder(row.unique_key)) is not None:
            raise UniqueConflict(holder)
        return self.file(lifecycle.advance(row, step, self.now))

    def select(self, query: JobQuery) -> list[Job]:
        where, values = ["true"], list[object]()
        for column, wanted in (("id", query.ids), ("queue", query.queues), ("worker", query.workers)):
            if wanted is not None:
                where.append(f"{column} {ONE_OF}")
                values.append(listed(wanted))
        if query.states is not None:
            where.append(f"state {ONE_OF}")
            values.append(listed(state.value for state in query.states))
        if query.orphaned:
            where.append(f"state = ? AND node IS NOT NULL AND node NOT {ONE_OF}")
            values += JobState.executing.value, listed(self.living)
        order = "DESC" if query.newest_first else "ASC"
        found = self.find(f"{' AND '.join(where)} ORDER BY id {order}", *values)
        return list(islice((job for job in found if query.accepts(job, self.now)), query.limit))

    def delete(self, ids: Iterable[int], states: Iterable[JobState] | None = None) -> int:
        gone, chosen = 0, frozenset(JobState if states is None else states) - {JobState.executing}
        for number in set(ids):
            sql = f"DELETE FROM card WHERE id = ? AND state {ONE_OF}"
            if self.db.execute(sql, (number, listed(state.value for state in chosen))).rowcount:
                self.db.execute("DELETE FROM shelf WHERE key = ?", (f"job/{number}",))
                gone += 1
        return gone

    def purge(self, states: Iterable[JobState], older_than: float | timedelta | datetime, limit: int = MAX_PAGE) -> int:
        final = listed(state.value for state in FINAL.intersection(states))
        before = micros(cutoff(older_than, self.now))
        return self.delete([job.id for job in self.find(f"state {ONE_OF} AND ended < ? LIMIT ?", final, before, limit)])

    def tally(self) -> dict[tuple[str, JobState], int]:
        rows = self.db.execute("SELECT queue, state, count(*) FROM card GROUP BY queue, state")
        return {(queue, JobState(state)): number for queue, state, number in rows}

    # Queues and nodes

    def set_queue(self, name: str, *, paused: bool | None = None, limit: int | None = None) -> bool:
        before = self.read(f"queue/{name}", QueueInfo) or QueueInfo()
        after = before.updated(paused, limit)
        self.keep(f"queue/{name}", after)
        return after != before

    def queues(self) -> dict[str, QueueInfo]:
        return self.range("queue", QueueInfo)

    @cached_property
    def leases(self) -> dict[str, Lease]:
        return self.range("node", Lease)

    @cached_property
    def living(self) -> set[str]:
        """The nodes with a live lease; asked only before one is written."""
        return {name for name, its in self.leases.items() if its.boot == self.boot and its.ends > self.uptime}

    def beat(self, node: Node, ttl: float, *, join: bool = False) -> Beat:
        known = self.leases.get(node.id)
        if node.id not in self.living and (known is not None or not join):
            return Beat(False, self.now)
        if known is None:
            self.forget_the_dead()
        said = replace(node, started_at=self.now if known is None else known.node.started_at, beat_at=self.now)
        self.keep(f"node/{node.id}", Lease(said, self.boot, self.uptime + ttl))
        mine = self.find("state = ? AND node = ?", JobState.executing.value, node.id)
        return Beat(ttl > 0, self.now, tuple(job.id for job in mine if job.cancel_requested))

    def forget_the_dead(self) -> None:
        long_ago = self.now - timedelta(days=1)
        silent = {name for name, its in self.leases.items() if its.node.beat_at and its.node.beat_at < long_ago}
        self.db.executemany("DELETE FROM shelf WHERE key = ?", [(f"node/{name}",) for name in silent - self.living])

    def nodes(self) -> list[Node]:
        return [replace(lease.node, alive=name in self.living) for name, lease in self.leases.items()]


@contextmanager
def translated() -> Iterator[None]:
    """What SQLite raises, in the words of the package."""
    try:
        yield
    except (sqlite3.DataError, OverflowError) as error:
        raise WriteRefused(str(error)) from error
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code; the rest is detail
        kinds: dict[int, type[StoreError]] = {sqlite3.SQLITE_BUSY: StoreBusy, sqlite3.SQLITE_FULL: StoreFull}
        raise kinds.get(code, StoreError)(str(error)) from error


def connect(path: Path) -> sqlite3.Connection:
    with translated():
        db = sqlite3.connect(path, PATIENCE)
        db.executescript(FURNITURE)
        return db


def transact(opened: Future[sqlite3.Connection], begin: str, clock: Clock, work: Callable[[Desk], T]) -> T:
    with translated(), opened.result() as db:  # commits, or rolls back where anything is raised
        db.execute(begin)
        return work(Desk(db, clock))


def disconnect(opened: Future[sqlite3.Connection]) -> None:
    if opened.exception() is None:
        opened.result().close()


def primitive(
    work: Callable[Concatenate[Desk, P], T], begin: str = "BEGIN IMMEDIATE"
) -> Callable[Concatenate["ShelfStore", P], Coroutine[Any, Any, T]]:
    """What a desk does, as a method of the store; "BEGIN" will do for what only reads."""

    async def call(store: "ShelfStore", /, *args: P.args, **options: P.kwargs) -> T:
        return await asyncio.wrap_future(store.submit(begin, lambda desk: work(desk, *args, **options)))

    return call


class ShelfStore(Store):
    """Jobs in a file of SQLite, for the processes of one machine."""

    def __init__(self, path: str | PathLike[str], *, clock: Clock | None = None) -> None:
        self._path, self._clock = Path(path), clock or SystemClock()
        self._staff: tuple[ThreadPoolExecutor, Future[sqlite3.Connection]] | None = None

    insert, fetch, apply = primitive(Desk.insert), primitive(Desk.fetch), primitive(Desk.apply)
    delete, purge, set_queue = primitive(Desk.delete), primitive(Desk.purge), primitive(Desk.set_queue)
    beat, select = primitive(Desk.beat), primitive(Desk.select, "BEGIN")
    tally, queues = primitive(Desk.tally, "BEGIN"), primitive(Desk.queues, "BEGIN")
    nodes = primitive(Desk.nodes, "BEGIN")

    def submit(self, begin: str, work: Callable[[Desk], T]) -> Future[T]:
        """Have the work done as one transaction, after all that was asked before."""
        if self._staff is None:
            raise StoreClosed("the shelf is closed: use `async with`, or give it to a Supervisor")
        thread, opened = self._staff
        return thread.submit(transact, opened, begin, self._clock, work)

    @property
    def is_open(self) -> bool:
        return self._staff is not None

    async def open(self) -> None:
        if self._staff is None:
            thread = ThreadPoolExecutor(1, "shelf")
            self._staff = thread, thread.submit(connect, self._path)
            try:
                opening = asyncio.wrap_future(self._staff[1])
                await asyncio.wait([opening])  # unlike a bare `await`, it leaves the connecting alone when cancelled
                opening.result()
            except BaseException:
                await self.close()
                raise

    async def close(self) -> None:
        """Take no more; what was asked comes to its end, and then the connection is closed."""
        staff, self._staff = self._staff, None
        if staff is not None:
            thread, opened = staff
            last = asyncio.wrap_future(thread.submit(disconnect, opened))
            thread.shutdown(wait=False)
            await asyncio.wait([last], timeout=1.5)
