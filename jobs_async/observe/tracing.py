"""Jobs in traces: a span around storing them, one around each run, joined by what travels in their `meta`.

    request ─► send mail ─► meta: traceparent ···link···► process mail ─► send default ···link···► process default

The only module that sees OpenTelemetry, and of that only the API: what becomes of spans and metrics is for the
providers of the application to say. Without any, they are nothing.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

from jobs_async.core import limits
from jobs_async.core.context import CancelCause
from jobs_async.core.errors import OptionError, UnreadableArgs
from jobs_async.core.events import Event, JobCompleted, JobEnqueued, JobFailed, JobResult, JobStarted
from jobs_async.core.instrument import Instrument
from jobs_async.core.job import replace
from jobs_async.core.outcome import Cancel, Discard, Failure, Snooze
from jobs_async.core.version import VERSION

try:
    from opentelemetry.context import Context
    from opentelemetry.metrics import MeterProvider, get_meter
    from opentelemetry.trace import (
        Link,
        SpanKind,
        Status,
        StatusCode,
        TracerProvider,
        get_current_span,
        get_tracer,
        set_span_in_context,
        use_span,
    )
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    _is_installed = True
except ModuleNotFoundError as error:
    if TYPE_CHECKING or (error.name or "").partition(".")[0] != "opentelemetry":
        raise
    _is_installed = False

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Span
    from opentelemetry.util.types import Attributes

    from jobs_async.core.context import JobContext
    from jobs_async.core.job import Job
    from jobs_async.core.options import NewJob
    from jobs_async.telemetry import Handler

T = TypeVar("T")

SYSTEM = "jobs_async"
PARENT, STATE = "traceparent", "tracestate"
"""Where the W3C trace context stands in a job's `meta`."""

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Upper bounds in seconds: those of the conventions, and some for what takes longer than a message does."""


class Tracing(Instrument):
    """Spans and metrics of jobs, after the messaging conventions of OpenTelemetry.

    Storing jobs is a span `send {queue}`, and its context goes into their `meta` as `traceparent` and `tracestate`,
    except where the application has put a `traceparent` there. Each run of a handler is a span `process {queue}`, the
    current one in the handler. By default it begins a trace of its own that is linked to that of the sender; with
    `parent="parent"` it is a child in the sender's trace. Arguments and keys are in no span; what an exception says of
    itself is.

        tracing = Tracing()
        telemetry.attach(tracing.telemetry_handler())
        jobs = Supervisor(instruments=[tracing], telemetry=telemetry)

    Without providers the global ones of OpenTelemetry are used, also those that are set later.

    Raises:
        OptionError: opentelemetry is not installed, a provider is none, or `parent` is another word.
    """

    def __init__(
        self,
        tracer_provider: TracerProvider | None = None,
        meter_provider: MeterProvider | None = None,
        *,
        parent: Literal["link", "parent"] = "link",
    ) -> None:
        if not _is_installed:
            raise OptionError("tracing needs opentelemetry: install jobs-async[otel]")
        _check(tracer_provider, TracerProvider, "tracer_provider")
        _check(meter_provider, MeterProvider, "meter_provider")
        given: object = parent
        if given not in ("link", "parent"):
            raise OptionError('parent must be "link" or "parent"')
        self._is_parent = parent == "parent"
        self._tracer = get_tracer(SYSTEM, VERSION, tracer_provider)
        self._wire = TraceContextTextMapPropagator()
        self._sending: dict[str, Span] = {}
        self._handler = Recorder(get_meter(SYSTEM, VERSION, meter_provider), self._sending)

    def telemetry_handler(self) -> Handler:
        """What to attach to a Telemetry, the same one each time: it measures, and tells spans the ids of new jobs."""
        return self._handler

    def span(self, name: str, attributes: Mapping[str, str]) -> AbstractContextManager[object]:
        """A current span, as `ObservedJobRunner(span=tracing.span)` wants it."""
        return self._tracer.start_as_current_span(name, attributes=dict(attributes))

    @contextmanager
    def enqueuing(self, new: Sequence[NewJob]) -> Generator[Sequence[NewJob]]:
        """A span of kind PRODUCER; the jobs come out with its context in their `meta`."""
        queue = _common(job.queue for job in new)
        name = "send" if queue is None else f"send {queue}"
        span = self._tracer.start_span(name, kind=SpanKind.PRODUCER, attributes=_of_sending(new, queue))
        carrier: dict[str, str] = {}
        self._wire.inject(carrier, set_span_in_context(span))
        if len(new) == 1 and span.is_recording():
            self._sending[carrier[PARENT]] = span
        try:
            with use_span(span, record_exception=False, set_status_on_exception=False):
                yield _marked(new, carrier) if carrier else new
        except Exception as error:
            _tell_failure(span, Failure(type(error).__name__, _text(error)), error)
            raise
        finally:
            self._sending.pop(carrier.get(PARENT, ""), None)
            span.end()

    @contextmanager
    def running(self, ctx: JobContext) -> Generator[None]:
        """A span of kind CONSUMER, the current one in the handler."""
        span = self._start_processing(ctx.job)
        try:
            with use_span(span, record_exception=False, set_status_on_exception=False):
                yield
        except BaseException as error:
            _tell_ending(span, ctx, error)
            raise
        else:
            _tell_ending(span, ctx, None)
        finally:
            span.end()

    def _start_processing(self, job: Job[Any]) -> Span:
        """Never below whatever span the Supervisor was started in."""
        sender = self._context_of(job)
        cause = get_current_span(sender).get_span_context()
        return self._tracer.start_span(
            f"process {job.queue}",
            context=sender if self._is_parent else Context(),
            kind=SpanKind.CONSUMER,
            attributes=_of_processing(job),
            links=[Link(cause)] if cause.is_valid and not self._is_parent else None,
        )

    def _context_of(self, job: Job[Any]) -> Context:
        """What the sender has left in the `meta`; empty where that is nothing, or not what W3C says."""
        meta: Mapping[str, object] = job.meta
        carrier = {key: value for key in (PARENT, STATE) if isinstance(value := meta.get(key), str)}
        return self._wire.extract(carrier, Context())


class Recorder:
    """A telemetry handler that turns events into measurements, and completes spans that are being sent."""

    def __init__(self, meter: Meter, sending: Mapping[str, Span]) -> None:
        self._sending = sending
        self._sent = meter.create_counter("messaging.client.sent.messages", "{message}", "Jobs stored.")
        self._consumed = meter.create_counter("messaging.client.consumed.messages", "{message}", "Runs begun.")
        self._duration = meter.create_histogram(
            "messaging.process.duration",
            "s",
            "How long a handler ran that ended by itself, or was cut for good.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of Tracing>"

    def __call__(self, event: Event) -> None:
        match event:
            case JobEnqueued(job=job):
                self._sent.add(1, _of_job(job, "enqueue"))
                self._name(job)
            case JobStarted(job=job):
                self._consumed.add(1, _of_job(job, "process"))
            case JobResult(duration_ms=duration) if duration or isinstance(event, JobCompleted | JobFailed):
                self._duration.record(duration / 1000, _of_result(event))
            case _:  # a job may end without having run
                pass

    def _name(self, job: Job[Any]) -> None:
        """Only now does the span that stores it learn what its id is."""
        if self._sending and (span := self._sending.get(str(job.meta.get(PARENT)))) is not None:
            span.set_attribute("messaging.message.id", str(job.id))


class _Ending(NamedTuple):
    """How a run ended, in the words of events; and what went wrong, if anything."""

    outcome: str
    failure: Failure | None = None


def _ending(ctx: JobContext, error: BaseException | None) -> _Ending:
    """What the runtime will make of it."""
    if ctx.job.cancel_requested or ctx.cause is CancelCause.CANCELLED:
        return _Ending("cancelled")
    if ctx.cause is CancelCause.TIMEOUT:
        text = f"timeout: ran for more than {ctx.job.timeout_seconds:g} seconds"
        return _failed(ctx, Failure("Timeout", text))
    match error:
        case None:
            return _Ending("completed")
        case Snooze():
            return _Ending("snoozed")
        case Cancel():
            return _Ending("cancelled")
        case asyncio.CancelledError() if ctx.cancelled.is_set():
            return _Ending("interrupted")
        case _:
            return _failed(ctx, _failure_of(error), is_final=_is_final(error))


def _failed(ctx: JobContext, failure: Failure, *, is_final: bool = False) -> _Ending:
    is_last = is_final or ctx.attempt >= ctx.job.max_attempts
    return _Ending("discarded" if is_last else "failed", failure)


def _is_final(error: BaseException) -> bool:
    """What a worker process tells says so itself."""
    return isinstance(error, Discard | UnreadableArgs) or getattr(error, "is_final", False) is True


def _failure_of(error: BaseException) -> Failure:
    """What a worker process tells of an error is that error, described there."""
    described: object = getattr(error, "failure", None)
    return described if isinstance(described, Failure) else Failure(type(error).__name__, _text(error))


def _text(error: BaseException) -> str:
    kind = type(error).__name__
    try:
        return f"{kind}: {error}"
    except BaseException:  # its text is its own affair
        return kind


def _tell_ending(span: Span, ctx: JobContext, error: BaseException | None) -> None:
    outcome, failure = _ending(ctx, error)
    span.set_attribute("jobs.outcome", outcome)
    if failure is not None:
        is_cut = isinstance(error, asyncio.CancelledError) and ctx.cancelled.is_set()
        _tell_failure(span, failure, None if is_cut else error)


def _tell_failure(span: Span, failure: Failure, error: BaseException | None) -> None:
    span.set_attribute("error.type", failure.type)
    span.set_status(Status(StatusCode.ERROR, failure.error))
    if error is not None:
        with suppress(BaseException):  # as above: a tracer reads its text
            span.record_exception(error, _of_told(error))


def _of_told(error: BaseException) -> Attributes:
    """What a worker process has told of an error, in place of what is known about the messenger."""
    failure: object = getattr(error, "failure", None)
    if not isinstance(failure, Failure):
        return None
    return {
        "exception.type": failure.type,
        "exception.message": failure.error.removeprefix(f"{failure.type}: "),
        "exception.stacktrace": str(getattr(error, "trace", "")),
    }


def _of_sending(new: Sequence[NewJob], queue: str | None) -> Attributes:
    """Of a batch, what its jobs have in common."""
    worker = _common(job.worker for job in new)
    correlation_id = _common(job.correlation_id for job in new)
    return {
        **_operation("enqueue", "send", queue),
        **({} if worker is None else {"jobs.worker": worker}),
        **({} if correlation_id is None else {"messaging.message.conversation_id": correlation_id}),
        **({} if len(new) == 1 else {"messaging.batch.message_count": len(new)}),
    }


def _of_processing(job: Job[Any]) -> Attributes:
    return {
        **_operation("process", "process", job.queue),
        "messaging.message.id": str(job.id),
        **({} if job.correlation_id is None else {"messaging.message.conversation_id": job.correlation_id}),
        **({} if job.node is None else {"messaging.client.id": job.node}),
        "jobs.worker": job.worker,
        "jobs.attempt": job.attempt,
    }


def _of_job(job: Job[Any], operation: str) -> dict[str, str]:
    """What measurements are told apart by: never by job, for each is a series that is kept."""
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.destination.name": job.queue,
        "jobs.worker": job.worker,
    }


def _of_result(event: JobResult) -> Attributes:
    job = event.job
    labels = {**_of_job(job, "process"), "jobs.outcome": event.type.removeprefix("job_")}
    if labels["jobs.outcome"] in ("failed", "discarded") and job.last_error is not None:
        labels["error.type"] = job.last_error.type
    return labels


def _operation(name: str, kind: str, queue: str | None) -> dict[str, str]:
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
        **({} if queue is None else {"messaging.destination.name": queue}),
    }


def _marked(new: Sequence[NewJob], carrier: Mapping[str, str]) -> list[NewJob]:
    """A context that the application has put there stays, and takes nothing of ours."""
    return [job if PARENT in job.meta else replace(job, meta={**carrier, **job.meta}) for job in new]


def _common(values: Iterable[T]) -> T | None:
    """The value that all of them are; None where they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _check(given: object, kind: type, what: str) -> None:
    if given is not None and not isinstance(given, kind):
        raise OptionError(f"{what} must be a {kind.__name__} of OpenTelemetry, not {limits.type_name(given)}")
