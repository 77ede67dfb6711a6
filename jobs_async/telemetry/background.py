"""For sinks that take their time: a bounded queue between the runtime and them."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from jobs_async.clock import stopwatch
from jobs_async.core import limits
from jobs_async.core.errors import OptionError
from jobs_async.telemetry.breaker import REST, Breaker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from jobs_async.core.events import Event

LINGER = 5.0
"""Seconds a thread waits for another event before it ends."""
LOOK_AGAIN = 0.01
"""Seconds between two looks of a flush."""

logger = logging.getLogger("jobs_async.telemetry")


class QueueHandler:
    """Passes events on to a slow sink in the background, in their order, so that no job waits for it (zzz_jobs: Z77).

    A plain function is called in a thread of its own, an async one in a task of the event loop. At most `capacity`
    events wait; beyond that the oldest is dropped and counted in `dropped`. A sink that raises is logged; after three
    failures in a row it is left alone for 60 seconds, and what comes meanwhile is dropped.

    A Supervisor that stops waits for it, within a second. Elsewhere, `await handler.flush()` does; a process that just
    ends takes what is waiting with it.

    Raises:
        OptionError: the sink is not callable, or the capacity is no number from 1 on.
    """

    def __init__(self, sink: Callable[[Event], Awaitable[object] | object], capacity: int = 1000) -> None:
        if not callable(sink):
            raise OptionError(f"a sink must be callable with an event, not {limits.type_name(sink)}")
        self._sink = sink
        self._capacity = limits.integer(capacity, "capacity", 1)
        self._events: deque[Event] = deque()
        self._news = threading.Condition()
        self._is_awaited = False
        self._draining = False
        self._busy = False
        self._breaker = Breaker()
        self._task: asyncio.Task[None] | None = None
        self.any_thread = not _is_async(sink)
        """Whether events may be handed in from any thread, and are passed on even while the event loop is blocked."""
        self.dropped = 0
        """How many events the sink never got."""

    def __repr__(self) -> str:
        return f"QueueHandler({self._sink!r})"

    @property
    def waiting(self) -> int:
        """How many events have not been passed on yet."""
        return len(self._events) + self._busy

    def __call__(self, event: Event) -> None:
        self.call_with_all((event,))

    def call_with_all(self, events: Sequence[Event]) -> None:
        """As if it were called with each of these, one after the other."""
        loop = None if self.any_thread else asyncio.get_running_loop()
        with self._news:
            self._events.extend(events)
            excess = len(self._events) - self._capacity
            if excess > 0:
                for _ in range(excess):
                    self._events.popleft()
                self._drop("is too slow; the oldest events are dropped", excess)
            if self._draining:
                if self._is_awaited:
                    self._news.notify()
                return
            self._draining = True
        self._start(loop)

    def _start(self, loop: asyncio.AbstractEventLoop | None) -> None:
        if loop is None:
            try:
                threading.Thread(target=self._drain, name="jobs_async events", daemon=True).start()
            except RuntimeError:  # no thread is to be had now; the next event tries again
                self._draining = False
        else:
            self._task = loop.create_task(self._drain_async(), name="jobs_async events")

    async def flush(self) -> None:
        """Wait until every event has been passed on."""
        while self.waiting:
            if not self._draining and not self.any_thread:
                self._draining = True
                self._start(asyncio.get_running_loop())
            await asyncio.sleep(LOOK_AGAIN)

    def _drop(self, why: str, number: int = 1) -> None:
        if not self.dropped:
            logger.warning("%r %s", self._sink, why)
        self.dropped += number

    def _next(self) -> Event | None:
        """The next event to pass on; None where there is none, and draining ends. Called with the lock held."""
        while self._events:
            event = self._events.popleft()
            if not self._breaker.is_open(stopwatch()):
                self._busy = True
                return event
            self._drop("rests; its events are dropped")
        self._draining = False
        return None

    def _drain(self) -> None:
        while True:
            with self._news:
                if not self._events:
                    self._is_awaited = True
                    self._news.wait(LINGER)
                    self._is_awaited = False
                event = self._next()
            if event is None:
                return
            try:
                answer = self._sink(event)
                if inspect.iscoroutine(answer):
                    answer.close()
                    raise TypeError("a plain function returned a coroutine; give the async function itself")
            except BaseException as error:
                self._failed(event, error)
            else:
                self._breaker.worked()
            self._busy = False

    async def _drain_async(self) -> None:
        try:
            while True:
                with self._news:
                    event = self._next()
                if event is None:
                    return
                try:
                    answer: Any = self._sink(event)
                    await answer
                except BaseException as error:
                    task = asyncio.current_task()
                    if isinstance(error, GeneratorExit) or (task is not None and task.cancelling()):
                        raise
                    self._failed(event, error)
                else:
                    self._breaker.worked()
                self._busy = False
        finally:
            self._draining = self._busy = False

    def _failed(self, event: Event, error: BaseException) -> None:
        rests = f"; it rests for {REST:g} seconds" if self._breaker.failed(stopwatch()) else ""
        logger.error("telemetry sink %r failed on %s%s", self._sink, event.type, rests, exc_info=error)


def _is_async(sink: object) -> bool:
    return inspect.iscoroutinefunction(sink) or inspect.iscoroutinefunction(getattr(type(sink), "__call__", None))  # noqa: B004
