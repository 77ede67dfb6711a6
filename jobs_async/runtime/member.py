"""Being a node: signs of life, what the store answers them with, and a new life after one was lost."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

from msgspec.structs import replace

from jobs_async.core.events import LeaseLost, LoopStalled
from jobs_async.core.job import JobState
from jobs_async.core.store import MAX_PAGE, JobQuery, Node
from jobs_async.core.version import VERSION
from jobs_async.runtime.patience import in_time
from jobs_async.runtime.run import Cause
from jobs_async.runtime.watchdog import Watchdog
from jobs_async.tasks import to_the_end

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jobs_async.core.store import Store
    from jobs_async.core.workers import WorkerDef
    from jobs_async.runtime.crew import Crew
    from jobs_async.runtime.herald import Herald

CALL_OFF_GRACE = 0.5
"""Seconds the store has to take note that a start was called off."""

logger = logging.getLogger("jobs_async")


class Member:
    """One node among those of a store, under a random id, from `join` to `leave`."""

    def __init__(
        self,
        store: Store,
        crew: Crew,
        herald: Herald,
        workers: Mapping[str, WorkerDef],
        *,
        heartbeat: float,
        lease: float,
        max_stall: float | None,
    ) -> None:
        self._store = store
        self._crew = crew
        self._herald = herald
        self._workers = workers
        self._heartbeat = heartbeat
        self._lease = lease
        self._max_stall = max_stall
        self._id = uuid.uuid4().hex
        self._watchdog: Watchdog | None = None

    @property
    def id(self) -> str:
        """The random id; another one after the lease was lost."""
        return self._id

    async def join(self) -> None:
        """Take a lease; raises what the store raises, and then there is none."""
        try:
            await in_time(self._store.beat(self._node(), self._lease, join=True))
            self._crew.heed(await in_time(self._store.queues()))
            if self._max_stall is not None:
                self._watchdog = self._watch(self._max_stall)
        except BaseException:
            await to_the_end(self._call_off())
            raise

    async def _call_off(self) -> None:
        """Whether or not the store has taken note of us, it shall not believe that we live."""
        with suppress(Exception):
            async with asyncio.timeout(CALL_OFF_GRACE):
                await self.leave()

    async def beat(self) -> None:
        """Renew the lease, and do what the store answers; a lease that ran out means that others have our jobs now."""
        beat = await in_time(self._store.beat(self._node(), self._lease))
        if not beat.alive:
            await self._begin_again()
        elif self._watchdog is not None:
            self._watchdog.beaten()
        for job_id in beat.cancel:
            self._crew.cancel(job_id)
        self._crew.bury()
        await self._end_what_is_taken()
        self._crew.heed(await in_time(self._store.queues()))

    async def leave(self) -> None:
        """Give the lease up; raises what the store raises."""
        await in_time(self._store.beat(self._node(), 0.0))

    def close(self) -> None:
        """Let go of what outlives the loops."""
        if self._watchdog is not None:
            self._watchdog.close()

    def _node(self) -> Node:
        return Node(
            id=self._id,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=VERSION,
            queues={name: runner.slots.limit for name, runner in self._crew.runners.items()},
            workers=tuple(sorted(self._workers)),
        )

    async def _begin_again(self) -> None:
        """We were taken for dead: what runs here is no longer ours; go on as another node."""
        old, new = self._id, uuid.uuid4().hex
        logger.error("node %s lost its lease; its handlers are cancelled and it goes on as %s", old, new)
        for run in self._crew.runs():
            run.stop(Cause.LEASE_LOST)
        await in_time(self._store.beat(replace(self._node(), id=new), self._lease, join=True))
        self._id = new
        self._herald.tell_soon(lambda at: LeaseLost(node=old, new_node=new, at=at))

    async def _end_what_is_taken(self) -> None:
        """Tell handlers whose job is no longer theirs: its unique key taken over, rescued by a tool, deleted."""
        runs = [run for run in self._crew.runs() if run.outcome is None and run.cause is None]
        for start in range(0, len(runs), MAX_PAGE):
            page = runs[start : start + MAX_PAGE]
            rows = await in_time(self._store.select(JobQuery(ids=[run.job.id for run in page], limit=MAX_PAGE)))
            held = {(job.id, job.claim) for job in rows if job.state is JobState.executing}
            ended = {(job.id, job.claim) for job in rows if job.state is JobState.completed}
            for run in page:
                key = run.job.id, run.job.claim
                is_ours = key in held or (key in ended and run.completion is not None)
                if not is_ours and run.outcome is None:
                    self._crew.end(run, Cause.TAKEN)

    # --- while the event loop is blocked ---

    def _watch(self, max_stall: float) -> Watchdog:
        loop = asyncio.get_running_loop()

        def noticed(seconds: float, stack: tuple[str, ...]) -> str:
            blocker = self._blocker(loop)
            self._herald.tell_urgently(lambda at: LoopStalled(seconds=seconds, blocker=blocker, stack=stack, at=at))
            return blocker

        def over(seconds: float, stack: tuple[str, ...], blocker: str) -> None:
            stalled = LoopStalled(seconds=seconds, blocker=blocker, stack=stack, at=self._herald.now())
            self._herald.tell_soon(lambda _: stalled, told_urgently=True)

        watchdog = Watchdog(
            node=lambda: self._id,
            lifeline=lifeline() if (lifeline := getattr(self._store, "lifeline", None)) else None,
            heartbeat=self._heartbeat,
            lease=self._lease,
            max_stall=max_stall,
            noticed=noticed,
            over=over,
        )
        watchdog.start()
        return watchdog

    def _blocker(self, loop: asyncio.AbstractEventLoop) -> str:
        """Who is running in a loop that does not come round; asked from another thread."""
        task = asyncio.current_task(loop)
        if (handler := self._herald.called_in(task)) is not None:
            return f"telemetry handler {handler!r}"
        if task is None:
            return "a callback of the event loop"
        for run in self._crew.runs():
            if run.task is task:
                return f"job {run.job.id} ({run.job.worker})"
        return f"task {task.get_name()!r}"
