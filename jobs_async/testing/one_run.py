"""One attempt of one job, by the parts of the runtime that run it in earnest."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from jobs_async.runtime.herald import Herald
from jobs_async.runtime.host import clock_of
from jobs_async.runtime.outage import Outage
from jobs_async.runtime.queue_runner import QueueRunner
from jobs_async.runtime.run import Cause
from jobs_async.runtime.settler import Settler

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from jobs_async.core.job import Job
    from jobs_async.runtime.supervisor import Supervisor

TELLING_GRACE = 1.0
"""Seconds telemetry has once the run of a job was cancelled."""


class OneRun:
    """The parts of an engine that one job needs, for as long as it runs."""

    def __init__(self, supervisor: Supervisor, queue: str) -> None:
        known: Any = supervisor
        self._herald = Herald(supervisor.telemetry, clock_of(supervisor))
        outage = Outage(self._herald)
        self._settler = Settler(supervisor.store, self._herald, outage, supervisor.rng, known._settled)
        self._runner = QueueRunner(
            queue,
            1,
            host=supervisor,
            node=_nobody,
            find=known._workers.get,
            settler=self._settler,
            herald=self._herald,
            outage=outage,
            poll_interval=1.0,
        )

    async def run(self, claim: Awaitable[Job[Any]]) -> None:
        claimed = await claim
        settling = asyncio.get_running_loop().create_task(self._settler.loop(), name="jobs_async settler")
        try:
            await self._runner.begin([claimed])
            await self._runner.empty.wait()
        finally:
            self._settler.close()
            await asyncio.wait({settling})
            await self._herald.close()
            await self._runner.dismiss()
            self._runner.close()

    def stop(self) -> None:
        """Cut what runs, and hand back what has not begun."""
        self._herald.hurry(TELLING_GRACE)
        self._runner.stop()
        for run in list(self._runner.runs.values()):
            run.stop(Cause.STOP)


def _nobody() -> None:
    """The node of what is claimed without one."""
