"""The page of nidus-jobs, example by example, and what its acceptance vector asks for."""

from __future__ import annotations

import logging

import pytest

from jobs_async.inprocess import (
    AsyncJobQueue,
    Finished,
    JobError,
    JobFailure,
    JobQueue,
    JobResultStatus,
    ObservedJobContext,
    ObservedJobRunner,
    Started,
    job_observer_channel,
)
from tests.inprocess.support import Awaiting, Notes, Plain, failing

log = logging.getLogger("tests.inprocess")


class SendDigest:
    name = "send_digest"

    def run(self) -> None:
        return None


class SendDigestAsync:
    name = "send_digest"

    async def run(self) -> None:
        return None


class MetricsObserver:
    def on_job_started(self, context: ObservedJobContext) -> None:
        log.info("job.name=%s job.run_id=%s", context.job_name, context.run_id)

    def on_job_finished(self, context: ObservedJobContext, status: JobResultStatus) -> None:
        assert context.duration is not None
        log.info("job.name=%s status=%s duration_ms=%d", context.job_name, status, context.duration * 1000)


def test_a_queue_runs_what_was_pushed() -> None:
    queue = JobQueue()
    assert not queue
    queue.push(SendDigest())
    assert len(queue) == 1
    report = queue.run_all()
    assert report.is_success
    assert report.completed == ("send_digest",)


async def test_an_async_queue_does_too() -> None:
    queue = AsyncJobQueue()
    queue.push(SendDigestAsync())
    report = await queue.run_all()
    assert report.is_success
    assert report.completed == ("send_digest",)


def test_a_runner_tells_its_observer(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="tests.inprocess")
    runner = ObservedJobRunner(MetricsObserver(), timer=iter([0.0, 1.0, 1.25]).__next__).context(
        "request_id", "req-123"
    )
    runner.with_run_ids(lambda: "run-1").run(SendDigest())
    assert caplog.messages == [
        "job.name=send_digest job.run_id=run-1",
        "job.name=send_digest status=success duration_ms=250",
    ]


def test_a_channel_takes_the_events_elsewhere() -> None:
    observer, receiver = job_observer_channel()
    ObservedJobRunner(observer).run(SendDigest())
    told = []
    for event in receiver.try_iter():
        match event:
            case Started(context):
                told.append(f"started {context.job_name}")
            case Finished(context, status):
                told.append(f"finished {context.job_name} {status}")
    assert told == ["started send_digest", "finished send_digest success"]


def test_vector_16_of_a_sync_queue() -> None:
    queue, ran = JobQueue(), list[str]()
    queue.push(Plain("first", lambda: ran.append("first")))
    queue.push(Plain("broken", failing(ValueError("no"))))
    queue.push(Plain("last", lambda: ran.append("last")))
    for _ in range(2):
        report = queue.run_all()
        assert report.completed == ("first", "last")
        assert [(failure.job, str(failure.error)) for failure in report.failed] == [("broken", "ValueError: no")]
        assert not report.is_success
    assert ran == ["first", "last"] * 2
    queue.clear()
    assert len(queue) == 0
    assert queue.run_all().is_success


async def test_vector_16_of_an_async_queue() -> None:
    queue, ran = AsyncJobQueue(), list[str]()
    queue.push(Awaiting("first", lambda: ran.append("first")))
    queue.push(Plain("broken", failing(JobError("smtp is down"))))
    queue.push(Awaiting("last", lambda: ran.append("last")))
    for _ in range(2):
        report = await queue.run_all()
        assert report.completed == ("first", "last")
        assert [(failure.job, str(failure.error)) for failure in report.failed] == [("broken", "smtp is down")]
    assert ran == ["first", "last"] * 2
    queue.clear()
    assert len(queue) == 0
    assert (await queue.run_all()).is_success


def test_vector_16_of_an_observer() -> None:
    notes, queue = Notes(), JobQueue()
    queue.push(Plain("good"))
    queue.push(Plain("bad", failing(ValueError("no"))))
    report = queue.run_all_observed(ObservedJobRunner(notes))
    assert notes.order == ["started good", "finished good: success", "started bad", "finished bad: failure"]
    assert report.completed == ("good",)
    assert [failure.job for failure in report.failed] == ["bad"]
    assert isinstance(report.failed[0], JobFailure)


async def test_vector_16_of_a_lost_receiver() -> None:
    observer, receiver = job_observer_channel()
    runner = ObservedJobRunner(observer)
    del receiver
    assert runner.run(Plain(does=lambda: 7)) == 7
    assert await runner.run_async(Awaiting(does=lambda: 7)) == 7


async def test_plain_runs_tell_nobody(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    queue, waiting = JobQueue(), AsyncJobQueue()
    for each in (queue, waiting):
        each.push(Plain("bad", failing(ValueError("no"))))
    queue.run_all()
    await waiting.run_all()
    assert [record for record in caplog.records if record.name.startswith("jobs_async")] == []
