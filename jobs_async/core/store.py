"""The seam between deciding and persisting: what a store must do, and the source's verbs written once above it.

A store never decides. It inserts records, hands out due ones under a fence, applies transitions that were decided
elsewhere, and answers questions. Many is the primitive; one is a batch of one. Durations travel down, instants are
stamped by the store. `jobs_async.testing.conformance` proves that a store of your own keeps the promises made here.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, Self, cast, runtime_checkable

from msgspec import Struct
from msgspec.structs import force_setattr, replace

from jobs_async.core import limits
from jobs_async.core.errors import JobNotFound, OptionError
from jobs_async.core.health import Finding, Health
from jobs_async.core.job import Job, JobState
from jobs_async.core.lifecycle import Transition, decide
from jobs_async.core.options import NO_OPTIONS, Draft, JobOpts, NewJob
from jobs_async.core.outcome import Completed, Discarded, Failed, Failure, Lost, storable
from jobs_async.core.query import MAX_PAGE as MAX_PAGE
from jobs_async.core.query import JobQuery as JobQuery

if TYPE_CHECKING:
    from jobs_async.core.hint import Hint
    from jobs_async.core.limits import Seconds

RESCUE_TEXT = "rescued: job timed out"


class Clock(Protocol):
    """Where instants come from; `jobs_async.clock.SystemClock` in real life, a fake one in tests."""

    def now(self) -> datetime:
        """The wall clock, timezone-aware UTC. May jump."""
        ...

    def uptime(self) -> tuple[str, float]:
        """An identity and seconds that only grow while it lasts, alike in every process of this machine.

        Leases are judged by it, so a clock that is set forward or back steals none.
        """
        ...


class Tick(Struct, frozen=True):
    """One instant of one cron entry; spent once in the whole fleet, in whatever zone it is said.

    One that comes `late` counts only where an earlier tick of the name given there is remembered: what was not yet an
    entry at that instant has not missed it.

    Raises:
        OptionError: the instant is naive.
    """

    name: str
    at: datetime
    late: str | None = None

    def __post_init__(self) -> None:
        force_setattr(self, "at", limits.instant(self.at, "a tick"))


class Node(Struct, frozen=True, kw_only=True):
    """One running Supervisor: a random id for each start, and what it can do. The host is only a label."""

    id: str
    host: str = ""
    pid: int = 0
    version: str = ""
    queues: Mapping[str, int] = {}  # msgspec copies empty containers
    workers: tuple[str, ...] = ()
    started_at: datetime | None = None
    beat_at: datetime | None = None
    alive: bool = True


class Beat(Struct, frozen=True):
    """A store's answer to a sign of life: does the lease hold, its time, and what this node is to cancel."""

    alive: bool
    now: datetime
    cancel: tuple[int, ...] = ()


class Fetched(Struct, frozen=True):
    """What a claim brought, in the order to start it; seconds until the queue's next waiting job is due."""

    jobs: list[Job[Any]]
    next_due: float | None = None


class QueueInfo(Struct, frozen=True):
    """What was said about a queue at run time; a queue nobody spoke of has no row."""

    paused: bool = False
    limit: int | None = None

    def updated(self, paused: bool | None, limit: int | None) -> QueueInfo:
        """With what was said anew; None says nothing, and a limit of 0 takes back what was said of it."""
        return QueueInfo(self.paused if paused is None else paused, self.limit if limit is None else limit or None)


class Lifeline(Protocol):
    """Renews leases from a thread, for the time in which the event loop is blocked. Used by one thread alone."""

    def renew(self, node: str, ttl: float) -> bool:
        """Prolong the lease of a node that has joined, to `ttl` seconds from now at least; False where it has run out.

        Blocks, for at most some seconds. May raise anything; it is called again later.
        """
        ...

    def close(self) -> None:
        """Let go of everything held."""
        ...


