"""What each event does to the metrics."""

from __future__ import annotations

import threading
from collections import deque
from datetime import timedelta
from typing import Any, ClassVar

import pytest

from jobs_async import (
    Event,
    JobCancelled,
    JobCompleted,
    JobDiscarded,
    JobDuplicate,
    JobEnqueued,
    JobFailed,
    JobInterrupted,
    JobRescued,
    JobSlow,
    JobSnoozed,
    JobStarted,
    JobStuck,
    LeaseLost,
    LoopStalled,
    QueuePaused,
    QueueResumed,
    StaleSettlement,
    StoreFailing,
    StoreRecovered,
    Telemetry,
)
from jobs_async.observe import Observability
from jobs_async.observe.families import OVERFLOW
from jobs_async.observe.fold import OUTCOMES, EventFold
from jobs_async.observe.metrics import Metrics
from tests.observe.support import NOON, CountingLock, job, read


def told(*events: Event, per_job: bool = True) -> dict[tuple[str, ...], float]:
    """Every number that is not 0 after these events, by its name and labels; of histograms the count and the sum."""
    metrics = Metrics(per_job=per_job)
    fold = EventFold(metrics)
    for event in events:
        fold(event)
    return {
        (family.name + sample.suffix, *sample.labels.values()): sample.value
        for family in metrics
        for sample in family.samples()
        if sample.suffix != "_bucket" and sample.value
    }


def ended(kind: Any, **fields: Any) -> Any:
    return kind(job=job(), at=NOON, **fields)


QUEUE_AND_WORKER = ("default", "resize")
RAN = {("jobs_run_seconds_count", *QUEUE_AND_WORKER): 1, ("jobs_run_seconds_sum", *QUEUE_AND_WORKER): 0.25}


def finished(outcome: str) -> dict[tuple[str, ...], float]:
    return {("jobs_finished_total", *QUEUE_AND_WORKER, outcome): 1}


EVENTS: list[tuple[Event, dict[tuple[str, ...], float]]] = [
    (ended(JobEnqueued), {("jobs_enqueued_total", *QUEUE_AND_WORKER): 1}),
    (ended(JobEnqueued, in_transaction=True), {("jobs_enqueued_total", *QUEUE_AND_WORKER): 1}),
    (ended(JobDuplicate), {("jobs_duplicates_total", *QUEUE_AND_WORKER): 1}),
    (
        ended(JobStarted),
        {("jobs_wait_seconds_count", *QUEUE_AND_WORKER): 1, ("jobs_wait_seconds_sum", *QUEUE_AND_WORKER): 2},
    ),
    (ended(JobCompleted, duration_ms=250), finished("completed") | RAN),
    (ended(JobCompleted), finished("completed") | {("jobs_run_seconds_count", *QUEUE_AND_WORKER): 1}),
    (ended(JobFailed, duration_ms=250, error_msg="no"), finished("failed") | RAN),
    (ended(JobDiscarded, duration_ms=250), finished("discarded") | RAN),
    (ended(JobDiscarded), finished("discarded")),
    (ended(JobCancelled, duration_ms=250), finished("cancelled") | RAN),
    (ended(JobCancelled), finished("cancelled")),
    (ended(JobSnoozed, seconds=5), finished("snoozed")),
    (ended(JobInterrupted), finished("interrupted")),
    (ended(JobRescued), finished("rescued")),
    (ended(StaleSettlement), finished("stale")),
    (ended(JobStuck, cause="timeout"), {("jobs_stuck_total", *QUEUE_AND_WORKER): 1}),
    (ended(JobSlow, seconds=61), {("jobs_slow_total", *QUEUE_AND_WORKER): 1}),
    (QueuePaused(queue="default", at=NOON), {}),
    (QueueResumed(queue="default", at=NOON), {}),
    (LeaseLost(node="a", new_node="b", at=NOON), {("jobs_lease_lost_total",): 1}),
    (
        LoopStalled(seconds=2.5, blocker="job 7", at=NOON),
        {("jobs_loop_stall_seconds_count",): 1, ("jobs_loop_stall_seconds_sum",): 2.5},
    ),
    (StoreFailing(error_msg="away", at=NOON), {("jobs_store_failing",): 1}),
    (StoreRecovered(seconds=3, at=NOON), {}),
]


@pytest.mark.parametrize(("event", "numbers"), EVENTS, ids=[event.type for event, _ in EVENTS])
def test_an_event_is_counted(event: Event, numbers: dict[tuple[str, ...], float]) -> None:
    assert told(event) == numbers


def test_every_kind_of_event_is_tried_above() -> None:
    def kinds(base: type[Event]) -> set[type[Event]]:
        found = {base}.union(*(kinds(kind) for kind in base.__subclasses__()))
        return {kind for kind in found if kind.__module__ == Event.__module__}

    assert {kind for kind in kinds(Event) if not kind.__subclasses__()} == {type(event) for event, _ in EVENTS}


def test_an_event_of_your_own_is_none_of_ours() -> None:
    class CacheCleared(Event, frozen=True, kw_only=True):
        type: ClassVar[str] = "cache_cleared"

    assert told(CacheCleared(at=NOON)) == {}


