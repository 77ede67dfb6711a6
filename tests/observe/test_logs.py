"""Log records know their job, wherever they come from, and formatters take whatever a record holds."""

from __future__ import annotations

import asyncio
import contextvars
import json
import logging
import logging.config
import logging.handlers
import queue
import sys
import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import structlog
from hypothesis import example, given
from hypothesis import strategies as st
from opentelemetry import trace

from jobs_async import Supervisor
from jobs_async.core.context import current
from jobs_async.observe.logs import (
    ABSENT,
    FIELDS,
    HumanFormatter,
    JobFilter,
    JsonFormatter,
    LogContext,
    current_log_context,
)
from tests.runtime.support import World, virtual

log = logging.getLogger("tests.shop")


class Kept(logging.Handler):
    """Every record that came by, behind a JobFilter."""

    def __init__(self) -> None:
        super().__init__()
        self.addFilter(JobFilter())
        self.records: list[Any] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)

    def jobs(self) -> dict[str, object]:
        return {record.getMessage(): record.job_id for record in self.records}


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler
    log.removeHandler(handler)
    log.setLevel(logging.NOTSET)


def record_of(msg: Any = "all well", *args: Any, **more: Any) -> logging.LogRecord:
    fields = {"name": "shop", "levelno": 30, "levelname": "WARNING", "created": 1_772_366_400.125, **more}
    record = logging.makeLogRecord({"msg": msg, "args": args})
    record.__dict__.update(fields)
    return record


# --- what a record knows ---


def test_a_record_knows_its_job_in_the_handler_and_in_what_it_spawned(kept: Kept) -> None:
    @virtual
    async def scene(world: World) -> None:
        jobs = world.supervisor(queues={"mail": 2})

        async def helper(who: str) -> None:
            await asyncio.sleep(1)
            log.info("helper of %s", who)

        @jobs.worker(queue="mail")
        async def send(who: str) -> dict[str, object]:
            log.info("began %s", who)
            async with asyncio.TaskGroup() as group:
                group.create_task(helper(who))
            log.info("ended %s", who)
            return dict(current_log_context())

        async with jobs:
            ann = await send.options(correlation_id="order-7").enqueue("Ann")
            bob = await send.enqueue("Bob")
            assert (await jobs.wait(ann)).result == {
                "job_id": ann.id,
                "worker": "send",
                "queue": "mail",
                "attempt": 1,
                "correlation_id": "order-7",
            }
            await jobs.wait(bob)
        log.info("outside")
        people = [("Ann", ann), ("Bob", bob)]
        told = {f"{what} {who}": job.id for what in ("began", "helper of", "ended") for who, job in people}
        assert kept.jobs() == {**told, "outside": ABSENT}
        assert current_log_context() == {}

    scene()
    first, last = kept.records[0], kept.records[-1]
    assert [first.worker, first.queue, first.attempt, first.correlation_id, first.trace_id] == [
        "send",
        "mail",
        1,
        "order-7",
        ABSENT,
    ]
    assert {getattr(last, name) for name in FIELDS} == {ABSENT}


async def test_a_record_knows_its_job_in_a_thread(kept: Kept) -> None:
    jobs = Supervisor(poll_interval=0.05)

    @jobs.worker
    def work() -> bool:
        log.info("in a thread")
        return threading.current_thread() is threading.main_thread()

    async with jobs, asyncio.timeout(10):
        job = await work.enqueue()
        assert await jobs.result(job) is False
    assert kept.jobs() == {"in a thread": job.id}


def in_a_job(fields: dict[str, Any], do: Any, *args: Any) -> Any:
    """Call something with a context as the runtime sets it."""

    class Job:
        id, worker, queue = 12, "send", "mail"

    class Context:
        job, attempt, correlation_id = Job(), 2, None

    ctx: Any = Context()
    ctx.__dict__.update(fields)
    here = contextvars.copy_context()
    here.run(current.set, ctx)
    return here.run(do, *args)


def test_what_extra_says_stays_and_so_does_what_another_filter_said() -> None:
    record = record_of(worker="of its own")
    in_a_job({}, JobFilter().filter, record)
    assert (record.__dict__["worker"], record.__dict__["job_id"]) == ("of its own", 12)
    assert JobFilter().filter(record)
    assert record.__dict__["job_id"] == 12


