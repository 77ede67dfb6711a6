"""The fence: a step is applied only while the row is still what the decision was based on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from jobs_async.core.errors import UniqueConflict
from jobs_async.core.job import FINAL, Job, JobState, Progress
from jobs_async.core.lifecycle import Patch, Transition, cancel, decide, rerun
from jobs_async.core.outcome import Cancelled, Completed, Discarded, Failed, Interrupted, Lost, Snoozed
from jobs_async.testing.conformance.scene import (
    BOOM,
    applied,
    claimed_again,
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
    from collections.abc import Callable

    from jobs_async.core.store import Store
    from jobs_async.testing.clock import FakeClock

OUTCOMES = (
    Completed('"late"'),
    Failed(BOOM),
    Discarded(BOOM),
    Cancelled(),
    Snoozed(60),
    Interrupted(),
    Lost(),
)


def _patch(job: Job[Any]) -> Transition:
    return Transition(job, job.state, patch=Patch(progress=Progress(0.5), priority=9, args_json='{"late":1}'))


def _complete(job: Job[Any]) -> Transition:
    return Transition(job, JobState.completed, result="1")


KINDS: tuple[Callable[[Job[Any]], Transition], ...] = (_complete, _patch)
"""A move and a patch: a store may apply them by different statements, and each needs the whole fence."""


async def _refused(store: Store, step: Transition) -> None:
    before = await dump(store)
    assert await store.apply([step]) == [None], "a stale step was applied"
    assert await dump(store) == before, "a stale step was refused, and yet changed something"


async def a_step_is_for_one_id(store: Store, clock: FakeClock) -> None:
    """Twins that differ in nothing but their id are left alone, and an unknown id is stale."""
    await store.insert([new() for _ in range(3)])
    first, second, third = (await store.fetch("default", 3, node=None)).jobs
    for kind in KINDS:
        await _refused(store, kind(replace(second, id=third.id + 1000)))
        patched = await applied(store, _patch(second))
        assert await dump(store) == [first, patched, third]
        second = patched
    done = await applied(store, _complete(second))
    assert await dump(store) == [first, done, third]


async def a_step_is_for_one_state(store: Store, clock: FakeClock) -> None:
    """The same claim, handed back meanwhile: the runner settles it no more."""
    for kind in KINDS:
        job = await running(store)
        back = await settled(store, job, Interrupted())
        assert (back.claim, back.cancel_requested) == (job.claim, job.cancel_requested)
        await _refused(store, kind(job))
        assert await store.delete([job.id]) == 1


async def a_step_is_for_one_claim(store: Store, clock: FakeClock) -> None:
    """Executing again, and the same attempt again: the first runner's step is stale."""
    for kind in KINDS:
        job = await running(store)
        again = await claimed_again(store, job)
        assert (again.state, again.attempt, again.cancel_requested) == (job.state, job.attempt, job.cancel_requested)
        await _refused(store, kind(job))
        await applied(store, kind(again))
        assert await stored(store, job) != again


async def a_step_knows_of_a_requested_cancellation(store: Store, clock: FakeClock) -> None:
    """What was decided before the request is decided anew: the settlement must end cancelled."""
    for kind in KINDS:
        job = await running(store)
        asked = await applied(store, cancel(job))
        assert asked.cancel_requested
        await _refused(store, kind(job))
        await _refused(store, cancel(job))
        ended = await settled(store, asked, Completed('"kept"'))
        assert (ended.state, ended.result) == (JobState.cancelled, "kept")


async def no_outcome_of_a_lost_claim_counts(store: Store, clock: FakeClock) -> None:
    """Whatever a runner brings after its job was handed on changes nothing."""
    job = await running(store, node=None)
    again = await claimed_again(store, job)
    for outcome in OUTCOMES:
        await _refused(store, decide(job, outcome))
    ended = await settled(store, again, Completed())
    for outcome in OUTCOMES:
        await _refused(store, decide(again, outcome))
    assert await stored(store, job) == ended


