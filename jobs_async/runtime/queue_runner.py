"""One queue: claims as many jobs as it has free slots, runs them side by side, never ahead."""

from __future__ import annotations

import asyncio
import logging
import math
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from anyio import CapacityLimiter

from jobs_async.core.events import JobSlow, JobStarted, JobStuck
from jobs_async.core.outcome import Cancelled, Discarded, Failure, Interrupted, Outcome
from jobs_async.core.workers import WorkerDef
from jobs_async.runtime.deadlines import Deadlines
from jobs_async.runtime.loops import Bell
from jobs_async.runtime.patience import in_time
from jobs_async.runtime.processes import Processes
from jobs_async.runtime.run import Cause, Run
from jobs_async.runtime.slots import Slots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jobs_async.core.job import Job
    from jobs_async.runtime.herald import Herald
    from jobs_async.runtime.host import Host
    from jobs_async.runtime.outage import Outage
    from jobs_async.runtime.settler import Settler

UNKNOWN = "no handler registered"
HAND_BACK = 5.0
"""Seconds until a job that another node can run is claimable again."""
SHYNESS = 0.1
"""Seconds by which we then let the others go first, so that not we claim it again and again."""
MAX_PAUSE = 2.0
"""Seconds between two claims that fail, at most: so soon after an outage work goes on."""

logger = logging.getLogger("jobs_async")


