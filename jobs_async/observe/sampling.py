"""What the store says about queues and nodes, as numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from msgspec import Struct

from jobs_async.core.job import WAITING, Job, JobState
from jobs_async.core.query import MAX_PAGE, JobQuery
from jobs_async.observe.families import Key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence
    from datetime import datetime

    from jobs_async.core.store import Clock, Node, Store
    from jobs_async.observe.metrics import Metrics

OLDEST_OF = 20
"""Due jobs of a queue, those of the lowest ids, among which the oldest is looked for."""


class Watched(Protocol):
    """What gauges need of a Supervisor. They ask its store and never open it."""

    @property
    def store(self) -> Store: ...

    @property
    def clock(self) -> Clock: ...

    @property
    def node(self) -> str | None: ...


class Picture(Struct, frozen=True):
    """The numbers of all queues and nodes at one moment, each by its labels."""

    depth: Mapping[Key, float] = {}  # msgspec copies empty containers
    oldest: Mapping[Key, float] = {}
    limit: Mapping[Key, float] = {}
    paused: Mapping[Key, float] = {}
    executing: Mapping[Key, float] = {}
    heartbeat: Mapping[Key, float] = {}

    def hang(self, owner: object, metrics: Metrics) -> None:
        """Put it in the place of the owner's last one."""
        metrics.depth.put(owner, self.depth)
        metrics.oldest.put(owner, self.oldest)
        metrics.limit.put(owner, self.limit)
        metrics.paused.put(owner, self.paused)
        metrics.executing.put(owner, self.executing)
        metrics.heartbeat.put(owner, self.heartbeat)


def is_speaker(nodes: Iterable[Node], node: str | None) -> bool:
    """Whether this is the live node of the smallest id, which tells of all queues and nodes."""
    return node is not None and node == min((one.id for one in nodes if one.alive), default=None)


async def look(jobs: Watched, nodes: Sequence[Node]) -> Picture:
    """Raises:
    StoreError: the store could not say.
    """
    counts, said = await jobs.store.tally(), await jobs.store.queues()
    alive = [node for node in nodes if node.alive]
    queues = sorted({queue for queue, _ in counts} | set(said) | {queue for node in alive for queue in node.queues})
    return Picture(
        depth={(queue, state.name): counts.get((queue, state), 0) for queue in queues for state in JobState},
        oldest={(queue,): await _oldest(jobs, queue, counts) for queue in queues},
        limit=_limits(alive),
        paused={(queue,): float(queue in said and said[queue].paused) for queue in queues},
        executing=await _executing(jobs, alive),
        heartbeat={(node.id,): node.beat_at.timestamp() for node in alive if node.beat_at is not None},
    )


async def _oldest(jobs: Watched, queue: str, counts: Mapping[tuple[str, JobState], int]) -> float:
    """Seconds since the oldest waiting job could have started. A store keeps no order of due times over all waiting
    jobs, so it is the oldest of some that were stored first.
    """
    if not any(counts.get((queue, state)) for state in WAITING):
        return 0.0
    due = await jobs.store.select(JobQuery(queue=queue, due=True, newest_first=False, limit=OLDEST_OF))
    now = jobs.clock.now()
    return max((_age(job, now) for job in due), default=0.0)


def _age(job: Job[Any], now: datetime) -> float:
    return max(0.0, (now - max(job.scheduled_at, job.inserted_at)).total_seconds())


def _limits(alive: Iterable[Node]) -> Mapping[Key, float]:
    limits: Counter[Key] = Counter()
    for node in alive:
        limits.update({(queue,): limit for queue, limit in node.queues.items()})
    return dict(limits)


async def _executing(jobs: Watched, alive: Iterable[Node]) -> Mapping[Key, float]:
    """By queue and node, also of dead nodes whose jobs are still to be rescued."""
    running: Counter[Key] = Counter({(queue, node.id): 0 for node in alive for queue in node.queues})
    async for job in _running(jobs):
        running[job.queue, job.node or ""] += 1
    return dict(running)


async def _running(jobs: Watched) -> AsyncIterator[Job[Any]]:
    """As many as there are slots, page by page."""
    after = None
    while True:
        page = await jobs.store.select(JobQuery(states=[JobState.executing], limit=MAX_PAGE, after=after))
        for job in page:
            yield job
        if len(page) < MAX_PAGE:
            return
        after = page[-1].id
