"""What is written down while a world lives: every change of every row, every run of every handler, every call."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jobs_async import Job, JobsError, JobState, MemoryStore
from jobs_async.core.lifecycle import Transition
from jobs_async.core.options import NewJob
from jobs_async.core.store import Beat, Fetched, Node, Tick
from jobs_async.testing.loop import LoopClock

PROCESS: ContextVar[str] = ContextVar("process", default="outside")
"""Who is at work: every task inherits it from the one that made it."""

T = TypeVar("T")

NEVER = float("inf")


def now() -> float:
    """Virtual seconds since the world began."""
    return asyncio.get_running_loop().time()


def key(job: Job[Any]) -> tuple[int, int]:
    """A claim and its run."""
    return job.id, job.claim


@dataclass(frozen=True, slots=True)
class Change:
    """A row became another by the doing of a process; None where there was none, or is none any more."""

    at: float
    by: str
    before: Job[Any] | None
    after: Job[Any] | None
    lease_held: bool
    """Whether the node that had the job, or has it now, was alive."""

    @property
    def is_taken_over(self) -> bool:
        """Of a claim that ends: a new job of the same unique key ended it."""
        return self.before is not None and self.after is not None and self.after.claim > self.before.claim


@dataclass(slots=True)
class Run:
    """A handler was called. It "returned", "died" with its process, or raised what `end` names."""

    process: str
    job: Job[Any]
    began: float
    ended: float = NEVER
    end: str = ""


@dataclass(slots=True)
class Call:
    """An enqueue: the tags of the jobs it brought, and whether they were accepted, refused, or nobody knows."""

    tags: list[str]
    answer: str
    jobs: Sequence[Job[Any]] = ()


@dataclass(slots=True)
class Ledger:
    """All about one world, in the order in which it happened."""

    trace: list[str] = field(default_factory=list)
    facts: Counter[str] = field(default_factory=Counter)
    rows: dict[int, Job[Any]] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    waits: list[tuple[float, Job[Any]]] = field(default_factory=list)
    """When somebody who waited for a job was told of its end, and what."""
    probes: dict[int, float] = field(default_factory=dict)
    """Jobs that were enqueued beside an idle runner, and when."""
    stops: list[tuple[str, float]] = field(default_factory=list)
    """Which process was stopped, and how long that took."""
    dead: set[str] = field(default_factory=set)
    """Processes that were killed."""
    processes: dict[str | None, str] = field(default_factory=dict)
    """Whose each node is. Their ids are random and must not be told, or no world could be lived through twice."""
    leases: dict[str | None, float] = field(default_factory=dict)
    """When the lease of each node ran out, or will."""
    surprises: list[str] = field(default_factory=list)
    """What is not to happen in any weather. Some is only heard of when the garbage is collected."""
    left: list[str] = field(default_factory=list)
    """What outlived the last Supervisor."""
    calm_at: float = NEVER
    over_at: float = NEVER

    def say(self, text: str) -> None:
        self.trace.append(f"{now():10.6f} {PROCESS.get()}: {text}")

    def begin(self, job: Job[Any]) -> Run:
        self.say(f"job {job.id} runs under claim {job.claim}")
        run = Run(PROCESS.get(), job, now())
        self.runs.append(run)
        return run

    def end(self, run: Run, how: str) -> None:
        """The first end counts: what the ghost of a dead process does is not written down."""
        if not run.end:
            run.ended, run.end = now(), how
            self.facts[how] += 1
            self.say(f"job {run.job.id} has ended under claim {run.job.claim}: {how}")


class Witness(MemoryStore):
    """The one store of a world. It tells the ledger what a call has changed, once the call is through."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(clock=LoopClock())
        self._ledger = ledger
        self._touched: dict[int, None] = {}

    async def insert(self, new: Sequence[NewJob], *, tick: Tick | None = None) -> list[Job[Any]]:
        return await self._watched(super().insert(new, tick=tick))

    async def fetch(self, queue: str, limit: int, *, node: str | None) -> Fetched:
        return await self._watched(super().fetch(queue, limit, node=node))

    async def apply(self, steps: Sequence[Transition]) -> list[Job[Any] | None]:
        return await self._watched(super().apply(steps))

    async def delete(self, ids: Sequence[int], *, states: Iterable[JobState] | None = None) -> int:
        return await self._watched(super().delete(ids, states=states))

    async def beat(self, node: Node, ttl: float, *, join: bool = False) -> Beat:
        beat = await super().beat(node, ttl, join=join)
        if join:
            self._ledger.processes[node.id] = PROCESS.get()
        elif beat.alive and self._ledger.leases[node.id] <= now():
            self._ledger.surprises.append(f"a node of {PROCESS.get()} rose from the dead")
        if beat.alive or not ttl:
            self._ledger.leases[node.id] = now() + ttl
        return beat

    def _keep(self, job: Job[Any]) -> None:
        super()._keep(job)
        self._touched[job.id] = None

    def _forget(self, job_id: int) -> None:
        super()._forget(job_id)
        self._touched[job_id] = None

    async def _watched(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            return await call
        except Exception as error:
            if not isinstance(error, JobsError):
                self._ledger.surprises.append(f"the store raised {error!r}")
            raise
        finally:
            self._look()

    def _look(self) -> None:
        ledger = self._ledger
        for job_id in self._touched:
            before, after = ledger.rows.get(job_id), self._jobs.get(job_id)
            if before == after:
                continue
            if after is None:
                del ledger.rows[job_id]
                ledger.say(f"job {job_id} is deleted")
            else:
                ledger.rows[job_id] = after
                ledger.say(f"job {job_id} is {after.state}, attempt {after.attempt}, claim {after.claim}")
            job = after if before is None or before.state is not JobState.executing else before
            held = job is not None and ledger.leases.get(job.node, 0.0) > now()
            ledger.changes.append(Change(now(), PROCESS.get(), before, after, held))
        self._touched.clear()
