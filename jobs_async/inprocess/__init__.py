"""Jobs that live and end in this process (nidus-jobs): queues that run what they hold, and runs that are observed.

Nothing here is stored, retried, scheduled or run in the background; for that there is the Supervisor.
"""

from jobs_async.inprocess.channel import (
    ChannelObserver,
    Finished,
    JobEventReceiver,
    ObservedJobEvent,
    Started,
    job_observer_channel,
)
from jobs_async.inprocess.context import JobResultStatus, ObservedJobContext, current_run
from jobs_async.inprocess.errors import JobError, JobTypeError, QueueRunning
from jobs_async.inprocess.observer import JobObserver, NoopObserver
from jobs_async.inprocess.protocols import AsyncJob, Job
from jobs_async.inprocess.queue import AsyncJobQueue, JobQueue
from jobs_async.inprocess.report import JobFailure, JobReport
from jobs_async.inprocess.runner import ObservedJobRunner
from jobs_async.inprocess.span import SpanFactory

__all__ = [
    "AsyncJob",
    "AsyncJobQueue",
    "ChannelObserver",
    "Finished",
    "Job",
    "JobError",
    "JobEventReceiver",
    "JobFailure",
    "JobObserver",
    "JobQueue",
    "JobReport",
    "JobResultStatus",
    "JobTypeError",
    "NoopObserver",
    "ObservedJobContext",
    "ObservedJobEvent",
    "ObservedJobRunner",
    "QueueRunning",
    "SpanFactory",
    "Started",
    "current_run",
    "job_observer_channel",
]
