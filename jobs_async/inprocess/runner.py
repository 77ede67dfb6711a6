"""Runs single jobs so that an observer hears of it."""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar, overload
from uuid import uuid4

from jobs_async.clock import stopwatch
from jobs_async.core import limits
from jobs_async.core.errors import OptionError
from jobs_async.inprocess.calling import call, call_async, refuse_async
from jobs_async.inprocess.context import JobResultStatus, ObservedJobContext, with_attribute
from jobs_async.inprocess.observer import (
    NoopObserver,
    check_observer,
    refuse_async_hooks,
    tell,
    tell_async,
)
from jobs_async.inprocess.protocols import name_of
from jobs_async.inprocess.span import Surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from jobs_async.inprocess.observer import JobObserver
    from jobs_async.inprocess.protocols import AsyncJob, Job
    from jobs_async.inprocess.span import SpanFactory

T = TypeVar("T")

logger = logging.getLogger("jobs_async.inprocess")


def _random_id() -> str:
    return uuid4().hex


class ObservedJobRunner:
    """Runs a job at once and hands on what comes of it, unchanged (nidus-jobs: ObservedJobRunner).

    Each run has an id of its own and a span named `job.run`, and the observer is told before it and after it. What
    observing gets wrong is logged by `jobs_async.inprocess` and harms no job. A runner is never changed: `context` and
    `with_run_ids` return another one, so it may be shared by tasks and threads.

    `span` makes the span from its name and attributes; `job.name` and `job.run_id` are among these. `timer` tells
    seconds.

    Raises:
        JobTypeError: the observer lacks a hook.
    """

    def __init__(
        self,
        observer: JobObserver | None = None,
        *,
        span: SpanFactory | None = None,
        timer: Callable[[], float] = stopwatch,
    ) -> None:
        self._observer = observer if observer is not None else NoopObserver()
        check_observer(self._observer)
        self._span = span
        self._timer = timer
        self._run_ids: Callable[[], str] = _random_id
        self._attributes: Mapping[str, str] = {}

    def __repr__(self) -> str:
        return f"<{type(self).__name__} for {limits.type_name(self._observer)}>"

    def context(self, key: str, value: str) -> ObservedJobRunner:
        """A runner that passes on one attribute more, with every run.

        Raises:
            OptionError: the key is not 1 to 255 bytes of text, or the value no string.
        """
        runner = copy.copy(self)
        runner._attributes = with_attribute(self._attributes, key, value)
        return runner

    def with_run_ids(self, generator: Callable[[], str]) -> ObservedJobRunner:
        """A runner that calls `generator` for the id of each run, 1 to 255 bytes of text; random ones by default.

        Raises:
            OptionError: it is not callable.
        """
        if not callable(generator):
            raise OptionError(f"run ids come from a callable, not from {limits.type_name(generator)}")
        runner = copy.copy(self)
        runner._run_ids = generator
        return runner

    def refuse_async_hooks(self) -> None:
        """Make sure that `run` can tell the observer.

        Raises:
            JobTypeError: it has async hooks; only `run_async` can tell it.
        """
        refuse_async_hooks(self._observer)

    def run(self, job: Job[T]) -> T:
        """Run a sync job: returns what it returns, raises what it raises.

        Raises:
            JobTypeError: it is no job or an async one, or the observer has async hooks.
            OptionError: its name is not 1 to 255 bytes of text.
        """
        self.refuse_async_hooks()
        name = name_of(job)
        refuse_async(job, "run_async")
        context = self._new_context(name)
        with Surroundings(context, self._span):
            begun = self._timer()
            try:
                tell(self._observer.on_job_started, context)
                begun = self._timer()  # the time of hooks is not the job's
                result = call(job)
            except BaseException:
                tell(self._observer.on_job_finished, self._ended(context, begun), JobResultStatus.FAILURE)
                raise
            tell(self._observer.on_job_finished, self._ended(context, begun), JobResultStatus.SUCCESS)
            return result

    @overload
    async def run_async(self, job: AsyncJob[T]) -> T: ...
    @overload
    async def run_async(self, job: Job[T]) -> T: ...

    async def run_async(self, job: AsyncJob[T] | Job[T]) -> T:
        """Run a job of either kind in the calling task: returns what it returns, raises what it raises.

        A sync job holds up the event loop while it runs. A run that is cancelled has failed.

        Raises:
            JobTypeError: it is no job.
            OptionError: its name is not 1 to 255 bytes of text.
        """
        context = self._new_context(name_of(job))
        with Surroundings(context, self._span):
            begun = self._timer()
            try:
                await tell_async(self._observer.on_job_started, context)
                begun = self._timer()
                result: T = await call_async(job)
            except GeneratorExit:
                raise  # the coroutine was abandoned, and may await no more
            except BaseException:
                await tell_async(self._observer.on_job_finished, self._ended(context, begun), JobResultStatus.FAILURE)
                raise
            await tell_async(self._observer.on_job_finished, self._ended(context, begun), JobResultStatus.SUCCESS)
            return result

    def _new_context(self, job_name: str) -> ObservedJobContext:
        return ObservedJobContext(self._new_run_id(), job_name, self._attributes)

    def _new_run_id(self) -> str:
        try:
            return limits.name(self._run_ids(), "a run id")
        except Exception:
            logger.exception("the generator of run ids failed; this run has a random one")
            return _random_id()

    def _ended(self, context: ObservedJobContext, begun: float) -> ObservedJobContext:
        return replace(context, duration=self._timer() - begun)
