"""What goes into a database comes out of it, whatever it holds; and nothing of it, nor a DSN, is in an error."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jobs_async.clock import SystemClock
from jobs_async.core.errors import ArgsError, JobsError, OptionError, StoreError, WriteRefused
from jobs_async.core.job import JobState, Progress
from jobs_async.core.lifecycle import Patch, Transition, decide
from jobs_async.core.options import Draft, JobOpts, NewJob
from jobs_async.core.outcome import Completed, Failed, Failure
from jobs_async.core.store import JobQuery, Node, Tick
from jobs_async.runtime.supervisor import Supervisor
from jobs_async.stores.postgres import PostgresStore
from jobs_async.stores.postgres.errors import typed
from jobs_async.testing import FakeClock
from tests.cluster import PgServer
from tests.postgres.support import ask, connected, done, new
from tests.sqlite.test_values import HOSTILE, JSON, KEYS, NAMES, OPTIONS, TEXT, TIMES, UNREADABLE, same

MORE = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Bench:
    """A store with a clock and a loop of its own, for properties, which are plain functions."""

    def __init__(self, dsn: str) -> None:
        self.runner = asyncio.Runner()
        self.clock = FakeClock(datetime(2025, 1, 1, tzinfo=UTC))
        self.store = PostgresStore(dsn, clock=self.clock)
        self.run(self.store.open())

    def run(self, call: Any) -> Any:
        return self.runner.run(call)

    def close(self) -> None:
        self.run(self.store.close())
        self.runner.close()


@pytest.fixture(scope="module")
def bench(pg_cluster: PgServer) -> Iterator[Bench]:
    with pg_cluster.database() as dsn:
        bench = Bench(dsn)
        yield bench
        bench.close()


@pytest.fixture
async def store(pg_dsn: str) -> AsyncIterator[PostgresStore]:
    async with PostgresStore(pg_dsn) as store:
        yield store


@MORE
@given(worker=NAMES, args=JSON, options=OPTIONS, keys=KEYS)
@example(worker="w", args="\x01\x1f\x7f", options={"timeout_seconds": 0.1 + 0.2}, keys={})
@example(worker="w", args={"n": [2**63 - 1, -(2**63), -0.0, 5e-324]}, options={"meta": {"n": 2**63 - 1}}, keys={})
def test_row_77_a_job_comes_back_as_it_went(
    bench: Bench, worker: str, args: Any, options: dict[str, Any], keys: dict[str, Any]
) -> None:
    draft: Draft[Any] = Draft(worker, args, JobOpts(**options, **keys))

    async def there_and_back() -> None:
        [job] = await bench.store.insert([NewJob.of(draft.worker, draft.args_json, draft.opts)])
        try:
            assert await bench.store.get(job.id) == job
            alike = JobQuery(worker=worker, queue=job.queue, args=_plain(args) or None)
            assert [one.id for one in await bench.store.select(alike)] == [job.id]
        finally:
            await bench.store.delete([job.id])
        assert (job.worker, job.args_json) == (worker, draft.args_json)
        assert same(job.args, {} if args is None else args)
        for name, value in (options | keys).items():
            assert same(getattr(job, name), tuple(value) if name == "tags" else value)

    bench.run(there_and_back())


def _plain(args: Any) -> dict[str, Any]:
    """Of a job's arguments those that can be asked for."""
    plain = (str, int, float, bool, type(None))
    return {key: value for key, value in args.items() if isinstance(value, plain)} if isinstance(args, dict) else {}


@MORE
@given(now=TIMES, at=TIMES)
@example(now=datetime(1969, 12, 31, 23, 59, 59, 999999, UTC), at=datetime(9999, 12, 31, 23, 59, 59, 999999, UTC))
@example(now=datetime(1, 1, 1, tzinfo=UTC), at=datetime(1, 1, 1, 0, 0, 0, 1, UTC))
@example(now=datetime(9999, 12, 31, 23, 59, 59, 999999, UTC), at=datetime(9999, 12, 31, 23, 59, 59, 999999, UTC))
def test_times_are_kept_to_the_microsecond_from_the_year_1_to_the_year_9999(
    bench: Bench, now: datetime, at: datetime
) -> None:
    bench.clock.jump(now - bench.clock.now())

    async def there_and_back() -> None:
        [job] = await bench.store.insert([NewJob("work", "{}", scheduled_at=at)])
        try:
            kept = await bench.store.get(job.id)
            assert (kept.scheduled_at, kept.inserted_at) == (at, now)
            assert kept.scheduled_at.utcoffset() == timedelta()
            assert kept.state is (JobState.scheduled if at > now else JobState.available)
            if at <= now:
                [claimed] = (await bench.store.fetch("default", 1, node=None)).jobs
                [ended] = await bench.store.apply([decide(claimed, Completed("null"))])
                kept = await bench.store.get(job.id)
                assert kept == ended
                assert (kept.attempted_at, kept.completed_at) == (now, now)
        finally:
            await bench.store.delete([job.id])

    bench.run(there_and_back())


