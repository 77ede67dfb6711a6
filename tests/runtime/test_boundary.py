"""The boundary around a handler: whatever it does ends as a value, is settled, and concerns nobody else."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import logging
import math
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any

import anyio
import pytest

from jobs_async import (
    Cancel,
    ConstantBackoff,
    Discard,
    Draft,
    Event,
    IllegalTransition,
    Job,
    JobCancelled,
    JobCompleted,
    JobContext,
    JobDiscarded,
    JobFailed,
    JobInterrupted,
    JobStarted,
    JobState,
    MemoryStore,
    Snooze,
    SqliteStore,
    StaleSettlement,
    Store,
    Supervisor,
    current_context,
)
from jobs_async.core.events import JobEvent
from jobs_async.core.job import FINAL
from jobs_async.runtime.loops import Bell
from jobs_async.runtime.run import Run
from tests.runtime.support import World, now, virtual

Strike = Callable[[], Coroutine[Any, Any, object]]
"""What a handler does."""

NEIGHBOURS = 200
FOR_EVER = 10_000.0
"""Virtual seconds no handler here is allowed to last."""


def poll(fact: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait in a thread until something is so."""
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end
        time.sleep(0.001)


def crowded(world: World) -> Supervisor:
    """A Supervisor with room for the neighbours and one more."""
    return world.supervisor(queues={"default": NEIGHBOURS + 1})


@asynccontextmanager
async def neighbours(world: World, jobs: Supervisor, *, in_threads: int = 0) -> AsyncIterator[None]:
    """Two hundred jobs of the same queue that run while the body does, and must notice nothing of it.

    Afterwards the Supervisor must still run, and stop as it should.
    """
    over, threads_over = asyncio.Event(), threading.Event()

    @jobs.worker
    async def neighbour(n: int) -> int:
        await over.wait()
        return n

    @jobs.worker
    def neighbour_in_thread(n: int) -> int:
        assert threads_over.wait(60)
        return n

    drafts = [(neighbour_in_thread if n < in_threads else neighbour).draft(n) for n in range(NEIGHBOURS)]
    async with jobs:
        stored = await jobs.enqueue_many(drafts)
        await world.seen.wait(JobStarted, count=NEIGHBOURS)
        try:
            yield
        finally:
            over.set()
            threads_over.set()
        ended = [await jobs.wait(job) for job in stored]
        assert jobs.is_running
        assert (await jobs.stop()).is_clean
    assert [(job.state, job.attempt, job.result) for job in ended] == [
        (JobState.completed, 1, n) for n in range(NEIGHBOURS)
    ]
    ids = {job.id for job in stored}
    events = Counter(event.type for event in world.seen.of(JobEvent) if event.job.id in ids)
    assert events == dict.fromkeys(["job_enqueued", "job_started", "job_completed"], NEIGHBOURS)


async def assert_fails_twice(world: World, job: Job[Any], kind: str) -> None:
    """First it is to be tried again, then it is not; the record and the event say the same."""
    failed, discarded = await world.seen.wait(JobFailed, job), await world.seen.wait(JobDiscarded, job)
    assert (failed.job.state, failed.job.attempt) == (JobState.retryable, 1)
    assert discarded.job == await world.store.get(job.id)
    assert (discarded.job.state, discarded.job.attempt) == (JobState.discarded, 2)
    assert [(error.attempt, error.type) for error in discarded.job.errors] == [(1, kind), (2, kind)]
    for event in (failed, discarded):
        assert event.error_msg.split(":")[0] == kind
        assert event.error_msg == event.job.last_error.error
    assert world.seen.types(job) == ["job_enqueued", "job_started", "job_failed", "job_started", "job_discarded"]


# --- what is raised ---


class Unreadable(Exception):
    def __str__(self) -> str:
        raise SystemExit("not even its text can be had")


class Strange(BaseException):
    """No Exception, and nothing that Python knows."""


def throws(kind: type[BaseException], *args: Any) -> Callable[[], object]:
    def throw() -> object:
        raise kind(*args)

    return throw


def recurse() -> object:
    return recurse()


