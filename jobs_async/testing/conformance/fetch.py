"""Claiming: order, limits, what is due, who may claim."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from jobs_async.core.job import JobState
from jobs_async.core.lifecycle import claimed
from jobs_async.core.outcome import Failed, Interrupted, Snoozed
from jobs_async.testing.conformance.scene import (
    BOOM,
    ELSEWHERE,
    dump,
    ids,
    joined,
    new,
    running,
    settled,
    stored,
    waiting,
)

if TYPE_CHECKING:
    from jobs_async.core.store import Store
    from jobs_async.testing.clock import FakeClock


async def the_lowest_priority_number_goes_first(store: Store, clock: FakeClock) -> None:
    """Priorities 5, 1, 1 are claimed second, third, first: ties go by id, for all were inserted at one instant."""
    five, one, other = await store.insert([new(priority=number) for number in (5, 1, 1)])
    claims = [(await store.fetch("default", 1, node=None)).jobs for _ in range(4)]
    assert [ids(jobs) for jobs in claims] == [[one.id], [other.id], [five.id], []]


async def a_claim_comes_sorted(store: Store, clock: FakeClock) -> None:
    """Many at once come in the order in which they would come one by one."""
    jobs = await store.insert([new(priority=number * 7 % 5 - 2) for number in range(40)])
    expected = sorted(jobs, key=lambda job: (job.priority, job.id))
    first = (await store.fetch("default", 25, node=None)).jobs
    rest = (await store.fetch("default", 25, node=None)).jobs
    assert ids(first) == ids(expected[:25])
    assert ids(rest) == ids(expected[25:])


async def a_claim_takes_no_more_than_its_limit(store: Store, clock: FakeClock) -> None:
    """What is beyond the limit stays available, untouched."""
    jobs = await store.insert([new() for _ in range(5)])
    assert len((await store.fetch("default", 3, node=None)).jobs) == 3
    assert (await dump(store))[3:] == jobs[3:]
    assert ids((await store.fetch("default", 3, node=None)).jobs) == ids(jobs[3:])


async def the_record_is_what_claimed_computes(store: Store, clock: FakeClock) -> None:
    """A claim stamps state, attempt, claim, time and node, and what is returned is what is stored."""
    for node in ("n", None):
        await joined(store, "n")
        row = await waiting(store, delay=1, meta={"a": 1}, tags=("t",))
        clock.advance(1.5)
        [job] = (await store.fetch("default", 1, node=node)).jobs
        assert job == claimed(row, node, clock.now())
        assert (job.attempt, job.claim, job.attempted_at, job.node) == (1, 1, clock.now(), node)
        assert await stored(store, job) == job


async def a_job_is_handed_out_once(store: Store, clock: FakeClock) -> None:
    """What executes is not claimed again, however long it takes."""
    await running(store)
    clock.advance(10**7)
    assert (await store.fetch("default", 10, node=None)).jobs == []


async def a_queue_hands_out_its_own_jobs(store: Store, clock: FakeClock) -> None:
    """Claiming and staging leave other queues as they are."""
    drafts = [new(queue=queue, delay=delay) for queue in ("default", ELSEWHERE) for delay in (None, 1.0)]
    *mine, other, due = await store.insert(drafts)
    clock.advance(2)
    assert ids((await store.fetch("default", 10, node=None)).jobs) == ids(mine)
    assert (await dump(store))[2:] == [other, due]
    assert (await store.fetch("nobody knows", 10, node=None)).jobs == []


async def a_job_is_claimed_from_its_instant_on(store: Store, clock: FakeClock) -> None:
    """Not a microsecond before it is due, and at once when it is."""
    job = await waiting(store, delay=10)
    clock.advance(9.999999)
    assert (await store.fetch("default", 1, node=None)).jobs == []
    assert (await stored(store, job)).state is JobState.scheduled
    clock.advance(0.000001)
    assert ids((await store.fetch("default", 1, node=None)).jobs) == [job.id]


async def due_jobs_become_available(store: Store, clock: FakeClock) -> None:
    """Those beyond the limit too: from then on they count as available, and keep their time."""
    first, second, later = await store.insert([new(delay=1), new(delay=1), new(delay=9)])
    clock.advance(2)
    assert ids((await store.fetch("default", 1, node=None)).jobs) == [first.id]
    staged = await stored(store, second)
    assert (staged.state, staged.scheduled_at) == (JobState.available, second.scheduled_at)
    assert await stored(store, later) == later


async def a_due_job_overtakes_by_priority(store: Store, clock: FakeClock) -> None:
    """Jobs that have just become due compete with those that were available."""
    plain, urgent = await store.insert([new(), new(priority=-1, delay=5)])
    clock.advance(5)
    assert ids((await store.fetch("default", 2, node=None)).jobs) == [urgent.id, plain.id]


async def retried_and_snoozed_jobs_come_back(store: Store, clock: FakeClock) -> None:
    """`retryable` and `scheduled` jobs are staged alike; an interrupted one is available at once."""
    job = await running(store, max_attempts=3)
    for outcome in (Failed(BOOM), Snoozed(7), Interrupted(7)):
        job = await settled(store, job, outcome, 7)
        assert (await store.fetch("default", 1, node=None)).jobs == []
        clock.advance(7)
        [job] = (await store.fetch("default", 1, node=None)).jobs
    back = await settled(store, job, Interrupted())
    assert ids((await store.fetch("default", 1, node=None)).jobs) == [back.id]


async def next_due_tells_when_to_look_again(store: Store, clock: FakeClock) -> None:
    """Seconds until the first of this queue's jobs that wait for their time; None where none does."""
    await store.insert([new(), new(queue=ELSEWHERE, delay=1)])
    assert (await store.fetch("default", 1, node=None)).next_due is None
    job = await running(store)
    await store.insert([new(delay=9.25), new(delay=30)])
    assert (await store.fetch("default", 1, node=None)).next_due == 9.25
    await settled(store, job, Failed(BOOM), 4.5)
    assert (await store.fetch("default", 1, node=None)).next_due == 4.5
    clock.advance(4.5)
    fetched = await store.fetch("default", 1, node=None)
    assert (ids(fetched.jobs), fetched.next_due) == ([job.id], 4.75)


