"""What a running handler can know and do; filled by the runtime, which alone has clocks, events and a store."""

from __future__ import annotations

from contextvars import ContextVar
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from datetime import datetime

    from jobs_async.core.job import Job
    from jobs_async.core.options import Draft


class CancelFlag(Protocol):
    """Tells a handler that it should come to an end. Reading it is safe in any thread."""

    def is_set(self) -> bool: ...

    async def wait(self) -> object: ...


class CancelCause(StrEnum):
    """Why a run is to come to an end; each member is the string that it stands for, as in `JobStuck.cause`."""

    TIMEOUT = "timeout"
    """It has run for longer than its `timeout_seconds`."""
    CANCELLED = "cancelled on request"
    """Somebody cancelled the job, or replaced it with another of its unique key."""
    TAKEN = "taken over"
    """The store says that this run has lost its claim: the job was ended, replaced, deleted or claimed elsewhere."""
    STOP = "stop"
    """The Supervisor stops, and the grace is over."""
    LEASE_LOST = "lease lost"
    """The process was taken for dead; the job may be running elsewhere by now."""


class JobContext(Protocol):
    """One attempt of one job, as its handler sees it (zzz_jobs: JobContext)."""

    @property
    def job(self) -> Job[Any]:
        """The record as it was claimed, with progress as last reported."""
        ...

    @property
    def attempt(self) -> int:
        """1 in the first run."""
        ...

    @property
    def cancelled(self) -> CancelFlag:
        """Set on a user's cancellation, 5 seconds before the task is cancelled; on a stop, a timeout or a lost lease
        together with that, for handlers in threads and for what runs in `finally`."""
        ...

    @property
    def cause(self) -> CancelCause | None:
        """Why `cancelled` is set, the first cause where there are several; None while it is not. Compares equal to its
        text: `ctx.cause == "timeout"`. Reading it is safe in any thread."""
        ...

    @property
    def deadline(self) -> datetime | None:
        """When the timeout strikes, on this process's clock; None without one."""
        ...

    @property
    def correlation_id(self) -> str | None:
        """The id that this job shares with what caused it."""
        ...

    async def progress(self, fraction: float, note: str = "") -> None:
        """Store how far this run is (0 … 1); kept with the job until its next run. After `complete` it does nothing.

        Raises:
            OptionError: the fraction is out of bounds, or the note longer than 255 bytes.
        """
        ...

    async def complete(self, *, connection: object, result: object = None) -> None:
        """Complete the job, with its result, inside the transaction that is open on `connection`, so that what the
        handler writes there takes effect exactly once: both are committed, or neither is.

        Commit before the handler ends, and let it end soon after. What it returns or raises after the commit changes
        nothing any more. Where the transaction is rolled back, its end counts as it always does; and `complete` may
        be called again in another transaction. On the SQL stores only; `connection` is what `enqueue` takes.

        It is called once in a transaction, which began after the job was claimed, and by its handler. Let StaleClaim
        leave the transaction, which is then rolled back.

        Raises:
            StaleClaim: this run no longer holds the job, or somebody has asked to cancel it.
            OptionError: the store has no transactions, `connection` is none of its own, or this is not the time for it.
            ArgsError: the result has no JSON form.
            StoreError, and the driver's own errors: as an enqueue on this connection.
        """
        ...

    async def enqueue(self, draft: Draft[Any], *, connection: object = None) -> Job[Any]:
        """Enqueue into the Supervisor that runs this handler."""
        ...


current: ContextVar[JobContext] = ContextVar("jobs_async_context")


def current_context() -> JobContext:
    """The context of the handler that runs right now, in its task, its helpers and its thread.

    Raises:
        LookupError: not called from a job.
    """
    try:
        return current.get()
    except LookupError:
        raise LookupError("current_context() was called outside a job, or in a worker process") from None