RAISED: dict[str, tuple[Callable[[], object], str]] = {
    "an error": (throws(ValueError, "no luck"), "ValueError"),
    "an error without readable text": (throws(Unreadable), "Unreadable"),
    "a TimeoutError of its own (row 63)": (throws(TimeoutError, "mine"), "TimeoutError"),
    "CancelledError (row 5)": (throws(asyncio.CancelledError), "CancelledError"),
    "sys.exit (row 68)": (lambda: sys.exit(3), "SystemExit"),
    "KeyboardInterrupt": (throws(KeyboardInterrupt), "KeyboardInterrupt"),
    "GeneratorExit": (throws(GeneratorExit), "GeneratorExit"),
    "StopIteration": (lambda: next(iter(())), "RuntimeError"),  # as in every coroutine of Python
    "StopAsyncIteration": (throws(StopAsyncIteration), "StopAsyncIteration"),
    "no memory left": (lambda: bytearray(2**62), "MemoryError"),
    "endless recursion": (recurse, "RecursionError"),
    "a BaseException of its own": (throws(Strange, "me"), "Strange"),
    "a group": (throws(BaseExceptionGroup, "both", [SystemExit(1), ValueError("x")]), "BaseExceptionGroup"),
}


def me() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def cancels_itself() -> None:
    me().cancel()
    await asyncio.sleep(FOR_EVER)


async def cancels_itself_and_fails() -> None:
    me().cancel()
    raise ValueError("both at once")


async def awaits_a_cancelled_future() -> None:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    await future


async def is_out_of_its_own_time() -> None:
    async with asyncio.timeout(0):
        await asyncio.sleep(FOR_EVER)


async def awaits_a_cancelled_task() -> None:
    task = asyncio.get_running_loop().create_task(asyncio.sleep(FOR_EVER))
    task.cancel()
    await task


AWAITED: dict[str, tuple[Strike, str]] = {
    "cancelling its own task, and waiting": (cancels_itself, "CancelledError"),
    "cancelling its own task, and failing": (cancels_itself_and_fails, "ValueError"),
    "a cancelled future": (awaits_a_cancelled_future, "CancelledError"),
    "a cancelled task": (awaits_a_cancelled_task, "CancelledError"),
    "a timeout of its own (row 63)": (is_out_of_its_own_time, "TimeoutError"),
}

TWICE: dict[str, Any] = {"max_attempts": 2, "retry_strategy": ConstantBackoff(0)}


@pytest.mark.parametrize("what", [*RAISED, *AWAITED])
def test_f13_what_a_handler_raises_is_its_own_failure_and_nobody_elses(what: str) -> None:
    @virtual
    async def scenario(world: World) -> None:
        jobs = crowded(world)

        @jobs.worker(**TWICE)
        async def hostile() -> object:
            await asyncio.sleep(1)
            return RAISED[what][0]() if what in RAISED else await AWAITED[what][0]()

        async with neighbours(world, jobs):
            await assert_fails_twice(world, await hostile.enqueue(), (RAISED | AWAITED)[what][1])

    scenario()


