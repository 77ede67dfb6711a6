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
from msgspec import defstruct
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
STOP_SECONDS = 2.0
"""How long a stop may take that has no job to wait for: a second for those who hold events back, and what it is itself
held up by those who block the loop.
"""
THREAD_SECONDS = 30.0
"""Seconds after which a thread that hangs gives up, should nobody release it."""
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
        self._store = world.store
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
        async with asyncio.timeout(GUARD), AsyncExitStack() as stack:
            await self.jobs.start()
            for make in self._placed.gauges:
                await stack.enter_async_context(make(self.jobs))
            for name in EACH * list(ENDINGS):
                await self.jobs.enqueue(name)
            while any(row.state not in FINAL for row in await self._rows()):
                await asyncio.sleep(1)
            began = now()
            assert (await self.jobs.stop()).is_clean
        return now() - began

    async def _rows(self) -> list[Job[Any]]:
        return [row for row in await self._store.select(JobQuery(limit=1000)) if row.worker != EXTRA]

    async def check(self) -> None:
        """None is lost, none ran twice, and whoever listens has heard all of it, in its order."""
        rows = await self._rows()
        assert Counter((row.worker, row.state) for row in rows) == {
            (name, STATES.get(name, JobState.completed)): EACH for name in ENDINGS
        }
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
        self._released, self._released_threads = asyncio.Event(), threading.Event()
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
            await self._released.wait()
        elif self._fault is slow:
            await asyncio.sleep(0.5)
        else:
            self._fault.sync(self, *given)

    def in_a_thread(self, event: Event) -> None:
        """From another thread."""
        self.met += 1
        if self._fault is hangs:
            self._released_threads.wait(THREAD_SECONDS)
        elif self._fault is slow:
            self._released_threads.wait(0.002)
        elif self._fault is not re_enters:
            self._fault.sync(self, event)
        elif self.met <= EACH and self.shop is not None:
            self.shop.telemetry.deliver_urgently(PAUSED)

    async def release(self) -> None:
        """What hangs answers at last, and what it has caused comes to its end."""
        self._released.set()
        self._released_threads.set()
        await asyncio.gather(*self.tasks)
        if self.shop is not None:
            await self.shop.telemetry.flush()


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
        me.tasks.add(loop.create_task(me.shop.jobs.enqueue(EXTRA, queue="nobody runs it")))
        me.tasks.add(loop.create_task(me.shop.telemetry.emit(PAUSED)))


works = Fault("works", lambda *_: None)
raises = Fault("raises", _raise)
hangs = Fault("hangs", lambda *_: _block(0.5))
tampers = Fault("tampers", _tamper)
re_enters = Fault("re-enters", _re_enter)
slow = Fault("slow", lambda *_: _block(0.02))


# --- every observer there is, in its place, with something behind it ---


@dataclass
class Placed:
    """Observers in their places."""

    handlers: list[Handler] = field(default_factory=list)
    instruments: list[Instrument] = field(default_factory=list)
    store_observers: list[CallObserver] = field(default_factory=list)
    gauges: list[Callable[[Supervisor], Gauges]] = field(default_factory=list)
    job_observer: JobObserver = field(default_factory=NoopObserver)

    def twice(self) -> Placed:
        """Each of them once more, behind the first; of an observer of runs there is one alone."""
        return Placed(
            self.handlers * 2, self.instruments * 2, self.store_observers * 2, self.gauges * 2, self.job_observer
        )


Place = Callable[[Behind, pytest.MonkeyPatch], Placed]


def measured() -> tuple[Observability, Metrics]:
    observability = Observability("shop").prometheus()
    assert observability.metrics is not None
    return observability, observability.metrics


def prometheus(behind: Behind, monkeypatch: pytest.MonkeyPatch) -> Placed:
    """Behind it is memory; that can only be had by its lock, which each event takes."""

    class Lock:
        def __enter__(self) -> None:
            behind()

        def __exit__(self, *_exc: object) -> None: ...

    handler: Any = measured()[0].telemetry_handler()
    monkeypatch.setattr(handler, "_lock", Lock())
    return Placed(handlers=[handler])


def store_observer(behind: Behind, monkeypatch: pytest.MonkeyPatch) -> Placed:
    observability, metrics = measured()
    monkeypatch.setattr(metrics.operations, "add", behind)
    return Placed(store_observers=[observability.store_observer()])


