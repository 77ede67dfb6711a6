"""The job record: what every store keeps and every event carries."""

from __future__ import annotations

from datetime import datetime
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Generic

from msgspec import Struct
from msgspec.structs import replace as replace  # re-exported: how a frozen record is changed

from jobs_async.core import codec

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    R_co = TypeVar("R_co", covariant=True, default=Any)
else:
    from typing import TypeVar

    R_co = TypeVar("R_co", covariant=True)


class JobState(IntEnum):
    """Where a job is in its life; the numbers are stored and never change (zzz_jobs: job states)."""

    available = 0
    executing = 1
    completed = 2
    retryable = 3
    discarded = 4
    cancelled = 5
    scheduled = 6

    def __str__(self) -> str:
        return self.name

    def __format__(self, spec: str) -> str:
        return format(int(self), spec) if spec else self.name


WAITING = frozenset({JobState.available, JobState.scheduled, JobState.retryable})
"""States from which a job will still start; with `executing` they are the live states, which hold a unique key."""
LIVE = WAITING | {JobState.executing}
FINAL = frozenset({JobState.completed, JobState.discarded, JobState.cancelled})
DEFERRED = frozenset({JobState.scheduled, JobState.retryable})
"""States that wait for `scheduled_at`; `fetch` makes their due rows available."""

MAX_ERRORS = 20
MAX_ERROR_BYTES = 2048


class ErrorRecord(Struct, frozen=True, kw_only=True, gc=False):
    """One failed attempt. `error` is "Type: message", cut to 2,048 bytes; `frames` the last five calls."""

    attempt: int
    type: str
    error: str
    frames: tuple[str, ...] = ()
    at: datetime | None = None
    node: str | None = None


class Progress(Struct, frozen=True):
    """How far a running job says it is: a fraction of one and a note."""

    fraction: float
    note: str = ""


class Job(Struct, Generic[R_co], frozen=True, kw_only=True, gc=False):
    """An immutable snapshot of one job; a later state is a later snapshot.

    Generic in its result: what the worker's function returns. All times are timezone-aware UTC. `attempt` counts
    from 1 in the first run; `claim` counts claims, never goes down and fences every write of a runner. `repr` shows
    no arguments, keys or metadata.
    """

    # gc=False: a record holds nothing that could hold it, so the garbage collector need not look at it

    id: int
    state: JobState
    queue: str
    worker: str
    args_json: str
    priority: int
    attempt: int
    max_attempts: int
    scheduled_at: datetime
    inserted_at: datetime
    attempted_at: datetime | None = None
    completed_at: datetime | None = None
    rescues: int = 0
    claim: int = 0
    node: str | None = None
    timeout_seconds: float | None = None
    cancel_requested: bool = False
    progress: Progress | None = None
    result: R_co | None = None
    errors: tuple[ErrorRecord, ...] = ()
    unique_key: str | None = None
    idempotency_key: str | None = None
    correlation_id: str | None = None
    external_id: str | None = None
    tags: tuple[str, ...] = ()
    meta_json: str | None = None
    duplicate: bool = False
    """Only on what an enqueue returns: this job was there already, nothing was inserted."""
    replaces: int | None = None
    """Only on what an enqueue returns: the job that was cancelled in favour of this one."""

    @property
    def args(self) -> Any:
        """The stored arguments, parsed anew at each read: changing them changes nothing."""
        return codec.loads(self.args_json)

    @property
    def meta(self) -> dict[str, Any]:
        """The stored metadata, parsed anew at each read: changing it changes nothing."""
        return {} if self.meta_json is None else codec.loads(self.meta_json)

    @property
    def last_error(self) -> ErrorRecord | None:
        """Why the latest failed attempt failed; kept when a later attempt succeeds."""
        return self.errors[-1] if self.errors else None

    def __repr__(self) -> str:
        return (
            f"Job(id={self.id}, worker={self.worker!r}, queue={self.queue!r}, state={self.state.name}, "
            f"attempt={self.attempt}/{self.max_attempts}, priority={self.priority})"
        )

    def __rich_repr__(self) -> Any:
        yield "id", self.id
        yield "worker", self.worker
        yield "state", self.state.name
