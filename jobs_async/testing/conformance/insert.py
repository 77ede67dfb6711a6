"""Insertion: order, stamps, all or nothing, ticks."""

from __future__ import annotations

from datetime import timedelta, timezone
from typing import TYPE_CHECKING

from jobs_async.core.errors import UniqueConflict
from jobs_async.core.job import JobState
from jobs_async.core.lifecycle import born
from jobs_async.core.options import UniqueStrategy
from jobs_async.core.store import Store, Tick
from jobs_async.testing.conformance.scene import dump, ids, new, raised, stored, waiting

if TYPE_CHECKING:
    from jobs_async.testing.clock import FakeClock


async def jobs_come_back_in_the_order_given(store: Store, clock: FakeClock) -> None:
    """A batch is stored in order, its ids ascending, above every id before."""
    first = await store.insert([new(f"first-{n}", priority=-n) for n in range(5)])
    second = await store.insert([new(f"second-{n}") for n in range(5)])
    assert [job.worker for job in first + second] == [f"{batch}-{n}" for batch in ("first", "second") for n in range(5)]
    assert ids(first + second) == sorted(set(ids(first + second)))
    assert await dump(store) == first + second


async def an_empty_batch_is_harmless(store: Store, clock: FakeClock) -> None:
    """Nothing to do is done, by every primitive that takes many."""
    assert await store.insert([]) == []
    assert await store.apply([]) == []
    assert await store.delete([]) == 0
    assert await dump(store) == []


async def the_record_is_what_born_computes(store: Store, clock: FakeClock) -> None:
    """Every option is kept, and what is returned is what is stored."""
    full = new(
        "resize",
        '{"id":7,"sizes":[1,2.5,null]}',
        queue="images",
        priority=-3,
        max_attempts=7,
        delay=12.345678,
        timeout_seconds=0.25,
        unique_key="u",
        unique_strategy=UniqueStrategy.REJECT,
        idempotency_key="i",
        correlation_id="c",
        tags=("b", "a", "b"),
        meta={"deep": {"list": [1, None, True, "x"]}, "n": 1.5},
    )
    bare = new()
    unlimited = new(timeout_seconds=None, max_attempts=1)
    for draft, job in zip([full, bare, unlimited], await store.insert([full, bare, unlimited]), strict=True):
        assert job == born(draft, job.id, clock.now())
        assert await stored(store, job) == job
        assert not job.duplicate


async def times_are_stamped_by_the_store(store: Store, clock: FakeClock) -> None:
    """`inserted_at` is the store's now, and a delay counts from it."""
    early = await waiting(store, delay=10)
    clock.advance(4.5)
    late = await waiting(store, delay=10)
    assert late.inserted_at == clock.now()
    assert late.scheduled_at == clock.now() + timedelta(seconds=10)
    assert late.inserted_at - early.inserted_at == timedelta(seconds=4.5)


async def a_job_is_scheduled_only_when_its_time_is_ahead(store: Store, clock: FakeClock) -> None:
    """A time that has come, or is now, makes an available job; one microsecond ahead a scheduled one."""
    now, moment = clock.now(), timedelta(microseconds=1)
    drafts = [new(scheduled_at=at) for at in (now - moment, now, now + moment)] + [new(delay=0.0), new(delay=0.000001)]
    expected = [JobState.available, JobState.available, JobState.scheduled, JobState.available, JobState.scheduled]
    jobs = await store.insert(drafts)
    assert [job.state for job in jobs] == expected
    assert [job.scheduled_at for job in jobs] == [now - moment, now, now + moment, now, now + moment]


async def a_batch_that_raises_leaves_nothing(store: Store, clock: FakeClock) -> None:
    """Jobs before the conflict are not stored, and those it had replaced live on."""
    held = await waiting(store, unique_key="held")
    old = await waiting(store, unique_key="old")
    before = await dump(store)
    batch = [
        new("one", idempotency_key="i"),
        new("two", unique_key="old", unique_strategy=UniqueStrategy.CANCEL_EXISTING),
        new("three", unique_key="held", unique_strategy=UniqueStrategy.REJECT),
        new("four"),
    ]
    conflict = await raised(UniqueConflict, store.insert(batch))
    assert conflict.job == held
    assert await dump(store) == before
    assert ids((await store.fetch("default", 10, node=None)).jobs) == [held.id, old.id]
    assert not (await store.insert([new("one", idempotency_key="i")]))[0].duplicate