@pytest.mark.parametrize("what", [*RAISED, *AWAITED, "a future cancelled in a pool"])
async def test_f13_what_a_handler_in_a_thread_raises_is_its_own_failure_and_nobody_elses(what: str) -> None:
    """Half of the neighbours are threads too; what is awaited, a thread hands over as a coroutine."""
    world = World()
    jobs = crowded(world)

    def cancelled_in_a_pool() -> object:
        future: concurrent.futures.Future[object] = concurrent.futures.Future()
        future.cancel()
        return future.result()

    strike, kind = (RAISED | AWAITED).get(what, (cancelled_in_a_pool, "CancelledError"))

    @jobs.worker(**TWICE)
    def hostile() -> object:
        return strike()

    async with neighbours(world, jobs, in_threads=NEIGHBOURS // 2):
        await assert_fails_twice(world, await hostile.enqueue(), kind)


@virtual
async def test_f13_a_handler_that_cancels_its_task_and_returns_has_returned(world: World) -> None:
    jobs = crowded(world)

    @jobs.worker(max_attempts=1)
    async def hostile() -> str:
        me().cancel()
        return "before it could strike"

    async with neighbours(world, jobs):
        assert await jobs.result(await hostile.enqueue()) == "before it could strike"


@pytest.mark.parametrize(("own", "kind"), [(5, "TimeoutError"), (10, "Timeout"), (20, "Timeout")])
def test_row_63_a_timeout_is_ours_where_our_deadline_has_passed_and_not_where_its_type_says_so(
    own: float, kind: str
) -> None:
    @virtual
    async def scenario(world: World) -> None:
        async with world.supervisor() as jobs:

            @jobs.worker(max_attempts=1, timeout_seconds=10)
            async def work() -> None:
                async with asyncio.timeout(own):
                    await asyncio.sleep(FOR_EVER)

            ended = await jobs.wait(await work.enqueue())
            assert ended.last_error
            assert ended.last_error.type == kind
            assert now() == min(own, 10)

    scenario()


# --- what follows when it is cut ---


async def passes_it_on() -> str:
    await asyncio.sleep(FOR_EVER)
    return "never"


async def returns() -> str:
    try:
        return await passes_it_on()
    except asyncio.CancelledError:
        return "something"


async def fails_while_cleaning_up() -> str:
    try:
        return await passes_it_on()
    finally:
        raise ValueError("cleaning up")


async def exits() -> str:
    try:
        return await passes_it_on()
    except asyncio.CancelledError:
        sys.exit(1)


async def raises_one_of_its_own() -> str:
    try:
        return await passes_it_on()
    except asyncio.CancelledError:
        raise asyncio.CancelledError("mine") from None


async def cleans_up_at_leisure() -> str:
    try:
        return await passes_it_on()
    finally:
        await asyncio.sleep(2)


async def swallows_it_and_goes_on() -> str:
    try:
        return await passes_it_on()
    except asyncio.CancelledError:
        await asyncio.sleep(2)
        return "something"


async def cancels_itself_again() -> str:
    try:
        return await passes_it_on()
    finally:
        await cancels_itself()


HANDED_BACK = (JobState.available, 0, None, None)
COMPLETED = (JobState.completed, 1, None, "something")


def failed(kind: str) -> tuple[JobState, int, str, None]:
    return JobState.discarded, 1, kind, None


CUT: dict[Callable[[], Awaitable[str]], tuple[JobState, int, str | None, str | None]] = {
    passes_it_on: HANDED_BACK,
    raises_one_of_its_own: HANDED_BACK,
    cleans_up_at_leisure: HANDED_BACK,
    cancels_itself_again: HANDED_BACK,
    returns: COMPLETED,
    swallows_it_and_goes_on: COMPLETED,
    fails_while_cleaning_up: failed("ValueError"),
    exits: failed("SystemExit"),
}
"""How handlers answer a cancellation, and what follows from each answer after a stop."""


def what_follows(
    cause: str, after_a_stop: tuple[JobState, int, str | None, str | None]
) -> tuple[JobState, int, str | None, str | None]:
    """A timeout is a failure whatever the handler says to it, a cancelled job is cancelled, but its result is kept."""
    if cause == "timeout":
        return failed("Timeout")
    if cause == "cancel":
        return JobState.cancelled, 1, "Cancelled", after_a_stop[3]
    return after_a_stop


EVENTS: dict[JobState, type[Event]] = {
    JobState.available: JobInterrupted,
    JobState.completed: JobCompleted,
    JobState.cancelled: JobCancelled,
    JobState.discarded: JobDiscarded,
}


async def assert_ended(world: World, job: Job[Any], expected: tuple[JobState, int, str | None, str | None]) -> None:
    row = await world.store.get(job.id)
    assert (row.state, row.attempt, row.last_error and row.last_error.type, row.result) == expected
    (event,) = world.seen.of(EVENTS[row.state], job)
    assert event.job == row
    assert len(world.seen.types(job)) == 3, "enqueued, started, and one end"


@pytest.mark.parametrize("cause", ["timeout", "cancel", "stop"])
@pytest.mark.parametrize("handler", CUT)
def test_f13_why_a_handler_was_cut_decides_what_follows_whatever_it_answers(
    handler: Callable[[], Awaitable[str]], cause: str
) -> None:
    @virtual
    async def scenario(world: World) -> None:
        jobs = world.supervisor(shutdown_timeout=10)

        @jobs.worker(max_attempts=1, timeout_seconds=10 if cause == "timeout" else None)
        async def work() -> str:
            return await handler()

        @jobs.worker
        async def neighbour() -> str:
            return "well"

        await jobs.start()
        job = await work.enqueue()
        await world.seen.wait(JobStarted)
        if cause == "stop":
            assert (await jobs.stop()).is_clean
        elif cause == "cancel":
            await jobs.cancel(job.id)
        if cause != "stop":
            await jobs.wait(job)
            assert await jobs.result(await neighbour.enqueue()) == "well"
            assert (await jobs.stop()).is_clean
        await assert_ended(world, job, what_follows(cause, CUT[handler]))
        assert now() <= 10 + 3

    scenario()


@virtual
async def test_f13_the_first_reason_to_cut_a_handler_counts(world: World) -> None:
    jobs = world.supervisor(shutdown_timeout=1)

    @jobs.worker(max_attempts=1, timeout_seconds=5)
    async def work() -> str:
        return await cleans_up_at_leisure()

    await jobs.start()
    job = await work.enqueue()
    await asyncio.sleep(5.5)  # it is out of time and cleans up, and the stop that comes would cut it at 6.5
    assert (await jobs.stop()).is_clean
    assert now() == pytest.approx(7)
    await assert_ended(world, job, failed("Timeout"))


def fails(ctx: JobContext) -> str:
    raise ValueError


def exits_its_thread(ctx: JobContext) -> str:
    raise SystemExit


def returns_from_its_thread(ctx: JobContext) -> str:
    return "something"


IN_A_THREAD: dict[Callable[[JobContext], str], Any] = {
    returns_from_its_thread: COMPLETED,
    fails: failed("ValueError"),
    exits_its_thread: failed("SystemExit"),
}


async def run_in_a_thread(world: World, cause: str, handler: Callable[[JobContext], Any]) -> Job[Any]:
    """A job whose thread is told to end, for a cause, and then answers as `handler` does."""
    jobs = world.supervisor(shutdown_timeout=0)

    def work(args: object, ctx: JobContext) -> Any:
        poll(ctx.cancelled.is_set)
        return handler(ctx)

    jobs.register_worker("work", work)
    await jobs.start()
    job = await jobs.enqueue("work", max_attempts=1, timeout_seconds=0.01 if cause == "timeout" else None)
    await world.seen.wait(JobStarted)
    if cause == "cancel":
        await jobs.cancel(job.id)
    if cause != "stop":
        await jobs.wait(job)
    assert (await jobs.stop()).is_clean
    return job


@pytest.mark.parametrize("cause", ["timeout", "cancel", "stop"])
@pytest.mark.parametrize("handler", IN_A_THREAD)
async def test_f13_a_thread_that_was_told_to_end_may_answer_as_it_likes(
    handler: Callable[[JobContext], str], cause: str
) -> None:
    world = World()
    job = await run_in_a_thread(world, cause, handler)
    await assert_ended(world, job, what_follows(cause, IN_A_THREAD[handler]))


@pytest.mark.parametrize("cause", ["timeout", "cancel", "stop"])
async def test_f13_a_coroutine_that_a_thread_hands_over_too_late_is_not_run_and_not_taken_for_done(cause: str) -> None:
    ran: list[int] = []

    async def the_real_work() -> None:
        ran.append(1)

    world = World()
    job = await run_in_a_thread(world, cause, lambda ctx: the_real_work())
    assert ran == []
    await assert_ended(world, job, what_follows(cause, HANDED_BACK))


# --- strangers who cancel ---


@pytest.mark.parametrize("seed", range(3))
def test_row_5_a_handler_cancelled_by_a_stranger_at_any_moment_is_settled_as_failed(seed: int) -> None:
    @virtual
    async def scenario(world: World) -> None:
        rng = Random(seed)
        begun: list[asyncio.Task[Any]] = []
        async with world.supervisor(queues={"default": 200}) as jobs:

            @jobs.worker(max_attempts=1, timeout_seconds=None)
            async def work(seconds: float) -> None:
                begun.append(me())
                await asyncio.sleep(seconds)

            stored = await jobs.enqueue_many([work.draft(rng.choice([0.0, rng.uniform(0, 5)])) for _ in range(200)])
            for _ in range(100):
                await asyncio.sleep(rng.choice([0, 0, rng.uniform(0, 0.1)]))
                if running := [task for task in begun if not task.done()]:
                    rng.choice(running).cancel()
            ended = [await jobs.wait(job, timeout=100) for job in stored]
        kinds = Counter((job.state, job.attempt, job.last_error and job.last_error.type) for job in ended)
        assert kinds.keys() == {(JobState.completed, 1, None), (JobState.discarded, 1, "CancelledError")}

    scenario()


@virtual
async def test_row_5_a_handler_cancelled_by_a_stranger_before_its_first_step_is_settled_as_failed(
    world: World,
) -> None:
    async with world.supervisor() as jobs:

        @jobs.worker
        async def stranger() -> None:
            for task in asyncio.all_tasks():
                if task.get_name() == "work":
                    task.cancel()

        @jobs.worker(max_attempts=1, timeout_seconds=None)
        async def work() -> None: ...

        _, *victims = await jobs.enqueue_many([stranger.draft(), work.draft(), work.draft()])
        ended = [await jobs.wait(job, timeout=100) for job in victims]
        assert [job.last_error and job.last_error.type for job in ended] == ["CancelledError"] * 2


# --- hostile texts and values, on every store ---


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    async with MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "jobs.db") as store:
        yield store


