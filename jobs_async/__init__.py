"""Background jobs for asyncio: `await enqueue` in the app, a Supervisor beside the server, one API over all stores."""

from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

from jobs_async.core.context import CancelCause, JobContext, current_context
from jobs_async.core.cron import CronExpr
from jobs_async.core.errors import (
    ArgsError,
    CronError,
    IllegalTransition,
    JobNotFound,
    JobsError,
    NotBound,
    OptionError,
    ResultError,
    SchemaError,
    StaleClaim,
    StoreBusy,
    StoreClosed,
    StoreError,
    StoreFull,
    StoreTimeout,
    TelemetryError,
    UniqueConflict,
    UnreadableArgs,
    WorkerError,
    WorkerNotFound,
    WriteRefused,
)
from jobs_async.core.events import (
    Event,
    JobCancelled,
    JobCompleted,
    JobDiscarded,
    JobDuplicate,
    JobEnqueued,
    JobEvent,
    JobFailed,
    JobInterrupted,
    JobRescued,
    JobResult,
    JobSlow,
    JobSnoozed,
    JobStarted,
    JobStuck,
    LeaseLost,
    LoopStalled,
    QueueEvent,
    QueuePaused,
    QueueResumed,
    StaleSettlement,
    StoreFailing,
    StoreRecovered,
)
from jobs_async.core.health import Finding, Health, SupervisorHealth
from jobs_async.core.instrument import Instrument
from jobs_async.core.job import ErrorRecord, Job, JobState, Progress
from jobs_async.core.options import Draft, EnqueueOptions, JobOpts, UniqueStrategy, WorkerOptions
from jobs_async.core.outcome import Cancel, Discard, Snooze
from jobs_async.core.query import JobQuery
from jobs_async.core.retry import ConstantBackoff, ExponentialBackoff, FullJitterBackoff, LinearBackoff
from jobs_async.core.schedule import CronEntry
from jobs_async.core.store import Node, QueueInfo, Store, validate_store
from jobs_async.core.version import VERSION as _VERSION
from jobs_async.core.workers import ContextWorker, Enqueuer, Worker, WorkerDef, worker
from jobs_async.runtime.drain import DrainReport
from jobs_async.runtime.engine import ShutdownReport
from jobs_async.runtime.queues import Queue
from jobs_async.runtime.supervisor import Supervisor
from jobs_async.stores.memory import MemoryStore
from jobs_async.telemetry import ActivityLog, LoggingHandler, QueueHandler, StatsHandler, Telemetry

if _TYPE_CHECKING:
    from jobs_async.stores.postgres import PostgresStore
    from jobs_async.stores.sqlite import SqliteStore

__version__ = _VERSION

__all__ = [
    "ActivityLog",
    "ArgsError",
    "Cancel",
    "CancelCause",
    "ConstantBackoff",
    "ContextWorker",
    "CronEntry",
    "CronError",
    "CronExpr",
    "Discard",
    "Draft",
    "DrainReport",
    "EnqueueOptions",
    "Enqueuer",
    "ErrorRecord",
    "Event",
    "ExponentialBackoff",
    "Finding",
    "FullJitterBackoff",
    "Health",
    "IllegalTransition",
    "Instrument",
    "Job",
    "JobCancelled",
    "JobCompleted",
    "JobContext",
    "JobDiscarded",
    "JobDuplicate",
    "JobEnqueued",
    "JobEvent",
    "JobFailed",
    "JobInterrupted",
    "JobNotFound",
    "JobOpts",
    "JobQuery",
    "JobRescued",
    "JobResult",
    "JobSlow",
    "JobSnoozed",
    "JobStarted",
    "JobState",
    "JobStuck",
    "JobsError",
    "LeaseLost",
    "LinearBackoff",
    "LoggingHandler",
    "LoopStalled",
    "MemoryStore",
    "Node",
    "NotBound",
    "OptionError",
    "PostgresStore",
    "Progress",
    "Queue",
    "QueueEvent",
    "QueueHandler",
    "QueueInfo",
    "QueuePaused",
    "QueueResumed",
    "ResultError",
    "SchemaError",
    "ShutdownReport",
    "Snooze",
    "SqliteStore",
    "StaleClaim",
    "StaleSettlement",
    "StatsHandler",
    "Store",
    "StoreBusy",
    "StoreClosed",
    "StoreError",
    "StoreFailing",
    "StoreFull",
    "StoreRecovered",
    "StoreTimeout",
    "Supervisor",
    "SupervisorHealth",
    "Telemetry",
    "TelemetryError",
    "UniqueConflict",
    "UniqueStrategy",
    "UnreadableArgs",
    "Worker",
    "WorkerDef",
    "WorkerError",
    "WorkerNotFound",
    "WorkerOptions",
    "WriteRefused",
    "__version__",
    "current_context",
    "validate_store",
    "worker",
]


if not _TYPE_CHECKING:  # or checkers would believe any name

    def __getattr__(name: str) -> _Any:
        """These stores bring their drivers only to those who ask for them."""
        if name == "SqliteStore":
            from jobs_async.stores.sqlite import SqliteStore

            return SqliteStore
        if name == "PostgresStore":
            from jobs_async.stores.postgres import PostgresStore

            return PostgresStore
        raise AttributeError(f"module 'jobs_async' has no attribute {name!r}")
