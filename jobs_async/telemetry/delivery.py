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
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from contextvars import ContextVar
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


class _Attached:
    """A handler in its place, and how it has been doing."""

    __slots__ = ("any_thread", "breaker", "call", "call_with_all", "cut")

    def __init__(self, call: Handler) -> None:
        self.call = call
        self.call_with_all = _call_with_all(call)
        self.any_thread: bool = getattr(call, "any_thread", False) is True
        self.breaker = Breaker()
        self.cut: asyncio.Task[Any] | None = None
        """Where it was cut last; it may not have heeded that."""


def _call_with_all(handler: object) -> Callable[[Sequence[Event]], None] | None:
    """How to call a handler of ours with many events at once.

    A class that has `call_with_all` says that its objects neither wait, nor cancel, nor cause events, and that to them
    it is all the same as being called with each. Where a subclass has a `__call__` of its own, that is what counts.
    """
    for kind in type(handler).__mro__:
        if "__call__" in vars(kind):
            return getattr(handler, "call_with_all", None) if "call_with_all" in vars(kind) else None
    return None


class _Delivery:
    """One event on its way. Tasks that a handler spawns inherit it, so it says itself when it is over."""

    __slots__ = ("active", "caused", "depth", "owner")

    def __init__(self, owner: Telemetry, depth: int) -> None:
        self.owner = owner
        self.depth = depth
        self.active = True
        self.caused: deque[Event] | None = None


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
        self._all_at_once: list[tuple[_Attached, Callable[[Sequence[Event]], None]]] = []
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
            self._set((*self._handlers, _Attached(handler)))
        return True

    def detach(self, handler: Handler) -> bool:
        """Remove a handler where it was attached last; False if it was not attached."""
        with self._changing:
            kept = list(self._handlers)
            for index in range(len(kept) - 1, -1, -1):
                if kept[index].call == handler:
                    del kept[index]
                    self._set(tuple(kept))
                    return True
        return False

    def _set(self, handlers: tuple[_Attached, ...]) -> None:
        self._handlers = handlers
        calls = [(one, one.call_with_all) for one in handlers if one.call_with_all is not None]
        self._all_at_once = calls if len(calls) == len(handlers) else []

    async def emit(self, event: Event) -> None:
        """Deliver an event of your own to every handler, and come back when all have had it.

        Raises:
            TelemetryError: called from inside a handler of this Telemetry, where it would wait for itself.
        """
        self._refuse_reentry("emit")
        await self.deliver(deque([event]))

    async def deliver(self, events: deque[Event], *, told_urgently: bool = False) -> None:
        """As `emit`, for the runtime: what a handler causes by its own doing is delivered after the current event.

        Each event is taken out once it has been told, so that what is left says what was not. `told_urgently` leaves
        out those that `deliver_urgently` has reached.
        """
        delivery = _current.get()
        if delivery is not None and delivery.active and delivery.owner is self:
            delivery.caused = (delivery.caused or deque()) + events
            events.clear()
            return
        loop = asyncio.get_running_loop()
        if loop not in self._loops:
            self._loops = {known: pair for known, pair in self._loops.items() if not known.is_closed()}
            self._loops[loop] = Cutter(loop), asyncio.Lock()
        cutter, lock = self._loops[loop]
        async with lock:
            if self._all_at_once:
                self._hand_over(events, cutter, told_urgently=told_urgently)
            else:
                await self._pass_on(events, cutter, 0, told_urgently=told_urgently)

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

    def _hand_over(self, events: deque[Event], cutter: Cutter, *, told_urgently: bool) -> None:
        """All events to one handler, then to the next, where every handler is of those to whom it is all the same."""
        for attached, call_with_all in self._all_at_once if events else ():
            if (told_urgently and attached.any_thread) or attached.breaker.is_open(cutter.loop.time()):
                continue
            try:
                call_with_all(events)
            except BaseException as error:
                _failed(attached, events[-1], cutter, error)
            else:
                attached.breaker.worked()
        events.clear()

    async def _pass_on(self, events: deque[Event], cutter: Cutter, depth: int, *, told_urgently: bool = False) -> None:
        """Each event to each handler. Where a plain function does nothing special, this costs little more than it."""
        teller, time = asyncio.current_task(), cutter.loop.time
        while events:
            event, delivery = events[0], _Delivery(self, depth)
            token = _current.set(delivery)
            try:
                for attached in self._handlers:
                    if told_urgently and attached.any_thread:
                        continue
                    if attached.breaker.has_failed and attached.breaker.is_open(time()):
                        continue
                    self._calling = attached.call, teller, cutter
                    end = _begin(attached, event, teller, cutter)
                    if end is not None:
                        await end
            finally:
                self._calling = None
                delivery.active = False
                _current.reset(token)
            if delivery.caused:
                await self._tell_caused(delivery.caused, cutter, depth)
            events.popleft()

    async def _tell_caused(self, caused: deque[Event], cutter: Cutter, depth: int) -> None:
        if depth >= MAX_NESTING:
            logger.warning("telemetry handlers caused events of their own %d deep; the last were dropped", depth)
        else:
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


def _begin(
    attached: _Attached, event: Event, teller: asyncio.Task[Any] | None, cutter: Cutter
) -> Coroutine[Any, Any, None] | None:
    """Call one handler with one event; what is still to be awaited, if anything."""
    if attached.cut is not None:
        if not attached.cut.done():
            error = TimeoutError("it has not come back from the event for which it was cut")
            _failed(attached, event, cutter, error)
            return None
        attached.cut = None
    asked = 0 if teller is None else teller.cancelling()
    try:
        answer = attached.call(event)
    except BaseException as error:
        if teller is not None and teller.cancelling() > asked:
            return _taken_back(attached, event, teller, asked, cutter)
        _failed(attached, event, cutter, error)
        return None
    if teller is not None and teller.cancelling() > asked:
        if inspect.iscoroutine(answer):
            answer.close()
        return _taken_back(attached, event, teller, asked, cutter)
    if answer is not None and inspect.isawaitable(answer):
        return _end(attached, event, answer, cutter)
    if attached.breaker.has_failed:
        attached.breaker.worked()
    return None


async def _end(attached: _Attached, event: Event, answer: Awaitable[object], cutter: Cutter) -> None:
    """Await an async handler; only our own cancellation gets past."""
    task = asyncio.current_task()
    asked = 0 if task is None else task.cancelling()
    try:
        await cutter.wait_for(answer)
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling() > asked:
            raise
        if isinstance(error, Cut):
            attached.cut = error.task
        _failed(attached, event, cutter, error)
    else:
        attached.breaker.worked()


async def _taken_back(attached: _Attached, event: Event, task: asyncio.Task[Any], asked: int, cutter: Cutter) -> None:
    """A sync handler has cancelled its caller: that is its failure, not our end."""
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(0)
    while task.cancelling() > asked:
        task.uncancel()
    _failed(attached, event, cutter, asyncio.CancelledError("it has cancelled its caller"))


def _failed(attached: _Attached, event: Event, cutter: Cutter, error: BaseException) -> None:
    logger.error("telemetry handler %r failed on %s", attached.call, event.type, exc_info=error)
    if attached.breaker.failed(cutter.loop.time()):
        logger.error("telemetry handler %r keeps failing; it is left alone for %d seconds", attached.call, REST)
