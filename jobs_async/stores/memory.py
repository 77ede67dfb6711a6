"""Jobs in this process: for tests and throw-away work. Gone when the process is (zzz_jobs: MemoryStore)."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from copy import deepcopy
from datetime import datetime, timedelta
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from jobs_async.clock import SystemClock
from jobs_async.core import lifecycle, limits
from jobs_async.core.errors import StoreFull, UniqueConflict
from jobs_async.core.job import DEFERRED, FINAL, LIVE, WAITING, Job, JobState
from jobs_async.core.options import NewJob, UniqueStrategy
from jobs_async.core.store import (
    MAX_PAGE,
    Beat,
    Clock,
    Fetched,
    JobQuery,
    Lifeline,
    Node,
    QueueInfo,
    Store,
    Tick,
    cutoff,
)
from jobs_async.stores.memory_records import MemoryRecords

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from jobs_async.core.lifecycle import Transition
    from jobs_async.core.limits import Seconds

TICKS_KEPT = timedelta(days=7)
DEAD_NODES_KEPT = 86_400.0
_CHANGEABLE = (dict, list)
SLACK = 1000
"""Stale entries a heap may hold before it is swept."""


class MemoryStore(MemoryRecords, Store):
    """Live jobs up to `max_jobs` (None: no limit), then StoreFull; as many finished ones stay readable.

    Every method runs from its first line to its last without giving way, so each is atomic. One event loop only.
    """

    def __init__(self, max_jobs: int | None = 4096, *, clock: Clock | None = None) -> None:
        self._max_jobs = None if max_jobs is None else limits.integer(max_jobs, "max_jobs", 1)
        super().__init__(clock or SystemClock())
        self._last_id = 0
        self._live = 0
        self._jobs: dict[int, Job[Any]] = {}
        self._ready: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)
        self._waiting: defaultdict[str, list[tuple[datetime, int]]] = defaultdict(list)
        self._executing: dict[int, None] = {}
        self._finished: OrderedDict[int, None] = OrderedDict()
        self._unique: dict[str, int] = {}
        self._idempotent: dict[tuple[str, str], int] = {}
        self._ticks: dict[str, dict[datetime, int | None]] = {}
        self._queues: dict[str, QueueInfo] = {}
        self._leases: dict[str, tuple[Node, str, float]] = {}

    async def insert(self, new: Sequence[NewJob], *, tick: Tick | None = None) -> list[Job[Any]]:
        now = self._clock.now()
        spent = self._ticks.setdefault(tick.name, {}) if tick else {}
        if tick and (tick.at in spent or self._has_not_missed(tick)):
            return []
        undo: list[tuple[int, Job[Any] | None]] = []
        try:
            jobs = [self._admit(item, now, undo) for item in new]
        except (StoreFull, UniqueConflict):
            for job_id, before in reversed(undo):
                if before is None:
                    self._forget(job_id)
                else:
                    self._keep(before)
            raise
        if tick:
            for old in [at for at in spent if at < tick.at - TICKS_KEPT]:
                del spent[old]
            spent[tick.at] = jobs[0].id if jobs else None
        self._evict()
        return [_apart(job) for job in jobs]

    def _has_not_missed(self, tick: Tick) -> bool:
        """A late tick of what was not yet an entry then."""
        return tick.late is not None and not any(at < tick.at for at in self._ticks.get(tick.late, ()))

    def _admit(self, new: NewJob, now: datetime, undo: list[tuple[int, Job[Any] | None]]) -> Job[Any]:
        """Insert one, or find the job that stands in its way."""
        if new.idempotency_key is not None:
            twin = self._idempotent.get((new.worker, new.idempotency_key))
            if twin is not None:
                return replace(self._jobs[twin], duplicate=True)
        replaces = None
        holder = None if new.unique_key is None else self._unique.get(new.unique_key)
        if holder is not None:
            job = self._jobs[holder]
            if new.unique_strategy is UniqueStrategy.IGNORE_NEW:
                return replace(job, duplicate=True)
            if new.unique_strategy is UniqueStrategy.REJECT:
                raise UniqueConflict(job)
            undo.append((holder, job))
            self._keep(lifecycle.replaced(job, now))
            replaces = holder
        if self._max_jobs is not None and self._live >= self._max_jobs:
            raise StoreFull(f"the memory store holds {self._live} live jobs, its limit; raise max_jobs or wait")
        self._last_id += 1
        undo.append((self._last_id, None))
        job = lifecycle.born(new, self._last_id, now)
        self._keep(job)
        return job if replaces is None else replace(job, replaces=replaces)

    async def fetch(self, queue: str, limit: int, *, node: str | None) -> Fetched:
        info = self._queues.get(queue)
        if (info is not None and info.paused) or (node is not None and not self._is_alive(node)):
            return Fetched([])
        now = self._clock.now()
        next_due = self._stage(queue, now)
        jobs: list[Job[Any]] = []
        ready = self._ready[queue]
        while ready and len(jobs) < limit:
            priority, job_id = heappop(ready)
            job = self._jobs.get(job_id)
            if job is not None and job.state is JobState.available and (job.queue, job.priority) == (queue, priority):
                job = lifecycle.claimed(job, node, now)
                self._keep(job)
                jobs.append(_apart(job))
        return Fetched(jobs, next_due)

    def _stage(self, queue: str, now: datetime) -> float | None:
        """Make due jobs available; seconds until the next one is due."""
        waiting = self._waiting[queue]
        while waiting:
            at, job_id = waiting[0]
            job = self._jobs.get(job_id)
            if job is not None and job.state in DEFERRED and (job.queue, job.scheduled_at) == (queue, at):
                if at > now:
                    return (at - now).total_seconds()
                self._keep(replace(job, state=JobState.available))
            heappop(waiting)
        return None

    async def apply(self, steps: Sequence[Transition]) -> list[Job[Any] | None]:
        now = self._clock.now()
        self._refuse_second_life(steps)
        applied: list[Job[Any] | None] = []
        for step in steps:
            row = self._jobs.get(step.job.id)
            if row is None or not lifecycle.fits(row, step.job):
                applied.append(None)
                continue
            job = lifecycle.advance(row, step, now)
            self._keep(job)
            applied.append(_apart(job))
        self._evict()
        return applied

    def _refuse_second_life(self, steps: Sequence[Transition]) -> None:
        """Two live jobs of one unique key must not come to be by running a finished one again."""
        taken: dict[str, int] = {}
        for step in steps:
            key = step.job.unique_key
            if key is None or step.job.state not in FINAL or step.target in FINAL:
                continue
            row = self._jobs.get(step.job.id)
            if row is None or not lifecycle.fits(row, step.job):
                continue
            holder = self._unique.get(key, taken.setdefault(key, row.id))
            if holder != row.id:
                raise UniqueConflict(self._jobs[holder])

    async def select(self, query: JobQuery) -> list[Job[Any]]:
        now = self._clock.now()
        is_meant = query.test(now)
        found = (
            job for job in self._candidates(query) if is_meant(job) and (not query.orphaned or self._is_orphan(job))
        )
        return [_apart(job) for job in islice(found, query.limit)]

    def _candidates(self, query: JobQuery) -> Iterator[Job[Any]]:
        ids: Iterable[int] = self._jobs
        if query.ids is not None:
            ids = sorted({job_id for job_id in query.ids if job_id in self._jobs})
        elif query.orphaned or query.older_than is not None or query.states == (JobState.executing,):
            ids = sorted(self._executing)
        ordered = reversed(list(ids)) if query.newest_first else iter(list(ids))
        return (self._jobs[job_id] for job_id in ordered)

    async def delete(self, ids: Sequence[int], *, states: Iterable[JobState] | None = None) -> int:
        chosen = frozenset(JobState if states is None else states) - {JobState.executing}
        doomed = [i for i in set(ids) if i in self._jobs and self._jobs[i].state in chosen]
        for job_id in doomed:
            self._forget(job_id)
        return len(doomed)

    async def purge(self, states: Iterable[JobState], older_than: Seconds | datetime, limit: int = MAX_PAGE) -> int:
        before = cutoff(older_than, self._clock.now())
        chosen = FINAL.intersection(states)
        finished = (self._jobs[job_id] for job_id in self._finished)
        ended = (job.id for job in finished if job.state in chosen and job.completed_at and job.completed_at < before)
        doomed = list(islice(ended, limit))
        for job_id in doomed:
            self._forget(job_id)
        return len(doomed)

    async def tally(self) -> Mapping[tuple[str, JobState], int]:
        return Counter((job.queue, job.state) for job in self._jobs.values())

    async def set_queue(self, name: str, *, paused: bool | None = None, limit: int | None = None) -> bool:
        before = self._queues.get(name, QueueInfo())
        after = before.updated(paused, limit)
        self._queues[name] = after
        return after != before

    async def queues(self) -> Mapping[str, QueueInfo]:
        return dict(self._queues)

    async def beat(self, node: Node, ttl: float, *, join: bool = False) -> Beat:
        now, (boot, uptime) = self._clock.now(), self._clock.uptime()
        if (node.id in self._leases or not join) and not self._is_alive(node.id):
            return Beat(False, now)
        started = now if join else self._leases[node.id][0].started_at
        if join:
            self._leases = {k: v for k, v in self._leases.items() if uptime - v[2] < DEAD_NODES_KEPT}
        self._leases[node.id] = (replace(node, started_at=started, beat_at=now), boot, uptime + ttl)
        asked = (self._jobs[job_id] for job_id in self._executing)
        return Beat(ttl > 0, now, tuple(job.id for job in asked if job.node == node.id and job.cancel_requested))

    def lifeline(self) -> Lifeline:
        return _Lifeline(self)

    def prolong(self, node: str, ttl: float) -> bool:
        """Renew a lease from a thread: one assignment, so that the event loop may do anything meanwhile."""
        lease = self._leases.get(node)
        if lease is None or not self._is_alive(node):
            return False
        self._leases[node] = (lease[0], lease[1], max(lease[2], self._clock.uptime()[1] + ttl))
        return True

    async def nodes(self) -> list[Node]:
        return [replace(node, alive=self._is_alive(node.id)) for node, _, _ in self._leases.values()]

    def _is_alive(self, node: str) -> bool:
        lease = self._leases.get(node)
        boot, uptime = self._clock.uptime()
        return lease is not None and lease[1] == boot and lease[2] > uptime

    def _is_orphan(self, job: Job[Any]) -> bool:
        return job.state is JobState.executing and job.node is not None and not self._is_alive(job.node)

    def _keep(self, job: Job[Any]) -> None:
        """Make a record the stored one, and every index agree with it."""
        before = self._jobs.get(job.id)
        self._jobs[job.id] = job
        if before is not None and before.state is JobState.executing and job.state is not JobState.executing:
            del self._executing[job.id]
        if job.state is JobState.executing:
            self._executing[job.id] = None
        elif job.state in WAITING:
            self._line_up(job)
        live = job.state in LIVE
        if live is not (before is not None and before.state in LIVE):
            self._change_sides(job, live)
        if before is None and job.idempotency_key is not None:
            self._idempotent[job.worker, job.idempotency_key] = job.id

    def _line_up(self, job: Job[Any]) -> None:
        """Put a waiting job where it will be found in its order, or at its time."""
        if job.state is JobState.available:
            ready = self._ready[job.queue]
            heappush(ready, (job.priority, job.id))
            size = len(ready)
        else:
            waiting = self._waiting[job.queue]
            heappush(waiting, (job.scheduled_at, job.id))
            size = len(waiting)
        if size > 2 * len(self._jobs) + SLACK:
            self._sweep(job.queue)

    def _change_sides(self, job: Job[Any], live: bool) -> None:
        """A job has come to life, or to its end."""
        self._live += 1 if live else -1
        if live:
            self._finished.pop(job.id, None)
        else:
            self._finished[job.id] = None
        if job.unique_key is not None:
            if live:
                self._unique[job.unique_key] = job.id
            else:
                del self._unique[job.unique_key]

    def _sweep(self, queue: str) -> None:
        """Drop the entries of jobs that have moved on; usually they go when they reach the top."""
        mine = [job for job in self._jobs.values() if job.queue == queue]
        self._ready[queue] = [(job.priority, job.id) for job in mine if job.state is JobState.available]
        self._waiting[queue] = [(job.scheduled_at, job.id) for job in mine if job.state in DEFERRED]
        heapify(self._ready[queue])
        heapify(self._waiting[queue])

    def _forget(self, job_id: int) -> None:
        job = self._jobs.pop(job_id)
        self._executing.pop(job_id, None)
        self._finished.pop(job_id, None)
        if job.state in LIVE:
            self._live -= 1
            if job.unique_key is not None:
                del self._unique[job.unique_key]
        if job.idempotency_key is not None:
            del self._idempotent[job.worker, job.idempotency_key]

    def _evict(self) -> None:
        """Forget the oldest finished jobs beyond the bound."""
        while self._max_jobs is not None and len(self._finished) > self._max_jobs:
            self._forget(next(iter(self._finished)))


class _Lifeline:
    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def renew(self, node: str, ttl: float) -> bool:
        return self._store.prolong(node, ttl)

    def close(self) -> None:
        pass


def _apart(job: Job[Any]) -> Job[Any]:
    """The record as it is handed out: a result that can be changed is a copy, so that nobody changes the stored one."""
    return replace(job, result=deepcopy(job.result)) if type(job.result) in _CHANGEABLE else job
