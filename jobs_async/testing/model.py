"""What a store is, in plain dicts and lists: the reference that `machine` holds a real one against."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from msgspec.structs import asdict, replace

from jobs_async.core.errors import UniqueConflict
from jobs_async.core.job import DEFERRED, FINAL, LIVE, Job, JobState
from jobs_async.core.lifecycle import (
    Transition,
    advance,
    born,
    claimed,
    decide,
    fits,
    replaced,
)
from jobs_async.core.options import NewJob, UniqueStrategy
from jobs_async.core.store import Beat, JobQuery, QueueInfo, Tick

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jobs_async.core.outcome import (
        Lost,
    )
    from jobs_async.testing.clock import FakeClock

T = TypeVar("T")
Rows = dict[int, Job[Any]]


class Model:
    """What a store promises, in dicts and lists, with no thought for speed."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.jobs: Rows = {}
        self.queues: dict[str, QueueInfo] = {}
        self.leases: dict[str, tuple[str, float]] = {}
        self.ticks: set[tuple[str, datetime]] = set()
        self.last_id = 0

    def insert(self, new: Sequence[NewJob], tick: Tick | None, given: Iterator[int]) -> list[Job[Any]]:
        """The answer to an insert for which the store gave these ids; raises what the store must raise."""
        if tick is not None and self._is_spent(tick):
            return []
        jobs = dict(self.jobs)
        answer = [self._admit(jobs, item, given) for item in new]
        self.jobs = jobs
        self.last_id = max([self.last_id, *jobs])
        if tick is not None:
            self.ticks.add((tick.name, tick.at))
        return answer

    def _admit(self, jobs: Rows, new: NewJob, given: Iterator[int]) -> Job[Any]:
        if new.idempotency_key is not None:
            for job in jobs.values():
                if (job.worker, job.idempotency_key) == (new.worker, new.idempotency_key):
                    return replace(job, duplicate=True)
        holder = _holder(jobs, new.unique_key)
        if holder is not None:
            if new.unique_strategy is UniqueStrategy.IGNORE_NEW:
                return replace(holder, duplicate=True)
            if new.unique_strategy is UniqueStrategy.REJECT:
                raise UniqueConflict(holder)
            jobs[holder.id] = replaced(holder, self.clock.now())
        job = born(new, next(given), self.clock.now())
        assert job.id > max([self.last_id, *jobs]), "an id was given that is not above all before"
        jobs[job.id] = job
        return job if holder is None else replace(job, replaces=holder.id)

    def may_fetch(self, queue: str, node: str | None) -> bool:
        return not self.queues.get(queue, QueueInfo()).paused and (node is None or self.is_alive(node))

    def fetch(self, queue: str, limit: int, node: str | None) -> tuple[list[Job[Any]], float | None]:
        now, mine = self.clock.now(), [job for job in self.jobs.values() if job.queue == queue]
        for job in mine:
            if job.state in DEFERRED and job.scheduled_at <= now:
                self.jobs[job.id] = replace(job, state=JobState.available)
        mine = [self.jobs[job.id] for job in mine]
        ready = sorted((job.priority, job.id) for job in mine if job.state is JobState.available)
        taken = [claimed(self.jobs[job_id], node, now) for _, job_id in ready[:limit]]
        self.jobs.update({job.id: job for job in taken})
        ahead = [(job.scheduled_at - now).total_seconds() for job in mine if job.state in DEFERRED]
        return taken, min(ahead, default=None)

    def apply(self, steps: Sequence[Transition]) -> list[Job[Any] | None]:
        answer: list[Job[Any] | None] = []
        for step in steps:
            row = self.jobs.get(step.job.id)
            if row is None or not fits(row, step.job):
                answer.append(None)
            else:
                self.jobs[row.id] = advance(row, step, self.clock.now())
                answer.append(self.jobs[row.id])
        return answer

    def conflicts(self, steps: Sequence[Transition]) -> tuple[bool, bool]:
        """May, and must, this batch be refused? A key that the batch frees and takes may count either way."""
        may, trial = False, Model(self.clock)
        trial.jobs = dict(self.jobs)
        for step in steps:
            was = trial.jobs.get(step.job.id)
            trial.apply([step])
            now = trial.jobs.get(step.job.id)
            if was is not None and now is not None and was.state in FINAL and now.state in LIVE:
                others = (job for rows in (self.jobs, trial.jobs) for job in rows.values() if job.id != now.id)
                may |= now.unique_key in {job.unique_key for job in others if job.state in LIVE and job.unique_key}
        held = Counter(job.unique_key for job in trial.jobs.values() if job.state in LIVE and job.unique_key)
        return may, max(held.values(), default=0) > 1

    def select(self, query: JobQuery) -> list[Job[Any]]:
        found = sorted(filter(self._wanted(query), self.jobs.values()), key=identity, reverse=query.newest_first)
        return found[: query.limit]

    def _wanted(self, query: JobQuery) -> Callable[[Job[Any]], bool]:
        states = None if query.states is None else set(query.states)

        def is_orphan(job: Job[Any]) -> bool:
            return job.state is JobState.executing and job.node is not None and not self.is_alive(job.node)

        def runs_longer(job: Job[Any], seconds: float) -> bool:
            began = job.attempted_at if job.state is JobState.executing else None
            return began is not None and self.clock.now() - began > timedelta(seconds=seconds)

        def is_due(job: Job[Any]) -> bool:
            waits = job.state in {JobState.scheduled, JobState.retryable}
            return job.state is JobState.available or (waits and self.clock.now() >= job.scheduled_at)

        def wanted(job: Job[Any]) -> bool:
            after = query.after
            return all(
                (
                    query.ids is None or job.id in query.ids,
                    states is None or job.state in states,
                    query.queues is None or job.queue in query.queues,
                    query.workers is None or job.worker in query.workers,
                    not query.orphaned or is_orphan(job),
                    query.age is None or runs_longer(job, query.age),
                    after is None or (job.id < after if query.newest_first else job.id > after),
                    not query.due or is_due(job),
                    *_says(job, query),
                    *_fits_in_time(job, query),
                )
            )

        return wanted

    def _is_spent(self, tick: Tick) -> bool:
        """Or late, and of an entry that nobody remembers from before."""
        earlier = any(name == tick.late and at < tick.at for name, at in self.ticks)
        return (tick.name, tick.at) in self.ticks or (tick.late is not None and not earlier)

    def rescue(self, query: JobQuery, lost: Lost) -> int:
        steps = [decide(job, lost) for job in self.select(query)]
        return sum(job is not None for job in self.apply(steps))

    def delete(self, ids: Sequence[int], states: set[JobState] | None) -> int:
        def goes(job: Job[Any]) -> bool:
            return job.state is not JobState.executing and (states is None or job.state in states)

        doomed = {i for i in ids if i in self.jobs and goes(self.jobs[i])}
        self.forget(doomed)
        return len(doomed)

    def ended(self, states: set[JobState], before: datetime) -> set[int]:
        """What a purge without a limit would remove."""
        ends = {job.id: job.completed_at for job in self.jobs.values() if job.state in states & FINAL}
        return {job_id for job_id, at in ends.items() if at is not None and at < before}

    def forget(self, ids: set[int]) -> None:
        self.jobs = {job_id: job for job_id, job in self.jobs.items() if job_id not in ids}

    def set_queue(self, name: str, paused: bool | None, limit: int | None) -> bool:
        before = self.queues.get(name, QueueInfo())
        self.queues[name] = QueueInfo(
            before.paused if paused is None else paused, before.limit if limit is None else limit or None
        )
        return self.queues[name] != before

    def is_alive(self, node: str) -> bool:
        boot, uptime = self.clock.uptime()
        lease = self.leases.get(node)
        return lease is not None and lease[0] == boot and lease[1] > uptime

    def beat(self, node: str, ttl: float, *, join: bool = False) -> Beat:
        boot, uptime = self.clock.uptime()
        cancel_ids: tuple[int, ...] = ()
        if join or self.is_alive(node):
            self.leases[node] = (boot, uptime + ttl)
        if self.is_alive(node):
            mine = (job for job in self.jobs.values() if job.state is JobState.executing and job.node == node)
            cancel_ids = tuple(sorted(job.id for job in mine if job.cancel_requested))
        return Beat(self.is_alive(node), self.clock.now(), cancel_ids)


