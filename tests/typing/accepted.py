"""What mypy and pyright must accept, with exactly these types. Checked by test_typing.py, never run."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from random import Random
from types import ModuleType
from typing import Any, ParamSpec, TypeVar, assert_type

import anyio.from_thread

from jobs_async import (
    ActivityLog,
    ContextWorker,
    Draft,
    EnqueueOptions,
    Enqueuer,
    ExponentialBackoff,
    Instrument,
    Job,
    JobContext,
    JobOpts,
    JobQuery,
    JobState,
    LinearBackoff,
    MemoryStore,
    Queue,
    QueueHandler,
    StaleClaim,
    Supervisor,
    Telemetry,
    UniqueStrategy,
    Worker,
    WorkerDef,
    current_context,
    worker,
)
from jobs_async.core.context import CancelCause
from jobs_async.testing import FakeClock, Harness, crash_at_each_await, perform, perform_twice

P = ParamSpec("P")
T = TypeVar("T")
N = TypeVar("N", bound=float)

jobs = Supervisor(MemoryStore())


# --- the forms of the decorator ---


@worker
async def add(a: int, b: int = 1) -> int:
    return a + b


@worker(queue="mail", max_attempts=5, retry_strategy=ExponentialBackoff(), timeout_seconds=timedelta(seconds=30))
async def send(to: str, subject: str = "Welcome") -> str:
    return to + subject


@worker(name="crop-image", priority=-5, timeout_seconds=None)
def crop(path: str, *, width: int) -> bytes:
    return path.encode()[:width]


@worker(context=True)
async def report(ctx: JobContext, day: str) -> float:
    return float(ctx.attempt)


@worker(context=True, queue="slow")
def report_sync(ctx: JobContext, day: str) -> None: ...


@worker(context=False)
async def nothing() -> None: ...


@jobs.worker
async def owned(a: int) -> list[int]:
    return [a]


@jobs.worker(queue="mail")
def owned_sync(a: int) -> str:
    return str(a)


@worker(process=True, timeout_seconds=None)
def in_a_process(n: int, *, exact: bool = False) -> list[int]:
    return [n] if exact else []


@jobs.worker(process=True, queue="slow")
def owned_in_a_process(n: int) -> float:
    return n / 2


@jobs.worker(context=True)
async def owned_context(ctx: JobContext, a: int) -> str:
    return str(a)


async def forms() -> None:
    assert_type(await add.enqueue(1), Job[int])
    assert_type(await add.enqueue(1, b=2), Job[int])
    assert_type(await send.enqueue("a@b.c", subject="Hi"), Job[str])
    assert_type(await crop.enqueue("a.png", width=3), Job[bytes])
    assert_type(await report.enqueue("monday"), Job[float])
    assert_type(await report_sync.enqueue(day="monday"), Job[None])
    assert_type(await nothing.enqueue(), Job[None])
    assert_type(await owned.enqueue(1), Job[list[int]])
    assert_type(await owned_sync.enqueue(1), Job[str])
    assert_type(await owned_context.enqueue(a=1), Job[str])
    assert_type(await in_a_process.enqueue(1, exact=True), Job[list[int]])
    assert_type(await owned_in_a_process.enqueue(1), Job[float])


async def direct_calls(ctx: JobContext) -> None:
    assert_type(await add(1, b=2), int)
    assert_type(crop("a.png", width=3), bytes)
    assert_type(in_a_process(1), list[int])
    assert_type(await report(ctx, "monday"), float)
    assert_type(await owned_context(ctx, 1), str)


async def in_its_transaction(ctx: JobContext, connection: object) -> None:
    try:
        await ctx.complete(connection=connection)
        await ctx.complete(connection=connection, result={"paid": 5})
    except StaleClaim as error:
        assert_type(error, StaleClaim)


def why(ctx: JobContext) -> str:
    assert_type(ctx.cause, CancelCause | None)
    if ctx.cause == "timeout":
        return "too slow"
    return ctx.cause or "not at all"


# --- what can be a worker ---


class Mailer:
    async def send(self, to: str) -> int:
        return len(to)

    @staticmethod
    @worker
    async def check(to: str) -> bool:
        return bool(to)


class Render:
    def __call__(self, page: int) -> str:
        return str(page)


def timed(fn: Callable[P, Awaitable[T]]) -> Callable[P, Awaitable[T]]:
    @functools.wraps(fn)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        return await fn(*args, **kwargs)

    return wrapper


@worker
@timed
async def decorated(a: int, *, b: str) -> dict[str, int]:
    return {b: a}


@worker
async def loose(data: dict[str, Any], extra: Any = None) -> dict[str, Any]:
    return {**data, "extra": extra}


@worker
async def odd(a: int, /, *rest: int, **extra: str) -> int:
    return a + sum(rest) + len(extra)


@worker
async def generic(value: N) -> N:
    return value


@worker
async def either(a: int) -> int | str | None:
    return a


async def plus(a: int, b: int) -> int:
    return a + b


send_by_method = worker(Mailer().send)
render = worker(Render())
partly = worker(functools.partial(plus, b=3))


async def kinds() -> None:
    assert_type(await send_by_method.enqueue("a@b.c"), Job[int])
    assert_type(await Mailer.check.enqueue("a@b.c"), Job[bool])
    assert_type(await render.enqueue(page=3), Job[str])
    assert_type(await partly.enqueue(3), Job[int])
    assert_type(await decorated.enqueue(1, b="x"), Job[dict[str, int]])
    assert_type(await loose.enqueue({"a": object()}, extra=1), Job[dict[str, Any]])
    assert_type(await odd.enqueue(1, 2, 3, a="x", b="y"), Job[int])
    assert_type(await generic.enqueue(1.5), Job[float])
    assert_type(await either.enqueue(1), Job[int | str | None])


# --- options, drafts, binding ---


async def configured(options: EnqueueOptions, connection: object) -> None:
    assert_type(await add.options(delay=60, priority=-10, unique_key="w:42").enqueue(1), Job[int])
    assert_type(await add.options(scheduled_at=datetime.now(UTC), connection=connection).enqueue(1), Job[int])
    assert_type(await add.options(unique_strategy=UniqueStrategy.REJECT, tags=["a"]).enqueue(1, 2), Job[int])
    assert_type(await add.options(**options).options(delay=timedelta(hours=1)).enqueue(1), Job[int])
    assert_type(await crop.on(jobs).options(queue="x").enqueue("a", width=1), Job[bytes])
    assert_type(await report.on(jobs).enqueue("monday"), Job[float])
    assert_type(add.draft(1), Draft[int])
    assert_type(crop.options(queue="x").draft("a", width=1), Draft[bytes])
    assert_type(report.draft(day="monday"), Draft[float])


def annotated(on: Callable[[int], int]) -> None:
    plain: Worker[[int], int] = worker(on)
    base: Enqueuer[[int], int] = plain
    known: ContextWorker[[str], None] = report_sync
    workers: list[WorkerDef] = [add, crop, known, plain, WorkerDef("raw", lambda args, ctx: None)]
    Supervisor(workers=workers)
    Supervisor(workers=[add, crop, report])
    Supervisor(workers=[ModuleType("tasks"), add])
    assert_type(base.draft(1), Draft[int])


# --- the Supervisor ---


async def supervisor(connection: object) -> None:
    assert_type(await jobs.enqueue(add.draft(1)), Job[int])
    assert_type(await jobs.enqueue(add.draft(1), connection=connection), Job[int])
    assert_type(await jobs.enqueue("resize", {"id": 7}, queue="mail", priority=1), Job[Any])
    assert_type(await jobs.enqueue("resize", opts=JobOpts(priority=5)), Job[Any])
    assert_type(await jobs.enqueue(Draft("resize", {"id": 7}, JobOpts(priority=5))), Job[Any])
    assert_type(await jobs.enqueue_many([add.draft(1), add.draft(2)]), list[Job[int]])
    assert_type(await jobs.enqueue_many([send.draft("a@b.c")], connection=connection), list[Job[str]])
    await jobs.enqueue_many([add.draft(1), send.draft("a@b.c"), Draft("resize", {"id": 7})])
    job = await add.enqueue(1)
    assert_type(await jobs.wait(job, timeout=30), Job[int])
    assert_type(await jobs.wait(7), Job[Any])
    assert_type(await jobs.result(job, timeout=timedelta(seconds=30)), int)
    assert_type((await jobs.wait(job)).result, int | None)
    jobs.register_worker("resize", lambda args, ctx: args, opts=JobOpts(), retry_strategy=LinearBackoff())
    async with jobs as running:
        assert_type(running, Supervisor)


def bare_job(job: Job, found: Sequence[Job[str]]) -> Sequence[Job]:
    assert_type(job, Job[Any])
    return [job, *found]


# --- operating ---


async def every_option() -> None:
    await add.options(
        queue="mail",
        priority=-1,
        max_attempts=3,
        delay=timedelta(minutes=1),
        timeout_seconds=None,
        unique_key="a",
        unique_strategy=UniqueStrategy.REJECT,
        idempotency_key="b",
        correlation_id="c",
        external_id="d",
        tags=["e"],
        meta={"f": [1]},
        connection=None,
    ).enqueue(1)
    for queues in ({"mail": 5}, [Queue("mail", concurrency=5)], [Queue(name="mail")]):
        Supervisor(
            "sqlite:///jobs.db",
            queues=queues,
            workers=[add, send],
            telemetry=Telemetry(),
            instruments=[Instrument()],
            poll_interval=timedelta(seconds=1),
            shutdown_timeout=30,
            heartbeat=5.0,
            lease=30,
            rescue_interval=10,
            max_rescues=3,
            max_stall=None,
            slow_after=timedelta(minutes=1),
            retention={JobState.completed: timedelta(days=7), JobState.discarded: 1e6},
            strict=True,
            clock=FakeClock(),
            rng=Random(1),
        )
    Supervisor(retention=timedelta(days=7), slow_after=None, max_stall=300)


async def operating(jobs: Supervisor, log: ActivityLog) -> None:
    assert_type(await jobs.edit(7, args={"a": 1}, priority=-1, delay=timedelta(minutes=5)), Job[Any])
    assert_type(await jobs.edit(7, queue="mail", max_attempts=3, scheduled_at=datetime.now(UTC)), Job[Any])
    await jobs.scale_queue("mail", None)
    assert_type(jobs.stuck, tuple[int, ...])
    assert_type(Telemetry().attach(QueueHandler(log, capacity=10)), bool)
    assert_type(log.latest(3), list[str])


# --- watching, draining, many at once ---


async def many(jobs: Supervisor) -> None:
    async for record in jobs.watch(await add.enqueue(1)):
        assert_type(record, Job[int])
    async for unknown in jobs.watch(7, interval=timedelta(seconds=1)):
        assert_type(unknown, Job[Any])
    report = await jobs.drain(with_scheduled=True, timeout=60)
    assert_type(report.completed, int)
    assert_type(report.total, int)
    dead = JobQuery(states=[JobState.discarded], worker="add", error="Timeout")
    assert_type(await jobs.retry_all(dead), int)
    assert_type(await jobs.cancel_all(JobQuery(queue=["a", "b"])), int)
    assert_type(await jobs.delete_all(dead), int)


def kept() -> None:
    Supervisor(retention=3600)
    Supervisor(retention=timedelta(days=7))
    Supervisor(retention={JobState.completed: 3600, JobState.discarded: 86400.5})
    Supervisor(retention={JobState.completed: timedelta(days=1)})


# --- cron ---


@jobs.cron("*/15 * * * *", args={"a": 1})
async def quarterly(a: int, b: int = 1) -> int:
    return a + b


@jobs.cron("@daily", name="thumbnails", timezone="Europe/Paris", catch_up="none", day_or=False)
def nightly(path: str) -> bytes:
    return path.encode()


scheduled_add = jobs.cron("0 2 * * *", args={"a": 1})(add)
scheduled_report = jobs.cron("0 2 * * *", name="report", args={"day": "monday"})(report)
scheduled_raw = jobs.cron("0 2 * * *", name="raw")(WorkerDef("raw", lambda args, ctx: None))


async def cron(ctx: JobContext, zone: tzinfo) -> None:
    assert_type(await quarterly.enqueue(1, b=2), Job[int])
    assert_type(await quarterly(1), int)
    assert_type(await nightly.enqueue("a.png"), Job[bytes])
    assert_type(await scheduled_add.enqueue(1, b=2), Job[int])
    assert_type(await scheduled_report.enqueue("monday"), Job[float])
    assert_type(await scheduled_report(ctx, "monday"), float)
    assert_type(scheduled_raw, WorkerDef)
    entry = jobs.register_cron("by name", "0 2 * * *", "resize", {"id": 7}, JobOpts(priority=5), timezone=zone)
    assert_type(entry.next_after(datetime.now(UTC)), datetime)
    assert_type(jobs.register_cron("worker", "0 2 * * *", add, {"a": 1}, queue="q", unique_key="k").name, str)
    jobs.register_cron("draft", "0 2 * * *", add.draft(1, b=2), timezone=-18000, catch_up="latest")
    assert_type(jobs.unregister_cron("draft").name, str)
    assert_type(list(jobs.crons), list[str])


# --- in company ---


async def company() -> None:
    assert_type(await asyncio.gather(add.enqueue(1), send.enqueue("a@b.c")), tuple[Job[int], Job[str]])
    async with asyncio.TaskGroup() as group:
        task = group.create_task(add.enqueue(1))
    assert_type(task.result(), Job[int])
    later = functools.partial(add.enqueue, 1)
    assert_type(await later(), Job[int])


def in_a_thread() -> None:
    assert_type(anyio.from_thread.run(add.enqueue, 1), Job[int])
    assert_type(current_context(), JobContext)


@worker
async def parent(a: int) -> int:
    context = current_context()
    assert_type(await context.enqueue(add.draft(a)), Job[Any])
    assert_type(await add.enqueue(a), Job[int])
    return a


# --- in tests ---


async def in_tests() -> None:
    async with Harness(workers=[add], stands_in_for=jobs, inline=True) as harness:
        assert_type(harness, Harness)
    assert_type(await perform(add, {"a": 1}), Job[int])
    assert_type(await perform(crop, {"path": "a"}, jobs=harness, attempt=2, priority=1, delay=60), Job[bytes])
    assert_type(await perform(report, {"day": "monday"}), Job[float])
    assert_type(await perform(report_sync, {"day": "monday"}), Job[None])
    assert_type(await perform(in_a_process, {"n": 1}), Job[list[int]])
    assert_type(await perform("crop-image", [1, 2], jobs=harness), Job[Any])
    assert_type(await perform(WorkerDef("raw", lambda args, ctx: None)), Job[Any])
    assert_type(await perform_twice(add, {"a": 1}, queue="x"), Job[int])
    assert_type(await perform_twice(crop, {"path": "a"}), Job[bytes])
    assert_type(await perform_twice("crop-image", jobs=harness), Job[Any])
    assert_type(await harness.run_one(await add.enqueue(1), attempt=2), Job[int])
    async for crash in crash_at_each_await(add, {"a": 1}, jobs=harness, tags=["x"]):
        assert_type(crash.awaits, int | None)
        assert_type(crash.job, Job[Any])
