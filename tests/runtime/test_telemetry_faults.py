"""Whatever a telemetry handler does to itself, to events or to the loop: no job notices, and no other handler does."""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import re
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from itertools import pairwise
from typing import Any, NoReturn

import pytest

from jobs_async import (
    Cancel,
    ConstantBackoff,
    Discard,
    Event,
    Job,
    JobCompleted,
    JobEnqueued,
    JobEvent,
    JobInterrupted,
    JobOpts,
    JobRescued,
    JobStarted,
    JobState,
    JobStuck,
    MemoryStore,
    QueueEvent,
    QueuePaused,
    ShutdownReport,
    Snooze,
    StoreBusy,
    Supervisor,
    Telemetry,
    current_context,
)
from jobs_async.core import events
from jobs_async.core.job import FINAL
from jobs_async.core.lifecycle import decide
from jobs_async.core.options import NewJob
from jobs_async.core.outcome import Discarded, Failure
from jobs_async.core.store import JobQuery, Node
from jobs_async.telemetry.breaker import FAILURES, REST
from jobs_async.telemetry.cutter import HANDLER_SECONDS
from jobs_async.testing.loop import BEGINNING
from tests.runtime.support import World, now, virtual

PAUSED = QueuePaused("q", at=BEGINNING)
LAST = QueuePaused("last", at=BEGINNING)
DAY = 86_400.0
GUARD = 1000.0
"""Virtual seconds after which a life is taken for one that has no end."""
SLACK = 2.0
"""Seconds by which a delay may grow where it makes somebody miss a poll."""


# --- one life of jobs in which everything happens that can happen to a job ---


class Story:
    """What became of every job, and what a healthy handler, attached last, heard of each."""

    def __init__(self, told: list[Event], runs: Counter[str], rows: list[Job[Any]]) -> None:
        mine = [row for row in rows if row.worker != EXTRA]
        self.took = now()
        self.runs = runs
        self.ends = {row.worker: (row.state, row.attempt, row.rescues, row.result, row.meta) for row in mine}
        self.heard: dict[str, list[Any]] = {}
        for event in told:
            match event:
                case JobEvent(job=job) if job.worker != EXTRA:
                    heard = (type(event), job.state, job.attempt, job.meta)
                    self.heard.setdefault(job.worker, []).append(heard)
                case QueueEvent(queue=queue):
                    self.heard.setdefault(queue, []).append(type(event))
                case _:
                    pass


EXTRA = "extra"
"""What a handler enqueues for itself; it does not count."""