@MORE
@given(
    values=st.tuples(JSON, JSON), progress=st.builds(Progress, st.floats(0, 1), TEXT), texts=st.lists(TEXT, min_size=1)
)
def test_what_a_run_leaves_comes_back_as_it_went(
    bench: Bench, values: tuple[Any, Any], progress: Progress, texts: list[str]
) -> None:
    (args, result), error, frames = values, texts[0], tuple(texts[1:])

    async def there_and_back() -> None:
        store = bench.store
        await store.insert([NewJob("work", "{}", queue="runs")])
        [job] = (await store.fetch("runs", 1, node=None)).jobs
        try:
            patch = Patch(progress=progress, args_json=json.dumps(args))
            [told] = await store.apply([Transition(job, job.state, patch=patch)])
            assert told is not None
            assert await store.get(job.id) == told
            assert told.progress == progress
            assert same(told.args, args)
            [failed] = await store.apply([decide(told, Failed(Failure(error, error, frames)))])
            assert failed is not None
            assert await store.get(job.id) == failed
            assert (failed.errors[0].error, failed.errors[0].frames) == (error, frames)
            assert await store.select(JobQuery(queue="runs", error=error[:20] or None)) == [failed]
            [again] = (await store.fetch("runs", 1, node=None)).jobs
            [ended] = await store.apply([decide(again, Completed(json.dumps(result)))])
            assert ended is not None
            kept = await store.get(job.id)
            assert kept == ended
            assert same(kept.result, result)
        finally:
            await store.delete([job.id])

    bench.run(there_and_back())


# --- hostile text ---

CATALOGUE = """
SELECT relname, relkind::text FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
WHERE nspname = 'public' ORDER BY relname
"""


async def test_hostile_text_in_any_field_never_becomes_sql(store: PostgresStore, pg_dsn: str) -> None:
    schema = await ask(pg_dsn, CATALOGUE)
    for number, text in enumerate(HOSTILE):
        asked_for = new(
            text,
            json.dumps({text: text}),
            queue=text,
            unique_key=text,
            idempotency_key=text,
            correlation_id=text,
            external_id=text,
            tags=(text,),
            meta={text: text},
        )
        [job] = await store.insert([asked_for], tick=Tick(text, datetime(2025, 1, 1, tzinfo=UTC)))
        await store.beat(Node(id=text, host=text, version=text, queues={text: 1}, workers=(text,)), 60.0, join=True)
        await store.set_queue(text, paused=False, limit=3)
        [claimed] = (await store.fetch(text, 5, node=text)).jobs
        assert (claimed.id, claimed.node, claimed.args, claimed.meta) == (job.id, text, {text: text}, {text: text})
        patch = Patch(progress=Progress(0.5, text), args_json=json.dumps({text: text}))
        [told] = await store.apply([Transition(claimed, claimed.state, patch=patch)])
        assert told is not None
        [ended] = await store.apply([decide(told, Completed(json.dumps(text)))])
        assert ended is not None
        asked: list[dict[str, Any]] = [{"queue": text, "worker": text}, {"tags": [text]}, {"args": {text: text}}]
        asked += [{"external_id": text}, {"correlation_id": text}]
        for conditions in asked:
            assert await store.select(JobQuery(**conditions)) == [ended]
        assert (ended.result, ended.progress) == (text, Progress(0.5, text))
        assert sum((await store.tally()).values()) == number + 1
    assert await ask(pg_dsn, CATALOGUE) == schema


@pytest.mark.parametrize("name", HOSTILE)
async def test_a_hostile_name_of_a_schema_is_a_schema_of_that_name(pg_dsn: str, name: str) -> None:
    async with PostgresStore(pg_dsn, schema=name) as store:
        await store.insert([new(unique_key="k")])
        [job] = (await store.fetch("default", 1, node=None)).jobs
        assert await store.apply([done(job)]) == [await store.get(job.id)]
    there = "SELECT nspname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace WHERE relname = 'jobs_async_jobs'"
    assert await ask(pg_dsn, there) == [(name,)]


@pytest.mark.parametrize("name", UNREADABLE)
async def test_row_8_what_postgresql_could_not_store_is_refused_at_the_call_and_nothing_is_stored(
    store: PostgresStore, name: str
) -> None:
    with pytest.raises(ArgsError):
        await Supervisor(store, queues={}).enqueue("work", UNREADABLE[name])
    with pytest.raises(JobsError):
        await Supervisor(store, queues={}).enqueue("work", meta={"x": UNREADABLE[name]})
    assert await store.tally() == {}


