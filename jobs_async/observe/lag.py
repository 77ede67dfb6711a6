"""How late an event loop is: a timer that looks at the time when it is called."""

from __future__ import annotations

import asyncio

TICK = 0.25
"""Seconds between two looks."""


class LagMeter:
    """Measures the running event loop from `start` to `close`."""

    def __init__(self) -> None:
        self._worst = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(loop.time() + TICK, self._look, loop, loop.time() + TICK)

    def take(self) -> float:
        """By how many seconds it was late at worst, since this was asked last."""
        worst, self._worst = self._worst, 0.0
        return worst

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _look(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self._worst = max(self._worst, loop.time() - due)
        self.start()
