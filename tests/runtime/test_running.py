"""The straight path: claimed in order, run within bounds, settled, told of."""

from __future__ import annotations

import asyncio
import logging

import pytest

from jobs_async import (
    ArgsError,
    Cancel,
    ConstantBackoff,
    Discard,
    Draft,
    JobCancelled,
    JobCompleted,
    JobDiscarded,
    JobEnqueued,
    JobFailed,
    JobOpts,
    JobSnoozed,
    JobStarted,
    JobState,
    ResultError,
    Snooze,
    UniqueStrategy,
    current_context,
)
from jobs_async.core.options import NewJob
from tests.runtime.support import World, now, virtual


@virtual
async def test_a_job_is_run_settled_and_told_of_in_order(world: World) -> None:
    async with world.supervisor() as jobs:

        @jobs.worker
        async def add(a: int, b: int = 2) -> int:
            await asyncio.sleep(1.5)
            return a + b

        job = await add.enqueue(1)
        assert (job.state, job.attempt, job.duplicate) == (JobState.available, 0, False)
        assert await jobs.result(job) == 3
        await world.seen.wait(JobCompleted, job)
    enqueued, started, completed = world.seen.events
    assert [event.type for event in world.seen.events] == ["job_enqueued", "job_started", "job_completed"]
    assert isinstance(started, JobStarted)
    assert (started.job.state, started.job.attempt) == (JobState.executing, 1)
    assert isinstance(completed, JobCompleted)
    assert (completed.job.state, completed.job.result) == (JobState.completed, 3)
    assert (completed.duration_ms, completed.error_msg) == (1500, None)
    assert isinstance(enqueued, JobEnqueued)


@virtual
async def test_what_is_enqueued_starts_at_once_however_seldom_is_polled(world: World) -> None:
    async with world.supervisor(poll_interval=3600) as jobs:
        starts: list[float] = []

        async def note(_args: object, _ctx: object) -> None:
            starts.append(now())

        jobs.register_worker("note", note)
        await asyncio.sleep(100)
        await world.seen.wait(JobCompleted, await jobs.enqueue("note"))
        assert starts == [pytest.approx(100, abs=0.001)]


@virtual
async def test_a_delayed_job_starts_at_its_exact_time_however_seldom_is_polled(world: World) -> None:
    async with world.supervisor(poll_interval=5) as jobs:
        starts: list[float] = []

        @jobs.worker
        async def note() -> None:
            starts.append(now())

        jobs_in = [await note.options(delay=delay).enqueue() for delay in (7.25, 0.3, 2.0)]
        for job in jobs_in:
            assert job.state is JobState.scheduled
            await jobs.wait(job)
    assert starts == [pytest.approx(at, abs=0.05) for at in (0.3, 2.0, 7.25)]


@virtual
async def test_polling_finds_what_another_process_stored(world: World) -> None:
    async with world.supervisor(poll_interval=2) as jobs:

        @jobs.worker
        async def quick() -> None: ...

        await asyncio.sleep(50)
        (job,) = await world.store.insert([NewJob("quick", "{}")])
        began = now()
        await jobs.wait(job)
        assert now() - began <= 3.0


@virtual
async def test_lower_priorities_first_then_order_of_insertion(world: World) -> None:
    jobs = world.supervisor(queues={"default": 1})

    @jobs.worker
    async def work() -> None: ...

    ids = [(await work.options(priority=priority).enqueue()).id for priority in (5, 1, 1)]
    async with jobs:
        await world.seen.wait(JobCompleted, count=3)
    assert [event.job.id for event in world.seen.of(JobStarted)] == [ids[1], ids[2], ids[0]]


@virtual
async def test_a_queue_never_runs_or_claims_more_than_its_slots(world: World) -> None:
    running, peak = 0, 0

    async with world.supervisor(queues={"default": 3}) as jobs:

        @jobs.worker
        async def work(n: int) -> None:
            nonlocal running, peak
            running += 1
            peak = max(peak, running)
            counts = await jobs.counts()
            assert counts["default", JobState.executing] <= 3
            await asyncio.sleep(1 + n % 3)
            running -= 1

        await jobs.enqueue_many([work.draft(n) for n in range(20)])
        await world.seen.wait(JobCompleted, count=20)
    assert peak == 3


