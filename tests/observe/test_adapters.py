"""Calls of stores, and of whatever else an application asks: a span and a measurement each, harmless to the call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from jobs_async import MemoryStore, OptionError, StoreBusy, Supervisor
from jobs_async.inprocess import ObservedJobRunner
from jobs_async.observe import Observability, ObservedStore
from jobs_async.testing.faults import Fault, FaultyStore, at_call
from tests.observe.support import value
from tests.observe.test_tracing import Backend

COUNT = "nidus_adapter_operations_total"
DURATION = "nidus_adapter_operation_duration_seconds"


class Trouble(Exception):
    """What a call raises."""


def on() -> Observability:
    return Observability("shop").prometheus()


def told(span: ReadableSpan) -> dict[str, Any]:
    """The attributes of a span, but for how long it took."""
    return {name: one for name, one in (span.attributes or {}).items() if name != "duration_ms"}


def duration_ms(span: ReadableSpan) -> Any:
    return (span.attributes or {})["duration_ms"]


# --- calls of your own ---


def test_a_call_is_counted_and_timed_with_how_it_went() -> None:
    observability = on()
    adapters = observability.adapter_observer()
    with adapters.operation("cache", "get"):
        pass
    trouble = Trouble()
    with pytest.raises(Trouble) as raised, adapters.operation("cache", "get"):
        raise trouble
    assert raised.value is trouble
    text = observability.render()
    for status in ("success", "failure"):
        labels = {"adapter": "cache", "operation": "get", "status": status}
        assert value(text, COUNT, **labels) == value(text, f"{DURATION}_count", **labels) == 1


def test_a_call_measured_elsewhere_is_counted_with_its_duration() -> None:
    observability, backend = on(), Backend()
    adapters = observability.adapter_observer(span=backend.tracing.span)
    adapters.record("mailer", "send", 0.25)
    adapters.record("mailer", "send", 2, succeeded=False)
    text = observability.render()
    assert value(text, f"{DURATION}_sum", adapter="mailer", operation="send", status="success") == 0.25
    assert value(text, f"{DURATION}_sum", adapter="mailer", operation="send", status="failure") == 2
    assert [(told(span)["status"], duration_ms(span)) for span in backend.spans] == [
        ("success", 250.0),
        ("failure", 2000.0),
    ]


def test_a_call_in_a_run_is_a_span_below_it_that_says_how_it_went() -> None:
    backend = Backend()
    adapters = on().adapter_observer(span=backend.tracing.span)

    class Sync:
        name = "sync"

        def run(self) -> None:
            with adapters.operation("cache", "get"), backend.tracer.start_as_current_span("query"):
                pass
            with adapters.operation("cache", "put"):
                raise Trouble

    with pytest.raises(Trouble):
        ObservedJobRunner(span=backend.tracing.span).run(Sync())
    query, get, put, run = backend.spans
    assert [span.name for span in (get, put, run)] == ["adapter.operation", "adapter.operation", "job.run"]
    for span, parent in ((query, get), (get, run), (put, run)):
        assert span.parent is not None
        assert span.parent.span_id == parent.context.span_id
    assert told(get) == {"adapter.name": "cache", "operation.name": "get", "status": "success"}
    failed = {"adapter.name": "cache", "operation.name": "put", "status": "failure", "error.type": "Trouble"}
    assert told(put) == failed
    assert put.status.status_code is StatusCode.ERROR
    assert duration_ms(get) >= 0


def test_where_it_is_off_there_are_spans_and_nothing_is_counted() -> None:
    backend, observability = Backend(), Observability("shop")
    with observability.adapter_observer(span=backend.tracing.span).operation("cache", "get"):
        pass
    assert [span.name for span in backend.spans] == ["adapter.operation"]
    assert observability.render() == ""


async def test_a_call_that_is_cancelled_has_failed() -> None:
    observability = on()
    adapters, began = observability.adapter_observer(), asyncio.Event()

    async def call() -> None:
        with adapters.operation("cache", "get"):
            began.set()
            await asyncio.Event().wait()

    task = asyncio.get_running_loop().create_task(call())
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert value(observability.render(), COUNT, adapter="cache", operation="get", status="failure") == 1


@pytest.mark.parametrize("names", [("", "get"), ("cache", ""), ("cache", "x" * 256), (7, "get")])
def test_names_are_checked_before_the_call_is_made(names: tuple[Any, Any]) -> None:
    adapters = on().adapter_observer()
    with pytest.raises(OptionError), adapters.operation(*names):
        pytest.fail("it was made")
    with pytest.raises(OptionError):
        adapters.record(*names, 1.0)


def test_a_duration_is_a_number_of_seconds() -> None:
    with pytest.raises(OptionError):
        on().adapter_observer().record("cache", "get", -1)


# --- spans that misbehave ---


class Broken:
    """A span that raises where it is told to."""

    def __init__(self, at: str) -> None:
        self._at = at

    def _raise_at(self, place: str) -> None:
        if self._at == place:
            raise ValueError("broken span")

    def __enter__(self) -> Broken:
        self._raise_at("open")
        return self

    def set_attribute(self, name: str, _value: object) -> None:
        self._raise_at(name)

    def __exit__(self, *_exc: object) -> bool:
        self._raise_at("close")
        return True


def broken(at: str) -> Callable[[str, Mapping[str, str]], AbstractContextManager[object]]:
    def make(_name: str, _attributes: Mapping[str, str]) -> AbstractContextManager[object]:
        if at == "make":
            raise ValueError("broken span")
        return Broken(at)

    return make


@pytest.mark.parametrize("at", ["make", "open", "status", "error.type", "close"])
def test_a_span_that_raises_is_logged_and_changes_nothing(at: str, caplog: pytest.LogCaptureFixture) -> None:
    observability = on()
    adapters = observability.adapter_observer(span=broken(at))
    made = []
    with pytest.raises(Trouble), adapters.operation("cache", "get"):
        made.append(True)
        raise Trouble
    assert made
    assert "broken span" in caplog.text
    assert value(observability.render(), COUNT, adapter="cache", operation="get", status="failure") == 1


def test_a_span_cannot_swallow_an_error() -> None:
    with pytest.raises(Trouble), on().adapter_observer(span=broken("never")).operation("cache", "get"):
        raise Trouble


def test_a_span_that_cannot_be_told_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    made: list[tuple[str, Mapping[str, str]]] = []

    @contextmanager
    def span(name: str, attributes: Mapping[str, str]) -> Any:
        made.append((name, attributes))
        yield

    with on().adapter_observer(span=span).operation("cache", "get"):
        pass
    assert made == [("adapter.operation", {"adapter.name": "cache", "operation.name": "get"})]
    assert not caplog.records


# --- calls of a store ---


async def test_every_call_of_a_store_is_a_span_below_what_asked_for_it() -> None:
    backend = Backend()
    store = ObservedStore(MemoryStore(), span=backend.tracing.span, adapter="memory")
    async with store:
        with backend.tracer.start_as_current_span("request") as request:
            await store.tally()
    opened, tallied, _, closed = backend.spans
    assert [told(span)["operation.name"] for span in (opened, tallied, closed)] == ["open", "tally", "close"]
    assert told(tallied) == {"adapter.name": "memory", "operation.name": "tally", "status": "success"}
    assert tallied.parent is not None
    assert tallied.parent.span_id == request.get_span_context().span_id


async def test_a_job_is_stored_below_the_span_that_sends_it() -> None:
    backend = Backend()
    store = ObservedStore(MemoryStore(), span=backend.tracing.span)
    async with Supervisor(store, queues={}, instruments=[backend.tracing]) as jobs:
        await jobs.enqueue("work")
    sent = backend.only("send default")
    (insert,) = [span for span in backend.spans if told(span).get("operation.name") == "insert" and span.parent]
    assert insert.parent is not None
    assert insert.parent.span_id == sent.context.span_id
    assert told(insert)["adapter.name"] == "store"


async def test_a_call_of_a_store_that_fails_is_a_failed_span_and_is_told_to_observers() -> None:
    backend, observability = Backend(), on()
    inner = FaultyStore(MemoryStore(), at_call(1, Fault(error=StoreBusy)))
    store = ObservedStore(inner, observability.store_observer("memory"), span=backend.tracing.span)
    async with store:
        with pytest.raises(StoreBusy):
            await store.tally()
    (failed,) = [span for span in backend.spans if told(span)["status"] == "failure"]
    assert (told(failed)["operation.name"], told(failed)["error.type"]) == ("tally", "StoreBusy")
    assert value(observability.render(), COUNT, adapter="memory", operation="tally", status="failure") == 1


@pytest.mark.parametrize("at", ["make", "open", "status", "close"])
async def test_no_store_notices_a_broken_span(at: str, caplog: pytest.LogCaptureFixture) -> None:
    async with ObservedStore(MemoryStore(), span=broken(at)) as store:
        assert await store.tally() == {}
    assert "broken span" in caplog.text


@pytest.mark.parametrize("options", [{"span": 7}, {"adapter": ""}, {"adapter": 7}])
def test_a_store_takes_no_other_span_and_no_other_name(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        ObservedStore(MemoryStore(), **options)
    ObservedStore(MemoryStore(), span=lambda _name, _attributes: nullcontext())
