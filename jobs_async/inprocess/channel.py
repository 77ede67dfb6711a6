"""For observers that take their time: runs put events into a channel, and somebody else takes them out."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs_async.core import limits

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobs_async.inprocess.context import JobResultStatus, ObservedJobContext


@dataclass(frozen=True, slots=True)
class Started:
    """A run is about to begin."""

    context: ObservedJobContext


@dataclass(frozen=True, slots=True)
class Finished:
    """A run has ended; its context knows how long it took."""

    context: ObservedJobContext
    status: JobResultStatus


ObservedJobEvent = Started | Finished


class JobEventReceiver:
    """The end of a channel where events come out, in their order, each once.

    `async for` waits for events, and ends when the receiver was closed, or the observer closed or garbage-collected,
    and nothing is left. May be used from any thread, and by several consumers, which share the events.
    """

    def __init__(self, maxsize: int = 0) -> None:
        self._maxsize = limits.integer(maxsize, "maxsize", 0)
        self._events: deque[ObservedJobEvent] = deque()
        self._waiting: list[asyncio.Future[None]] = []
        self._lock = threading.RLock()  # the garbage collector may close a channel in the middle of a `put`
        self._closed = False
        self.dropped = 0
        """How many events were lost because `maxsize` newer ones were waiting."""

    def __len__(self) -> int:
        return len(self._events)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self)} events{', closed' if self._closed else ''}>"

    @property
    def is_closed(self) -> bool:
        """Whether nothing more will come; what is there can still be read."""
        return self._closed

    def close(self) -> None:
        """Take no more events; runs go on unobserved."""
        with self._lock:
            self._closed = True
            self._wake()

    def put(self, event: ObservedJobEvent) -> None:
        """Add an event; a full channel loses its oldest, a closed one takes none."""
        with self._lock:
            if self._closed:
                return
            if self._maxsize and len(self._events) >= self._maxsize:
                self._events.popleft()
                self.dropped += 1
            self._events.append(event)
            self._wake()

    def try_iter(self) -> Iterator[ObservedJobEvent]:
        """Take what is there, without waiting for more."""
        while (event := self._take()) is not None:
            yield event

    def __aiter__(self) -> JobEventReceiver:
        return self

    async def __anext__(self) -> ObservedJobEvent:
        while True:
            news: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(news)  # before looking, so that whatever comes from here on rings
            try:
                closed = self._closed
                event = self._take()
                if event is not None:
                    return event
                if closed:
                    raise StopAsyncIteration
                await news
            finally:
                self._forget(news)

    def _take(self) -> ObservedJobEvent | None:
        with self._lock:
            return self._events.popleft() if self._events else None

    def _forget(self, news: asyncio.Future[None]) -> None:
        with self._lock, suppress(ValueError):
            self._waiting.remove(news)

    def _wake(self) -> None:
        """Let everybody look again. An event that one cancelled meanwhile does not take is there for the next."""
        while self._waiting:
            news = self._waiting.pop()
            try:
                news.get_loop().call_soon_threadsafe(_ring, news)
            except RuntimeError:
                continue  # its event loop is closed: nobody waits there any more


class ChannelObserver:
    """The end of a channel where events go in. It never waits, and does not keep the receiver alive."""

    def __init__(self, receiver: JobEventReceiver) -> None:
        self._receiver = weakref.ref(receiver)
        weakref.finalize(self, _close, self._receiver).atexit = False

    def on_job_started(self, context: ObservedJobContext, /) -> None:
        self._put(Started(context))

    def on_job_finished(self, context: ObservedJobContext, status: JobResultStatus, /) -> None:
        self._put(Finished(context, status))

    def close(self) -> None:
        """Say that no more will come: an `async for` over the receiver ends once it has everything."""
        _close(self._receiver)

    def _put(self, event: ObservedJobEvent) -> None:
        receiver = self._receiver()
        if receiver is not None:
            receiver.put(event)


def job_observer_channel(maxsize: int = 0) -> tuple[ChannelObserver, JobEventReceiver]:
    """An observer for runners, and the receiver of what it is told (nidus-jobs: job_observer_channel).

    Any number of events may wait, or at most `maxsize`; then the oldest is dropped and counted. No job notices whether
    anybody receives.

    Raises:
        OptionError: maxsize is no number from 0 on.
    """
    receiver = JobEventReceiver(maxsize)
    return ChannelObserver(receiver), receiver


def _close(receiver: weakref.ref[JobEventReceiver]) -> None:
    found = receiver()
    if found is not None:
        found.close()


def _ring(news: asyncio.Future[None]) -> None:
    if not news.done():
        news.set_result(None)
