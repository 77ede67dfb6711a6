"""Calls of what lies outside, a store or a cache, with a span and metrics each (nidus-jobs: adapter observer)."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jobs_async.clock import stopwatch
from jobs_async.core import limits
from jobs_async.inprocess.span import GuardedSpan

if TYPE_CHECKING:
    from collections.abc import Generator
    from types import TracebackType

    from jobs_async.core.limits import Seconds
    from jobs_async.inprocess import SpanFactory
    from jobs_async.observe.metrics import Metrics

SPAN_NAME = "adapter.operation"

logger = logging.getLogger("jobs_async.observe")


class OperationSpan:
    """Entered around one call: a span `adapter.operation` with `adapter.name` and `operation.name`.

    What the span enters with is told `status`, `duration_ms` and, of a failure, `error.type`, where it has a
    `set_attribute` as spans of OpenTelemetry have. Afterwards, `seconds` and `error` say how the call went.
    """

    __slots__ = ("_began", "_entered", "_span", "error", "seconds")

    def __init__(self, factory: SpanFactory | None, adapter: str, operation: str) -> None:
        attributes = {"adapter.name": adapter, "operation.name": operation}
        self._span = GuardedSpan(factory, SPAN_NAME, attributes, f"{operation} of {adapter}")
        self.seconds = 0.0
        self.error: str | None = None

    def __enter__(self) -> OperationSpan:
        self._entered: Any = self._span.__enter__()
        self._began = stopwatch()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds = stopwatch() - self._began
        self.error = None if error is None else limits.type_name(error)
        tell_ending(self._entered, self.seconds, self.error, succeeded=error is None)
        self._span.__exit__(kind, error, trace)


def tell_ending(span: Any, seconds: float, error: str | None, *, succeeded: bool) -> None:
    """Say how a call went, to a span that can be told."""
    try:
        tell = getattr(span, "set_attribute", None)
        if callable(tell):
            tell("status", status_of(succeeded))
            tell("duration_ms", round(seconds * 1000, 3))
            if error is not None:
                tell("error.type", error)
    except Exception:
        logger.exception("a span could not be told how its call went")


def status_of(succeeded: bool) -> str:
    """The label of how a call went."""
    return "success" if succeeded else "failure"


class AdapterObserver:
    """Measures what an application asks of others, with a span for each call: of a cache, a mailer, a store.

        adapters = observability.adapter_observer(span=tracing.span)
        with adapters.operation("cache", "get"):
            value = await cache.get(key)

    The span is the current one inside, and a child of the run or the request around it. Names are labels, so let there
    be few: what is called, and what it is asked to do. May be used from any thread.
    """

    def __init__(self, metrics: Metrics | None, span: SpanFactory | None = None) -> None:
        self._metrics = metrics
        self._span = span

    @contextmanager
    def operation(self, adapter: str, operation: str) -> Generator[None]:
        """Around one call. An error, a cancellation too, makes it a failure, and goes on.

        Raises:
            OptionError: a name is not 1 to 255 bytes of text.
        """
        call = self._call(adapter, operation)
        try:
            with call:
                yield
        finally:
            self._count(adapter, operation, call.seconds, succeeded=call.error is None)

    def record(self, adapter: str, operation: str, duration: Seconds, *, succeeded: bool = True) -> None:
        """A call that was measured elsewhere; its span has no length of its own, `duration_ms` tells it.

        Raises:
            OptionError: a name is not 1 to 255 bytes of text, or the duration no number of seconds.
        """
        seconds = limits.seconds(duration, "duration")
        names = {"adapter.name": limits.name(adapter, "adapter"), "operation.name": limits.name(operation, "operation")}
        with GuardedSpan(self._span, SPAN_NAME, names, f"{operation} of {adapter}") as span:
            tell_ending(span, seconds, None, succeeded=succeeded)
        self._count(adapter, operation, seconds, succeeded=succeeded)

    def _call(self, adapter: str, operation: str) -> OperationSpan:
        return OperationSpan(self._span, limits.name(adapter, "adapter"), limits.name(operation, "operation"))

    def _count(self, adapter: str, operation: str, seconds: float, *, succeeded: bool) -> None:
        if self._metrics is not None:
            count_call(self._metrics, adapter, operation, seconds, succeeded=succeeded)


def count_call(metrics: Metrics, adapter: str, operation: str, seconds: float, *, succeeded: bool) -> None:
    """One more call, and how long it took."""
    key = (adapter, operation, status_of(succeeded))
    metrics.operations.add(key)
    metrics.operation_duration.observe(key, seconds)
