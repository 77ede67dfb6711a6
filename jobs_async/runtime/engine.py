"""What lives between start and stop: one node, its loops, and the order in which they end.

    engine   ── settler      ends last, when all is settled
             ├─ heartbeat    renews the node's lease
             ├─ janitor      rescues the jobs of dead nodes
             └─ one QueueRunner per queue ── one task per running job

The stop sequence runs in the engine's own task, so no cancellation of a caller pierces it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from msgspec.structs import replace

from jobs_async.core.events import outcome_event
from jobs_async.core.job import JobState
from jobs_async.core.lifecycle import decide
from jobs_async.core.outcome import Interrupted, Lost
from jobs_async.core.retry import DEFAULT_STRATEGY
from jobs_async.core.store import MAX_PAGE, JobQuery, Node
from jobs_async.core.version import VERSION
from jobs_async.runtime.loops import Bell, every
from jobs_async.runtime.queue_runner import QueueRunner
from jobs_async.runtime.run import Cause, Host, Run
from jobs_async.runtime.settler import Settler

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from jobs_async.core.job import Job
    from jobs_async.core.workers import WorkerDef
    from jobs_async.telemetry import Telemetry

CANCEL_GRACE = 3.0
"""Seconds a handler has, once cancelled, to clean up."""
FLUSH_GRACE = 0.8
"""Seconds the last settlements have, and then the farewell to the store."""

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
        settled: Callable[[Job[Any]], None],
    ) -> None:
        self._host = host
        self._queues = queues
        self._workers = workers
        self._settings = settings
        self._telemetry = telemetry
        self._rng = host.rng
        self._settler = Settler(host.store, telemetry, host.clock, host.rng, settled)
        self._node = self._new_node()
        self._stop_asked = asyncio.Event()
        self._beating, self._rescuing = Bell(), Bell()
        self._leaving = False
        self._strays: set[tuple[int, int]] = set()
        self.report = ShutdownReport()
        self.runners = {
            name: QueueRunner(
                name,
                limit,
                host=host,
                node=lambda: self._node.id,
                find=workers.get,
                settler=self._settler,
                telemetry=telemetry,
                poll_interval=settings.poll_interval,
            )
            for name, limit in queues.items()
        }
        self._task: asyncio.Task[None] | None = None

    @property
    def node(self) -> str:
        """The random id of this start."""
        return self._node.id

    async def start(self) -> None:
        """Join the nodes, then run; raises what the store raises, and then nothing has begun."""
        if self.runners:
            await self._host.store.beat(self._node, self._settings.lease, join=True)
            await self._heed_limits()
        self._task = asyncio.get_running_loop().create_task(self._live(), name="jobs_async engine")

    @property
    def is_alive(self) -> bool:
        """Started, and not ended."""
        return self._task is not None and not self._task.done()

    def ask_to_stop(self) -> None:
        """Begin the stop sequence; asking twice is asking once."""
        self._stop_asked.set()

    async def ended(self) -> None:
        """Wait for the end without holding it up: cancelling this wait cancels nothing else."""
        if self._task is not None:
            await asyncio.wait({self._task})

    def nudge(self, queue: str) -> None:
        """A job was put into this queue."""
        if runner := self.runners.get(queue):
            runner.nudge()

    def all_runs(self) -> Iterator[Run]:
        for runner in self.runners.values():
            yield from list(runner.runs.values())

    def cancel(self, job_id: int) -> None:
        """Tell the run of a job to end as cancelled; cut it after a while if it does not."""
        for run in self.all_runs():
            if run.job.id == job_id and run.cause is None:
                self._cancel(run)

    def resize(self, queue: str, limit: int) -> None:
        """Run so many jobs of a queue from now on."""
        if runner := self.runners.get(queue):
            runner.resize(limit)

    def _cancel(self, run: Run) -> None:
        run.warn(Cause.CANCELLED)
        asyncio.get_running_loop().call_later(self._settings.cancel_after, run.stop, Cause.CANCELLED)

    # --- living ---

    async def _live(self) -> None:
        settling = self._spawn(self._settler.loop(), "settler")
        loops = [self._spawn(runner.loop(), f"queue {name}") for name, runner in self.runners.items()]
        if self.runners:
            loops += [
                self._spawn(self._heartbeat(), "heartbeat"),
                self._spawn(self._janitor(), "janitor"),
            ]
        asked = self._spawn(self._stop_asked.wait(), "stop request")
        try:
            await asyncio.wait({asked, settling, *loops}, return_when=asyncio.FIRST_COMPLETED)
            await self._stop(settling, loops)
        finally:
            for task in (asked, settling, *loops):
                task.cancel()
            for runner in self.runners.values():
                runner.close()

    def _spawn(self, work: Awaitable[Any], name: str) -> asyncio.Task[Any]:
        async def guarded() -> None:
            try:
                await work
            except Exception:
                logger.critical("%s ended on a bug of its own; the Supervisor stops", name, exc_info=True)

        return asyncio.get_running_loop().create_task(guarded(), name=f"jobs_async {name}")

    def _heartbeat(self) -> Awaitable[None]:
        return every(
            self._settings.heartbeat,
            self._beat,
            name="heartbeat",
            bell=self._beating,
            ended=lambda: self._leaving,
            rng=self._rng,
        )

    def _janitor(self) -> Awaitable[None]:
        return every(
            self._settings.rescue_interval,
            self._rescue,
            name="rescue",
            bell=self._rescuing,
            ended=self._stop_asked.is_set,
            rng=self._rng,
        )

    async def _stop(self, settling: asyncio.Task[Any], loops: list[asyncio.Task[Any]]) -> None:
        """Claim no more, let finish, cancel, hand back, settle, leave. Each step has a deadline."""
        self._stop_asked.set()
        runners = list(self.runners.values())
        for runner in runners:
            runner.stop()
        self._rescuing.ring()
        if not await self._all_settled(self._settings.shutdown_timeout):
            for run in self.all_runs():
                run.stop(Cause.STOP)
            await self._all_settled(CANCEL_GRACE)
        self._leaving = True
        self._beating.ring()
        with suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_GRACE):
                if loops:
                    await asyncio.wait(loops)
                self._settler.close()
                await asyncio.wait({settling})
        self.report = ShutdownReport(
            tuple(run.job.id for run in self.all_runs() if run.task and not run.task.done()),
            tuple(run.job.id for run in self.all_runs() if not run.task or run.task.done()),
        )
        if not self.report.is_clean:
            logger.warning(
                "stopped while jobs %s still ran, and jobs %s could not be settled; others will rescue them",
                list(self.report.still_running),
                list(self.report.unsettled),
            )
        if self.runners and self.report.is_clean:
            with suppress(Exception):
                async with asyncio.timeout(FLUSH_GRACE):
                    await self._host.store.beat(self._node, 0.0)

    async def _all_settled(self, seconds: float) -> bool:
        """Wait until no run is left that has not ended and been settled; whether that came true in time."""
        try:
            async with asyncio.timeout(seconds):
                for runner in self.runners.values():
                    await runner.empty.wait()
        except TimeoutError:
            return False
        return True

    # --- being alive, and looking after the dead ---

    def _new_node(self) -> Node:
        return Node(
            id=uuid.uuid4().hex,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=VERSION,
            queues=dict(self._queues),
            workers=tuple(sorted(self._workers)),
        )

    async def _beat(self) -> None:
        """Renew the lease; a lease that ran out means that others have our jobs now."""
        node = replace(self._node, workers=tuple(sorted(self._workers)))
        beat = await self._host.store.beat(node, self._settings.lease)
        if not beat.alive:
            logger.error("node %s lost its lease; its handlers are cancelled and it goes on under a new id", node.id)
            for run in self.all_runs():
                run.stop(Cause.LEASE_LOST)
            self._node = self._new_node()
            await self._host.store.beat(self._node, self._settings.lease, join=True)
        for job_id in beat.cancel:
            self.cancel(job_id)
        await self._stop_what_is_taken()
        await self._heed_limits()

    async def _stop_what_is_taken(self) -> None:
        """Tell handlers whose job is no longer theirs: its unique key taken over, rescued by a tool, deleted."""
        runs = [run for run in self.all_runs() if run.outcome is None and run.cause is None]
        for start in range(0, len(runs), MAX_PAGE):
            page = runs[start : start + MAX_PAGE]
            query = JobQuery(ids=[run.job.id for run in page], limit=MAX_PAGE)
            rows = await self._host.store.select(query)
            held = {(job.id, job.claim) for job in rows if job.state is JobState.executing}
            for run in page:
                if (run.job.id, run.job.claim) not in held and run.outcome is None:
                    self._cancel(run)

    async def _heed_limits(self) -> None:
        """Limits set at run time, here or elsewhere, overrule the ones we were built with."""
        for name, info in (await self._host.store.queues()).items():
            runner = self.runners.get(name)
            if runner is not None and info.limit is not None and info.limit != runner.slots.limit:
                runner.resize(info.limit)

    async def _rescue(self) -> None:
        """Free what dead nodes were running; any node may, for a lost race changes nothing."""
        await self._hand_back_strays()
        after = None
        while jobs := await self._host.store.select(
            JobQuery(orphaned=True, newest_first=False, after=after, limit=MAX_PAGE)
        ):
            after = jobs[-1].id
            now = self._host.clock.now()
            steps = [decide(job, Lost(self._settings.max_rescues), self._lost_delay(job)) for job in jobs]
            applied = list(zip(steps, await self._host.store.apply(steps), strict=True))
            if self._telemetry is not None and self._telemetry.is_watched:
                await self._telemetry.deliver([outcome_event(step, job, now) for step, job in applied if job])
            for queue in {job.queue for _, job in applied if job}:
                self.nudge(queue)

    async def _hand_back_strays(self) -> None:
        """Free what the store says we run and we do not: claims whose answer never arrived, here twice in a row."""
        query = JobQuery(states=[JobState.executing], node=self.node, newest_first=False, limit=MAX_PAGE)
        claimed = await self._host.store.select(query)
        known = {key for runner in self.runners.values() for key in runner.runs}
        strays = {(job.id, job.claim): job for job in claimed if (job.id, job.claim) not in known}
        lost = [decide(job, Interrupted()) for key, job in strays.items() if key in self._strays]
        self._strays = set(strays)
        for job in await self._host.store.apply(lost) if lost else ():
            if job is not None:
                logger.warning("job %d (%s) was claimed but its claim never arrived; handed back", job.id, job.worker)
                self.nudge(job.queue)

    def _lost_delay(self, job: Job[Any]) -> float:
        return DEFAULT_STRATEGY.delay(max(0, job.rescues - 1), self._rng, self._host.clock.now().timestamp())
