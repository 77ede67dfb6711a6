"""Unique and idempotency keys: raced for by processes that die, met by jobs that run, and by what looks like them."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from jobs_async import (
    Draft,
    Job,
    JobCancelled,
    JobContext,
    JobDuplicate,
    JobEnqueued,
    JobOpts,
    JobRescued,
    JobStarted,
    JobState,
    MemoryStore,
    OptionError,
    SqliteStore,
    StaleSettlement,
    Store,
    Supervisor,
    Telemetry,
    UniqueConflict,
    UniqueStrategy,
)
from jobs_async.core.job import replace
from jobs_async.core.lifecycle import decide
from jobs_async.core.options import NewJob
from jobs_async.core.outcome import Completed, Failed, Outcome, Snoozed
from jobs_async.core.store import Node
from jobs_async.testing import FakeClock
from jobs_async.testing.conformance.scene import BOOM, ids, new
from tests.chaos.database import PATIENCE, SqliteFile
from tests.chaos.fleet import Place
from tests.chaos.race import Answers, Reader
from tests.chaos.scenario import play
from tests.chaos.test_faults import Load, short_and_full
from tests.conftest import Measured
from tests.runtime.support import Seen

Given = Callable[[], Store]

IGNORE, CANCEL, REJECT = UniqueStrategy.IGNORE_NEW, UniqueStrategy.CANCEL_EXISTING, UniqueStrategy.REJECT


@short_and_full({"tasks": 10, "keys": 100, "jobs": 1000, "kills": 3}, {"seed": 2})
def test_f17_rows_36_37_38_39_processes_that_race_for_keys_meet_typed_errors_only_and_no_key_has_two_jobs(
    tmp_path: Path, measured: Measured, load: Load
) -> None:
    report = play("race", tmp_path, **load)
    for what in ("named", "withdrawn", "again", "deleted", "refused", "rescued"):
        assert report[what] > 0, f"a race in which nothing is {what} proves little"
    assert report["looks"] > report["kills"]
    measured(
        "F17",
        f"{report['procs']} processes × {report['tasks']} tasks, {report['keys']:,} keys, {report['kills']} × kill -9",
        f"{report['inserted']:,} jobs inserted, {report['named']:,} met, {report['rescued']} rescued, twins 0 in "
        f"{report['looks']:,} looks, errors raised 0, {report['took']:.0f} s",
    )


# --- what the race is judged by ---


async def test_the_reader_of_the_race_sees_twins_that_no_index_keeps_apart(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with SqliteStore(path) as store:
        await store.insert([new(unique_key="u"), new(idempotency_key="i"), new()])
    reader = Reader(SqliteFile(path))
    assert reader.sees(3)
    assert (reader.sees(4), reader.wrong) == (False, set())
    with closing(sqlite3.connect(path)) as db, db:
        columns = ", ".join(name for _, name, *_ in db.execute("PRAGMA table_info(jobs_async_jobs)") if name != "id")
        db.execute("DROP INDEX jobs_async_unique")
        db.execute("DROP INDEX jobs_async_idempotent")
        db.execute(f"INSERT INTO jobs_async_jobs ({columns}) SELECT {columns} FROM jobs_async_jobs")
    reader.sees(6)
    assert reader.wrong == {"2 live jobs have the unique key u", "2 jobs of work have the idempotency key i"}


async def test_answers_that_the_file_contradicts_are_found(tmp_path: Path) -> None:
    place = Place(tmp_path)
    async with SqliteStore(place.jobs) as store:
        [run_on, run_again, _] = await store.insert([new(), new(), new()])
        never, deleted = replace(run_on, id=8), replace(run_on, id=9)
        place.ledger.mark("G", deleted)
        place.ledger.mark("R", run_again)
        place.ledger.mark("N", run_on, never, deleted)
        place.ledger.mark("C", run_on, run_again, deleted)
        place.ledger.mark("A", deleted)
    assert Answers(place).wrong == [
        "job 8 was named by an answer and never existed",
        f"job {run_on.id} was cancelled and is available in the end",
    ]


# --- the rest, on every store ---


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["memory", "sqlite"])
def given(request: pytest.FixtureRequest, clock: FakeClock, tmp_path: Path) -> Given:
    """Gives a store, and when asked again one that has the same jobs: as another process would see them."""
    if request.param == "sqlite":
        return lambda: SqliteStore(tmp_path / "jobs.db", clock=clock)
    store = MemoryStore(None, clock=clock)
    return lambda: store


def supervisor(store: Store, clock: FakeClock, **options: Any) -> Supervisor:
    """Looks for work, orphans and cancellations every twentieth of a second; its clock stands still."""
    pace: dict[str, Any] = {"poll_interval": 0.05, "heartbeat": 0.05, "rescue_interval": 0.05, "max_stall": None}
    return Supervisor(store, clock=clock, **pace | options)


def watched() -> tuple[Seen, Telemetry]:
    seen, telemetry = Seen(), Telemetry()
    telemetry.attach(seen)
    return seen, telemetry


# --- jobs that run ---


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
async def test_the_late_result_of_a_replaced_job_changes_nothing_wherever_it_was_replaced(
    given: Given, clock: FakeClock, elsewhere: bool
) -> None:
    seen, telemetry = watched()
    told, may_end = asyncio.Event(), asyncio.Event()

    async def work(number: int, ctx: JobContext) -> str:
        if number == 1:
            await ctx.cancelled.wait()
            told.set()
            await may_end.wait()
        return f"result of {number}"

    here = supervisor(given(), clock, telemetry=telemetry)
    here.register_worker("work", work)
    async with asyncio.timeout(PATIENCE), here, supervisor(given(), clock, queues={}) as there:
        old = await here.enqueue("work", 1, unique_key="k")
        await seen.wait(JobStarted, old)
        other = there if elsewhere else here
        young = await other.enqueue("work", 2, unique_key="k", unique_strategy=CANCEL)
        assert young.replaces == old.id
        assert await here.result(young) == "result of 2", "it does not wait for the one that it replaces"
        await told.wait()
        replaced = await there.get(old)
        assert (replaced.state, replaced.result) == (JobState.cancelled, None)
        may_end.set()
        await seen.wait(StaleSettlement, old)
        assert await there.get(old) == replaced
        assert (await there.get(young)).result == "result of 2"
        assert not (await other.enqueue("work", 3, unique_key="k")).duplicate


# --- jobs of a dead node ---


async def frozen(store: Store, *keys: str) -> list[Job[Any]]:
    """Jobs that a node was running when it died, whose lease holds for two more seconds. No other node must live."""
    await store.beat(Node(id="dead"), 2, join=True)
    await store.insert([new(unique_key=key) for key in keys])
    return (await store.fetch("default", len(keys), node="dead")).jobs


async def test_row_38_a_frozen_job_holds_its_key_until_it_was_rescued_and_is_completed(
    given: Given, clock: FakeClock
) -> None:
    seen, telemetry = watched()
    may_end = asyncio.Event()

    async def work(_args: object, _ctx: JobContext) -> bool:
        return await may_end.wait()

    async with asyncio.timeout(PATIENCE), given() as store:
        [job] = await frozen(store, "k")
        async with supervisor(store, clock, telemetry=telemetry) as jobs:
            jobs.register_worker("work", work)
            met = await jobs.enqueue("work", unique_key="k")
            assert (met.id, met.duplicate) == (job.id, True), "nobody knows yet that its node is dead"
            clock.advance(3)
            await seen.wait(JobStarted, job)
            met = await jobs.enqueue("work", unique_key="k")
            assert (met.id, met.duplicate, met.rescues) == (job.id, True, 1), "it runs again"
            may_end.set()
            assert (await jobs.wait(job)).state is JobState.completed
            young = await jobs.enqueue("work", unique_key="k")
            assert not young.duplicate
            assert await jobs.result(young)


async def test_row_38_a_frozen_job_that_is_given_up_frees_its_key(given: Given, clock: FakeClock) -> None:
    async with asyncio.timeout(PATIENCE), given() as store:
        [job] = await frozen(store, "k")
        async with supervisor(store, clock, max_rescues=0) as jobs:
            clock.advance(3)
            assert (await jobs.wait(job)).state is JobState.discarded
            young = await jobs.enqueue("work", unique_key="k", unique_strategy=REJECT)
            assert (young.duplicate, young.replaces) == (False, None)


async def test_rows_37_38_jobs_replaced_while_frozen_are_no_obstacle_to_the_rescue_of_the_others(
    given: Given, clock: FakeClock
) -> None:
    seen, telemetry = watched()
    ran: Counter[int] = Counter()
    keys = [f"k{number}" for number in range(20)]

    async def work(_args: object, ctx: JobContext) -> None:
        ran[ctx.job.id] += 1

    async with asyncio.timeout(PATIENCE), given() as store:
        olds = await frozen(store, *keys)
        async with supervisor(store, clock, telemetry=telemetry) as jobs:
            jobs.register_worker("work", work)
            youngs = [await jobs.enqueue("work", unique_key=key, unique_strategy=CANCEL) for key in keys[::2]]
            assert [young.replaces for young in youngs] == ids(olds[::2])
            clock.advance(3)
            for job in [*youngs, *olds[1::2]]:
                assert (await jobs.wait(job)).state is JobState.completed
        assert ran == dict.fromkeys(ids([*youngs, *olds[1::2]]), 1)
        assert len(seen.of(JobRescued)) == len(keys) // 2
        rows = [await store.get(old.id) for old in olds[::2]]
        assert {(row.state, row.rescues) for row in rows} == {(JobState.cancelled, 0)}
        late = [decide(old, Completed()) for old in olds]
        assert await store.apply(late) == [None] * len(late), "what the dead node says when it wakes up"


# --- jobs that come due ---


async def test_row_36_jobs_that_come_due_together_are_staged_and_none_is_in_its_own_way(
    given: Given, clock: FakeClock
) -> None:
    async with given() as here, given() as there:

        async def waiting(kind: str, outcome: Outcome) -> list[Job[Any]]:
            """A hundred keyed jobs that have run once and wait for another minute."""
            await here.insert([new(unique_key=f"{kind} {number}") for number in range(100)])
            claimed = (await here.fetch("default", 100, node=None)).jobs
            steps = [decide(job, outcome, 60) for job in claimed]
            return [job for job in await here.apply(steps) if job is not None]

        jobs = await waiting("retryable", Failed(BOOM)) + await waiting("snoozed", Snoozed(60))
        jobs += await here.insert([new(unique_key=f"scheduled {number}", delay=60) for number in range(100)])
        assert Counter(job.state.name for job in jobs) == {"retryable": 100, "scheduled": 200}
        again = [new(unique_key=job.unique_key) for job in jobs]

        clock.advance(60)
        assert ids(await there.insert(again)) == ids(jobs), "due, and not staged yet"
        claimed = (await here.fetch("default", 250, node=None)).jobs
        assert len(claimed) == 250
        assert ids(await there.insert(again)) == ids(jobs), "some run, the others are available"
        claimed += (await there.fetch("default", 250, node=None)).jobs
        assert sorted(ids(claimed)) == ids(jobs)
        with pytest.raises(UniqueConflict):
            await there.insert([new(unique_key="scheduled 7", unique_strategy=REJECT)])
        assert None not in await here.apply([decide(job, Completed()) for job in claimed])
        assert not any(job.duplicate for job in await there.insert(again))


# --- batches that meet themselves ---

BATCHES: dict[str, tuple[Callable[[str], JobOpts], set[int], dict[str, int]]] = {
    "ignore": (lambda key: JobOpts(unique_key=key), {0}, {"stored": 1, "met": 2}),
    "cancel": (lambda key: JobOpts(unique_key=key, unique_strategy=CANCEL), {2}, {"stored": 3, "cancelled": 2}),
    "idempotent": (lambda key: JobOpts(idempotency_key=key), {0}, {"stored": 1, "met": 2}),
    "idempotent, cancel": (
        lambda key: JobOpts(idempotency_key=key, unique_key=key, unique_strategy=CANCEL),
        {0},
        {"stored": 1, "met": 2},
    ),
}
"""Options of jobs that come three times in one batch; which of the three run; what is told, for each key."""


@pytest.mark.parametrize("kind", BATCHES)
async def test_of_a_batch_that_has_each_key_three_times_one_job_a_key_runs(
    given: Given, clock: FakeClock, kind: str
) -> None:
    options, which, told = BATCHES[kind]
    seen, telemetry = watched()
    ran: Counter[tuple[int, str]] = Counter()
    jobs = supervisor(given(), clock, telemetry=telemetry, queues={"default": 50})

    async def work(args: list[Any], _ctx: JobContext) -> None:
        turn, key = args
        ran[turn, key] += 1

    jobs.register_worker("work", work)
    keys = [f"k{number}" for number in range(400)]
    async with asyncio.timeout(PATIENCE), jobs:
        rounds = [[Draft[Any]("work", [turn, key], options(key)) for key in keys] for turn in range(3)]
        stored = await jobs.enqueue_many([draft for drafts in rounds for draft in drafts])
        for job in stored:
            await jobs.wait(job)
        assert ran == {(turn, key): 1 for turn in which for key in keys}
        events = {"stored": seen.of(JobEnqueued), "met": seen.of(JobDuplicate), "cancelled": seen.of(JobCancelled)}
        assert {what: len(found) for what, found in events.items() if found} == {
            what: times * len(keys) for what, times in told.items()
        }
        assert sum((await jobs.counts()).values()) == told["stored"] * len(keys)


async def test_a_batch_that_refuses_itself_stores_and_tells_nothing(given: Given, clock: FakeClock) -> None:
    seen, telemetry = watched()
    async with supervisor(given(), clock, telemetry=telemetry) as jobs:
        drafts = [
            Draft[Any]("work", None, JobOpts(unique_key=f"k{n % 400}", unique_strategy=REJECT)) for n in range(401)
        ]
        with pytest.raises(UniqueConflict) as refused:
            await jobs.enqueue_many([Draft("work"), *drafts])
        assert refused.value.job.unique_key == "k0"
        assert (await jobs.find(), seen.events) == ([], [])


# --- what looks like a key ---

LOOK_ALIKES = (
    "1 \uff11 \u0661 \u2460 \u00b9 1.0 1e0 +1 0x1 true True \"1\" '1' [1] null "
    "a A \u0430 \u03b1 \uff41 \u00aa a\u200b a\u00ad a\ufe0f \ufeffa a\u00a0 a\u3000 "
    "\u00c5 \u212b A\u030a K \u212a \u03a9 \u2126 \u00df ss \u1e9e \ufb01 fi i I \u0130 \u0131 i\u0307"
).split(" ")
"""Digits, letters and ligatures that some comparison folds, and what cannot be seen."""
FULL = ["k" * 255, "k" * 254 + "l", "é" * 127, "é" * 126 + "è"]
"""As long as a key may be, and different at the end."""


async def test_row_39_no_key_is_taken_for_another_that_looks_like_it_or_shares_its_hash(given: Given) -> None:
    """Of 50,000 keys some nine pairs would meet in 27 bits."""
    keys = [*LOOK_ALIKES, *FULL, *map(str, range(2, 50_000))]
    assert len(set(keys)) == len(keys)
    async with given() as store:
        for start in range(0, len(keys), 10_000):
            await store.insert([new(unique_key=key, unique_strategy=REJECT) for key in keys[start : start + 10_000]])
        jobs = await store.insert([new(idempotency_key=key) for key in LOOK_ALIKES + FULL])
        assert not any(job.duplicate for job in jobs)
        assert sum((await store.tally()).values()) == len(keys) + len(jobs)


@pytest.mark.parametrize("value", [1, 1.0, True, b"1", ("1",)], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("which", ["unique_key", "idempotency_key"])
def test_row_39_what_is_no_string_is_no_key(which: str, value: Any) -> None:
    options: Any = {which: value}
    with pytest.raises(OptionError, match=f"{which} must be a string, not {type(value).__name__}"):
        JobOpts(**options)


class Markup(str):
    """As templating libraries have it."""

    def __str__(self) -> str:
        return "something else"


async def test_row_39_a_key_of_a_subclass_of_str_is_stored_as_the_string_it_is(given: Given) -> None:
    options: Any = {which: Markup("a") for which in ("unique_key", "idempotency_key", "correlation_id", "external_id")}
    async with given() as store:
        [job] = await store.insert([NewJob.of("work", "{}", JobOpts(queue=Markup("q"), tags=[Markup("t")], **options))])
        again = await store.get(job.id)
    for record in (job, again):
        kept = [record.unique_key, record.idempotency_key, record.correlation_id, record.external_id, *record.tags]
        assert kept == ["a", "a", "a", "a", "t"]
        assert {type(text) for text in (record.queue, *kept)} == {str}