HOSTILE_TEXTS = [
    "",
    "\0",
    "\ud800",
    "\udfff\0\ud800",
    "😀" * 1_000,
    "\ud83d" * 3_000,
    "x" * 100_000,
]
TAME_TEXTS = ["\x1b[31m\r\n\x07", "😀" * 500, "\U0010ffff"]
"""Ugly, and no reason to change a character."""
ALPHABET = "\0\x01\n\"'\\{}é😀\ud800\udc00\uffff\U0010ffff"


def hostile_texts(rng: Random) -> list[str]:
    return HOSTILE_TEXTS + TAME_TEXTS + ["".join(rng.choices(ALPHABET, k=rng.randrange(1, 1_500))) for _ in range(41)]


@pytest.mark.parametrize("seed", [1])
async def test_row_8_and_9_no_error_text_is_too_hostile_to_be_settled(store: Store, seed: int) -> None:
    texts = hostile_texts(Random(seed))
    ways: list[type[BaseException]] = [ValueError, KeyError, Discard, Cancel, Strange]
    world = World()
    async with world.supervisor(store, queues={"default": 60}) as jobs:

        @jobs.worker(max_attempts=1)
        async def work(text: int, way: int) -> None:
            raise ways[way](texts[text])

        @jobs.worker(max_attempts=1)
        async def unreadable() -> None:
            raise Unreadable

        @jobs.worker
        async def neighbour() -> str:
            return "well"

        hostile = [(text, way) for text in range(len(texts)) for way in range(len(ways))]
        drafts: list[Any] = [work.draft(text, way) for text, way in hostile]
        stored = await jobs.enqueue_many([*drafts, unreadable.draft(), *[neighbour.draft()] * 20])
        ended = [await jobs.wait(job) for job in stored]
    assert [job.result for job in ended[-20:]] == ["well"] * 20
    for job, (text, way) in zip(ended[:-21], hostile, strict=True):
        (error,) = job.errors
        assert error.type == ("Cancelled" if ways[way] is Cancel else ways[way].__name__)
        if ways[way] is ValueError and texts[text] in TAME_TEXTS:
            assert error.error == f"ValueError: {texts[text]}"
        assert job.state is (JobState.cancelled if error.type == "Cancelled" else JobState.discarded)
        assert (job.attempt, job.rescues) == (1, 0)
        assert "\0" not in error.error
        assert len(error.error.encode()) <= 2048, "and it is valid UTF-8"
    assert ended[-21].errors[0].error == "Unreadable: (its message could not be read)"


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


