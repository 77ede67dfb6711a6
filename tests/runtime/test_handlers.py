"""The handlers that come with the package: a queue for slow sinks, an activity log, log lines and counts."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import threading
from collections.abc import Callable, Coroutine, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import NODEFAULT, structs

from jobs_async import (
    ActivityLog,
    Event,
    Job,
    JobDiscarded,
    JobFailed,
    JobState,
    LoggingHandler,
    QueueHandler,
    QueuePaused,
    StatsHandler,
    StoreFailing,
    Supervisor,
    Telemetry,
)
from jobs_async.core import events
from jobs_async.telemetry import background, describe
from jobs_async.telemetry.breaker import FAILURES, REST
from jobs_async.testing.loop import BEGINNING
from tests.runtime.support import World, now, virtual

PATIENCE = 10.0
"""Real seconds after which a fact that does not come is a failure."""
FLUSH_SECONDS = 1.0
"""How long a stop waits for what handlers hold back."""


@pytest.fixture(autouse=True)
def threads_do_not_linger(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a sink's thread waits for would only come in the next test."""
    monkeypatch.setattr(background, "LINGER", 0.01)
    yield
    for thread in threading.enumerate():
        if thread.name == "jobs_async events":
            thread.join(PATIENCE)
            assert not thread.is_alive()


def numbered(count: int, start: int = 0) -> list[Event]:
    return [QueuePaused(f"q{number}", at=BEGINNING) for number in range(start, start + count)]


class Sink:
    """Writes down what it gets and where it was called; while the gate is closed it goes no further."""

    def __init__(self, *, open: bool = True) -> None:
        self.heard: list[Event] = []
        self.threads: set[int] = set()
        self.entered, self.gate = threading.Event(), threading.Event()
        if open:
            self.gate.set()

    def __call__(self, event: Event) -> None:
        self.threads.add(threading.get_ident())
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        self.heard.append(event)

    async def has_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.wait, PATIENCE)


