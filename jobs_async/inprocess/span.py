"""What surrounds an observed run: a span of whatever tracer there is, and the answer of `current_run`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from typing import TYPE_CHECKING

from jobs_async.inprocess.context import running

if TYPE_CHECKING:
    from contextvars import Token
    from types import TracebackType

    from jobs_async.inprocess.context import ObservedJobContext

SpanFactory = Callable[[str, Mapping[str, str]], AbstractContextManager[object]]
"""Makes a span from its name and its attributes; entered when a run begins, left when it ends, with its error."""

SPAN_NAME = "job.run"

logger = logging.getLogger("jobs_async.inprocess")


class Surroundings:
    """Entered around one run, its hooks included. A span that raises is logged; one can swallow no error of a job."""

    __slots__ = ("_context", "_factory", "_span", "_token")

    def __init__(self, context: ObservedJobContext, factory: SpanFactory | None) -> None:
        self._context = context
        self._factory = factory
        self._span: ExitStack | None = None

    def __enter__(self) -> None:
        self._token: Token[ObservedJobContext | None] = running.set(self._context)
        if self._factory is not None:
            self._open(self._factory)

    def _open(self, factory: SpanFactory) -> None:
        span = ExitStack()
        attributes = {
            **self._context.attributes,
            "job.name": self._context.job_name,
            "job.run_id": self._context.run_id,
        }
        try:
            span.enter_context(factory(SPAN_NAME, attributes))
        except Exception:
            logger.exception("no span for job %s: it could not be opened", self._context.job_name)
        else:
            self._span = span

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._span is not None:
            self._close(self._span, kind, error, trace)
        with suppress(ValueError):  # the garbage collector ends an abandoned coroutine in a context of its own
            running.reset(self._token)

    def _close(
        self,
        span: ExitStack,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            span.__exit__(kind, error, trace)
        except BaseException as trouble:
            if trouble is error:
                return  # it goes on by itself
            if not isinstance(trouble, Exception):
                raise
            logger.exception("the span of job %s could not be closed", self._context.job_name)
