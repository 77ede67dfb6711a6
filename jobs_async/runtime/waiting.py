"""Waiting for the end of jobs, wherever they run: told by our own settler, asked of the store for all the others."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from jobs_async.core.errors import JobNotFound, StoreClosed
from jobs_async.core.job import FINAL, Job
from jobs_async.core.store import MAX_PAGE, JobQuery, Store
from jobs_async.runtime.patience import in_time

FIRST_PAUSE, MAX_PAUSE = 0.05, 1.0

logger = logging.getLogger("jobs_async")


class Waiters:
    """One poller for all who wait; it runs only while somebody does."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[int, set[asyncio.Future[Job[Any]]]] = {}
        self._poller: asyncio.Task[None] | None = None
        self._pause = FIRST_PAUSE

    async def wait(self, job_id: int, timeout: float | None) -> Job[Any]:
        """The job's record once it has ended.

        Raises:
            JobNotFound: it is not, or no longer, in the store.
            TimeoutError: it has not ended in time.
            StoreClosed: the Supervisor was stopped meanwhile.
        """
        future: asyncio.Future[Job[Any]] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(job_id, set()).add(future)
        self._pause = FIRST_PAUSE
        try:
            async with asyncio.timeout(timeout):
                await self._look([job_id])
                if self._poller is None or self._poller.done():
                    self._poller = asyncio.get_running_loop().create_task(self._poll(), name="jobs_async waiting")
                return await future
        finally:
            futures = self._waiting.get(job_id, set())
            futures.discard(future)
            if future.done() and not future.cancelled():
                future.exception()  # looked at, also where something else ended the wait
            if not futures:
                self._waiting.pop(job_id, None)

    def settled(self, job: Job[Any]) -> None:
        """Our own settler has just written this record."""
        if job.id in self._waiting and job.state in FINAL:
            self._answer(job.id, job)

    def close(self) -> None:
        """Ask no more; who still waits is told."""
        if self._poller is not None:
            self._poller.cancel()
            self._poller = None
        for job_id in list(self._waiting):
            self._answer(job_id, StoreClosed(f"the Supervisor was stopped before job {job_id} ended"))

    def _answer(self, job_id: int, answer: Job[Any] | Exception) -> None:
        for future in self._waiting.pop(job_id, set()):
            if future.done():
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)

    async def _poll(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._pause)
            self._pause = min(self._pause * 1.5, MAX_PAUSE)
            try:
                await self._look(list(self._waiting))
            except Exception as error:
                logger.warning("the store does not say how awaited jobs are (%s); asking again", error)

    async def _look(self, wanted: list[int]) -> None:
        for start in range(0, len(wanted), MAX_PAGE):
            ids = wanted[start : start + MAX_PAGE]
            found = {job.id: job for job in await in_time(self._store.select(JobQuery(ids=ids, limit=MAX_PAGE)))}
            for job_id in ids:
                job = found.get(job_id)
                if job is None:
                    self._answer(job_id, JobNotFound(job_id))
                elif job.state in FINAL:
                    self._answer(job_id, job)