def identity(job: Job[Any]) -> int:
    return job.id


def _says(job: Job[Any], query: JobQuery) -> Iterator[bool]:
    """Whether what a job is called and carries is what was asked for, one condition after the other."""
    yield query.external_ids is None or job.external_id in query.external_ids
    yield query.correlation_id is None or query.correlation_id == job.correlation_id
    yield query.node is None or query.node == job.node
    yield not set(query.tags or ()).difference(job.tags)
    yield query.error is None or bool(job.errors and query.error in job.errors[-1].error)
    yield _with_kinds(query.args or {}) <= _with_kinds(job.args)


def _with_kinds(args: Any) -> set[tuple[str, bool, object]]:
    """The arguments that hold no others, with whether they are booleans, for 1 equals True in a set."""
    named = cast("dict[str, Any]", args) if isinstance(args, dict) else {}
    return {
        (name, isinstance(value, bool), value) for name, value in named.items() if not isinstance(value, dict | list)
    }


def _fits_in_time(job: Job[Any], query: JobQuery) -> Iterator[bool]:
    """Whether a job came and ended when it was asked for."""
    for at, since, before in (
        (job.inserted_at, query.inserted_since, query.inserted_before),
        (job.completed_at, query.ended_since, query.ended_before),
    ):
        yield since is None or (at is not None and since <= at)
        yield before is None or (at is not None and before > at)


def plain(records: Sequence[NewJob | Job[Any]]) -> list[dict[str, Any]]:
    """Records with the keys and arguments that their `repr` hides."""
    return [asdict(record) for record in records]


def _holder(jobs: Rows, key: str | None) -> Job[Any] | None:
    held = (job for job in jobs.values() if key is not None and job.unique_key == key and job.state in LIVE)
    return next(held, None)