class QueueRunner:
    """The claim loop of one queue and the runs it has started.

    The loop is never cancelled while it claims: a stop rings its bell, and what a claim still brings is handed back.
    """

    def __init__(
        self,
        name: str,
        limit: int,
        *,
        host: Host,
        node: Callable[[], str | None],
        find: Callable[[str], WorkerDef | None],
        settler: Settler,
        herald: Herald,
        outage: Outage,
        poll_interval: float,
        slow_after: float | None = None,
    ) -> None:
        self.name = name
        self.slots = Slots(limit)
        self.runs: dict[tuple[int, int], Run] = {}
        self.idle = asyncio.Event()
        """No handler runs."""
        self.empty = asyncio.Event()
        """And whatever ran is settled and told of."""
        self.idle.set()
        self.empty.set()
        self._running = 0
        self._shy_until = 0.0
        self._host = host
        self._node = node
        self._find = find
        self._settler = settler
        self._herald = herald
        self._outage = outage
        self._poll = poll_interval
        self._claiming = f"claiming from queue {name}"
        self._bell = Bell()
        self._stopping = False
        self._askers: list[asyncio.Event] = []
        self._deadlines = Deadlines(self.runs.values(), slow_after, self._slow)
        self._threads = CapacityLimiter(math.inf)  # the slots bound them
        self._processes = Processes(lambda: self.slots.limit)

    def nudge(self) -> None:
        """There may be something to claim."""
        self._bell.ring()

    async def look(self) -> None:
        """Come back when a claim that began after this call has started what it brought, or none will come."""
        if not self._stopping:
            asked = asyncio.Event()
            self._askers.append(asked)
            self._bell.ring()
            await asked.wait()

    def stop(self) -> None:
        """Claim no more; what runs goes on."""
        self._stopping = True
        self._bell.ring()

    def resize(self, limit: int) -> None:
        """Run so many from now on; what runs beyond that may finish."""
        self.slots.limit = limit
        self._bell.ring()

    async def loop(self) -> None:
        """Claim and run until the stop; then no process waits for a job any longer."""
        try:
            await self._claim_on()
        finally:
            _answer(self._askers)
            await self.dismiss()

    async def _claim_on(self) -> None:
        failures = 0
        while not self._stopping:
            self._bell.silence()
            free = self.slots.free
            if not free:
                await self._bell.wait()
                continue
            began = asyncio.get_running_loop().time()
            askers, self._askers = self._askers, []
            try:
                fetched = await in_time(self._host.store.fetch(self.name, free, node=self._node()))
                failures = 0
                self._outage.worked(self._claiming)
            except Exception as error:
                failures += 1
                self._askers += askers
                self._outage.failed(self._claiming, error, began)
                await self._bell.wait(min(0.05 * 2 ** min(failures, 10), MAX_PAUSE))
                continue
            await self.begin(fetched.jobs)
            _answer(askers)
            if len(fetched.jobs) < free:
                await self._bell.wait(self._pause(fetched.next_due))

    def _pause(self, next_due: float | None) -> float:
        """Until the next job is due, or until another process may have brought one."""
        poll = self._poll * self._host.rng.uniform(0.9, 1.0)
        if next_due is None:
            return poll
        if asyncio.get_running_loop().time() < self._shy_until:
            next_due += self._host.rng.uniform(0, SHYNESS)
        return min(poll, next_due)

    async def begin(self, jobs: Iterable[Job[Any]]) -> None:
        """Run what was claimed; then see to those that nobody here can run, for that means asking the store."""
        runs = [self._admit(job) for job in jobs]
        strangers = [run for run in runs if run.worker is _NOBODY and run.outcome is None]
        mine = [run for run in runs if run.worker is not _NOBODY or run.outcome is not None] if strangers else runs
        if mine and self._herald.is_heard:
            await self._herald.tell(lambda at: [JobStarted(job=run.job, at=at) for run in mine if run.outcome is None])
        for run in mine:
            run.outcome = run.outcome or self._verdict(run)
            if run.outcome is None:
                self._running += 1
                self.idle.clear()
                run.start(self._threads, self._processes, self._ended, self._stuck)
                self._deadlines.watch(run)
            else:
                self._settler.take(run, self._release)
        if strangers:
            await self._send_away(strangers)

    def _admit(self, job: Job[Any]) -> Run:
        """A claimed job takes a slot, whatever becomes of it."""
        run = Run(job, self._find(job.worker) or _NOBODY, self._host)
        run.outcome = self._verdict(run)
        self.slots.take()
        self.runs[job.id, job.claim] = run
        self.empty.clear()
        return run

    def _verdict(self, run: Run) -> Outcome | None:
        """Is there anything against starting it? Asked once more when its claim was told of, which takes its time."""
        if run.cause is Cause.CANCELLED or run.job.cancel_requested:
            return Cancelled(Cause.CANCELLED.value)
        if self._stopping or run.cause is not None or run.job.node != self._node():
            return Interrupted()
        return None

    async def _send_away(self, strangers: list[Run]) -> None:
        """Hand back what another live node can run, for some seconds; what nobody can is discarded."""
        elsewhere: set[str] | None = None
        with suppress(Exception):  # where the store does not say, somebody may
            nodes = await in_time(self._host.store.nodes())
            elsewhere = {worker for node in nodes if node.alive for worker in node.workers}
        for run in strangers:
            if (verdict := self._verdict(run)) is not None:
                run.outcome = verdict
            elif elsewhere is None or run.job.worker in elsewhere:
                self._shy_until = asyncio.get_running_loop().time() + 2 * HAND_BACK
                run.outcome = Interrupted(HAND_BACK)
            else:
                logger.error("job %d is discarded: no live node has a worker %r", run.job.id, run.job.worker)
                run.outcome = Discarded(Failure("WorkerNotFound", UNKNOWN))
            self._settler.take(run, self._release)

    def _ended(self, run: Run) -> None:
        self._running -= 1
        if not self._running:
            self.idle.set()
        self._settler.take(run, self._release)

    def _stuck(self, run: Run) -> None:
        job, cause, stack = run.job, run.cause.value if run.cause else "", run.whereabouts()
        where = _where(stack)
        logger.warning("job %d (%s) goes on after it was told to end (%s)%s", job.id, job.worker, cause, where)
        self._herald.tell_soon(lambda at: JobStuck(job=job, at=at, cause=cause, stack=stack))

    def _slow(self, run: Run, seconds: float) -> None:
        job, stack = run.job, run.whereabouts()
        logger.info("job %d (%s) has run for %.1f s so far%s", job.id, job.worker, seconds, _where(stack))
        self._herald.tell_soon(lambda at: JobSlow(job=job, at=at, seconds=seconds, stack=stack))

    def _release(self, ended: list[Run]) -> None:
        for run in ended:
            del self.runs[run.job.id, run.job.claim]
        self.slots.give_back(len(ended))
        if not self.runs:
            self.empty.set()
        self._bell.ring()

    async def dismiss(self) -> None:
        """Let no process wait for another job."""
        await self._processes.close()

    def close(self) -> None:
        """Let go of what outlives the loop."""
        self._deadlines.close()


def _where(stack: tuple[str, ...]) -> str:
    return f"; it is in {' > '.join(stack)}" if stack else ""


def _answer(askers: Iterable[asyncio.Event]) -> None:
    for asked in askers:
        asked.set()


def _nobody(_args: Any, _ctx: Any) -> None:
    """Stands for a worker that is not there; never called."""


_NOBODY = WorkerDef("nobody", _nobody)
