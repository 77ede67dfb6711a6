"""What surrounds jobs and is no job's affair: tracing, log contexts. Made by `observe` or by the application."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs_async.core.context import JobContext
    from jobs_async.core.options import NewJob


class Instrument:
    """Two places to stand: around the storing of jobs, and around each run of a handler. Both do nothing unless
    overridden.

    An instrument never changes what becomes of a job: what it raises is logged and counts for nothing, and it cannot
    swallow an error.
    """

    def enqueuing(self, new: Sequence[NewJob]) -> AbstractContextManager[Sequence[NewJob]]:
        """Around the storing of jobs that are decided upon, in the caller's task. What it enters with is stored in
        their place: the same jobs, with more in their `meta`. The jobs of cron ticks come from nobody: they are left
        out.
        """
        return nullcontext(new)

    def running(self, ctx: JobContext) -> AbstractContextManager[object]:
        """Around the handler, in its task: context variables set here are seen by it, in its thread too, though not in
        a worker process. It is left with what the handler raised, if anything.
        """
        return nullcontext()
