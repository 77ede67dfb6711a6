"""What is said of jobs and queues in one process holds in another that runs them; and edits of jobs that wait."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import pytest

from jobs_async import (
    ArgsError,
    IllegalTransition,
    Job,
    JobContext,
    JobNotFound,
    JobQuery,
    JobStarted,
    JobState,
    MemoryStore,
    OptionError,
    SqliteStore,
    Store,
    Supervisor,
    UniqueConflict,
)
from jobs_async.core.job import Progress
from jobs_async.core.lifecycle import Transition
from jobs_async.testing import FakeClock
from tests.runtime.support import World, virtual
from tests.sqlite.support import PATIENCE, output, running, until

Process = subprocess.Popen[str]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
async def jobs(path: Path) -> AsyncIterator[Supervisor]:
    """Runs nothing: what it asks for is done in another process."""
    async with Supervisor(f"sqlite:///{path}", queues={}) as jobs:
        yield jobs


@contextmanager
def worker_process(path: Path) -> Iterator[Process]:
    """The program that runs the jobs; it stops properly at the end, and complains of nothing."""
    with running("controlled", path, path.parent, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        yield process
        output(process)


async def ended(jobs: Supervisor, job: Job[Any]) -> Job[Any]:
    return await jobs.wait(job, timeout=PATIENCE)


async def count(jobs: Supervisor, state: JobState, queue: str) -> int:
    return (await jobs.counts()).get((queue, state), 0)


async def some_beats(jobs: Supervisor) -> None:
    """Time in which the other process has beaten five times and looked for jobs about ten times."""

    async def latest() -> datetime | None:
        return max((node.beat_at for node in await jobs.store.nodes() if node.beat_at), default=None)

    for _ in range(5):
        before = await latest()

        async def has_beaten(before: datetime | None = before) -> bool:
            return await latest() != before

        await until(has_beaten)


# --- another process ---


async def test_a_running_job_cancelled_from_another_process_is_told_with_the_next_beat_and_cut_after_5_seconds(
    path: Path, jobs: Supervisor
) -> None:
    loop = asyncio.get_running_loop()
    with worker_process(path):
        deaf, polite = await jobs.enqueue("deaf"), await jobs.enqueue("polite", timeout_seconds=600)

        async def noted(job: Job[Any]) -> str:
            progress = (await jobs.get(job.id)).progress
            return progress.note if progress is not None else ""

        async def was_told() -> bool:
            return path.with_name("told").exists()

        assert await until(lambda: noted(deaf)) == "not told"
        deadline = datetime.fromisoformat(await until(lambda: noted(polite)))
        row = await jobs.get(polite.id)
        assert row.attempted_at is not None
        assert timedelta(seconds=595) < deadline - row.attempted_at < timedelta(seconds=605)

        for job in (deaf, polite):
            asked = await jobs.cancel(job.id)
            assert (asked.state, asked.cancel_requested) == (JobState.executing, True)
        asked_at = loop.time()
        row = await ended(jobs, polite)
        assert (row.state, row.result) == (JobState.cancelled, "as far as I got")
        await until(was_told)
        told_at = loop.time()
        assert told_at - asked_at < 3, "a heartbeat takes a twentieth of a second"
        row = await ended(jobs, deaf)
        assert (row.state, row.result) == (JobState.cancelled, None)
        assert 4 < loop.time() - told_at < 8
        assert row.last_error is not None
        assert row.last_error.error == "cancelled on request"


async def test_a_waiting_job_cancelled_from_another_process_never_runs(path: Path, jobs: Supervisor) -> None:
    with worker_process(path):
        await jobs.pause_queue("default")
        due, later = await jobs.enqueue("echo", {"text": "due"}), await jobs.enqueue("echo", {"text": "later"}, delay=2)
        for job in (due, later):
            assert (await jobs.cancel(job.id)).state is JobState.cancelled
            await jobs.retry(job.id)
            assert (await jobs.cancel(job.id)).state is JobState.cancelled
        await jobs.resume_queue("default")
        last = await jobs.enqueue("echo", {"text": "last"})
        assert (await ended(jobs, last)).result == "last"
        assert [((await jobs.get(job.id)).state, (await jobs.get(job.id)).attempt) for job in (due, later)] == [
            (JobState.cancelled, 0)
        ] * 2


async def test_a_pause_from_another_process_holds_while_the_worker_runs_and_when_it_starts_again(
    path: Path, jobs: Supervisor
) -> None:
    with worker_process(path):
        first = await jobs.enqueue("held", {"until_there": "go"})

        async def is_running() -> bool:
            return (await jobs.get(first.id)).state is JobState.executing

        await until(is_running)
        await jobs.pause_queue("default")
        second = await jobs.enqueue("echo", {"text": "second"})
        elsewhere = await jobs.enqueue("echo", {"text": "elsewhere"}, queue="scaled")
        path.with_name("go").touch()
        assert (await ended(jobs, first)).state is JobState.completed, "what runs goes on"
        assert (await ended(jobs, elsewhere)).result == "elsewhere", "so does another queue"
        await some_beats(jobs)
        assert (await jobs.get(second.id)).state is JobState.available
    with worker_process(path):
        third = await jobs.enqueue("echo", {"text": "third"})
        await some_beats(jobs)
        assert [(await jobs.get(job.id)).state for job in (second, third)] == [JobState.available] * 2
        await jobs.resume_queue("default")
        assert [(await ended(jobs, job)).result for job in (second, third)] == ["second", "third"]


async def test_a_limit_from_another_process_holds_while_the_worker_runs_and_when_it_starts_again(
    path: Path, jobs: Supervisor
) -> None:
    async def peak_of(gate: str, expected: int) -> int:
        """How many of six jobs ran at once, having waited until so many do."""
        held = [await jobs.enqueue("held", {"until_there": gate}, queue="scaled") for _ in range(6)]

        async def are_running() -> bool:
            return await count(jobs, JobState.executing, "scaled") == expected

        await until(are_running)
        await some_beats(jobs)
        path.with_name(gate).touch()
        peaks: list[Any] = [(await ended(jobs, job)).result for job in held]
        return int(max(peaks))

    with worker_process(path):
        await jobs.scale_queue("scaled", 2)
        await some_beats(jobs)
        assert await peak_of("lowered", 2) == 2
    with worker_process(path):
        assert await peak_of("after a restart", 2) == 2
        await jobs.scale_queue("scaled", 5)
        assert await peak_of("raised", 5) == 5
        await jobs.scale_queue("scaled", None)
        await some_beats(jobs)
        assert await peak_of("taken back", 4) == 4


async def test_what_cannot_be_done_to_a_job_is_refused_with_a_reason_from_another_process_too(
    path: Path, jobs: Supervisor
) -> None:
    with worker_process(path):
        held = await jobs.enqueue("held", {"until_there": "go"}, unique_key="one at a time")

        async def is_running() -> bool:
            return (await jobs.get(held.id)).state is JobState.executing

        await until(is_running)
        with pytest.raises(IllegalTransition, match="executing already"):
            await jobs.retry(held.id)
        with pytest.raises(IllegalTransition, match="executing; cancel it first"):
            await jobs.delete(held.id)
        with pytest.raises(IllegalTransition, match="executing and can no longer be edited"):
            await jobs.edit(held.id, priority=1)
        path.with_name("go").touch()
        assert (await ended(jobs, held)).attempt == 1

        with pytest.raises(IllegalTransition, match="completed"):
            await jobs.cancel(held.id)
        twin = await jobs.enqueue("held", {"until_there": "later"}, unique_key="one at a time", delay=3600)
        with pytest.raises(UniqueConflict, match=f"job {twin.id} ") as refused:
            await jobs.retry(held.id)
        assert (refused.value.job.id, refused.value.job.state) == (twin.id, JobState.scheduled)

        await jobs.delete(twin.id)
        again = await jobs.retry(held.id)
        assert (again.state, again.attempt) == (JobState.available, 0)
        assert (await ended(jobs, held)).claim > again.claim, "it ran again"
        await jobs.delete(held.id)
        for change in (jobs.retry, jobs.cancel, jobs.delete, jobs.edit):
            with pytest.raises(JobNotFound):
                await change(held.id)
        assert await jobs.find() == []


async def test_a_job_edited_in_another_process_runs_as_it_was_edited(path: Path, jobs: Supervisor) -> None:
    with worker_process(path):
        await jobs.pause_queue("default")
        stays, goes = [await jobs.enqueue("echo", {"text": "before"}) for _ in range(2)]
        later = await jobs.enqueue("echo", {"text": "before"}, delay=3600, queue="scaled")
        await jobs.edit(goes.id, args={"text": "moved"}, queue="scaled")
        await jobs.edit(later.id, args={"text": "brought forward"}, delay=0)
        assert [(await ended(jobs, job)).result for job in (goes, later)] == ["moved", "brought forward"]
        await jobs.edit(stays.id, args={"text": "edited"})
        await jobs.resume_queue("default")
        assert (await ended(jobs, stays)).result == "edited"


# --- progress ---


@virtual
async def test_progress_is_still_heard_of_between_a_cancellation_and_the_end(world: World) -> None:
    async with world.supervisor() as jobs:

        @jobs.worker(context=True)
        async def work(ctx: JobContext) -> None:
            await ctx.progress(0.5, "half way")
            await ctx.cancelled.wait()
            await ctx.progress(0.9, "cleaning up")

        job = await work.enqueue()
        await world.seen.wait(JobStarted)
        await asyncio.sleep(1)
        await jobs.cancel(job.id)
        ended = await jobs.wait(job)
        assert ended.state is JobState.cancelled
        assert ended.progress == Progress(0.9, "cleaning up")


# --- edits, in any store ---


class Unhurried(MemoryStore):
    """One that gives way before it answers, so that callers can come between each other."""

    async def select(self, query: JobQuery) -> list[Job[Any]]:
        await asyncio.sleep(0)
        return await super().select(query)

    async def apply(self, steps: Sequence[Transition]) -> list[Job[Any] | None]:
        await asyncio.sleep(0)
        return await super().apply(steps)


class Desk:
    """A store under a clock that stands still, and an operator at it."""

    def __init__(self, store: Store, clock: FakeClock) -> None:
        self.store, self.clock = store, clock
        self.jobs = Supervisor(store, queues={}, clock=clock)

    async def in_state(self, state: JobState, **options: Any) -> Job[Any]:
        """A job in the state asked for."""
        job = await self.jobs.enqueue("work", {"n": 1}, **options)
        if state is JobState.scheduled:
            return await self.jobs.edit(job.id, delay=60)
        if state is JobState.available:
            return job
        if state is JobState.cancelled:
            return await self.jobs.cancel(job.id)
        claimed = await self.store.claim(job.queue)
        assert claimed is not None
        end: dict[JobState, Callable[[], Any]] = {
            JobState.completed: lambda: self.store.complete(claimed),
            JobState.retryable: lambda: self.store.fail(claimed, "boom", 60),
            JobState.discarded: lambda: self.store.discard(claimed, "boom"),
        }
        return await end[state]() if state in end else claimed


@pytest.fixture(params=["memory", "sqlite"])
async def desk(request: pytest.FixtureRequest, path: Path) -> AsyncIterator[Desk]:
    clock = FakeClock()
    async with Unhurried(clock=clock) if request.param == "memory" else SqliteStore(path, clock=clock) as store:
        yield Desk(store, clock)


WAITING = [JobState.available, JobState.scheduled, JobState.retryable]
EDITS: dict[str, dict[str, Any]] = {
    "args": {"args": {"n": 2, "more": [None, "ü"]}},
    "no args": {"args": None},
    "priority": {"priority": -7},
    "queue": {"queue": "elsewhere"},
    "max_attempts": {"max_attempts": 3},
    "nothing": {},
    "all at once": {"args": [1], "priority": 9, "queue": "q", "max_attempts": 1, "delay": 5},
}


@pytest.mark.parametrize("state", WAITING, ids=str)
@pytest.mark.parametrize("name", EDITS)
async def test_an_edit_changes_what_it_was_given_and_nothing_else(desk: Desk, name: str, state: JobState) -> None:
    before = await desk.in_state(state, tags=["old"], meta={"m": 1}, correlation_id="c", unique_key="u")
    desk.clock.advance(1)
    edited = await desk.jobs.edit(before.id, **EDITS[name])
    assert edited == await desk.jobs.get(before.id)
    given = dict(EDITS[name])
    args, delay = given.pop("args", before.args), given.pop("delay", None)
    assert edited.args == ({} if args is None else args)
    for field, value in given.items():
        assert getattr(edited, field) == value
    if delay is not None:
        assert (edited.state, edited.scheduled_at) == (JobState.scheduled, desk.clock.now() + timedelta(seconds=delay))
    moved = {"state", "scheduled_at"} if delay is not None else set()
    for field in before.__struct_fields__:
        if field not in {*given, *moved, "args_json", "claim"}:
            assert getattr(edited, field) == getattr(before, field), field


@pytest.mark.parametrize("state", WAITING, ids=str)
async def test_an_edited_job_is_claimed_where_and_when_the_edit_says(desk: Desk, state: JobState) -> None:
    async def claimed(queue: str) -> list[int]:
        return [job.id for job in (await desk.store.fetch(queue, 10, node=None)).jobs]

    job = await desk.in_state(state)
    await desk.jobs.edit(job.id, queue="elsewhere", delay=100)
    desk.clock.advance(99)
    assert await claimed("default") + await claimed("elsewhere") == []
    due = desk.clock.now() + timedelta(seconds=50)
    assert (await desk.jobs.edit(job.id, scheduled_at=due)).scheduled_at == due
    desk.clock.advance(49)
    assert await claimed("elsewhere") == []
    urgent = await desk.jobs.enqueue("work", queue="elsewhere", priority=5)
    await desk.jobs.edit(job.id, delay=0, priority=10)
    await desk.jobs.edit(urgent.id, priority=9)
    assert await claimed("elsewhere") == [urgent.id, job.id]
    assert await claimed("default") == []


async def test_an_edit_to_a_time_that_has_passed_makes_the_job_due(desk: Desk) -> None:
    job = await desk.in_state(JobState.scheduled)
    await desk.jobs.edit(job.id, scheduled_at=desk.clock.now() - timedelta(days=1))
    claimed = await desk.store.claim("default")
    assert claimed is not None
    assert claimed.id == job.id


@pytest.mark.parametrize("state", set(JobState) - set(WAITING), ids=str)
async def test_a_job_that_executes_or_has_ended_is_not_edited(desk: Desk, state: JobState) -> None:
    job = await desk.in_state(state)
    for changes in EDITS.values():
        with pytest.raises(IllegalTransition, match=rf"job {job.id} is {state} .*edited"):
            await desk.jobs.edit(job.id, **changes)
    assert await desk.jobs.get(job.id) == job


REFUSED: dict[str, tuple[type[Exception], dict[str, Any]]] = {
    "arguments no reader could load": (ArgsError, {"args": {"n": float("nan")}}),
    "arguments that lack a parameter": (ArgsError, {"args": {}}),
    "arguments of another type": (ArgsError, {"args": {"n": "one"}}),
    "an argument that nobody takes": (ArgsError, {"args": {"n": 1, "m": 2}}),
    "a naive time (row 76)": (OptionError, {"scheduled_at": datetime(2030, 1, 1)}),
    "delay and scheduled_at": (OptionError, {"delay": 1, "scheduled_at": datetime(2030, 1, 1, tzinfo=UTC)}),
    "a negative delay": (OptionError, {"delay": -1}),
    "a priority that is a word": (OptionError, {"priority": "high"}),
    "no attempts": (OptionError, {"max_attempts": 0}),
    "an empty queue": (OptionError, {"queue": ""}),
    "a unique key": (OptionError, {"unique_key": "k"}),
    "an idempotency key": (OptionError, {"idempotency_key": "k"}),
    "a state": (OptionError, {"state": JobState.completed}),
    "one of two": (OptionError, {"priority": 3, "max_attempts": -1}),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_an_edit_that_cannot_be_is_refused_and_changes_nothing(desk: Desk, name: str) -> None:
    @desk.jobs.worker
    async def count_to(n: int) -> int:
        return n

    job = await count_to.on(desk.jobs).options(delay=60).enqueue(1)
    error, changes = REFUSED[name]
    with pytest.raises(error):
        await desk.jobs.edit(job.id, **changes)
    assert await desk.jobs.get(job.id) == job


@pytest.mark.parametrize("seed", range(2))
async def test_an_edit_that_races_a_claim_holds_or_is_refused_never_half(desk: Desk, seed: int) -> None:
    """Whoever edits knows what the job is run with: as edited where the edit returned, as it was where not."""
    rng = Random(seed)
    held: list[bool] = []

    async def after_some_turns(call: Awaitable[Any]) -> Any:
        for _ in range(rng.randrange(100)):
            await asyncio.sleep(0)
        return await call

    async def is_edited(job: Job[Any]) -> bool:
        try:
            await desk.jobs.edit(job.id, args={"text": "edited"}, priority=1)
        except IllegalTransition:
            return False
        return True

    for turn in range(40):
        job = await desk.jobs.enqueue("work", {"text": "before"})
        edit, claim = is_edited(job), desk.store.fetch("default", 1, node=None)
        took, fetched = await asyncio.gather(after_some_turns(edit), after_some_turns(claim))
        (claimed,) = fetched.jobs
        expected = ("edited", 1) if took else ("before", 0)
        assert (claimed.args["text"], claimed.priority) == expected, f"seed {seed}, turn {turn}"
        held.append(took)
    assert set(held) == {True, False}, "they hardly met"
