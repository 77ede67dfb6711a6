"""Observed runs: what they hand on, what they tell, and that telling harms nothing."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import FrozenInstanceError
from typing import Any, assert_type

import pytest

from jobs_async import OptionError
from jobs_async.inprocess import (
    JobError,
    JobObserver,
    JobResultStatus,
    JobTypeError,
    NoopObserver,
    ObservedJobContext,
    ObservedJobRunner,
    current_run,
)
from tests.inprocess.support import AsyncNotes, Awaiting, Notes, Plain, failing

GUARD = 20.0


class Count:
    name = "count"

    def run(self) -> int:
        return 7


class CountAsync:
    name = "count"

    async def run(self) -> int:
        return 7


class Falling:
    """An observer both of whose hooks raise."""

    def on_job_started(self, context: ObservedJobContext) -> None:
        raise RuntimeError("started")

    def on_job_finished(self, context: ObservedJobContext, status: JobResultStatus) -> None:
        raise RuntimeError("finished")


class FallingAsync:
    """The same with async hooks, one of which cancels itself."""

    async def on_job_started(self, context: ObservedJobContext) -> None:
        raise RuntimeError("started")

    async def on_job_finished(self, context: ObservedJobContext, status: JobResultStatus) -> None:
        raise asyncio.CancelledError


class Disguised(Notes):
    """An observer whose hooks do not look async, and are."""

    def on_job_started(self, context: ObservedJobContext) -> Any:
        return later(super().on_job_started, context)

    def on_job_finished(self, context: ObservedJobContext, status: JobResultStatus) -> Any:
        return later(super().on_job_finished, context, status)


async def later(hook: Callable[..., object], *args: object) -> None:
    hook(*args)


async def run(runner: ObservedJobRunner, job: Plain | Awaiting) -> object:
    """By whichever way fits the job."""
    return runner.run(job) if isinstance(job, Plain) else await runner.run_async(job)


BOTH = pytest.mark.parametrize("make", [Plain, Awaiting])


async def test_results_keep_their_types() -> None:
    runner = ObservedJobRunner()
    assert assert_type(runner.run(Count()), int) == 7
    assert assert_type(await runner.run_async(CountAsync()), int) == 7
    assert assert_type(await runner.run_async(Count()), int) == 7


@BOTH
async def test_errors_come_out_unchanged(make: type[Plain | Awaiting]) -> None:
    for error in (ValueError("no"), JobError("no"), KeyboardInterrupt()):
        notes = Notes()
        with pytest.raises(type(error)) as caught:
            await run(ObservedJobRunner(notes), make(does=failing(error)))
        assert caught.value is error
        assert caught.value.__cause__ is None
        assert notes.finished[0][1] is JobResultStatus.FAILURE


@BOTH
async def test_every_run_has_an_id_and_its_own_context(make: type[Plain | Awaiting]) -> None:
    notes, clock = Notes(), iter(range(100))
    runner = ObservedJobRunner(notes, timer=lambda: next(clock) ** 2)
    job = make("job")
    await run(runner, job)
    await run(runner, job)
    first, second = notes.started
    assert first.run_id != second.run_id
    assert all(len(context.run_id) == 32 and int(context.run_id, 16) for context in notes.started)
    assert (first.job_name, dict(first.attributes), first.duration) == ("job", {}, None)
    ended, status = notes.finished[0]
    assert (ended.run_id, ended.duration) == (first.run_id, 2**2 - 1**2)
    assert status is JobResultStatus.SUCCESS


def test_run_ids_can_be_given() -> None:
    notes, ids = Notes(), iter(["a", "b", "c"])
    runner = ObservedJobRunner(notes)
    numbered = runner.with_run_ids(lambda: next(ids))
    numbered.run(Plain())
    numbered.context("key", "value").run(Plain())
    runner.run(Plain())
    assert [context.run_id for context in notes.started][:2] == ["a", "b"]
    assert len(notes.started[2].run_id) == 32
    with pytest.raises(OptionError, match="run ids come from a callable, not from str"):
        runner.with_run_ids("abc")  # type: ignore[arg-type]


@pytest.mark.parametrize("generator", [iter(()).__next__, lambda: 7, lambda: ""])
def test_a_generator_that_fails_stops_no_job(generator: Any, caplog: pytest.LogCaptureFixture) -> None:
    notes = Notes()
    assert ObservedJobRunner(notes).with_run_ids(generator).run(Count()) == 7
    assert len(notes.started[0].run_id) == 32
    assert "the generator of run ids failed" in caplog.text


def test_attributes_belong_to_the_runner_they_were_given_to() -> None:
    notes = Notes()
    plain = ObservedJobRunner(notes)
    one = plain.context("z", "1")
    two = one.context("a", "2").context("z", "3")
    for runner in (plain, one, two):
        runner.run(Plain())
    assert [list(context.attributes.items()) for context in notes.started] == [
        [],
        [("z", "1")],
        [("a", "2"), ("z", "3")],
    ]
    assert notes.finished[2][0].attributes == {"a": "2", "z": "3"}


def test_a_context_cannot_be_changed_but_copied() -> None:
    given = {"b": "1"}
    context = ObservedJobContext("id", "job", given)
    given["c"] = "2"
    richer = context.with_attribute("a", "0")
    assert context.attributes == {"b": "1"}
    assert list(richer.attributes) == ["a", "b"]
    assert (richer.run_id, richer.job_name) == ("id", "job")
    assert hash(context) == hash(ObservedJobContext("id", "job"))
    with pytest.raises(FrozenInstanceError):
        context.run_id = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        context.attributes["a"] = "0"  # type: ignore[index]


@pytest.mark.parametrize(("key", "value"), [("", "v"), (7, "v"), ("k", 7), ("k", None)])
def test_attributes_are_texts(key: Any, value: Any) -> None:
    with pytest.raises(OptionError, match=r"^the (key|value) of (an )?attribute"):
        ObservedJobRunner().context(key, value)
    with pytest.raises(OptionError):
        ObservedJobContext("id", "job").with_attribute(key, value)


@BOTH
async def test_the_run_is_known_to_what_it_calls(make: type[Plain | Awaiting]) -> None:
    seen = list[ObservedJobContext | None]()
    notes = Notes()
    await run(ObservedJobRunner(notes), make(does=lambda: seen.append(current_run())))
    assert seen == notes.started
    assert current_run() is None


# --- hooks ---


@pytest.mark.parametrize("observer", [object(), Notes, lambda context: None])
def test_what_is_no_observer_is_refused(observer: Any) -> None:
    with pytest.raises(JobTypeError, match="methods on_job_started and on_job_finished"):
        ObservedJobRunner(observer)


def test_a_sync_run_takes_no_async_hooks_and_no_async_job() -> None:
    with pytest.raises(JobTypeError, match="AsyncNotes has async hooks"):
        ObservedJobRunner(AsyncNotes()).run(Plain())
    notes = Notes()
    with pytest.raises(JobTypeError, match="the run method of Awaiting is async; use run_async"):
        _ = ObservedJobRunner(notes).run(Awaiting())
    with pytest.raises(JobTypeError, match="is a class"):
        ObservedJobRunner(notes).run(Plain)  # type: ignore[arg-type]
    assert notes.order == []


@pytest.mark.parametrize("observer", [AsyncNotes(), Disguised()])
async def test_an_async_run_awaits_hooks(observer: AsyncNotes | Disguised) -> None:
    await ObservedJobRunner(observer).run_async(Awaiting("job"))
    assert observer.order == ["started job", "finished job: success"]


def test_hooks_that_turn_out_async_in_a_sync_run_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    observer = Disguised()
    assert ObservedJobRunner(observer).run(Count()) == 7
    assert observer.order == []
    assert "Disguised.on_job_started failed" in caplog.text
    assert "Disguised.on_job_finished failed" in caplog.text


BROKEN = pytest.mark.parametrize(
    ("observer", "job"),
    [(Falling(), Plain("job")), (Falling(), Awaiting("job")), (FallingAsync(), Awaiting("job"))],
)


@BROKEN
async def test_a_hook_that_raises_is_logged_and_the_result_comes_out(
    observer: JobObserver, job: Plain | Awaiting, caplog: pytest.LogCaptureFixture
) -> None:
    job.does = lambda: 7
    assert await run(ObservedJobRunner(observer), job) == 7
    who = type(observer).__name__
    assert [(record.name, record.message) for record in caplog.records] == [
        ("jobs_async.inprocess", f"job observer hook {who}.on_job_started failed"),
        ("jobs_async.inprocess", f"job observer hook {who}.on_job_finished failed"),
    ]


@BROKEN
async def test_a_hook_that_raises_leaves_the_error_as_it_is(observer: JobObserver, job: Plain | Awaiting) -> None:
    job.does = failing(ValueError("the job's own"))
    with pytest.raises(ValueError, match="the job's own") as caught:
        await run(ObservedJobRunner(observer), job)
    assert caught.value.__context__ is None


async def test_a_cancelled_run_has_failed_and_its_end_is_told() -> None:
    notes, begun = AsyncNotes(), asyncio.Event()

    async def wait_long() -> None:
        begun.set()
        await asyncio.Event().wait()

    async with asyncio.timeout(GUARD), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(ObservedJobRunner(notes).run_async(Awaiting("job", wait_long)))
        await begun.wait()
        task.cancel()
    assert task.cancelled()
    assert notes.order == ["started job", "finished job: failure"]


async def test_a_run_cancelled_in_its_first_hook_is_told_to_have_ended() -> None:
    ran, begun = list[int](), asyncio.Event()

    class Slow(AsyncNotes):
        async def on_job_started(self, context: ObservedJobContext) -> None:
            await super().on_job_started(context)
            begun.set()
            await asyncio.Event().wait()

    notes = Slow()
    async with asyncio.timeout(GUARD), asyncio.TaskGroup() as tasks:
        task = tasks.create_task(ObservedJobRunner(notes).run_async(Awaiting("job", lambda: ran.append(1))))
        await begun.wait()
        task.cancel()
    assert task.cancelled()
    assert notes.order == ["started job", "finished job: failure"]
    assert ran == []


async def test_an_abandoned_run_ends_without_a_word() -> None:
    notes = AsyncNotes()
    abandoned = ObservedJobRunner(notes).run_async(Awaiting("job", asyncio.Event().wait))
    abandoned.send(None)
    abandoned.close()
    assert notes.order == ["started job"]
    gc.collect()


def test_without_an_observer_nobody_is_told() -> None:
    observer: JobObserver = NoopObserver()
    assert ObservedJobRunner(observer).run(Count()) == 7
    assert ObservedJobRunner().run(Count()) == 7
    assert repr(ObservedJobRunner()) == "<ObservedJobRunner for NoopObserver>"


# --- spans ---


@BOTH
async def test_a_run_is_a_span(make: type[Plain | Awaiting]) -> None:
    told = list[object]()

    @contextmanager
    def span(name: str, attributes: Mapping[str, str]) -> Iterator[None]:
        told.append((name, dict(attributes)))
        try:
            yield
        except ValueError as error:
            told.append(error)
            raise
        told.append("left")

    notes = Notes()
    runner = ObservedJobRunner(notes, span=span).context("request_id", "r").with_run_ids(lambda: "id")
    await run(runner, make("job", lambda: told.append("ran")))
    error = ValueError()
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        await run(runner, make("job", failing(error)))
    opened = ("job.run", {"request_id": "r", "job.name": "job", "job.run_id": "id"})
    assert told == [opened, "ran", "left", opened, error]
    assert caught.value is error


@BOTH
async def test_a_span_swallows_no_error(make: type[Plain | Awaiting]) -> None:
    @contextmanager
    def swallowing(name: str, attributes: Mapping[str, str]) -> Iterator[None]:
        try:
            yield
        except ValueError:
            pass

    with pytest.raises(ValueError, match="mine"):
        await run(ObservedJobRunner(span=swallowing), make(does=failing(ValueError("mine"))))


@BOTH
async def test_a_span_may_raise_the_jobs_error_again(
    make: type[Plain | Awaiting], caplog: pytest.LogCaptureFixture
) -> None:
    class Raising:
        def __enter__(self) -> None: ...

        def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
            if error is not None:
                raise error

    runner = ObservedJobRunner(span=lambda name, attributes: Raising())
    with pytest.raises(ValueError, match="mine"):
        await run(runner, make(does=failing(ValueError("mine"))))
    assert caplog.records == []


@BOTH
@pytest.mark.parametrize("when", ["opened", "closed"])
async def test_a_span_that_raises_is_logged(
    make: type[Plain | Awaiting], when: str, caplog: pytest.LogCaptureFixture
) -> None:
    @contextmanager
    def broken(name: str, attributes: Mapping[str, str]) -> Iterator[None]:
        if when == "opened":
            raise RuntimeError("opened")
        try:
            yield
        finally:
            raise RuntimeError("closed")

    runner = ObservedJobRunner(span=broken)
    assert await run(runner, make(does=lambda: 7)) == 7
    with pytest.raises(ValueError, match="mine"):
        await run(runner, make(does=failing(ValueError("mine"))))
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2
    assert f"could not be {when}" in caplog.text
    assert current_run() is None