class Life:
    """The jobs of one Supervisor, driven by facts in the store alone: no handler of events can hold the script up."""

    def __init__(self, world: World, telemetry: Telemetry) -> None:
        self.world = world
        self.told: list[Event] = []
        self.runs: Counter[str] = Counter()
        self.jobs = world.supervisor(telemetry=telemetry, queues={"default": 20}, rescue_interval=2, slow_after=0.5)
        telemetry.attach(self._hear)
        self._overtake, self._overtaken = asyncio.Event(), asyncio.Event()
        plain: dict[str, Callable[[], Any]] = {
            "completes": lambda: "done",
            "retried": self._retried,
            "given up": self._given_up,
            "snoozes": self._snoozes,
            "cancels itself": self._cancels,
            "rescued": lambda: "here",
            "overtaken": self._is_overtaken,
            "gets stuck": self._gets_stuck,
        }
        for name, run in plain.items():
            self._register(self.jobs, name, run)

    async def _hear(self, event: Event) -> None:
        await asyncio.sleep(0)
        self.told.append(event)

    def _register(self, jobs: Supervisor, name: str, run: Callable[[], Any]) -> None:
        async def handler(_args: Any, _ctx: Any) -> Any:
            self.runs[name] += 1
            answer = run()
            return await answer if inspect.isawaitable(answer) else answer

        limits = {"gets stuck": JobOpts(max_attempts=1, timeout_seconds=1)}
        jobs.register_worker(name, handler, opts=limits.get(name, JobOpts()), retry_strategy=ConstantBackoff(1))

    def _retried(self) -> str:
        if current_context().attempt == 1:
            raise ValueError("not yet")
        return "at last"

    def _given_up(self) -> NoReturn:
        raise Discard("no use")

    def _snoozes(self) -> None:
        if self.runs["snoozes"] == 1:
            raise Snooze(2)

    def _cancels(self) -> NoReturn:
        raise Cancel("no need")

    async def _is_overtaken(self) -> None:
        self._overtake.set()
        await self._overtaken.wait()

    async def _gets_stuck(self) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(GUARD)
        await asyncio.sleep(5)

    async def lead(self) -> Story:
        store, jobs = self.world.store, self.jobs
        await store.insert([NewJob("rescued", "{}")])
        await store.beat(Node(id="dead"), 1, join=True)
        await store.fetch("default", 1, node="dead")
        sleepy = {"poll_interval": DAY, "heartbeat": DAY, "lease": 5 * DAY, "rescue_interval": DAY}
        neighbour = self.world.supervisor(queues={"elsewhere": 1}, telemetry=Telemetry(), **sleepy)
        self._register(neighbour, "handed back", lambda: None)
        async with neighbour, jobs, asyncio.timeout(GUARD), asyncio.TaskGroup() as script:
            script.create_task(self._overtake_it())
            script.create_task(self._take_back_what_was_handed_back())
            for name in ("completes", "retried", "given up", "snoozes", "cancels itself", "overtaken", "gets stuck"):
                await jobs.enqueue(name, meta={"kept": True})
            await jobs.enqueue("handed back")
            withdrawn = await jobs.enqueue("withdrawn", delay=1000, unique_key="one")
            assert (await jobs.enqueue("withdrawn", unique_key="one")).duplicate
            await jobs.cancel(withdrawn.id)
            await jobs.pause_queue("quiet")
            await jobs.resume_queue("quiet")
            while any(row.state not in FINAL for row in await self._rows() if row.worker != EXTRA):
                await asyncio.sleep(1)
            assert jobs.telemetry is not None
            await jobs.telemetry.emit(LAST)  # told after all that was to be told before
        assert self.told == self.world.seen.events, "a sync handler hears what an async one does"
        return Story(self.told, self.runs, await self._rows())

    async def _overtake_it(self) -> None:
        """A tool ends a job that runs; its own end is stale."""
        await self._overtake.wait()
        (row,) = [row for row in await self._rows() if row.worker == "overtaken"]
        await self.world.store.apply([decide(row, Discarded(Failure("Tool", "ended by a tool")))])
        self._overtaken.set()

    async def _take_back_what_was_handed_back(self) -> None:
        """The neighbour knows the worker, so the job goes back; then it is known here too."""
        while ("handed back", JobState.scheduled) not in {(row.worker, row.state) for row in await self._rows()}:
            await asyncio.sleep(0.1)
        self._register(self.jobs, "handed back", lambda: "here after all")

    async def _rows(self) -> list[Job[Any]]:
        return await self.world.store.select(JobQuery(limit=1000))


# --- what a handler may do ---


class Hostile:
    """A handler that misbehaves on events of one type, or on all; `calls` are the times at which it did."""

    def __init__(self, fault: Fault, kind: str, on: type[Event]) -> None:
        self._fault = fault
        self._kind = kind
        self._on = on
        self.calls: list[float] = []
        self.telemetry = Telemetry()
        self.released = asyncio.Event()
        asyncio.get_running_loop().call_later(GUARD, self.released.set)
        self.jobs: Supervisor
        self.me: Callable[[Event], Any] = self._late if kind == "async" else self._at_once
        self.telemetry.attach(self.me)

    def _at_once(self, event: Event) -> Any:
        if isinstance(event, self._on) and not (isinstance(event, JobEvent) and event.job.worker == EXTRA):
            self.calls.append(now())
            return self._fault(self, event)
        return None

    async def _late(self, event: Event) -> Any:
        await asyncio.sleep(0)
        answer = self._at_once(event)
        return await answer if inspect.isawaitable(answer) else answer


Fault = Callable[[Hostile, Event], Coroutine[Any, Any, None] | None]


def raises(_me: Hostile, _event: Event) -> None:
    raise ValueError("broken")


def exits(_me: Hostile, _event: Event) -> None:
    raise SystemExit(3)


def interrupts(_me: Hostile, _event: Event) -> None:
    raise KeyboardInterrupt


def raises_a_cancellation(_me: Hostile, _event: Event) -> None:
    raise asyncio.CancelledError


def cancels_the_current_task(_me: Hostile, _event: Event) -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def hangs(me: Hostile, _event: Event) -> None:
    await me.released.wait()


async def swallows_a_cancellation_and_returns(me: Hostile, _event: Event) -> None:
    with suppress(asyncio.CancelledError):
        await me.released.wait()


async def swallows_a_cancellation_and_hangs(me: Hostile, _event: Event) -> None:
    with suppress(asyncio.CancelledError):
        await me.released.wait()
    await me.released.wait()


async def swallows_all_cancellations(me: Hostile, _event: Event) -> None:
    while not me.released.is_set():
        with suppress(asyncio.CancelledError):
            await me.released.wait()


