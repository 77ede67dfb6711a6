"""How far a run of the demo is and what came out of it: read from the store, so true whoever did the work."""

from __future__ import annotations

import heapq
from collections import Counter
from math import ceil
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from jobs_async.cli.demo_index import QUEUE, FileStats, reason, unpacked
from jobs_async.core.job import JobState
from jobs_async.core.store import MAX_PAGE, JobQuery

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from typing import Any

    from jobs_async.core.job import Job
    from jobs_async.runtime.operator import Operator

SLOWEST = 5


class Tally(Struct, frozen=True, kw_only=True):
    """How many files there are, and in which state."""

    total: int = 0
    live: int = 0
    failed: int = 0
    retrying: int = 0

    @property
    def ended(self) -> int:
        return self.total - self.live


class Slow(Struct, frozen=True):
    """A file and the CPU seconds of its job."""

    path: str
    cpu_seconds: float


class Summary(Struct, frozen=True, kw_only=True):
    """What is counted is the same however often the run was killed; what is timed is not."""

    folder: str
    files: int
    failed: int
    lines: int
    functions: int
    classes: int
    failures: dict[str, int]
    slowest: list[Slow]
    wait_p50: float
    wait_p95: float
    jobs: int
    seconds: float
    jobs_per_second: float
    resumed: bool


class Fold:
    """Takes in one job after another."""

    def __init__(self) -> None:
        self.files = self.lines = self.functions = self.classes = 0
        self.failures: Counter[str] = Counter()
        self.waits: list[float] = []
        self.slowest: list[tuple[float, str]] = []

    def take(self, job: Job[Any]) -> None:
        self.files += 1
        if job.state is JobState.completed:
            stats = msgspec.convert(job.result, FileStats)
            self.lines += stats.lines
            self.functions += stats.functions
            self.classes += stats.classes
            add = heapq.heappush if len(self.slowest) < SLOWEST else heapq.heappushpop
            add(self.slowest, (stats.cpu_seconds, job.args["path"]))
        else:
            self.failures[reason(job.last_error.error) if job.last_error else job.state.name] += 1
        if job.attempted_at is not None:
            # The last attempt waited since it was due: since the insert, the end of its back-off, or its rescue. All
            # three are kept in `scheduled_at`; counted from `inserted_at`, a back-off would look like a slow queue.
            self.waits.append(max(0.0, (job.attempted_at - job.scheduled_at).total_seconds()))


async def summarize(jobs: Operator, *, folder: str, ended: int, seconds: float, resumed: bool) -> Summary:
    """Fold all stored jobs. `ended` and `seconds` are this process's own share, for the speed."""
    fold = Fold()
    async for job in stored(jobs, QUEUE):
        fold.take(job)
    fold.waits.sort()
    return Summary(
        folder=folder,
        files=fold.files,
        failed=fold.failures.total(),
        lines=fold.lines,
        functions=fold.functions,
        classes=fold.classes,
        failures=dict(sorted(fold.failures.items(), key=lambda item: (-item[1], item[0]))),
        slowest=[Slow(unpacked(path), cpu) for cpu, path in sorted(fold.slowest, reverse=True)],
        wait_p50=round(percentile(fold.waits, 0.5), 3),
        wait_p95=round(percentile(fold.waits, 0.95), 3),
        jobs=ended,
        seconds=round(seconds, 2),
        jobs_per_second=round(ended / seconds, 1),
        resumed=resumed,
    )


async def stored(jobs: Operator, queue: str, states: Iterable[JobState] | None = None) -> AsyncIterator[Job[Any]]:
    """Every job of a queue, oldest first, a page at a time."""
    after: int | None = None
    while page := await jobs.find(
        JobQuery(queue=queue, states=states, after=after, newest_first=False, limit=MAX_PAGE)
    ):
        for job in page:
            yield job
        after = page[-1].id


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """The smallest value that at least this fraction of all does not exceed; 0 of nothing."""
    return ordered[max(0, ceil(fraction * len(ordered)) - 1)] if ordered else 0.0
