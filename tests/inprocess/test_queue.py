"""Queues at their edges: what they refuse, what a job may do to them, whose cancellation it is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from jobs_async import JobsError, OptionError
from jobs_async.inprocess import (
    AsyncJobQueue,
    JobError,
    JobQueue,
    JobReport,
    JobTypeError,
    ObservedJobRunner,
    QueueRunning,
)
from tests.inprocess.support import AsyncNotes, Awaiting, Notes, Plain, failing

QUEUES = [JobQueue, AsyncJobQueue]
GUARD = 20.0


class NoRun:
    name = "no run"


class NoName:
    def run(self) -> None: ...


class NamedByAMethod:
    def name(self) -> str:
        return "method"

    def run(self) -> None: ...


class Unreadable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


@dataclass
class Named:
    """Its name is a property, as the protocol has it."""

    number: int

    @property
    def name(self) -> str:
        return f"named {self.number}"

    def run(self) -> int:
        return self.number


@pytest.mark.parametrize("make", QUEUES)
@pytest.mark.parametrize(
    ("job", "text"),
    [
        (NoRun(), "NoRun has no run method"),
        (NoName(), "NoName has no name"),
        (Plain, "Plain is a class; give an instance"),
        (print, "builtin_function_or_method has no run method"),
        (None, "NoneType has no run method"),
    ],
)
def test_what_is_no_job_is_refused(make: Callable[[], JobQueue | AsyncJobQueue], job: object, text: str) -> None:
    queue = make()
    with pytest.raises(JobTypeError, match=text) as caught:
        queue.push(job)  # type: ignore[arg-type]
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, JobsError)
    assert len(queue) == 0


@pytest.mark.parametrize("make", QUEUES)
@pytest.mark.parametrize("job", [NamedByAMethod(), Plain(""), Plain("x" * 256), Plain("a\nb")])
def test_a_name_that_is_none_is_refused(make: Callable[[], JobQueue | AsyncJobQueue], job: Plain) -> None:
    with pytest.raises(OptionError, match="a job's name must"):
        make().push(job)


def test_an_async_job_is_refused_where_nothing_awaits() -> None:
    queue = JobQueue()
    with pytest.raises(JobTypeError, match="the run method of Awaiting is async; use an AsyncJobQueue"):
        queue.push(Awaiting())
    assert not queue


def test_a_coroutine_nobody_awaits_is_a_failure_and_no_warning() -> None:
    queue = JobQueue()
    queue.push(Plain(does=Awaiting().run))
    (failure,) = queue.run_all().failed
    assert "returned a coroutine" in str(failure.error)


async def test_an_async_queue_awaits_what_a_plain_run_returns() -> None:
    queue, ran = AsyncJobQueue(), list[int]()
    queue.push(Plain(does=Awaiting(does=lambda: ran.append(1)).run))
    assert (await queue.run_all()).is_success
    assert ran == [1]


def test_any_object_with_a_name_and_a_run_is_a_job() -> None:
    queue = JobQueue()
    queue.push(Named(1))
    queue.push(Named(2))
    assert queue.run_all() == JobReport(("named 1", "named 2"))


def test_a_failure_keeps_its_cause_whatever_it_is() -> None:
    queue, error = JobQueue(), KeyError("k")
    for problem in (error, ValueError(), Unreadable(), asyncio.CancelledError("odd")):
        queue.push(Plain(does=failing(problem)))
    failed = queue.run_all().failed
    assert [str(failure.error) for failure in failed] == [
        "KeyError: 'k'",
        "ValueError",
        "Unreadable: (its message could not be read)",
        "CancelledError: odd",
    ]
    assert failed[0].error.__cause__ is error


def test_an_error_of_the_jobs_own_is_kept_as_it_is() -> None:
    queue, error = JobQueue(), JobError("smtp is down")
    queue.push(Plain(does=failing(error)))
    assert queue.run_all().failed[0].error is error


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
async def test_what_ends_the_program_goes_out_and_the_queue_can_run_again(error: type[BaseException]) -> None:
    ran, blame = list[str](), [error()]
    queue, waiting = JobQueue(), AsyncJobQueue()
    for each in (queue, waiting):
        each.push(Plain("deadly", lambda: failing(blame[0])() if blame else None))
        each.push(Plain("after", lambda: ran.append("after")))
    with pytest.raises(error):
        queue.run_all()
    with pytest.raises(error):
        await waiting.run_all()
    assert ran == []
    blame.clear()
    assert queue.run_all().is_success
    assert (await waiting.run_all()).is_success


@pytest.mark.parametrize("make", QUEUES)
async def test_what_a_job_pushes_is_for_the_next_run(make: Callable[[], JobQueue | AsyncJobQueue]) -> None:
    queue = make()
    queue.push(Plain("mother", lambda: queue.push(Plain("child"))))
    assert (await run_all(queue)).completed == ("mother",)
    assert (await run_all(queue)).completed == ("mother", "child")
    assert len(queue) == 3


@pytest.mark.parametrize("make", QUEUES)
async def test_a_job_may_clear_the_queue_it_is_in(make: Callable[[], JobQueue | AsyncJobQueue]) -> None:
    queue = make()
    queue.push(Plain("clearing", queue.clear))
    queue.push(Plain("after"))
    assert (await run_all(queue)).completed == ("clearing", "after")
    assert not queue


@pytest.mark.parametrize("make", QUEUES)
async def test_a_queue_does_not_run_inside_itself(make: Callable[[], JobQueue | AsyncJobQueue]) -> None:
    queue = make()
    queue.push(Plain("nested", queue.run_all))
    for _ in range(2):
        report = await run_all(queue)
        assert isinstance(report.failed[0].error.__cause__, QueueRunning)
        assert str(report.failed[0].error).startswith("QueueRunning: this queue runs its jobs already")


async def test_two_tasks_do_not_run_one_queue_at_once() -> None:
    queue, go = AsyncJobQueue(), asyncio.Event()
    queue.push(Awaiting(does=go.wait))
    async with asyncio.timeout(GUARD), asyncio.TaskGroup() as tasks:
        first = tasks.create_task(queue.run_all())
        await asyncio.sleep(0)
        with pytest.raises(QueueRunning):
            await queue.run_all()
        go.set()
    assert first.result().is_success
    assert (await queue.run_all()).is_success


def test_two_threads_do_not_run_one_queue_at_once() -> None:
    queue, begun, go = JobQueue(), threading.Event(), threading.Event()

    def hold() -> None:
        begun.set()
        go.wait(GUARD)

    queue.push(Plain(does=hold))
    thread = threading.Thread(target=queue.run_all)
    thread.start()
    assert begun.wait(GUARD)
    with pytest.raises(QueueRunning):
        queue.run_all()
    go.set()
    thread.join(GUARD)
    assert queue.run_all().is_success


async def test_the_callers_cancellation_goes_out_and_cancels_the_job() -> None:
    queue, begun, ended = AsyncJobQueue(), asyncio.Event(), list[str]()

    async def wait_long() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    queue.push(Awaiting(does=wait_long))
    queue.push(Plain(does=lambda: ended.append("not this")))
    async with asyncio.timeout(GUARD), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(queue.run_all())
        await begun.wait()
        task.cancel()
    assert task.cancelled()
    assert ended == ["cancelled"]
    assert len(queue) == 2


async def test_a_caller_that_is_cancelled_already_gets_no_report() -> None:
    queue, ran = AsyncJobQueue(), list[str]()
    queue.push(Awaiting(does=asyncio.Event().wait))
    queue.push(Plain(does=lambda: ran.append("after")))

    async def late() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await queue.run_all()

    async with asyncio.timeout(GUARD), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(late())
    assert task.cancelled()
    assert ran == []


async def test_a_job_cannot_keep_the_callers_cancellation_to_itself() -> None:
    queue, begun, ran = AsyncJobQueue(), asyncio.Event(), list[str]()

    async def stubborn() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("not now") from None

    queue.push(Awaiting(does=stubborn))
    queue.push(Plain(does=lambda: ran.append("after")))
    async with asyncio.timeout(GUARD), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(queue.run_all())
        await begun.wait()
        task.cancel()
    assert task.cancelled()
    assert ran == []


@pytest.mark.parametrize("observed", [False, True])
async def test_a_stray_cancellation_is_the_jobs_own_failure(observed: bool) -> None:
    async def stray() -> None:
        lost = asyncio.get_running_loop().create_future()
        lost.cancel()
        await lost

    queue, notes = AsyncJobQueue(), Notes()
    queue.push(Awaiting("stray", stray))
    queue.push(Awaiting("after"))
    report = await (queue.run_all_observed(ObservedJobRunner(notes)) if observed else queue.run_all())
    assert report.completed == ("after",)
    assert [(failure.job, str(failure.error)) for failure in report.failed] == [("stray", "CancelledError")]
    if observed:
        assert notes.order[:2] == ["started stray", "finished stray: failure"]


async def test_a_jobs_own_timeout_is_its_failure() -> None:
    async def hasty() -> None:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()

    queue = AsyncJobQueue()
    queue.push(Awaiting("hasty", hasty))
    queue.push(Awaiting("after"))
    report = await queue.run_all()
    assert [str(failure.error) for failure in report.failed] == ["TimeoutError"]
    assert report.completed == ("after",)


def test_an_observer_that_needs_a_loop_is_refused_before_anything_runs() -> None:
    queue, ran = JobQueue(), list[int]()
    queue.push(Plain(does=lambda: ran.append(1)))
    with pytest.raises(JobTypeError, match="AsyncNotes has async hooks"):
        queue.run_all_observed(ObservedJobRunner(AsyncNotes()))
    assert ran == []
    assert queue.run_all().is_success


async def test_an_async_queue_tells_async_hooks_of_both_kinds_of_jobs() -> None:
    queue, notes = AsyncJobQueue(), AsyncNotes()
    queue.push(Plain())
    queue.push(Awaiting())
    assert (await queue.run_all_observed(ObservedJobRunner(notes))).is_success
    assert notes.order == [
        "started plain",
        "finished plain: success",
        "started awaiting",
        "finished awaiting: success",
    ]


def test_a_name_that_has_become_bad_is_the_failure_of_its_job() -> None:
    job, queue = Plain("good"), JobQueue()
    queue.push(job)
    job.name = ""
    report = queue.run_all_observed(ObservedJobRunner(Notes()))
    assert report.failed[0].job == "good"
    assert "a job's name must be" in str(report.failed[0].error)


def test_reports_are_values() -> None:
    report = JobReport(("a",))
    assert report == JobReport(completed=("a",), failed=())
    with pytest.raises(AttributeError):
        report.completed = ()  # type: ignore[misc]
    assert repr(JobQueue()) == "<JobQueue: 0 jobs>"


async def run_all(queue: JobQueue | AsyncJobQueue) -> JobReport:
    return queue.run_all() if isinstance(queue, JobQueue) else await queue.run_all()
