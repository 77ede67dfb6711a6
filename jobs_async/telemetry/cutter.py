"""What keeps an async handler from taking for ever."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

HANDLER_SECONDS = 5.0
"""How long an async handler may take for one event before it is cut."""


class Cutter:
    """Cuts the handler that is being awaited when it takes too long, with one timer for all calls of a loop.

    The timer is not set anew for each call: when it strikes early for the current one, it is set to what is left.
    """

    __slots__ = ("_began", "_struck", "_task", "_timer", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._task: asyncio.Task[Any] | None = None
        self._began = 0.0
        self._struck = 0
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        self._task, self._began, self._struck = asyncio.current_task(), self.loop.time(), 0
        if self._timer is None:
            self._timer = self.loop.call_later(HANDLER_SECONDS, self._strike)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if not self._struck or task is None:
            return
        left = [task.uncancel() for _ in range(self._struck)][-1]
        if kind is asyncio.CancelledError and not left:
            raise TimeoutError(f"cut after {HANDLER_SECONDS:g} seconds") from error

    def _strike(self) -> None:
        self._timer = None
        if self._task is None:
            return
        left = self._began + HANDLER_SECONDS * (self._struck + 1) - self.loop.time()
        if left <= 0:
            self._struck += 1
            self._task.cancel()
            left = HANDLER_SECONDS  # one that swallows this is struck again
        self._timer = self.loop.call_later(left, self._strike)