HOSTILE_RESULTS: dict[str, Callable[[], object]] = {
    "not a number": lambda: math.nan,
    "infinity, deep inside": lambda: [{"x": [-math.inf]}],
    "a NUL": lambda: "a\0b",
    "a NUL in a key": lambda: {"\0": 1},
    "half a character": lambda: "\ud800",
    "too great an integer": lambda: 2**64,
    "keys that are no text": lambda: {(1, 2): 3},
    "nested too deep for us": lambda: nested(100),
    "nested too deep for Python": lambda: nested(100_000),
    "a list that holds itself": endless,
    "more than a megabyte": lambda: "x" * 2_000_000,
    "no JSON at all": object,
    "an exception": Unreadable,
    "a coroutine function": lambda: neighbours,
}


async def test_row_8_no_result_is_too_hostile_for_the_work_to_count_as_done(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "jobs_async")
    async with World().supervisor(store, queues={"default": 30}) as jobs:

        @jobs.worker
        async def work(what: str) -> object:
            return HOSTILE_RESULTS[what]() if what in HOSTILE_RESULTS else what

        async def raw(what: str, _ctx: JobContext) -> object:
            return HOSTILE_RESULTS[what]() if what in HOSTILE_RESULTS else what

        jobs.register_worker("raw", raw)
        whats = [*HOSTILE_RESULTS, "well"]
        stored = await jobs.enqueue_many([work.draft(what) for what in whats] + [Draft("raw", what) for what in whats])
        ended = [await jobs.wait(job) for job in stored]
    assert {(job.state, job.attempt, job.last_error) for job in ended} == {(JobState.completed, 1, None)}
    assert [job.result for job in ended] == [*[None] * len(HOSTILE_RESULTS), "well"] * 2
    told = [record for record in caplog.records if "completed, but its result" in record.getMessage()]
    assert len(told) == 2 * len(HOSTILE_RESULTS), "each is told of in the log"


