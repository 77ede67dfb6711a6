"""Every error a user can meet; the docstring says when, the message says what to do.

JobsError
├── OptionError (ValueError)      an option, a name or an instant is not acceptable
├── ArgsError (ValueError)        arguments do not fit the worker, or are not JSON any reader can load
│   └── UnreadableArgs            stored arguments no longer fit the worker that is to run them
├── CronError (ValueError)        a cron expression cannot be parsed or never matches
├── WorkerError (TypeError)       a function cannot be a worker, or a name is registered twice
├── WorkerNotFound (LookupError)  no worker of this name is registered here
├── JobNotFound (LookupError)     no job of this id is stored
├── NotBound                      a worker cannot tell which Supervisor to enqueue into
├── UniqueConflict                a live job holds the unique key (UniqueStrategy.REJECT)
├── StaleClaim                    a run that would complete its job in a transaction no longer holds it
├── ResultError                   the awaited job was discarded or cancelled
├── IllegalTransition             a state change outside the life cycle: a bug in a store or a tool
├── TelemetryError (RuntimeError) emit or attach called from inside a handler of the same Telemetry
└── StoreError
    ├── StoreFull                 MemoryStore holds max_jobs live jobs
    ├── StoreBusy                 the database stayed locked by somebody else
    ├── StoreTimeout              the store did not answer in time
    ├── StoreClosed               the store is not open
    └── SchemaError               the database file is not ours, or newer than this version
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobs_async.core.job import Job


class JobsError(Exception):
    """The root of every error this package raises on purpose."""


class OptionError(JobsError, ValueError):
    """An option, a name or an instant is not acceptable; nothing was written."""


class ArgsError(JobsError, ValueError):
    """Arguments do not fit the worker's signature or cannot be stored; nothing was written.

    The message names the parameter and the rule, never the value.
    """


class UnreadableArgs(ArgsError):
    """Stored arguments no longer fit the worker that is to run them; the job is discarded."""


class CronError(JobsError, ValueError):
    """A cron expression cannot be parsed, or no date ever matches it."""


class WorkerError(JobsError, TypeError):
    """A function cannot be a worker, or two workers of one name were registered."""


class WorkerNotFound(JobsError, LookupError):
    """No worker of this name is registered with this Supervisor."""


class JobNotFound(JobsError, LookupError):
    """No job of this id is stored."""

    def __init__(self, job_id: int) -> None:
        super().__init__(f"job {job_id} is not in the store")
        self.job_id = job_id


class NotBound(JobsError, RuntimeError):
    """A worker is attached to no running Supervisor, or to several."""


class UniqueConflict(JobsError):
    """A live job already holds the unique key; `job` is that job.

    Where it is another job of the same batch, that one was not stored either, and its id means nothing.
    """

    def __init__(self, job: Job[Any]) -> None:
        super().__init__(f"job {job.id} ({job.worker}, {job.state.name}) is live and holds this unique key")
        self.job = job


class StaleClaim(JobsError):
    """`JobContext.complete`: this run no longer holds its job, or somebody has asked to cancel it.

    Let it leave the transaction, so that the transaction is rolled back: what it would commit belongs to a run that
    does not count. Out of the handler it is no failure, and takes no attempt from the job.
    """


class ResultError(JobsError):
    """The awaited job ended without a result; `job` says how."""

    def __init__(self, job: Job[Any]) -> None:
        last = job.last_error
        super().__init__(f"job {job.id} ({job.worker}) was {job.state.name}" + (f": {last.error}" if last else ""))
        self.job = job


class IllegalTransition(JobsError):
    """A state change the life cycle does not know."""


class TelemetryError(JobsError, RuntimeError):
    """`emit` or `attach` was called from inside a handler of the same Telemetry: it would wait for itself."""


class StoreError(JobsError):
    """A store could not do what was asked. Nothing of the call was written, unless the error says otherwise."""


class StoreFull(StoreError):
    """The memory store holds its limit of live jobs."""


class StoreBusy(StoreError):
    """The database stayed locked by somebody else for as long as the call may wait."""


class StoreTimeout(StoreError):
    """The store did not answer in time. A write may still come through: repeat it only under a key."""


class WriteRefused(StoreError):
    """The database will not take this, however often it is asked."""


class StoreClosed(StoreError):
    """The store is not open: use it in `async with`, or give it to a Supervisor."""


class SchemaError(StoreError):
    """The database's schema is missing, foreign or newer than this version of the package."""
