"""Reading: conditions, order, pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs_async.core.job import DEFERRED, FINAL, JobState
from jobs_async.core.outcome import Completed, Failed
from jobs_async.core.store import JobQuery, Store
from jobs_async.testing.conformance.scene import (
    BOOM,
    ELSEWHERE,
    dump,
    ids,
    in_state,
    joined,
    new,
    running,
    settled,
    waiting,
)

if TYPE_CHECKING:
    from jobs_async.testing.clock import FakeClock


async def a_node_finds_its_own(store: Store, clock: FakeClock) -> None:
    """`node` is who runs a job, or was the last to do so."""
    await joined(store, "one")
    await joined(store, "two")
    mine = await running(store, node="one")
    await running(store, node="two")
    ended = await running(store, node="one")
    await settled(store, ended, Completed())
    await waiting(store)
    assert set(ids(await store.select(JobQuery(node="one")))) == {mine.id, ended.id}
    assert ids(await store.select(JobQuery(node="one", states=[JobState.executing]))) == [mine.id]
    assert await store.select(JobQuery(node="nobody")) == []


async def _asked(store: Store, **conditions: Any) -> list[int]:
    return ids(await store.select(JobQuery(**conditions)))


async def the_newest_come_first(store: Store, clock: FakeClock) -> None:
    """By id and nothing else, a hundred unless told; or the oldest first."""
    jobs = ids(await store.insert([new(priority=number % 3, queue=f"q{number % 5}") for number in range(130)]))
    assert await _asked(store) == jobs[:29:-1]
    assert await _asked(store, limit=3) == jobs[:-4:-1]
    assert await _asked(store, newest_first=False, limit=3) == jobs[:3]
    assert await _asked(store, limit=1000) == jobs[::-1]


async def pages_follow_each_other_by_key(store: Store, clock: FakeClock) -> None:
    """`after` is the last id seen, in either direction and whether its job still exists; nothing is missed or twice."""
    jobs = ids(await store.insert([new() for _ in range(25)]))
    for newest_first in (True, False):
        seen: list[int] = []
        while page := await _asked(store, after=seen[-1] if seen else None, newest_first=newest_first, limit=10):
            assert page[0] not in seen, "a page began with a job already seen"
            seen += page
        assert seen == (jobs[::-1] if newest_first else jobs)
    assert await store.delete([jobs[9], jobs[10]]) == 2
    assert await _asked(store, after=jobs[9], newest_first=False, limit=2) == jobs[11:13]
    await store.insert([new()])
    assert await _asked(store, after=jobs[10], limit=2) == [jobs[8], jobs[7]]


async def pages_of_a_condition_are_full(store: Store, clock: FakeClock) -> None:
    """The limit counts what is asked for: a crowd of other jobs hides none behind it."""
    await store.insert([new("crowd") for _ in range(40)])
    wanted = ids(await store.insert([new("wanted"), new("wanted")]))
    await store.insert([new("crowd") for _ in range(40)])
    assert await _asked(store, worker="wanted", limit=2) == wanted[::-1]
    assert await _asked(store, worker="wanted", limit=1, newest_first=False) == wanted[:1]


async def each_condition_holds(store: Store, clock: FakeClock) -> None:
    """States, queue and worker choose exactly their jobs."""
    jobs = {state: await in_state(store, state, queue=state.name, worker=f"w-{state.name}") for state in JobState}
    for state, job in jobs.items():
        assert await store.select(JobQuery(states=[state])) == [job]
        assert await store.select(JobQuery(queue=state.name)) == [job]
        assert await store.select(JobQuery(worker=f"w-{state.name}")) == [job]
    for states in (FINAL, DEFERRED):
        assert set(await _asked(store, states=states)) == {jobs[state].id for state in states}
    assert await _asked(store, states=[]) == []
    assert await _asked(store, queue="nobody knows") == []
    assert await _asked(store, worker="nobody knows") == []


async def conditions_combine(store: Store, clock: FakeClock) -> None:
    """A job must meet all that are given."""
    a, b, c, d = await store.insert([new(worker, queue=queue) for worker in "xy" for queue in ("default", ELSEWHERE)])
    claimed = (await store.fetch("default", 2, node=None)).jobs
    executing = [JobState.executing]
    assert ids(claimed) == [a.id, c.id]
    assert await _asked(store, queue=ELSEWHERE, worker="y") == [d.id]
    assert await _asked(store, states=executing, worker="y") == [c.id]
    assert await _asked(store, states=executing, queue=ELSEWHERE) == []
    assert await _asked(store, ids=[a.id, b.id], queue=ELSEWHERE) == [b.id]
    assert await _asked(store, ids=[a.id, b.id, d.id], states=[JobState.available], after=d.id) == [b.id]
    assert await _asked(store, states=executing, after=c.id, limit=1) == [a.id]


async def ids_come_in_the_order_of_the_query(store: Store, clock: FakeClock) -> None:
    """Whatever their order in the question, each once; unknown ones are left out, and no ids are no jobs."""
    jobs = ids(await store.insert([new() for _ in range(6)]))
    asked = [jobs[4], jobs[1], jobs[4], jobs[5] + 1000, jobs[2]]
    assert await _asked(store, ids=asked) == [jobs[4], jobs[2], jobs[1]]
    assert await _asked(store, ids=asked, newest_first=False, limit=2) == [jobs[1], jobs[2]]
    assert await _asked(store, ids=[]) == []


async def older_than_is_about_executing_jobs(store: Store, clock: FakeClock) -> None:
    """Seconds since the claim, strictly: exactly as long is not longer, and a job that ended is not meant."""
    ended = await settled(store, await running(store), Completed())
    old = await running(store)
    clock.advance(10)
    young = await running(store, queue=ELSEWHERE)
    await waiting(store)
    clock.advance(5)
    assert await _asked(store, older_than=15) == []
    assert await _asked(store, older_than=14.999999) == [old.id]
    assert await _asked(store, older_than=5) == [old.id]
    assert await _asked(store, older_than=0) == [young.id, old.id]
    assert await _asked(store, older_than=0, queue=ELSEWHERE) == [young.id]
    assert await _asked(store, older_than=0, states=[JobState.completed]) == []
    assert await _asked(store, states=[JobState.completed]) == [ended.id]


async def orphans_are_the_executing_jobs_of_dead_nodes(store: Store, clock: FakeClock) -> None:
    """Not those of live nodes, not those claimed without a node, not those that ended."""
    for node, ttl in (("dead", 30), ("live", 500), ("left", 500)):
        await joined(store, node, ttl)
    kept = [await running(store, node="live"), await running(store, node=None)]
    lost = [await running(store, node="dead", queue=queue) for queue in ("default", ELSEWHERE, "default")]
    left = await running(store, node="left")
    await settled(store, await running(store, node="dead"), Completed())
    await settled(store, await running(store, node="dead", max_attempts=1), Failed(BOOM))
    assert await _asked(store, orphaned=True) == []
    left_node = next(node for node in await store.nodes() if node.id == "left")
    await store.beat(left_node, 0)
    assert await _asked(store, orphaned=True) == [left.id]
    clock.advance(31)
    everyone = [*ids(lost), left.id]
    assert await _asked(store, orphaned=True) == everyone[::-1]
    assert await _asked(store, orphaned=True, newest_first=False, limit=2) == everyone[:2]
    assert await _asked(store, orphaned=True, newest_first=False, after=everyone[1]) == everyone[2:]
    assert await _asked(store, orphaned=True, queue=ELSEWHERE) == [lost[1].id]
    assert await _asked(store, orphaned=True, states=[JobState.completed]) == []
    assert {job.id for job in await dump(store) if job.state is JobState.executing} == {*everyone, *ids(kept)}


async def an_orphan_stays_one_until_it_is_freed(store: Store, clock: FakeClock) -> None:
    """Also when its node was dead for so long that nobody remembers the node."""
    await joined(store, "forgotten")
    lost = await running(store, node="forgotten")
    for day in range(1, 20):
        clock.advance(7 * 86_400)
        await joined(store, f"later-{day}")
    assert await _asked(store, orphaned=True) == [lost.id]