# --- two attempts of one job, at once, in one process ---


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_row_22_two_attempts_of_one_job_in_one_process_do_not_collide(order: tuple[int, int]) -> None:
    @virtual
    async def scenario(world: World) -> None:
        jobs = world.supervisor()
        go = {attempt: asyncio.Event() for attempt in order}
        ended: list[int] = []

        @jobs.worker
        async def work() -> str:
            attempt = current_context().attempt
            await go[attempt].wait()
            ended.append(attempt)
            return f"of attempt {attempt}"

        await jobs.start()
        job = await work.enqueue()
        await world.seen.wait(JobStarted, job)
        await asyncio.sleep(1)
        assert await world.store.rescue_stuck(0.5) == 1, "a tool takes it for stuck"
        await world.seen.wait(JobStarted, job, count=2)
        assert (await jobs.counts()) == {("default", JobState.executing): 1}
        for attempt in order:
            go[attempt].set()
            await world.seen.wait(StaleSettlement if attempt == 1 else JobCompleted, job)
        assert ended == list(order)
        row = await jobs.get(job.id)
        assert (row.state, row.attempt, row.claim, row.result) == (JobState.completed, 2, 2, "of attempt 2")
        assert len(world.seen.of(JobCompleted)) == len(world.seen.of(StaleSettlement)) == 1
        assert (await jobs.stop()).is_clean

    scenario()


@virtual
async def test_row_22_only_the_attempt_that_lost_its_job_is_told(world: World) -> None:
    async with world.supervisor(queues={"default": 2}) as jobs:
        told: list[tuple[int, float]] = []

        @jobs.worker
        async def work() -> int:
            context = current_context()
            if context.attempt == 1:
                await context.cancelled.wait()
                told.append((context.attempt, now()))
                await asyncio.sleep(FOR_EVER)
            await asyncio.sleep(60)
            assert not context.cancelled.is_set()
            return context.attempt

        job = await work.enqueue()
        await world.seen.wait(JobStarted, job)
        await asyncio.sleep(1)
        assert await world.store.rescue_stuck(0.5) == 1
        assert await jobs.result(job) == 2
        (stale,) = world.seen.of(StaleSettlement, job)
        assert (stale.job.attempt, stale.job.claim) == (1, 1)
        assert [attempt for attempt, _ in told] == [1]
        assert told[0][1] <= 6, "with the next heartbeat"


@virtual
async def test_row_22_a_request_to_cancel_reaches_every_attempt_that_runs_here(world: World) -> None:
    async with world.supervisor(queues={"default": 2}) as jobs:
        told: list[tuple[int, float]] = []

        @jobs.worker
        async def work() -> None:
            context = current_context()
            await context.cancelled.wait()
            told.append((context.attempt, now()))

        job = await work.enqueue()
        await world.seen.wait(JobStarted, job)
        await asyncio.sleep(1)
        assert await world.store.rescue_stuck(0.5) == 1
        await world.seen.wait(JobStarted, job, count=2)
        asked = now()
        await jobs.cancel(job.id)
        ended = await jobs.wait(job)
        assert (ended.state, ended.attempt) == (JobState.cancelled, 2)
        await world.seen.wait(StaleSettlement, job)
        assert sorted(told) == [(1, asked), (2, asked)]


