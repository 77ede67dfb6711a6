"""How urgently a process is asked to end: by signals, or by the process that has started it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from jobs_async.cli.exits import INTERRUPTED

if TYPE_CHECKING:
    from types import FrameType

DRAIN, CUT, LEAVE = 1, 2, 3
"""Let running jobs finish; cancel them now; leave at once, whatever runs."""
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Urgency:
    """As high as there were signals, and never less. They are heard while the event loop is blocked, too."""

    def __init__(self) -> None:
        self.level = 0
        self._signals = 0
        self._waiting: list[tuple[int, asyncio.AbstractEventLoop, asyncio.Event]] = []

    def listen(self) -> None:
        """Hear SIGINT and SIGTERM from now on."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._heard)

    def _heard(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1  # and not the level: who stops all of a container sends one to us and to our parent
        self.raise_to(self._signals)

    def raise_to(self, level: int) -> None:
        """Be at least so urgent; from any thread."""
        self.level = max(self.level, level)
        if self.level >= LEAVE:
            os.write(2, b"leaving at once; what runs is rescued when the lease has run out\n")
            os._exit(INTERRUPTED)
        for wanted, loop, event in list(self._waiting):
            if wanted <= self.level and not loop.is_closed():
                loop.call_soon_threadsafe(event.set)

    async def reached(self, level: int) -> None:
        """Wait until it is so urgent."""
        event = asyncio.Event()
        self._waiting.append((level, asyncio.get_running_loop(), event))
        if self.level < level:  # from here on, whoever raises it sees us
            await event.wait()

    # --- a process that was started by another one ---

    def follow(self, line: int) -> None:
        """Heed what the other process says on a socket: a level in each byte. Drain when it is gone."""
        os.set_inheritable(line, False)
        threading.Thread(target=self._follow, args=(line,), name="jobs_async parent", daemon=True).start()

    def _follow(self, line: int) -> None:
        with suppress(OSError):  # reset, where it died before it had read what we said
            while said := os.read(line, 1):
                self.raise_to(said[0])
        self.raise_to(DRAIN)