@runtime_checkable
class Store(Protocol):
    """Eleven primitives to implement; the source's eleven verbs come with inheritance (zzz_jobs: queues-and-stores).

    Every method may be called from many tasks of one event loop. A call that raises wrote nothing.
    """

    # --- the primitives ---

    async def insert(self, new: Sequence[NewJob], *, tick: Tick | None = None) -> list[Job[Any]]:
        """Store all or none, in order, ids ascending; stamp `inserted_at` now and the state `born` chooses.

        A job in any state of the same worker and `idempotency_key` is returned instead, `duplicate=True`. Otherwise
        a live job of the same `unique_key` is met as the strategy says, also within the batch. A `tick` is spent in
        the same transaction: where it was spent before (remembered for 7 days), or is late without an
        earlier one, nothing is inserted and [] returned.

        Raises:
            UniqueConflict: UniqueStrategy.REJECT met a live job.
            StoreFull, StoreBusy: there is no room, or no access.
        """
        ...

    async def fetch(self, queue: str, limit: int, *, node: str | None) -> Fetched:
        """Make due jobs of the queue available, then claim up to `limit` in order of (priority, id).

        Atomic, also between processes. Returns nothing while the queue is paused, or where `node` has no live lease;
        `node=None` claims without one, and such a claim is rescued only by `rescue_stuck`.
        """
        ...

    async def apply(self, steps: Sequence[Transition]) -> list[Job[Any] | None]:
        """Apply each transition whose fence holds (`lifecycle.fits`); None in its place where it does not.

        Steps are applied one after the other, so a second step for a job may build on the first; one step never
        fails its neighbours. The records returned are as `lifecycle.advance` computes them.

        Raises:
            UniqueConflict: a finished job was to live again while another live job holds its key; nothing is applied.
        """
        ...

    async def select(self, query: JobQuery) -> list[Job[Any]]:
        """The jobs a query asks for, in its order."""
        ...

    async def delete(self, ids: Sequence[int], *, states: Iterable[JobState] | None = None) -> int:
        """Remove jobs that are not executing, and are in one of `states` where these are given; how many there were."""
        ...

    async def purge(self, states: Iterable[JobState], older_than: Seconds | datetime, limit: int = MAX_PAGE) -> int:
        """Remove up to `limit` jobs of these final states that ended strictly before then; how many there were."""
        ...

    async def tally(self) -> Mapping[tuple[str, JobState], int]:
        """How many jobs each queue has in each state; no entry where there is none."""
        ...

    async def set_queue(self, name: str, *, paused: bool | None = None, limit: int | None = None) -> bool:
        """Say something about a queue, as `QueueInfo.updated` has it. True if that changed anything."""
        ...

    async def queues(self) -> Mapping[str, QueueInfo]:
        """What was said about queues, by name."""
        ...

    async def beat(self, node: Node, ttl: float, *, join: bool = False) -> Beat:
        """A node's sign of life: its lease holds for `ttl` seconds from now; 0 gives it up.

        `join` creates the lease. A lease that has run out stays out (`alive=False`), whatever the delay: a node
        declared dead never comes back under its id, so its jobs can be handed on safely.
        """
        ...

    async def nodes(self) -> list[Node]:
        """The nodes known, live ones and recently dead ones."""
        ...

    # --- extras that a store may do without ---

    def lifeline(self) -> Lifeline | None:
        """A way to renew leases while the event loop is blocked; without one, a long block costs the lease."""
        return None

    @property
    def shared_clock(self) -> Clock | None:
        """The clock that every process on this store goes by, whatever its own says; None where there is none.

        By it cron ticks are fired and events are dated. Asking it costs nothing.
        """
        return None

    def wakes(self, tell: Callable[[Hint], None]) -> Callable[[], None]:
        """Call `tell`, in the event loop, when another process may have given this one something to do.

        Returns how to end that. A hint may come late, twice or not at all: whoever gets one asks the store. A store
        that can give none inherits this.
        """
        return lambda: None

    # --- life time; a store with nothing to open inherits these ---

    async def open(self) -> None:
        """Make ready for use. Harmless when open."""
        return

    async def close(self) -> None:
        """Let go of everything held, within 2 seconds. Harmless when closed."""
        return

    @property
    def is_open(self) -> bool:
        return True

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def health(self) -> Health:
        """Whether the store answers a small question; never raises what the store does (nidus-jobs: health)."""
        try:
            await self.queues()
        except Exception as error:
            return Health(False, f"the store does not answer: {limits.type_name(error)}")
        return Health(True)

    async def diagnose(self) -> list[Finding]:
        """What this kind of store alone can know of why jobs do not run; the rest is the Supervisor's to find.

        Raises:
            StoreError: it does not answer.
        """
        return []

    # --- the source's verbs, for tools, tests and direct use; a Supervisor needs only the primitives ---

    async def enqueue(self, worker: str, args: object = None, opts: JobOpts = NO_OPTIONS) -> Job[Any]:
        """Insert one job; raises what `insert` raises, ArgsError and OptionError."""
        draft: Draft[Any] = Draft(worker, args, opts)
        return (await self.insert([NewJob.of(draft.worker, draft.args_json, draft.opts)]))[0]

    async def claim(self, queue: str) -> Job[Any] | None:
        """Take the queue's next job without a node: nothing watches over it but `rescue_stuck`."""
        jobs = (await self.fetch(queue, 1, node=None)).jobs
        return jobs[0] if jobs else None

    async def complete(self, job: Job[Any]) -> Job[Any] | None:
        """Settle a claimed job as completed; None where its claim no longer holds."""
        return await self._settle(decide(job, Completed()))

    async def fail(self, job: Job[Any], error: str, retry_in: Seconds | None = None) -> Job[Any] | None:
        """Settle a claimed job as failed: retried in `retry_in` seconds (default 15), discarded when spent."""
        delay = 15.0 if retry_in is None else limits.seconds(retry_in, "retry_in")
        return await self._settle(decide(job, Failed(Failure("Error", storable(error))), delay))

    async def discard(self, job: Job[Any], error: str) -> Job[Any] | None:
        """Settle a claimed job as discarded; it stays readable as a dead letter."""
        return await self._settle(decide(job, Discarded(Failure("Error", storable(error)))))

    async def rescue_stuck(self, timeout_seconds: Seconds = 300) -> int:
        """Free jobs that execute for strictly longer than this, alive or not: a tool; how many there were.

        The source's predicate (zzz_jobs: Z26). A Supervisor never calls it: it rescues by liveness, not by age.
        """
        age = limits.seconds(timeout_seconds, "timeout_seconds")
        return await rescue(self, JobQuery(states=[JobState.executing], older_than=age, limit=MAX_PAGE), RESCUE_TEXT)

    async def count_by_state(self, queue: str, state: JobState) -> int:
        """How many jobs of a queue are in a state."""
        return (await self.tally()).get((queue, state), 0)

    async def pause(self, queue: str) -> None:
        """Let no claim of this queue return a job; running ones go on. Survives restarts where the store does."""
        await self.set_queue(limits.name(queue, "queue"), paused=True)

    async def resume_queue(self, queue: str) -> None:
        """Undo `pause`; harmless where there was none."""
        await self.set_queue(limits.name(queue, "queue"), paused=False)

    async def is_paused(self, queue: str) -> bool:
        """Whether `pause` is in force."""
        return (await self.queues()).get(queue, QueueInfo()).paused

    async def delete_completed(self, older_than: Seconds | datetime) -> int:
        """Remove every completed job that ended strictly before an instant, or that many seconds ago."""
        total = 0
        while removed := await self.purge([JobState.completed], older_than):
            total += removed
        return total

    async def get(self, job_id: int) -> Job[Any]:
        """Read one job.

        Raises:
            JobNotFound: there is none of this id.
        """
        jobs = await self.select(JobQuery(ids=[job_id]))
        if not jobs:
            raise JobNotFound(job_id)
        return jobs[0]

    async def _settle(self, step: Transition) -> Job[Any] | None:
        settled = (await self.apply([step]))[0]
        if settled is None:
            await self.get(step.job.id)  # raises JobNotFound where the job is gone
        return settled