async def claims_are_counted_without_end(store: Store, clock: FakeClock) -> None:
    """The claim number grows with each claim, though a refunded attempt comes again."""
    job = await running(store)
    for count in range(2, 6):
        await settled(store, job, Interrupted())
        [job] = (await store.fetch("default", 1, node=None)).jobs
        assert (job.attempt, job.claim) == (1, count)


async def an_available_job_stays_claimable_when_the_clock_is_set_back(store: Store, clock: FakeClock) -> None:
    """Available means claimable: only what waits for its time is asked for it."""
    job = await waiting(store)
    clock.jump(timedelta(days=-1))
    assert ids((await store.fetch("default", 1, node=None)).jobs) == [job.id]


async def a_paused_queue_hands_out_nothing(store: Store, clock: FakeClock) -> None:
    """Pause is asked by the claim itself, and by no other queue's; `resume` ends it."""
    mine, other = await store.insert([new(), new(queue=ELSEWHERE)])
    await store.set_queue("default", paused=True)
    assert (await store.fetch("default", 10, node=None)).jobs == []
    assert ids((await store.fetch(ELSEWHERE, 10, node=None)).jobs) == [other.id]
    assert await stored(store, mine) == mine
    await store.set_queue("default", paused=False)
    assert ids((await store.fetch("default", 10, node=None)).jobs) == [mine.id]


async def only_a_live_node_claims(store: Store, clock: FakeClock) -> None:
    """Without a lease, with one that ran out or was given up, nothing is handed out."""
    job = await waiting(store)
    assert (await store.fetch("default", 1, node="unknown")).jobs == []
    lapsed, left = await joined(store, "lapsed", 5), await joined(store, "left", 500)
    await joined(store, "live", 500)
    await store.beat(left, 0)
    clock.advance(5.5)
    for node in (lapsed, left):
        assert (await store.fetch("default", 1, node=node.id)).jobs == []
    assert await stored(store, job) == job
    assert ids((await store.fetch("default", 1, node="live")).jobs) == [job.id]
