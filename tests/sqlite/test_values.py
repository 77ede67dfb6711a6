"""What goes into a file comes out of it, whatever it holds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from jobs_async.core.errors import ArgsError, JobsError, OptionError
from jobs_async.core.job import JobState, Progress
from jobs_async.core.lifecycle import Patch, Transition, decide
from jobs_async.core.limits import INT32_MAX, INT32_MIN, MAX_SECONDS
from jobs_async.core.options import Draft, JobOpts, NewJob
from jobs_async.core.outcome import Completed, Failed, Failure
from jobs_async.core.store import JobQuery, Node, Tick
from jobs_async.runtime.supervisor import Supervisor
from jobs_async.stores.sqlite import SqliteStore
from jobs_async.testing import FakeClock
from tests.sqlite.support import ask, change

MORE = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"))
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=60).filter(
    lambda text: len(text.encode()) <= 255
)
NUMBERS = st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
EDGES = st.sampled_from(
    [2**63 - 1, -(2**63), 2**53 + 1, 0.1, 1e308, 5e-324, -0.0, "\x01", "'; --", '"', "\u2028", "🦊"]
)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT | EDGES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)
TIMES = st.datetimes(datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999), timezones=st.just(UTC))
SECONDS = st.floats(0, MAX_SECONDS, exclude_min=True, allow_subnormal=False)

OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "queue": NAMES,
        "priority": st.integers(INT32_MIN, INT32_MAX),
        "max_attempts": st.integers(1, INT32_MAX),
        "scheduled_at": TIMES,
        "timeout_seconds": st.none() | SECONDS,
        "correlation_id": NAMES,
        "tags": st.lists(NAMES, max_size=4),
        "meta": st.dictionaries(TEXT, JSON, max_size=3),
    },
)
KEYS = st.fixed_dictionaries({}, optional={"unique_key": NAMES, "idempotency_key": NAMES})

HOSTILE = (
    "'; DROP TABLE jobs_async_jobs; --",
    "x' OR '1'='1",
    'x" OR ""="',
    "x'); DELETE FROM jobs_async_jobs WHERE ('1'='1",
    ":queue",
    "?1",
    "$1",
    "@p",
    "%s%n",
    "[1]",
    "null",
    "0",
    "1e3",
    "\\",
    "\\u0027",
    "/* */",
    "`jobs_async_jobs`",
)


class Bench:
    """A store with a clock and a loop of its own, for properties, which are plain functions."""

    def __init__(self, folder: Path) -> None:
        self.runner = asyncio.Runner()
        self.clock = FakeClock(datetime(2025, 1, 1, tzinfo=UTC))
        self.path = folder / "values.db"
        self.store = SqliteStore(self.path, clock=self.clock)
        self.run(self.store.open())

    def run(self, call: Any) -> Any:
        return self.runner.run(call)

    def close(self) -> None:
        self.run(self.store.close())
        self.runner.close()


@pytest.fixture(scope="module")
def bench(memory_folder: Path) -> Iterator[Bench]:
    bench = Bench(memory_folder)
    yield bench
    bench.close()


def same(value: Any, other: Any) -> bool:
    """Equal, and of the same types all the way down, to the sign of a zero."""
    return repr(value) == repr(other) and bool(value == other)


@MORE
@given(worker=NAMES, args=JSON, options=OPTIONS, keys=KEYS)
@example(worker="w", args="\x01\x1f\x7f", options={"timeout_seconds": 0.1 + 0.2}, keys={})
@example(worker="w", args=[2**63 - 1, -(2**63)], options={"meta": {"n": 2**63 - 1}}, keys={})
def test_row_77_a_job_comes_back_as_it_went(
    bench: Bench, worker: str, args: Any, options: dict[str, Any], keys: dict[str, Any]
) -> None:
    draft: Draft[Any] = Draft(worker, args, JobOpts(**options, **keys))

    async def there_and_back() -> None:
        [job] = await bench.store.insert([NewJob.of(draft.worker, draft.args_json, draft.opts)])
        try:
            assert await bench.store.get(job.id) == job
            assert [one.id for one in await bench.store.select(JobQuery(worker=worker, queue=job.queue))] == [job.id]
        finally:
            await bench.store.delete([job.id])
        assert (job.worker, job.args_json) == (worker, draft.args_json)
        assert same(job.args, {} if args is None else args)
        for name, value in (options | keys).items():
            assert same(getattr(job, name), tuple(value) if name == "tags" else value)

    bench.run(there_and_back())


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
            [again] = (await store.fetch("runs", 1, node=None)).jobs
            [ended] = await store.apply([decide(again, Completed(json.dumps(result)))])
            assert ended is not None
            kept = await store.get(job.id)
            assert kept == ended
            assert same(kept.result, result)
        finally:
            await store.delete([job.id])

    bench.run(there_and_back())


async def test_hostile_text_in_any_field_never_becomes_sql(store: SqliteStore, path: Path) -> None:
    schema = ask(path, "SELECT name, sql FROM sqlite_schema ORDER BY name")
    for number, text in enumerate(HOSTILE):
        [job] = await store.insert(
            [
                NewJob(
                    text,
                    json.dumps({text: text}),
                    queue=text,
                    unique_key=text,
                    idempotency_key=text,
                    correlation_id=text,
                    tags=(text,),
                    meta={text: text},
                )
            ],
            tick=Tick(text, datetime(2025, 1, 1, tzinfo=UTC)),
        )
        await store.beat(Node(id=text, host=text, version=text, queues={text: 1}, workers=(text,)), 60.0, join=True)
        await store.set_queue(text, paused=False, limit=3)
        [claimed] = (await store.fetch(text, 5, node=text)).jobs
        assert (claimed.id, claimed.node, claimed.args, claimed.meta) == (job.id, text, {text: text}, {text: text})
        patch = Patch(progress=Progress(0.5, text), args_json=json.dumps(text))
        [told] = await store.apply([Transition(claimed, claimed.state, patch=patch)])
        assert told is not None
        [ended] = await store.apply([decide(told, Completed(json.dumps(text)))])
        assert ended is not None
        assert await store.select(JobQuery(queue=text, worker=text)) == [ended]
        assert (ended.result, ended.args, ended.progress) == (text, text, Progress(0.5, text))
        assert await store.count_by_state(text, JobState.completed) == 1
        assert sum((await store.tally()).values()) == number + 1
    assert ask(path, "SELECT name, sql FROM sqlite_schema ORDER BY name") == schema
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]


UNREADABLE: dict[str, Any] = {
    "nested too deep": json.loads("[" * 900 + "]" * 900),
    "an integer of 5,000 digits": 10**4999,
    "an integer of 65 bits": 2**63,
    "infinity": float("inf"),
    "not a number": {"x": float("nan")},
    "a key that is no text": {1: "one"},
    "a NUL": "a\0b",
    "a NUL in a key": {"a\0b": 1},
    "half a pair of surrogates": "\ud800",
    "bytes of no text": {"x": object()},
}


@pytest.mark.parametrize("name", UNREADABLE)
async def test_row_77_what_no_reader_could_load_is_refused_at_the_call_and_nothing_is_stored(
    store: SqliteStore, name: str
) -> None:
    with pytest.raises(ArgsError):
        await Supervisor(store, queues={}).enqueue("work", UNREADABLE[name])
    with pytest.raises(JobsError):
        await Supervisor(store, queues={}).enqueue("work", meta={"x": UNREADABLE[name]})
    assert await store.tally() == {}


async def test_row_76_a_naive_time_is_refused_at_the_call_and_nothing_is_stored(store: SqliteStore) -> None:
    jobs = Supervisor(store, queues={})
    with pytest.raises(OptionError, match="time zone"):
        await jobs.enqueue("work", scheduled_at=datetime(2030, 1, 1))
    with pytest.raises(OptionError, match="time zone"):
        await store.delete_completed(datetime(2030, 1, 1))
    assert await store.tally() == {}


async def test_row_75_clocks_that_disagree_steal_no_lease(path: Path) -> None:
    """Leases are judged by the uptime that all processes of a machine share, never by anybody's wall clock."""
    mine, theirs = FakeClock(), FakeClock()
    async with SqliteStore(path, clock=mine) as one, SqliteStore(path, clock=theirs) as two:
        await one.insert([NewJob("work", "{}") for _ in range(2)])
        assert (await one.beat(Node(id="node"), 30.0, join=True)).alive
        for step in (timedelta(minutes=10), timedelta(days=-20), timedelta(days=4000)):
            theirs.jump(step)
            mine.jump(-step / 2)
            assert await two.select(JobQuery(orphaned=True)) == []
            assert (await two.beat(Node(id="node"), 30.0)).alive
        [job] = (await one.fetch("default", 1, node="node")).jobs
        assert await two.select(JobQuery(orphaned=True)) == []
        for clock in (mine, theirs):
            clock.advance(29.999)
        assert await two.select(JobQuery(orphaned=True)) == []
        for clock in (mine, theirs):
            clock.advance(0.002)
        assert [orphan.id for orphan in await two.select(JobQuery(orphaned=True))] == [job.id]
        assert not (await one.beat(Node(id="node"), 30.0)).alive
        assert (await one.fetch("default", 1, node="node")).jobs == []


