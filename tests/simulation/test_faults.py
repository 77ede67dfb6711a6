"""The store that misbehaves on purpose does so exactly as it was told, and not otherwise."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from random import Random
from typing import Any

import aiosqlite
import pytest

from jobs_async import JobQuery, JobState, MemoryStore, OptionError, SqliteStore, StoreBusy, Supervisor
from jobs_async.core.errors import WriteRefused
from jobs_async.core.options import NewJob
from jobs_async.core.store import PRIMITIVES, Node, Store, validate_store
from jobs_async.testing import FakeClock
from jobs_async.testing.conformance import CHECKS, Check
from jobs_async.testing.faults import Fault, FaultyStore, Plan, at_call, odds
from jobs_async.testing.loop import LoopClock, run_virtual
from tests.simulation.ledger import now

CALLS: dict[str, Callable[[Store], Coroutine[Any, Any, Any]]] = {
    "insert": lambda store: store.insert([NewJob("work", "{}")]),
    "fetch": lambda store: store.fetch("default", 1, node=None),
    "apply": lambda store: store.apply([]),
    "select": lambda store: store.select(JobQuery()),
    "delete": lambda store: store.delete([]),
    "purge": lambda store: store.purge([JobState.completed], 0),
    "tally": lambda store: store.tally(),
    "set_queue": lambda store: store.set_queue("default", paused=True),
    "queues": lambda store: store.queues(),
    "beat": lambda store: store.beat(Node(id="node"), 30, join=True),
    "nodes": lambda store: store.nodes(),
}


def virtual(scenario: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        run_virtual(scenario())

    run.__name__ = scenario.__name__
    return run


def faulty(plan: Plan | Fault) -> FaultyStore:
    """A memory store; a fault alone is met by the first call."""
    return FaultyStore(MemoryStore(clock=LoopClock()), at_call(1, plan) if isinstance(plan, Fault) else plan)


def insert(store: Store) -> Coroutine[Any, Any, Any]:
    return store.insert([NewJob("work", "{}")])


async def stored(store: FaultyStore) -> int:
    """How many jobs there really are."""
    return len(await store.inner.select(JobQuery()))


async def is_silent(call: Awaitable[object]) -> bool:
    """Whether an hour passes without an answer."""
    try:
        async with asyncio.timeout(3600):
            await call
    except TimeoutError:
        return True
    return False


# --- no fault ---


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
async def test_without_a_plan_it_is_the_store_it_wraps(check: Check) -> None:
    clock = FakeClock()
    async with FaultyStore(MemoryStore(clock=clock)) as store:
        await check(store, clock)


async def test_calls_are_counted_and_no_primitive_is_forgotten() -> None:
    met: list[tuple[int, str]] = []
    store = FaultyStore(MemoryStore(), lambda call, primitive: met.append((call, primitive)))
    validate_store(store)
    for call in CALLS.values():
        await call(store)
    assert met == list(enumerate(CALLS, start=1))
    assert sorted([*CALLS, "open", "close"]) == sorted(PRIMITIVES)
    assert (store.calls, store.faults) == (11, 0)


async def test_a_store_is_opened_and_closed_through_it(tmp_path: Path) -> None:
    store = FaultyStore(SqliteStore(tmp_path / "jobs.db"), lambda *_: Fault(error=StoreBusy))
    assert not store.is_open
    async with store:
        assert store.inner.is_open
    assert not store.is_open


async def test_a_transaction_of_the_callers_reaches_the_store_inside(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    async with FaultyStore(SqliteStore(path)) as store, aiosqlite.connect(path) as connection:
        jobs = Supervisor(store, queues={})
        await connection.execute("BEGIN")
        await jobs.enqueue("work", connection=connection)
        assert await stored(store) == 0
        await connection.commit()
        assert await stored(store) == 1
    with pytest.raises(OptionError, match="no transactions"):
        await Supervisor(FaultyStore(MemoryStore()), queues={}).enqueue("work", connection=connection)


# --- each fault ---


@virtual
async def test_a_call_can_be_done_late() -> None:
    store = faulty(Fault(before=2))
    call = asyncio.get_running_loop().create_task(insert(store))
    await asyncio.sleep(1.9)
    assert await stored(store) == 0
    await call
    assert now() == 2


@virtual
async def test_a_call_can_be_done_at_once_and_answered_late() -> None:
    store = faulty(Fault(after=2))
    call = asyncio.get_running_loop().create_task(insert(store))
    await asyncio.sleep(0.1)
    assert await stored(store) == 1
    await call
    assert now() == 2


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("error", [StoreBusy, ConnectionError, WriteRefused("never")], ids=str)
async def test_every_primitive_can_be_refused(name: str, error: Any) -> None:
    store = FaultyStore(MemoryStore(), at_call(2, Fault(error=error)))
    await CALLS[name](store)
    with pytest.raises(error if isinstance(error, type) else type(error)) as raised:
        await CALLS[name](store)
    await CALLS[name](store)
    assert raised.value is error or str(raised.value) == f"on purpose: call 2, {name}"
    assert (store.calls, store.faults) == (3, 1)


async def test_what_is_refused_is_not_done_and_what_loses_its_answer_is() -> None:
    for done in (False, True):
        store = faulty(Fault(error=ConnectionError, done=done))
        with pytest.raises(ConnectionError):
            await insert(store)
        assert await stored(store) == done


@virtual
async def test_a_call_can_hang_having_done_its_work_or_not() -> None:
    for done in (False, True):
        store = faulty(Fault(hangs=True, done=done))
        assert await is_silent(insert(store))
        assert await stored(store) == done
        assert not await is_silent(insert(store)), "only the first"


@virtual
async def test_a_call_whose_caller_has_given_up_is_not_done_unless_it_goes_on() -> None:
    for goes_on in (False, True):
        store = faulty(Fault(before=20, goes_on=goes_on))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(10):
                await insert(store)
        assert await stored(store) == 0
        await asyncio.sleep(15)
        assert await stored(store) == goes_on


async def test_what_the_store_itself_raises_comes_through() -> None:
    store = faulty(Fault(error=ConnectionError, done=True))
    with pytest.raises(OptionError):
        await store.purge([JobState.completed], -1)


# --- plans ---


def test_odds_are_what_they_say() -> None:
    plan = odds(Random(7), slow=0.1, fail=0.2, lose=0.3, hang=0.1, seconds=4, errors=[StoreBusy])
    met = [plan(call, "fetch") for call in range(10_000)]
    kinds = Counter(
        "none"
        if fault is None
        else "hang"
        if fault.hangs
        else "slow"
        if fault.error is None
        else "lose"
        if fault.done
        else "fail"
        for fault in met
    )
    assert {kind: round(count / 10_000, 1) for kind, count in kinds.items()} == {
        "slow": 0.1,
        "fail": 0.2,
        "lose": 0.3,
        "hang": 0.1,
        "none": 0.3,
    }
    assert {fault.error for fault in met if fault} == {None, StoreBusy}
    assert 3.9 < max(fault.before for fault in met if fault) <= 4
    assert {fault.done for fault in met if fault and fault.hangs} == {False, True}


def test_the_same_seed_brings_the_same_faults() -> None:
    def faults(seed: int) -> list[Fault | None]:
        plan = odds(Random(seed), slow=0.3, fail=0.3, lose=0.2)
        return [plan(call, "apply") for call in range(100)]

    assert faults(1) == faults(1) != faults(2)


async def test_odds_can_be_for_some_primitives_and_stores_be_put_around_one_another() -> None:
    inner = FaultyStore(MemoryStore(), odds(Random(1), fail=1, errors=[StoreBusy], only=["apply"]))
    store = FaultyStore(inner, odds(Random(1), fail=1, errors=[ConnectionError], only=["insert"]))
    with pytest.raises(StoreBusy):
        await store.apply([])
    with pytest.raises(ConnectionError):
        await insert(store)
    await store.tally()
    assert (store.calls, store.faults) == (3, 1)
    assert (inner.calls, inner.faults) == (2, 1)


async def test_calm_ends_all_faults() -> None:
    store = faulty(lambda *_: Fault(error=StoreBusy))
    with pytest.raises(StoreBusy):
        await insert(store)
    store.calm()
    await insert(store)
    assert (store.calls, store.faults) == (2, 1)


# --- a line that is cut ---


@pytest.mark.parametrize("name", [*CALLS, "open", "close"])
def test_whoever_calls_through_a_cut_line_hears_nothing(name: str) -> None:
    @virtual
    async def scenario() -> None:
        store = FaultyStore(MemoryStore())
        store.cut()
        assert await is_silent(CALLS[name](store) if name in CALLS else getattr(store, name)())
        assert await stored(store) == 0

    scenario()


@pytest.mark.parametrize(
    ("fault", "done"),
    [
        (Fault(before=5), 0),
        (Fault(after=5), 1),
        (Fault(before=5, error=StoreBusy), 0),
        (Fault(after=5, error=StoreBusy, done=True), 1),
        (Fault(before=5, goes_on=True), 1),
    ],
    ids=["not done yet", "done", "to be refused", "to lose its answer", "goes on"],
)
def test_a_call_under_way_when_the_line_is_cut_is_never_answered(fault: Fault, done: int) -> None:
    @virtual
    async def scenario() -> None:
        store = faulty(fault)
        asyncio.get_running_loop().call_later(1, store.cut)
        assert await is_silent(insert(store))
        assert await stored(store) == done

    scenario()


@virtual
async def test_cutting_one_line_leaves_the_others() -> None:
    inner = MemoryStore(clock=LoopClock())
    mine, yours = FaultyStore(inner), FaultyStore(inner)
    mine.cut()
    await insert(yours)
    assert await stored(mine) == 1
