"""Nodes: leases by uptime, who is dead, what a beat tells, and how a dead node's jobs are handed on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from jobs_async.core.job import JobState
from jobs_async.core.lifecycle import cancel, decide
from jobs_async.core.outcome import Completed, Interrupted
from jobs_async.core.store import JobQuery, Node, Store, rescue
from jobs_async.testing.conformance.scene import (
    LONG,
    applied,
    dump,
    ids,
    in_state,
    joined,
    new,
    running,
    settled,
    stored,
    waiting,
)

if TYPE_CHECKING:
    from jobs_async.testing.clock import FakeClock

ORPHANS = JobQuery(orphaned=True)


async def _alive(store: Store, node: str) -> bool:
    """Whether the store lets this node claim, says so in its list, and has no orphan of it."""
    alive = {known.id: known.alive for known in await store.nodes()}.get(node, False)
    await store.insert([new(queue=f"probe-{node}")])
    assert len((await store.fetch(f"probe-{node}", 1, node=node)).jobs) == alive
    orphans = await store.select(ORPHANS)
    assert not (alive and any(job.node == node for job in orphans)), "a live node has orphans"
    return alive


async def a_lease_holds_for_its_ttl(store: Store, clock: FakeClock) -> None:
    """From the last beat on, and no longer."""
    node = await joined(store, "n", 30)
    clock.advance(29.9)
    assert await _alive(store, "n")
    assert (await store.beat(node, 10)).alive
    clock.advance(9.9)
    assert await _alive(store, "n")
    clock.advance(0.2)
    assert not await _alive(store, "n")


async def a_lease_that_ran_out_stays_out(store: Store, clock: FakeClock) -> None:
    """A beat that comes too late, by a moment or by a month, is told so and revives nothing."""
    for late in (0.001, 31, 30 * LONG):
        node = await joined(store, f"n-{late}", 30)
        clock.advance(30 + late)
        assert not (await store.beat(node, 30)).alive
        assert not (await store.beat(node, 1000)).alive
        assert not await _alive(store, node.id)


async def a_dead_node_cannot_join_again(store: Store, clock: FakeClock) -> None:
    """Not under its old id; a live one may, and is renewed."""
    node = await joined(store, "n", 30)
    clock.advance(20)
    await joined(store, "n", 30)
    clock.advance(20)
    assert await _alive(store, "n")
    clock.advance(11)
    assert not (await store.beat(node, 30, join=True)).alive
    assert not await _alive(store, "n")


async def a_lifeline_renews_a_lease_from_a_thread(store: Store, clock: FakeClock) -> None:
    """As a beat does, where a store has one: it creates nothing, and revives nothing that has run out."""
    lifeline = store.lifeline()
    if lifeline is None:
        return
    node = await joined(store, "n", 30, workers=("work",))

    def renew() -> list[bool]:
        try:
            return [lifeline.renew("n", 30), lifeline.renew("stranger", 30)]
        finally:
            lifeline.close()

    for expected in ([True, False], [True, False]):
        clock.advance(29)
        assert await asyncio.to_thread(renew) == expected
    await store.beat(node, 90)
    assert await asyncio.to_thread(renew) == [True, False]
    clock.advance(61)
    assert await asyncio.to_thread(renew) == [True, False], "it has cut a longer lease short"
    clock.advance(29)
    assert await _alive(store, "n")
    assert (await store.nodes())[0].workers == node.workers
    clock.advance(2)
    assert await asyncio.to_thread(renew) == [False, False]
    assert not await _alive(store, "n")
    await joined(store, "m", 1e9)
    clock.reboot()

    def renew_of_another_boot() -> bool:
        try:
            return lifeline.renew("m", 30)
        finally:
            lifeline.close()

    assert not await asyncio.to_thread(renew_of_another_boot)


async def a_beat_of_a_stranger_is_refused(store: Store, clock: FakeClock) -> None:
    """Only `join` creates a lease."""
    beat = await store.beat(Node(id="stranger"), 30)
    assert (beat.alive, beat.now) == (False, clock.now())
    assert not await _alive(store, "stranger")


async def a_lease_can_be_given_up(store: Store, clock: FakeClock) -> None:
    """A beat of 0 seconds ends it at once: the jobs are orphans, and no later beat takes them back."""
    node = await joined(store, "n")
    job = await running(store, node="n")
    await store.beat(node, 0)
    assert ids(await store.select(ORPHANS)) == [job.id]
    assert not (await store.beat(node, 30)).alive
    assert not await _alive(store, "n")


async def nodes_live_each_for_itself(store: Store, clock: FakeClock) -> None:
    """One node's beat or death is no other's."""
    short, long = await joined(store, "short", 10), await joined(store, "long", 10)
    await store.insert([new() for _ in range(4)])
    mine = (await store.fetch("default", 2, node="short")).jobs
    (await store.fetch("default", 2, node="long")).jobs.clear()
    clock.advance(9)
    assert (await store.beat(long, 10)).alive
    clock.advance(2)
    assert ids(await store.select(JobQuery(orphaned=True, newest_first=False))) == ids(mine)
    assert not (await store.beat(short, 10)).alive
    assert await _alive(store, "long")


async def a_clock_that_is_set_steals_no_lease(store: Store, clock: FakeClock) -> None:
    """Wall time decides nothing about leases: not forward, not back."""
    node = await joined(store, "n", 30)
    job = await running(store, node="n")
    for step in (10 * LONG, -20 * LONG):
        clock.jump(step)
        await joined(store, f"newcomer-{step}", 30)
        assert await _alive(store, "n")
        assert (await store.beat(node, 30)).alive
        assert await store.select(ORPHANS) == []
    clock.advance(31)
    assert not await _alive(store, "n")
    assert job.id in ids(await store.select(ORPHANS))


async def a_clock_set_back_revives_no_lease(store: Store, clock: FakeClock) -> None:
    """What ran out stays out, though the wall shows an earlier time."""
    node = await joined(store, "n", 30)
    clock.advance(31)
    clock.jump(-LONG)
    assert not (await store.beat(node, 30)).alive
    assert not await _alive(store, "n")


async def a_reboot_ends_every_lease(store: Store, clock: FakeClock) -> None:
    """Seconds of another uptime mean nothing: no process of before is alive."""
    node = await joined(store, "n", LONG)
    job = await running(store, node="n")
    clock.reboot()
    assert ids(await store.select(ORPHANS)) == [job.id]
    assert not (await store.beat(node, LONG)).alive
    assert not await _alive(store, "n")
    await joined(store, "reborn")
    assert await _alive(store, "reborn")


async def a_beat_tells_what_to_cancel(store: Store, clock: FakeClock) -> None:
    """The executing jobs of this node whose cancellation is requested, at every beat until they have ended."""
    node, other = await joined(store, "n"), await joined(store, "other")
    await store.insert([new() for _ in range(4)])
    first, second, calm = (await store.fetch("default", 3, node="n")).jobs
    [foreign] = (await store.fetch("default", 1, node="other")).jobs
    beat = await store.beat(node, 30)
    assert (beat.alive, beat.now, beat.cancel) == (True, clock.now(), ())
    asked = [await applied(store, cancel(job)) for job in (first, second, foreign)]
    clock.advance(1)
    for _ in range(2):
        beat = await store.beat(node, 30)
        assert sorted(beat.cancel) == [first.id, second.id]
        assert beat.now == clock.now()
    assert (await store.beat(other, 30)).cancel == (foreign.id,)
    await settled(store, asked[0], Completed())
    assert (await store.beat(node, 30)).cancel == (second.id,)
    assert (await stored(store, calm)).state is JobState.executing


async def a_node_is_described(store: Store, clock: FakeClock) -> None:
    """What a node says of itself is kept from its latest beat, with when it began and last beat."""
    facts = {"host": "web-1", "pid": 4242, "version": "1.2.3", "queues": {"default": 10, "mail": 5}}
    node = await joined(store, "n", 30, workers=("a", "b"), **facts)
    began = clock.now()
    [known] = await store.nodes()
    assert (known.id, known.host, known.pid, known.version) == ("n", "web-1", 4242, "1.2.3")
    assert (dict(known.queues), known.workers) == ({"default": 10, "mail": 5}, ("a", "b"))
    assert (known.started_at, known.beat_at, known.alive) == (began, began, True)
    clock.advance(5)
    await store.beat(Node(id=node.id, host="web-1", queues={"default": 20}, workers=("c",)), 30)
    [known] = await store.nodes()
    assert (dict(known.queues), known.workers) == ({"default": 20}, ("c",))
    assert (known.started_at, known.beat_at, known.alive) == (began, clock.now(), True)
    clock.advance(31)
    await joined(store, "m")
    assert {one.id: one.alive for one in await store.nodes()} == {"n": False, "m": True}


async def a_dead_nodes_jobs_are_handed_on(store: Store, clock: FakeClock) -> None:
    """Freed once, with the node named; run elsewhere; and the dead node's late settlement is stale."""
    await joined(store, "dead", 30)
    await joined(store, "live", 500)
    job, kept = await running(store, node="dead"), await running(store, node="live")
    assert await rescue(store, ORPHANS, "rescued: node lost", 3) == 0
    clock.advance(31)
    assert await rescue(store, ORPHANS, "rescued: node lost", 3) == 1
    assert await rescue(store, ORPHANS, "rescued: node lost", 3) == 0
    freed = await stored(store, job)
    assert (freed.state, freed.rescues, freed.attempt, freed.claim) == (JobState.available, 1, 1, 1)
    assert freed.last_error is not None
    assert (freed.last_error.error, freed.last_error.node) == ("rescued: node lost", "dead")
    [again] = (await store.fetch("default", 1, node="live")).jobs
    assert (again.id, again.attempt, again.claim, again.node) == (job.id, 2, 2, "live")
    for outcome in (Completed(), Interrupted()):
        assert await store.apply([decide(job, outcome)]) == [None]
    assert await stored(store, kept) == kept


