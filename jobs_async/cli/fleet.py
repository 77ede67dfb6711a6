"""Several processes of one application: started one after the other, stopped together.

Each child is a `jobs-async run` of its own, in a session of its own, so that Ctrl-C in a terminal reaches it through us
alone. On a socket it says when it has begun, and hears how urgently it is to end; the socket's end means that we died.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

from jobs_async.cli.exits import FAILED, INTERRUPTED, OK
from jobs_async.cli.urgency import LEAVE, STOP_SIGNALS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

LAST_SECONDS = 2.0
"""How long a child has to leave at once, before it is killed."""

logger = logging.getLogger("jobs_async.cli")


class Child:
    """One process, and the line to it."""

    def __init__(self, number: int, command: Sequence[str], news: SimpleQueue[tuple[str, Child]]) -> None:
        self.number = number
        self.has_begun = False
        self._line, theirs = socket.socketpair()
        with theirs:
            handle = theirs.fileno()
            self.process = subprocess.Popen(  # noqa: S603  # ourselves
                [*command, "--child", str(handle)],
                pass_fds=[handle],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        for work in (self._listen, self._wait):
            threading.Thread(target=work, args=(news,), name=f"jobs_async child {number}", daemon=True).start()

    def __str__(self) -> str:
        return f"process {self.number} (pid {self.process.pid})"

    def _listen(self, news: SimpleQueue[tuple[str, Child]]) -> None:
        try:
            if self._line.recv(1):
                news.put(("began", self))
        except OSError:  # it died
            return

    def _wait(self, news: SimpleQueue[tuple[str, Child]]) -> None:
        self.process.wait()
        news.put(("ended", self))

    def tell(self, level: int) -> None:
        try:
            self._line.send(bytes([level]))
        except OSError:  # it has ended already
            return

    @property
    def exit_code(self) -> int:
        """As a shell has it: 128 and the signal's number where one has killed it."""
        code = self.process.returncode
        return 128 - code if code < 0 else code

    def how(self) -> str:
        code = self.process.returncode
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


class Fleet:
    """`count` processes of one command; none is started again."""

    def __init__(self, command: Sequence[str], count: int, *, burst: bool) -> None:
        self._command = command
        self._count = count
        self._burst = burst
        self._level = 0
        self._children: list[Child] = []
        self._news: SimpleQueue[tuple[str, Child]] = SimpleQueue()

    @property
    def codes(self) -> dict[int, int]:
        """The exit code of each process, by its id."""
        return {child.process.pid: child.exit_code for child in self._children}

    def run(self) -> int:
        """Until all have ended; the worst of their exit codes.

        The first has to begin before the others are started: what is wrong with the application is said once, and a
        schema is brought up to date by one.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, self._heard)
        self._start()
        left = 1
        while left:
            what, child = self._news.get()
            child.has_begun |= what == "began"
            if what == "ended":
                left -= 1
                self._say_end(child, left)
            elif len(self._children) == 1:
                while len(self._children) < self._count and not self._level:
                    self._start()
                    left += 1
                pids = ", ".join(str(child.process.pid) for child in self._children)
                logger.info("%d processes: %s", len(self._children), pids)
        return INTERRUPTED if self._level >= LEAVE else max(self.codes.values(), default=FAILED)

    def _start(self) -> None:
        child = Child(len(self._children) + 1, self._command, self._news)
        self._children.append(child)
        if self._level:
            child.tell(self._level)

    def _say_end(self, child: Child, left: int) -> None:
        if self._level or (self._burst and child.exit_code == OK):
            return
        when = "" if child.has_begun else " before it had begun"
        logger.error("%s %s%s; %d of %d go on", child, child.how(), when, left, len(self._children))

    def _heard(self, _number: int, _frame: FrameType | None) -> None:
        self._level = min(self._level + 1, LEAVE)
        for child in self._children:
            child.tell(self._level)
        if self._level == LEAVE:
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_IGN)
            timer = threading.Timer(LAST_SECONDS, self._kill)
            timer.daemon = True
            timer.start()

    def _kill(self) -> None:
        for child in self._children:
            child.process.kill()