# --- strangers' cancel scopes and groups ---


async def in_an_anyio_group(strike: Strike) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(asyncio.sleep, FOR_EVER)
        await anyio.sleep(1)
        await strike()


async def in_a_child_of_an_anyio_group(strike: Strike) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(strike)
        await asyncio.sleep(FOR_EVER)


async def in_an_asyncio_group(strike: Strike) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(1))
        await strike()


@pytest.mark.parametrize("what", AWAITED)
@pytest.mark.parametrize("where", [in_an_anyio_group, in_a_child_of_an_anyio_group, in_an_asyncio_group])
def test_row_58_a_cancellation_gone_astray_inside_a_group_ends_neither_neighbours_nor_the_group_around_us(
    where: Callable[[Strike], Awaitable[None]], what: str
) -> None:
    """Such a group ends all its children, and at times without a word; so ours must not be one of them."""

    @virtual
    async def scenario(world: World) -> None:
        jobs = crowded(world)

        @jobs.worker(max_attempts=1, timeout_seconds=100)
        async def hostile() -> None:
            await where(AWAITED[what][0])

        async with anyio.create_task_group() as host:
            host.start_soon(jobs.run)
            while not jobs.is_running:
                await anyio.sleep(0.1)
            async with neighbours(world, jobs):
                ended = await jobs.wait(await hostile.enqueue())
        assert not host.cancel_scope.cancelled_caught
        assert ended.attempt == 1

    scenario()


# --- threads that cannot be cut ---


async def test_row_62_threads_out_of_time_keep_their_slots_until_they_end() -> None:
    world = World()
    let_go = threading.Event()
    running: list[JobContext] = []
    async with world.supervisor(queues={"default": 3, "other": 1}) as jobs:

        @jobs.worker(max_attempts=1, timeout_seconds=0.01)
        def stuck() -> str:
            context = current_context()
            running.append(context)
            poll(context.cancelled.is_set)
            assert let_go.wait(60)
            return "too late"

        @jobs.worker(queue="other")
        async def elsewhere() -> None: ...

        try:
            stored = await jobs.enqueue_many([stuck.draft() for _ in range(6)])
            await asyncio.to_thread(poll, lambda: len(running) == 3)
            await asyncio.gather(*(context.cancelled.wait() for context in running))
            await jobs.result(await elsewhere.enqueue())
            counts = await jobs.counts()
            assert counts["default", JobState.executing] == len(running) == 3
            assert counts["default", JobState.available] == 3, "none is claimed while no thread has ended"
        finally:
            let_go.set()
        ended = [await jobs.wait(job) for job in stored]
        assert {(job.state, job.last_error and job.last_error.type) for job in ended} == {
            (JobState.discarded, "Timeout")
        }
        assert len(running) == 6


# --- every loop is looked after ---