async def rescue(store: Store, query: JobQuery, text: str, max_rescues: int = MAX_PAGE) -> int:
    """Free the executing jobs of a query page by page; jobs settled in the meantime are left alone."""
    freed, after = 0, None
    while jobs := await store.select(_page(query, after)):
        after = jobs[-1].id
        steps = [decide(job, Lost(max_rescues, text)) for job in jobs]
        freed += sum(job is not None for job in await store.apply(steps))
    return freed


def _page(query: JobQuery, after: int | None) -> JobQuery:
    return replace(query, after=after, newest_first=False)


PRIMITIVES = ("insert fetch apply select delete purge tally set_queue queues beat nodes open close").split()


def validate_store(store: object) -> Store:
    """Check that an object has every primitive, and that each is async (zzz_jobs: store.validate).

    Raises:
        OptionError: naming what is missing or not async.
    """
    missing = [name for name in PRIMITIVES if not callable(getattr(store, name, None))]
    plain = [name for name in PRIMITIVES if name not in missing and not _is_async(getattr(store, name))]
    if missing or plain:
        parts = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has {', '.join(plain)} not async"] * bool(plain)
        raise OptionError(f"{limits.type_name(store)} is no store: it {' and '.join(parts)}")
    return cast("Store", store)


def _is_async(method: Any) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(method))


def cutoff(older_than: Seconds | datetime, now: datetime) -> datetime:
    """The instant that `purge` compares with."""
    if isinstance(older_than, datetime):
        return limits.instant(older_than, "older_than")
    return now - timedelta(seconds=limits.seconds(older_than, "older_than"))