def blocks(_me: Hostile, _event: Event) -> None:
    time.sleep(0.0005)


def tampers(_me: Hostile, event: Event) -> None:
    for name in ("at", "job", "queue", "type"):
        with suppress(AttributeError, TypeError):
            setattr(event, name, None)
        with suppress(AttributeError, TypeError):
            delattr(event, name)
    if isinstance(event, JobEvent):
        with suppress(AttributeError, TypeError):
            event.job.state = JobState.discarded  # type: ignore[misc]
        with suppress(AttributeError, TypeError):
            event.job.args["added"] = True
        with suppress(AttributeError, TypeError):
            event.job.meta["added"] = True


async def emits(me: Hostile, _event: Event) -> None:
    await me.telemetry.emit(PAUSED)


def attaches(me: Hostile, _event: Event) -> None:
    me.telemetry.attach(print)


def detaches_itself(me: Hostile, _event: Event) -> None:
    me.telemetry.detach(me.me)


def attaches_in_a_thread(me: Hostile, _event: Event) -> None:
    """Until the ninth is refused; then all leave again."""

    def ignore(_event: Event) -> None: ...

    def attach() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            while me.telemetry.attach(ignore):
                pass
        while me.telemetry.detach(ignore):
            pass

    thread = threading.Thread(target=attach)
    thread.start()
    thread.join()


async def enqueues(me: Hostile, _event: Event) -> None:
    await me.jobs.enqueue(EXTRA, queue="nobody runs it")


async def waits_for_its_job(me: Hostile, event: Event) -> None:
    if isinstance(event, JobEvent):
        await me.jobs.wait(event.job)


FAILING: list[Fault] = [
    raises,
    exits,
    interrupts,
    raises_a_cancellation,
    cancels_the_current_task,
    hangs,
    swallows_a_cancellation_and_returns,
    swallows_a_cancellation_and_hangs,
    swallows_all_cancellations,
    emits,
    attaches,
]
"""What counts as a failure, so that the circuit opens."""
FAULTS = [
    *FAILING,
    blocks,
    tampers,
    detaches_itself,
    attaches_in_a_thread,
    enqueues,
    waits_for_its_job,
]

faults = pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
failing = pytest.mark.parametrize("fault", FAILING, ids=lambda fault: fault.__name__)
kinds = pytest.mark.parametrize("kind", ["sync", "async"])


def play(fault: Fault | None = None, kind: str = "sync", on: type[Event] = Event) -> tuple[Story, Hostile]:
    """The whole life, with a handler that misbehaves attached first."""
    stories: list[tuple[Story, Hostile]] = []

    @virtual
    async def scenario(world: World) -> None:
        hostile = Hostile(fault or (lambda _me, _event: None), kind, on)
        life = Life(world, hostile.telemetry)
        hostile.jobs = life.jobs
        stories.append((await life.lead(), hostile))
        hostile.released.set()

    scenario()
    return stories[0]


@functools.cache
def undisturbed() -> Story:
    return play()[0]


def kinds_of_events() -> set[type[Event]]:
    """Those about a job or a queue."""
    found = {kind for kind in vars(events).values() if isinstance(kind, type) and "type" in vars(kind)}
    return {kind for kind in found if issubclass(kind, JobEvent | QueueEvent)}


def test_the_life_without_a_fault_has_every_event_a_job_or_a_queue_can_have() -> None:
    story = undisturbed()
    told = {event[0] if isinstance(event, tuple) else event for heard in story.heard.values() for event in heard}
    assert told == kinds_of_events()
    assert story.runs == Counter(completes=1, retried=2, snoozes=2, rescued=1, overtaken=1) + Counter(
        dict.fromkeys(("given up", "cancels itself", "gets stuck", "handed back"), 1)
    )


def disturb(fault: Fault, kind: str, on: type[Event]) -> None:
    """The whole life again, with a handler that misbehaves on such events: nothing else may be different."""
    expected = undisturbed()
    story, hostile = play(fault, kind, on)
    assert hostile.calls, on
    assert story.ends == expected.ends, on
    assert story.runs == expected.runs, on
    assert story.heard == expected.heard, on
    assert story.took <= expected.took + HANDLER_SECONDS * len(hostile.calls) + SLACK, on


@kinds
@faults
def test_f14_no_job_and_no_other_handler_notices_what_a_handler_does(fault: Fault, kind: str) -> None:
    """On every event, and on those alone that one part of the runtime tells of: each tells in a task of its own."""
    for on in (Event, JobEnqueued, JobStarted, JobCompleted, JobRescued, JobStuck):
        disturb(fault, kind, on)


