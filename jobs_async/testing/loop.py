"""An event loop whose time passes only while everybody waits: hours of a scenario in milliseconds, always the same.

For the memory store alone: threads and sockets do not know that time flies.
"""

from __future__ import annotations

import asyncio
import selectors
from datetime import UTC, datetime, timedelta
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Coroutine

T = TypeVar("T")

BEGINNING = datetime(2030, 1, 1, tzinfo=UTC)


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """Where a real loop would sleep until the next timer, this one sets its clock to it.

    With an `rng`, what is ready runs in an order drawn anew in each turn of the loop, and the same seed draws the same
    orders. Without, first come, first served, as asyncio has it: code that counts on that may fail here alone.
    """

    _ready: deque[asyncio.Handle]  # asyncio's own, and nowhere else to be had

    def __init__(self, rng: Random | None = None) -> None:
        self._now = 0.0
        self._rng = rng
        super().__init__(_Leap(self))
        self._clock_resolution = 1e-6  # after half a year, seconds as a float are no finer than a nanosecond

    def time(self) -> float:
        return self._now

    def leap(self, seconds: float | None) -> None:
        """Let time pass.

        Raises:
            RuntimeError: nothing will ever happen again, so waiting on would be for ever.
        """
        if seconds is None:
            raise RuntimeError("every task waits for another, and no timer is set: a deadlock")
        self._now += max(0.0, seconds)

    def turn(self) -> None:
        """A turn begins: choose who comes first."""
        if self._rng is not None:
            self._rng.shuffle(self._ready)


class _Leap(selectors.SelectSelector):
    def __init__(self, loop: VirtualTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self._loop.turn()
        ready = super().select(0)
        if not ready and timeout != 0:
            self._loop.leap(timeout)
        return ready


class LoopClock:
    """The wall clock and the uptime of the running loop, for a store and a Supervisor on a VirtualTimeLoop."""

    def now(self) -> datetime:
        return BEGINNING + timedelta(seconds=asyncio.get_running_loop().time())

    def uptime(self) -> tuple[str, float]:
        return "virtual", asyncio.get_running_loop().time()


def run_virtual(main: Coroutine[Any, Any, T], seed: int | None = None) -> T:
    """As `asyncio.run`, on a VirtualTimeLoop; a `seed` shuffles it, the same one always alike.

    Give Supervisors `max_stall=None`: the thread that watches an event loop lives in real time.
    """
    rng = None if seed is None else Random(seed)
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(rng)) as runner:
        return runner.run(main)
