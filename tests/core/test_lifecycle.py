"""Deciding: pure, total, and closed over the legal transitions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from jobs_async import IllegalTransition, JobOpts, JobState, UniqueStrategy
from jobs_async.core.job import FINAL, LIVE, WAITING, Job
from jobs_async.core.lifecycle import (
    LEGAL,
    Patch,
    Transition,
    advance,
    born,
    cancel,
    claimed,
    decide,
    fits,
    rerun,
)
from jobs_async.core.options import DEFAULTS, NewJob
from jobs_async.core.outcome import (
    Cancelled,
    Completed,
    Discarded,
    Failed,
    Failure,
    Interrupted,
    Lost,
    Snoozed,
)

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(seconds=100)
OOPS = Failure("Oops", "Oops: it broke", ("a.py:1:f",))

outcomes = st.one_of(
    st.builds(Completed, st.sampled_from([None, '"r"', "null"])),
    st.builds(Failed, st.just(OOPS)),
    st.builds(Discarded, st.just(OOPS)),
    st.builds(Cancelled, st.just("why"), st.sampled_from([None, "1"])),
    st.builds(Snoozed, st.floats(0, 1e6)),
    st.builds(Interrupted, st.sampled_from([0.0, 5.0])),
    st.builds(Lost, st.integers(0, 5)),
)
running = st.builds(
    lambda attempt, most, rescues, claim, asked: replace(
        claimed(born(NewJob("w", "{}", max_attempts=most), 7, NOW), "node", NOW),
        attempt=attempt,
        rescues=rescues,
        claim=claim,
        cancel_requested=asked,
    ),
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(0, 9),
    st.integers(1, 2**40),
    st.booleans(),
)


@given(running, outcomes, st.floats(0, 1e5))
def test_every_outcome_of_every_running_job_has_one_legal_transition(job: Job[Any], outcome: Any, delay: float) -> None:
    step = decide(job, outcome, delay)
    after = advance(job, step, LATER)
    assert (JobState.executing, after.state) in LEGAL
    assert after.claim == job.claim, "the fence never goes down, and only claims raise it here"
    assert after.attempt in (job.attempt, job.attempt - 1)
    assert after.completed_at == (LATER if after.state in FINAL else None)
    assert (after.state in FINAL) or after.scheduled_at >= LATER
    if job.cancel_requested:
        assert after.state is JobState.cancelled
    assert decide(job, outcome, delay) == step


@pytest.mark.parametrize(
    ("outcome", "attempt", "state", "left", "at"),
    [
        (Completed('"r"'), 1, JobState.completed, 1, None),
        (Failed(OOPS), 1, JobState.retryable, 1, 9),
        (Failed(OOPS), 2, JobState.discarded, 2, None),
        (Discarded(OOPS), 1, JobState.discarded, 1, None),
        (Cancelled("why"), 1, JobState.cancelled, 1, None),
        (Snoozed(60), 2, JobState.scheduled, 1, 60),
        (Interrupted(), 2, JobState.available, 1, 0),
        (Interrupted(5), 2, JobState.scheduled, 1, 5),
        (Lost(), 1, JobState.available, 1, 0),
        (Lost(), 2, JobState.discarded, 2, None),
    ],
)
def test_what_an_outcome_leads_to(outcome: Any, attempt: int, state: JobState, left: int, at: float | None) -> None:
    job = replace(claimed(born(NewJob("w", "{}", max_attempts=2), 7, NOW), "node", NOW), attempt=attempt)
    after = advance(job, decide(job, outcome, 9), LATER)
    assert (after.state, after.attempt) == (state, left)
    if at is not None:
        assert after.scheduled_at == LATER + timedelta(seconds=at)


def test_a_job_lost_again_backs_off_and_is_given_up() -> None:
    job = claimed(born(NewJob("w", "{}"), 7, NOW), "node", NOW)
    states = []
    for _ in range(4):
        after = advance(job, decide(job, Lost(max_rescues=3), 9), LATER)
        states.append(after.state)
        job = claimed(replace(after, state=JobState.available), "node", LATER) if after.state in WAITING else after
    assert states == [JobState.available, JobState.retryable, JobState.retryable, JobState.discarded]
    assert [error.error for error in job.errors] == ["rescued: node lost"] * 4


def test_no_other_transition_exists() -> None:
    base = born(NewJob("w", "{}"), 7, NOW)
    for source, target in product(JobState, JobState):
        job = replace(base, state=source)
        if (source, target) in LEGAL or (source is target and source in LIVE):
            Transition(job, target)
        else:
            with pytest.raises(IllegalTransition, match="job 7"):
                Transition(job, target)
    assert {target for _, target in LEGAL} == set(JobState) - set()


def test_a_pair_of_state_and_claim_never_comes_back() -> None:
    """So a fence that holds means that nothing but a patch happened in between."""
    job = born(NewJob("w", "{}"), 7, NOW)
    seen = {(job.state, job.claim)}
    for change in (cancel, rerun, cancel, rerun):
        job = advance(job, change(job), NOW)
        assert (job.state, job.claim) not in seen
        seen.add((job.state, job.claim))


def test_an_operator_s_wishes() -> None:
    waiting = born(NewJob("w", "{}", delay=60), 7, NOW)
    execution = claimed(waiting, "node", NOW)
    assert cancel(waiting).target is JobState.cancelled
    asked = cancel(execution)
    assert (asked.target, asked.patch.cancel_requested) == (JobState.executing, True)
    assert advance(execution, asked, NOW).cancel_requested
    for state in FINAL:
        ended = replace(execution, state=state, attempt=5, cancel_requested=True)
        again = advance(ended, rerun(ended), NOW)
        assert (again.state, again.attempt, again.cancel_requested, again.completed_at) == (
            JobState.available,
            0,
            False,
            None,
        )
        with pytest.raises(IllegalTransition):
            cancel(ended)
    for state in (JobState.available, JobState.executing):
        with pytest.raises(IllegalTransition, match="already"):
            rerun(replace(execution, state=state))


@pytest.mark.parametrize("change", [{"id": 8}, {"state": JobState.retryable}, {"claim": 2}, {"cancel_requested": True}])
def test_every_term_of_the_fence_counts(change: dict[str, Any]) -> None:
    job = claimed(born(NewJob("w", "{}"), 7, NOW), "node", NOW)
    assert fits(job, job)
    assert not fits(replace(job, **change), job)
    assert fits(replace(job, priority=9, args_json="[]"), job), "a patch is no move"


def test_only_the_last_twenty_errors_are_kept() -> None:
    job = born(NewJob("w", "{}", max_attempts=50), 7, NOW)
    for _ in range(30):
        job = claimed(replace(job, state=JobState.available), "node", NOW)
        job = advance(job, decide(job, Failed(OOPS)), LATER)
    assert [error.attempt for error in job.errors] == list(range(11, 31))
    first = job.errors[0]
    assert (first.type, first.error, first.frames, first.at, first.node) == (
        "Oops",
        "Oops: it broke",
        ("a.py:1:f",),
        LATER,
        "node",
    )


def test_scheduled_only_when_strictly_in_the_future() -> None:
    def state(**options: Any) -> JobState:
        return born(NewJob("w", "{}", **options), 7, NOW).state

    assert state() is state(delay=0.0) is state(scheduled_at=NOW) is JobState.available
    assert state(scheduled_at=NOW - timedelta(days=900)) is JobState.available
    assert state(delay=1e-6) is state(scheduled_at=NOW + timedelta(microseconds=1)) is JobState.scheduled


def test_a_patch_touches_only_its_fields() -> None:
    job = born(NewJob("w", "{}"), 7, NOW)
    after = advance(job, Transition(job, job.state, patch=Patch(priority=5, args_json="[1]")), LATER)
    assert after == replace(job, priority=5, args_json="[1]", claim=job.claim + 1)
    running = claimed(job, "n", NOW)
    after = advance(running, Transition(running, running.state, patch=Patch(priority=5)), LATER)
    assert after == replace(running, priority=5), "the claim is its runner's"


def test_vector_1_and_2_defaults_and_numbers() -> None:
    opts = JobOpts()
    assert (opts.queue, opts.priority, opts.max_attempts, opts.timeout_seconds) == ("default", 0, 20, 300)
    assert (opts.scheduled_at, opts.unique_key, opts.unique_strategy) == (None, None, UniqueStrategy.IGNORE_NEW)
    new = NewJob("w", "{}")
    assert {name: getattr(new, name) for name in DEFAULTS} == dict(DEFAULTS)
    assert {state.name: int(state) for state in JobState} == {
        "available": 0,
        "executing": 1,
        "completed": 2,
        "retryable": 3,
        "discarded": 4,
        "cancelled": 5,
        "scheduled": 6,
    }


def test_what_is_given_differs_from_the_default_given() -> None:
    mail = JobOpts(queue="mail", delay=60, priority=3)
    assert JobOpts().over(mail).queue == "mail"
    assert JobOpts(queue="default").over(mail).queue == "default"
    assert JobOpts(timeout_seconds=None).over(JobOpts(timeout_seconds=9)).timeout_seconds is None
    at = JobOpts(scheduled_at=NOW).over(mail)
    assert (at.scheduled_at, at.delay, at.priority) == (NOW, None, 3)
    assert JobOpts(priority=1) == JobOpts(priority=1) != JobOpts()
    with pytest.raises(AttributeError):
        _ = opts_typo.retries if (opts_typo := JobOpts()) else None