@pytest.mark.soak
@kinds
@faults
def test_f14_nor_do_they_on_any_single_event(fault: Fault, kind: str) -> None:
    for on in sorted(kinds_of_events(), key=lambda kind: kind.type):
        disturb(fault, kind, on)


# --- the circuit ---


class Openings(logging.Handler):
    """When a circuit opened, as the log has it, and how many failures it tells of."""

    def __init__(self) -> None:
        super().__init__()
        self.at: list[float] = []
        self.failures = 0

    def emit(self, record: logging.LogRecord) -> None:
        if "left alone for 60 seconds" in record.getMessage():
            self.at.append(now())
        elif "failed on" in record.getMessage():
            self.failures += 1


@pytest.fixture
def openings() -> Iterator[Openings]:
    logger, openings = logging.getLogger("jobs_async.telemetry"), Openings()
    logger.addHandler(openings)
    yield openings
    logger.removeHandler(openings)


@kinds
@failing
def test_f14_a_handler_that_failed_three_times_in_a_row_is_left_alone_for_a_minute_and_then_tried_once(
    fault: Fault, kind: str, openings: Openings
) -> None:
    @virtual
    async def scenario(world: World) -> None:
        hostile = Hostile(fault, kind, Event)
        heard: list[Event] = []
        hostile.telemetry.attach(heard.append)
        emitted = 0
        while now() < 3 * REST:
            emitted += 1
            await hostile.telemetry.emit(PAUSED)
            await asyncio.sleep(1)
        hostile.released.set()
        assert len(heard) == emitted
        first, *later = openings.at
        assert openings.failures == FAILURES + len(later)
        assert first <= FAILURES * (HANDLER_SECONDS + 1)
        assert len([at for at in hostile.calls if at <= first]) <= FAILURES
        assert later
        for before, after in pairwise(openings.at):
            assert REST <= after - before <= REST + HANDLER_SECONDS + 1
            assert len([at for at in hostile.calls if before < at <= after]) <= 1

    scenario()


@virtual
async def test_f14_the_fourth_call_in_a_row_is_not_made(world: World) -> None:
    hostile = Hostile(raises, "sync", Event)
    for _ in range(10):
        await hostile.telemetry.emit(PAUSED)
    assert len(hostile.calls) == FAILURES


class Moody:
    """Fails as it is told to: one letter a call, `f` or `w` for one that works."""

    def __init__(self, moods: str) -> None:
        self._moods = iter(moods)
        self.called = 0

    def __call__(self, _event: Event) -> None:
        self.called += 1
        if next(self._moods) == "f":
            raise ValueError


@virtual
async def test_f14_a_success_in_between_resets_the_count(world: World) -> None:
    moody, telemetry = Moody("ffw" * 5), Telemetry()
    telemetry.attach(moody)
    for _ in range(15):
        await telemetry.emit(PAUSED)
    assert moody.called == 15


@virtual
async def test_f14_a_trial_that_works_closes_the_circuit_and_one_that_fails_opens_it_again(world: World) -> None:
    moody, telemetry = Moody("fff" + "f" + "w" + "ffw" + "fff"), Telemetry()
    telemetry.attach(moody)

    async def called_in_ten_events() -> int:
        before = moody.called
        for _ in range(10):
            await telemetry.emit(PAUSED)
        return moody.called - before

    assert await called_in_ten_events() == 3
    await asyncio.sleep(REST - 1)
    assert await called_in_ten_events() == 0
    await asyncio.sleep(1)
    assert await called_in_ten_events() == 1
    await asyncio.sleep(REST)
    assert await called_in_ten_events() == 1 + 3 + 3


@virtual
async def test_f14_each_handler_has_a_circuit_of_its_own(world: World) -> None:
    broken, healthy, telemetry = Moody("f" * 10), Moody("w" * 10), Telemetry()
    telemetry.attach(broken)
    telemetry.attach(healthy)
    for _ in range(10):
        await telemetry.emit(PAUSED)
    assert (broken.called, healthy.called) == (3, 10)


# --- a stop does not wait for them ---


class Store(MemoryStore):
    """One that is away for a while, or answers nothing any more."""

    away_until = 0.0
    frozen = False

    async def fetch(self, queue: str, limit: int, *, node: str | None) -> Any:
        await self._freeze()
        return await super().fetch(queue, limit, node=node)

    async def select(self, query: JobQuery) -> list[Job[Any]]:
        await self._freeze()
        return await super().select(query)

    async def apply(self, steps: Any) -> Any:
        await self._freeze()
        if now() < self.away_until:
            raise StoreBusy("away")
        return await super().apply(steps)

    async def beat(self, node: Node, ttl: float, *, join: bool = False) -> Any:
        await self._freeze()
        return await super().beat(node, ttl, join=join)

    async def _freeze(self) -> None:
        if self.frozen:
            await asyncio.Event().wait()


