"""Telling handlers what happened: in attach order, one event at a time, awaited (zzz_jobs: telemetry).

Events are delivered after the write they tell of is durable, outside any transaction. A handler that fails is logged
and does no harm to the next.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import warnings
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field

from jobs_async.core.errors import TelemetryError
from jobs_async.core.events import (
    Event,
    JobCompleted,
    JobDiscarded,
    JobDuplicate,
    JobEnqueued,
    JobEvent,
    JobFailed,
    JobInterrupted,
    JobRescued,
    JobResult,
    QueueEvent,
)

Handler = Callable[[Event], Awaitable[object] | object]

MAX_NESTING = 4
"""How deep events may go that handlers cause by what they do; deeper ones are dropped with a warning."""

HANDLER_SECONDS = 5.0
"""How long an async handler may take for one event before it is cut."""

logger = logging.getLogger("jobs_async.telemetry")


@dataclass(slots=True, eq=False)
class _Delivery:
    """One event on its way. Tasks that a handler spawns inherit it, so it says itself when it is over."""

    owner: Telemetry
    depth: int
    active: bool = True
    caused: list[Event] = field(default_factory=list[Event])


_current: ContextVar[_Delivery | None] = ContextVar("jobs_async_delivery", default=None)


class Telemetry:
    """A list of handlers, at most `max_handlers`. Give one to a Supervisor, or several Supervisors.

    A handler is a sync or async callable that takes an event. It is awaited before the next one, so keep it quick; an
    async one is cut after 5 seconds.
    """

    def __init__(self, max_handlers: int | None = 8) -> None:
        self._max = max_handlers
        self._handlers: tuple[Handler, ...] = ()
        self._changing = threading.Lock()
        self._lock = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_watched(self) -> bool:
        """Whether anybody listens; where not, no event is ever built."""
        return bool(self._handlers)

    def attach(self, handler: Handler) -> bool:
        """Add a handler behind the others; callable at any time, from any thread. The same one twice is called twice.

        Returns False, with a warning, where `max_handlers` are attached.

        Raises:
            TelemetryError: called from inside a handler of this Telemetry.
        """
        self._refuse_reentry("attach")
        with self._changing:
            if self._max is not None and len(self._handlers) >= self._max:
                warnings.warn(
                    f"{self._max} telemetry handlers are attached, one more was refused; raise max_handlers",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return False
            self._handlers = (*self._handlers, handler)
        return True

    def detach(self, handler: Handler) -> bool:
        """Remove a handler where it was attached last; False if it was not attached."""
        with self._changing:
            kept = list(self._handlers)
            for index in range(len(kept) - 1, -1, -1):
                if kept[index] == handler:
                    del kept[index]
                    self._handlers = tuple(kept)
                    return True
        return False

    async def emit(self, event: Event) -> None:
        """Deliver an event of your own to every handler, and come back when all have had it.

        Raises:
            TelemetryError: called from inside a handler of this Telemetry, where it would wait for itself.
        """
        self._refuse_reentry("emit")
        await self.deliver([event])

    async def deliver(self, events: Sequence[Event]) -> None:
        """As `emit`, for the runtime: what a handler causes by its own doing is delivered after the current event."""
        delivery = _current.get()
        if delivery is not None and delivery.active and delivery.owner is self:
            delivery.caused.extend(events)
            return
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            self._loop, self._lock = loop, asyncio.Lock()
        async with self._lock:
            for event in events:
                await self._pass_on(event, 0)

    async def _pass_on(self, event: Event, depth: int) -> None:
        delivery = _Delivery(self, depth)
        token = _current.set(delivery)
        try:
            for handler in self._handlers:
                await _call(handler, event)
        finally:
            delivery.active = False
            _current.reset(token)
        if delivery.caused and depth >= MAX_NESTING:
            logger.warning("telemetry handlers caused events of their own %d deep; the last were dropped", depth)
            return
        for caused in delivery.caused:
            await self._pass_on(caused, depth + 1)

    def _refuse_reentry(self, verb: str) -> None:
        delivery = _current.get()
        if delivery is not None and delivery.active and delivery.owner is self:
            raise TelemetryError(f"{verb} was called from inside a telemetry handler; do it in a task of its own")


async def _call(handler: Handler, event: Event) -> None:
    """One handler, one event; only our own cancellation gets past."""
    try:
        answer = handler(event)
        if inspect.isawaitable(answer):
            async with asyncio.timeout(HANDLER_SECONDS):
                await answer
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        logger.exception("telemetry handler %r cancelled itself on %s", handler, event.type)
    except BaseException:
        logger.exception("telemetry handler %r failed on %s", handler, event.type)


@dataclass(slots=True)
class StatsHandler:
    """Counts, kept in memory; attach one and read it at any time (zzz_jobs: tracking job statistics)."""

    enqueued: int = 0
    completed: int = 0
    failed: int = 0
    discarded: int = 0
    total_duration_ms: int = 0

    def __call__(self, event: Event) -> None:
        match event:
            case JobEnqueued():
                self.enqueued += 1
            case JobCompleted():
                self.completed += 1
                self.total_duration_ms += event.duration_ms
            case JobFailed():
                self.failed += 1
            case JobDiscarded():
                self.discarded += 1
            case _:
                pass

    @property
    def mean_duration_ms(self) -> float:
        """Milliseconds a completed run took on average; 0 before the first."""
        return self.total_duration_ms / self.completed if self.completed else 0.0


class LoggingHandler:
    """One log line an event, without arguments or keys; failures as warnings, discards as errors."""

    def __init__(self, log: logging.Logger | None = None) -> None:
        self._log = log or logging.getLogger("jobs_async.events")

    def __call__(self, event: Event) -> None:
        level = _LEVELS.get(type(event), logging.INFO)
        if self._log.isEnabledFor(level):
            self._log.log(level, "%s", describe(event))


_LEVELS: dict[type[Event], int] = {
    JobFailed: logging.WARNING,
    JobRescued: logging.WARNING,
    JobInterrupted: logging.WARNING,
    JobDiscarded: logging.ERROR,
    JobDuplicate: logging.DEBUG,
}


def describe(event: Event) -> str:
    """An event in one line, for logs and activity views."""
    what = event.type.partition("_")[2]
    match event:
        case JobResult(job=job) if event.error_msg:
            first = event.error_msg.splitlines()[0]
            return f"{what}: {job.worker} #{job.id} attempt {job.attempt}/{job.max_attempts} - {first}"
        case JobResult(job=job):
            return f"{what}: {job.worker} #{job.id} in {event.duration_ms} ms"
        case JobEvent(job=job):
            return f"{what}: {job.worker} #{job.id} ({job.queue})"
        case QueueEvent(queue=queue):
            return f"{what}: queue {queue}"
        case _:
            return event.type
