"""Transitions: every outcome, every move, patches, errors and results."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jobs_async.core.job import FINAL, MAX_ERRORS, WAITING, Job, JobState, Progress
from jobs_async.core.lifecycle import LEGAL, NO_PATCH, Patch, Transition, advance, cancel, decide, edit, rerun
from jobs_async.core.outcome import (
    Cancelled,
    Completed,
    Discarded,
    Failed,
    Failure,
    Interrupted,
    Lost,
    Outcome,
    Snoozed,
)
from jobs_async.testing.conformance.scene import (
    BOOM,
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
    from jobs_async.core.store import Store
    from jobs_async.testing.clock import FakeClock


async def _as_computed(store: Store, clock: FakeClock, row: Job[Any], step: Transition) -> Job[Any]:
    """Apply a step that fits: returned and stored is what `advance` computes."""
    job = await applied(store, step)
    assert job == advance(row, step, clock.now())
    assert await stored(store, job) == job
    return job


async def every_outcome_is_applied_as_decided(store: Store, clock: FakeClock) -> None:
    """However a run ends, its record is the one that `advance` computes, in the first attempt and in the last."""
    ended: list[Outcome] = [Completed(), Completed('{"a":[1]}'), Cancelled(), Cancelled("enough", '"kept"')]
    ended += [Failed(BOOM), Discarded(Failure("Discard", "Discard: no")), Lost(), Lost(0, "poison")]
    ended += [Snoozed(0), Snoozed(61.5), Interrupted(), Interrupted(2.25)]
    for attempts in (1, 5):
        for outcome in ended:
            job = await running(store, max_attempts=attempts, unique_key="k")
            clock.advance(3.000001)
            record = await _as_computed(store, clock, job, decide(job, outcome, 15.5))
            if record.state not in FINAL:
                assert await store.delete([job.id]) == 1


async def every_move_is_applied(store: Store, clock: FakeClock) -> None:
    """Each move of the life cycle that is not a claim, with an error and a delay."""
    for source, target in sorted(LEGAL):
        if target is not JobState.executing:
            job = await in_state(store, source, queue=f"{source.name}-{target.name}")
            clock.advance(1)
            await _as_computed(store, clock, job, Transition(job, target, delay=5, error=BOOM))


async def a_retry_waits_for_its_delay(store: Store, clock: FakeClock) -> None:
    """The delay counts from the settlement, to the microsecond."""
    job = await running(store)
    clock.advance(100)
    failed = await settled(store, job, Failed(BOOM), 15.123456)
    assert failed.state is JobState.retryable
    assert failed.scheduled_at == clock.now() + timedelta(seconds=15.123456)
    assert failed.attempted_at == clock.now() - timedelta(seconds=100)


async def attempts_are_counted_at_the_claim(store: Store, clock: FakeClock) -> None:
    """Failures are retried until `max_attempts` runs, then discarded; each leaves its error, the node and the time."""
    await joined(store, "n1", 1e6)
    job = await running(store, node="n1", max_attempts=3)
    expected: list[tuple[object, ...]] = []
    for attempt in (1, 2, 3):
        assert job.attempt == attempt
        clock.advance(1)
        failed = await settled(store, job, Failed(BOOM), 60)
        expected.append((attempt, BOOM.type, BOOM.error, BOOM.frames, clock.now(), "n1"))
        assert failed.state is (JobState.discarded if attempt == 3 else JobState.retryable)
        clock.advance(60)
        job = next(iter((await store.fetch("default", 1, node="n1")).jobs), job)
    errors = (await stored(store, job)).errors
    assert [(e.attempt, e.type, e.error, e.frames, e.at, e.node) for e in errors] == expected


async def a_refunded_attempt_comes_again(store: Store, clock: FakeClock) -> None:
    """Snoozing and interruption cost no attempt and leave no error."""
    job = await running(store, max_attempts=1)
    handed_back: list[Outcome] = [Snoozed(0), Interrupted(), Snoozed(3), Interrupted(3)]
    for claim, outcome in enumerate(handed_back, start=2):
        back = await settled(store, job, outcome)
        assert (back.attempt, back.errors, back.completed_at) == (0, (), None)
        clock.advance(3)
        [job] = (await store.fetch("default", 1, node=None)).jobs
        assert (job.attempt, job.claim) == (1, claim)
    assert (await settled(store, job, Failed(BOOM))).state is JobState.discarded


async def the_last_twenty_errors_are_kept(store: Store, clock: FakeClock) -> None:
    """The oldest are forgotten, the order stays."""
    job = await running(store, max_attempts=50)
    for number in range(1, MAX_ERRORS + 4):
        failed = await settled(store, job, Failed(Failure("E", f"E: {number}")))
        assert [error.error for error in failed.errors] == [
            f"E: {n}" for n in range(max(1, number - MAX_ERRORS + 1), number + 1)
        ]
        [job] = (await store.fetch("default", 1, node=None)).jobs
    assert (await stored(store, job)).errors == job.errors
    done = await settled(store, job, Completed())
    assert len(done.errors) == MAX_ERRORS, "an attempt that succeeds does not clear why others failed"


async def results_come_back_as_they_went(store: Store, clock: FakeClock) -> None:
    """Any JSON: what is empty or false is a result too, and numbers keep their kind."""
    values: list[Any] = [0, "", False, [], {}, None, True, -0.5, 1e300, 5e-324, 2**63 - 1, -(2**63), "null", '"', "\\"]
    values += ["\n\t\x7f", "é🦊\u2028", [[[]]], {"": {"a": [None, 0.1, "x"]}}, 1.0, "x" * 300_000]
    await store.insert([new() for _ in values])
    jobs = (await store.fetch("default", len(values), node=None)).jobs
    texts = [json.dumps(value, ensure_ascii=number % 2 == 0) for number, value in enumerate(values)]
    answers = await store.apply([decide(job, Completed(text)) for job, text in zip(jobs, texts, strict=True)])
    for value, answer, kept in zip(values, answers, await dump(store), strict=True):
        assert answer == kept
        assert (kept.state, kept.result, type(kept.result)) == (JobState.completed, value, type(value))


async def no_result_keeps_the_one_before(store: Store, clock: FakeClock) -> None:
    """A run that returns nothing leaves what an earlier life returned; one that returns `null` overwrites it."""
    job = await settled(store, await running(store), Completed("7"))
    for text, expected in ((None, 7), ("null", None)):
        await applied(store, rerun(job))
        [again] = (await store.fetch("default", 1, node=None)).jobs
        job = await settled(store, again, Completed(text))
        assert (job.result, (await stored(store, job)).result) == (expected, expected)


async def the_end_is_stamped_and_taken_back(store: Store, clock: FakeClock) -> None:
    """`completed_at` is when a job ended, whichever way; run again it has not ended, and begins anew."""
    for state in sorted(FINAL):
        ended = await in_state(store, state, queue=state.name)
        assert ended.completed_at == clock.now()
        clock.advance(5)
        again = await _as_computed(store, clock, ended, rerun(ended))
        assert (again.state, again.completed_at, again.attempt) == (JobState.available, None, 0)
        assert again.scheduled_at == clock.now()
        [job] = (await store.fetch(state.name, 1, node=None)).jobs
        assert (job.id, job.attempt) == (ended.id, 1)
        assert job.claim > again.claim > ended.claim


async def a_patch_changes_what_it_names(store: Store, clock: FakeClock) -> None:
    """Of a waiting or executing job, and nothing else of it; the state least of all."""
    fields: list[dict[str, Any]] = [
        {"progress": Progress(0.25, "a quarter")},
        {"cancel_requested": True},
        {"args_json": '{"n":2}'},
        {"priority": -8},
        {"progress": Progress(1.0), "cancel_requested": False, "args_json": '"all"', "priority": 0},
    ]
    for state in sorted(WAITING | {JobState.executing}):
        job = await in_state(store, state, queue=state.name)
        for changes in fields:
            clock.advance(1)
            job = await _as_computed(store, clock, job, Transition(job, state, patch=Patch(**changes)))


async def an_edit_of_a_waiting_job_is_as_computed(store: Store, clock: FakeClock) -> None:
    """Its queue, attempts, arguments, priority and time; none of them once it runs or has ended."""
    changes = Patch(queue="moved", max_attempts=7, args_json='{"n":3}', priority=-1)
    for state in sorted(WAITING):
        job = await in_state(store, state, queue=state.name)
        for delay in (None, 60, 30, 0):
            clock.advance(1)
            job = await _as_computed(store, clock, job, edit(job, changes, delay))
        assert (job.queue, job.max_attempts, job.args, job.scheduled_at) == ("moved", 7, {"n": 3}, clock.now())


async def an_edited_job_is_claimed_where_and_when_it_is_now(store: Store, clock: FakeClock) -> None:
    """Moved to another queue, it is in that alone; put off, it waits anew; brought forward, it is due."""
    moved = await applied(store, edit(await waiting(store, queue="old"), Patch(queue="new")))
    assert (await store.fetch("old", 10, node=None)).jobs == []
    assert ids((await store.fetch("new", 10, node=None)).jobs) == [moved.id]
    later = await applied(store, edit(await waiting(store, queue="due"), NO_PATCH, 60))
    sooner = await applied(store, edit(await waiting(store, queue="due", delay=600), NO_PATCH, 5))
    moved = await applied(store, edit(await waiting(store, queue="old", delay=5), Patch(queue="due")))
    fetched = await store.fetch("due", 10, node=None)
    assert (fetched.jobs, fetched.next_due) == ([], 5)
    clock.advance(5)
    assert ids((await store.fetch("due", 10, node=None)).jobs) == [sooner.id, moved.id]
    assert (await store.fetch("old", 10, node=None)).jobs == []
    clock.advance(55)
    assert ids((await store.fetch("due", 10, node=None)).jobs) == [later.id]
    for at in (clock.now() + timedelta(seconds=9), clock.now() - timedelta(days=1)):
        job = await waiting(store, queue="at")
        told = await _as_computed(store, clock, job, edit(job, Patch(scheduled_at=at)))
        assert (told.state, told.scheduled_at) == (JobState.scheduled, at)
    assert ids((await store.fetch("at", 10, node=None)).jobs) == [job.id], "what was due long ago is due"


async def an_edit_upon_an_old_record_is_refused(store: Store, clock: FakeClock) -> None:
    """Of two that were decided upon the same record the first counts; so does a claim that came before."""
    job = await waiting(store)
    edited = await applied(store, edit(job, Patch(max_attempts=2)))
    assert await store.apply([edit(job, Patch(queue="other"))]) == [None]
    await store.fetch("default", 1, node=None)
    assert await store.apply([edit(edited, Patch(queue="other"))]) == [None]
    assert (await stored(store, job)).queue == "default"


async def a_claim_forgets_the_progress_of_the_last(store: Store, clock: FakeClock) -> None:
    """Progress belongs to one run, and stays to be read when that run has ended."""
    job = await running(store)
    told = await applied(store, Transition(job, job.state, patch=Patch(progress=Progress(0.5))))
    failed = await settled(store, told, Failed(BOOM))
    assert failed.progress == Progress(0.5)
    assert (await store.fetch("default", 1, node=None)).jobs[0].progress is None


async def a_new_priority_counts_for_the_next_claim(store: Store, clock: FakeClock) -> None:
    """Jobs moved forward or back are claimed at their new place."""
    first, second, third = await store.insert([new(), new(), new(delay=5)])
    await applied(store, Transition(first, first.state, patch=Patch(priority=1)))
    await applied(store, Transition(third, third.state, patch=Patch(priority=-1)))
    clock.advance(5)
    assert ids((await store.fetch("default", 3, node=None)).jobs) == [third.id, second.id, first.id]


async def a_requested_cancellation_ends_cancelled(store: Store, clock: FakeClock) -> None:
    """A waiting job at once; a running one when its run has ended, however it ended."""
    gone = await _as_computed(store, clock, job := await waiting(store), cancel(job, "not needed"))
    assert (gone.state, gone.errors[-1].error) == (JobState.cancelled, "not needed")
    for outcome in (Completed("1"), Failed(BOOM), Snoozed(5), Interrupted(), Lost()):
        asked = await applied(store, cancel(await running(store)))
        assert (asked.state, asked.cancel_requested) == (JobState.executing, True)
        assert (await settled(store, asked, outcome, 5)).state is JobState.cancelled


async def each_job_of_a_batch_takes_its_own_step(store: Store, clock: FakeClock) -> None:
    """Jobs that differ in nothing but their id, settled in one call: none takes what was meant for another."""
    await store.insert([new() for _ in range(5)])
    jobs = (await store.fetch("default", 5, node=None)).jobs
    steps = [decide(job, Failed(Failure("E", f"E: {job.id}")), float(job.id)) for job in jobs]
    answers = await store.apply(steps)
    assert answers == [advance(step.job, step, clock.now()) for step in steps]
    assert await dump(store) == answers
