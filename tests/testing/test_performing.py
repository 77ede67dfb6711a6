"""perform, and what dies on the way: how often, where, and what is left."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest

from jobs_async import (
    ArgsError,
    ConstantBackoff,
    Discard,
    Job,
    JobContext,
    JobQuery,
    JobState,
    NotBound,
    OptionError,
    Snooze,
    Supervisor,
    WorkerDef,
    WorkerError,
    WorkerNotFound,
    current_context,
    worker,
)
from jobs_async.core import binding
from jobs_async.testing import Crash, Harness, crash_at_each_await, perform, perform_twice
from tests.runtime.programs import hard_work
from tests.runtime.support import World, now, virtual

did: list[Any] = []
"""What the handlers here have done to the world."""


@pytest.fixture(autouse=True)
def nothing_was_done() -> None:
    did.clear()


@worker(queue="math", max_attempts=3)
async def add(a: int, b: int = 1) -> int:
    return a + b


@worker
def add_in_a_thread(a: int, b: int = 1) -> int:
    did.append(a)
    return a + b


@worker(context=True)
async def tells(ctx: JobContext, day: datetime) -> list[str]:
    assert current_context() is ctx
    return [str(ctx.attempt), str(day), ctx.job.queue]


@worker(max_attempts=2, retry_strategy=ConstantBackoff(60))
async def fails(n: int = 0) -> None:
    did.append(n)
    raise ValueError("no")


@worker
async def plain() -> str:
    """Three awaits, a mark before each and one at the end."""
    did.append("one")
    await asyncio.sleep(0)
    did.append("two")
    await asyncio.sleep(0.001)
    did.append("three")
    await asyncio.get_running_loop().run_in_executor(None, int)
    did.append("four")
    return "ok"


async def crashes(worker: Any, args: object = None, **options: Any) -> list[Crash]:
    return [crash async for crash in crash_at_each_await(worker, args, **options)]


def is_attached(worker: WorkerDef) -> bool:
    return any(worker in workers for workers in binding._attached.values())


# --- perform ---


async def test_the_result_has_the_type_of_the_worker() -> None:
    assert (await perform(add, {"a": 1, "b": 2})).result == 3
    assert (await perform(add_in_a_thread, {"a": 1})).result == 2
    day = datetime(2026, 3, 1, tzinfo=UTC)
    assert (await perform(tells, {"day": day})).result == ["1", str(day), "default"]


async def test_arguments_and_options_are_checked_as_those_of_an_enqueue() -> None:
    for wrong in ({"a": "1"}, {}, {"a": 1, "c": 2}, {"a": object()}):
        with pytest.raises(ArgsError):
            await perform(add, wrong)
    with pytest.raises(OptionError, match="prioritty"):
        await perform(add, {"a": 1}, prioritty=1)  # type: ignore[call-overload]
    with pytest.raises(OptionError, match="give the worker itself"):
        await perform(add.options(priority=1), {"a": 1})  # type: ignore[call-overload]


async def test_the_job_has_the_options_given_and_those_of_its_worker() -> None:
    job = await perform(add, {"a": 1}, priority=3, tags=["x"], delay=3600, correlation_id="c")
    assert (job.state, job.queue, job.max_attempts) == (JobState.completed, "math", 3)
    assert (job.priority, job.tags, job.correlation_id) == (3, ("x",), "c")
    assert (await perform(tells, {"day": datetime(2026, 3, 1, tzinfo=UTC)}, attempt=4, queue="q")).result == [
        "4",
        "2026-03-01 00:00:00+00:00",
        "q",
    ]


@pytest.mark.parametrize(("attempt", "state"), [(1, JobState.retryable), (2, JobState.discarded)])
async def test_a_last_attempt_that_fails_is_discarded(attempt: int, state: JobState) -> None:
    job = await perform(fails, attempt=attempt)
    assert (job.state, job.attempt) == (state, attempt)
    assert job.last_error is not None
    assert job.last_error.error == "ValueError: no"


async def test_a_worker_in_a_process() -> None:
    assert (await perform(hard_work.echo, {"text": "hello"})).result == "hello"


async def test_by_name_and_raw_handlers() -> None:
    async def resize(args: Any, ctx: JobContext) -> list[Any]:
        return [args, ctx.attempt]

    with Harness(workers=[add]) as jobs:
        jobs.register_worker("resize", resize)
        assert (await perform("resize", [1, 2], jobs=jobs)).result == [[1, 2], 1]
        assert (await perform("add", {"a": 1}, jobs=jobs)).result == 2
        with pytest.raises(WorkerNotFound, match="'stranger'"):
            await perform("stranger", jobs=jobs)
    assert (await perform(WorkerDef("loose", resize), {"n": 1})).result == [{"n": 1}, 1]
    with pytest.raises(OptionError, match="jobs="):
        await perform("add", {"a": 1})


# --- where the job goes ---


async def test_it_goes_to_the_harness_that_the_worker_is_attached_to() -> None:
    with Harness(workers=[add]) as jobs:
        job = await perform(add, {"a": 1})
        assert await jobs.get(job) == job
        with Harness() as other:
            await perform(add, {"a": 1}, jobs=other)
            assert len(await other.find()) == len(await jobs.find()) == 1


async def test_what_it_enqueues_is_there_to_be_asserted() -> None:
    @worker
    async def parent() -> None:
        await add.enqueue(1)

    with Harness(workers=[parent, add]) as jobs:
        assert (await perform(parent)).state is JobState.completed
        assert [job.worker for job in await jobs.find(JobQuery(states=[JobState.available]))] == ["add"]


async def test_another_worker_of_the_same_name_is_not_taken_for_it() -> None:
    @worker(name="add")
    async def other(a: int) -> str:
        return "other"

    with Harness(workers=[add]) as jobs, pytest.raises(WorkerError, match="'add'"):
        await perform(other, {"a": 1}, jobs=jobs)


@pytest.mark.parametrize("harness", [Harness(inline=True), Harness(inline=False)])
async def test_it_runs_once_also_inline(harness: Harness) -> None:
    with harness:
        assert (await perform(fails, jobs=harness)).attempt == 1
    assert did == [0]


async def test_without_a_harness_nothing_of_it_is_left() -> None:
    @worker
    async def echo(a: int) -> int:
        return a

    gc.disable()
    try:
        await perform(echo, {"a": 1})
        await perform_twice(echo, {"a": 1})
        await crashes(echo, {"a": 1})
        for run in (perform, perform_twice):
            with pytest.raises(ArgsError):
                await run(echo, {"a": "1"})
        assert not is_attached(echo)
        with pytest.raises(NotBound):
            await echo.enqueue(1)
    finally:
        gc.enable()


async def test_the_supervisor_of_the_application_is_left_alone() -> None:
    app = Supervisor("sqlite:////nowhere/to/be/found.db", workers=[add])
    assert (await perform(add, {"a": 1})).result == 2
    assert binding.resolve(add) is app


# --- twice ---


@pytest.mark.parametrize("worker", [add_in_a_thread, hard_work.echo, plain])
async def test_twice_is_twice(worker: Any, caplog: pytest.LogCaptureFixture) -> None:
    args: Any = {"add_in_a_thread": {"a": 1}, "echo": {"text": "x"}, "plain": {}}[worker.name]
    with caplog.at_level(logging.WARNING):
        job = await perform_twice(worker, args)
    assert (job.state, job.attempt, job.rescues) == (JobState.completed, 2, 1)
    assert job.result is not None
    assert len(did) == {"add_in_a_thread": 2, "echo": 0, "plain": 8}[worker.name]
    assert not caplog.records, "also the run that is lost came to its end"


async def test_a_process_is_asked_twice(tmp_path: Any) -> None:
    with Harness(workers=[hard_work]) as jobs:
        job = await perform_twice(hard_work.pid)
        assert job.attempt == 2
        assert not await jobs.find(JobQuery(states=[JobState.executing]))


async def test_what_has_no_second_attempt_does_not_run_again() -> None:
    job = await perform_twice(fails, {"n": 1}, max_attempts=1)
    assert (job.state, job.attempt) == (JobState.discarded, 1)
    assert job.last_error is not None
    assert job.last_error.type == "Lost"
    assert did == [1]


async def test_what_was_asked_to_end_meanwhile_does_not_run_again() -> None:
    @worker
    async def gives_up() -> None:
        did.append("ran")
        await jobs.cancel(current_context().job)

    with Harness(workers=[gives_up]) as jobs:
        assert (await perform_twice(gives_up)).state is JobState.cancelled
    assert did == ["ran"]


async def test_how_the_lost_run_ended_counts_for_nothing() -> None:
    @worker
    async def at_first(manner: str) -> str:
        if current_context().attempt == 1:
            raise {"fail": ValueError(), "discard": Discard("no"), "snooze": Snooze(60)}[manner]
        return "ok"

    for manner in ("fail", "discard", "snooze"):
        job = await perform_twice(at_first, {"manner": manner})
        assert (job.state, job.result, job.attempt) == (JobState.completed, "ok", 2)
        assert [error.type for error in job.errors] == ["Lost"]


# --- at each await ---


async def nested(depth: int) -> None:
    if depth:
        await nested(depth - 1)
    await asyncio.sleep(0)


@asynccontextmanager
async def opened() -> AsyncIterator[None]:
    await asyncio.sleep(0)
    try:
        yield
    finally:
        await asyncio.sleep(0)


async def counted(n: int) -> AsyncIterator[int]:
    for number in range(n):
        await asyncio.sleep(0)
        yield number


async def in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(nested(3))
        group.create_task(nested(1))


async def within_a_timeout() -> None:
    async with asyncio.timeout(60):
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)


async def in_a_context() -> None:
    async with opened():
        await asyncio.sleep(0)


async def over_an_iterator() -> None:
    async for _ in counted(4):
        await asyncio.sleep(0)


async def gathered() -> None:
    await asyncio.gather(nested(2), nested(5))


async def nothing() -> None: ...


@pytest.mark.parametrize(
    ("body", "awaits"),
    [
        (nothing, 0),
        (lambda: asyncio.sleep(0), 1),
        (lambda: nested(4), 5),
        (gathered, 1),
        (in_a_group, 1),
        (within_a_timeout, 2),
        (in_a_context, 3),
        (over_an_iterator, 8),
    ],
    ids="nothing sleep nested gather TaskGroup timeout with for".split(),
)
async def test_there_is_a_crash_at_each_await_and_one_at_the_end(body: Callable[[], Any], awaits: int) -> None:
    @worker
    async def handler() -> str:
        did.append("begun")
        await body()
        did.append("ended")
        return "ok"

    found = await crashes(handler)
    assert [crash.awaits for crash in found] == [*range(awaits), None]
    assert did == ["begun", "begun", "ended"] * awaits + ["begun", "ended"] * 2
    for crash in found:
        assert (crash.job.state, crash.job.attempt, crash.job.result) == (JobState.completed, 2, "ok")


async def test_the_lines_before_the_await_ran_and_those_after_it_did_not() -> None:
    marks = ["one", "two", "three", "four"]
    async for crash in crash_at_each_await(plain):
        assert did == marks[: 4 if crash.awaits is None else crash.awaits + 1] + marks
        did.clear()


async def test_what_the_dying_handler_had_begun_is_cancelled_and_its_finally_runs() -> None:
    is_dead = asyncio.Event()

    @worker
    async def handler() -> None:
        async def child(n: int) -> None:
            try:
                await is_dead.wait()
            except asyncio.CancelledError:
                did.append(f"child {n} cancelled")
                is_dead.set()
                raise

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(child(1))
                group.create_task(child(2))
        finally:
            did.append("finally")

    first, last = await crashes(handler)
    assert (first.awaits, last.awaits) == (0, None)
    assert sorted(did) == ["child 1 cancelled", "child 2 cancelled", *["finally"] * 4]


class Account:
    """What the world has of it, once or twice."""

    def __init__(self) -> None:
        self.booked: dict[int, int] = {}
        self.sent: set[int] = set()


async def find_doubles(careful: bool) -> list[int | None]:
    """The crashes after which an order was charged more than once."""
    account = Account()

    @worker
    async def charge(order: int) -> None:
        if order in account.booked and careful:
            return
        await asyncio.sleep(0)
        account.booked[order] = account.booked.get(order, 0) + 100
        await asyncio.sleep(0)

    doubled = []
    async for crash in crash_at_each_await(charge, {"order": 7}):
        assert crash.job.state is JobState.completed
        if account.booked != {7: 100}:
            doubled.append(crash.awaits)
        account.booked.clear()
    return doubled


async def test_a_handler_that_is_not_idempotent_is_found_out() -> None:
    assert await find_doubles(careful=False) == [1, None]
    assert await find_doubles(careful=True) == []


async def test_one_that_swallows_its_cancellation_goes_on_to_its_end() -> None:
    @worker
    async def deaf() -> str:
        for n in range(3):
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                did.append(f"{n} swallowed")
        return "ok"

    found = await crashes(deaf)
    assert [crash.awaits for crash in found] == [0, 1, 2, None]
    assert {crash.job.state for crash in found} == {JobState.completed}
    assert did == ["0 swallowed", "1 swallowed", "2 swallowed"]


@pytest.mark.parametrize(
    ("manner", "state"),
    [("fail", JobState.retryable), ("discard", JobState.discarded), ("snooze", JobState.scheduled)],
)
async def test_one_that_ends_otherwise_ends_so_in_the_run_that_follows(manner: str, state: JobState) -> None:
    @worker
    async def handler() -> None:
        await asyncio.sleep(0)
        raise {"fail": ValueError(), "discard": Discard("no"), "snooze": Snooze(60)}[manner]

    found = await crashes(handler)
    assert [(crash.awaits, crash.job.state) for crash in found] == [(0, state), (None, state)]


@pytest.mark.parametrize("worker", [add_in_a_thread, hard_work.echo])
async def test_a_thread_and_a_process_die_after_their_last_line_only(worker: Any) -> None:
    (crash,) = await crashes(worker, {"a": 1} if worker is add_in_a_thread else {"text": "x"})
    assert crash.awaits is None
    assert crash.job.attempt == 2
    assert did == ([1, 1] if worker is add_in_a_thread else [])


async def test_the_context_is_that_of_a_job_and_what_it_enqueues_stays() -> None:
    @worker(context=True)
    async def parent(ctx: JobContext) -> None:
        await add.enqueue(ctx.attempt)
        await ctx.progress(0.5)

    with Harness(workers=[parent, add]) as jobs:
        found = await crashes(parent)
        assert all(crash.job.state is JobState.completed for crash in found)
        children = await jobs.find(JobQuery(worker="add", newest_first=False))
        assert children[-2].args["a"] == 1, "a crash at the end has enqueued already"
        assert children[-1].args["a"] == 2


async def test_by_name_and_raw() -> None:
    async def raw(args: Any, _ctx: JobContext) -> Any:
        await asyncio.sleep(0)
        return args

    with Harness() as jobs:
        jobs.register_worker("raw", raw)
        assert [crash.job.result for crash in await crashes("raw", [7], jobs=jobs)] == [[7], [7]]
        assert (await perform_twice("raw", 8, jobs=jobs)).result == 8


async def test_no_job_is_left_executing_and_no_task_behind(caplog: pytest.LogCaptureFixture) -> None:
    with Harness(workers=[plain]) as jobs:
        async for _ in crash_at_each_await(plain):
            assert asyncio.all_tasks() == {asyncio.current_task()}
            assert {state for _, state in await jobs.counts()} == {JobState.completed}
    gc.collect()
    assert not caplog.records


async def test_one_may_stop_looking() -> None:
    @worker
    async def waits() -> None:
        await asyncio.sleep(0)

    looking = crash_at_each_await(waits)
    async for crash in looking:
        assert crash.awaits == 0
        break
    assert is_attached(waits)
    await looking.aclose()
    assert not is_attached(waits)


async def test_cancelled_meanwhile_it_leaves_no_task_behind() -> None:
    begun = asyncio.Event()

    @worker
    async def endless() -> None:
        begun.set()
        await asyncio.Event().wait()

    twice = asyncio.get_running_loop().create_task(perform_twice(endless))
    await begun.wait()
    twice.cancel()
    with pytest.raises(asyncio.CancelledError):
        await twice
    assert not is_attached(endless)


@virtual
async def test_it_takes_no_time_but_that_of_the_handler(world: World) -> None:
    @worker(timeout_seconds=None)
    async def waits() -> None:
        await asyncio.sleep(3600)
        await asyncio.sleep(3600)

    with Harness(world.store, clock=world.clock, workers=[waits]) as jobs:
        found = await crashes(waits, jobs=jobs)
        assert [crash.awaits for crash in found] == [0, 1, None]
        assert now() == pytest.approx((0 + 1 + 2 + 3 * 2) * 3600)


def test_a_crash_is_shown_with_its_place() -> None:
    assert repr(Crash(None, Job)).startswith("Crash(awaits=None")  # type: ignore[arg-type]