SPOILT = {
    "errors": "[7]",
    "result": '"\\u0000"',
    "progress": "[]",
    "tags": "{}",
    "meta": "[]",
    "args": '"\\ud800"',
    "state": 99,
    "scheduled_at": "infinity",
    "attempted_at": "-infinity",
    "node": "\x01",
}


@pytest.mark.parametrize("column", SPOILT)
async def test_row_8_a_row_that_somebody_spoilt_by_hand_stops_nobody_but_its_reader(
    store: PostgresStore, pg_dsn: str, column: str
) -> None:
    jobs = await store.insert([new(queue="spoilt"), new(queue="spoilt")])
    async with connected(pg_dsn) as connection:
        value = await connection.fetchval("SELECT quote_literal($1)", str(SPOILT[column]))
        await connection.execute(f"UPDATE jobs_async_jobs SET {column} = {value} WHERE id = {jobs[0].id}")
    async with asyncio.timeout(30):
        for call in (store.select(JobQuery(queue="spoilt")), store.fetch("spoilt", 2, node=None)):
            with suppress(Exception):
                await call
        [job] = await store.insert([new()])
        [claimed] = (await store.fetch("default", 1, node=None)).jobs
        assert claimed.id == job.id
        assert (await store.complete(claimed)) is not None
        assert await store.delete([job.id]) == 1


# --- numbers ---


@pytest.mark.parametrize("first", [2**31 - 2, 2**53 - 1, 2**63 - 20])
async def test_rows_40_and_57_ids_and_claims_outgrow_32_and_53_bits(
    store: PostgresStore, pg_dsn: str, first: int
) -> None:
    async with connected(pg_dsn) as connection:
        await connection.execute(f"ALTER TABLE jobs_async_jobs ALTER id RESTART WITH {first}")
        at = datetime(2025, 1, 1, tzinfo=UTC)
        jobs = await store.insert([new() for _ in range(4)])
        jobs += await store.insert([new(unique_key="k", idempotency_key="i")], tick=Tick("tick", at))
        ids = [job.id for job in jobs]
        assert ids == list(range(first, first + 5))
        assert await connection.fetchval("SELECT job_id FROM jobs_async_ticks") == ids[-1]
        await connection.execute("UPDATE jobs_async_jobs SET claim = $1", first)
        [again] = await store.insert([new(unique_key="k")])
        assert (again.id, again.duplicate) == (ids[-1], True)
        await store.beat(Node(id="node"), 1e6, join=True)
        claimed = (await store.fetch("default", 5, node="node")).jobs
        assert [(job.id, job.claim) for job in claimed] == [(job_id, first + 1) for job_id in ids]
        [told] = await store.apply([Transition(claimed[0], JobState.executing, patch=Patch(cancel_requested=True))])
        assert told is not None
        assert (await store.beat(Node(id="node"), 0.0)).alive is False
        orphans = await store.select(JobQuery(orphaned=True, after=ids[0], newest_first=False))
        assert [job.id for job in orphans] == ids[1:]
        assert await store.apply([done(job) for job in claimed[1:3]]) == await store.select(
            JobQuery(ids=ids[1:3], newest_first=False)
        )
        assert await store.rescue_stuck(0) == 3
        assert (await store.get(ids[4])).claim == first + 1
        assert await store.delete(ids[1:2]) == 1
        assert await store.delete_completed(0) == 1


async def test_row_45_what_others_are_told_is_short_however_large_the_job(store: PostgresStore, pg_dsn: str) -> None:
    heard: asyncio.Queue[str] = asyncio.Queue()
    queue = "é" * 127
    async with connected(pg_dsn) as onlooker:
        await onlooker.add_listener(store._server.hints.channel, lambda *told: heard.put_nowait(told[-1]))
        jobs = await store.insert([new(args_json=json.dumps("x" * 1_000_000), queue=queue) for _ in range(3)])
        jobs += await store.insert([new(args_json=json.dumps("x" * 1_000_000), queue=queue, unique_key="k")])
        async with asyncio.timeout(30):
            words = [await heard.get(), await heard.get()]
    assert heard.empty()
    assert all(word.endswith(f" work {queue}") and len(word.encode()) < 300 for word in words)
    assert [job.id for job in (await store.fetch(queue, 5, node=None)).jobs] == [job.id for job in jobs]


# --- errors ---

