"""Bad input of every kind: a typed error at the call that says what to do, and nothing written."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from jobs_async import (
    ArgsError,
    Draft,
    JobOpts,
    JobQuery,
    JobsError,
    MemoryStore,
    OptionError,
    Queue,
    Supervisor,
    UniqueConflict,
    UniqueStrategy,
    WorkerError,
    WorkerNotFound,
    validate_store,
)
from jobs_async.runtime.engine import Settings
from tests.runtime.support import World, virtual

DEEP: Any = "leaf"
for _ in range(64):
    DEEP = [DEEP]
SELF: Any = []
SELF.append(SELF)

BAD_ARGS = {
    "a key that is no string (row 77)": {1: "one"},
    "nan (row 77)": {"x": math.nan},
    "infinity (row 77)": [1e400],
    "nan in a tuple": (1, (2.0, math.nan)),
    "an integer of more than 64 bits (row 77)": 2**63,
    "a negative one": -(2**63) - 1,
    "five thousand digits (row 77)": 10**5000,
    "NUL (row 8)": "a\0b",
    "NUL in a key": {"a\0": 1},
    "a lone surrogate (row 8)": "\ud800",
    "65 levels (row 77)": {"x": DEEP},
    "itself": SELF,
    "more than 1 MiB": "x" * 1_048_576,
    "an object": object(),
    "an object deep inside": {"x": [object()]},
    "nan in a dataclass-like": {"x": {"y": [0.0, -math.inf]}},
}

BAD_OPTIONS: dict[str, dict[str, Any]] = {
    "unknown": {"retries": 3},
    "queue: empty": {"queue": ""},
    "queue: 256 bytes": {"queue": "ü" * 128},
    "queue: control character": {"queue": "a\nb"},
    "queue: surrogate": {"queue": "\udfff"},
    "queue: no string": {"queue": 7},
    "priority: a word": {"priority": "high"},
    "priority: bool": {"priority": True},
    "priority: 33 bits": {"priority": 2**31},
    "max_attempts: none": {"max_attempts": 0},
    "timeout: zero": {"timeout_seconds": 0},
    "timeout: nan": {"timeout_seconds": math.nan},
    "delay: negative": {"delay": -1},
    "delay: infinite": {"delay": math.inf},
    "delay: a huge integer": {"delay": 10**400},
    "delay: a thousand years": {"delay": timedelta(days=365_000)},
    "delay: a word": {"delay": "1h"},
    "scheduled_at: naive (row 76)": {"scheduled_at": datetime(2030, 1, 1)},
    "scheduled_at: a number": {"scheduled_at": 1_900_000_000},
    "scheduled_at: beyond year 9999": {"scheduled_at": datetime.max.replace(tzinfo=timezone(timedelta(hours=-1)))},
    "delay and scheduled_at": {"delay": 1, "scheduled_at": datetime(2030, 1, 1, tzinfo=UTC)},
    "unique_key: empty": {"unique_key": ""},
    "unique_key: long": {"unique_key": "k" * 256},
    "unique_strategy: its name": {"unique_strategy": "ignore_new"},
    "tags: a string": {"tags": "red"},
    "tags: 33": {"tags": ["t"] * 33},
    "tags: numbers": {"tags": [1]},
    "meta: a list": {"meta": [1]},
    "meta: nan": {"meta": {"x": math.nan}},
    "meta: 64 KiB": {"meta": {"x": "y" * 65_536}},
    "correlation_id: no string": {"correlation_id": 1},
    "idempotency_key: bytes": {"idempotency_key": b"k"},
}


def _check(kind: str) -> Any:
    @virtual
    async def scenario(world: World) -> None:
        async with world.supervisor(queues={}) as jobs:
            expected = ArgsError if kind in BAD_ARGS else OptionError
            with pytest.raises(expected) as refused:
                if kind in BAD_ARGS:
                    await jobs.enqueue("work", BAD_ARGS[kind])
                else:
                    await jobs.enqueue("work", {}, **BAD_OPTIONS[kind])
            assert isinstance(refused.value, JobsError)
            assert isinstance(refused.value, ValueError)
            assert len(str(refused.value)) < 300
            assert await world.store.tally() == {}

    scenario()


@pytest.mark.parametrize("kind", BAD_ARGS)
def test_arguments_no_reader_could_load_are_refused(kind: str) -> None:
    _check(kind)


@pytest.mark.parametrize("kind", BAD_OPTIONS)
def test_options_out_of_bounds_are_refused(kind: str) -> None:
    _check(kind)


@virtual
async def test_the_bounds_themselves_are_fine(world: World) -> None:
    level63: Any = 1
    for _ in range(63):
        level63 = [level63]
    fine = [{"x": level63}, "x" * (1_048_576 - 2), 2**63 - 1, -(2**63), None, [], "日本語 🎉 \x01", {"": 0}]
    async with world.supervisor(queues={}) as jobs:
        for args in fine:
            job = await jobs.enqueue(
                "w" * 255,
                args,
                queue="q" * 255,
                priority=-(2**31),
                max_attempts=2**31 - 1,
                scheduled_at=datetime(9999, 12, 31, tzinfo=UTC),
                tags=["t"] * 32,
                timeout_seconds=timedelta(days=365),
            )
            assert (await jobs.get(job.id)).args == ({} if args is None else args)


@virtual
async def test_a_past_time_is_legal_and_claimable_now(world: World) -> None:
    async with world.supervisor(queues={}) as jobs:
        past = datetime(1969, 7, 20, 20, 17, 40, 123456, tzinfo=timezone(timedelta(hours=-4)))
        job = await jobs.enqueue("work", scheduled_at=past)
        assert (job.state.name, job.scheduled_at, job.scheduled_at.tzinfo) == ("available", past, UTC)


@virtual
async def test_all_of_a_batch_or_nothing(world: World) -> None:
    async with world.supervisor(queues={}) as jobs:
        await jobs.enqueue("work", unique_key="taken")
        reject = JobOpts(unique_key="taken", unique_strategy=UniqueStrategy.REJECT)
        with pytest.raises(UniqueConflict):
            await jobs.enqueue_many([Draft("work"), Draft("work", {}, reject), Draft("work")])
        assert sum((await world.store.tally()).values()) == 1
        assert await jobs.enqueue_many([]) == []
        with pytest.raises(OptionError, match="10,000"):
            await jobs.enqueue_many([Draft("work")] * 10_001)
        with pytest.raises(OptionError, match="64 MiB"):
            await jobs.enqueue_many([Draft("work", {"x": "a" * (2**20 - 50)})] * 65)
        with pytest.raises(OptionError, match="Draft brings its own"):
            await jobs.enqueue(Draft("work"), {"x": 1})  # type: ignore[call-overload]
        with pytest.raises(OptionError, match="no transactions"):
            await jobs.enqueue("work", connection=object())


@virtual
async def test_a_strict_supervisor_accepts_only_names_it_knows(world: World) -> None:
    async with world.supervisor(queues={}, strict=True) as jobs:
        jobs.register_worker("known", lambda args, ctx: None)
        await jobs.enqueue("known")
        with pytest.raises(WorkerNotFound, match="unknown"):
            await jobs.enqueue("unknown")
        assert sum((await world.store.tally()).values()) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"queues": {"q": 0}},
        {"queues": {"q": True}},
        {"queues": {"": 1}},
        {"queues": ["q"]},
        {"queues": [Queue("q", 1), Queue("q", 2)]},
        {"poll_interval": 0},
        {"shutdown_timeout": -1},
        {"lease": 1, "heartbeat": 1},
        {"max_rescues": -1},
        {"store": "mysql://root:hunter2@db"},
        {"store": "sqlite://"},
        {"store": object()},
    ],
)
def test_a_supervisor_out_of_bounds_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError) as refused:
        Supervisor(**options)
    assert "hunter2" not in str(refused.value)


def test_workers_are_refused_twice_and_if_they_are_none() -> None:
    jobs = Supervisor()
    jobs.register_worker("one", lambda args, ctx: None)
    with pytest.raises(WorkerError, match="already"):
        jobs.register_worker("one", lambda args, ctx: None)
    with pytest.raises(WorkerError, match="handler"):
        jobs.register_worker("two")
    with pytest.raises(WorkerError):
        Supervisor(workers=[print])  # type: ignore[list-item]


def test_what_a_custom_store_lacks_is_named() -> None:
    class Half(MemoryStore):
        def tally(self) -> Any:
            return {}

        purge = None  # type: ignore[assignment]

    with pytest.raises(OptionError, match="lacks purge and has tally not async"):
        validate_store(Half())
    assert validate_store(MemoryStore())


@pytest.mark.parametrize("limit", [0, 1001, True, "ten"])
def test_a_page_has_a_bound(limit: Any) -> None:
    with pytest.raises(OptionError, match="limit"):
        JobQuery(limit=limit)


def test_nothing_shows_its_secrets() -> None:
    opts = JobOpts(unique_key="s3cret", idempotency_key="s3cret", meta={"k": "s3cret"})
    assert "s3cret" not in f"{opts!r} {Draft('work', 's3cret', opts)!r}"


def test_vector_1_defaults_of_a_supervisor_and_its_queues() -> None:
    queue, settings = Queue(), Settings()
    assert (queue.name, queue.concurrency) == ("default", 10)
    assert repr(Supervisor()).endswith("queues={'default': 10}, not started)")
    assert (settings.poll_interval, settings.shutdown_timeout) == (1, 30)
    assert (settings.heartbeat, settings.lease, settings.rescue_interval, settings.max_rescues) == (5, 30, 10, 3)
