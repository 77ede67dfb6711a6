"""Instruments surround the storing and the running of jobs, see what happens there, and can harm neither."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from msgspec.structs import replace

from jobs_async import ConstantBackoff, Instrument, JobContext, JobState, OptionError, Snooze, Supervisor, worker
from jobs_async.core.options import NewJob
from tests.runtime.support import World, virtual

place: ContextVar[str] = ContextVar("place", default="nowhere")


class Diary(Instrument):
    """Writes down what it surrounds, marks jobs, and sets a context variable for handlers."""

    def __init__(self, name: str = "diary") -> None:
        self.name = name
        self.lines: list[str] = []

    @contextmanager
    def enqueuing(self, new: Sequence[NewJob]) -> Iterator[Sequence[NewJob]]:
        self.lines.append(f"storing {len(new)}")
        try:
            yield [replace(job, meta={**job.meta, self.name: "was here"}) for job in new]
        except BaseException as error:
            self.lines.append(f"not stored: {type(error).__name__}")
            raise
        else:
            self.lines.append("stored")

    @contextmanager
    def running(self, ctx: JobContext) -> Iterator[None]:
        token = place.set(f"job {ctx.job.id}")
        try:
            yield
        except BaseException as error:
            self.lines.append(f"raised {type(error).__name__}")
            raise
        else:
            self.lines.append("returned")
        finally:
            place.reset(token)


@virtual
async def test_it_stands_around_storing_and_running(world: World) -> None:
    outer, inner = Diary("outer"), Diary("inner")
    jobs = world.supervisor(instruments=[outer, inner])

    @jobs.worker
    async def where() -> str:
        await asyncio.sleep(1)
        return place.get()

    async with jobs:
        job = await jobs.wait(await where.options(meta={"own": 1}).enqueue())
    assert job.result == f"job {job.id}"
    assert job.meta == {"own": 1, "outer": "was here", "inner": "was here"}
    assert outer.lines == inner.lines == ["storing 1", "stored", "returned"]
    assert place.get() == "nowhere"


@virtual
async def test_it_is_left_with_what_the_handler_raised(world: World) -> None:
    diary = Diary()
    jobs = world.supervisor(instruments=[diary])

    @jobs.worker(retry_strategy=ConstantBackoff(0), timeout_seconds=5, max_attempts=1)
    async def end(how: str) -> None:
        match how:
            case "fails":
                raise ValueError("no")
            case "snoozes":
                raise Snooze(1000)
            case _:
                await asyncio.Event().wait()

    async with jobs:
        for how in ("fails", "snoozes", "hangs"):
            await end.enqueue(how)
            await asyncio.sleep(10)
    assert [line for line in diary.lines if "raised" in line] == [
        "raised ValueError",
        "raised Snooze",
        "raised CancelledError",
    ]


async def test_a_thread_sees_the_context() -> None:
    jobs = Supervisor(instruments=[Diary()], poll_interval=0.05)

    @jobs.worker
    def where() -> str:
        return place.get()

    async with jobs, asyncio.timeout(10):
        job = await where.enqueue()
        assert await jobs.result(job) == f"job {job.id}"


@virtual
async def test_bulk_and_children_are_seen_nothing_and_ticks_are_not(world: World) -> None:
    diary = Diary()
    jobs = world.supervisor(instruments=[diary])

    @jobs.worker
    async def child() -> None: ...

    @jobs.worker
    async def parent() -> None:
        await child.enqueue()

    async with jobs:
        await jobs.enqueue_many([])
        await jobs.enqueue_many([parent.draft(), child.draft()])
        await asyncio.sleep(1)
        assert diary.lines.count("storing 2") == diary.lines.count("storing 1") == 1
        jobs.register_cron("minutely", "* * * * *", child)
        await asyncio.sleep(61)
        assert (await jobs.counts())["default", JobState.completed] == 4
    assert diary.lines.count("storing 1") == 1
    assert diary.lines.count("returned") == 4
    assert "storing 0" not in diary.lines


@virtual
async def test_what_is_not_stored_is_told(world: World) -> None:
    diary = Diary()
    jobs = world.supervisor(instruments=[diary])
    world.store._max_jobs = 1
    await jobs.enqueue("a")
    with pytest.raises(Exception, match="live jobs"):
        await jobs.enqueue("a")
    assert diary.lines == ["storing 1", "stored", "storing 1", "not stored: StoreFull"]


class Hostile(Instrument):
    """Fails where it is told to."""

    def __init__(self, where: str) -> None:
        self.where = where

    def _surround(self, given: Any) -> AbstractContextManager[Any]:
        if self.where == "made":
            raise RuntimeError("made")
        return _Trap(self.where, given)

    def enqueuing(self, new: Sequence[NewJob]) -> AbstractContextManager[Sequence[NewJob]]:
        return self._surround([] if self.where == "drops" else new)

    def running(self, ctx: JobContext) -> AbstractContextManager[object]:
        return self._surround(ctx)


class _Trap:
    def __init__(self, where: str, given: Any) -> None:
        self.where, self.given = where, given

    def __enter__(self) -> Any:
        if self.where == "entered":
            raise RuntimeError("entered")
        return "nonsense" if self.where == "nonsense" else self.given

    def __exit__(self, *_exc: object) -> bool:
        if self.where == "left":
            raise KeyboardInterrupt("left")
        return True  # swallows what it can


@pytest.mark.parametrize("where", ["made", "entered", "left", "drops", "nonsense", "swallows"])
def test_whatever_an_instrument_does_jobs_and_other_instruments_notice_nothing(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)

    @virtual
    async def scene(world: World) -> None:
        diary = Diary()
        jobs = world.supervisor(instruments=[Hostile(where), diary, Hostile(where)])

        @jobs.worker(max_attempts=1)
        async def work(well: bool) -> str:
            if not well:
                raise ValueError("no")
            return "done"

        async with jobs:
            good, bad = await work.enqueue(True), await work.enqueue(False)
            assert (await jobs.wait(good)).result == "done"
            assert (await jobs.wait(bad)).state is JobState.discarded
        assert sorted(diary.lines) == ["raised ValueError", "returned", *["stored"] * 2, *["storing 1"] * 2]

    scene()
    assert bool(caplog.records) is (where != "swallows")


def test_what_is_none_is_refused() -> None:
    @worker
    async def work() -> None: ...

    for wrong in (work, Instrument, "diary"):
        with pytest.raises(OptionError, match="instruments must be Instruments"):
            Supervisor(instruments=[wrong])  # type: ignore[list-item]
