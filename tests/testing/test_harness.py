"""The Harness: who enqueues into it, what it runs and when, and that nothing is left of it afterwards."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio.from_thread
import pytest
from msgspec.structs import replace

from jobs_async import (
    Cancel,
    ConstantBackoff,
    Discard,
    Event,
    Job,
    JobCompleted,
    JobEnqueued,
    JobNotFound,
    JobQuery,
    JobStarted,
    JobState,
    MemoryStore,
    NotBound,
    OptionError,
    Snooze,
    SqliteStore,
    Supervisor,
    Telemetry,
    UniqueStrategy,
    Worker,
    WorkerError,
    WorkerNotFound,
    current_context,
    worker,
)
from jobs_async.core.store import Store
from jobs_async.runtime.drain import DrainReport
from jobs_async.testing import FakeClock, Harness, TravelClock
from jobs_async.testing.faults import Fault, FaultyStore
from jobs_async.testing.standing_in import TAKEN_OVER
from tests.runtime.support import Seen, World, virtual

ran: list[Any] = []


@worker
async def note(n: int = 0) -> int:
    ran.append(n)
    return n


@worker(queue="side")
async def family(n: int) -> str:
    """Enqueues smaller ones of its kind, each into a queue of its own."""
    ran.append(n)
    if n:
        await family.options(queue=f"generation-{n}").enqueue(n - 1)
    return "ok"


@worker(max_attempts=3)
async def ends(manner: str) -> None:
    how = {"fail": OSError("no"), "discard": Discard("no"), "cancel": Cancel("no"), "snooze": Snooze(60)}
    raise how[manner]


@worker
def in_a_thread(n: int) -> int:
    return n + 1


def a_worker() -> Worker[[int], Coroutine[Any, Any, int]]:
    """One that no other test has attached to anything."""

    @worker
    async def note(n: int) -> int:
        ran.append(n)
        return n

    return note


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


@pytest.fixture(params=["memory", "sqlite"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "jobs.db")


def essence(job: Job[Any]) -> Job[Any]:
    """What does not change when a job is claimed and handed back."""
    return replace(job, claim=0, scheduled_at=job.inserted_at, attempted_at=None)


# --- whom workers enqueue into ---


async def test_workers_choose_it_over_a_supervisor_that_was_not_started_and_go_back_afterwards() -> None:
    note = a_worker()
    app = Supervisor(workers=[note])
    with Harness(workers=[note]) as jobs:
        job = await note.enqueue(1)
        assert await jobs.get(job) == job
        assert await app.find() == []
    assert await app.get(await note.enqueue(2))
    assert len(await jobs.find()) == 1


async def test_one_within_another_and_two_at_once() -> None:
    with Harness(workers=[note]) as outer:
        with Harness(workers=[in_a_thread]) as inner:
            await note.enqueue(1)
            await in_a_thread.enqueue(2)
            assert [job.worker for job in await outer.find()] == ["note"]
            assert [job.worker for job in await inner.find()] == ["in_a_thread"]
        with Harness(workers=[note]) as second:
            with pytest.raises(NotBound, match="2 running"):
                await note.enqueue(3)
            await note.on(second).enqueue(4)
            assert await second.drain() == DrainReport(completed=1)
        await note.enqueue(5)
        assert await outer.drain() == DrainReport(completed=2)
    assert ran == [4, 1, 5]


async def test_it_can_be_entered_again_also_after_an_exception() -> None:
    note = a_worker()
    jobs = Harness(workers=[note])
    for n in range(3):
        with pytest.raises(ZeroDivisionError), jobs:
            assert jobs.is_running
            await note.enqueue(n)
            raise ZeroDivisionError
        assert not jobs.is_running
        with pytest.raises(NotBound):
            await note.enqueue(n)
    assert await jobs.drain() == DrainReport(completed=3)


@pytest.mark.parametrize("started", [False, True])
async def test_a_store_is_closed_by_the_one_that_opened_it(store: Store, started: bool) -> None:
    async with Harness(store, workers=[note]) as jobs:
        if started:
            await jobs.start()
        assert store.is_open
        await note.enqueue(7)
        assert await jobs.drain() == DrainReport(completed=1)
    assert store.is_open is isinstance(store, MemoryStore)
    async with store, Harness(store, workers=[note]) as jobs:
        assert (await jobs.get(1)).result == 7
    async with store:
        async with Harness(store):
            pass
        assert store.is_open


async def test_workers_are_detached_though_it_runs_on() -> None:
    note = a_worker()
    jobs = Harness(workers=[note])
    with jobs:
        await jobs.start()
    with pytest.raises(NotBound):
        await note.enqueue(1)
    await jobs.stop()


# --- what a drain serves ---


async def test_every_queue_is_served_also_one_that_comes_up_meanwhile(store: Store) -> None:
    async with Harness(store, workers=[family, note]) as jobs:
        await family.enqueue(3)
        await note.options(queue="stray").enqueue(9)
        assert await jobs.drain() == DrainReport(completed=5)
        assert {queue for queue, _ in await jobs.counts()} == {
            "side", "stray", "generation-3", "generation-2", "generation-1"
        }  # fmt: skip
    assert sorted(ran) == [0, 1, 2, 3, 9]


async def test_only_the_queues_that_were_named_are_served() -> None:
    with Harness(workers=[family], queues={"side": 1}) as jobs:
        await family.enqueue(1)
        assert await jobs.drain() == DrainReport(completed=1)
    assert ran == [1]


async def test_a_drain_of_one_that_runs_leaves_queues_alone_that_came_up_since() -> None:
    async with Harness(workers=[note]) as jobs:
        await jobs.start()
        await note.options(queue="late").enqueue(1)
        await note.enqueue(2)
        await jobs.drain(timeout=30)
        await jobs.stop()
        assert ran == [2]
        assert await jobs.drain() == DrainReport(completed=1)


@virtual
async def test_the_timeout_of_a_drain_counts_for_all_its_rounds(world: World) -> None:
    @worker
    async def chain(n: int) -> None:
        await chain.options(queue=f"queue {n}").enqueue(n + 1)
        await asyncio.sleep(10)

    with Harness(world.store, clock=world.clock, workers=[chain], shutdown_timeout=0) as jobs:
        await chain.enqueue(0)
        with pytest.raises(TimeoutError):
            await jobs.drain(timeout=35)
        assert len(await jobs.find(JobQuery(states=[JobState.completed]))) == 3
        with pytest.raises(OptionError, match="timeout"):
            await jobs.drain(timeout=-1)


# --- one job ---


@pytest.mark.parametrize("state", [JobState.available, JobState.scheduled, JobState.retryable])
async def test_one_is_run_whatever_stands_before_it(store: Store, state: JobState) -> None:
    async with Harness(store, workers=[note, ends]) as jobs:
        before = [await note.options(priority=priority).enqueue(priority) for priority in (3, -2, 0, -2)]
        waits = await note.options(delay=60, priority=-9).enqueue(9)
        if state is JobState.retryable:
            job: Job[Any] = await jobs.run_one(await ends.enqueue("fail"))
        else:
            job = await note.options(delay=60 if state is JobState.scheduled else 0, priority=5).enqueue(7)
        after = await note.enqueue(8)
        assert job.state is state
        done = await jobs.run_one(job)
        expected = (2, JobState.retryable) if state is JobState.retryable else (1, JobState.completed)
        assert (done.attempt, done.state) == expected
        assert [essence(await jobs.get(one)) for one in (*before, after)] == [essence(one) for one in (*before, after)]
        assert await jobs.get(waits) == waits
        ran.clear()
        assert (await jobs.drain()).completed == 5
        assert ran == [-2, -2, 0, 8, 3]


async def test_more_jobs_than_a_page_may_stand_before_it() -> None:
    with Harness(workers=[note]) as jobs:
        await jobs.enqueue_many([note.draft(n) for n in range(2500)])
        last = await note.options(priority=5).enqueue(-1)
        assert (await jobs.run_one(last)).result == -1
        assert await jobs.counts() == {("default", JobState.available): 2500, ("default", JobState.completed): 1}
        assert all(job.attempt == 0 for job in await jobs.find(JobQuery(states=[JobState.available])))


async def test_the_attempt_can_be_chosen() -> None:
    with Harness(workers=[ends]) as jobs:
        job = await ends.enqueue("fail")
        second = await jobs.run_one(job, attempt=2)
        assert (second.attempt, second.state) == (2, JobState.retryable)
        first = await jobs.run_one(job, attempt=1)
        assert (first.attempt, first.state) == (1, JobState.retryable)
        last = await jobs.run_one(job, attempt=3)
        assert (last.attempt, last.state) == (3, JobState.discarded)
        assert [error.attempt for error in last.errors] == [2, 1, 3]
        for wrong in (0, -1, "1", True):
            with pytest.raises(OptionError, match="attempt"):
                await jobs.run_one(await ends.enqueue("fail"), attempt=wrong)  # type: ignore[arg-type]


async def test_what_cannot_be_run_is_left_as_it_is(store: Store) -> None:
    async with Harness(store, workers=[note]) as jobs:
        ended = await jobs.run_one(await note.enqueue(1))
        with pytest.raises(OptionError, match="is completed and cannot be run now"):
            await jobs.run_one(ended)
        await jobs.pause_queue("default")
        for job in (await note.enqueue(2), await note.options(delay=60).enqueue(3)):
            with pytest.raises(OptionError, match="'default' is paused"):
                await jobs.run_one(job)
            assert await jobs.get(job) == job
        with pytest.raises(JobNotFound):
            await jobs.run_one(replace(ended, id=99))
    assert ran == [1]


@pytest.mark.parametrize(
    ("manner", "state", "attempt", "error"),
    [
        ("fail", JobState.retryable, 1, "OSError: no"),
        ("discard", JobState.discarded, 1, "Discard: no"),
        ("cancel", JobState.cancelled, 1, "no"),
        ("snooze", JobState.scheduled, 0, None),
    ],
)
async def test_how_a_handler_can_end(manner: str, state: JobState, attempt: int, error: str | None) -> None:
    with Harness(workers=[ends]) as jobs:
        job = await jobs.run_one(await ends.enqueue(manner))
        assert (job.state, job.attempt) == (state, attempt)
        assert (job.last_error.error if job.last_error else None) == error


async def test_a_worker_that_nobody_knows_is_discarded() -> None:
    with Harness() as jobs:
        job = await jobs.run_one(await jobs.enqueue("stranger"))
        assert job.state is JobState.discarded
        assert job.last_error is not None
        assert job.last_error.type == "WorkerNotFound"


@virtual
async def test_the_timeout_of_a_job_counts(world: World) -> None:
    @worker(timeout_seconds=30, retry_strategy=ConstantBackoff(5))
    async def slow() -> None:
        await asyncio.sleep(1000)

    with Harness(world.store, clock=world.clock, workers=[slow]) as jobs:
        job = await jobs.run_one(await slow.enqueue())
        assert job.state is JobState.retryable
        assert job.last_error is not None
        assert job.last_error.type == "Timeout"
        assert job.scheduled_at == world.clock.now() + timedelta(seconds=5)


async def test_a_request_to_cancel_that_comes_meanwhile_is_heeded_at_the_end() -> None:
    @worker
    async def gives_up() -> str:
        await jobs.cancel(current_context().job)
        return "kept"

    with Harness(workers=[gives_up]) as jobs:
        job = await jobs.run_one(await gives_up.enqueue())
        assert (job.state, job.result) == (JobState.cancelled, "kept")


@pytest.mark.parametrize("manner", ["fail", "discard", "cancel", "snooze", "complete"])
async def test_the_events_of_a_run_are_those_of_a_supervisor(manner: str) -> None:
    async def told(jobs: Supervisor, run: Callable[[Job[Any]], Any]) -> list[str]:
        seen = Seen()
        assert jobs.telemetry is not None
        jobs.telemetry.attach(seen)
        await run(await (note.on(jobs).enqueue() if manner == "complete" else ends.on(jobs).enqueue(manner)))
        return [event.type for event in seen.events]

    with Harness(workers=[note, ends], telemetry=Telemetry()) as harness:
        here = await told(harness, harness.run_one)
    async with Supervisor(workers=[note, ends], telemetry=Telemetry()) as jobs:

        async def until_settled(job: Job[Any]) -> None:
            await jobs.drain()

        there = await told(jobs, until_settled)
    assert here == there
    assert len(here) == 3


async def test_the_progress_of_a_run_is_stored() -> None:
    @worker
    async def half() -> None:
        await current_context().progress(0.5, "half")
        raise OSError

    with Harness(workers=[half]) as jobs:
        job = await jobs.run_one(await half.enqueue())
        assert job.progress is not None
        assert (job.progress.fraction, job.progress.note) == (0.5, "half")


async def test_several_at_once_do_not_hold_each_other_up(store: Store) -> None:
    together = asyncio.Barrier(5)

    @worker
    async def meets(n: int) -> int:
        async with asyncio.timeout(30):
            await together.wait()
        return n

    async with Harness(store, workers=[meets]) as jobs:
        waiting = [await meets.enqueue(n) for n in range(5)]
        done = await asyncio.gather(*(jobs.run_one(job) for job in reversed(waiting)))
        assert [job.result for job in done] == [4, 3, 2, 1, 0]
        assert {job.attempt for job in done} == {1}


# --- cancellation of the one who waits for it ---


async def is_left_clean(jobs: Harness) -> bool:
    return not await jobs.find(JobQuery(states=[JobState.executing]))


async def test_cancelled_it_cuts_the_handler_and_hands_back_the_job(store: Store) -> None:
    begun, cleaned_up = asyncio.Event(), asyncio.Event()

    @worker
    async def endless() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned_up.set()

    async with Harness(store, workers=[endless]) as jobs:
        job = await endless.enqueue()
        running = asyncio.get_running_loop().create_task(jobs.run_one(job))
        await begun.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert cleaned_up.is_set()
        assert essence(await jobs.get(job)) == essence(job)


async def test_cancelled_at_any_moment_it_leaves_nothing_running(store: Store) -> None:
    """After each number of turns of the loop there are, until it comes through."""
    turns, telemetry = 0, Telemetry()

    async def told(_event: Event) -> None:
        await asyncio.sleep(0)

    telemetry.attach(told)
    async with Harness(store, workers=[note], telemetry=telemetry) as jobs:
        await note.enqueue(1)
        last, cut = await note.options(priority=5).enqueue(5), True
        while cut:
            running = asyncio.get_running_loop().create_task(jobs.run_one(last))
            for _ in range(turns):
                await asyncio.sleep(0)
            running.cancel()
            try:
                await running
                cut = False
            except asyncio.CancelledError:
                assert await is_left_clean(jobs)
            turns += 1
            if ran:
                ran.clear()
                last = await note.options(priority=5).enqueue(5)
        assert turns > 5
        assert (await jobs.get(1)).attempt == 0


@virtual
async def test_cancelled_while_it_claims_it_begins_nothing(world: World) -> None:
    slow_claims = FaultyStore(world.store, lambda _, primitive: Fault(after=5) if primitive == "fetch" else None)
    with Harness(slow_claims, clock=world.clock, workers=[note]) as jobs:
        first, job = await note.enqueue(1), await note.enqueue(2)
        running = asyncio.get_running_loop().create_task(jobs.run_one(job))
        await asyncio.sleep(1)
        assert (await jobs.get(job)).state is JobState.executing
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert [essence(await jobs.get(one)) for one in (first, job)] == [essence(first), essence(job)]
    assert ran == []


async def test_cancelled_while_the_begin_is_told_of_it_begins_nothing() -> None:
    telling = asyncio.Event()

    async def hangs(event: Event) -> None:
        if isinstance(event, JobStarted):
            telling.set()
            await asyncio.sleep(0.01)

    telemetry = Telemetry()
    telemetry.attach(hangs)
    with Harness(workers=[note], telemetry=telemetry) as jobs:
        job = await note.enqueue()
        running = asyncio.get_running_loop().create_task(jobs.run_one(job))
        await telling.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert essence(await jobs.get(job)) == essence(job)
        assert ran == []


# --- inline ---


async def test_inline_a_job_has_run_when_its_enqueue_returns(store: Store) -> None:
    async with Harness(store, workers=[note, in_a_thread, family], inline=True) as jobs:
        job = await note.enqueue(4)
        assert (job.state, job.result) == (JobState.completed, 4)
        assert (await in_a_thread.enqueue(1)).result == 2
        both = await jobs.enqueue_many([note.draft(5), note.draft(6)])
        assert [one.result for one in both] == [5, 6]
        assert (await jobs.enqueue("note", {"n": 7})).result == 7
        assert (await family.enqueue(2)).result == "ok"
        assert ran == [4, 5, 6, 7, 2, 1, 0]
        assert await jobs.drain() == DrainReport()


async def test_inline_what_is_not_due_waits() -> None:
    with Harness(workers=[note], inline=True) as jobs:
        assert (await note.options(delay=60).enqueue(1)).state is JobState.scheduled
        await jobs.pause_queue("default")
        assert (await note.enqueue(2)).state is JobState.available
        await jobs.resume_queue("default")
        assert ran == []
        jobs.advance(61)
        assert await jobs.drain() == DrainReport(completed=2)


@pytest.mark.parametrize(
    ("manner", "state"),
    [("fail", JobState.retryable), ("discard", JobState.discarded), ("snooze", JobState.scheduled)],
)
async def test_inline_a_failure_is_the_jobs_own(manner: str, state: JobState) -> None:
    with Harness(workers=[ends], inline=True):
        assert (await ends.enqueue(manner)).state is state


async def test_inline_a_duplicate_is_not_run_again() -> None:
    with Harness(workers=[note, ends], inline=True) as jobs:
        once = note.options(idempotency_key="once")
        assert [(await once.enqueue(n)).duplicate for n in (1, 2)] == [False, True]
        held = await ends.options(unique_key="held").enqueue("fail")
        again = await ends.options(unique_key="held").enqueue("fail")
        assert (again.id, again.duplicate, again.attempt) == (held.id, True, 1)
        assert (await jobs.get(held)).attempt == 1
        waits = await jobs.put(note.options(unique_key="k").draft(2))
        assert (await note.options(unique_key="k").enqueue(3)).id == waits.id
    assert ran == [1]


async def test_inline_what_another_of_its_batch_has_replaced_is_not_run() -> None:
    @worker
    async def takes_over() -> None:
        await note.options(unique_key="k", unique_strategy=UniqueStrategy.CANCEL_EXISTING).enqueue(2)

    with Harness(workers=[note, takes_over], inline=True) as jobs:
        batch: list[Job[Any]] = await jobs.enqueue_many([takes_over.draft(), note.options(unique_key="k").draft(1)])
        assert [job.state.name for job in batch] == ["completed", "cancelled"]
    assert ran == [2]


async def test_inline_a_transaction_of_the_caller_comes_first(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "jobs.db")
    async with Harness(store, workers=[note], inline=True) as jobs:
        import aiosqlite

        async with aiosqlite.connect(tmp_path / "jobs.db") as connection:
            job = await note.options(connection=connection).enqueue(1)
            assert (job.state, ran) == (JobState.available, [])
            await connection.commit()
        assert await jobs.drain() == DrainReport(completed=1)


async def test_inline_many_may_enqueue_at_once(store: Store) -> None:
    async with Harness(store, workers=[note], inline=True):
        done = await asyncio.gather(*(note.enqueue(n) for n in range(10)))
    assert [job.result for job in done] == list(range(10))
    assert sorted(ran) == list(range(10))


async def test_inline_a_drain_runs_what_comes_up_while_it_lasts(store: Store) -> None:
    async with Harness(store, workers=[family], inline=True) as jobs:
        for _ in range(5):
            await family.options(delay=60).enqueue(2)
        assert await jobs.drain(with_scheduled=True) == DrainReport(completed=15)


async def test_inline_a_sync_handler_may_enqueue() -> None:
    @worker
    def from_a_thread() -> int | None:
        return anyio.from_thread.run(note.enqueue, 3).result

    with Harness(workers=[note, from_a_thread], inline=True):
        assert (await from_a_thread.enqueue()).result == 3


# --- in the place of a Supervisor of the application ---


@contextmanager
def unusable() -> Iterator[Supervisor]:
    """A Supervisor whose store must not be touched, and is as before in the end."""
    app = Supervisor("sqlite:////nowhere/to/be/found.db", workers=[note, family])
    store, own = app.store, set(vars(app))
    yield app
    assert app.store is store
    assert set(vars(app)) == own
    assert not app.is_running


async def test_what_the_application_asks_its_supervisor_is_answered_here() -> None:
    with unusable() as app, Harness(stands_in_for=app) as jobs:
        job = await app.enqueue("note", {"n": 1}, queue="side")
        await note.enqueue(2)
        await app.enqueue_many([note.draft(3)])
        assert [one.id for one in await app.find()] == [3, 2, 1]
        assert await app.counts() == {("side", JobState.available): 1, ("default", JobState.available): 2}
        await app.cancel(3)
        waiting = asyncio.get_running_loop().create_task(app.wait(job))
        assert await jobs.drain() == DrainReport(completed=2)
        assert (await waiting).result == 1
        assert await app.result(job) == 1
        assert (await app.get(1)).result == 1
        await app.pause_queue("side")
        assert await jobs.store.is_paused("side")
        await app.retry(job)
        await app.delete(job)
        with pytest.raises(JobNotFound):
            await app.get(job)


async def test_it_is_given_back_after_an_exception() -> None:
    with unusable() as app, pytest.raises(ZeroDivisionError), Harness(stands_in_for=app):
        raise ZeroDivisionError
    assert "start" not in vars(app)


async def test_one_within_another_is_given_back_in_turn() -> None:
    app = Supervisor(workers=[note])
    outer, inner = Harness(stands_in_for=app), Harness(stands_in_for=app)
    with outer:
        with inner:
            await app.enqueue("note")
        await app.enqueue("note")
        await app.enqueue("note")
    assert [len(await one.find()) for one in (inner, outer, app)] == [1, 2, 0]


async def test_to_start_the_application_starts_nothing() -> None:
    with unusable() as app, Harness(stands_in_for=app) as jobs:
        async with app:
            await note.enqueue(1)
            await app.enqueue("note", {"n": 2})
            assert ran == []
            assert await app.drain() == DrainReport(completed=2)
        async with app.lifespan(None):
            assert len(await jobs.find()) == 2


async def test_one_that_runs_cannot_be_replaced() -> None:
    async with Supervisor(workers=[note]) as app:
        with pytest.raises(OptionError, match="is running"), Harness(stands_in_for=app):
            pass
        job = await note.enqueue(5)
        assert await app.result(job) == 5


async def test_inline_holds_for_what_the_application_enqueues_by_name() -> None:
    with unusable() as app, Harness(stands_in_for=app, inline=True):
        assert (await app.enqueue("note", {"n": 3})).result == 3


async def test_it_is_as_strict_and_tells_as_many() -> None:
    seen = Seen()
    telemetry = Telemetry()
    telemetry.attach(seen)
    app = Supervisor(workers=[note], strict=True, telemetry=telemetry)
    with Harness(stands_in_for=app) as jobs:
        with pytest.raises(WorkerNotFound):
            await app.enqueue("stranger")
        await jobs.run_one(await app.enqueue("note"))
    assert [type(event) for event in seen.events] == [JobEnqueued, JobStarted, JobCompleted]
    with Harness(stands_in_for=app, strict=False, telemetry=None):
        await app.enqueue("stranger")
    assert len(seen.events) == 3


async def test_workers_that_came_before_the_block_are_known_and_names_must_not_clash() -> None:
    note = a_worker()
    app = Supervisor()
    jobs = Harness(stands_in_for=app)
    app.register_worker(note)
    with jobs:
        assert jobs.worker_names == {"note"}

    @worker(name="note")
    async def other() -> None: ...

    with pytest.raises(WorkerError, match="'note'"), Harness(workers=[other], stands_in_for=app):
        pass
    assert await app.get(await note.enqueue(1))


async def test_a_worker_that_comes_up_in_the_block_is_run_here() -> None:
    app = Supervisor()
    with Harness(stands_in_for=app) as jobs:

        @app.worker
        async def late() -> str:
            return "ok"

        by_name, by_worker = await app.enqueue("late"), await late.enqueue()
        assert await jobs.drain() == DrainReport(completed=2)
        assert [(await jobs.get(job)).result for job in (by_name, by_worker)] == ["ok", "ok"]


LEFT_TO_THE_APPLICATION = {
    "enqueue": "goes through enqueue_many",
    "result": "goes through wait",
    "start": "does nothing",
    "stop": "does nothing",
    "run": "goes through start and stop",
    "lifespan": "goes through start and stop",
    "worker": "goes through the registration of both",
    "register_worker": "goes through the registration of both",
    "cron": "its ticks are fired by one that runs, and the application's does not",
    "crons": "as cron",
    "register_cron": "as cron",
    "unregister_cron": "as cron",
    "insert_tick": "is for the ticks of one that runs",
    "is_running": "is about its own life",
    "is_stopped": "is about its own life",
    "shutdown_report": "is about its own life",
    "stuck": "is about its own life",
    "served": "is about its own life",
    "serve": "is about its own life",
    "hurry": "is about its own life",
    "node": "is about its own life",
}
"""What is not taken over, and why it need not be."""


def test_all_that_can_be_asked_of_a_supervisor_is_taken_over_or_said_not_to_be() -> None:
    public = {name for name in dir(Supervisor) if not name.startswith("_")}
    assert public == {*TAKEN_OVER, *LEFT_TO_THE_APPLICATION}
    assert not LEFT_TO_THE_APPLICATION.keys() & set(TAKEN_OVER)


async def test_what_is_not_taken_over_and_asks_the_store_asks_that_of_the_harness() -> None:
    app = Supervisor()
    with Harness(stands_in_for=app) as jobs:
        await jobs.pause_queue("side")
        assert (await app.queues())["side"].paused
        await jobs.start()
        assert [node.id for node in await app.nodes()] == [node.id for node in await jobs.nodes()] != []
        await jobs.stop()


# --- time ---


@pytest.mark.parametrize("clock", [TravelClock, FakeClock])
async def test_what_was_scheduled_comes_due_when_time_is_moved(clock: Any) -> None:
    with Harness(workers=[note], clock=clock()) as jobs:
        job = await note.options(delay=3600).enqueue(1)
        jobs.advance(3599)
        assert await jobs.drain() == DrainReport()
        jobs.advance(timedelta(seconds=1))
        assert await jobs.drain() == DrainReport(completed=1)
        done = await jobs.get(job)
        assert done.completed_at is not None
        assert done.completed_at - done.inserted_at >= timedelta(hours=1)


@virtual
async def test_a_clock_that_cannot_be_moved_says_so(world: World) -> None:
    with (
        Harness(world.store, clock=world.clock) as jobs,
        pytest.raises(OptionError, match="a LoopClock cannot be moved"),
    ):
        jobs.advance(1)


async def test_a_store_by_its_url_has_the_time_of_the_harness(tmp_path: Path) -> None:
    for url in ("memory://", f"sqlite:///{tmp_path}/jobs.db"):
        async with Harness(url, workers=[note]) as jobs:
            await note.options(delay=3600).enqueue(1)
            jobs.advance(3601)
            assert await jobs.drain() == DrainReport(completed=1)


# --- started, and killed ---


async def test_started_it_runs_jobs_as_a_supervisor_does(store: Store) -> None:
    async with Harness(store, workers=[note, family]) as jobs:
        await jobs.start()
        assert await jobs.result(await note.enqueue(3)) == 3
        await jobs.stop()
        assert jobs.is_running, "the block goes on"
        job = await note.enqueue(4)
        assert ran == [3]
        await jobs.drain()
        assert (await jobs.get(job)).result == 4
    assert not jobs.is_running


async def test_started_it_runs_nothing_inline() -> None:
    async with Harness(workers=[note], inline=True) as jobs:
        await jobs.start()
        job = await note.enqueue(3)
        assert (await jobs.wait(job)).attempt == 1
    assert ran == [3]


async def test_a_crash_settles_nothing_and_what_ran_runs_again(store: Store) -> None:
    begun = asyncio.Semaphore(0)

    @worker
    async def loses_its_process(n: int) -> str:
        begun.release()
        if current_context().attempt == 1:
            await asyncio.Event().wait()
        return f"{n} in attempt {current_context().attempt}"

    async with Harness(store, workers=[loses_its_process]) as jobs:
        await jobs.start()
        lost = [await loses_its_process.enqueue(n) for n in range(3)]
        later = await loses_its_process.options(delay=60).enqueue(3)
        for _ in lost:
            await begun.acquire()
        await jobs.crash()
        for job in lost:
            row = await jobs.get(job)
            assert (row.state, row.attempt, row.rescues, row.result) == (JobState.available, 1, 1, None)
            assert row.last_error is not None
            assert row.last_error.type == "Lost"
        assert await jobs.get(later) == later
        assert await jobs.drain() == DrainReport(completed=3)
        assert [(await jobs.get(job)).result for job in lost] == [f"{n} in attempt 2" for n in range(3)]


async def test_a_crash_finds_sync_handlers_too(store: Store) -> None:
    begun = threading.Semaphore(0)

    @worker
    def loses_its_process() -> int:
        begun.release()
        if current_context().attempt == 1:
            while not current_context().cancelled.is_set():
                pass
        return current_context().attempt

    async with Harness(store, workers=[loses_its_process]) as jobs:
        await jobs.start()
        job = await loses_its_process.enqueue()
        await asyncio.to_thread(begun.acquire)
        await jobs.crash()
        row = await jobs.get(job)
        assert (row.state, row.attempt, row.result) == (JobState.available, 1, None)
        await jobs.start()
        assert (await jobs.wait(job)).result == 2


async def test_a_crash_of_one_that_was_not_started_only_frees_what_has_no_node() -> None:
    with Harness(workers=[note]) as jobs:
        job = await note.enqueue()
        await jobs.crash()
        assert await jobs.get(job) == job
