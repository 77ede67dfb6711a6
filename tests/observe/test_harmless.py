"""Whatever becomes of what is behind an observer of ours: no job notices, and no other handler does."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast

import pytest
import structlog
from opentelemetry.metrics import NoOpMeter, NoOpMeterProvider
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from jobs_async import (
    ActivityLog,
    Cancel,
    ConstantBackoff,
    Discard,
    Event,
    Instrument,
    Job,
    JobCancelled,
    JobCompleted,
    JobContext,
    JobDiscarded,
    JobEnqueued,
    JobEvent,
    JobFailed,
    JobQuery,
    JobSnoozed,
    JobStarted,
    JobState,
    LoggingHandler,
    MemoryStore,
    QueueHandler,
    QueuePaused,
    Snooze,
    StatsHandler,
    Supervisor,
    Telemetry,
)
from jobs_async.core.job import FINAL
from jobs_async.inprocess import JobObserver, NoopObserver, ObservedJobRunner
from jobs_async.observe import Gauges, Observability, ObservedStore
from jobs_async.observe.calls import CallObserver
from jobs_async.observe.captured import CapturedLogs
from jobs_async.observe.logs import LogContext
from jobs_async.observe.metrics import Metrics
from jobs_async.observe.tracing import Tracing
from jobs_async.telemetry import Handler, background
from jobs_async.testing.loop import BEGINNING, LoopClock, VirtualTimeLoop
from tests.runtime.support import World, now, virtual

GUARD = 5000.0
"""Virtual seconds after which a job is taken for lost."""
STOP_SECONDS = 6.0
"""How long a stop may take that has no job to wait for, whatever hangs."""
EXTRA = "extra"
"""What a fault enqueues for itself; it does not count."""

log = logging.getLogger("tests.harmless")


# --- sixty jobs, and what is to become of each ---

ENDINGS: dict[str, list[type[Event]]] = {
    "completes": [JobEnqueued, JobStarted, JobCompleted],
    "retried": [JobEnqueued, JobStarted, JobFailed, JobStarted, JobCompleted],
    "given up": [JobEnqueued, JobStarted, JobDiscarded],
    "cancels itself": [JobEnqueued, JobStarted, JobCancelled],
    "snoozes": [JobEnqueued, JobStarted, JobSnoozed, JobStarted, JobCompleted],
}
"""The workers, and what a handler is told of each of their jobs."""
STATES = {"given up": JobState.discarded, "cancels itself": JobState.cancelled}
EACH = 12


@dataclass
class Task:
    """What a job does, as a job for an ObservedJobRunner too."""

    name: str
    run_number: int

    async def run(self) -> str:
        log.info("%s runs", self.name)
        await asyncio.sleep(0.01)
        match self.name, self.run_number:
            case "retried", 1:
                raise ValueError("not yet")
            case "snoozes", 1:
                raise Snooze(2)
            case "given up", _:
                raise Discard("no use")
            case "cancels itself", _:
                raise Cancel("no need")
            case _:
                return "done"


class Shop:
    """One Supervisor with observers in all their places, and a plain handler before and behind them."""

    def __init__(self, world: World, placed: Placed) -> None:
        self._placed = placed
        self.first: list[Event] = []
        self.last = world.seen
        self.runs: Counter[int] = Counter()
        self.claims: Counter[tuple[int, int]] = Counter()
        self.telemetry = Telemetry(max_handlers=None)
        for handler in (self.first.append, *placed.handlers):
            self.telemetry.attach(handler)
        self.jobs = world.supervisor(
            ObservedStore(world.store, *placed.store_observers),
            telemetry=self.telemetry,
            instruments=placed.instruments,
            queues={"default": 20},
        )
        self._runner = ObservedJobRunner(placed.job_observer)
        for name in ENDINGS:
            self.jobs.register_worker(name, self._run, retry_strategy=ConstantBackoff(1))

    async def _run(self, _args: object, ctx: JobContext) -> str:
        self.runs[ctx.job.id] += 1
        self.claims[ctx.job.id, ctx.job.claim] += 1
        return await self._runner.run_async(Task(ctx.job.worker, self.runs[ctx.job.id]))

    async def trade(self) -> float:
        """Sixty jobs, to their ends; returns how many seconds the stop took."""
        async with AsyncExitStack() as stack, asyncio.timeout(GUARD):
            await self.jobs.start()
            for make in self._placed.gauges:
                await stack.enter_async_context(make(self.jobs))
            for _ in range(EACH):
                for name in ENDINGS:
                    await self.jobs.enqueue(name)
            while not await self._is_over():
                await asyncio.sleep(1)
            began = now()
            report = await self.jobs.stop()
            assert report.is_clean
            return now() - began

    async def _is_over(self) -> bool:
        rows = await self.rows(JobQuery(limit=1000))
        return all(row.state in FINAL for row in rows)

    async def rows(self, query: JobQuery) -> list[Job[Any]]:
        inner = cast("ObservedStore", self.jobs.store).inner
        return [row for row in await inner.select(query) if row.worker != EXTRA]

    async def check(self) -> None:
        """None is lost, none ran twice, and whoever listens has heard all of it, in its order."""
        async with self.jobs.store:
            rows = await self.rows(JobQuery(limit=1000))
        assert Counter(row.worker for row in rows) == dict.fromkeys(ENDINGS, EACH)
        assert {row.worker: row.state for row in rows} == {**dict.fromkeys(ENDINGS, JobState.completed), **STATES}
        assert self.runs == {row.id: ENDINGS[row.worker].count(JobStarted) for row in rows}
        assert set(self.claims.values()) == {1}
        expected = {row.id: ENDINGS[row.worker] for row in rows}
        assert heard(self.first) == expected
        assert heard(self.last.events) == expected


def heard(events: list[Event]) -> dict[int, list[type[Event]]]:
    """What was told of each job."""
    told: dict[int, list[type[Event]]] = {}
    for event in events:
        if isinstance(event, JobEvent) and event.job.worker != EXTRA:
            told.setdefault(event.job.id, []).append(type(event))
    return told


# --- what is behind an observer, and what may be wrong with it ---


class Behind:
    """What an observer hands things on to. `met` says how often it was called."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self.met = 0
        self.shop: Shop | None = None
        self.released, self.released_threads = asyncio.Event(), threading.Event()
        self.tasks: set[asyncio.Task[Any]] = set()

    def __call__(self, *given: Any, **_more: Any) -> Any:
        """From the event loop, by who cannot await."""
        if not any(isinstance(one, JobEvent) and one.job.worker == EXTRA for one in given):
            self.met += 1
            self._fault.sync(self, *given)

    async def later(self, *given: Any) -> None:
        """From the event loop, by who can."""
        self.met += 1
        if self._fault is hangs:
            await self.released.wait()
        elif self._fault is slow:
            await asyncio.sleep(0.5)
        else:
            self._fault.sync(self, *given)

    def in_a_thread(self, event: Event) -> None:
        """From another thread."""
        self.met += 1
        if self._fault is hangs:
            self.released_threads.wait(30)
        elif self._fault is slow:
            self.released_threads.wait(0.002)
        elif self._fault is not re_enters:
            self._fault.sync(self, event)
        elif self.met <= EACH and self.shop is not None:
            self.shop.telemetry.deliver_urgently(PAUSED)

    def release(self) -> None:
        self.released.set()
        self.released_threads.set()