@virtual
async def test_a_full_queue_holds_up_no_other(world: World) -> None:
    async with world.supervisor(queues={"slow": 1, "quick": 1}) as jobs:

        @jobs.worker(queue="slow")
        async def slow() -> None:
            await asyncio.sleep(1000)

        @jobs.worker(queue="quick", timeout_seconds=None)
        async def quick() -> float:
            return now()

        await slow.options(timeout_seconds=None).enqueue()
        await slow.enqueue()
        assert await jobs.result(await quick.enqueue()) < 1
        await world.seen.wait(JobCompleted, count=2)


@virtual
async def test_failures_are_retried_until_attempts_are_spent(world: World) -> None:
    async with world.supervisor() as jobs:
        starts: list[tuple[int, float]] = []

        @jobs.worker(max_attempts=3, retry_strategy=ConstantBackoff(10))
        async def fail() -> None:
            starts.append((current_context().attempt, now()))
            raise ValueError("no luck")

        job = await fail.enqueue()
        ended = await jobs.wait(job)
        with pytest.raises(ResultError, match="was discarded: ValueError: no luck"):
            await jobs.result(job)
        await world.seen.wait(JobDiscarded)
    assert [attempt for attempt, _ in starts] == [1, 2, 3]
    assert [at for _, at in starts] == [pytest.approx(at, abs=0.1) for at in (0, 10, 20)]
    assert world.seen.types(job) == ["job_enqueued", *["job_started", "job_failed"] * 2, "job_started", "job_discarded"]
    failed = world.seen.of(JobFailed)[0]
    assert (failed.job.state, failed.job.attempt, failed.error_msg) == (JobState.retryable, 1, "ValueError: no luck")
    assert [(error.attempt, error.type) for error in ended.errors] == [(n, "ValueError") for n in (1, 2, 3)]
    assert ended.errors[0].frames[-1].startswith("test_running.py:")


@virtual
async def test_the_first_retry_waits_the_base_and_jitter(world: World) -> None:
    async with world.supervisor() as jobs:

        @jobs.worker(max_attempts=2)
        async def fail() -> None:
            raise OSError

        job = await fail.enqueue()
        failed = (await world.seen.wait(JobFailed)).job
        assert 15 <= (failed.scheduled_at - failed.attempted_at).total_seconds() < 18.75
        await jobs.wait(job)
        assert 15 <= now() < 18.85