async def rescue_reaches_beyond_a_page(store: Store, clock: FakeClock) -> None:
    """Every orphan is freed, however many, and nothing that does not execute."""
    await joined(store, "dead", 30)
    await store.insert([new() for _ in range(25)])
    lost = (await store.fetch("default", 25, node="dead")).jobs
    bystanders = [await in_state(store, state, queue=state.name) for state in JobState]
    clock.advance(31)
    assert await rescue(store, JobQuery(orphaned=True, limit=10), "rescued: node lost") == 25
    assert [job.state for job in (await dump(store))[:25]] == [JobState.available] * 25
    assert (await dump(store))[25:] == bystanders
    assert len(lost) == 25


async def a_job_that_kills_its_nodes_is_given_up(store: Store, clock: FakeClock) -> None:
    """Lost once it is available at once, later after a delay, and beyond `max_rescues` discarded."""
    job = await waiting(store)
    for number, state in enumerate((JobState.available, JobState.retryable, JobState.retryable, JobState.discarded)):
        await joined(store, f"n-{number}", 30)
        assert ids((await store.fetch("default", 1, node=f"n-{number}")).jobs) == [job.id]
        clock.advance(31)
        assert await rescue(store, ORPHANS, "rescued: node lost", 3) == 1
        assert (await stored(store, job)).state is state
    given_up = await stored(store, job)
    assert (given_up.rescues, given_up.attempt, len(given_up.errors)) == (4, 4, 4)
