"""What lives between start and stop: one node, its loops, and the order in which they end.

    engine   ── settler      ends last, when all is settled
             ├─ heartbeat    renews the node's lease
             ├─ watchdog     a thread: keeps the lease while the loop is blocked, and says by whom
             ├─ janitor      rescues the jobs of dead nodes, prunes old ones
             ├─ scheduler    fires the ticks of cron entries
             └─ one QueueRunner per queue ── one task per running job

The stop sequence runs in the engine's own task, so no cancellation of a caller pierces it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from jobs_async.core.job import JobState
from jobs_async.runtime.crew import Crew
from jobs_async.runtime.herald import Herald
from jobs_async.runtime.host import clock_of
from jobs_async.runtime.janitor import Janitor
from jobs_async.runtime.loops import Bell, every
from jobs_async.runtime.member import Member
from jobs_async.runtime.outage import Outage
from jobs_async.runtime.queue_runner import QueueRunner
from jobs_async.runtime.run import Cause
from jobs_async.runtime.scheduler import TRY_EVERY, Scheduler
from jobs_async.runtime.settler import Settler

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobs_async.core.hint import Hint
    from jobs_async.core.job import Job
    from jobs_async.core.lifecycle import Transition
    from jobs_async.core.schedule import CronEntry
    from jobs_async.core.workers import WorkerDef
    from jobs_async.runtime.host import Host
    from jobs_async.telemetry import Telemetry

CANCEL_GRACE = 3.0
"""Seconds a handler has, once cancelled, to clean up."""
FLUSH_GRACE = 1.2
"""Seconds the loops, the last settlements and telemetry have in all."""
CLEAR_GRACE, FAREWELL_GRACE = 0.25, 0.5
"""Seconds the store has to say what of ours is still claimed, and to take note that we are gone."""
PRUNE_EVERY = 60.0
"""Seconds between two searches for jobs that are kept no longer."""
TELLING_GRACE = 1.0
"""Seconds telemetry has in all, once no handler runs any more."""

LOOPS = {
    "heartbeat": "the heartbeat",
    "janitor": "the search for lost jobs",
    "pruner": "the removal of old jobs",
    "scheduler": "the cron scheduler",
}
"""What each loop does, as it is told of when it fails."""

logger = logging.getLogger("jobs_async")


class Settings(Struct, frozen=True, kw_only=True):
    """Numbers of a Supervisor, in seconds."""

    poll_interval: float = 1.0
    shutdown_timeout: float = 30.0
    heartbeat: float = 5.0
    lease: float = 30.0
    rescue_interval: float = 10.0
    max_rescues: int = 3
    cancel_after: float = 5.0
    max_stall: float | None = 300.0
    slow_after: float | None = 60.0
    retention: Mapping[JobState, float] = {}  # msgspec copies empty containers


class ShutdownReport(Struct, frozen=True):
    """What a stop left behind: jobs whose handler had not ended, and settlements the store did not take in time."""

    still_running: tuple[int, ...] = ()
    unsettled: tuple[int, ...] = ()

    @property
    def is_clean(self) -> bool:
        return not self.still_running and not self.unsettled


class Engine:
    """Made by a start, gone after the stop; a restart is a new engine, and a new node."""

    def __init__(
        self,
        host: Host,
        *,
        queues: Mapping[str, int],
        workers: Mapping[str, WorkerDef],
        settings: Settings,
        telemetry: Telemetry | None,
        settled: Callable[[Transition, Job[Any]], None],
        crons: Mapping[str, CronEntry] | None = None,
    ) -> None:
        self._host = host
        clock = clock_of(host)
        self._scheduler = None if crons is None else Scheduler(host, crons, clock)
        self._settings = settings
        self._herald = Herald(telemetry, clock)
        self._outage = Outage(self._herald)
        self._settler = Settler(host.store, self._herald, self._outage, host.rng, settled)
        runners = {
            name: QueueRunner(
                name,
                limit,
                host=host,
                node=lambda: self._member.id,
                find=workers.get,
                settler=self._settler,
                herald=self._herald,
                outage=self._outage,
                poll_interval=settings.poll_interval,
                slow_after=settings.slow_after,
            )
            for name, limit in queues.items()
        }
        self.crew = Crew(runners, settings.cancel_after)
        self._member = Member(
            host.store,
            self.crew,
            self._herald,
            workers,
            heartbeat=settings.heartbeat,
            lease=settings.lease,
            max_stall=settings.max_stall,
        )
        self._janitor = Janitor(
            host,
            self.crew,
            self._herald,
            workers=workers,
            node=lambda: self._member.id,
            max_rescues=settings.max_rescues,
            retention=settings.retention,
        )
        self._stop_asked = asyncio.Event()
        self._beating, self._rescuing, self._pruning, self._ticking = Bell(), Bell(), Bell(), Bell()
        self._leaving = self._ended = self._is_hurried = False
        self._grace: asyncio.Timeout | None = None
        self.report = ShutdownReport()
        self._task: asyncio.Task[None] | None = None
        self._unheard: Callable[[], None] = _nothing

    async def start(self) -> None:
        """Join the nodes, then run; raises what the store raises, and then nothing has begun."""
        if self.crew.runners:
            await self._member.join()
            if (wakes := getattr(self._host.store, "wakes", None)) is not None:
                self._unheard = wakes(self._heed)
        self._task = asyncio.get_running_loop().create_task(self._live(), name="jobs_async engine")

    def _heed(self, hint: Hint) -> None:
        """Look now at what would be found by the next poll, or said in the answer to the next sign of life."""
        match hint.kind:
            case "work":
                self.crew.nudge(hint.name)
            case "cancel" if hint.name == self._member.id:
                self._beating.ring()
            case "queue" if hint.name in self.crew.runners:
                self._beating.ring()
                self.crew.nudge(hint.name)
            case "anything":
                self._beating.ring()
                for queue in self.crew.runners:
                    self.crew.nudge(queue)
            case _:
                pass

    @property
    def node(self) -> str | None:
        """The id under which it is a node; None where it runs no queues."""
        return self._member.id if self.crew.runners else None

    @property
    def is_alive(self) -> bool:
        """Started, and not ended."""
        return self._task is not None and not self._task.done()

    def ask_to_stop(self) -> None:
        """Begin the stop sequence; asking twice is asking once."""
        self._stop_asked.set()

    def hurry(self) -> None:
        """Let a stop, this one or the next, wait no longer for running jobs."""
        self._is_hurried = True
        if self._grace is not None:
            with suppress(RuntimeError):  # it is over already
                self._grace.reschedule(asyncio.get_running_loop().time())

    async def die(self) -> None:
        """End as by `kill -9`, save that handlers are cancelled: nothing is settled and nothing handed back. The lease
        counts as run out."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        handlers = [run.task for run in self.crew.runs() if run.task is not None]
        if handlers:
            await asyncio.wait(handlers, timeout=CANCEL_GRACE)
        if self.crew.runners:
            await self._member.leave()

    async def ended(self) -> None:
        """Wait for the end without holding it up: cancelling this wait cancels nothing else."""
        if self._task is not None:
            await asyncio.wait({self._task})

    @property
    def stuck(self) -> tuple[int, ...]:
        """The jobs whose handlers were told to end and go on."""
        return tuple(run.job.id for run in self.crew.runs() if run.is_stuck and run.outcome is None)

    # --- living ---

    async def _live(self) -> None:
        settling = self._spawn(self._settler.loop(), "settler")
        claiming = [self._spawn(runner.loop(), f"queue {name}") for name, runner in self.crew.runners.items()]
        loops = [*claiming, *self._clockwork(), *(self._upkeep() if claiming else ())]
        asked = self._spawn(self._stop_asked.wait(), "stop request")
        try:
            await asyncio.wait({asked, settling, *loops}, return_when=asyncio.FIRST_COMPLETED)
            await self._stop(settling, claiming, loops)
        finally:
            self._ended = True
            self._unheard()
            self.report = self._take_stock()
            for run in self.crew.runs():  # where a stranger has cancelled even us
                run.stop(Cause.STOP)
            for task in (asked, settling, *loops):
                task.cancel()
            for runner in self.crew.runners.values():
                runner.close()
            self._member.close()

    def _spawn(self, work: Awaitable[Any], name: str) -> asyncio.Task[Any]:
        async def guarded() -> None:
            try:
                await work
            except asyncio.CancelledError:
                if not self._ended:
                    logger.critical("%s was cancelled by a stranger; the Supervisor stops", name)
                raise
            except Exception:
                logger.critical("%s ended on a bug of its own; the Supervisor stops", name, exc_info=True)

        return asyncio.get_running_loop().create_task(guarded(), name=f"jobs_async {name}")

    def _upkeep(self) -> list[asyncio.Task[Any]]:
        """The loops of a node: its heart, which beats until it leaves, and the janitor's, which end with the stop."""
        settings, stopping = self._settings, self._stop_asked.is_set
        return [
            self._every("heartbeat", settings.heartbeat, self._member.beat, self._beating, lambda: self._leaving),
            self._every("janitor", settings.rescue_interval, self._janitor.sweep, self._rescuing, stopping),
        ]

    def _clockwork(self) -> list[asyncio.Task[Any]]:
        """The loops that need no node: one removes what is old, one fires ticks."""
        stopping, loops = self._stop_asked.is_set, list[asyncio.Task[Any]]()
        if self._settings.retention:
            prune = partial(self._janitor.prune, stopping)
            loops.append(self._every("pruner", PRUNE_EVERY, prune, self._pruning, stopping))
        if self._scheduler is not None:
            loops.append(self._every("scheduler", TRY_EVERY, self._scheduler.look, self._ticking, stopping))
        return loops

    def _every(
        self, name: str, seconds: float, do: Callable[[], Awaitable[object]], bell: Bell, ended: Callable[[], bool]
    ) -> asyncio.Task[Any]:
        loop = every(seconds, do, name=LOOPS[name], bell=bell, ended=ended, outage=self._outage, rng=self._host.rng)
        return self._spawn(loop, name)

    def look_around(self) -> None:
        """The clock was set: something may be due."""
        self._ticking.ring()
        for queue in self.crew.runners:
            self.crew.nudge(queue)

    def look_at_clock(self) -> None:
        """Cron entries have come or gone."""
        if self._scheduler is not None:
            self._scheduler.notice()
            self._ticking.ring()

    async def _stop(
        self, settling: asyncio.Task[Any], claiming: list[asyncio.Task[Any]], loops: list[asyncio.Task[Any]]
    ) -> None:
        """Claim no more, let finish, cancel, hand back, settle, leave. Each step has a deadline."""
        self._stop_asked.set()
        for runner in self.crew.runners.values():
            runner.stop()
        for bell in (self._rescuing, self._pruning, self._ticking):
            bell.ring()
        self._grace = asyncio.timeout(0.0 if self._is_hurried else self._settings.shutdown_timeout)
        if not await self._all_settled(claiming, self._grace):
            for run in self.crew.runs():
                run.stop(Cause.STOP)
            await self._all_settled(claiming, asyncio.timeout(CANCEL_GRACE))
        self._herald.hurry(TELLING_GRACE)
        self._leaving = True
        self._beating.ring()
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_GRACE):
                if loops:
                    await asyncio.wait(loops)
                self._settler.close()
                await asyncio.wait({settling})
                await self._herald.close()
        report = self._take_stock()
        if report.still_running:
            logger.warning("stopped while jobs %s still run; their lease will run out", list(report.still_running))
        if report.unsettled:
            logger.warning("stopped before the outcome of jobs %s was stored", list(report.unsettled))
        if claiming and report.is_clean:
            for farewell, seconds in ((self._janitor.clear_out, CLEAR_GRACE), (self._member.leave, FAREWELL_GRACE)):
                with suppress(Exception):
                    async with asyncio.timeout(seconds):
                        await farewell()

    def _take_stock(self) -> ShutdownReport:
        left = list(self.crew.runs())
        return ShutdownReport(
            tuple(run.job.id for run in left if run.task and not run.task.done()),
            tuple(run.job.id for run in left if not run.task or run.task.done()),
        )

    async def _all_settled(self, claiming: list[asyncio.Task[Any]], deadline: asyncio.Timeout) -> bool:
        """Wait until no claim is on its way, and every run has ended and been settled; whether that came in time."""
        try:
            async with deadline:
                if claiming:
                    await asyncio.wait(claiming)
                self.crew.bury()
                for runner in self.crew.runners.values():
                    await runner.idle.wait()
                self._herald.hurry(TELLING_GRACE)
                for runner in self.crew.runners.values():
                    await runner.empty.wait()
        except TimeoutError:
            return False
        return True


def _nothing() -> None:
    """Where there is nothing to end."""
