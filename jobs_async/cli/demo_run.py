"""A run of the demo: what the database holds, and this process's share of it.

Its reporter job is stored first and ends last, after the summary is out: while it lives the run is unfinished, and
whoever starts the demo again goes on with it.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from jobs_async.cli.demo_index import QUEUE, draft, index_file, packed, unpacked
from jobs_async.cli.demo_summary import Tally, stored, summarize
from jobs_async.cli.demo_view import shown
from jobs_async.clock import stopwatch
from jobs_async.core.errors import IllegalTransition, JobNotFound
from jobs_async.core.events import Event, JobDiscarded, JobRescued
from jobs_async.core.job import LIVE, Job, JobState
from jobs_async.core.outcome import Snooze
from jobs_async.core.retry import ConstantBackoff
from jobs_async.core.store import JobQuery
from jobs_async.core.workers import worker
from jobs_async.runtime.supervisor import Supervisor
from jobs_async.telemetry import Telemetry

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobs_async.cli.demo_index import Source
    from jobs_async.cli.demo_view import View
    from jobs_async.core.store import Store

REPORTS = "demo-report"
REPORT_EVERY = 2.0
HEARTBEAT, LEASE = 0.5, 3.0
"""What a killed process was running is taken over after 3 seconds; a service does well with the default of 30."""
MAX_RESCUES = 100
BATCH = 1000
MIN_POLL, MAX_POLL = 0.2, 2.0
MAX_STALL = 120.0
"""Seconds without any job ending after which the demo gives up; a file takes one or two at most."""


class Demo:
    """One process's share of a run."""

    def __init__(self, store: Store, source: Source, view: View, concurrency: int) -> None:
        telemetry = Telemetry()
        telemetry.attach(self._heed)
        report = worker(
            name="demo.report", queue=REPORTS, max_attempts=1000, retry_strategy=ConstantBackoff(REPORT_EVERY)
        )
        self._report = report(self.report)
        self.jobs = Supervisor(
            store,
            queues={QUEUE: concurrency, REPORTS: 1},
            workers=[index_file, self._report],
            telemetry=telemetry,
            poll_interval=0.5,
            shutdown_timeout=5,
            heartbeat=HEARTBEAT,
            lease=LEASE,
            rescue_interval=HEARTBEAT,
            max_rescues=MAX_RESCUES,
        )
        self.source = source
        self.view = view
        self.tally = Tally()
        self.rescued = 0
        self._is_over = False

    async def run(self, *, fresh: bool) -> None:
        """From the first file to the summary."""
        reporter, resumed = await self._begin(fresh)
        before = await self._look()
        self.view.started(self.source.folder, before if resumed else None)
        async with self.jobs:
            began = stopwatch()
            await self._enqueue(self.source.files())
            await self._watch()
            self.view.ended(
                await summarize(
                    self.jobs,
                    folder=self.source.folder,
                    ended=self.tally.ended - before.ended,
                    seconds=stopwatch() - began,
                    resumed=resumed,
                )
            )
            await self._close(reporter)

    # --- the beginning ---

    async def _begin(self, fresh: bool) -> tuple[Job[Any], bool]:
        """The reporter of the run to go on with, or of a new one; and which it is."""
        found = await self.jobs.find(JobQuery(queue=REPORTS, limit=1))
        if found and found[0].state not in (JobState.completed, JobState.cancelled) and not fresh:
            folder = found[0].args["folder"]
            if folder == packed(self.source.folder):
                await self._bring_back_lost()
                return found[0], True
            self.view.line(f"drops an unfinished run over {shown(unpacked(folder))}")
        await self._forget()
        begun = self._report.options(unique_key="demo", delay=REPORT_EVERY).draft(packed(self.source.folder))
        return await self.jobs.enqueue(begun), False

    async def _forget(self) -> None:
        """Remove the jobs of former runs, and nothing else: the database may be somebody's own.

        Reporters go last, so that killed in here a finished run is still finished and an unfinished one can go on.
        """
        for queue in (QUEUE, REPORTS):
            ids: list[int] = []
            async for job in stored(self.jobs, queue):
                if job.state is JobState.executing:  # cannot be deleted, whether its process lives or was killed
                    await self.jobs.store.discard(job, "forgotten")
                ids.append(job.id)
                if len(ids) == BATCH:
                    await self.jobs.store.delete(ids)
                    ids.clear()
            await self.jobs.store.delete(ids)

    async def _enqueue(self, paths: Iterator[str]) -> None:
        """One job per file, however often this is begun: what is stored already is met by its idempotency key."""
        while batch := await asyncio.to_thread(lambda: [draft(path) for path in islice(paths, BATCH)]):
            await self.jobs.enqueue_many(batch)
            self.view.progress(await self._look())

    # --- the middle ---

    async def report(self, folder: str) -> None:
        """The reporter job: says every two seconds how far the run is, until its summary is out."""
        if not self._is_over:
            self.view.report(await self._look(), self.rescued)
            raise Snooze(REPORT_EVERY)

    async def _watch(self) -> None:
        """Wait until no file's job is live."""
        loop = asyncio.get_running_loop()
        ended, moved_at = -1, loop.time()
        while True:
            asked_at = loop.time()
            tally = await self._look()
            self.view.progress(tally)
            if not tally.live and not await self._bring_back_lost():
                return
            now = loop.time()
            if tally.ended != ended:
                ended, moved_at = tally.ended, now
            elif now > moved_at + MAX_STALL:
                raise click.ClickException(f"no job has ended for {MAX_STALL:.0f} seconds")
            await asyncio.sleep(min(max(MIN_POLL, 10 * (now - asked_at)), MAX_POLL))  # counting 100,000 rows takes time

    async def _look(self) -> Tally:
        counts = await self.jobs.counts()
        of = {state: count for (queue, state), count in counts.items() if queue == QUEUE}
        self.tally = Tally(
            total=sum(of.values()),
            live=sum(count for state, count in of.items() if state in LIVE),
            failed=of.get(JobState.discarded, 0),
            retrying=of.get(JobState.retryable, 0),
        )
        return self.tally

    # --- what a killed process leaves behind ---

    async def _heed(self, event: Event) -> None:
        """A telemetry handler."""
        match event:
            case JobRescued(job=job) | JobDiscarded(job=job) if is_lost(job):
                self.rescued += 1
                if job.state is not JobState.available:
                    await self._again(job)
            case _:
                pass

    async def _bring_back_lost(self) -> bool:
        """As `_heed`, for what happened while nobody listened; whether there was anything."""
        lost = [
            job
            for queue in (QUEUE, REPORTS)
            async for job in stored(self.jobs, queue, (JobState.retryable, JobState.discarded))
            if is_lost(job)
        ]
        for job in lost:
            await self._again(job)
        return bool(lost)

    async def _again(self, job: Job[Any]) -> None:
        with suppress(IllegalTransition, JobNotFound):  # somebody else was faster
            await self.jobs.retry(job.id)

    # --- the end ---

    async def _close(self, reporter: Job[Any]) -> None:
        """End the run: wake the reporter, so that it completes. Killed before that, the summary is shown once more."""
        self._is_over = True
        await self._again(reporter)
        with suppress(TimeoutError, JobNotFound):
            await self.jobs.wait(reporter, timeout=10)


def is_lost(job: Job[Any]) -> bool:
    """Whether a job's latest attempt died with its process, which is no fault of its file.

    Such an attempt counts, or a file that kills its process would do so for ever. Here kills come from outside: a job
    they left without attempts, or with a back-off meant for killers, is run again at once. So a discarded file always
    bears its own reason, whatever was killed when, save one that was lost more than MAX_RESCUES times.
    """
    return job.last_error is not None and job.last_error.type == "Lost" and job.rescues <= MAX_RESCUES
