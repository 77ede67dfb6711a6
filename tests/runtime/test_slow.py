"""Handlers that take long, and those that will not end, are told of once, with where they are."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobs_async import (
    ActivityLog,
    JobCompleted,
    JobQuery,
    JobSlow,
    JobStarted,
    JobState,
    JobStuck,
    OptionError,
    Supervisor,
    Telemetry,
)
from jobs_async.runtime.deadlines import APART, Deadlines
from jobs_async.runtime.whereabouts import MAX_CALLS, of_coroutine, of_thread
from jobs_async.telemetry.handlers import describe
from tests.runtime.programs.hard_work import waits_for
from tests.runtime.support import Seen, World, now, virtual

PATIENCE = 60.0


def names(stack: tuple[str, ...]) -> list[str]:
    """The functions of a stack, and of those written here that they are told with their line."""
    for call in stack:
        file, line, _ = call.split(":")
        if file == "test_slow.py":
            assert int(line) > 0
    return [call.split(":")[2] for call in stack]


async def outer(seconds: float) -> None:
    await inner(seconds)


async def inner(seconds: float) -> None:
    await asyncio.sleep(seconds)


@virtual
async def test_a_handler_that_takes_long_is_told_of_once_with_where_it_is(world: World) -> None:
    async with world.supervisor(slow_after=10) as jobs:

        @jobs.worker
        async def work() -> None:
            await outer(100)

        job = await work.enqueue()
        slow = await world.seen.wait(JobSlow)
        assert now() == pytest.approx(10)
        assert (slow.job.id, slow.job.state, slow.seconds) == (job.id, JobState.executing, pytest.approx(10))
        assert names(slow.stack) == ["work", "outer", "inner", "sleep"]
        await jobs.wait(job)
    assert len(world.seen.of(JobSlow)) == 1


@virtual
async def test_each_run_of_a_job_is_told_of_anew(world: World) -> None:
    async with world.supervisor(slow_after=10) as jobs:

        @jobs.worker(max_attempts=2)
        async def work() -> None:
            await asyncio.sleep(20)
            raise ValueError

        await jobs.wait(await work.enqueue())
    assert [event.job.attempt for event in world.seen.of(JobSlow)] == [1, 2]


@virtual
async def test_only_those_that_take_long_are_told_of_each_at_its_time(world: World) -> None:
    async with world.supervisor(slow_after=10, queues={"default": 50}) as jobs:

        @jobs.worker(timeout_seconds=None)
        async def work(seconds: float) -> None:
            await asyncio.sleep(seconds)

        stored = []
        for n in range(40):
            stored.append(await work.enqueue(0.6 * n))
            await asyncio.sleep(1)
        ended = [await jobs.wait(job) for job in stored]
    told = world.seen.of(JobSlow)
    assert [event.job.id for event in told] == [job.id for n, job in enumerate(stored) if 0.6 * n > 10]
    assert [event.seconds for event in told] == pytest.approx([10.0] * len(told))
    assert {job.state for job in ended} == {JobState.completed}


@virtual
async def test_a_timeout_strikes_at_its_time_before_or_after_the_other_mark(world: World) -> None:
    async with world.supervisor(slow_after=10) as jobs:

        @jobs.worker(max_attempts=1)
        async def work() -> None:
            await asyncio.sleep(1000)

        stored = {seconds: await work.options(timeout_seconds=seconds).enqueue() for seconds in (5, 10, 15, 25)}
        for seconds, job in stored.items():
            ended = await jobs.wait(job)
            assert now() == pytest.approx(seconds)
            assert ended.last_error is not None
            assert ended.last_error.type == "Timeout"
    assert [event.job.id for event in world.seen.of(JobSlow)] == [stored[15].id, stored[25].id]


@contextmanager
def walks() -> Iterator[list[float]]:
    """When the runs of a queue were walked through."""
    at: list[float] = []
    strike = Deadlines._strike

    def counted(deadlines: Deadlines) -> None:
        at.append(now())
        strike(deadlines)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Deadlines, "_strike", counted)
        yield at


@virtual
async def test_however_many_runs_become_slow_one_by_one_few_walks_find_them_and_timeouts_are_exact(
    world: World,
) -> None:
    with walks() as walked:
        async with world.supervisor(slow_after=10, queues={"default": 1000}) as jobs:

            @jobs.worker(timeout_seconds=None, max_attempts=1)
            async def work() -> None:
                await asyncio.sleep(100)

            limited = [await work.options(timeout_seconds=11.003 + 0.7 * n).enqueue() for n in range(5)]
            for _ in range(500):
                await work.enqueue()
                await asyncio.sleep(0.01)
            for n, job in enumerate(limited):
                ended = await jobs.wait(job)
                assert ended.last_error is not None
                assert ended.last_error.type == "Timeout"
                assert now() == pytest.approx(11.003 + 0.7 * n, abs=0.001)
            slow = [await world.seen.wait(JobSlow, count=n) for n in range(1, 506)]
            assert all(10 <= event.seconds <= 10 + APART for event in slow)
            await jobs.cancel_all(JobQuery())
    assert now() < 30
    assert len(walked) <= 5 / APART + len(limited) + 3, "for the 5 seconds in which they began, and the timeouts"


@virtual
async def test_one_that_was_told_to_end_is_not_told_of_as_slow(world: World) -> None:
    async with world.supervisor(slow_after=3) as jobs:

        @jobs.worker
        async def work() -> None:
            await asyncio.sleep(1000)

        job = await work.enqueue()
        await world.seen.wait(JobStarted)
        await jobs.cancel(job.id)
        await jobs.wait(job)
        assert now() == pytest.approx(5)
    assert not world.seen.of(JobSlow)


@virtual
async def test_nobody_is_told_of_where_that_is_switched_off(world: World) -> None:
    async with world.supervisor(slow_after=None) as jobs:

        @jobs.worker(timeout_seconds=None)
        async def work() -> None:
            await asyncio.sleep(500)

        await jobs.wait(await work.enqueue())
    assert not world.seen.of(JobSlow)


@virtual
async def test_a_minute_is_long_unless_something_else_is_said(world: World) -> None:
    async with world.supervisor() as jobs:

        @jobs.worker
        async def work() -> None:
            await asyncio.sleep(100)

        await work.enqueue()
        await world.seen.wait(JobSlow)
        assert now() == pytest.approx(60)


@virtual
async def test_there_is_one_timer_a_queue_however_many_run(world: World) -> None:
    loop = asyncio.get_running_loop()

    def timers() -> int:
        handles: list[Any] = [it for it in loop._scheduled if not it.cancelled()]  # type: ignore[attr-defined]
        return sum(isinstance(getattr(it._callback, "__self__", None), Deadlines) for it in handles)

    async with world.supervisor(slow_after=9.5, queues={"default": 100, "other": 10}) as jobs:

        @jobs.worker
        async def work(n: int) -> None:
            await asyncio.sleep(n)

        await jobs.enqueue_many([work.draft(n) for n in range(1, 101)])
        await world.seen.wait(JobStarted, count=100)
        assert timers() == 1
        for seconds in (9, 8, 7):  # each sooner than all before
            await work.options(timeout_seconds=seconds, queue="other", max_attempts=1).enqueue(20)
            await world.seen.wait(JobStarted, count=110 - seconds)
            assert timers() == 2, "two queues"
        for count in (1, 11, 50, 100):
            await world.seen.wait(JobCompleted, count=count)
            assert timers() <= 2, count
    assert len(world.seen.of(JobSlow)) == 91


@pytest.mark.parametrize("given", [0, -1, timedelta(0), float("nan"), "60", True])
def test_slow_after_is_more_than_nothing(given: Any) -> None:
    with pytest.raises(OptionError, match="slow_after"):
        Supervisor(slow_after=given)


@virtual
async def test_a_line_in_the_log_says_where_it_is(world: World) -> None:
    with logged() as records:
        async with world.supervisor(slow_after=timedelta(seconds=10)) as jobs:

            @jobs.worker
            async def work() -> None:
                await outer(20)

            job = await work.enqueue()
            await jobs.wait(job)
    (record,) = [record for record in records if "so far" in record.getMessage()]
    assert record.levelno == logging.INFO
    text = record.getMessage()
    assert text.startswith(f"job {job.id} (work) has run for 10.0 s so far; it is in test_slow.py:")
    assert text.endswith(":sleep")
    assert ":outer > test_slow.py:" in text


class Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    """What the log is told, from INFO on."""
    logger, collector = logging.getLogger("jobs_async"), Collector()
    level = logger.level
    logger.addHandler(collector)
    logger.setLevel(logging.INFO)
    try:
        yield collector.records
    finally:
        logger.removeHandler(collector)
        logger.setLevel(level)


# --- handlers that will not end ---


@virtual
async def test_one_that_will_not_end_is_told_of_with_where_it_is(world: World) -> None:
    enough = asyncio.Event()

    async def deaf() -> None:
        while not enough.is_set():
            try:
                await enough.wait()
            except asyncio.CancelledError:
                continue

    with logged() as records:
        async with world.supervisor() as jobs:

            @jobs.worker(max_attempts=1, timeout_seconds=1)
            async def work() -> None:
                await deaf()

            job = await work.enqueue()
            stuck = await world.seen.wait(JobStuck)
            assert names(stuck.stack) == ["work", "deaf", "wait"]
            enough.set()
            await jobs.wait(job)
    (text,) = [record.getMessage() for record in records if "told to end" in record.getMessage()]
    assert text.endswith(f"(timeout); it is in {' > '.join(stuck.stack)}")


def test_an_event_can_be_made_without_a_stack() -> None:
    job: Any = None
    assert JobStuck(job=job, at=datetime(2030, 1, 1, tzinfo=UTC), cause="stop").stack == ()


# --- threads and processes, in real time ---


async def heard(**options: Any) -> tuple[Supervisor, Seen]:
    seen, telemetry = Seen(), Telemetry()
    telemetry.attach(seen)
    return Supervisor(telemetry=telemetry, **options), seen


def digs(gate: threading.Event) -> None:
    assert gate.wait(PATIENCE)


async def test_a_thread_is_told_of_with_its_own_calls_and_not_with_ours() -> None:
    gate = threading.Event()
    jobs, seen = await heard(slow_after=0.05)
    async with jobs:

        @jobs.worker(timeout_seconds=None)
        def work() -> None:
            digs(gate)

        try:
            job = await work.enqueue()
            slow = await seen.wait(JobSlow)
            assert slow.job.id == job.id
            assert names(slow.stack) == ["work", "digs", "wait", "wait"]
        finally:
            gate.set()
        await jobs.wait(job)


async def test_each_of_many_threads_is_told_of_with_where_it_is_itself() -> None:
    gate = threading.Event()
    jobs, seen = await heard(slow_after=0.05)
    async with jobs:

        @jobs.worker
        def left() -> None:
            digs(gate)

        @jobs.worker
        def right() -> None:
            digs(gate)

        try:
            stored = [await one.enqueue() for one in (left, right, left, right)]
            await seen.wait(JobSlow, count=4)
            told = {event.job.id: names(event.stack)[0] for event in seen.of(JobSlow)}
            assert told == {job.id: job.worker for job in stored}
        finally:
            gate.set()
        for job in stored:
            await jobs.wait(job)


async def test_what_a_thread_hands_over_is_told_of_as_what_it_is_by_now() -> None:
    jobs, seen = await heard(slow_after=0.05)
    over = asyncio.Event()

    async def later() -> None:
        await over.wait()

    async with jobs:

        @jobs.worker
        def work() -> Any:
            return later()

        job = await work.enqueue()
        slow = await seen.wait(JobSlow)
        assert names(slow.stack) == ["later", "wait"]
        over.set()
        await jobs.wait(job)


async def test_a_process_is_told_of_without_a_stack(tmp_path: Any) -> None:
    jobs, seen = await heard(slow_after=0.05, workers=[waits_for])
    async with jobs:
        job = await waits_for.enqueue(str(tmp_path / "gate"))
        slow = await seen.wait(JobSlow)
        assert (slow.job.id, slow.stack) == (job.id, ())
        (tmp_path / "gate").touch()
        await jobs.wait(job)


# --- in one line ---


@virtual
async def test_in_one_line_it_says_how_long_and_where(world: World) -> None:
    log = ActivityLog()
    async with world.supervisor(slow_after=10) as jobs:

        @jobs.worker
        async def work() -> None:
            await inner(20)

        job = await work.enqueue()
        slow = await world.seen.wait(JobSlow)
        await jobs.wait(job)
    log(slow)
    last = slow.stack[-1]
    assert describe(slow) == f"slow: work #{job.id} has run for 10.0 s so far, now at {last}"
    assert log.latest()[0].endswith(describe(slow))
    bare = JobSlow(job=slow.job, at=slow.at, seconds=10.0)
    assert describe(bare) == f"slow: work #{job.id} has run for 10.0 s so far"


# --- where a coroutine is ---


class Awaitable:
    def __init__(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self.work = work

    def __await__(self) -> Generator[Any, None, None]:
        yield from self.work().__await__()


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def pages() -> AsyncGenerator[int, None]:
    await forever()
    yield 1


async def reads() -> None:
    async for _ in pages():
        pass


async def sends() -> None:
    await pages().asend(None)


async def closes() -> None:
    async def stubborn() -> AsyncGenerator[int, None]:
        try:
            yield 1
        finally:
            await forever()

    it = stubborn()
    await anext(it)
    await it.aclose()


async def by_hand() -> None:
    await Awaitable(forever)


async def in_a_task() -> None:
    await asyncio.Task(forever())


async def in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(forever())


async def deep(levels: int = 30) -> None:
    if levels:
        await deep(levels - 1)
    await forever()


@pytest.mark.parametrize(
    ("work", "calls"),
    [
        (forever, ["forever"]),
        (reads, ["reads", "pages", "forever"]),
        (sends, ["sends", "pages", "forever"]),
        (closes, ["closes", "stubborn", "forever"]),
        (by_hand, ["by_hand", "__await__", "forever"]),
        (in_a_task, ["in_a_task"]),
        (in_a_group, ["in_a_group", "__aexit__"]),
        (deep, ["deep"] * (MAX_CALLS - 1) + ["forever"]),
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine method 'a:RuntimeWarning")
async def test_a_coroutine_that_waits_is_followed_to_where_it_does(
    work: Callable[[], Coroutine[Any, Any, None]], calls: list[str]
) -> None:
    task = asyncio.Task(work())
    while inspect.getcoroutinestate(task.get_coro()) != inspect.CORO_SUSPENDED:  # type: ignore[arg-type]
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert names(of_coroutine(task.get_coro())) == calls
    task.cancel()
    await asyncio.wait({task})
    assert of_coroutine(task.get_coro()) == ()


def test_what_is_no_coroutine_is_nowhere() -> None:
    assert of_coroutine(None) == of_coroutine(7) == ()
    assert of_thread(None, "work") == of_thread(-1, "work") == ()
    assert of_thread(threading.get_ident(), "not one of ours") == ()


def test_a_handlers_own_function_of_that_name_is_not_taken_for_ours() -> None:
    gate, begun = threading.Event(), threading.Event()

    def _in_a_thread() -> None:
        begun.set()
        gate.wait(PATIENCE)

    thread = threading.Thread(target=_in_a_thread)
    thread.start()
    assert begun.wait(PATIENCE)
    assert of_thread(thread.ident, "_in_a_thread") == ()
    gate.set()
    thread.join()
