"""Spans and metrics of jobs, through the SDK's in-memory exporters."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiosqlite
import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler
from opentelemetry.trace import SpanKind, StatusCode
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from jobs_async import (
    Cancel,
    ConstantBackoff,
    Discard,
    Draft,
    Event,
    JobCancelled,
    JobCompleted,
    JobDiscarded,
    JobEnqueued,
    JobFailed,
    JobOpts,
    JobSnoozed,
    JobStarted,
    JobState,
    OptionError,
    Snooze,
    StoreFull,
    Supervisor,
    Telemetry,
    UniqueConflict,
    UniqueStrategy,
    current_context,
)
from jobs_async.core.events import JobEvent
from jobs_async.core.store import Node
from jobs_async.inprocess import ObservedJobRunner
from jobs_async.observe.tracing import Tracing
from tests.runtime.programs import hard_work
from tests.runtime.support import Seen, World, virtual

ROOT = Path(__file__).parents[2]
VALID = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Backend:
    """Where spans and measurements of one test arrive."""

    def __init__(self, sampler: Sampler = ALWAYS_ON, **options: Any) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracer = self.provider.get_tracer("the application")
        self.tracing = Tracing(self.provider, MeterProvider([self._reader], shutdown_on_exit=False), **options)

    @property
    def spans(self) -> Sequence[ReadableSpan]:
        return self._exporter.get_finished_spans()

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def only(self, name: str) -> ReadableSpan:
        (span,) = self.named(name)
        return span

    def measured(self, name: str) -> dict[tuple[object, ...], Any]:
        """The points of a metric, by what they are told apart by."""
        data = self._reader.get_metrics_data()
        metrics = [
            metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
        ]
        keys = ("messaging.destination.name", "jobs.worker", "jobs.outcome", "error.type")
        return {
            tuple(value for key in keys if (value := (point.attributes or {}).get(key)) is not None): point
            for metric in metrics
            for point in metric.data.data_points
        }

    def supervisor(self, world: World, **options: Any) -> Supervisor:
        telemetry = Telemetry()
        telemetry.attach(self.tracing.telemetry_handler())
        return world.supervisor(instruments=[self.tracing], telemetry=telemetry, **options)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def links(span: ReadableSpan) -> list[int]:
    """The ids of the spans it is linked to."""
    return [link.context.span_id for link in span.links]


def exceptions(span: ReadableSpan) -> list[dict[str, Any]]:
    return [dict(event.attributes or {}) for event in span.events if event.name == "exception"]


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    return (
        span.parent is not None
        and span.parent.span_id == parent.context.span_id
        and span.context.trace_id == parent.context.trace_id
    )


# --- what is in them ---


@virtual
async def test_a_span_around_storing_and_one_around_running(world: World) -> None:
    backend = Backend()
    jobs = backend.supervisor(world, queues={"mail": 1})

    @jobs.worker(queue="mail")
    async def send(to: str) -> str:
        return f"secret result for {to}"

    async with jobs:
        keyed = send.options(unique_key="secret key", idempotency_key="secret key", tags=["secret tag"])
        job = await jobs.wait(await keyed.options(correlation_id="order 7", meta={"own": 1}).enqueue("secret argument"))

    sent, processed = backend.only("send mail"), backend.only("process mail")
    assert (sent.kind, processed.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert attributes(sent) == {
        "messaging.system": "jobs_async",
        "messaging.operation.name": "enqueue",
        "messaging.operation.type": "send",
        "messaging.destination.name": "mail",
        "messaging.message.id": str(job.id),
        "messaging.message.conversation_id": "order 7",
        "jobs.worker": "send",
    }
    assert attributes(processed) == {
        "messaging.system": "jobs_async",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "mail",
        "messaging.message.id": str(job.id),
        "messaging.message.conversation_id": "order 7",
        "messaging.client.id": job.node,
        "jobs.worker": "send",
        "jobs.attempt": 1,
        "jobs.outcome": "completed",
    }
    assert sent.status.status_code is processed.status.status_code is StatusCode.UNSET
    assert set(job.meta) == {"own", "traceparent"}
    assert not any("secret" in span.to_json() for span in backend.spans)


@virtual
async def test_the_run_is_linked_to_the_sender_and_a_trace_of_its_own(world: World) -> None:
    backend = Backend()
    jobs = backend.supervisor(world)

    @jobs.worker
    async def work() -> None: ...

    with backend.tracer.start_as_current_span("startup"):
        await jobs.start()
    with backend.tracer.start_as_current_span("request") as request:
        job = await work.enqueue()
    await jobs.wait(job)
    await jobs.stop()
    sent, processed = backend.only("send default"), backend.only("process default")
    assert is_child(sent, request)  # type: ignore[arg-type]
    assert processed.parent is None
    assert links(processed) == [sent.context.span_id]
    assert processed.context.trace_id not in {sent.context.trace_id, backend.only("startup").context.trace_id}


@virtual
async def test_or_a_child_of_the_sender(world: World) -> None:
    backend = Backend(parent="parent")
    jobs = backend.supervisor(world)

    @jobs.worker
    async def work() -> None: ...

    async with jobs:
        await jobs.wait(await work.enqueue())
    processed = backend.only("process default")
    assert is_child(processed, backend.only("send default"))
    assert links(processed) == []


@virtual
async def test_a_child_job_goes_on_with_the_trace(world: World) -> None:
    backend = Backend()
    jobs = backend.supervisor(world, queues={"default": 1, "mail": 1})

    @jobs.worker(queue="mail")
    async def mail() -> None: ...

    @jobs.worker
    async def order() -> int:
        return (await mail.enqueue()).id

    async with jobs:
        await jobs.wait(await jobs.result(await order.enqueue()))
    assert is_child(backend.only("send mail"), backend.only("process default"))
    assert links(backend.only("process mail")) == [backend.only("send mail").context.span_id]


@virtual
async def test_a_batch_is_one_span(world: World) -> None:
    backend = Backend()
    jobs = backend.supervisor(world, queues={"default": 5, "mail": 5})

    @jobs.worker
    async def work() -> None: ...

    @jobs.worker(queue="mail")
    async def mail() -> None: ...

    async with jobs:
        stored = await jobs.enqueue_many([work.draft(), work.draft()])
        stored += await jobs.enqueue_many([work.draft(), mail.draft()])
        for job in stored:
            await jobs.wait(job)
    alike, mixed = backend.only("send default"), backend.only("send")
    assert attributes(alike) == {
        "messaging.system": "jobs_async",
        "messaging.operation.name": "enqueue",
        "messaging.operation.type": "send",
        "messaging.destination.name": "default",
        "messaging.batch.message_count": 2,
        "jobs.worker": "work",
    }
    assert attributes(mixed) == {
        "messaging.system": "jobs_async",
        "messaging.operation.name": "enqueue",
        "messaging.operation.type": "send",
        "messaging.batch.message_count": 2,
    }
    senders = [link for span in backend.spans if span.kind is SpanKind.CONSUMER for link in links(span)]
    assert sorted(senders) == sorted([alike.context.span_id] * 2 + [mixed.context.span_id] * 2)


@virtual
async def test_each_attempt_is_a_span_linked_to_the_same_sender(world: World) -> None:
    backend = Backend()
    jobs = backend.supervisor(world)

    @jobs.worker(max_attempts=3, retry_strategy=ConstantBackoff(60))
    async def fail() -> None:
        raise ValueError("no")

    async with jobs:
        await jobs.wait(await fail.enqueue())
    sent, runs = backend.only("send default"), backend.named("process default")
    assert [links(run) for run in runs] == [[sent.context.span_id]] * 3
    assert [(attributes(run)["jobs.attempt"], attributes(run)["jobs.outcome"]) for run in runs] == [
        (1, "failed"),
        (2, "failed"),
        (3, "discarded"),
    ]
    assert len({run.context.trace_id for run in runs}) == 3


@virtual
async def test_a_rescued_job_is_linked_to_its_sender(world: World) -> None:
    backend = Backend()
    producer = backend.supervisor(world, queues={})
    job = await producer.enqueue("work")
    await world.store.beat(Node(id="dead"), 30, join=True)
    await world.store.fetch("default", 1, node="dead")
    async with backend.supervisor(world) as jobs:

        @jobs.worker
        async def work() -> None: ...

        await jobs.wait(job)
    run = backend.only("process default")
    assert links(run) == [backend.only("send default").context.span_id]
    assert attributes(run)["jobs.attempt"] == 2


@virtual
async def test_the_job_of_a_tick_has_no_sender(world: World) -> None:
    backend = Backend()
    jobs = backend.supervisor(world)

    @jobs.worker
    async def work() -> None: ...

    async with jobs:
        jobs.register_cron("minutely", "* * * * *", work)
        await world.seen.wait(JobCompleted)
    (run,) = backend.spans
    assert (run.name, run.parent, links(run)) == ("process default", None, [])
    assert backend.measured("messaging.client.sent.messages").keys() == {("default", "work")}


@virtual
async def test_what_a_telemetry_handler_enqueues_is_not_taken_for_what_it_hears_of(world: World) -> None:
    backend = Backend()
    jobs = backend.supervisor(world, queues={})

    async def follow(event: Event) -> None:
        if isinstance(event, JobEnqueued) and event.job.worker == "first":
            await jobs.enqueue("second")

    assert jobs.telemetry is not None
    jobs.telemetry.attach(follow)
    first = await jobs.enqueue("first")
    spans = {attributes(span)["jobs.worker"]: attributes(span) for span in backend.named("send default")}
    assert spans["first"]["messaging.message.id"] == str(first.id)
    assert "messaging.message.id" not in spans["second"]


# --- how they end ---

ENDINGS = {
    "returns": (None, None),
    "fails": ("ValueError", "ValueError: no"),
    "fails at last": ("ValueError", "ValueError: no"),
    "snoozes": (None, None),
    "cancels": (None, None),
    "discards": ("Discard", "Discard: never"),
    "hangs": ("Timeout", "timeout: ran for more than 5 seconds"),
    "late": ("Timeout", "timeout: ran for more than 5 seconds"),
    "asked": (None, None),
    "returns when asked": (None, None),
    "stopped": (None, None),
    "strays": ("CancelledError", "CancelledError: "),
    "exits": ("SystemExit", "SystemExit: 3"),
    "is hostile": ("Hostile", "Hostile"),
}


async def end(how: str) -> None:
    match how.removesuffix(" at last"):
        case "fails":
            raise ValueError("no")
        case "snoozes":
            raise Snooze(100_000)
        case "cancels":
            raise Cancel("pointless")
        case "discards":
            raise Discard("never")
        case "hangs" | "asked" | "stopped":
            await asyncio.Event().wait()
        case "late" | "returns when asked":
            await current_context().cancelled.wait()
        case "strays":
            raise asyncio.CancelledError
        case "exits":
            raise SystemExit(3)
        case "is hostile":
            raise hard_work.Hostile


@pytest.mark.parametrize("how", ENDINGS)
def test_a_span_ends_as_the_runtime_says(how: str, caplog: pytest.LogCaptureFixture) -> None:
    @virtual
    async def scene(world: World) -> None:
        backend = Backend()
        jobs = backend.supervisor(world, shutdown_timeout=1)
        attempts = 1 if how.endswith("at last") else 2
        timeout = 5 if how in ("hangs", "late") else None
        work = jobs.worker(max_attempts=attempts, timeout_seconds=timeout, retry_strategy=ConstantBackoff(1e6))(end)
        async with jobs:
            job = await work.enqueue(how)
            await world.seen.wait(JobStarted)
            if "asked" in how:
                await jobs.cancel(job.id)
            if how != "stopped":
                await asyncio.sleep(20)
        (event,) = [event for event in world.seen.of(JobEvent, job) if not isinstance(event, JobEnqueued | JobStarted)]
        span = backend.only("process default")
        assert f"job_{attributes(span)['jobs.outcome']}" == event.type
        kind, text = ENDINGS[how]
        assert attributes(span).get("error.type") == kind
        assert (span.status.status_code is StatusCode.ERROR) is (kind is not None)
        assert span.status.description == text
        if kind is not None:
            assert event.job.last_error.type == kind
        recorded = [found["exception.type"].rpartition(".")[2] for found in exceptions(span)]
        assert recorded == ([] if kind in (None, "Timeout", "Hostile") else [kind])

    scene()
    assert "Tracing" not in caplog.text


@virtual
async def test_an_exception_is_recorded_with_its_traceback(world: World) -> None:
    backend = Backend()
    jobs = backend.supervisor(world)
    work = jobs.worker(max_attempts=1)(end)
    async with jobs:
        await jobs.wait(await work.enqueue("fails"))
    (recorded,) = exceptions(backend.only("process default"))
    assert (recorded["exception.type"], recorded["exception.message"]) == ("ValueError", "no")
    assert 'raise ValueError("no")' in recorded["exception.stacktrace"]


@virtual
async def test_arguments_that_cannot_be_read_are_an_error_without_them(world: World) -> None:
    backend = Backend()
    job = await backend.supervisor(world, queues={}).enqueue("count", {"number": "secret"})
    jobs = backend.supervisor(world)

    @jobs.worker
    async def count(number: int) -> None: ...

    async with jobs:
        await jobs.wait(job)
    span = backend.only("process default")
    assert (attributes(span)["jobs.outcome"], attributes(span)["error.type"]) == ("discarded", "UnreadableArgs")
    assert "secret" not in span.to_json()


@virtual
async def test_what_cannot_be_stored_is_an_error_of_the_sender(world: World) -> None:
    backend = Backend()
    jobs = backend.supervisor(world)
    world.store._max_jobs = 1
    await jobs.enqueue("work", unique_key="key: secret")
    with pytest.raises(UniqueConflict):
        await jobs.enqueue("work", unique_key="key: secret", unique_strategy=UniqueStrategy.REJECT)
    with pytest.raises(StoreFull):
        await jobs.enqueue("work")
    fine, conflict, full = backend.named("send default")
    assert fine.status.status_code is StatusCode.UNSET
    for span, kind in ((conflict, "UniqueConflict"), (full, "StoreFull")):
        assert span.status.status_code is StatusCode.ERROR
        assert attributes(span)["error.type"] == kind
        assert [found["exception.type"] for found in exceptions(span)] == [f"jobs_async.core.errors.{kind}"]
        assert "messaging.message.id" not in attributes(span)
        assert "secret" not in span.to_json()


# --- what travels ---


STATE = trace.TraceState([("vendor", "opaque")])
REMOTE = trace.SpanContext(1, 2, is_remote=True, trace_flags=trace.TraceFlags(1), trace_state=STATE)
UNSAMPLED = trace.SpanContext(1, 2, is_remote=True, trace_flags=trace.TraceFlags(0))


@virtual
async def test_what_the_application_put_there_stays(world: World) -> None:
    backend = Backend()
    jobs = backend.supervisor(world)

    @jobs.worker
    async def work() -> None: ...

    async with jobs:
        with trace.use_span(trace.NonRecordingSpan(REMOTE)):
            own = await work.options(meta={"traceparent": VALID}).enqueue()
            state = await work.options(meta={"tracestate": "shop=1"}).enqueue()
        await jobs.wait(own)
        await jobs.wait(state)
    assert own.meta == {"traceparent": VALID}, "and nothing of another trace beside it"
    assert state.meta["tracestate"] == "shop=1"
    assert {link.context.span_id for run in backend.named("process default") for link in run.links} == {
        0xB7AD6B7169203331,
        backend.named("send default")[1].context.span_id,
    }


@virtual
async def test_the_state_of_a_trace_travels_with_it(world: World) -> None:
    backend = Backend(parent="parent")
    jobs = backend.supervisor(world)

    @jobs.worker
    async def work() -> None: ...

    async with jobs:
        with trace.use_span(trace.NonRecordingSpan(REMOTE)):
            job = await work.enqueue()
        assert (await jobs.wait(job)).meta["tracestate"] == "vendor=opaque"
    assert backend.only("process default").context.trace_state == STATE


MALFORMED: list[Any] = [
    "",
    "nonsense",
    "00-" + "0" * 32 + "-b7ad6b7169203331-01",
    "ff" + VALID[2:],
    VALID.upper(),
    VALID + "-more",
    7,
    None,
    [VALID],
    {"traceparent": VALID},
]


@pytest.mark.parametrize("parent", ["link", "parent"])
def test_a_malformed_context_is_none(parent: str, caplog: pytest.LogCaptureFixture) -> None:
    @virtual
    async def scene(world: World) -> None:
        backend = Backend(parent=parent)
        jobs = backend.supervisor(world)

        @jobs.worker
        async def work() -> str:
            return "done"

        async with jobs:
            for meta in [{"traceparent": found} for found in MALFORMED] + [{"traceparent": VALID, "tracestate": 7}]:
                job = await jobs.wait(await work.options(meta=meta).enqueue())
                assert (job.result, job.meta) == ("done", meta)
        *malformed, fine = backend.named("process default")
        assert [(span.parent, links(span)) for span in malformed] == [(None, [])] * len(MALFORMED)
        assert bool(fine.parent) is (parent == "parent")

    scene()
    assert not [record for record in caplog.records if record.name == "jobs_async"]


@pytest.mark.parametrize("parent", ["link", "parent"])
def test_a_trace_that_is_not_sampled_stays_so(parent: str) -> None:
    @virtual
    async def scene(world: World) -> None:
        backend = Backend(ParentBased(ALWAYS_ON), parent=parent)
        jobs = backend.supervisor(world)

        @jobs.worker
        async def work() -> None: ...

        async with jobs:
            with trace.use_span(trace.NonRecordingSpan(UNSAMPLED)):
                job = await work.enqueue()
            await jobs.wait(job)
        assert job.meta["traceparent"].startswith(f"00-{1:032x}-")
        assert job.meta["traceparent"].endswith("-00")
        assert backend.named("send default") == []
        if parent == "parent":
            assert backend.spans == ()
        else:  # a trace of its own is sampled for itself
            (link,) = backend.only("process default").links
            assert (link.context.trace_id, link.context.trace_flags) == (1, 0)

    scene()


@virtual
async def test_without_a_provider_nothing_is_done(world: World) -> None:
    jobs = world.supervisor(instruments=[Tracing()])

    @jobs.worker
    async def work() -> bool:
        return trace.get_current_span().is_recording()

    async with jobs:
        job = await jobs.wait(await work.options(meta={"own": 1}).enqueue())
        assert (job.result, job.meta) == (False, {"own": 1})
        with trace.use_span(trace.NonRecordingSpan(UNSAMPLED)):
            passed_on = await work.enqueue()
        assert passed_on.state is JobState.available
        meta = (await jobs.wait(passed_on)).meta
        assert meta == {"traceparent": f"00-{1:032x}-{2:016x}-00"}, "a context is passed on without one, too"


# --- the numbers ---


@virtual
async def test_measurements(world: World) -> None:
    backend = Backend()
    jobs = backend.supervisor(world, queues={"default": 5, "mail": 5})

    @jobs.worker(queue="mail", max_attempts=2, retry_strategy=ConstantBackoff(60))
    async def mail(fails: bool) -> None:
        await asyncio.sleep(1.5)
        if fails:
            raise ValueError("no")

    snooze = jobs.worker(end)
    async with jobs:
        for fails in (False, True):
            await jobs.wait(await mail.enqueue(fails))
        await snooze.enqueue("snoozes")
        waiting = await snooze.options(delay=1000).enqueue("returns")
        await jobs.cancel(waiting.id)
        await jobs.enqueue_many([Draft("nobody", {}, JobOpts(queue="else"))] * 3)
        await asyncio.sleep(20)
    sent = {key: point.value for key, point in backend.measured("messaging.client.sent.messages").items()}
    assert sent == {("mail", "mail"): 2, ("default", "end"): 2, ("else", "nobody"): 3}
    consumed = {key: point.value for key, point in backend.measured("messaging.client.consumed.messages").items()}
    assert consumed == {("mail", "mail"): 3, ("default", "end"): 1}
    durations = backend.measured("messaging.process.duration")
    assert {key: (point.count, point.sum) for key, point in durations.items()} == {
        ("mail", "mail", "completed"): (1, 1.5),
        ("mail", "mail", "failed", "ValueError"): (1, 1.5),
        ("mail", "mail", "discarded", "ValueError"): (1, 1.5),
    }
    assert durations["mail", "mail", "completed"].explicit_bounds[-1] == 1800


# --- in earnest: threads, processes, files, requests ---


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'jobs.db'}"


@asynccontextmanager
async def site(url: str, backend: Backend) -> AsyncIterator[tuple[Supervisor, httpx.AsyncClient]]:
    """A web app whose requests have spans, as an instrumentation of its framework gives them."""
    telemetry = Telemetry()
    telemetry.attach(backend.tracing.telemetry_handler())
    jobs = Supervisor(url, instruments=[backend.tracing], telemetry=telemetry, queues={"default": 2, "mail": 2})

    @jobs.worker(queue="mail")
    def mail() -> str:
        return format(trace.get_current_span().get_span_context().span_id, "x")

    @jobs.worker(max_attempts=2, retry_strategy=ConstantBackoff(0))
    async def order() -> int:
        if current_context().attempt == 1:
            raise ValueError("no")
        return (await mail.enqueue()).id

    async def post(_request: Request) -> JSONResponse:
        with backend.tracer.start_as_current_span("POST /orders", kind=SpanKind.SERVER):
            return JSONResponse({"job": (await order.enqueue()).id})

    app = Starlette(routes=[Route("/orders", post, methods=["POST"])])
    async with jobs, httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://site") as client:
        yield jobs, client


async def test_from_a_request_to_the_job_of_a_job(url: str) -> None:
    backend = Backend()
    async with site(url, backend) as (jobs, client), asyncio.timeout(30):
        job_id = (await client.post("/orders")).json()["job"]
        child = await jobs.wait(await jobs.result(job_id))
    request, sent, mailed = (backend.only(name) for name in ("POST /orders", "send default", "send mail"))
    failed, again = backend.named("process default")
    processed = backend.only("process mail")
    assert is_child(sent, request)
    assert attributes(sent)["messaging.message.id"] == str(job_id)
    assert links(failed) == links(again) == [sent.context.span_id]
    assert [attributes(run)["jobs.outcome"] for run in (failed, again)] == ["failed", "completed"]
    assert is_child(mailed, again)
    assert links(processed) == [mailed.context.span_id]
    assert child.result == format(processed.context.span_id, "x"), "the thread has it as its current span"


async def test_in_one_trace(url: str) -> None:
    backend = Backend(parent="parent")
    async with site(url, backend) as (jobs, client), asyncio.timeout(30):
        job_id = (await client.post("/orders")).json()["job"]
        await jobs.wait(await jobs.result(job_id))
    assert len({span.context.trace_id for span in backend.spans}) == 1
    assert is_child(backend.only("process mail"), backend.only("send mail"))


async def test_a_job_in_a_transaction_is_sent_when_it_is_written_down(tmp_path: Path) -> None:
    backend, file = Backend(), tmp_path / "jobs.db"
    jobs = Supervisor(f"sqlite:///{file}", instruments=[backend.tracing], queues={})
    async with jobs, aiosqlite.connect(file) as connection:
        job = await jobs.enqueue("work", connection=connection)
        await connection.commit()
        sent = backend.only("send default")
        assert (await jobs.get(job.id)).meta["traceparent"].split("-")[2] == format(sent.context.span_id, "016x")


async def test_a_worker_process_has_a_span_around_it() -> None:
    backend = Backend()
    telemetry = Telemetry()
    telemetry.attach(backend.tracing.telemetry_handler())
    telemetry.attach(seen := Seen())
    jobs = Supervisor(instruments=[backend.tracing], telemetry=telemetry, workers=[hard_work.ends])
    async with jobs, asyncio.timeout(60):
        hows = ("value", "discard", "snooze", "cancel", "killed")
        ids = {how: (await hard_work.ends.enqueue(how)).id for how in hows}
        for kind, count in ((JobFailed, 2), (JobDiscarded, 1), (JobSnoozed, 1), (JobCancelled, 1)):
            await seen.wait(kind, count=count)
    runs = {attributes(run)["messaging.message.id"]: run for run in backend.named("process default")}
    ends = {how: attributes(runs[str(job_id)]) for how, job_id in ids.items()}
    assert {how: (end["jobs.outcome"], end.get("error.type")) for how, end in ends.items()} == {
        "value": ("failed", "ValueError"),
        "discard": ("discarded", "Discard"),
        "snooze": ("snoozed", None),
        "cancel": ("cancelled", None),
        "killed": ("failed", "ProcessDied"),
    }
    (recorded,) = exceptions(runs[str(ids["value"])])
    assert (recorded["exception.type"], recorded["exception.message"]) == ("ValueError", "no such page")
    assert "hard_work.py" in recorded["exception.stacktrace"]
    assert "Told" not in runs[str(ids["value"])].to_json()


async def test_a_single_run_has_a_span_as_well() -> None:
    backend = Backend()

    class Resize:
        name = "resize"

        def run(self) -> bool:
            return trace.get_current_span().is_recording()

    assert ObservedJobRunner(span=backend.tracing.span).context("shop", "7").run(Resize()) is True
    found = attributes(backend.only("job.run"))
    assert found.pop("job.run_id")
    assert found == {"job.name": "resize", "shop": "7"}


def test_many_loops_share_one_and_no_span_is_left_open() -> None:
    backend = Backend()

    @virtual
    async def scene(world: World) -> None:
        jobs = backend.supervisor(world)
        caller = asyncio.create_task(jobs.enqueue("work"))
        await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait({caller})

    scene()
    scene()
    assert len(backend.spans) == 2
    assert backend.tracing._sending == {}


# --- what is asked for ---


GLOBAL = """
    import asyncio
    from opentelemetry import metrics, trace
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from jobs_async import Supervisor, Telemetry
    from jobs_async.observe.tracing import Tracing

    async def main():
        tracing, telemetry = Tracing(), Telemetry()
        telemetry.attach(tracing.telemetry_handler())
        exporter, reader, provider = InMemorySpanExporter(), InMemoryMetricReader(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        trace.set_tracer_provider(provider)
        metrics.set_meter_provider(MeterProvider([reader]))
        await Supervisor(instruments=[tracing], telemetry=telemetry, queues={}).enqueue("work")
        print([span.name for span in exporter.get_finished_spans()])
        print([metric.name for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics])

    asyncio.run(main())
"""


def test_global_providers_may_come_later() -> None:
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(GLOBAL)]
    ran = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("['send default']\n['messaging.client.sent.messages']\n", "")


def test_what_is_none_is_refused() -> None:
    for wrong, text in (
        ({"tracer_provider": "console"}, "tracer_provider must be a TracerProvider of OpenTelemetry, not str"),
        ({"meter_provider": TracerProvider(shutdown_on_exit=False)}, "meter_provider must be a MeterProvider"),
        ({"parent": "child"}, "parent must be"),
    ):
        with pytest.raises(OptionError, match=text):
            Tracing(**wrong)


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.trace"])
def test_without_the_package_it_says_what_to_install(missing: str) -> None:
    code = f"""
        import sys
        class Nowhere:
            def find_spec(self, name, path=None, target=None):
                if name == {missing!r}:
                    raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        sys.meta_path.insert(0, Nowhere())
        import jobs_async.observe
        from jobs_async.observe.tracing import Tracing
        try:
            Tracing()
        except jobs_async.OptionError as error:
            print(error)
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code)]
    ran = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (ran.stdout, ran.stderr) == ("tracing needs opentelemetry: install jobs-async[otel]\n", "")


def test_neither_the_package_nor_observe_loads_opentelemetry() -> None:
    code = "import jobs_async, jobs_async.observe, sys; print('opentelemetry' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ran.stdout == "False\n"
