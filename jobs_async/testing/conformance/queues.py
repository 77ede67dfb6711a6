"""Queues, counts, and the ways a row leaves: pause, tally, delete, purge."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from jobs_async.core.errors import OptionError
from jobs_async.core.job import FINAL, LIVE, JobState
from jobs_async.core.outcome import Completed
from jobs_async.core.store import QueueInfo, Store
from jobs_async.testing.conformance.scene import (
    ELSEWHERE,
    dump,
    ids,
    in_state,
    new,
    raised,
    running,
    settled,
    stored,
    waiting,
)

if TYPE_CHECKING:
    from jobs_async.testing.clock import FakeClock


async def what_was_said_about_a_queue_stays(store: Store, clock: FakeClock) -> None:
    """`set_queue` changes what it is given, leaves the rest, and knows whether that made a difference."""
    assert await store.queues() == {}
    assert await store.set_queue("a", paused=True) is True
    assert await store.set_queue("a", paused=True) is False
    assert await store.set_queue("a", limit=3) is True
    assert (await store.queues())["a"] == QueueInfo(paused=True, limit=3)
    assert await store.set_queue("a", limit=3) is False
    assert await store.set_queue("a", paused=False, limit=5) is True
    assert (await store.queues())["a"] == QueueInfo(paused=False, limit=5)
    assert await store.set_queue("a") is False
    assert await store.set_queue("b", limit=1) is True
    assert await store.queues() == {"a": QueueInfo(limit=5), "b": QueueInfo(limit=1)}


async def a_limit_can_be_taken_back(store: Store, clock: FakeClock) -> None:
    """0 says that nothing is said of it any longer, and touches no pause."""
    await store.set_queue("a", paused=True, limit=3)
    assert await store.set_queue("a", limit=0) is True
    assert (await store.queues())["a"] == QueueInfo(paused=True, limit=None)
    assert await store.set_queue("a", limit=0) is False


async def resuming_what_was_not_paused_changes_nothing(store: Store, clock: FakeClock) -> None:
    """Nobody paused it: there is nothing to tell."""
    assert await store.set_queue("a", paused=False) is False
    assert (await store.queues()).get("a", QueueInfo()) == QueueInfo()


async def a_pause_concerns_claims_only(store: Store, clock: FakeClock) -> None:
    """Running jobs settle, new ones are inserted, other queues go on; the pause is not about jobs of the moment."""
    job = await running(store)
    await store.set_queue("default", paused=True)
    assert (await settled(store, job, Completed())).state is JobState.completed
    late = await waiting(store)
    assert (await store.fetch("default", 1, node=None)).jobs == []
    await store.set_queue("default", limit=7)
    assert (await store.fetch("default", 1, node=None)).jobs == [], "a limit ended the pause"
    await store.set_queue("default", paused=False)
    assert ids((await store.fetch("default", 1, node=None)).jobs) == [late.id]


async def the_tally_counts_each_queue_and_state(store: Store, clock: FakeClock) -> None:
    """Exactly, and with no entry where there is none."""
    assert dict(await store.tally()) == {}
    for queue in ("default", ELSEWHERE):
        for state in JobState:
            await in_state(store, state, queue=f"{queue}-{state.name}")
    await store.insert([new(queue="default-available"), new(queue="default-executing")])
    expected = {(f"{queue}-{state.name}", state): 1 for queue in ("default", ELSEWHERE) for state in JobState}
    expected |= {("default-available", JobState.available): 2, ("default-executing", JobState.available): 1}
    assert dict(await store.tally()) == expected
    await store.delete([job.id for job in await dump(store) if job.queue.startswith(ELSEWHERE)])
    left = {key: count for key, count in expected.items() if key[0].startswith("default")}
    assert dict(await store.tally()) == left | {(f"{ELSEWHERE}-executing", JobState.executing): 1}


async def delete_refuses_what_executes(store: Store, clock: FakeClock) -> None:
    """Everything else goes, in whatever state; how many went is told, unknown and repeated ids not counted."""
    jobs = [await in_state(store, state, queue=state.name) for state in JobState]
    bystander = await waiting(store)
    asked = ids(jobs)
    assert await store.delete([*asked, asked[0], bystander.id + 1000]) == len(jobs) - 1
    assert ids(await dump(store)) == [jobs[JobState.executing].id, bystander.id]
    assert await store.delete(asked) == 0
    settled_job = await settled(store, jobs[JobState.executing], Completed())
    assert await store.delete([settled_job.id]) == 1


async def delete_keeps_what_is_in_another_state(store: Store, clock: FakeClock) -> None:
    """Where states are given, jobs of others stay, whatever their ids; executing ones even where that is given."""
    jobs = {state: (await in_state(store, state, queue=state.name)).id for state in JobState}
    everyone = list(jobs.values())
    assert await store.delete(everyone, states=[]) == 0
    assert await store.delete(everyone, states=[JobState.executing]) == 0
    for state in (JobState.completed, JobState.available):
        assert await store.delete(everyone, states=iter([state])) == 1
        assert jobs.pop(state) not in ids(await dump(store))
    assert ids(await dump(store)) == sorted(jobs.values())


async def purge_removes_what_ended_strictly_before(store: Store, clock: FakeClock) -> None:
    """By seconds or by instant; a job that ended at that very instant stays."""
    old = await in_state(store, JobState.completed)
    clock.advance(0.000001)
    young = await in_state(store, JobState.completed)
    ended = clock.now()
    clock.advance(10)
    assert await store.purge([JobState.completed], 10.000001) == 0
    assert await store.purge([JobState.completed], 10) == 1
    assert await dump(store) == [young]
    assert await store.purge([JobState.completed], ended) == 0
    assert await store.purge([JobState.completed], timedelta(seconds=9)) == 1
    assert await dump(store) == []
    assert old.id < young.id


async def purge_removes_only_the_states_it_names(store: Store, clock: FakeClock) -> None:
    """Each final state for itself; jobs that may still run are never among them."""
    jobs = {state: await in_state(store, state, queue=state.name) for state in JobState}
    clock.advance(10)
    later = clock.now() + timedelta(days=36_500)
    assert await store.purge([], later) == 0
    for state in sorted(FINAL):
        assert await store.purge([state], later) == 1
        del jobs[state]
        assert await dump(store) == sorted(jobs.values(), key=lambda job: job.id)
    assert await store.purge(FINAL, later) == 0
    assert set(jobs) == LIVE


async def purge_stops_at_its_limit(store: Store, clock: FakeClock) -> None:
    """So that a caller can go on in bounded steps until nothing is left."""
    await store.insert([new() for _ in range(7)])
    for job in (await store.fetch("default", 7, node=None)).jobs:
        await settled(store, job, Completed())
    clock.advance(1)
    assert [await store.purge(FINAL, 0, 3) for _ in range(4)] == [3, 3, 1, 0]


async def purge_wants_a_time_zone(store: Store, clock: FakeClock) -> None:
    """A naive instant is refused, and removes nothing."""
    job = await in_state(store, JobState.completed)
    await raised(OptionError, store.purge(FINAL, datetime(2500, 1, 1)))  # noqa: DTZ001
    assert await stored(store, job) == job