async def an_id_is_never_given_twice(store: Store, clock: FakeClock) -> None:
    """A handle to a deleted job must not fit a younger one."""
    jobs = await store.insert([new(), new()])
    assert await store.delete(ids(jobs)) == 2
    assert (await waiting(store)).id > jobs[-1].id


async def a_tick_is_spent_once(store: Store, clock: FakeClock) -> None:
    """The second insert of one instant of one entry stores nothing and returns nothing."""
    tick = Tick("nightly", clock.now())
    first = await store.insert([new("a"), new("b")], tick=tick)
    assert len(first) == 2
    assert await store.insert([new("c")], tick=tick) == []
    clock.advance(3600)
    assert await store.insert([new("d")], tick=tick) == []
    assert await dump(store) == first


async def a_tick_is_one_name_and_one_instant(store: Store, clock: FakeClock) -> None:
    """Another entry, or another instant, is another tick; the same instant in another zone is the same."""
    at = clock.now()
    abroad = at.astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert len(await store.insert([new()], tick=Tick("a", at))) == 1
    assert len(await store.insert([new()], tick=Tick("b", at))) == 1
    assert len(await store.insert([new()], tick=Tick("a", at + timedelta(microseconds=1)))) == 1
    assert len(await store.insert([new()], tick=Tick("a", at - timedelta(minutes=1)))) == 1
    assert await store.insert([new()], tick=Tick("a", abroad)) == []
    assert len(await dump(store)) == 4


async def a_late_tick_counts_only_where_an_earlier_one_is_remembered(store: Store, clock: FakeClock) -> None:
    """What was not yet an entry at that instant has not missed it; and a late tick is spent once, as every other."""
    at, minute = clock.now(), timedelta(minutes=1)
    late = Tick("t", at, late="begun")
    assert await store.insert([new()], tick=late) == []
    for name, begun in (("begun", at), ("begun", at + minute), ("t", at - minute), ("other", at - minute)):
        await store.insert([], tick=Tick(name, begun))
        assert await store.insert([new()], tick=late) == []
    await store.insert([], tick=Tick("begun", at - timedelta(days=30)))
    assert len(await store.insert([new()], tick=late)) == 1
    assert await store.insert([new()], tick=late) == []


async def a_tick_is_spent_where_uniqueness_skips_it(store: Store, clock: FakeClock) -> None:
    """An overlapping run skips its tick for good: it does not come back when the key is free."""
    held = await waiting(store, unique_key="k")
    tick = Tick("t", clock.now())
    met = await store.insert([new(unique_key="k")], tick=tick)
    assert [(job.id, job.duplicate) for job in met] == [(held.id, True)]
    assert await store.delete([held.id]) == 1
    assert await store.insert([new(unique_key="k")], tick=tick) == []
    assert await dump(store) == []


async def a_tick_is_not_spent_by_an_insert_that_raised(store: Store, clock: FakeClock) -> None:
    """What wrote nothing has not spent the tick either."""
    held = await waiting(store, unique_key="k")
    tick, draft = Tick("t", clock.now()), new(unique_key="k", unique_strategy=UniqueStrategy.REJECT)
    await raised(UniqueConflict, store.insert([draft], tick=tick))
    await store.delete([held.id])
    assert len(await store.insert([draft], tick=tick)) == 1


async def a_tick_outlives_its_job(store: Store, clock: FakeClock) -> None:
    """Deleting the job of a tick does not bring the tick back."""
    tick = Tick("t", clock.now())
    assert await store.delete(ids(await store.insert([new()], tick=tick))) == 1
    assert await store.insert([new()], tick=tick) == []
