"""A thread beside the event loop: says who blocks it, and keeps the node's lease while it is blocked.

    loop    ── turns ──────────╳ blocked ············································ turns again ──►
    thread  ── asks ─ answered ─ no answer ─ 1 s: who is it? ─ lease renewed … until max_stall ─ told ──►

While the loop is well the thread does nothing but ask it a few times a second; beats travel with the loop.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from contextlib import suppress
from pathlib import PurePath
from typing import TYPE_CHECKING

from jobs_async.clock import stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobs_async.core.store import Lifeline

TICK = 0.2
"""Seconds between two looks, at most."""
STALL = 1.0
"""Seconds without a turn of the loop that are reported."""
OVERDUE = 1.5
"""Heartbeats after which the thread takes over the beating."""
MAX_CALLS = 5
"""Calls of a stack that an event names; the log has them all."""

logger = logging.getLogger("jobs_async")


class Watchdog:
    """Watches the loop in which it is made, from `start` to `close`.

    `noticed(seconds, stack)` is called in the thread, once a stall, and says who it is; `over(seconds, stack, blocker)`
    in the loop, when it turns again. `beaten()` tells it that the loop itself has renewed the lease.
    """

    def __init__(
        self,
        *,
        node: Callable[[], str],
        lifeline: Lifeline | None,
        heartbeat: float,
        lease: float,
        max_stall: float,
        noticed: Callable[[float, tuple[str, ...]], str],
        over: Callable[[float, tuple[str, ...], str], None],
    ) -> None:
        self._node = node
        self._lifeline = lifeline
        self._heartbeat = heartbeat
        self._lease = lease
        self._max_stall = max_stall
        self._noticed = noticed
        self._over = over
        self._tick = min(TICK, heartbeat / 2)
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._turned_at = self._beaten_at = stopwatch()
        self._asked = False
        self._stall: tuple[float, tuple[str, ...], str] | None = None
        self._reported = 0.0
        self._loop_beaten_at = self._beaten_at
        self._gave_up = False
        self._renew_at = 0.0
        self._is_told = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="jobs_async watchdog", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ask the thread to end; it does so within a moment, and nobody waits for it."""
        self._ended.set()

    def beaten(self) -> None:
        self._beaten_at = self._loop_beaten_at = stopwatch()
        self._gave_up = False

    def _turned(self) -> None:
        """In the loop: it is alive."""
        stall, self._stall = self._stall, None
        self._turned_at = stopwatch()
        self._asked = False
        if stall is not None and not self._ended.is_set():
            since, calls, blocker = stall
            seconds = self._turned_at - since
            logger.warning("the event loop turns again, after %.1f s", seconds)
            self._over(seconds, calls, blocker)

    def _watch(self) -> None:
        try:
            slept_at = stopwatch()
            while not self._ended.wait(self._tick):
                now = stopwatch()
                self._look(now, stood_still=now - slept_at > self._tick + STALL)
                slept_at = stopwatch()
        except _LoopClosedError:
            pass
        except Exception:
            logger.critical("the watchdog ended on a bug of its own", exc_info=True)
        finally:
            if self._lifeline is not None:
                self._lifeline.close()

    def _look(self, now: float, *, stood_still: bool) -> None:
        if not self._asked:
            self._asked = True
            try:
                self._loop.call_soon_threadsafe(self._turned)
            except RuntimeError:
                raise _LoopClosedError from None
        since = self._turned_at
        stalled_for = now - since
        if stood_still:
            _aside(
                logger.warning, "the whole process stood still: suspended, or in C code that does not release the GIL"
            )
        elif stalled_for >= STALL and self._reported != since:
            self._reported = since
            _aside(self._report, since, stalled_for)
        overdue = now - self._beaten_at > self._heartbeat * OVERDUE
        if overdue and now >= self._renew_at and self._lifeline is not None:
            self._renew(self._lifeline, now)

    def _report(self, since: float, seconds: float) -> None:
        frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]  # how one thread looks at another
        frame = frames.get(self._loop_thread)
        if frame is None:
            return
        stack = _inside(traceback.extract_stack(frame))
        calls = tuple(f"{PurePath(call.filename).name}:{call.lineno}:{call.name}" for call in stack[-MAX_CALLS:])
        text = "".join(traceback.format_list(stack)).rstrip()
        blocker = self._noticed(seconds, calls)
        self._stall = since, calls, blocker
        logger.warning("the event loop has not turned for %.1f s, held up by %s, here:\n%s", seconds, blocker, text)

    def _renew(self, lifeline: Lifeline, now: float) -> None:
        silent_for = now - self._loop_beaten_at
        if silent_for > self._max_stall:
            if not self._gave_up:
                self._gave_up = True
                _aside(logger.error, "the event loop has not beaten for %.0f s; the lease is given up", silent_for)
            return
        self._renew_at = now + self._heartbeat / 2
        try:
            if lifeline.renew(self._node(), self._lease):
                self._beaten_at = now
                self._is_told = False
        except Exception as error:
            if not self._is_told:
                self._is_told = True
                _aside(logger.warning, "a beat is late, and the watchdog cannot renew the lease either (%s)", error)


class _LoopClosedError(Exception):
    """There is nothing to watch any longer."""


def _aside(do: Callable[..., object], *args: object) -> None:
    """In a thread of its own: whoever writes or listens to this may block, and that must not cost the lease."""
    with suppress(RuntimeError):  # no thread is to be had
        threading.Thread(target=do, args=args, name="jobs_async alarm", daemon=True).start()


def _inside(stack: traceback.StackSummary) -> list[traceback.FrameSummary]:
    """The calls since the event loop gave way, innermost last, without our own: how it came to them says nothing."""
    turns = [index for index, call in enumerate(stack) if call.filename.endswith("asyncio/events.py")]
    inside = stack[turns[-1] + 1 :] if turns else list(stack)
    return [call for call in inside if "jobs_async/runtime" not in call.filename] or inside
