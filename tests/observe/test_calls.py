"""Every call of a store is seen, with its outcome, and changed by nobody who sees it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from jobs_async import JobQuery, MemoryStore, OptionError, SqliteStore, StoreBusy, Supervisor, validate_store
from jobs_async.core.records import Record
from jobs_async.core.store import PRIMITIVES
from jobs_async.observe import Observability, ObservedStore, StoreCall
from jobs_async.testing import FakeClock
from jobs_async.testing.conformance import CHECKS, Check
from jobs_async.testing.faults import Fault, FaultyStore, at_call
from tests.runtime.support import World, virtual

GUARD = 20.0


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
async def test_watched_a_store_keeps_every_promise(check: Check) -> None:
    clock = FakeClock()
    async with ObservedStore(MemoryStore(clock=clock), lambda _: None) as store:
        await check(store, clock)


async def test_each_call_is_told_once_with_how_it_went() -> None:
    calls: list[StoreCall] = []
    store = ObservedStore(FaultyStore(MemoryStore(), at_call(2, Fault(error=StoreBusy))), calls.append)
    validate_store(store)
    async with store:
        await store.insert([])
        with pytest.raises(StoreBusy):
            await store.tally()
        await store.tally()
    told = [(call.operation, call.succeeded, call.error) for call in calls]
    assert told == [
        ("open", True, None),
        ("insert", True, None),
        ("tally", False, "StoreBusy"),
        ("tally", True, None),
        ("close", True, None),
    ]
    assert all(call.seconds >= 0 for call in calls)
    assert repr(store).startswith("ObservedStore(")


async def test_every_primitive_and_every_record_is_told(tmp_path: Path) -> None:
    calls: list[StoreCall] = []
    jobs = Supervisor(ObservedStore(SqliteStore(tmp_path / "jobs.db"), calls.append), retention=60)

    @jobs.worker
    async def work() -> None: ...

    async with jobs, asyncio.timeout(GUARD):
        await jobs.wait(await work.enqueue())
        await jobs.delete_all(JobQuery())
        await jobs.pause_queue("default")
        await jobs.counts()
        await jobs.nodes()
        store: Any = jobs.store
        await store.put_records([Record.of("a", "b", 1)])
        assert [one.key for one in await store.get_records("a")] == ["b"]
        assert await store.drop_records("a") == 1
        assert store.lifeline() is not None
    told = {call.operation for call in calls}
    assert told == {*PRIMITIVES, "put_records", "get_records", "drop_records"}


async def test_observers_come_in_order_and_one_that_fails_is_none_of_the_others_business(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[str] = []

    def fails(_call: StoreCall) -> None:
        told.append("first")
        raise RuntimeError("on purpose")

    async with ObservedStore(MemoryStore(), fails, lambda _: told.append("second")) as store:
        assert await store.tally() == {}
    assert told == ["first", "second"] * 3
    assert "an observer of store calls failed" in caplog.text
    with pytest.raises(OptionError, match="observer must be callable"):
        ObservedStore(MemoryStore(), "me")  # type: ignore[arg-type]


async def test_a_store_without_records_says_so() -> None:
    store = ObservedStore(FaultyStore(MemoryStore()))
    with pytest.raises(OptionError, match="FaultyStore keeps no records"):
        await store.put_records([])


async def test_a_transaction_of_the_application_can_be_joined(tmp_path: Path) -> None:
    import aiosqlite

    path = tmp_path / "jobs.db"
    jobs = Supervisor(ObservedStore(SqliteStore(path)), queues={})
    await jobs.counts()
    async with aiosqlite.connect(path) as connection:
        await jobs.enqueue("work", connection=connection)
        await connection.rollback()
    assert await jobs.counts() == {}
    await jobs.stop()


async def test_calls_are_measured_under_the_name_of_their_adapter() -> None:
    observability = Observability("shop").prometheus()
    async with ObservedStore(MemoryStore(), observability.store_observer("memory")) as store:
        await store.tally()
        with pytest.raises(AttributeError):
            await store.select(None)  # type: ignore[arg-type]
    text = observability.render()
    assert 'nidus_adapter_operations_total{adapter="memory",operation="tally",status="success"} 1.0' in text
    assert 'nidus_adapter_operations_total{adapter="memory",operation="select",status="failure"} 1.0' in text
    tally = 'adapter="memory",operation="tally",status="success"'
    assert f"nidus_adapter_operation_duration_seconds_count{{{tally}}} 1" in text
    Observability("off").store_observer()(StoreCall("tally", 0.1))


async def test_a_store_and_a_supervisor_say_how_they_are() -> None:
    healthy = MemoryStore()
    assert (await healthy.health()).up
    producer = Supervisor(healthy, queues={})
    assert (await producer.health()).up, "it need not run to enqueue"
    jobs = Supervisor(healthy)
    before = await jobs.health()
    assert (before.up, before.is_running, before.node) == (False, False, None)
    async with jobs:
        well = await jobs.health()
        assert (well.up, well.is_running, well.lease_holds, well.node) == (True, True, True, jobs.node)
        assert well.store.up
        assert well.store.seconds >= 0
        [node] = await jobs.nodes()
        await healthy.beat(node, 0)
        assert not (await jobs.health()).up, "others take it for dead"
    assert not (await jobs.health()).up


async def test_a_store_that_fails_is_told_by_the_kind_of_its_error_alone() -> None:
    secret = ConnectionError("postgresql://me:hunter2@db")
    ill = FaultyStore(MemoryStore(), lambda _n, _what: Fault(error=secret))
    health = await ill.health()
    assert (health.up, health.detail) == (False, "the store does not answer: ConnectionError")
    whole = await Supervisor(ill, queues={}).health()
    assert (whole.up, whole.store.detail) == (False, "the store does not answer: ConnectionError")


@virtual
async def test_health_answers_within_the_time_of_one_call_however_many_hang(world: World) -> None:
    hangs: set[str] = set()
    store = FaultyStore(world.store, lambda _call, what: Fault(before=9.0) if what in hangs else None)
    async with world.supervisor(store) as jobs:
        hangs |= {"queues", "nodes"}
        began = asyncio.get_running_loop().time()
        health = await jobs.health()
        assert asyncio.get_running_loop().time() - began <= 11
        assert (health.up, health.store.detail) == (False, "the store does not answer: StoreTimeout")
        hangs.clear()
        assert (await jobs.health()).up
