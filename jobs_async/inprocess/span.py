"""What surrounds observed work: a span of whatever tracer there is, and the answer of `current_run`."""

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
"""Makes a span from its name and its attributes; entered when the work begins, left when it ends, with its error."""

SPAN_NAME = "job.run"

logger = logging.getLogger("jobs_async.inprocess")


class GuardedSpan:
    """Entered around a piece of work, and gives what the span enters with; None where there is none.

    A span that raises is logged, and can swallow no error of the work. `what` names the work in the log.
    """

    __slots__ = ("_attributes", "_factory", "_name", "_span", "_what")

    def __init__(self, factory: SpanFactory | None, name: str, attributes: Mapping[str, str], what: str) -> None:
        self._factory = factory
        self._name = name
        self._attributes = attributes
        self._what = what
        self._span: ExitStack | None = None

    def __enter__(self) -> object:
        if self._factory is None:
            return None
        span = ExitStack()
        try:
            entered = span.enter_context(self._factory(self._name, self._attributes))
        except Exception:
            logger.exception("no span for %s: it could not be opened", self._what)
            return None
        self._span = span
        return entered

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._span is None:
            return
        try:
            self._span.__exit__(kind, error, trace)
        except BaseException as trouble:
            if trouble is error:
                return  # it goes on by itself
            if not isinstance(trouble, Exception):
                raise
            logger.exception("the span of %s could not be closed", self._what)


class Surroundings:
    """Entered around one run, its hooks included."""

    __slots__ = ("_context", "_span", "_token")

    def __init__(self, context: ObservedJobContext, factory: SpanFactory | None) -> None:
        self._context = context
        attributes = {**context.attributes, "job.name": context.job_name, "job.run_id": context.run_id}
        self._span = GuardedSpan(factory, SPAN_NAME, attributes, f"job {context.job_name}")

    def __enter__(self) -> None:
        self._token: Token[ObservedJobContext | None] = running.set(self._context)
        self._span.__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._span.__exit__(kind, error, trace)
        with suppress(ValueError):  # the garbage collector ends an abandoned coroutine in a context of its own
            running.reset(self._token)
