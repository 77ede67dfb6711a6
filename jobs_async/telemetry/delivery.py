"""A list of handlers and how they are called: in attach order, one event at a time, awaited.

Events are delivered after the write they tell of is durable, outside any transaction. A handler that fails is logged,
left alone for a while when it keeps failing, and does no harm to the next.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import warnings
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobs_async.core.errors import TelemetryError
from jobs_async.telemetry.breaker import REST, Breaker
from jobs_async.telemetry.cutter import Cut, Cutter

if TYPE_CHECKING:
    from jobs_async.core.events import Event

Handler = Callable[["Event"], Awaitable[object] | object]

MAX_NESTING = 4
"""How deep events may go that handlers cause by what they do; deeper ones are dropped with a warning."""

logger = logging.getLogger("jobs_async.telemetry")


@dataclass(slots=True, eq=False)
class _Attached:
    """A handler in its place, and how it has been doing."""

    call: Handler
    breaker: Breaker = field(default_factory=Breaker)
    cut: asyncio.Task[Any] | None = None
    """Where it was cut last; it may not have heeded that."""

    @property
    def any_thread(self) -> bool:
        return getattr(self.call, "any_thread", False) is True


@dataclass(slots=True, eq=False)
class _Delivery:
    """One event on its way. Tasks that a handler spawns inherit it, so it says itself when it is over."""

    owner: Telemetry
    depth: int
    active: bool = True
    caused: list[Event] = field(default_factory=list["Event"])


_current: ContextVar[_Delivery | None] = ContextVar("jobs_async_delivery", default=None)


class Telemetry:
    """A list of handlers, at most `max_handlers`. Give one to a Supervisor, or several Supervisors.

    Those of one event loop tell their events one at a time; those of two, each for itself.

    A handler is a sync or async callable that takes an event. It is awaited before the next one, so keep it quick, or
    put a QueueHandler before it. An async one is cut after 5 seconds; one that fails or is cut three times in a row is
    left alone for 60 seconds. A handler with an attribute `any_thread = True` says that it may be called from any
    thread; it then hears of a blocked event loop while it is blocked.
    """

    def __init__(self, max_handlers: int | None = 8) -> None:
        self._max = max_handlers
        self._handlers: tuple[_Attached, ...] = ()
        self._changing = threading.Lock()
        self._loops: dict[asyncio.AbstractEventLoop, tuple[Cutter, asyncio.Lock]] = {}
        self._calling: tuple[Handler, asyncio.Task[Any] | None, Cutter] | None = None

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
            self._handlers = (*self._handlers, _Attached(handler))
        return True

    def detach(self, handler: Handler) -> bool:
        """Remove a handler where it was attached last; False if it was not attached."""
        with self._changing:
            kept = list(self._handlers)
            for index in range(len(kept) - 1, -1, -1):
                if kept[index].call == handler:
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

    async def deliver(self, events: Iterable[Event], *, told_urgently: bool = False) -> None:
        """As `emit`, for the runtime: what a handler causes by its own doing is delivered after the current event.

        `told_urgently` leaves out those that `deliver_urgently` has reached.
        """
        delivery = _current.get()
        if delivery is not None and delivery.active and delivery.owner is self:
            delivery.caused.extend(events)
            return
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            self._loops = {known: pair for known, pair in self._loops.items() if not known.is_closed()}
            self._loops[loop] = Cutter(loop), asyncio.Lock()
        cutter, lock = self._loops[loop]
        async with lock:
            for event in events:
                await self._pass_on(event, cutter, 0, told_urgently)

    def deliver_urgently(self, event: Event) -> None:
        """Deliver from a thread, at once, while the event loop is blocked: to the handlers that allow it."""
        for attached in self._handlers:
            if attached.any_thread:
                try:
                    attached.call(event)
                except BaseException:
                    logger.exception("telemetry handler %r failed on %s", attached.call, event.type)

    async def flush(self) -> None:
        """Wait until handlers that hold events back, as QueueHandler does, have passed them on."""
        for attached in self._handlers:
            flush: Any = getattr(attached.call, "flush", None)
            if inspect.iscoroutinefunction(flush):
                task = asyncio.current_task()
                try:
                    await flush()
                except BaseException:
                    if task is not None and task.cancelling():
                        raise
                    logger.exception("telemetry handler %r could not be flushed", attached.call)

    async def _pass_on(self, event: Event, cutter: Cutter, depth: int, told_urgently: bool = False) -> None:
        delivery = _Delivery(self, depth)
        token = _current.set(delivery)
        try:
            for attached in self._handlers:
                if told_urgently and attached.any_thread:
                    continue
                if not attached.breaker.is_open(cutter.loop.time()):
                    self._calling = attached.call, asyncio.current_task(), cutter
                    await _call(attached, event, cutter)
        finally:
            self._calling = None
            delivery.active = False
            _current.reset(token)
        if delivery.caused and depth >= MAX_NESTING:
            logger.warning("telemetry handlers caused events of their own %d deep; the last were dropped", depth)
            return
        for caused in delivery.caused:
            await self._pass_on(caused, cutter, depth + 1)

    def called_in(self, task: asyncio.Task[Any] | None) -> Handler | None:
        """The handler that this task is running right now; may be asked from any thread."""
        calling = self._calling
        if calling is None or task is None:
            return None
        handler, teller, cutter = calling
        return handler if task is (cutter.task or teller) else None

    def _refuse_reentry(self, verb: str) -> None:
        try:
            task = asyncio.current_task()
        except RuntimeError:  # a thread
            return
        if self.called_in(task) is not None:
            raise TelemetryError(f"{verb} was called from inside a telemetry handler; do it in a task of its own")


async def _call(attached: _Attached, event: Event, cutter: Cutter) -> None:
    """One handler, one event; only our own cancellation gets past."""
    task = asyncio.current_task()
    asked = task.cancelling() if task is not None else 0
    try:
        if attached.cut is not None and not attached.cut.done():
            raise TimeoutError("it has not come back from the event for which it was cut")
        attached.cut = None
        try:
            answer = attached.call(event)
        finally:
            if task is not None and task.cancelling() > asked:
                await _take_back(task, asked)
        if answer is not None and inspect.isawaitable(answer):
            await cutter.wait_for(answer)
    except asyncio.CancelledError as error:
        if task is not None and task.cancelling() > asked:
            raise
        _failed(attached, event, cutter.loop.time(), error)
    except BaseException as error:
        if isinstance(error, Cut):
            attached.cut = error.task
        _failed(attached, event, cutter.loop.time(), error)
    else:
        attached.breaker.worked()


async def _take_back(task: asyncio.Task[Any], asked: int) -> None:
    """A sync handler has cancelled its caller: that is its failure, not our end."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    while task.cancelling() > asked:
        task.uncancel()
    raise asyncio.CancelledError("it has cancelled its caller")


def _failed(attached: _Attached, event: Event, now: float, error: BaseException) -> None:
    logger.error("telemetry handler %r failed on %s", attached.call, event.type, exc_info=error)
    if attached.breaker.failed(now):
        logger.error("telemetry handler %r keeps failing; it is left alone for %d seconds", attached.call, REST)
