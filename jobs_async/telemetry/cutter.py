"""What keeps an async handler from taking for ever, and from cancelling anybody but itself."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable

HANDLER_SECONDS = 5.0
"""How long an async handler may take for one event before it is cut."""
NAME = "jobs_async telemetry handler"


class Cut(TimeoutError):
    """A handler took too long and was cancelled; `task` is where it may go on all the same."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        super().__init__(f"cut after {HANDLER_SECONDS:g} seconds")
        self.task = task


class Cutter:
    """Awaits handlers, each in a task of its own: what it swallows, cancels or leaves hanging stays its own affair.

    One timer serves all calls of a loop. It is not set anew for each: when it strikes early for the current one, it is
    set to what is left.
    """

    __slots__ = ("_began", "_over", "_timer", "loop", "task")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.task: asyncio.Task[BaseException | None] | None = None
        """Where a handler is running, if one is."""
        self._over: asyncio.Future[None] | None = None
        self._began = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def wait_for(self, answer: Awaitable[object]) -> None:
        """Come back when the handler has ended.

        Raises:
            Cut: it took too long.
            BaseException: what it raised.
        """
        task = self._begun(answer)
        if not task.done():
            await self._end(task, answer)
        error = asyncio.CancelledError() if task.cancelled() else task.result()
        if error is not None:
            raise error

    def _begun(self, answer: Awaitable[object]) -> asyncio.Task[BaseException | None]:
        """A task for a handler. From Python 3.12 on it runs at once as far as it gets, which is far cheaper."""
        if sys.version_info >= (3, 12):
            try:
                return asyncio.Task(self._outcome_of(answer), loop=self.loop, name=NAME, eager_start=True)
            finally:
                self.task = None
        return self.loop.create_task(self._outcome_of(answer), name=NAME)

    async def _end(self, task: asyncio.Task[BaseException | None], answer: Awaitable[object]) -> None:
        """Wait for it.

        Raises:
            Cut: it took too long.
        """
        over = self._over = self.loop.create_future()
        self.task = task
        task.add_done_callback(lambda _: _finish(over, answer))
        self._began = self.loop.time()
        if self._timer is None:
            self._timer = self.loop.call_later(HANDLER_SECONDS, self._strike)
        try:
            await over
        except asyncio.CancelledError:
            task.cancel()
            raise
        finally:
            self.task = self._over = None
        if not task.done():
            task.cancel()
            raise Cut(task)

    async def _outcome_of(self, answer: Awaitable[object]) -> BaseException | None:
        """What a handler raised, as a value: an event loop does not survive a SystemExit out of a task."""
        self.task = asyncio.current_task()
        try:
            await answer
        except BaseException as error:
            return error
        return None

    def _strike(self) -> None:
        self._timer = None
        if self._over is None:
            return
        left = self._began + HANDLER_SECONDS - self.loop.time()
        if left > 0:
            self._timer = self.loop.call_later(left, self._strike)
        elif not self._over.done():
            self._over.set_result(None)


def _finish(over: asyncio.Future[None], answer: Awaitable[object]) -> None:
    """A task that was cancelled before its first step leaves a coroutine that nobody has begun."""
    if asyncio.iscoroutine(answer):
        answer.close()
    if not over.done():
        over.set_result(None)