async def test_row_75_a_lease_of_an_earlier_boot_is_dead_at_once(path: Path) -> None:
    clock = FakeClock()
    async with SqliteStore(path, clock=clock) as store:
        await store.insert([NewJob("work", "{}")])
        await store.beat(Node(id="node"), 3600.0, join=True)
        [job] = (await store.fetch("default", 1, node="node")).jobs
        clock.reboot()
        assert [orphan.id for orphan in await store.select(JobQuery(orphaned=True))] == [job.id]
        assert not (await store.beat(Node(id="node"), 30.0)).alive
        assert [node.alive for node in await store.nodes()] == [False]


SPOILT = {
    "errors": "[oops",
    "result": "{oops",
    "progress": "[]",
    "tags": "oops",
    "meta": "oops",
    "state": 99,
    "scheduled_at": 2**62,
    "attempted_at": 2**62,
}


@pytest.mark.parametrize("column", SPOILT)
async def test_row_8_a_row_that_somebody_spoilt_by_hand_stops_nobody_but_its_reader(
    store: SqliteStore, path: Path, column: str
) -> None:
    jobs = await store.insert([NewJob("work", "{}", queue="spoilt"), NewJob("work", "{}", queue="spoilt")])
    change(path, f"UPDATE jobs_async_jobs SET {column} = ? WHERE id = ?", SPOILT[column], jobs[0].id)
    async with asyncio.timeout(20):
        for call in (store.select(JobQuery(queue="spoilt")), store.fetch("spoilt", 2, node=None)):
            with suppress(Exception):
                await call
        [job] = await store.insert([NewJob("work", "{}")])
        [claimed] = (await store.fetch("default", 1, node=None)).jobs
        assert claimed.id == job.id
        assert (await store.complete(claimed)) is not None
        assert await store.delete([job.id]) == 1