def job_observer(behind: Behind, monkeypatch: pytest.MonkeyPatch) -> Placed:
    observability, metrics = measured()
    monkeypatch.setattr(metrics.runs_started, "add", behind)
    monkeypatch.setattr(metrics.runs_finished, "add", behind)
    return Placed(job_observer=observability.job_observer())


def gauges(behind: Behind, _monkeypatch: pytest.MonkeyPatch) -> Placed:
    """Behind them is the store, as they alone see it."""

    class Asked(ObservedStore):
        async def nodes(self) -> Any:
            await behind.later()
            return await super().nodes()

    class Watched:
        def __init__(self, jobs: Supervisor) -> None:
            self.store, self.clock = Asked(jobs.store), jobs.clock
            self._jobs = jobs

        @property
        def node(self) -> str | None:
            return self._jobs.node

    observability, _ = measured()
    return Placed(gauges=[lambda jobs: Gauges(Watched(jobs), observability, interval=1)])


def tracing(behind: Behind, _monkeypatch: pytest.MonkeyPatch) -> Placed:
    """Behind it are processors of spans and instruments of a meter."""

    class Processor(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            behind(span)

        def on_end(self, span: Any) -> None:
            behind(span)

    class Number:
        add = record = staticmethod(behind)

    class Meter(NoOpMeter):
        def create_counter(self, *_given: Any, **_more: Any) -> Any:
            return Number()

        create_histogram = create_counter

    class Meters(NoOpMeterProvider):
        def get_meter(self, *_given: Any, **_more: Any) -> Any:
            return Meter("shop")

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Processor())
    one = Tracing(provider, Meters())
    return Placed(handlers=[one.telemetry_handler()], instruments=[one])


def log_context(behind: Behind, monkeypatch: pytest.MonkeyPatch) -> Placed:
    @contextmanager
    def bound(**fields: object) -> Iterator[None]:
        behind(fields)
        yield
        behind(fields)

    monkeypatch.setattr(structlog.contextvars, "bound_contextvars", bound)
    return Placed(instruments=[LogContext()])


def captured_logs(behind: Behind, _monkeypatch: pytest.MonkeyPatch) -> Placed:
    class Records(MemoryStore):
        async def put_records(self, records: Any, *, only_new: bool = False) -> list[bool]:
            await behind.later(*records)
            return await super().put_records(records, only_new=only_new)

    captured = CapturedLogs(Records(clock=LoopClock()), logger=log.name)
    return Placed(handlers=[captured], instruments=[captured])


def queue_handler(behind: Behind, _monkeypatch: pytest.MonkeyPatch) -> Placed:
    return Placed(handlers=[QueueHandler(behind.later)])


def queue_handler_with_a_thread(behind: Behind, monkeypatch: pytest.MonkeyPatch) -> Placed:
    monkeypatch.setattr(background, "LINGER", 0.01)
    return Placed(handlers=[QueueHandler(behind.in_a_thread)])