async def a_deleted_job_is_stale(store: Store, clock: FakeClock) -> None:
    """No row is no error: the step is stale, like any other."""
    job = await waiting(store)
    await store.delete([job.id])
    await _refused(store, cancel(job))


async def a_waiting_job_is_fenced_too(store: Store, clock: FakeClock) -> None:
    """A tool that looked before the claim cancels nothing after it."""
    job = await waiting(store)
    [claimed] = (await store.fetch("default", 1, node=None)).jobs
    await _refused(store, cancel(job))
    await _refused(store, Transition(job, job.state, patch=Patch(priority=3)))
    assert await stored(store, job) == claimed


async def a_stale_step_does_not_harm_its_neighbours(store: Store, clock: FakeClock) -> None:
    """Each step of a batch stands for itself, and answers come in the order of the steps."""
    await store.insert([new(f"w{n}") for n in range(5)])
    jobs = (await store.fetch("default", 5, node=None)).jobs
    stale = replace(jobs[1], claim=jobs[1].claim + 1)
    unknown = replace(jobs[1], id=jobs[4].id + 1000)
    order = [jobs[3], stale, jobs[0], unknown, jobs[4]]
    answers = await store.apply([decide(job, Completed(f'"{job.worker}"')) for job in order])
    assert [job and (job.id, job.result) for job in answers] == [
        None if job in (stale, unknown) else (job.id, job.worker) for job in order
    ]
    assert [job.state.name for job in await dump(store)] == [
        "completed",
        "executing",
        "executing",
        "completed",
        "completed",
    ]


async def a_job_may_come_twice_in_one_batch(store: Store, clock: FakeClock) -> None:
    """Each step meets what the one before it left: a patch lets a settlement pass, a settlement lets nothing pass."""
    job = await running(store)
    progress = Transition(job, job.state, patch=Patch(progress=Progress(0.9, "nearly")))
    first, second, third = await store.apply([progress, decide(job, Completed("1")), decide(job, Failed(BOOM))])
    assert first is not None
    assert (first.state, first.progress) == (JobState.executing, Progress(0.9, "nearly"))
    assert second is not None
    assert (second.state, second.progress, second.result) == (JobState.completed, Progress(0.9, "nearly"), 1)
    assert third is None
    assert await stored(store, job) == second


async def a_second_life_needs_a_free_key(store: Store, clock: FakeClock) -> None:
    """Run again beside a live job of its key, a job raises UniqueConflict, and no step of the batch is applied."""
    neighbours = [await running(store), await running(store)]
    for state in sorted(FINAL):
        ended = await in_state(store, state, unique_key="k")
        live = await waiting(store, unique_key="k")
        before = await dump(store)
        steps = [decide(neighbours[0], Completed()), rerun(ended), decide(neighbours[1], Completed())]
        conflict = await raised(UniqueConflict, store.apply(steps))
        assert conflict.job == live
        assert await dump(store) == before
        await applied(store, cancel(live))
        again = await applied(store, rerun(ended))
        assert (await store.insert([new(unique_key="k")]))[0].id == again.id
        assert await store.delete([again.id]) == 1


async def two_second_lives_of_one_key_are_one_too_many(store: Store, clock: FakeClock) -> None:
    """Neither is given where a batch asks for both."""
    ended = [await in_state(store, JobState.completed, unique_key="k") for _ in range(2)]
    await raised(UniqueConflict, store.apply([rerun(job) for job in ended]))
    assert await dump(store) == ended


async def a_stale_second_life_meets_no_key(store: Store, clock: FakeClock) -> None:
    """The fence comes first: a step that does not fit cannot conflict, not even with itself."""
    ended = await in_state(store, JobState.completed, unique_key="k")
    once, twice = await store.apply([rerun(ended), rerun(ended)])
    assert once is not None
    assert twice is None
    await _refused(store, rerun(ended))
    assert ids(await dump(store)) == [ended.id]