@pytest.mark.parametrize(
    ("fields", "waited"),
    [
        ({"scheduled_at": NOON + timedelta(seconds=1)}, 1.0),
        ({"scheduled_at": NOON - timedelta(days=1)}, 2.0),
        ({"scheduled_at": NOON + timedelta(seconds=9)}, 0.0),
    ],
    ids=["since it was due", "not before it was stored", "never less than nothing"],
)
def test_a_job_waits_from_when_it_is_due_and_stored(fields: dict[str, Any], waited: float) -> None:
    numbers = told(JobStarted(job=job(**fields), at=NOON))
    assert numbers["jobs_wait_seconds_count", *QUEUE_AND_WORKER] == 1
    assert numbers.get(("jobs_wait_seconds_sum", *QUEUE_AND_WORKER), 0) == waited


def test_only_the_first_attempt_waits() -> None:
    assert told(JobStarted(job=job(attempt=2), at=NOON)) == {}


def test_what_can_go_wrong_is_there_at_0_once_a_worker_has_started() -> None:
    metrics = Metrics()
    EventFold(metrics)(JobStarted(job=job(attempt=2), at=NOON))
    assert read(metrics.finished) == {(*QUEUE_AND_WORKER, outcome): 0 for outcome in OUTCOMES.values()}
    assert read(metrics.slow) == read(metrics.stuck) == {QUEUE_AND_WORKER: 0}


def test_the_store_fails_until_it_has_recovered() -> None:
    failing, recovered = StoreFailing(error_msg="away", at=NOON), StoreRecovered(seconds=1, at=NOON)
    assert told(failing, recovered) == {}
    assert told(failing, recovered, StoreFailing(error_msg="again", at=NOON)) == {("jobs_store_failing",): 1}


def test_that_the_store_works_is_told_from_the_beginning() -> None:
    metrics = Metrics()
    EventFold(metrics)
    assert read(metrics.store_failing) == {(): 0}


def test_without_job_metrics_jobs_are_not_counted_but_the_runtime_is() -> None:
    numbers = told(*(event for event, _ in EVENTS if not isinstance(event, StoreRecovered)), per_job=False)
    assert {name for name, *_ in numbers} == {
        "jobs_lease_lost_total",
        "jobs_loop_stall_seconds_count",
        "jobs_loop_stall_seconds_sum",
        "jobs_store_failing",
    }


async def test_attached_twice_it_counts_once() -> None:
    observability = Observability("shop").prometheus()
    telemetry = Telemetry()
    for _ in range(3):
        telemetry.attach(observability.telemetry_handler())
    for _ in range(2):
        await telemetry.emit(JobEnqueued(job=job(), at=NOON))
    assert observability.metrics is not None
    assert read(observability.metrics.enqueued) == {QUEUE_AND_WORKER: 2}


def test_many_events_at_once_count_as_they_do_one_by_one() -> None:
    events = [event for event, _ in EVENTS]
    together, apart = Metrics(), Metrics()
    EventFold(together).call_with_all(events)
    fold = EventFold(apart)
    for event in events:
        fold(event)
    assert [list(family.samples()) for family in together] == [list(family.samples()) for family in apart]
    assert any(sample.value for family in together for sample in family.samples())


async def test_attached_twice_it_counts_many_events_once() -> None:
    metrics = Metrics()
    fold, telemetry = EventFold(metrics), Telemetry()
    for _ in range(2):
        telemetry.attach(fold)
    for _ in range(2):
        await telemetry.deliver(deque(ended(JobEnqueued) for _ in range(3)))
    assert read(metrics.enqueued) == {QUEUE_AND_WORKER: 6}


def test_attached_twice_it_counts_once_in_each_of_two_threads() -> None:
    """They take turns: what one thread was told in between does not make the other count twice."""
    metrics = Metrics()
    fold = EventFold(metrics)
    here, there = (JobEnqueued(job=job(), at=NOON) for _ in range(2))

    def elsewhere() -> None:
        thread = threading.Thread(target=fold, args=[there])
        thread.start()
        thread.join()

    fold(here)
    elsewhere()
    fold(here)
    assert read(metrics.enqueued) == {QUEUE_AND_WORKER: 2}


class Counting(dict[Any, Any]):
    """A dictionary that counts how often it is asked for a key."""

    asked = 0

    def get(self, *args: Any) -> Any:
        self.asked += 1
        return super().get(*args)


def test_a_job_costs_a_lookup_and_a_lock_an_event_once_its_worker_is_known() -> None:
    metrics = Metrics()
    fold = EventFold(metrics)

    def live() -> None:
        for event in (ended(JobEnqueued), ended(JobStarted), ended(JobCompleted, duration_ms=3)):
            fold(event)

    live()
    tables = [Counting(family._values) for family in metrics]
    for family, table in zip(metrics, tables, strict=True):
        family._values = table
    workers: Any = Counting(fold._workers)
    fold._workers = workers
    lock: Any = CountingLock()
    fold._lock = lock
    live()
    assert (lock.taken, sum(table.asked for table in tables), workers.asked) == (3, 1, 2)


def test_memory_does_not_grow_with_workers_beyond_the_limit() -> None:
    metrics = Metrics(max_series=2)
    fold = EventFold(metrics)
    for number in range(100):
        for kind in (JobEnqueued, JobStarted, JobCompleted):
            fold(kind(job=job(worker=f"w{number}"), at=NOON))
    assert len(fold._workers) == 2
    assert read(metrics.enqueued) == {("default", "w0"): 1, ("default", "w1"): 1, (OVERFLOW, OVERFLOW): 98}
    completed = {key: number for key, number in read(metrics.finished).items() if number}
    assert completed == {(*who, "completed"): number for who, number in read(metrics.enqueued).items()}