def logging_handler(behind: Behind, monkeypatch: pytest.MonkeyPatch) -> Placed:
    class Output(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            behind(record)

    logger = log.getChild("events")
    monkeypatch.setattr(logger, "handlers", [Output()])
    monkeypatch.setattr(logger, "propagate", False)
    return Placed(handlers=[LoggingHandler(logger)])


def stats_handler(behind: Behind, _monkeypatch: pytest.MonkeyPatch) -> Placed:
    """Behind it are its counts."""

    class Count(int):
        def __add__(self, _other: object) -> Count:
            behind()
            return self

    return Placed(handlers=[StatsHandler(Count(), Count(), Count(), Count())])


def activity_log(behind: Behind, _monkeypatch: pytest.MonkeyPatch) -> Placed:
    return Placed(handlers=[ActivityLog(line=behind)])


OBSERVERS: list[Place] = [
    prometheus,
    store_observer,
    job_observer,
    gauges,
    tracing,
    log_context,
    captured_logs,
    queue_handler,
    queue_handler_with_a_thread,
    logging_handler,
    stats_handler,
    activity_log,
]

observers = pytest.mark.parametrize("place", OBSERVERS, ids=lambda place: place.__name__)


@pytest.fixture(autouse=True)
def leave_logging_as_it_was(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nor does anybody write down the many failures that the runtime tells of: that would take most of the time."""
    caplog.set_level(logging.CRITICAL, "jobs_async")
    log.setLevel(logging.INFO)
    log.propagate = False
    yield
    log.setLevel(logging.NOTSET)
    log.propagate = True
    log.handlers.clear()


@pytest.fixture
def trade(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sixty jobs under one observer that has something behind it."""

    def run(place: Place, fault: Fault, *, twice: bool = False) -> None:
        @virtual
        async def scenario(world: World) -> None:
            behind = Behind(fault)
            placed = place(behind, monkeypatch)
            behind.shop = shop = Shop(world, placed.twice() if twice else placed)
            took = await shop.trade()
            await behind.release()
            await shop.check()
            assert behind.met > (fault is raises), "a fault is met, and after a failure it is tried again"
            assert took <= STOP_SECONDS

        before = set(threading.enumerate())
        scenario()
        for thread in set(threading.enumerate()) - before:
            thread.join(THREAD_SECONDS)
            assert not thread.is_alive(), "a thread is left"

    return run


@pytest.mark.parametrize("fault", [works, raises, hangs, tampers, re_enters, slow], ids=lambda fault: fault.name)
@observers
def test_f14_no_job_notices_what_becomes_of_what_is_behind_an_observer(
    place: Place, fault: Fault, trade: Callable[..., None]
) -> None:
    trade(place, fault)


@pytest.mark.parametrize("fault", [works, raises], ids=lambda fault: fault.name)
@observers
def test_f14_nor_that_it_is_attached_twice(place: Place, fault: Fault, trade: Callable[..., None]) -> None:
    trade(place, fault, twice=True)


# --- nobody listens ---


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The types of all events that are made, wherever the package makes one."""
    made: list[str] = []

    def counting(kind: type[Event]) -> type[Event]:
        members = {"__post_init__": lambda self: made.append(self.type), "__module__": kind.__module__}
        return cast(
            "type[Event]", defstruct(kind.__name__, [], bases=(kind,), namespace=members, frozen=True, kw_only=True)
        )

    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "jobs_async"]:
        for name, kind in list(vars(module).items()):
            if isinstance(kind, type) and issubclass(kind, Event):
                monkeypatch.setattr(module, name, counting(kind))
    return made


async def work_off(world: World, telemetry: Telemetry | None) -> None:
    """Fifty jobs of all endings."""
    jobs = Supervisor(world.store, telemetry=telemetry, clock=world.clock, max_stall=None)

    async def run(_args: object, ctx: JobContext) -> str:
        return await Task(ctx.job.worker, ctx.job.claim).run()

    for name in ENDINGS:
        jobs.register_worker(name, run, retry_strategy=ConstantBackoff(1))
    async with jobs, asyncio.timeout(GUARD):
        for name in 10 * list(ENDINGS):
            await jobs.enqueue(name)
        while any(state not in FINAL for _, state in await world.store.tally()):
            await asyncio.sleep(1)


@pytest.fixture
def deliveries(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every time that a Telemetry is given something to deliver."""
    seen: list[object] = []
    deliver = Telemetry.deliver

    async def counted(self: Telemetry, events: Any, **options: Any) -> None:
        seen.append(events)
        await deliver(self, events, **options)

    monkeypatch.setattr(Telemetry, "deliver", counted)
    return seen


@pytest.mark.parametrize("telemetry", [None, Telemetry], ids=["no Telemetry", "a handler that has gone"])
def test_where_nobody_listens_no_event_is_built_and_nothing_is_called(
    telemetry: Callable[[], Telemetry] | None, built: list[str], deliveries: list[object]
) -> None:
    told: list[Event] = []
    deaf = telemetry() if telemetry is not None else None
    if deaf is not None:
        deaf.attach(told.append)
        deaf.detach(told.append)
    virtual(lambda world: work_off(world, deaf))()
    assert (built, deliveries, told) == ([], [], [])


def test_where_somebody_listens_every_event_is_built_once(built: list[str], deliveries: list[object]) -> None:
    """What is counted above would have been seen."""
    telemetry, told = Telemetry(), list[str]()
    telemetry.attach(lambda event: told.append(event.type))
    virtual(lambda world: work_off(world, telemetry))()
    assert Counter(built) == Counter(told)
    assert len(told) == 10 * sum(map(len, ENDINGS.values()))
    assert deliveries
