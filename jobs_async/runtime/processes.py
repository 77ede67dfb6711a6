"""Handlers in worker processes: started when a job needs one, kept for the next, killed when it is cut.

    run ── request ──► child: imports the worker, calls it ──► reply ── parked for the next job ──► killed at the stop
     └── cancelled: killed at once, with all that it has started

The pipes carry JSON: a worker's place in the code, the stored arguments, and how it ended. A child that loses its
parent ends at once, so none outlives it. Started anew costs what importing the worker's module costs.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import msgspec
from anyio.streams.buffered import BufferedByteReceiveStream

from jobs_async.core.errors import WorkerError
from jobs_async.core.outcome import Cancel, Failure, Snooze
from jobs_async.core.places import place_of
from jobs_async.runtime.child import (
    HEAD,
    Cancelling,
    Raised,
    Reply,
    Request,
    Returned,
    Snoozing,
    framed,
    is_loading_program,
)
from jobs_async.runtime.failures import Told
from jobs_async.tasks import to_the_end

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio.abc import Process

    from jobs_async.core.job import Job
    from jobs_async.core.workers import WorkerDef

KILL_GRACE = 2.0
"""Seconds a killed process has to be gone; more than that takes a disk that does not answer."""
CHILD = "import sys; sys.path[:] = sys.argv[1:]; del sys.argv[1:]; from jobs_async.runtime.child import serve; serve()"

logger = logging.getLogger("jobs_async")

_replies: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)


class Processes:
    """The worker processes of one queue, as many as it has run jobs at once; its slots bound them."""

    def __init__(self, limit: Callable[[], int] = lambda: 1) -> None:
        if is_loading_program():
            raise WorkerError(
                "a worker process must not start a Supervisor of its own while it loads the program; "
                'put what starts the program under `if __name__ == "__main__":`'
            )
        self._limit = limit
        self._busy = 0
        self._idle: list[_Child] = []
        self._is_closed = False

    async def run(self, worker: WorkerDef, job: Job[Any]) -> str | None:
        """Run a job's handler in a process and return its result as JSON. Cancelled, it kills the process first.

        Raises:
            Snooze, Cancel: the handler raised it.
            Told: it raised anything else, or its process died.
        """
        self._busy += 1
        try:
            child = self._take() or await _Child.start()
            try:
                reply = await child.ask(Request(place_of(worker), job.args_json))
            except BaseException:
                await to_the_end(child.end())
                raise
        finally:
            self._busy -= 1
        await self._park(child)
        return _read(reply, job)

    async def _park(self, child: _Child) -> None:
        """Keep it for the next job, and of all that wait the last, as many as can run; a limit may have come down."""
        self._idle.append(child)
        room = 0 if self._is_closed else max(0, self._limit() - self._busy)
        keep = len(self._idle) - room
        too_many, self._idle = (self._idle[:keep], self._idle[keep:]) if keep > 0 else ([], self._idle)
        if too_many:
            await to_the_end(_end_all(too_many))

    def _take(self) -> _Child | None:
        """The one that ran last, for the others may be swapped out; those that died while idle are let go."""
        while self._idle:
            child = self._idle.pop()
            if child.is_alive:
                return child
        return None

    async def close(self) -> None:
        """End those that wait for a job, and from now on each one when its job has ended."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        if idle:
            await to_the_end(_end_all(idle))


class _Child:
    """One worker process and the pipes to it."""

    def __init__(self, process: Process) -> None:
        assert process.stdin is not None  # noqa: S101  # both are pipes
        assert process.stdout is not None  # noqa: S101
        self._process = process
        self._requests = process.stdin
        self._replies = BufferedByteReceiveStream(process.stdout)

    @classmethod
    async def start(cls) -> _Child:
        """In a session of its own: Ctrl-C in a terminal is for the parent, who decides what becomes of its jobs."""
        flags: list[str] = getattr(subprocess, "_args_from_interpreter_flags", list)()  # as multiprocessing does it
        command = [sys.executable, *flags, "-u", "-c", CHILD, *sys.path]
        return cls(await anyio.open_process(command, stderr=None, start_new_session=True))

    @property
    def is_alive(self) -> bool:
        return self._process.returncode is None

    async def ask(self, request: Request) -> Reply:
        """Send a request and wait for the reply.

        Raises:
            Told: the process died.
        """
        try:
            await self._requests.send(framed(msgspec.json.encode(request)))
            size = int.from_bytes(await self._replies.receive_exactly(HEAD), "big")
            return _replies.decode(await self._replies.receive_exactly(size))
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError, anyio.ClosedResourceError):
            await to_the_end(self.end())
            raise Told(Failure("ProcessDied", f"ProcessDied: {self._how_it_died()}")) from None

    def kill(self) -> None:
        """Kill it and what it has started; harmless when it is gone."""
        if not self.is_alive:
            return
        with suppress(ProcessLookupError):
            if sys.platform == "win32":
                self._process.kill()
            else:
                os.killpg(self._process.pid, signal.SIGKILL)

    async def end(self) -> None:
        """Kill it and wait until it is gone, though no longer than a while; harmless to repeat."""
        self.kill()
        gone = asyncio.get_running_loop().create_task(self._process.aclose(), name="jobs_async process")
        await asyncio.wait({gone}, timeout=KILL_GRACE)
        if gone.done() and not gone.cancelled():
            gone.exception()  # looked at; the pipes of what was killed may be broken

    def _how_it_died(self) -> str:
        code = self._process.returncode
        if code is None:
            return "its process closed its pipe"
        if code >= 0:
            return f"its process ended with exit code {code} before the handler had returned"
        try:
            return f"its process was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"its process was killed by signal {-code}"


async def _end_all(children: list[_Child]) -> None:
    await asyncio.gather(*(child.end() for child in children))


def _read(reply: Reply, job: Job[Any]) -> str | None:
    match reply:
        case Returned(result=result, complaint=complaint):
            if complaint:
                logger.warning("job %d (%s) completed, but its %s", job.id, job.worker, complaint)
            return result
        case Snoozing(seconds=seconds):
            raise Snooze(seconds)
        case Cancelling(reason=reason):
            raise Cancel(reason)
        case Raised(failure=failure, trace=trace, is_final=is_final):
            raise Told(failure, trace, is_final=is_final)
