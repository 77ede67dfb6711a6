"""What must be true of every world, whatever happened in it. Each function names what was broken, and where."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import combinations, product
from typing import Any

from jobs_async import Job
from jobs_async.core.job import DEFERRED, FINAL, LIVE, JobState
from jobs_async.core.lifecycle import LEGAL
from tests.simulation.deeds import MAX_LIMIT
from tests.simulation.ledger import NEVER, Change, Ledger, Run, key
from tests.simulation.process import LEASE, RESCUE, STOP_WITHIN

Invariant = Callable[[Ledger], Iterator[str]]

AT_ONCE = 1.0
"""Seconds; a poll comes after four and a half at the earliest."""
MOVES = LEGAL | set(product(DEFERRED, [JobState.executing]))
"""A fetch makes a job that is due available, and claims it in the same call."""
FAILED = {JobState.retryable, JobState.discarded}
OUTCOMES = {
    "returned": {JobState.completed},
    "Snooze": {JobState.scheduled},
    "Discard": {JobState.discarded},
    "Cancel": {JobState.cancelled},
    "CancelledError": FAILED | {JobState.available},
}
"""What becomes of a job; whatever else its handler raises, it has failed. A stop hands back what it cuts."""


def i1_every_job_ends(ledger: Ledger) -> Iterator[str]:
    """Whatever was stored reaches a final state, unless an operator deleted it."""
    for job in ledger.rows.values():
        if job.state not in FINAL:
            yield f"job {job.id} is still {job.state}"


def i2_what_is_completed_has_returned(ledger: Ledger) -> Iterator[str]:
    """And under the very claim that completed it."""
    returned = {key(run.job) for run in ledger.runs if run.end == "returned"}
    for change in ledger.changes:
        job = change.after
        if job is not None and job.state is JobState.completed and key(job) not in returned:
            yield f"job {job.id} is completed under claim {job.claim}, whose handler never returned"


def i3_each_run_has_a_claim_of_its_own(ledger: Ledger) -> Iterator[str]:
    """So there are no more runs than claims; it is the claim of its node, and of the attempt that was counted."""
    claims = {}
    for change, job in _claims(ledger):
        claims[key(job)] = job
        if not change.lease_held:
            yield f"job {job.id} was claimed by {change.by}, which counted as dead"
        if job.attempt > job.max_attempts:
            yield f"job {job.id} was claimed for attempt {job.attempt} of {job.max_attempts}"
    seen: set[tuple[int, int]] = set()
    for run in ledger.runs:
        claimed = claims.get(key(run.job))
        if key(run.job) in seen:
            yield f"job {run.job.id} ran twice under claim {run.job.claim}"
        elif claimed is None:
            yield f"job {run.job.id} ran under claim {run.job.claim}, which nobody had made"
        elif ledger.processes[claimed.node] != run.process:
            yield f"job {run.job.id} ran in {run.process}, which had not claimed it"
        elif claimed.attempt != run.job.attempt:
            yield f"job {run.job.id} ran as attempt {run.job.attempt} and was counted as {claimed.attempt}"
        seen.add(key(run.job))


def i4_runs_overlap_only_where_the_first_was_lost(ledger: Ledger) -> Iterator[str]:
    """Its lease had run out, or its unique key was taken over; any other claim lasts as long as its handler."""
    ends = {key(job): change for change, job in _ends_of_claims(ledger)}
    by_job: defaultdict[int, list[Run]] = defaultdict(list)
    for run in ledger.runs:
        by_job[run.job.id].append(run)
        end = ends.get(key(run.job))
        if end is not None and end.at < run.ended and not _is_lost(end):
            yield f"job {run.job.id}: claim {run.job.claim} ended before its handler did"
    for runs in by_job.values():
        for first, second in combinations(runs, 2):
            end = ends.get(key(first.job))
            if second.began < first.ended and (end is None or not _is_lost(end)):
                yield f"job {first.job.id} ran under claims {first.job.claim} and {second.job.claim} at once"


def _is_lost(end: Change) -> bool:
    return end.is_taken_over or not end.lease_held


def i5_the_highest_claim_has_the_last_word(ledger: Ledger) -> Iterator[str]:
    """A row moves as the life cycle knows, its claim never goes down, and only the node that has it settles it."""
    highest: defaultdict[int, int] = defaultdict(int)
    for change in ledger.changes:
        before, after = change.before, change.after
        if before is not None and after is not None:
            if after.claim < before.claim:
                yield f"job {after.id} went from claim {before.claim} back to {after.claim}"
            if after.state is not before.state and (before.state, after.state) not in MOVES:
                yield f"job {after.id} went from {before.state} to {after.state}"
        if after is not None:
            highest[after.id] = max(highest[after.id], after.claim)
    for change, job in _ends_of_claims(ledger):
        if change.after is None:
            yield f"job {job.id} was deleted while {ledger.processes[job.node]} had it"
        elif change.by != ledger.processes[job.node] and not _is_lost(change):
            yield f"job {job.id} was taken by {change.by} from {ledger.processes[job.node]}, whose lease held"
    for run in ledger.runs:
        if run.job.claim > highest[run.job.id]:
            yield f"job {run.job.id} ran under claim {run.job.claim}, its row got no further than {highest[run.job.id]}"


def i6_a_key_belongs_to_one_job(ledger: Ledger) -> Iterator[str]:
    """A unique key to one live job at any time, an idempotency key to one that is stored."""
    holders: defaultdict[str, set[int]] = defaultdict(set)
    for change in ledger.changes:
        job = change.after or change.before
        assert job is not None
        is_live = change.after is not None and change.after.state in LIVE
        for name, holds in (
            (job.unique_key and f"unique {job.unique_key}", is_live),
            (job.idempotency_key and f"{job.worker} {job.idempotency_key}", change.after is not None),
        ):
            if name:
                (holders[name].add if holds else holders[name].discard)(job.id)
                if len(holders[name]) > 1:
                    yield f"{name!r} belongs to jobs {sorted(holders[name])} at {change.at:.3f}"


def i8_no_job_stays_with_a_dead_node(ledger: Ledger) -> Iterator[str]:
    """Two leases and a sweep after its lease ran out, or the storm was over, all that it had is taken from it."""
    ends = {key(job): change.at for change, job in _ends_of_claims(ledger)}
    for _, job in _claims(ledger):
        seconds = ends.get(key(job), ledger.over_at) - max(ledger.leases[job.node], ledger.calm_at)
        if seconds > 2 * LEASE + RESCUE:
            yield f"job {job.id} stayed with {ledger.processes[job.node]} for {seconds:.0f} s after its death"


def i9_nothing_is_left(ledger: Ledger) -> Iterator[str]:
    """When the last Supervisor has stopped none of its tasks is there, and no node."""
    yield from ledger.left


def what_is_stored_is_what_the_handler_did(ledger: Ledger) -> Iterator[str]:
    """Unless it was asked to cancel, ran out of time, or lost its claim."""
    runs = {key(run.job): run for run in ledger.runs}
    for change, job in _ends_of_claims(ledger):
        run = runs.get(key(job))
        if run is None or change.after is None or _is_lost(change):
            continue
        allowed = {JobState.cancelled} | OUTCOMES.get(run.end, FAILED)
        if job.timeout_seconds is not None and run.ended - run.began >= job.timeout_seconds:
            allowed |= FAILED
        if change.after.state not in allowed:
            yield f"job {job.id} ended with {run.end} under claim {job.claim}, and became {change.after.state}"


def a_cancellation_that_was_accepted_is_kept(ledger: Ledger) -> Iterator[str]:
    """However the run ends that was asked to."""
    for change, job in _ends_of_claims(ledger):
        if job.cancel_requested and change.after is not None and change.after.state is not JobState.cancelled:
            yield f"job {job.id} was to be cancelled and became {change.after.state}"


def an_enqueue_tells_the_truth(ledger: Ledger) -> Iterator[str]:
    """What was accepted is stored, what was refused is not, any other error leaves it open; and nothing twice."""
    born: defaultdict[str, list[int]] = defaultdict(list)
    for change in ledger.changes:
        if change.before is None and change.after is not None:
            born[change.after.tags[0]].append(change.after.id)
    stored = {job_id for ids in born.values() for job_id in ids}
    for call in ledger.calls:
        for tag in call.tags:
            if call.answer == "refused" and tag in born:
                yield f"{tag} was refused and is stored as jobs {born[tag]}"
            if len(born[tag]) > 1:
                yield f"{tag} is stored as jobs {born[tag]}"
        for tag, job in zip(call.tags, call.jobs, strict=False):
            if job.id not in stored or (not job.duplicate and born[tag] != [job.id]):
                yield f"{tag} was accepted as job {job.id} and is stored as jobs {born[tag]}"
    for tag in born.keys() - {tag for call in ledger.calls for tag in call.tags}:
        yield f"{tag} is stored and nobody asked for it"


def who_waits_is_told_what_is(ledger: Ledger) -> Iterator[str]:
    """Of ends only, and as they are stored."""
    ends = {
        (key(change.after), change.after.state): change.at
        for change in reversed(ledger.changes)
        if change.after is not None and change.after.state in FINAL
    }
    for at, job in ledger.waits:
        if ends.get((key(job), job.state), NEVER) > at:
            yield f"somebody was told at {at:.3f} that job {job.id} is {job.state} under claim {job.claim}"


def no_node_runs_more_than_it_may(ledger: Ledger) -> Iterator[str]:
    """Of each queue, at the same time."""
    beside: defaultdict[tuple[str | None, str], list[Run]] = defaultdict(list)
    for run in ledger.runs:
        runs = beside[run.job.node, run.job.queue]
        runs[:] = [other for other in runs if other.ended > run.began] + [run]
        if len(runs) > MAX_LIMIT:
            yield f"{run.process} runs jobs {[run.job.id for run in runs]} of queue {run.job.queue} at once"


def a_stop_is_bounded(ledger: Ledger) -> Iterator[str]:
    """By the time for running jobs and six seconds, whatever the store does."""
    for process, seconds in ledger.stops:
        if seconds > STOP_WITHIN:
            yield f"{process} took {seconds:.1f} s to stop"


def what_is_enqueued_beside_an_idle_runner_starts_at_once(ledger: Ledger) -> Iterator[str]:
    """No wake-up is lost: it does not wait for the next poll."""
    started: dict[int, float] = {}
    for change, job in _claims(ledger):
        started.setdefault(job.id, change.at)
    for job_id, at in ledger.probes.items():
        if started.get(job_id, NEVER) > at + AT_ONCE:
            yield f"job {job_id} was accepted at {at:.3f} and claimed at {started.get(job_id, NEVER):.3f}"


def nothing_unexpected_happens(ledger: Ledger) -> Iterator[str]:
    """No loop ends on a bug, no caller meets an error that is not of the house, no error is left lying about."""
    yield from ledger.surprises


INVARIANTS: tuple[Invariant, ...] = (
    i1_every_job_ends,
    i2_what_is_completed_has_returned,
    i3_each_run_has_a_claim_of_its_own,
    i4_runs_overlap_only_where_the_first_was_lost,
    i5_the_highest_claim_has_the_last_word,
    i6_a_key_belongs_to_one_job,
    i8_no_job_stays_with_a_dead_node,
    i9_nothing_is_left,
    what_is_stored_is_what_the_handler_did,
    a_cancellation_that_was_accepted_is_kept,
    an_enqueue_tells_the_truth,
    who_waits_is_told_what_is,
    no_node_runs_more_than_it_may,
    a_stop_is_bounded,
    what_is_enqueued_beside_an_idle_runner_starts_at_once,
    nothing_unexpected_happens,
)


def _claims(ledger: Ledger) -> Iterator[tuple[Change, Job[Any]]]:
    """Each claim and its record."""
    for change in ledger.changes:
        before, after = change.before, change.after
        if (
            after is not None
            and after.state is JobState.executing
            and (before is None or before.state is not after.state)
        ):
            yield change, after


def _ends_of_claims(ledger: Ledger) -> Iterator[tuple[Change, Job[Any]]]:
    """Each end of a claim, and its last record."""
    for change in ledger.changes:
        before, after = change.before, change.after
        if (
            before is not None
            and before.state is JobState.executing
            and (after is None or after.state is not before.state)
        ):
            yield change, before
