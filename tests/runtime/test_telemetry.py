"""Handlers hear of everything, in order, one event at a time; what they do to themselves harms nobody."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest

from jobs_async import (
    ConstantBackoff,
    Event,
    JobCompleted,
    JobDuplicate,
    JobEnqueued,
    JobStarted,
    LoggingHandler,
    QueueHandler,
    QueuePaused,
    StatsHandler,
    Telemetry,
    TelemetryError,
)
from jobs_async.core import events
from jobs_async.telemetry import background
from jobs_async.testing.loop import BEGINNING
from tests.runtime.support import World, virtual

PAUSED = QueuePaused("q", at=BEGINNING)


async def test_handlers_are_awaited_in_attach_order_one_event_at_a_time() -> None:
    telemetry = Telemetry()
    heard: list[Any] = []

    async def slow(event: Event) -> None:
        heard.append(("slow", event))
        await asyncio.sleep(0.001)
        heard.append(("slow done", event))

    def quick(event: Event) -> None:
        heard.append(("quick", event))

    assert telemetry.attach(slow)
    assert telemetry.attach(quick)
    many = [QueuePaused(f"q{n}", at=BEGINNING) for n in range(20)]
    await asyncio.gather(*(telemetry.emit(event) for event in many))
    assert heard == [(who, event) for event in many for who in ("slow", "slow done", "quick")]


@pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError])
@pytest.mark.parametrize("is_async", [True, False])
async def test_a_handler_that_raises_is_logged_and_the_next_is_called(
    error: type[BaseException], is_async: bool, caplog: pytest.LogCaptureFixture
) -> None:
    telemetry = Telemetry()
    heard: list[Any] = []

    def broken(event: Event) -> None:
        raise error

    async def broken_async(event: Event) -> None:
        raise error

    telemetry.attach(broken_async if is_async else broken)
    telemetry.attach(heard.append)
    await telemetry.emit(PAUSED)
    assert heard == [PAUSED]
    assert "queue_paused" in caplog.text


async def test_the_caller_s_own_cancellation_gets_through() -> None:
    telemetry, began = Telemetry(), asyncio.Event()

    async def hang(event: Event) -> None:
        began.set()
        await asyncio.Event().wait()

    telemetry.attach(hang)
    task = asyncio.get_running_loop().create_task(telemetry.emit(PAUSED))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    telemetry.detach(hang)
    await telemetry.emit(PAUSED)


async def test_the_ninth_handler_is_refused_loudly() -> None:
    telemetry = Telemetry()
    for _ in range(8):
        assert telemetry.attach(print)
    with pytest.warns(RuntimeWarning, match="8 telemetry handlers"):
        assert telemetry.attach(print) is False
    assert telemetry.detach(print)
    assert telemetry.attach(print)
    unbounded = Telemetry(max_handlers=None)
    assert all(unbounded.attach(print) for _ in range(50))


async def test_emit_and_attach_inside_a_handler_raise_instead_of_hanging() -> None:
    telemetry, raised, later = Telemetry(), [], []

    async def reenter(event: Event) -> None:
        for call in (lambda: telemetry.emit(PAUSED), lambda: telemetry.attach(print)):
            try:
                answer: Any = call()
                if answer is not True:
                    await answer
            except TelemetryError as error:
                raised.append(str(error))
        later.append(asyncio.get_running_loop().create_task(spawned()))

    async def spawned() -> None:
        await asyncio.sleep(0)
        telemetry.detach(reenter)
        await telemetry.emit(PAUSED)  # a task that a handler spawned is no handler

    telemetry.attach(reenter)
    async with asyncio.timeout(5):
        await telemetry.emit(PAUSED)
        await asyncio.gather(*later)
    assert len(raised) == 2


class Straight:
    """A handler that takes many events at once."""

    def __init__(self, broken: bool = False) -> None:
        self.heard: list[Event] = []
        self.calls = 0
        self._broken = broken

    def __call__(self, event: Event) -> None:
        self.call_with_all([event])

    def call_with_all(self, events: Sequence[Event]) -> None:
        self.calls += 1
        if self._broken:
            raise ValueError("broken")
        self.heard.extend(events)


class Filtered(Straight):
    """One that is called with each, for what it does with one is its own affair."""

    def __call__(self, event: Event) -> None:
        if event is not PAUSED:
            super().__call__(event)


def several(count: int = 5) -> list[QueuePaused]:
    return [QueuePaused(f"q{n}", at=BEGINNING) for n in range(count)]


async def test_where_all_handlers_take_many_events_at_once_each_is_called_once() -> None:
    telemetry, first, second = Telemetry(), Straight(), Straight()
    for handler in (first, second, first):
        telemetry.attach(handler)
    events = several()
    told: deque[Event] = deque(events)
    await telemetry.deliver(told)
    await telemetry.deliver(deque())
    assert (first.heard, second.heard) == (events * 2, events)
    assert (first.calls, second.calls) == (2, 1)
    assert not told


async def test_beside_a_plain_handler_events_come_one_at_a_time_and_in_attach_order() -> None:
    telemetry, straight, heard = Telemetry(), Straight(), list[Any]()
    telemetry.attach(straight)
    telemetry.attach(lambda event: heard.append((event, len(straight.heard))))
    events = several()
    await telemetry.deliver(deque(events))
    assert heard == [(event, number) for number, event in enumerate(events, 1)]
    assert straight.calls == len(events)


async def test_a_subclass_with_a_call_of_its_own_is_called_with_each() -> None:
    telemetry, filtered = Telemetry(), Filtered()
    telemetry.attach(filtered)
    events = several()
    await telemetry.deliver(deque([*events, PAUSED]))
    assert filtered.heard == events


async def test_one_that_fails_on_many_is_logged_once_and_left_alone_after_the_third_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    telemetry, broken, healthy = Telemetry(), Straight(broken=True), Straight()
    telemetry.attach(broken)
    telemetry.attach(healthy)
    for _ in range(5):
        await telemetry.deliver(deque(several()))
    assert broken.calls == 3
    assert len(healthy.heard) == 25
    assert len([record for record in caplog.records if "failed on" in record.getMessage()]) == 3
    assert "left alone for 60 seconds" in caplog.text


async def test_a_queue_handler_gets_many_events_in_their_order_and_drops_the_oldest() -> None:
    telemetry, heard = Telemetry(), list[Event]()
    gate = asyncio.Event()

    async def sink(event: Event) -> None:
        await gate.wait()
        heard.append(event)

    handler = QueueHandler(sink, capacity=3)
    telemetry.attach(handler)
    events = several()
    await telemetry.deliver(deque(events))
    gate.set()
    await telemetry.flush()
    assert heard == events[-3:]
    assert handler.dropped == 2


async def test_a_thread_that_waits_for_events_is_woken_by_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "LINGER", 1000.0)
    telemetry, heard = Telemetry(), list[Event]()
    handler = QueueHandler(heard.append)
    telemetry.attach(handler)
    async with asyncio.timeout(30):
        await telemetry.deliver(deque(several(2)))
        while not handler._is_awaited:
            await asyncio.sleep(0.001)
        monkeypatch.setattr(background, "LINGER", 0.0)  # so that the thread ends once it has had the next ones
        await telemetry.deliver(deque(several(2)))
        await telemetry.flush()
    assert heard == several(2) * 2


async def test_an_event_is_taken_out_when_it_has_been_told_and_not_before() -> None:
    telemetry, hanging = Telemetry(), asyncio.Event()
    first, second, third, *others = several()

    async def hang_on_the_third(event: Event) -> None:
        if event is third:
            hanging.set()
            await asyncio.Event().wait()

    telemetry.attach(hang_on_the_third)
    told: deque[Event] = deque([first, second, third, *others])
    task = asyncio.get_running_loop().create_task(telemetry.deliver(told))
    await hanging.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(told) == [third, *others]


async def test_a_task_that_a_handler_spawned_may_emit_though_the_event_is_still_being_told() -> None:
    telemetry, heard, spawned = Telemetry(), list[Event](), list[asyncio.Task[None]]()
    other = QueuePaused("other", at=BEGINNING)

    def spawn(event: Event) -> None:
        if event is PAUSED:
            spawned.append(asyncio.get_running_loop().create_task(telemetry.emit(other)))

    async def slow(event: Event) -> None:
        await asyncio.sleep(0.001)
        heard.append(event)

    telemetry.attach(spawn)
    telemetry.attach(slow)
    await telemetry.emit(PAUSED)
    await asyncio.gather(*spawned)
    assert heard == [PAUSED, other]


async def test_a_task_that_a_handler_spawned_is_heard_when_the_event_has_been_told() -> None:
    telemetry, heard, spawned = Telemetry(), list[Event](), list[asyncio.Task[None]]()
    other, over = QueuePaused("other", at=BEGINNING), asyncio.Event()

    async def later() -> None:
        await over.wait()
        await telemetry.emit(other)

    def spawn(event: Event) -> None:
        heard.append(event)
        if event is PAUSED:
            spawned.append(asyncio.get_running_loop().create_task(later()))

    telemetry.attach(spawn)
    await telemetry.emit(PAUSED)
    over.set()
    await asyncio.gather(*spawned)
    assert heard == [PAUSED, other]


def test_attach_works_from_any_thread_and_in_another_loop() -> None:
    telemetry = Telemetry(max_handlers=None)
    heard: list[Any] = []
    threads = [threading.Thread(target=telemetry.attach, args=(heard.append,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    asyncio.run(telemetry.emit(PAUSED))
    asyncio.run(telemetry.emit(PAUSED))
    assert len(heard) == 40


def test_supervisors_of_two_event_loops_may_share_a_telemetry() -> None:
    telemetry = Telemetry()
    heard: list[Any] = []

    async def listen(event: Event) -> None:
        await asyncio.sleep(0)
        heard.append(event)

    telemetry.attach(listen)

    async def tell() -> None:
        for _ in range(200):
            await asyncio.gather(telemetry.emit(PAUSED), telemetry.emit(PAUSED))

    threads = [threading.Thread(target=asyncio.run, args=(tell(),)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(heard) == 800


@virtual
async def test_what_a_handler_enqueues_is_told_of_after_the_current_event(world: World) -> None:
    async with world.supervisor() as jobs:
        order: list[str] = []

        @jobs.worker
        async def work(n: int) -> None: ...

        async def follow_up(event: Event) -> None:
            match event:
                case JobCompleted(job) if job.args["n"] == 1:
                    await work.enqueue(2)
                    order.append("follow-up enqueued")

        def note(event: Event) -> None:
            if isinstance(event, JobCompleted | JobEnqueued):
                order.append(f"{event.type} {event.job.args['n']}")

        assert jobs.telemetry is not None
        jobs.telemetry.attach(follow_up)
        jobs.telemetry.attach(note)
        await work.enqueue(1)
        await world.seen.wait(JobCompleted, count=2)
    assert order == ["job_enqueued 1", "follow-up enqueued", "job_completed 1", "job_enqueued 2", "job_completed 2"]


@virtual
async def test_handlers_that_breed_are_cut_off(world: World) -> None:
    async with world.supervisor(queues={}) as jobs:

        async def breed(event: Event) -> None:
            if isinstance(event, JobEnqueued):
                await jobs.enqueue("work")

        assert jobs.telemetry is not None
        jobs.telemetry.attach(breed)
        await jobs.enqueue("work")
        assert len(world.seen.of(JobEnqueued)) == 5


@virtual
async def test_stats_count_what_the_source_counts(world: World) -> None:
    stats = StatsHandler()
    telemetry = Telemetry()
    telemetry.attach(stats)
    async with world.supervisor(telemetry=telemetry) as jobs:

        @jobs.worker(max_attempts=2, retry_strategy=ConstantBackoff(0))
        async def work(fails: bool) -> None:
            await asyncio.sleep(0.25)
            if fails:
                raise OSError

        for fails in (False, False, True):
            await jobs.wait(await work.enqueue(fails))
        await work.options(unique_key="u", delay=9).enqueue(False)
        assert (await work.options(unique_key="u").enqueue(False)).duplicate
        await world.seen.wait(JobDuplicate)
    assert (stats.enqueued, stats.completed, stats.failed, stats.discarded) == (4, 2, 1, 1)
    assert (stats.total_duration_ms, stats.mean_duration_ms) == (500, 250)


def test_logs_show_no_arguments_and_no_keys(caplog: pytest.LogCaptureFixture) -> None:
    @virtual
    async def scenario(world: World) -> None:
        telemetry = Telemetry()
        telemetry.attach(LoggingHandler())
        async with world.supervisor(telemetry=telemetry) as jobs:

            @jobs.worker(max_attempts=1)
            async def work(token: str) -> None:
                raise ValueError("no luck")

            job = await work.options(unique_key="k3y", idempotency_key="1dem", meta={"m": "m3ta"}).enqueue("s3cret")
            await jobs.wait(job)
            logging.getLogger("test").warning("%r %s %r", job, job, work.draft("s3cret"))

    with caplog.at_level(logging.DEBUG):
        scenario()
    assert "discarded: work #1 attempt 1/1 - ValueError: no luck" in caplog.text
    assert {record.levelname for record in caplog.records if "discarded:" in record.getMessage()} == {"ERROR"}
    for secret in ("s3cret", "k3y", "1dem", "m3ta"):
        assert secret not in caplog.text


@virtual
async def test_where_nobody_listens_no_event_is_made(world: World) -> None:
    made = 0

    def count() -> Any:
        def init(*args: object, **kwargs: object) -> None:
            nonlocal made
            made += 1

        return init

    telemetry = Telemetry()
    jobs = world.supervisor(telemetry=telemetry)
    telemetry.detach(world.seen)
    monkey = pytest.MonkeyPatch()
    try:
        for maker in ("producer.JobEnqueued", "queue_runner.JobStarted", "settler.outcome_event"):
            monkey.setattr(f"jobs_async.runtime.{maker}", count())
        async with jobs:

            @jobs.worker
            async def work() -> None: ...

            await jobs.wait(await work.enqueue())
    finally:
        monkey.undo()
    assert made == 0


def test_events_are_frozen_values_for_match() -> None:
    event = QueuePaused("q", at=BEGINNING)
    with pytest.raises(AttributeError):
        event.queue = "other"  # type: ignore[misc]
    match event:
        case JobStarted():
            pytest.fail("a queue is no job")
        case QueuePaused(queue):
            assert queue == "q"
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, Event)]
    assert {"job_enqueued", "job_started", "job_completed", "job_failed", "job_discarded"} <= {k.type for k in kinds}
    assert {"queue_paused", "queue_resumed"} <= {kind.type for kind in kinds}
