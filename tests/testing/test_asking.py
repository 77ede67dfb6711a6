"""What was enqueued: what fits, what does not, and what a failed assertion says."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobs_async import ArgsError, NotBound, OptionError, Supervisor, worker
from jobs_async.core.options import JobOptions
from jobs_async.testing import Harness, all_enqueued, assert_enqueued, refute_enqueued
from tests.runtime.support import World, now, virtual

AT = datetime(2026, 3, 1, 8, 30, tzinfo=UTC)


@worker
async def remind(user: int, at: datetime | None = None, via: list[str] | None = None) -> None: ...


@worker
async def other() -> None: ...


# --- what fits ---


@pytest.mark.parametrize(
    ("options", "fits", "fits_not"),
    [
        (JobOptions(queue="mail"), {"queue": "mail"}, {"queue": "default"}),
        (JobOptions(priority=3), {"priority": 3}, {"priority": 0}),
        (JobOptions(max_attempts=5), {"max_attempts": 5}, {"max_attempts": 20}),
        (JobOptions(tags=["a", "b"]), {"tags": ["b"]}, {"tags": ["b", "c"]}),
        (JobOptions(tags=["a", "b"]), {"tags": {"a", "b"}}, {"tags": ["ab"]}),
        (JobOptions(unique_key="u"), {"unique_key": "u"}, {"unique_key": "v"}),
        (JobOptions(idempotency_key="i"), {"idempotency_key": "i"}, {"idempotency_key": "u"}),
        (JobOptions(correlation_id="c"), {"correlation_id": "c"}, {"correlation_id": "x"}),
        (JobOptions(external_id="e"), {"external_id": "e"}, {"external_id": "x"}),
        (JobOptions(meta={"a": 1, "b": [1]}), {"meta": {"b": (1,)}}, {"meta": {"b": [2]}}),
        (JobOptions(meta={"a": 1}), {"meta": {}}, {"meta": {"c": None}}),
        (JobOptions(delay=60), {"delay": 60}, {"delay": 70}),
        (JobOptions(delay=60), {"delay": timedelta(minutes=1)}, {"delay": 0}),
        (JobOptions(), {"delay": 0}, {"delay": 6}),
        (JobOptions(queue="mail", priority=3), {"queue": "mail", "priority": 3}, {"queue": "mail", "priority": 4}),
    ],
)
async def test_each_option_can_be_looked_for(
    options: JobOptions, fits: dict[str, Any], fits_not: dict[str, Any]
) -> None:
    with Harness(workers=[remind]):
        job = await remind.options(**options).enqueue(1)
        assert await assert_enqueued(remind, **fits) == job
        await refute_enqueued(remind, **fits_not)
        with pytest.raises(AssertionError):
            await assert_enqueued(remind, **fits_not)
        with pytest.raises(AssertionError):
            await refute_enqueued(remind, **fits)


async def test_some_of_the_arguments_are_enough_and_compared_as_they_are_stored() -> None:
    with Harness(workers=[remind]):
        await remind.enqueue(7, AT, ["mail", "push"])
        for args in (None, {}, {"user": 7}, {"at": AT}, {"via": ("mail", "push")}, {"user": 7, "at": AT}):
            await assert_enqueued(remind, args)
        for wrong in ({"user": 8}, {"at": AT + timedelta(1)}, {"via": ["mail"]}, {"users": 7}, {"user": None}):
            await refute_enqueued(remind, wrong)


async def test_arguments_that_are_no_mapping_are_compared_whole() -> None:
    with Harness() as jobs:
        await jobs.enqueue("raw", [1, {"a": 2}])
        await assert_enqueued("raw", [1, {"a": 2}], jobs=jobs)
        for args in ([1], {"a": 2}, "raw", 1):
            await refute_enqueued("raw", args, jobs=jobs)


async def test_the_oldest_comes_first_and_the_newest_is_returned() -> None:
    with Harness(workers=[remind, other]) as jobs:
        first = await remind.enqueue(1)
        second = await remind.options(delay=60, priority=-5).enqueue(2)
        third = await other.enqueue()
        assert await all_enqueued(remind) == [first, second]
        assert await all_enqueued(jobs=jobs) == [first, second, third]
        assert await all_enqueued(None, {"user": 2}, jobs=jobs) == [second]
        assert await assert_enqueued(remind) == second
        assert await assert_enqueued("remind", jobs=jobs) == second


async def test_only_what_waits_counts() -> None:
    @worker(max_attempts=2)
    async def fails() -> None:
        raise OSError

    with Harness(workers=[remind, fails]) as jobs:
        await jobs.run_one(await remind.enqueue(1))
        await jobs.cancel(await remind.enqueue(2))
        await refute_enqueued(remind)
        job = await jobs.run_one(await fails.enqueue())
        assert await assert_enqueued(fails) == job, "it will run again"
        await jobs.run_one(job)
        await refute_enqueued(fails)


async def test_any_supervisor_can_be_asked() -> None:
    app = Supervisor(workers=[remind])
    job = await remind.enqueue(1)
    assert await assert_enqueued(remind) == job
    assert await assert_enqueued(remind, jobs=app) == job


async def test_the_delay_is_from_now_on_the_clock_of_the_harness() -> None:
    with Harness(workers=[remind]) as jobs:
        await remind.options(delay=3600).enqueue(1)
        jobs.advance(3000)
        await assert_enqueued(remind, delay=600)
        await refute_enqueued(remind, delay=3600)


async def test_thousands_of_jobs_may_wait() -> None:
    with Harness(workers=[remind, other]) as jobs:
        await other.enqueue()
        await jobs.enqueue_many([remind.draft(n) for n in range(2500)])
        assert [job.args["user"] for job in await all_enqueued(remind)] == list(range(2500))
        assert (await assert_enqueued(remind, {"user": 2499})).args["user"] == 2499
        await assert_enqueued(remind, {"user": 0})


# --- waiting for it ---


@virtual
async def test_what_another_task_enqueues_can_be_waited_for(world: World) -> None:
    with Harness(world.store, clock=world.clock, workers=[remind]):

        async def later() -> None:
            await asyncio.sleep(20)
            await remind.enqueue(1)

        async with asyncio.TaskGroup() as group:
            group.create_task(later())
            with pytest.raises(AssertionError):
                await assert_enqueued(remind, timeout=10)
            assert now() == pytest.approx(10, abs=0.1)
            assert (await assert_enqueued(remind, timeout=timedelta(seconds=30))).args["user"] == 1
            assert now() == pytest.approx(20, abs=0.1)


# --- what is said ---


async def test_a_failure_lists_what_there_is_instead() -> None:
    with Harness(workers=[remind, other]):
        await other.enqueue()
        with pytest.raises(AssertionError) as nothing:
            await assert_enqueued(remind)
        assert str(nothing.value) == "no waiting job of remind; none of this worker waits"
        await remind.enqueue(1, AT)
        await remind.options(queue="mail").enqueue(2)
        with pytest.raises(AssertionError) as wrong:
            await assert_enqueued(remind, {"user": 1}, queue="mail", priority=0)
        assert re.sub(r" due \d{4}-\d\d-\d\d [\d:]{8}\+0000", "", str(wrong.value)).splitlines() == [
            "no waiting job of remind, args {'user': 1}, queue='mail', priority=0; of this worker 2 wait:",
            "  Job(id=2, worker='remind', queue='default', state=available, attempt=0/20, priority=0)"
            " args {'user': 1, 'at': '2026-03-01T08:30:00Z'}",
            "  Job(id=3, worker='remind', queue='mail', state=available, attempt=0/20, priority=0) args {'user': 2}",
        ]


async def test_of_many_the_newest_ten_are_shown() -> None:
    with Harness(workers=[remind]) as jobs:
        await jobs.enqueue_many([remind.draft(n) for n in range(30)])
        with pytest.raises(AssertionError) as found:
            await refute_enqueued(remind)
        first, *lines = str(found.value).splitlines()
        assert first == "there should be no waiting job of remind; of this worker 30 wait:"
        assert [line.split("'user': ")[1] for line in lines] == [f"{n}}}" for n in range(20, 30)]


# --- what cannot be asked ---


async def test_errors_are_typed() -> None:
    @worker
    async def remind(user: int) -> None: ...

    with pytest.raises(NotBound):
        await assert_enqueued(remind)
    with Harness(workers=[remind]) as jobs, Harness(workers=[remind]):
        with pytest.raises(NotBound, match="2 running"):
            await refute_enqueued(remind)
        with pytest.raises(OptionError, match="jobs="):
            await all_enqueued()
        with pytest.raises(OptionError, match="jobs="):
            await assert_enqueued("remind")
        with pytest.raises(OptionError, match="'prioritty' cannot be looked for; what can: queue, priority"):
            await assert_enqueued(remind, jobs=jobs, prioritty=1)  # type: ignore[call-arg]
        for unstorable in ({"user": object()}, {1: 2}, {"user": float("nan")}):
            with pytest.raises(ArgsError):
                await refute_enqueued(remind, unstorable, jobs=jobs)
        await remind.on(jobs).enqueue(1)
        for option, value in {"timeout": -1, "delay": -1, "tags": "a", "meta": {"a": object()}}.items():
            with pytest.raises((OptionError, ArgsError)):
                await assert_enqueued(remind, jobs=jobs, **{option: value})  # type: ignore[arg-type]