GRACE = 30.0
AFTER_GRACE = 6.0
"""Seconds a stop may take beyond its grace, whatever happens."""


class Ending:
    """A Supervisor whose jobs end by and by while it stops."""

    def __init__(self, world: World, ends: list[float]) -> None:
        self.store = Store(clock=world.clock)
        self.telemetry = Telemetry()
        self.heard: list[Event] = []
        self._world = world
        self._ends = ends
        queues = {"default": len(ends)}
        self.jobs = world.supervisor(self.store, queues=queues, telemetry=self.telemetry, shutdown_timeout=GRACE)
        self.jobs.register_worker("work", self._work)

    async def _work(self, after: float, _ctx: object) -> None:
        await asyncio.sleep(after)

    async def begin(self, handler: Callable[[Event], Any]) -> None:
        """Let all jobs start; from then on `handler` is told first."""
        await self.jobs.start()
        for after in self._ends:
            await self.jobs.enqueue("work", after, timeout_seconds=None)
        await self._world.seen.wait(JobStarted, count=len(self._ends))
        self.telemetry.detach(self._world.seen)
        self.telemetry.attach(handler)
        self.telemetry.attach(self.heard.append)

    async def stop(self) -> tuple[ShutdownReport, float]:
        began = now()
        return await self.jobs.stop(), now() - began

    async def states(self) -> set[JobState]:
        return {state for _, state in await self.store.tally()}


def dropped(caplog: pytest.LogCaptureFixture) -> list[int]:
    """The numbers of dropped events that the log speaks of."""
    said = [re.match(r"(\d+) events were not told of", record.getMessage()) for record in caplog.records]
    return [int(match[1]) for match in said if match]


@pytest.mark.parametrize("last", [1.0, 20.0, 29.5, 1000.0])
def test_f14_a_stop_lets_a_slow_handler_miss_events_but_loses_no_job(
    last: float, caplog: pytest.LogCaptureFixture
) -> None:
    @virtual
    async def scenario(world: World) -> None:
        ending = Ending(world, [last * n / 20 for n in range(1, 21)])

        async def slow(_event: Event) -> None:
            await asyncio.sleep(4)

        await ending.begin(slow)
        report, took = await ending.stop()
        assert report.is_clean
        assert took <= GRACE + AFTER_GRACE
        assert await ending.states() <= {JobState.completed, JobState.available}
        told = [event for event in ending.heard if isinstance(event, JobCompleted | JobInterrupted)]
        assert len(told) < 20
        assert dropped(caplog) == [20 - len(told)]

    scenario()


@pytest.mark.parametrize("away", [0.0, 15.0])
def test_f14_a_stop_drops_no_event_where_handlers_are_quick(away: float, caplog: pytest.LogCaptureFixture) -> None:
    @virtual
    async def scenario(world: World) -> None:
        ending = Ending(world, [n / 20 for n in range(1, 201)])

        async def quick(_event: Event) -> None:
            await asyncio.sleep(0.001)

        await ending.begin(quick)
        ending.store.away_until = now() + away
        report, _ = await ending.stop()
        assert report.is_clean
        assert len([event for event in ending.heard if isinstance(event, JobCompleted)]) == 200
        assert dropped(caplog) == []

    scenario()


HANGING: list[Fault] = [
    hangs,
    swallows_a_cancellation_and_returns,
    swallows_a_cancellation_and_hangs,
    swallows_all_cancellations,
]


@pytest.mark.parametrize("last", [1.0, 1000.0])
@pytest.mark.parametrize("frozen", [False, True], ids=["store works", "store frozen"])
@pytest.mark.parametrize("fault", HANGING, ids=lambda fault: fault.__name__)
def test_f14_a_stop_is_bounded_whatever_hangs(fault: Fault, frozen: bool, last: float) -> None:
    @virtual
    async def scenario(world: World) -> None:
        ending = Ending(world, [last * n / 20 for n in range(1, 21)])
        hostile = Hostile(fault, "async", Event)
        await ending.begin(hostile.me)
        ending.store.frozen = frozen
        report, took = await ending.stop()
        hostile.released.set()
        assert took <= GRACE + AFTER_GRACE
        if not frozen:
            assert report.is_clean
            assert await ending.states() <= {JobState.completed, JobState.available}

    scenario()