@dataclass(frozen=True, eq=False)
class Fault:
    name: str
    sync: Callable[..., None]


PAUSED = QueuePaused("own", at=BEGINNING)


def _block(seconds: float) -> None:
    """As long as this the event loop stands still, in its own time."""
    cast("VirtualTimeLoop", asyncio.get_running_loop()).leap(seconds)


def _raise(*_given: object) -> NoReturn:
    raise OSError("gone")


def _tamper(_me: Behind, *given: Any) -> None:
    """Write to whatever there is to write to."""
    for one in (*given, *(event.job for event in given if isinstance(event, JobEvent))):
        for name in ("at", "job", "type", "operation", "state", "args", "meta", "claim", "id", "name"):
            with suppress(AttributeError, TypeError):
                setattr(one, name, None)
            with suppress(AttributeError, TypeError):
                delattr(one, name)
        for container in (one, getattr(one, "meta", None), getattr(one, "args", None)):
            if isinstance(container, dict | list):
                container.clear()


def _re_enter(me: Behind, *_given: object) -> None:
    """Enqueue a job and emit an event, from within: a few times, for each causes more of the same."""
    if me.met <= EACH and me.shop is not None:
        loop = asyncio.get_running_loop()
        for work in (me.shop.jobs.enqueue(EXTRA, queue="nobody runs it", delay=GUARD), me.shop.telemetry.emit(PAUSED)):
            task = loop.create_task(work)
            me.tasks.add(task)


works = Fault("works", lambda *_: None)
raises = Fault("raises", _raise)
hangs = Fault("hangs", lambda *_: _block(0.5))
tampers = Fault("tampers", _tamper)
re_enters = Fault("re-enters", _re_enter)
slow = Fault("slow", lambda *_: _block(0.02))


# --- every observer there is, in its place, with something behind it ---


@dataclass
class Placed:
    handlers: list[Handler] = field(default_factory=list)
    instruments: list[Instrument] = field(default_factory=list)
    store_observers: list[CallObserver] = field(default_factory=list)
    gauges: list[Callable[[Supervisor], Gauges]] = field(default_factory=list)
    job_observer: JobObserver = field(default_factory=NoopObserver)

    def twice(self) -> Placed:
        lists = (self.handlers, self.instruments, self.store_observers, self.gauges)
        return Placed(*(one * 2 for one in lists), job_observer=self.job_observer)  # type: ignore[operator]


def on(observability: Observability) -> Metrics:
    assert observability.metrics is not None
    return observability.metrics


class Lock:
    """Of metrics: what counts an event takes it."""

    def __init__(self, behind: Behind) -> None:
        self.__enter__ = behind
        self._behind = behind

    def __enter__(self) -> None:
        self._behind()

    def __exit__(self, *_exc: object) -> None: ...