def test_a_record_keeps_its_job_on_its_way_through_a_queue(kept: Kept) -> None:
    log.removeHandler(kept)
    ahead = logging.handlers.QueueHandler(queue.SimpleQueue())
    ahead.addFilter(JobFilter())
    listener = logging.handlers.QueueListener(ahead.queue, kept)
    log.addHandler(ahead)
    try:
        listener.start()
        in_a_job({}, log.info, "told elsewhere")
    finally:
        listener.stop()
        log.removeHandler(ahead)
    assert kept.jobs() == {"told elsewhere": 12}


def test_a_context_that_fails_harms_no_log_call(kept: Kept) -> None:
    in_a_job({"job": None}, log.info, "still told")
    assert kept.jobs() == {"still told": ABSENT}


SPAN = trace.SpanContext(trace_id=0xABC, span_id=0xDEF, is_remote=False)


def test_the_current_span_is_told(kept: Kept) -> None:
    def traced() -> None:
        with trace.use_span(trace.NonRecordingSpan(SPAN)):
            log.info("traced")
        log.info("untraced")

    in_a_job({}, traced)
    assert [(record.trace_id, record.span_id) for record in kept.records] == [
        (f"{0xABC:032x}", f"{0xDEF:016x}"),
        (ABSENT, ABSENT),
    ]


def test_opentelemetry_is_not_imported_and_a_broken_one_does_no_harm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "opentelemetry.trace")
    assert "trace_id" not in in_a_job({}, current_log_context)
    assert "opentelemetry.trace" not in sys.modules
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", object())
    assert in_a_job({}, current_log_context)["job_id"] == 12


# --- structlog ---


@virtual
async def test_structlog_has_the_fields_while_the_handler_runs(world: World) -> None:
    structlog.contextvars.bind_contextvars(queue="of the application", shop="north")
    before = structlog.contextvars.get_contextvars()
    after: list[dict[str, Any]] = []

    class Around(LogContext):
        def running(self, ctx: Any) -> Any:
            after.append(structlog.contextvars.get_contextvars())
            with super().running(ctx):
                pass
            after.append(structlog.contextvars.get_contextvars())
            return super().running(ctx)

    jobs = world.supervisor(instruments=[Around()])

    @jobs.worker
    async def work() -> dict[str, object]:
        return dict(structlog.contextvars.get_contextvars())

    async with jobs:
        job = await jobs.wait(await work.enqueue())
    assert job.result == {"shop": "north", "job_id": job.id, "worker": "work", "queue": "default", "attempt": 1}
    assert after == [before, before]
    assert before == {"shop": "north", "queue": "of the application"}


@virtual
async def test_without_structlog_it_does_nothing(world: World) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(sys.modules, "structlog.contextvars")
        jobs = world.supervisor(instruments=[LogContext()])

        @jobs.worker
        async def work() -> str:
            return "done"

        async with jobs:
            assert await jobs.result(await work.enqueue()) == "done"
        assert "structlog.contextvars" not in sys.modules


# --- formatters ---


def failure() -> Any:
    try:
        raise ValueError("no\x1b[31m")
    except ValueError:
        return sys.exc_info()


def test_a_line_for_people() -> None:
    record = record_of("hello\n%s\x1b[0m", "Ann")
    in_a_job({}, JobFilter().filter, record)
    assert HumanFormatter().format(record) == (
        "2026-03-01 12:00:00.125Z WARNING shop [send #12 attempt 2] hello\\nAnn\\x1b[0m"
    )
    outside = record_of("all well")
    JobFilter().filter(outside)
    expected = "2026-03-01 12:00:00.125Z WARNING shop all well"
    assert HumanFormatter().format(outside) == HumanFormatter().format(record_of()) == expected


def test_an_exception_is_below_the_line() -> None:
    lines = HumanFormatter().format(record_of("failed", exc_info=failure(), stack_info="Stack:\n  here")).splitlines()
    assert lines[0].endswith("shop failed")
    assert lines[1] == "Traceback (most recent call last):"
    assert lines[-3:] == ["ValueError: no\\x1b[31m", "Stack:", "  here"]


def test_a_line_for_programs() -> None:
    record = record_of("hello %s", "Ann", order=7, tags=["a"], level="mine")
    in_a_job({"correlation_id": "order-7"}, JobFilter().filter, record)
    assert json.loads(JsonFormatter().format(record)) == {
        "time": "2026-03-01T12:00:00.125000Z",
        "level": "WARNING",
        "logger": "shop",
        "message": "hello Ann",
        "job_id": 12,
        "worker": "send",
        "queue": "mail",
        "attempt": 2,
        "correlation_id": "order-7",
        "order": 7,
        "tags": ["a"],
        "level_": "mine",
    }