def mortal(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one loop of every Supervisor meet a bug in its third second, while it waits."""
    wait = Bell.wait

    async def trap(self: Bell, seconds: float | None = None) -> None:
        if me().get_name() != f"jobs_async {loop}":
            return await wait(self, seconds)
        with suppress(TimeoutError):
            async with asyncio.timeout_at(3):
                return await wait(self, seconds)
        raise ZeroDivisionError("a bug of its own")

    monkeypatch.setattr(Bell, "wait", trap)


LOOPS = ["settler", "queue default", "queue other", "heartbeat", "janitor"]


@pytest.mark.parametrize("end", ["a bug", "a stranger's cancel"])
@pytest.mark.parametrize("loop", LOOPS)
def test_row_59_a_supervisor_one_of_whose_loops_has_died_stops_and_says_so(
    loop: str, end: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "jobs_async")
    if end == "a bug":
        mortal(loop, monkeypatch)

    @virtual
    async def scenario(world: World) -> None:
        jobs = world.supervisor(queues={"default": 2, "other": 2}, shutdown_timeout=10)

        @jobs.worker
        async def work(seconds: float) -> str:
            await asyncio.sleep(seconds)
            return "done"

        host = asyncio.get_running_loop().create_task(jobs.run())
        job = await work.on(jobs).enqueue(8)
        await world.seen.wait(JobStarted)
        await asyncio.sleep(3)
        if end != "a bug":
            (victim,) = (task for task in asyncio.all_tasks() if task.get_name() == f"jobs_async {loop}")
            victim.cancel()
        await asyncio.sleep(0.1)
        later = await work.on(jobs).enqueue(0)
        async with asyncio.timeout(10 + 6):
            await host
        assert not jobs.is_running
        row = await world.store.get(job.id)
        assert row.result == (None if loop == "settler" else "done"), "what ran had its grace"
        assert (await world.store.get(later.id)).attempt == 0, "nothing was claimed any more"
        assert [loop in record.getMessage() for record in caplog.records] == [True], "it is told of once, and loudly"
        await asyncio.sleep(30)
        assert not any(node.alive for node in await world.store.nodes())
        monkeypatch.undo()
        async with jobs:
            assert await jobs.result(later, timeout=100) == await jobs.result(job, timeout=100) == "done"

    scenario()


# --- nothing stays ---


def alive(kind: type) -> int:
    gc.collect()
    return sum(isinstance(thing, kind) for thing in gc.get_objects())


async def succeeds() -> str:
    return "done"


async def is_snoozed_once() -> None:
    job = current_context().job
    if job.scheduled_at == job.inserted_at:
        raise Snooze(1)


@pytest.mark.parametrize("seed", [66])
def test_row_66_after_five_thousand_jobs_of_every_ending_nothing_is_kept_of_them(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "jobs_async")  # a captured record keeps a traceback, and that keeps its frames
    quick = [succeeds, is_snoozed_once, *(strike for strike, _ in AWAITED.values())]
    endings = [*quick * 5, *CUT]

    @virtual
    async def scenario(world: World) -> None:
        rng = Random(seed)
        store = MemoryStore(max_jobs=10_000, clock=world.clock)
        jobs = world.supervisor(store, queues={"default": 300})

        @jobs.worker(max_attempts=2, retry_strategy=ConstantBackoff(1), timeout_seconds=20)
        async def work(ending: int) -> object:
            return await endings[ending]()

        async def wait(job: Job[Any]) -> None:
            with suppress(TimeoutError):
                await jobs.wait(job, timeout=rng.choice([None, 5]))

        async def cancel(job: Job[Any]) -> None:
            await asyncio.sleep(rng.uniform(0, 100))
            with suppress(IllegalTransition):
                await jobs.cancel(job.id)

        async def run_many(count: int) -> None:
            stored = await jobs.enqueue_many([work.draft(rng.randrange(len(endings))) for _ in range(count)])
            some = [(rng.choice([wait, cancel]), job) for job in stored if rng.random() < 0.3]
            await asyncio.gather(*(do(job) for do, job in some))
            while {state for _, state in await jobs.counts()} - FINAL:
                await asyncio.sleep(1)
            await asyncio.sleep(20)  # the last timers strike

        await jobs.start()
        await run_many(10)
        tasks, before = asyncio.all_tasks(), {kind: alive(kind) for kind in (Run, asyncio.Future)}
        await run_many(5_000)
        assert {state for _, state in await jobs.counts()} == FINAL
        assert asyncio.all_tasks() == tasks
        for kind, count in before.items():
            assert alive(kind) <= count + 100, "asyncio forgets timers that were cancelled a hundred at a time"
        assert (await jobs.stop()).is_clean

    scenario()


@virtual
async def test_row_66_of_waits_that_were_given_up_nothing_is_kept_even_where_the_job_never_ends(world: World) -> None:
    async with world.supervisor() as jobs:
        job = await jobs.enqueue("later", delay=FOR_EVER)

        async def give_up() -> None:
            waiting = [asyncio.get_running_loop().create_task(jobs.wait(job, timeout=n % 5)) for n in range(1_000)]
            await asyncio.sleep(2.5)
            for task in waiting[::3]:
                task.cancel()
            ended = await asyncio.gather(*waiting, return_exceptions=True)
            assert {type(error) for error in ended} == {TimeoutError, asyncio.CancelledError}

        await asyncio.sleep(1)
        tasks, before = asyncio.all_tasks(), alive(asyncio.Future)
        await give_up()
        await asyncio.sleep(10)
        assert asyncio.all_tasks() == tasks
        assert alive(asyncio.Future) <= before + 100
