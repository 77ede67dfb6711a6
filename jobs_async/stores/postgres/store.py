"""Jobs in PostgreSQL: durable, for any number of machines."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec.structs import replace

from jobs_async.clock import SystemClock
from jobs_async.core.errors import OptionError, StoreClosed, StoreError
from jobs_async.core.job import FINAL, Job, JobState
from jobs_async.core.limits import integer
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
from jobs_async.stores import work
from jobs_async.stores.due import Dues
from jobs_async.stores.postgres import diagnosis, migrations
from jobs_async.stores.postgres.clock import GivenLeases, ServerClock
from jobs_async.stores.postgres.dialect import SQL, schema_name
from jobs_async.stores.postgres.guest import guest
from jobs_async.stores.postgres.hints import Hints
from jobs_async.stores.postgres.lane import Lane
from jobs_async.stores.postgres.lifeline import PostgresLifeline
from jobs_async.stores.postgres.line import Do, Line, Lines
from jobs_async.stores.postgres.listener import Listener
from jobs_async.stores.postgres.records import PostgresRecords
from jobs_async.stores.postgres.server import ASKING, CLAIMING, SETTINGS, SETTLING, Connect, Server
from jobs_async.stores.postgres.session import MAX_ROWS, Session
from jobs_async.stores.rows import dumps
from jobs_async.stores.select import params, select
from jobs_async.tasks import finish_anyway, to_the_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime

    from jobs_async.core.health import Finding
    from jobs_async.core.hint import Hint
    from jobs_async.core.lifecycle import Transition
    from jobs_async.core.limits import Seconds
    from jobs_async.core.options import NewJob

T = TypeVar("T")

CLOSE_SECONDS = 0.5
HEARING_SECONDS = 4.0
"""How long a diagnosis waits for a word to come back; a little more than a listener does."""


class PostgresStore(PostgresRecords, Store):
    """A schema of jobs in a PostgreSQL database, 14 or newer.

    `dsn` is an address such as postgresql://user@host/database; or `connect` an async function that makes an asyncpg
    connection, for tokens that expire and the like. It may be called in another event loop, too. Up to five
    connections are held for what must not wait (claims, settlements, enqueues, signs of life, listening), each made
    when first needed; `pool_size` counts the rest.

    Opening brings the schema up to date under a lock, or with `migrate=False` refuses an old one. Set `pooler` where
    the address leads to a transaction pooler such as PgBouncer: nothing is kept in a session, and hints of work to be
    done are not listened for. `listen=False` does without them elsewhere: then work is found by polling.

    Raises:
        OptionError: an option is not acceptable.
    """

    def __init__(
        self,
        dsn: str | None = None,
        *,
        connect: Connect | None = None,
        schema: str = "public",
        pool_size: int = 5,
        listen: bool = True,
        pooler: bool = False,
        migrate: bool = True,
        clock: Clock | None = None,
    ) -> None:
        quoted = schema_name(schema)
        self._server = Server(dsn, connect, quoted, Hints(quoted, spoken=listen), pooler=pooler)
        self._schema = schema
        self._pool_size = integer(pool_size, "pool_size", 1, 1000)
        self._listens = listen and not pooler
        self._migrates = migrate
        self._server_clock = None if clock else ServerClock()
        self._given_leases = GivenLeases(clock) if clock else None
        self._clock: Clock = clock or self._server_clock or SystemClock()
        self._opening = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due = Dues()

    def __repr__(self) -> str:
        return f"PostgresStore(schema={self._schema!r})"

    # --- life time ---

    async def open(self) -> None:
        """Connect, and see to the schema.

        Raises:
            SchemaError: the schema is older than this version of the package and `migrate` is off, or too new.
            StoreError: the server refuses, or cannot be reached within 3 seconds.
        """
        began = not self.is_open
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
            line = Line(self._server, SETTINGS)
            try:
                is_old = await line.call(self._look)
            finally:
                await line.close()
            if is_old:
                await self.migrate()
            self._loop = asyncio.get_running_loop()
            self._claims = Lane(self._server, CLAIMING, "claims")
            self._settlements = Lane(self._server, SETTLING, "settlements")
            self._inserts = Lane(self._server, SETTINGS, "inserts")
            self._beats = Lane(self._server, SETTINGS, "beats")
            self._pool = Lines(self._server, ASKING, self._pool_size)
            self._listener: Listener | None = None
            self._told: list[Callable[[Hint], None]] = []
            self._due.clear()

    async def _look(self, session: Session) -> bool:
        """See what time it is, and whether the schema fits; true where it has to be brought up to date."""
        if self._server_clock is not None:
            await self._server_clock.ask(session)
        stored, compatible = await migrations.version(session, self._server.schema)
        if stored < migrations.NEWEST and self._migrates:
            return True
        if stored < migrations.NEWEST or compatible > migrations.NEWEST:
            await migrations.check(session, self._server)
        return False

    async def close(self) -> None:
        await to_the_end(self._close())

    async def _close(self) -> None:
        async with self._opening:
            loop, self._loop = self._loop, None
            if loop is not asyncio.get_running_loop():
                return  # never opened, or in a loop that has ended and took the connections with it
            if self._listener is not None:
                await self._listener.close()
            lanes = (self._claims, self._settlements, self._inserts, self._beats)
            await asyncio.gather(*(lane.close(CLOSE_SECONDS) for lane in lanes), self._pool.close())

    @property
    def is_open(self) -> bool:
        return self._loop is not None and not self._loop.is_closed() and self._claims.is_alive

    def _open_here(self) -> None:
        """Raises where a call cannot be made."""
        if self._loop is None:
            raise StoreClosed(f"{self!r} is not open: use `async with`, or give it to a Supervisor")
        if asyncio.get_running_loop() is not self._loop:
            raise StoreError("the store was opened in another event loop; call it there, or from a thread through it")

    async def _visit(self, do: Do[T], *, atomic: bool = False) -> T:
        """Have `do` talk to the database on one of the pool's connections; to its end, whatever becomes of us.

        Where we are cancelled it goes on, and we do not wait for it.
        """
        self._open_here()
        return await finish_anyway(self._pool.call(do, atomic=atomic))

    async def _now(self, session: Session) -> datetime:
        """The time, which a process that is no node, and so gives no signs of life, asks for when it needs it."""
        if self._server_clock is not None and self._server_clock.is_old:
            await self._server_clock.ask(session)
        return self._clock.now()

    def _lease(self) -> dict[str, Any]:
        """The time by which leases are judged: the server's while the statement runs, unless a clock is given."""
        return {"lease_now": None if self._given_leases is None else self._given_leases.now()}

    # --- the schema ---

    async def schema_version(self) -> tuple[int, int]:
        async def version(session: Session) -> tuple[int, int]:
            return await migrations.version(session, self._server.schema)

        stored, _ = await self._alone(version, SETTINGS)
        return stored, migrations.NEWEST

    async def fits(self) -> bool:
        async def version(session: Session) -> bool:
            stored, compatible = await migrations.version(session, self._server.schema)
            return stored >= migrations.NEWEST >= compatible

        return await self._alone(version, SETTINGS)

    def migration_sql(self, since: int = 0) -> str:
        return migrations.script(self._server.schema, since)

    async def migrate(self) -> list[int]:
        async def bring_up(session: Session) -> list[int]:
            return await migrations.migrate(session, self._server.schema)

        return await self._alone(bring_up, migrations.SETTINGS, atomic=True, seconds=migrations.SECONDS)

    async def _alone(self, do: Do[T], settings: dict[str, str], *, atomic: bool = False, seconds: float = 8.0) -> T:
        """On a connection for this one thing, open or not."""

        async def visit() -> T:
            line = Line(self._server, settings)
            try:
                return await line.call(do, atomic=atomic, seconds=seconds)
            finally:
                await line.close()

        return await to_the_end(visit())

    # --- jobs in ---

    async def insert(
        self, new: Sequence[NewJob], *, tick: Tick | None = None, connection: object = None
    ) -> list[Job[Any]]:
        """As `Store.insert`; with a `connection` of asyncpg or SQLAlchemy, inside the transaction that is open there.

        Raises:
            OptionError: `connection` is no open connection of these.
            StoreBusy: somebody's transaction holds one of the keys for more than 2 seconds.
        """
        if connection is not None:
            async with guest(connection, self._server) as session:
                return await work.insert_keyed(session, new, tick, await self._now(session))
        self._open_here()
        if tick is not None or any(item.unique_key or item.idempotency_key for item in new):

            async def insert(session: Session) -> list[Job[Any]]:
                return await work.insert_keyed(session, new, tick, await self._now(session))

            jobs = await self._visit(insert, atomic=True)
        elif new:
            jobs = await self._inserts.do(self._insert_plain, new, weight=_weight(new), atomic=len(new) > MAX_ROWS)
        else:
            jobs = []
        self._due.mind(jobs)
        return jobs

    async def _insert_plain(self, session: Session, asked: list[Sequence[NewJob]]) -> list[list[Job[Any]]]:
        together = [new for batch in asked for new in batch]
        jobs = iter(await work.insert_plain(session, together, await self._now(session)))
        return [list(islice(jobs, len(batch))) for batch in asked]

    # --- jobs out, and what becomes of them ---

    async def fetch(self, queue: str, limit: int, *, node: str | None) -> Fetched:
        self._open_here()
        return await self._claims.do(self._fetch, (queue, limit, node))

    async def _fetch(self, session: Session, asked: list[tuple[str, int, str | None]]) -> list[Fetched]:
        return [await self._fetch_one(session, *each) for each in asked]

    async def _fetch_one(self, session: Session, queue: str, limit: int, node: str | None) -> Fetched:
        due, now, (_, uptime) = self._due[queue], self._clock.now(), self._clock.uptime()
        if due.is_due(now) or due.is_old(uptime):
            ready = await self._peek(session, queue)
            due.looked_at = uptime
            if due.is_due(now):
                await session.run("stage", {"queue": queue, "now": now})
                await self._peek(session, queue)
            elif not ready:
                due.busy = False
                return Fetched([], due.seconds(now))
        asked = {"queue": queue, "limit": limit, "node": node, "now": now, **self._lease()}
        jobs = [session.mapping.to_job(row) for row in await session.run("claim", asked)]
        jobs.sort(key=_claim_order)
        was_unseen, due.busy = due.looked_at != uptime, len(jobs) == limit
        if was_unseen and not due.busy:
            await self._peek(session, queue)  # so that who waits now knows until when, whoever stored what comes next
        return Fetched(jobs, due.seconds(now))

    async def _peek(self, session: Session, queue: str) -> bool:
        """Look up when the next job is due; whether one can be claimed."""
        ((ready, self._due[queue].at),) = await session.run("peek", {"queue": queue})
        return bool(ready)

    async def apply(self, steps: Sequence[Transition], *, connection: object = None) -> list[Job[Any] | None]:
        """As `Store.apply`; with a `connection` of asyncpg or SQLAlchemy, inside the transaction that is open there.

        Raises:
            OptionError: `connection` is no open connection of these.
        """
        if connection is not None:
            async with guest(connection, self._server) as session:
                applied = await work.apply_within(session, steps, self._clock.now())
                await self._hint(session, self._server.hints.of_guest(), steps)
                return applied
        self._open_here()
        if not steps:
            return []
        batch = work.Batch(steps)
        applied = await self._settlements.do(self._apply, (batch, steps), atomic=not batch.is_single(MAX_ROWS))
        self._due.mind(applied)
        return applied

    async def _apply(
        self, session: Session, asked: list[tuple[work.Batch, Sequence[Transition]]]
    ) -> list[list[Job[Any] | None]]:
        ((batch, steps),) = asked
        applied = await work.apply_steps(session, batch, self._clock.now())
        await self._hint(session, self._server.hints, steps)
        return [applied]

    async def _hint(self, session: Session, hints: Hints, steps: Sequence[Transition]) -> None:
        if words := hints.of_steps(steps):
            await session.run("hint", {"channel": hints.channel, "hints": words})

    # --- questions and housekeeping ---

    async def select(self, query: JobQuery) -> list[Job[Any]]:
        sql = select(query, SQL)
        asked = {**params(query, Session.mapping, self._clock.now()), **self._lease()}

        async def read(session: Session) -> list[Job[Any]]:
            return [session.mapping.to_job(row) for row in await session.rows(sql, asked)]

        return await self._visit(read)

    async def delete(self, ids: Sequence[int], *, states: Iterable[JobState] | None = None) -> int:
        chosen = frozenset(JobState if states is None else states)
        return await self._count("delete", {"ids": dumps(list(ids)), "states": dumps(sorted(chosen))})

    async def purge(self, states: Iterable[JobState], older_than: Seconds | datetime, limit: int = MAX_PAGE) -> int:
        before, purged = cutoff(older_than, self._clock.now()), 0
        for state in sorted(FINAL.intersection(states)):
            asked = {"state": int(state), "before": before, "limit": limit - purged}
            purged += await self._count("purge", asked)
        return purged

    async def _count(self, statement: str, asked: dict[str, Any]) -> int:
        """Run one statement; how many rows it wrote."""

        async def change(session: Session) -> int:
            return len(await session.run(statement, asked))

        return await self._visit(change)

    async def tally(self) -> Mapping[tuple[str, JobState], int]:
        async def count(session: Session) -> dict[tuple[str, JobState], int]:
            return {(queue, JobState(state)): count for queue, state, count in await session.run("tally")}

        return await self._visit(count)

    async def set_queue(self, name: str, *, paused: bool | None = None, limit: int | None = None) -> bool:
        async def say(session: Session) -> bool:
            changed = await work.set_queue(session, name, paused, limit)
            hints = self._server.hints
            if changed and (words := hints.queue(name)):
                await session.run("hint", {"channel": hints.channel, "hints": words})
            return changed

        return await self._visit(say, atomic=True)

    async def queues(self) -> Mapping[str, QueueInfo]:
        async def read(session: Session) -> dict[str, QueueInfo]:
            return work.to_queues(await session.run("queues"))

        return await self._visit(read)

    # --- nodes ---

    async def beat(self, node: Node, ttl: float, *, join: bool = False) -> Beat:
        self._open_here()
        return await self._beats.do(self._beat, (node, ttl, join))

    async def _beat(self, session: Session, asked: list[tuple[Node, float, bool]]) -> list[Beat]:
        if self._server_clock is not None:
            await self._server_clock.ask(session)
        now, lease = self._clock.now(), self._lease()
        return [await work.beat(session, node, ttl, now, lease, join=join) for node, ttl, join in asked]

    def lifeline(self) -> Lifeline:
        return PostgresLifeline(self._server, lambda: {"now": self._clock.now(), **self._lease()})

    async def nodes(self) -> list[Node]:
        async def read(session: Session) -> list[Node]:
            return [
                replace(msgspec.json.decode(info, type=Node), started_at=started, beat_at=beaten, alive=alive)
                for _, alive, started, beaten, info in await session.run("nodes", self._lease())
            ]

        return await self._visit(read)

    @property
    def shared_clock(self) -> Clock | None:
        return self._server_clock

    def wakes(self, tell: Callable[[Hint], None]) -> Callable[[], None]:
        self._open_here()
        self._told.append(tell)
        if self._listener is None and self._listens:
            self._listener = Listener(self._server, self._tell, self._say)

        def enough() -> None:
            with suppress(ValueError):
                self._told.remove(tell)

        return enough

    async def _say(self, word: str) -> None:
        await self._beats.do(self._say_all, word)

    async def _say_all(self, session: Session, words: list[str]) -> list[None]:
        await session.run("hint", {"channel": self._server.hints.channel, "hints": words})
        return [None] * len(words)

    def _tell(self, hint: Hint) -> None:
        for tell in list(self._told):
            tell(hint)

    # --- what may be wrong ---

    async def diagnose(self) -> list[Finding]:
        stored, compatible = await self._visit(lambda session: migrations.version(session, self._server.schema))
        found = [*diagnosis.of_schema(stored, compatible, migrations.NEWEST)]
        found += diagnosis.of_ear(listens=self._listens, pooler=self._server.pooler, deaf=await self._is_deaf())
        for statement in diagnosis.QUESTIONS:
            found += await self._visit(partial(diagnosis.ask, schema=self._server.schema, statement=statement))
        if self._server_clock is not None:
            found += await self._visit(partial(diagnosis.ask_clock, now=SystemClock().now))
        return found

    async def _is_deaf(self) -> bool:
        """Where nobody here listens so far it is tried, for an application that listens would fare alike."""
        if not self._listens:
            return False
        ear = self._listener or Listener(self._server, lambda _: None, self._say)
        try:
            return not await ear.hears(HEARING_SECONDS)
        finally:
            if ear is not self._listener:
                await ear.close()


def _weight(new: Sequence[NewJob]) -> int:
    """As how many rows of a statement these count: each for one, and for one more with each full KiB of its args."""
    return sum(1 + len(item.args_json) // 1024 for item in new)


def _claim_order(job: Job[Any]) -> tuple[int, int]:
    return job.priority, job.id


async def drop_schema(dsn: str, schema: str) -> None:
    """Remove a schema with all that is in it, if it exists: for tests, which make one each.

    Raises:
        OptionError: it is "public".
    """
    if schema == "public":
        raise OptionError("the public schema may hold more than jobs; drop it yourself")
    quoted = schema_name(schema)
    line = Line(Server(dsn, None, quoted, Hints(quoted, spoken=False), pooler=False), migrations.SETTINGS)
    try:
        await line.call(lambda session: session.connection.execute(f"DROP SCHEMA IF EXISTS {quoted} CASCADE"))
    finally:
        await line.close()
