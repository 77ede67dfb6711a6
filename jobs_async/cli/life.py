"""The life of one process that runs jobs: start or drain, stop as urgently as asked, leave nothing behind."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from jobs_async.cli import exits
from jobs_async.cli.urgency import CUT, DRAIN, Urgency
from jobs_async.core.errors import StoreClosed
from jobs_async.runtime.drain import DrainReport
from jobs_async.runtime.engine import ShutdownReport
from jobs_async.runtime.patience import in_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from jobs_async.core.store import Store
    from jobs_async.runtime.supervisor import Supervisor

GIVE_UP_SECONDS = 2.0
"""How long the store has to take note that our lease is given up."""
CLOSE_SECONDS = 2.0

logger = logging.getLogger("jobs_async.cli")


class End(Struct, frozen=True):
    """How it ended: the exit code, what the stop left behind, and what a burst has done."""

    exit_code: int
    report: ShutdownReport
    drained: DrainReport | None = None


async def live(
    jobs: Supervisor, urgency: Urgency, *, burst: bool, began: Callable[[Supervisor], Awaitable[None]]
) -> End:
    """Run jobs until asked to stop, or in a burst until there is nothing to run.

    Raises:
        StoreError, OSError: the store cannot be opened, or could not be joined.
        JobsError: the Supervisor cannot start.
    """
    life = _Life(jobs, urgency, began)
    try:
        return await life.run(life.drain() if burst else life.serve())
    finally:
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await jobs.store.close()


class _Life:
    def __init__(self, jobs: Supervisor, urgency: Urgency, began: Callable[[Supervisor], Awaitable[None]]) -> None:
        self._jobs = jobs
        self._urgency = urgency
        self._began = began

    async def serve(self) -> None:
        await in_time(self._jobs.store.open())  # here, so that it is still open when the lease is to be given up
        if self._urgency.level < DRAIN:
            await self._jobs.start()
            await self._began(self._jobs)
            await self._jobs.run()

    async def drain(self) -> DrainReport:
        await in_time(self._jobs.store.open())
        if self._urgency.level >= DRAIN:
            return DrainReport()
        await self._began(self._jobs)
        return await self._jobs.drain()

    async def run(self, work: Coroutine[Any, Any, DrainReport | None]) -> End:
        loop = asyncio.get_running_loop()
        working = loop.create_task(work, name="jobs_async run")
        asked = loop.create_task(self._urgency.reached(DRAIN), name="jobs_async asked to stop")
        await asyncio.wait({working, asked}, return_when=asyncio.FIRST_COMPLETED)
        by_itself, node = not asked.done(), self._jobs.node
        asked.cancel()
        report = await (self._jobs.stop() if by_itself else self._stop())
        if by_itself:
            report = self._jobs.shutdown_report or report
        drained = await _end_of(working)
        if not report.is_clean:
            await self._give_up(node)
            return End(exits.LEFT, report, drained)
        if by_itself and drained is None:
            logger.error("the Supervisor stopped by itself")
            return End(exits.FAILED, report)
        return End(exits.OK, report, drained)

    async def _stop(self) -> ShutdownReport:
        logger.info("stopping: running jobs may finish; asked again, they are cancelled, a third time we leave at once")
        loop = asyncio.get_running_loop()
        stopping = loop.create_task(self._jobs.stop(), name="jobs_async stop")
        cut = loop.create_task(self._urgency.reached(CUT), name="jobs_async asked to hurry")
        await asyncio.wait({stopping, cut}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            logger.info("stopping now: running jobs are cancelled")
            self._jobs.hurry()
        cut.cancel()
        return await stopping

    async def _give_up(self, node: str | None) -> None:
        """Count as dead from now on, so that others rescue at once what is left; we leave right after."""
        try:
            async with asyncio.timeout(GIVE_UP_SECONDS):
                await _leave(self._jobs.store, node)
        except Exception as error:
            logger.warning("the lease could not be given up (%s); it runs out by itself", type(error).__name__)


async def _end_of(working: asyncio.Task[DrainReport | None]) -> DrainReport | None:
    """What has come of it, once its Supervisor has stopped; None where it was called off."""
    await asyncio.wait({working}, timeout=CLOSE_SECONDS)
    working.cancel()
    with suppress(StoreClosed, asyncio.CancelledError):
        return await working
    return None


async def _leave(store: Store, node: str | None) -> None:
    for one in await store.nodes():
        if one.id == node:
            await store.beat(one, 0.0)
