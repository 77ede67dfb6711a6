"""What can go wrong with a job in this process.

JobsError
├── JobError                      a job failed; a job may raise one itself
├── JobTypeError (TypeError)      what was given is no job or no observer, or of a kind that does not fit here
└── QueueRunning (RuntimeError)   the queue runs its jobs already
"""

from __future__ import annotations

from jobs_async.core.errors import JobsError


class JobError(JobsError):
    """Why a job failed: "Type: message" of what it raised, which is the `__cause__`.

    A JobError that a job raises itself is kept as it is.
    """

    @classmethod
    def of(cls, error: BaseException) -> JobError:
        """What a report keeps of `error`; never raises, whatever `str(error)` does."""
        if isinstance(error, JobError):
            return error
        message = _message(error)
        kind = type(error).__name__
        failure = cls(f"{kind}: {message}" if message else kind)
        failure.__cause__ = error
        return failure


class JobTypeError(JobsError, TypeError):
    """What was given is no job or no observer, or one that cannot be used here; nothing was run."""


class QueueRunning(JobsError, RuntimeError):
    """`run_all` was called while it runs already: by one of its own jobs, another task or another thread."""


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "(its message could not be read)"