@pytest.mark.parametrize("kind", ["plain", "async", "negative", "nonsense", "raises"])
def test_any_function_from_the_retry_index_may_choose_the_delay(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    asked: list[int] = []

    def plain(index: int) -> float:
        asked.append(index)
        return {"plain": 4.0, "negative": -3.0, "nonsense": float("nan")}[kind]  # KeyError for "raises"

    async def later(index: int) -> float:
        asked.append(index)
        await asyncio.sleep(0)
        return 4.0

    @virtual
    async def scenario(world: World) -> None:
        async with world.supervisor() as jobs:

            @jobs.worker(max_attempts=2, retry_strategy=later if kind == "async" else plain)
            async def fail() -> None:
                raise OSError

            await jobs.wait(await fail.enqueue())
            delay = {"plain": 4, "async": 4, "negative": 0}.get(kind)
            if delay is None:  # the default one
                assert 15 <= now() < 18.85
            else:
                assert now() == pytest.approx(delay, abs=0.1)

    with caplog.at_level(logging.WARNING, "jobs_async"):
        scenario()
    assert asked == [0]
    assert ("using the default" in caplog.text) is (kind in {"nonsense", "raises"})


@virtual
async def test_a_timeout_is_a_failure(world: World) -> None:
    async with world.supervisor() as jobs:
        told: list[bool] = []

        @jobs.worker(max_attempts=1, context=True)
        async def hang(ctx: object) -> None:
            try:
                await asyncio.sleep(10_000)
            finally:
                told.append(current_context().cancelled.is_set())

        @jobs.worker(timeout_seconds=None)
        async def patient() -> str:
            await asyncio.sleep(1000)
            return "done"

        @jobs.worker(max_attempts=1)
        async def own_timeout() -> None:
            raise TimeoutError("my own")

        slow, hung, own = await patient.enqueue(), await hang.enqueue(), await own_timeout.enqueue()
        ended = await jobs.wait(hung)
        assert now() == pytest.approx(300, abs=0.1)
        assert ended.state is JobState.discarded
        assert ended.last_error
        assert (ended.last_error.type, ended.last_error.error) == ("Timeout", "timeout: ran for more than 300 seconds")
        assert told == [True]
        assert (await jobs.wait(own)).errors[0].type == "TimeoutError"
        assert await jobs.result(slow) == "done"


@virtual
async def test_a_handler_that_answers_a_timeout_with_a_result_has_failed_all_the_same(world: World) -> None:
    async with world.supervisor() as jobs:

        @jobs.worker(max_attempts=1, timeout_seconds=1)
        async def stubborn() -> str:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                return "too late"
            return "never"

        assert (await jobs.wait(await stubborn.enqueue())).state is JobState.discarded


@virtual
async def test_signals_choose_the_ending(world: World) -> None:
    async with world.supervisor() as jobs:
        attempts: list[int] = []

        @jobs.worker
        async def snooze() -> str:
            attempts.append(current_context().attempt)
            if len(attempts) < 3:
                raise Snooze(60)
            return "awake"

        @jobs.worker
        async def cancel() -> None:
            raise Cancel("nothing to do")

        @jobs.worker
        async def discard() -> None:
            raise Discard("never again")

        snoozed, cancelled, discarded = await snooze.enqueue(), await cancel.enqueue(), await discard.enqueue()
        assert await jobs.result(snoozed) == "awake"
        assert now() == pytest.approx(120, abs=0.2)
        assert attempts == [1, 1, 1]
        assert (await world.seen.wait(JobSnoozed)).seconds == 60
        assert world.seen.of(JobSnoozed)[0].job.attempt == 0
        assert (await jobs.wait(cancelled)).state is JobState.cancelled
        assert world.seen.of(JobCancelled)[0].error_msg == "nothing to do"
        assert (await jobs.wait(discarded)).state is JobState.discarded
        assert world.seen.of(JobDiscarded)[0].error_msg == "Discard: never again"


@virtual
async def test_rows_58_60_68_what_a_handler_raises_touches_no_neighbour(world: World) -> None:
    async with world.supervisor(queues={"default": 50}) as jobs:

        @jobs.worker(max_attempts=1)
        async def hostile(kind: int) -> None:
            await asyncio.sleep(1)
            if kind == 0:
                raise asyncio.CancelledError
            if kind == 1:
                raise SystemExit(3)
            if kind == 2:
                raise KeyboardInterrupt
            if kind == 3:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            if kind == 4:
                raise BaseExceptionGroup("both", [SystemExit(1), ValueError("x")])
            if kind == 5:

                class Unprintable(Exception):
                    def __str__(self) -> str:
                        raise RuntimeError

                raise Unprintable

        @jobs.worker
        async def neighbour() -> str:
            await asyncio.sleep(2)
            return "well"

        others = [await neighbour.enqueue() for _ in range(20)]
        ended = [await jobs.wait(await hostile.enqueue(kind)) for kind in range(6)]
        types = [job.last_error.type if job.last_error else None for job in ended]
        assert [await jobs.result(job) for job in others] == ["well"] * 20
    states = [job.state for job in ended]
    assert states[:3] + states[4:] == [JobState.discarded] * 5
    assert types[:3] == ["CancelledError", "SystemExit", "KeyboardInterrupt"]
    assert types[4:] == ["BaseExceptionGroup", "Unprintable"]
    assert states[3] is JobState.completed, "it had returned before its own cancellation could strike"


@virtual
async def test_a_result_without_json_does_not_undo_the_work(world: World) -> None:
    async with world.supervisor() as jobs:

        @jobs.worker
        async def odd() -> object:
            return object()

        ended = await jobs.wait(await odd.enqueue())
        assert (ended.state, ended.result) == (JobState.completed, None)


@virtual
async def test_a_job_nobody_can_run_is_discarded_with_its_event(world: World) -> None:
    async with world.supervisor() as jobs:
        job = await jobs.enqueue("nobody_knows_me", {"x": 1})
        event = await world.seen.wait(JobDiscarded, job)
        assert (event.error_msg, event.job.attempt, event.duration_ms) == ("no handler registered", 1, 0)


@virtual
async def test_arguments_that_no_longer_fit_are_discarded_without_their_values(world: World) -> None:
    async with world.supervisor() as jobs:

        @jobs.worker
        async def needs(n: int) -> None: ...

        with pytest.raises(ArgsError):
            await jobs.enqueue("needs", {"n": "s3cret"})
        (job,) = await world.store.insert([NewJob("needs", '{"n": "s3cret"}')])
        event = await world.seen.wait(JobDiscarded, job)
        assert "s3cret" not in event.error_msg
        assert event.error_msg.startswith("UnreadableArgs: ")


@virtual
async def test_a_handler_whose_own_enqueue_is_refused_is_retried(world: World) -> None:
    async with world.supervisor() as jobs:

        @jobs.worker
        async def careless() -> None:
            await jobs.enqueue("other", {"x": float("nan")})

        await careless.enqueue()
        assert (await world.seen.wait(JobFailed)).error_msg.startswith("ArgsError: ")


@virtual
async def test_call_overrules_worker_overrules_default(world: World) -> None:
    async with world.supervisor(queues={}) as jobs:

        @jobs.worker(queue="mail", max_attempts=5, timeout_seconds=30)
        async def send(to: str) -> None: ...

        plain = await jobs.enqueue("other")
        mine = await send.enqueue("a")
        called = await send.options(queue="default", max_attempts=2, timeout_seconds=None).enqueue("a")
        named = await jobs.enqueue("send", {"to": "a"}, opts=JobOpts(priority=3, queue="x"), priority=4)
        assert [(j.queue, j.max_attempts, j.timeout_seconds, j.priority) for j in (plain, mine, called, named)] == [
            ("default", 20, 300, 0),
            ("mail", 5, 30, 0),
            ("default", 2, None, 0),
            ("x", 5, 30, 4),
        ]


@virtual
async def test_a_replaced_job_is_told_and_its_outcome_dropped(world: World) -> None:
    async with world.supervisor() as jobs:
        told = asyncio.Event()

        @jobs.worker
        async def sync(n: int) -> int:
            if n == 1:
                await current_context().cancelled.wait()
                told.set()
                await asyncio.sleep(10_000)
            return n

        once = sync.options(unique_key="sync", unique_strategy=UniqueStrategy.CANCEL_EXISTING)
        old = await once.enqueue(1)
        await world.seen.wait(JobStarted, old)
        new = await once.enqueue(2)
        assert (new.replaces, new.id != old.id) == (old.id, True)
        assert await jobs.result(new) == 2
        await told.wait()
        assert now() < 1
        cancelled = (await world.seen.wait(JobCancelled, old)).job
        assert (cancelled.state, cancelled.last_error.error) == (
            JobState.cancelled,
            "replaced by a newer job of its unique key",
        )
        await asyncio.sleep(10)
        assert world.seen.types(old)[-1] == "stale_settlement"
        assert (await jobs.get(old.id)).state is JobState.cancelled


@virtual
async def test_children_inherit_the_correlation_id_and_progress_is_kept(world: World) -> None:
    async with world.supervisor() as jobs:

        @jobs.worker
        async def child() -> None: ...

        @jobs.worker
        async def parent() -> int:
            context = current_context()
            await context.progress(0.5, "halfway")
            assert (await jobs.get(context.job.id)).progress == context.job.progress
            by_context = await context.enqueue(Draft("child"))
            by_worker = await child.enqueue()
            assert by_context.correlation_id == by_worker.correlation_id == "request-7"
            return by_worker.id

        job = await parent.options(correlation_id="request-7").enqueue()
        await jobs.result(job)
        ended = await jobs.get(job.id)
        assert ended.progress
        assert (ended.progress.fraction, ended.progress.note) == (0.5, "halfway")


def test_outside_a_job_there_is_no_context() -> None:
    with pytest.raises(LookupError, match="outside a job"):
        current_context()
