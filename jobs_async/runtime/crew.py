"""The queue runners of one engine, taken together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from jobs_async.runtime.run import Cause, Run

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from jobs_async.core.store import QueueInfo
    from jobs_async.runtime.queue_runner import QueueRunner


class Crew:
    """Every queue that is run here, and every run in them."""

    def __init__(self, runners: Mapping[str, QueueRunner], cancel_after: float) -> None:
        self.runners = runners
        self._built_with = {name: runner.slots.limit for name, runner in runners.items()}
        self._cancel_after = cancel_after

    def runs(self) -> Iterator[Run]:
        """Every run that is not settled yet; may be asked from any thread."""
        for runner in self.runners.values():
            yield from list(runner.runs.values())

    def nudge(self, queue: str) -> None:
        """A job was put into this queue."""
        if runner := self.runners.get(queue):
            runner.nudge()

    async def look(self) -> None:
        """Let every queue claim what it can run, once."""
        for runner in self.runners.values():
            await runner.look()

    async def quiet(self) -> None:
        """Wait until nothing runs, and whatever ran is settled and told of."""
        for runner in self.runners.values():
            await runner.empty.wait()

    def is_idle(self) -> bool:
        """Whether nothing runs."""
        return all(runner.empty.is_set() for runner in self.runners.values())

    def cancel(self, job_id: int) -> None:
        """Tell the run of a job to end as cancelled."""
        for run in self.runs():
            if run.job.id == job_id and run.cause is None:
                self.end(run, Cause.CANCELLED)

    def end(self, run: Run, cause: Cause) -> None:
        """Tell one run that it is to end; cut it after a while if it does not, or at once where nothing can be told."""
        run.warn(cause)
        if run.worker.process:  # it cannot be told
            run.stop(cause)
        else:
            asyncio.get_running_loop().call_later(self._cancel_after, run.stop, cause)

    def bury(self) -> None:
        """Settle the runs whose task a stranger cancelled before its first step: those never ran a line of ours."""
        for run in self.runs():
            run.never_began()

    def resize(self, queue: str, limit: int | None) -> None:
        """Run so many jobs of a queue from now on; None: as many as it was built for."""
        if runner := self.runners.get(queue):
            limit = limit or self._built_with[queue]
            if limit != runner.slots.limit:
                runner.resize(limit)

    def heed(self, said: Mapping[str, QueueInfo]) -> None:
        """Limits set at run time, here or elsewhere, overrule the ones the queues were built with."""
        for name in self.runners:
            self.resize(name, said[name].limit if name in said else None)
