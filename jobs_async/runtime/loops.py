"""The one periodic loop: everything that happens again and again happens here."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from jobs_async.runtime.outage import Outage

MAX_PAUSE = 30.0
"""Seconds between two tries of something that keeps failing, at most."""


class Bell:
    """Wakes one waiting loop; rung while nobody waits, it is heard at the next wait."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        self._event.set()

    def silence(self) -> None:
        """Forget earlier rings: to be called before looking at what they might have announced, never after."""
        self._event.clear()

    async def wait(self, seconds: float | None = None) -> None:
        """Until it rings, or for so many seconds."""
        if seconds is None:
            await self._event.wait()
            return
        alarm = asyncio.get_running_loop().call_later(seconds, self._event.set)
        try:
            await self._event.wait()
        finally:
            alarm.cancel()


async def every(
    seconds: float,
    do: Callable[[], Awaitable[object]],
    *,
    name: str,
    bell: Bell,
    ended: Callable[[], bool],
    outage: Outage,
    rng: Random,
) -> None:
    """Do something now and then every so many seconds, a little jittered, until `ended`; a ring brings it forward.

    Where it answers with a number, that is how many seconds it wants to be left alone this time.
    What fails is repeated with growing pauses: no store that is away for a while ends a loop.
    """
    failures = 0
    while not ended():
        bell.silence()
        began = asyncio.get_running_loop().time()
        try:
            answer = await do()
            failures = 0
            outage.worked(name)
        except Exception as error:
            failures += 1
            outage.failed(name, error, began)
            answer = None
        pause = seconds if not failures else min(seconds, 0.05 * 2 ** min(failures, 10), MAX_PAUSE)
        if not ended():
            await bell.wait(answer if isinstance(answer, float) else pause * rng.uniform(0.9, 1.0))