class AsyncSink:
    """The same, in a task."""

    def __init__(self, *, open: bool = True) -> None:
        self.heard: list[Event] = []
        self.threads: set[int] = set()
        self.entered, self.gate = asyncio.Event(), asyncio.Event()
        if open:
            self.gate.set()

    async def __call__(self, event: Event) -> None:
        self.threads.add(threading.get_ident())
        self.entered.set()
        await self.gate.wait()
        self.heard.append(event)

    async def has_entered(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self.entered.wait()


sinks = pytest.mark.parametrize("make", [Sink, AsyncSink], ids=["sync", "async"])


async def flushed(handler: QueueHandler) -> None:
    async with asyncio.timeout(PATIENCE):
        await handler.flush()
    assert handler.waiting == 0


# --- a queue for slow sinks ---


@sinks
async def test_every_event_reaches_the_sink_once_and_in_order(make: type[Sink]) -> None:
    sink, told = make(), numbered(300)
    handler = QueueHandler(sink)
    for event in told[:150]:
        handler(event)
    await sink.has_entered()
    for event in told[150:]:
        handler(event)
        await asyncio.sleep(0)
    await flushed(handler)
    assert sink.heard == told
    assert handler.dropped == 0
    assert sink.threads == {threading.get_ident()} or make is Sink


async def test_a_plain_function_is_never_called_in_the_thread_of_the_loop() -> None:
    sink = Sink()
    handler = QueueHandler(sink)
    for event in numbered(20):
        handler(event)
    await flushed(handler)
    assert threading.get_ident() not in sink.threads


@sinks
async def test_neither_a_job_nor_another_handler_waits_for_a_sink(make: type[Sink]) -> None:
    sink, heard, telemetry = make(open=False), list[Event](), Telemetry()
    telemetry.attach(QueueHandler(sink))
    telemetry.attach(heard.append)
    jobs = Supervisor(telemetry=telemetry, max_stall=None)

    @jobs.worker
    async def work() -> str:
        return "done"

    async with jobs:
        async with asyncio.timeout(PATIENCE):
            assert await jobs.result(await work.enqueue()) == "done"
        await sink.has_entered()
        assert sink.heard == []
        await telemetry.emit(numbered(1)[0])
        sink.gate.set()
    assert sink.heard == heard, "the stop has waited for it"
    assert len(heard) == 4


@sinks
async def test_beyond_its_capacity_the_oldest_is_dropped_counted_and_said_once(
    make: type[Sink], caplog: pytest.LogCaptureFixture
) -> None:
    sink, told = make(open=False), numbered(10)
    handler = QueueHandler(sink, capacity=3)
    handler(told[0])
    await sink.has_entered()
    for event in told[1:]:
        handler(event)
    assert (handler.waiting, handler.dropped) == (4, 6)
    sink.gate.set()
    await flushed(handler)
    assert sink.heard == [told[0], *told[7:]]
    assert handler.dropped == 6
    assert caplog.text.count("the oldest events are dropped") == 1


ERRORS = [ValueError, SystemExit, KeyboardInterrupt, asyncio.CancelledError]


def contained(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run it, and see that nothing that ends a process gets out."""
    try:
        asyncio.run(main())
    except (SystemExit, KeyboardInterrupt) as error:
        pytest.fail(f"{type(error).__name__} has ended the event loop")


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("error", ERRORS)
def test_a_sink_that_keeps_failing_rests_for_a_minute_and_what_comes_meanwhile_is_dropped(
    error: type[BaseException], is_async: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    time, called, broken = 0.0, list[Event](), True
    monkeypatch.setattr(background, "stopwatch", lambda: time)

    def sink(event: Event) -> None:
        called.append(event)
        if broken:
            raise error

    async def async_sink(event: Event) -> None:
        sink(event)

    handler = QueueHandler(async_sink if is_async else sink)
    told = numbered(20)

    async def tell(some: list[Event]) -> None:
        for event in some:
            handler(event)
        await flushed(handler)

    async def main() -> None:
        nonlocal time, broken
        await tell(told[:10])
        assert called == told[:FAILURES]
        assert handler.dropped == 10 - FAILURES
        assert caplog.text.count("failed on queue_paused") == FAILURES
        assert caplog.text.count("rests for 60 seconds") == 1
        time = REST - 1
        await tell(told[10:11])
        assert called == told[:FAILURES]
        time = REST
        await tell(told[11:13])
        assert called == [*told[:FAILURES], told[11]], "tried once"
        time, broken = 2 * REST, False
        await tell(told[13:])
        assert called == [*told[:FAILURES], told[11], *told[13:]]
        assert handler.dropped == 10 - FAILURES + 2

    contained(main)


async def test_a_success_in_between_resets_the_count() -> None:
    moods, called = iter("ffwffwff"), list[Event]()

    def sink(event: Event) -> None:
        called.append(event)
        if next(moods) == "f":
            raise ValueError

    handler, told = QueueHandler(sink), numbered(8)
    for event in told:
        handler(event)
    await flushed(handler)
    assert called == told


async def test_an_async_sink_that_cancels_its_own_task_holds_up_no_later_event() -> None:
    heard: list[Event] = []

    async def sink(event: Event) -> None:
        heard.append(event)
        if len(heard) == 1:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
            await asyncio.sleep(0)

    handler, told = QueueHandler(sink), numbered(5)
    for event in told:
        handler(event)
    await flushed(handler)
    assert heard == told


async def test_a_coroutine_that_nobody_can_await_is_a_failure_of_its_sink(caplog: pytest.LogCaptureFixture) -> None:
    """A lambda around an async function looks like a plain function: its events would be lost without a word."""
    heard: list[Event] = []

    async def send(event: Event) -> None:
        heard.append(event)

    handler = QueueHandler(lambda event: send(event))  # noqa: PLW0108
    handler(numbered(1)[0])
    await flushed(handler)
    assert heard or "failed on queue_paused" in caplog.text


def test_an_async_sink_told_outside_of_a_loop_says_so_and_is_not_wedged() -> None:
    sink = AsyncSink()
    handler, told = QueueHandler(sink), numbered(2)
    with pytest.raises(RuntimeError, match="no running event loop"):
        handler(told[0])

    async def main() -> None:
        handler(told[1])
        await flushed(handler)

    asyncio.run(main())
    assert sink.heard[-1] == told[1]


@sinks
def test_it_serves_one_loop_after_the_other(make: type[Sink]) -> None:
    heard: list[Event] = []
    telemetry, told = Telemetry(), numbered(6)

    async def note(event: Event) -> None:
        heard.append(event)

    handler = QueueHandler(heard.append if make is Sink else note)
    telemetry.attach(handler)

    async def main(some: list[Event]) -> None:
        for event in some:
            await telemetry.emit(event)
        await flushed(handler)

    for start in (0, 2, 4):
        asyncio.run(main(told[start : start + 2]))
    assert heard == told


def test_what_waits_when_a_loop_ends_is_passed_on_in_the_next() -> None:
    """Only the event that the sink had in its hands goes with the loop."""
    heard: list[Event] = []
    told, hang = numbered(4), True

    async def sink(event: Event) -> None:
        if hang:
            await asyncio.Event().wait()
        heard.append(event)

    handler = QueueHandler(sink)

    async def first() -> None:
        for event in told[:3]:
            handler(event)
        await asyncio.sleep(0)

    async def second() -> None:
        handler(told[3])
        await flushed(handler)

    asyncio.run(first())
    hang = False
    asyncio.run(second())
    assert heard == told[1:]


@sinks
async def test_a_detached_one_still_passes_on_what_it_holds_and_hears_no_more(make: type[Sink]) -> None:
    sink, telemetry, told = make(open=False), Telemetry(), numbered(4)
    handler = QueueHandler(sink)
    telemetry.attach(handler)
    for event in told[:3]:
        await telemetry.emit(event)
    assert telemetry.detach(handler)
    await telemetry.emit(told[3])
    sink.gate.set()
    await flushed(handler)
    assert sink.heard == told[:3]


def test_only_one_with_a_plain_function_may_be_called_from_any_thread() -> None:
    assert QueueHandler(print).any_thread
    assert QueueHandler(Sink()).any_thread
    assert not QueueHandler(AsyncSink()).any_thread
    assert not QueueHandler(AsyncSink().__call__).any_thread
    assert not QueueHandler(functools.partial(AsyncSink.__call__, AsyncSink())).any_thread


async def test_many_threads_may_hand_in_events_at_once() -> None:
    heard: list[Any] = []
    handler = QueueHandler(heard.append)

    def tell(start: int) -> None:
        for event in numbered(100, start):
            handler(event)

    await asyncio.gather(*(asyncio.to_thread(tell, 100 * number) for number in range(8)))
    await flushed(handler)
    assert len(heard) == len({event.queue for event in heard}) == 800
    for number in range(8):
        mine = [event.queue for event in heard if 100 * number <= int(event.queue[1:]) < 100 * (number + 1)]
        assert mine == [f"q{n}" for n in range(100 * number, 100 * (number + 1))]


async def test_two_threads_that_hand_in_at_the_same_time_start_one_thread_for_the_sink(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[threading.Thread] = []
    told = numbered(2)

    class Condition(threading.Condition):
        """Where it has just been let go of, another thread hands in the second event."""

        def __exit__(self, *exc: Any) -> None:
            super().__exit__(*exc)
            if other.ident is None:
                other.start()
                other.join(PATIENCE)

    class Thread(threading.Thread):
        def start(self) -> None:
            started.append(self)
            super().start()

    monkeypatch.setattr(background, "threading", SimpleNamespace(Condition=Condition, Thread=Thread))
    heard: list[Event] = []
    handler = QueueHandler(heard.append)
    other = threading.Thread(target=handler, args=(told[1],))
    handler(told[0])
    await flushed(handler)
    assert heard == told
    assert len(started) == 1


# --- a stop waits for what is held back, for a second ---


@virtual
async def test_a_stop_waits_until_a_slow_sink_has_had_everything(world: World) -> None:
    heard: list[Event] = []

    async def slow(event: Event) -> None:
        await asyncio.sleep(0.1)
        heard.append(event)

    async with world.supervisor() as jobs:
        assert jobs.telemetry is not None
        jobs.telemetry.attach(QueueHandler(slow))
        for event in numbered(8):
            await jobs.telemetry.emit(event)
    assert heard == numbered(8)
    assert now() < FLUSH_SECONDS


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_stop_waits_no_longer_than_a_second_for_a_sink_that_hangs(is_async: bool) -> None:
    @virtual
    async def scenario(world: World) -> None:
        thread_gate, gate, heard = threading.Event(), asyncio.Event(), list[Event]()

        def hang(_event: Event) -> None:
            assert thread_gate.wait(PATIENCE)

        async def hang_async(_event: Event) -> None:
            await gate.wait()

        async def slow(event: Event) -> None:
            await asyncio.sleep(0.1)
            heard.append(event)

        hanging, behind = QueueHandler(hang_async if is_async else hang), QueueHandler(slow)
        async with world.supervisor() as jobs:
            assert jobs.telemetry is not None
            jobs.telemetry.attach(hanging)
            jobs.telemetry.attach(behind)
            for event in numbered(5):
                await jobs.telemetry.emit(event)
        assert now() == pytest.approx(FLUSH_SECONDS, abs=0.1)
        assert heard == numbered(5), "it is not the one behind that pays for it"
        thread_gate.set()
        gate.set()
        await hanging.flush()

    scenario()


@pytest.mark.parametrize("error", ERRORS)
def test_a_handler_that_cannot_be_flushed_does_not_hold_up_a_stop(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __call__(self, event: Event) -> None: ...

        async def flush(self) -> None:
            raise error

    @virtual
    async def scenario(world: World) -> None:
        behind = QueueHandler(world.seen)
        async with world.supervisor(queues={}) as jobs:
            assert jobs.telemetry is not None
            jobs.telemetry.detach(world.seen)
            jobs.telemetry.attach(Broken())
            jobs.telemetry.attach(behind)
            await jobs.telemetry.emit(numbered(1)[0])
        assert jobs.is_stopped
        assert behind.waiting == 0
        assert [node for node in await world.store.nodes() if node.alive] == []

    try:
        scenario()
    except (SystemExit, KeyboardInterrupt) as raised:
        pytest.fail(f"{type(raised).__name__} has ended the event loop")
    assert "could not be flushed" in caplog.text


# --- every event in a line ---

SECRETS = {"args": "s3cret-args", "unique": "s3cret-unique", "idempotency": "s3cret-idem", "meta": "s3cret-meta"}
JOB: Job[Any] = Job(
    id=4711,
    state=JobState.executing,
    queue="some-queue",
    worker="some-worker",
    args_json=f'{{"token": "{SECRETS["args"]}"}}',
    priority=0,
    attempt=2,
    max_attempts=5,
    scheduled_at=BEGINNING,
    inserted_at=BEGINNING,
    unique_key=SECRETS["unique"],
    idempotency_key=SECRETS["idempotency"],
    meta_json=f'{{"token": "{SECRETS["meta"]}"}}',
)
NOUNS = {"job", "queue", "lease", "loop", "store"}
"""What an event's type begins with; the rest is what happened."""

every_kind = pytest.mark.parametrize(
    "kind",
    [kind for kind in vars(events).values() if isinstance(kind, type) and "type" in vars(kind) and kind is not Event],
    ids=lambda kind: kind.__name__,
)


def sample(kind: type[Event], **given: Any) -> Any:
    """An event of this class, with something that can be recognised in every field."""
    values: dict[str, Any] = {"at": BEGINNING, "job": JOB}
    for field in structs.fields(kind):
        if field.name not in values:
            annotation = str(field.type)
            text = f"the-{field.name}"
            values[field.name] = text if "str" in annotation and "tuple" not in annotation else field.default
            if values[field.name] is NODEFAULT:
                values[field.name] = 1.5
    return kind(**{**{field.name: values[field.name] for field in structs.fields(kind)}, **given})


def texts(event: Event) -> list[str]:
    """What an event says in words of its own."""
    return [value for name in event.__struct_fields__ if isinstance(value := getattr(event, name), str)]


@every_kind
def test_every_event_has_a_line_that_says_what_happened_to_whom(kind: type[Event]) -> None:
    event = sample(kind)
    line = describe(event)
    words = set(re.findall(r"\w+", line.lower()))
    assert set(kind.type.split("_")) - NOUNS <= words
    assert all(text in line for text in texts(event)), "whatever it says is in its line"
    if isinstance(event, events.JobEvent):
        assert "some-worker" in line
        assert "#4711" in line
    assert len(line.split()) > 1


@every_kind
def test_no_line_shows_arguments_keys_or_metadata(kind: type[Event], caplog: pytest.LogCaptureFixture) -> None:
    event = sample(kind)
    with caplog.at_level(logging.DEBUG):
        LoggingHandler()(event)
    activity = ActivityLog()
    activity(event)
    for line in (describe(event), caplog.text, *activity.latest()):
        assert "s3cret" not in line


@every_kind
def test_every_line_is_one_line(kind: type[Event]) -> None:
    given = dict.fromkeys(("error_msg", "blocker"), "the first line\nthe\r\nrest\x85of\u2028it")
    fields = {field.name for field in structs.fields(kind)}
    line = describe(sample(kind, **{name: text for name, text in given.items() if name in fields}))
    assert len(line.splitlines()) == 1


def test_no_two_events_have_the_same_line() -> None:
    (mark,) = [mark for mark in [every_kind.mark] if mark.name == "parametrize"]
    kinds = mark.args[1]
    assert len({describe(sample(kind)) for kind in kinds}) == len(kinds) > 15


@every_kind
def test_every_event_is_logged_once_as_its_line(kind: type[Event], caplog: pytest.LogCaptureFixture) -> None:
    event = sample(kind)
    with caplog.at_level(logging.DEBUG, logger="my.log"):
        LoggingHandler(logging.getLogger("my.log"))(event)
    (record,) = caplog.records
    assert record.getMessage() == describe(event)
    assert record.name == "my.log"


def test_failures_are_warnings_and_discards_are_errors(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for kind in (events.JobCompleted, JobFailed, JobDiscarded, StoreFailing, events.JobDuplicate):
            LoggingHandler()(sample(kind))
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "ERROR", "ERROR"]


def test_an_event_of_ones_own_has_a_line_too() -> None:
    class Deployed(Event, frozen=True):
        type = "app_deployed"

    class Nameless(Event, frozen=True):
        pass

    assert describe(Deployed(at=BEGINNING)) == "app deployed"
    assert describe(Nameless(at=BEGINNING)) == "event"


# --- an activity log ---


def test_an_activity_log_keeps_the_last_lines_newest_first() -> None:
    activity = ActivityLog(size=3)
    assert activity.latest() == []
    for number, event in enumerate(numbered(5)):
        activity(structs.replace(event, at=BEGINNING + timedelta(seconds=number)))
    assert activity.latest() == [f"00:00:0{n} paused: queue q{n}" for n in (4, 3, 2)]
    assert activity.latest(2) == activity.latest()[:2]
    assert activity.latest(1) == activity.latest()[:1]
    assert activity.latest(0) == activity.latest(-1) == []


def test_an_activity_log_takes_lines_of_ones_own_and_leaves_out_what_has_none() -> None:
    def line(event: Event) -> str | None:
        return f"{event.queue} rests" if isinstance(event, QueuePaused) and event.queue != "q1" else None

    activity = ActivityLog(line=line)
    for event in [*numbered(3), sample(JobFailed)]:
        activity(event)
    assert activity.latest() == ["q2 rests", "q0 rests"]


@virtual
async def test_a_broken_line_of_ones_own_harms_nobody(world: World) -> None:
    async with world.supervisor(queues={}) as jobs:
        assert jobs.telemetry is not None
        jobs.telemetry.attach(ActivityLog(line=lambda event: 1 / 0))  # type: ignore[arg-type,return-value]
        await jobs.enqueue("work")
        await world.seen.wait(events.JobEnqueued)


# --- counts ---

COUNTED: dict[type[Event], str] = {
    events.JobEnqueued: "enqueued",
    events.JobCompleted: "completed",
    JobFailed: "failed",
    JobDiscarded: "discarded",
}


@every_kind
def test_stats_count_four_things_and_nothing_else(kind: type[Event]) -> None:
    stats, counted = StatsHandler(), COUNTED.get(kind)
    assert stats.mean_duration_ms == 0
    stats(sample(kind))
    assert {name: getattr(stats, name) for name in COUNTED.values()} == {
        name: int(name == counted) for name in COUNTED.values()
    }


def test_stats_know_how_long_a_completed_run_took_on_average() -> None:
    stats = StatsHandler()
    for duration in (100, 300):
        stats(sample(events.JobCompleted, duration_ms=duration))
    stats(sample(JobFailed, duration_ms=5000))
    assert (stats.total_duration_ms, stats.mean_duration_ms) == (400, 200)
