"""When the entries of cron ticked and succeeded last, as events tell."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from jobs_async import Event, JobCompleted, JobEnqueued, JobFailed, Telemetry
from jobs_async.core import codec
from jobs_async.core.job import Job
from jobs_async.observe import Observability
from jobs_async.observe.fold import EventFold
from jobs_async.observe.metrics import Metrics
from tests.observe.support import NOON, job, read, value
from tests.runtime.support import World, virtual

TICK = NOON - timedelta(minutes=1)


def ticked(entry: object = "nightly", at: object = TICK.isoformat(), **fields: Any) -> Job[Any]:
    """A job that says of which tick it is."""
    return job(meta_json=codec.dumps({"cron": entry, "cron_at": at}), **fields)


def times(*events: Event, **settings: Any) -> tuple[dict[tuple[str, ...], float], dict[tuple[str, ...], float]]:
    """The last ticks and the last successes after these."""
    metrics = Metrics(**settings)
    fold = EventFold(metrics)
    for event in events:
        fold(event)
    return read(metrics.cron_tick), read(metrics.cron_success)


def enqueued(job: Job[Any]) -> JobEnqueued:
    return JobEnqueued(job=job, at=NOON)


def completed(job: Job[Any]) -> JobCompleted:
    return JobCompleted(job=job, at=NOON)


def test_a_tick_is_known_when_its_job_is_stored_and_no_success_yet() -> None:
    assert times(enqueued(ticked())) == ({("nightly",): TICK.timestamp()}, {("nightly",): 0})


def test_a_success_is_when_the_job_was_completed() -> None:
    ended = completed(ticked(completed_at=NOON))
    assert times(ended) == ({}, {("nightly",): NOON.timestamp()})
    assert times(enqueued(ticked()), ended)[1] == {("nightly",): NOON.timestamp()}


def test_the_latest_counts_whatever_the_order() -> None:
    late, early = (ticked(at=at.isoformat(), completed_at=at) for at in (NOON, TICK))
    events = [enqueued(late), enqueued(early), completed(late), completed(early)]
    assert times(*events) == ({("nightly",): NOON.timestamp()}, {("nightly",): NOON.timestamp()})


def test_entries_are_told_apart_and_failures_are_no_success() -> None:
    failed = JobFailed(job=ticked("hourly", completed_at=NOON), at=NOON)
    ticks, successes = times(enqueued(ticked()), enqueued(ticked("hourly")), failed)
    assert set(ticks) == set(successes) == {("nightly",), ("hourly",)}
    assert set(successes.values()) == {0}


def test_a_job_that_nobody_ticked_is_none_of_an_entry() -> None:
    plain = job(completed_at=NOON)
    assert times(enqueued(plain), completed(plain)) == ({}, {})


@pytest.mark.parametrize(("entry", "at"), [(7, TICK.isoformat()), ("nightly", 7), ("nightly", "soon"), ("nightly", "")])
def test_metadata_that_only_looks_like_it_is_passed_over(entry: object, at: object) -> None:
    forged = ticked(entry, at, completed_at=NOON)
    assert times(enqueued(forged), completed(forged)) == ({}, {})


def test_without_job_metrics_entries_are_told_all_the_same() -> None:
    ticks, successes = times(enqueued(ticked()), completed(ticked(completed_at=NOON)), per_job=False)
    assert (set(ticks), set(successes)) == ({("nightly",)}, {("nightly",)})


def test_beyond_max_series_entries_share_the_overflow() -> None:
    ticks, _ = times(enqueued(ticked("a")), enqueued(ticked("b")), enqueued(ticked("c")), max_series=1)
    assert set(ticks) == {("a",), ("<overflow>",)}


@virtual
async def test_the_jobs_of_a_supervisor_s_entries_are_told_of(world: World) -> None:
    observability = Observability("shop").prometheus()
    telemetry = Telemetry()
    telemetry.attach(observability.telemetry_handler())
    async with world.supervisor(telemetry=telemetry) as jobs:

        @jobs.cron("* * * * *")
        async def beat() -> None: ...

        before = world.clock.now()
        await world.seen.wait(JobCompleted)
    text = observability.render()
    tick = datetime.fromtimestamp(value(text, "jobs_cron_last_tick_timestamp_seconds", entry="beat"), UTC)
    assert timedelta() <= tick - before <= timedelta(minutes=1)
    assert tick.second == 0
    assert value(text, "jobs_cron_last_success_timestamp_seconds", entry="beat") >= tick.timestamp()
