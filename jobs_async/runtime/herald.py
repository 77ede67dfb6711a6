"""How the runtime tells of what happened: builds nothing where nobody listens, and near an end waits no longer."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterable
    from datetime import datetime

    from jobs_async.core.events import Event
    from jobs_async.core.store import Clock
    from jobs_async.telemetry import Handler, Telemetry

logger = logging.getLogger("jobs_async")


class Herald:
    """Hands the events of one engine to its Telemetry.

    Once `hurry` was called, all that is still to be told shares so many seconds of telling; the rest is dropped, for
    a handler that hangs must not hold up a stop.
    """

    def __init__(self, telemetry: Telemetry | None, clock: Clock) -> None:
        self._telemetry = telemetry
        self._clock = clock
        self._left: float | None = None
        self._since = 0.0
        self._open: dict[asyncio.Timeout, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._dropped = 0

    @property
    def is_heard(self) -> bool:
        """Whether anybody listens."""
        return self._telemetry is not None and self._telemetry.is_watched

    def called_in(self, task: asyncio.Task[Any] | None) -> Handler | None:
        """The handler that this task is running right now."""
        return None if self._telemetry is None else self._telemetry.called_in(task)

    def now(self) -> datetime:
        return self._clock.now()

    async def tell(self, events: Callable[[datetime], Iterable[Event]]) -> None:
        """Deliver the events that `events` makes, given the time; it is called only where somebody listens."""
        if self._telemetry is not None and self._telemetry.is_watched:
            made = deque(events(self._clock.now()))
            if made:
                await self._in_time(self._telemetry.deliver(made), made)

    def tell_soon(self, event: Callable[[datetime], Event], *, told_urgently: bool = False) -> None:
        """Deliver an event without waiting for it."""
        telemetry = self._telemetry
        if telemetry is not None and telemetry.is_watched:
            made = deque([event(self._clock.now())])
            delivery = telemetry.deliver(made, told_urgently=told_urgently)
            task = asyncio.get_running_loop().create_task(self._in_time(delivery, made), name="jobs_async telling")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def tell_urgently(self, event: Callable[[datetime], Event]) -> None:
        """From a thread, while the event loop is blocked: tell those handlers that allow it."""
        if self._telemetry is not None and self._telemetry.is_watched:
            self._telemetry.deliver_urgently(event(self._clock.now()))

    def hurry(self, seconds: float) -> None:
        """From now on all deliveries together may take so long; the first call counts."""
        if self._left is None:
            self._left, self._since = seconds, asyncio.get_running_loop().time()
            for timeout in self._open:
                timeout.reschedule(self._since + seconds)

    async def close(self) -> None:
        """Let what was told soon, and what handlers hold back, come through in the time that is left."""
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        if self._telemetry is not None:
            await self._in_time(self._telemetry.flush(), ())
        if self._dropped:
            logger.warning("%d events were not told of, for the stop would not wait for their handlers", self._dropped)

    async def _in_time(self, delivery: Coroutine[Any, Any, None], untold: Collection[Event]) -> None:
        loop = asyncio.get_running_loop()
        if not self._open:
            self._since = loop.time()
        timeout = asyncio.timeout_at(None if self._left is None else self._since + self._left)
        self._open[timeout] = None
        try:
            async with timeout:
                await delivery
        except TimeoutError:
            self._dropped += len(untold)
        finally:
            del self._open[timeout]
            if self._left is not None and not self._open:
                self._left = max(0.0, self._left - (loop.time() - self._since))