def test_it_holds_the_exception_and_the_stack() -> None:
    document = json.loads(JsonFormatter().format(record_of(exc_info=failure(), stack_info="Stack:\n  here")))
    assert document["exception"].startswith("Traceback (most recent call last):\n")
    assert document["exception"].endswith("\nValueError: no\x1b[31m")
    assert document["stack"] == "Stack:\n  here"


class Hostile:
    """Fails whatever is asked of it."""

    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__

    @property
    def __dict__(self) -> dict[str, Any]:  # type: ignore[override]
        raise RuntimeError("no")


def endless() -> list[Any]:
    loop: list[Any] = []
    loop.append(loop)
    return loop


class Unspeakable(Exception):
    __str__ = Hostile.__str__


HOSTILE = {
    "arguments": record_of("%s", Hostile()),
    "arguments_missing": record_of("%s %s", 1),
    "message": record_of(Hostile()),
    "bytes": record_of(b"\xff\0", blob=b"\xff", text="\0\ud800\u2028\x85\r\n"),
    "numbers": record_of(nan=float("nan"), big=2**80, endless=float("inf"), deep={"nan": [float("nan")]}),
    "recursion": record_of("%s", endless(), loop=endless()),
    "objects": record_of(thing=Hostile(), kind=Hostile, mixed={1: {Hostile(): 2}}, lock=threading.Lock()),
    "raw": record_of(raw=msgspec.Raw(b"\n{not json")),
    "surrogates": record_of("\ud800", inside=["\udfff"], **{"\ud800": 1}),
    "exception": record_of(exc_info=(Unspeakable, Unspeakable(), None)),
    "no_exception": record_of(exc_info=(None, None, None)),
    "nonsense": record_of(exc_info="nonsense", created="never", levelname=None, exc_text=12, stack_info=Hostile()),
    "names": record_of(name=Hostile()),
    "far": record_of(created=1e300),
    "job": record_of(job_id=Hostile(), worker=Hostile(), attempt="\0"),
}


@pytest.mark.parametrize("record", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("formatter", [JsonFormatter(), HumanFormatter()], ids=["json", "human"])
def test_whatever_a_record_holds_it_becomes_a_line(formatter: logging.Formatter, record: logging.LogRecord) -> None:
    line = formatter.format(record)
    assert line.encode()
    assert "\0" not in line
    if isinstance(formatter, JsonFormatter):
        assert len(line.splitlines()) == 1
        assert "\0" not in str(json.loads(line, parse_constant=pytest.fail))


def test_what_has_no_form_in_json_is_told_by_its_type() -> None:
    document = json.loads(JsonFormatter().format(HOSTILE["objects"]))
    assert document["thing"] == "<Hostile>"
    assert json.loads(JsonFormatter().format(HOSTILE["arguments"]))["message"] == (
        "%s (its arguments could not be shown: RuntimeError)"
    )


anything = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from('\0\\u0"\n\u2028'))


@example("\\u0000", {"\\": "\\u0000", "\\\0": "\\\\\0\\u0000"})
@given(anything, st.dictionaries(anything, anything, max_size=3))
def test_text_comes_back_as_it_was(message: str, more: dict[str, str]) -> None:
    record = record_of()
    record.msg, record.__dict__["more"] = message, more
    line = JsonFormatter().format(record)
    document = json.loads(line)
    assert len(line.splitlines()) == 1
    assert document["message"] == message.replace("\0", "\ufffd")
    assert document["more"] == {seen(name): seen(text) for name, text in more.items()}


def seen(text: str) -> str:
    return text.replace("\0", "\ufffd")


def test_they_can_be_named_in_a_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    where = "jobs_async.observe.logs"
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"job": {"()": f"{where}.JobFilter"}},
            "formatters": {"human": {"class": f"{where}.HumanFormatter"}, "json": {"()": f"{where}.JsonFormatter"}},
            "handlers": {
                kind: {"class": "logging.StreamHandler", "formatter": kind, "filters": ["job"]}
                for kind in ("human", "json")
            },
            "loggers": {"tests.shop": {"handlers": ["human", "json"], "propagate": False}},
        }
    )
    try:
        in_a_job({}, log.warning, "hello")
    finally:
        log.handlers.clear()
        log.propagate = True
    human, programs = capsys.readouterr().err.splitlines()
    assert human.endswith("WARNING tests.shop [send #12 attempt 2] hello")
    assert json.loads(programs)["job_id"] == 12