SECRET = "hunter2"
REFUSED: dict[str, Callable[[PostgresStore], Awaitable[object]]] = {
    "arguments that are no JSON": lambda store: store.insert([new("work", f"{{{SECRET}")]),
    "arguments with a NUL": lambda store: store.insert([new("work", f'"{SECRET}\0"')]),
    "a queue with half a pair of surrogates": lambda store: store.insert([new(queue=f"{SECRET}\ud800")]),
    "a key with a NUL": lambda store: store.insert([new(unique_key=f"{SECRET}\0")]),
    "a key of the wrong type": lambda store: store.insert([new(idempotency_key={SECRET: SECRET})]),
    "a priority beyond 32 bits": lambda store: store.insert([new(SECRET, priority=2**40)]),
    "a key too long for its index": lambda store: store.insert([new(unique_key=_noise())]),
    "a queue asked for with a NUL": lambda store: store.fetch(f"{SECRET}\0", 1, node=None),
    "a node with a NUL": lambda store: store.beat(Node(id=f"{SECRET}\0"), 1.0, join=True),
    "a pause of a queue with a NUL": lambda store: store.set_queue(f"{SECRET}\0", paused=True),
}


def _noise() -> str:
    """More than a page, and nothing that could be compressed."""
    return SECRET + "".join(f"{hash((SECRET, n)):x}" for n in range(2000))


@pytest.mark.parametrize("name", REFUSED)
async def test_an_error_holds_no_value_however_it_is_printed(
    store: PostgresStore, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(StoreError) as caught:
        await REFUSED[name](store)
    printed = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caplog.text
    told = "".join(line for line in printed.splitlines(keepends=True) if "lambda" not in line)
    assert SECRET not in told
    assert await store.tally() == {}
    assert await store.insert([new()])


async def test_a_key_that_is_taken_behind_our_back_is_an_error_without_the_key(
    store: PostgresStore, pg_dsn: str
) -> None:
    """By a unique index that somebody has added; PostgreSQL's own text would quote the key."""
    async with connected(pg_dsn) as connection:
        await connection.execute("CREATE UNIQUE INDEX one_of_each ON jobs_async_jobs (correlation_id)")
    await store.insert([new(correlation_id=SECRET)])
    with pytest.raises(StoreError) as caught:
        await store.insert([new(correlation_id=SECRET)])
    printed = "".join(traceback.format_exception(caught.value))
    assert f"({SECRET})" not in printed
    assert "already exists" not in printed


@pytest.mark.parametrize(
    "rest",
    [
        "127.0.0.1:1/nowhere",
        "127.0.0.1:99999/nowhere",
        "127.0.0.1:port/nowhere",
        "[::/nowhere",
        "127.0.0.1:1/nowhere?sslmode=perhaps",
        "127.0.0.1:1/nowhere?statement_timeout=",
    ],
)
async def test_no_error_and_no_repr_holds_a_dsn(rest: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        store = PostgresStore(f"postgresql://someone:{SECRET}@{rest}")
        assert SECRET not in repr(store) + repr(vars(store)) + repr(store._server)
        with pytest.raises((StoreError, OptionError)) as caught:
            await store.open()
    printed = "".join(traceback.format_exception(caught.value)) + repr(caught.value) + caplog.text
    assert SECRET not in printed


async def test_a_password_with_a_slash_in_it_is_in_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """It ends the address as a URL is read, and what is before it is then taken for a port."""
    with caplog.at_level(logging.DEBUG), pytest.raises((StoreError, OptionError)) as caught:
        await PostgresStore(f"postgresql://someone:{SECRET}/x@127.0.0.1:1/nowhere").open()
    assert SECRET not in "".join(traceback.format_exception(caught.value)) + caplog.text


# --- time ---


async def test_row_75_a_node_whose_own_clock_is_wrong_uses_the_servers(
    pg_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SystemClock, "now", lambda _: datetime(1999, 1, 1, tzinfo=UTC))
    async with PostgresStore(pg_dsn) as store:
        [job, later] = await store.insert([new(), new(queue="later", delay=3600.0)])
        assert (await store.beat(Node(id="node"), 30.0, join=True)).alive
        [claimed] = (await store.fetch("default", 1, node="node")).jobs
        assert await store.select(JobQuery(orphaned=True)) == []
        assert claimed.id == job.id
        assert (await store.fetch("later", 1, node="node")).jobs == []
    [(inserted, due, alive)] = await ask(
        pg_dsn,
        "SELECT abs(extract(epoch FROM now() - (SELECT inserted_at FROM jobs_async_jobs WHERE id = $1))) < 60,"
        " (SELECT scheduled_at - inserted_at FROM jobs_async_jobs WHERE id = $2),"
        " (SELECT expires_at > now() FROM jobs_async_nodes)",
        job.id,
        later.id,
    )
    assert (inserted, due, alive) == (True, timedelta(hours=1), True)


async def test_what_the_driver_will_not_send_is_refused_for_good(pg_dsn: str) -> None:
    """It must not look like a server that is away, which is asked again for ever."""
    async with connected(pg_dsn) as connection:
        with pytest.raises(asyncpg.DataError, match="invalid input") as refused:
            await connection.fetch("SELECT $1::integer", "no number")
    error = typed(refused.value)
    assert type(error) is WriteRefused
    assert "no number" not in str(error)
