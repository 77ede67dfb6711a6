"""All that can happen to jobs, on virtual time, and an application that asks again for what it got no answer to."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from random import Random
from typing import Any

import pytest

from jobs_async import (
    ConstantBackoff,
    Discard,
    Draft,
    Event,
    IllegalTransition,
    Job,
    JobCompleted,
    JobContext,
    JobNotFound,
    JobOpts,
    JobQuery,
    JobState,
    MemoryStore,
    Snooze,
    StoreClosed,
    StoreError,
    Supervisor,
    Telemetry,
    UniqueConflict,
    UniqueStrategy,
)
from jobs_async.core.job import FINAL
from jobs_async.core.options import NewJob
from jobs_async.core.store import Node
from jobs_async.testing.faults import FaultyStore
from jobs_async.testing.loop import LoopClock
from tests.faults.points import Points, call_as

LIMITS = {"default": 4, "side": 2}
GUARD = 300.0
"""Virtual seconds after which a fact is taken for one that never comes."""

BULK = [f"bulk {n}" for n in range(6)]
MEETING = [f"meeting {n}" for n in range(sum(LIMITS.values()))]
ENDS: dict[str, tuple[JobState, int]] = {
    "orphan": (JobState.completed, 1),
    **dict.fromkeys(BULK, (JobState.completed, 1)),
    "flaky": (JobState.completed, 2),
    "nap": (JobState.completed, 2),
    "steps": (JobState.completed, 1),
    "parent": (JobState.completed, 1),
    "child": (JobState.completed, 1),
    "doomed": (JobState.discarded, 1),
    "stranger": (JobState.discarded, 0),
    "paused": (JobState.completed, 1),
    "edited": (JobState.completed, 1),
    "elder": (JobState.cancelled, 0),
    "heir": (JobState.completed, 1),
    "never": (JobState.cancelled, 0),
    "held": (JobState.cancelled, 1),
    **dict.fromkeys(MEETING, (JobState.completed, 1)),
}
"""How each job ends where nothing goes wrong, and after how many runs."""


class Scene:
    """One store, the Supervisor that meets the faults, and the application that enqueues into it."""

    def __init__(self, points: Points) -> None:
        self.points = points
        self.clock = LoopClock()
        self.memory = MemoryStore(clock=self.clock)
        self.runs: Counter[str] = Counter()
        self.events: list[Event] = []
        self.jobs = self._supervisor(FaultyStore(self.memory, points))
        self.serving: asyncio.Task[None] | None = None
        self.was_cut = False
        self.was_clean = False
        self.abandoned: list[Job[Any]] = []
        self._held = asyncio.Event()
        self._inside = 0
        self._all_inside = asyncio.Event()

    def _supervisor(self, store: FaultyStore | MemoryStore) -> Supervisor:
        telemetry = Telemetry()
        telemetry.attach(self.events.append)
        jobs = Supervisor(
            store,
            queues=LIMITS,
            telemetry=telemetry,
            clock=self.clock,
            rng=Random(7),
            poll_interval=30,
            shutdown_timeout=20,
            max_stall=None,
        )
        jobs.register_worker("work", self._work, opts=JobOpts(max_attempts=5), retry_strategy=ConstantBackoff(10))
        return jobs

    # --- what the jobs do ---

    async def _work(self, key: str, ctx: JobContext) -> None:
        self.runs[key] += 1
        call_as(key)
        match key:
            case "flaky" if self.runs[key] == 1:
                raise OSError
            case "nap" if self.runs[key] == 1:
                raise Snooze(2)
            case "doomed":
                raise Discard("no use")
            case "steps":
                await ctx.progress(0.5)
            case "parent":
                await ctx.enqueue(Draft("work", "child", JobOpts(idempotency_key="child")))
            case "held":
                self._held.set()
                await ctx.cancelled.wait()
            case _ if "meeting" in key:
                await self._attend()
            case _:
                await asyncio.sleep(0.1)

    async def _attend(self) -> None:
        """Ends once as many are here as may run at once."""
        self._inside += 1
        try:
            if self._inside == len(MEETING):
                self._all_inside.set()
            await self._all_inside.wait()
        finally:
            self._inside -= 1

    # --- the course of events ---

    async def play(self, linger: float = 1.0) -> None:
        """Everything, twice at full concurrency at the end, and a clean stop.

        Where the Supervisor was stopped before, another one, with a sound store, finishes what is left. What is still
        under way has `linger` seconds before the stop, and as many afterwards, to come to light.
        """
        await self._leave_an_orphan()
        self.serving = asyncio.get_running_loop().create_task(self._serve())
        await self._everything()
        await self._until(self._all_ended)
        await self._meet(MEETING)
        self.points.is_on = False
        await self._meet([f"last {key}" for key in MEETING])
        await asyncio.sleep(linger)
        self.points.is_on = True
        self.was_cut = self.serving.done()
        self.was_clean = (await self.jobs.stop()).is_clean
        await asyncio.wait({self.serving})
        self.points.is_on = False
        self.abandoned = [job for job in await self.rows() if job.state is JobState.executing and job.node != "dead"]
        await asyncio.sleep(linger)
        if self.was_cut:
            async with self._supervisor(self.memory), asyncio.timeout(GUARD):
                while not await self._all_ended():
                    await asyncio.sleep(0.5)

    def stop_soon(self) -> None:
        self._stopping = asyncio.get_running_loop().create_task(self.jobs.stop())

    async def _leave_an_orphan(self) -> None:
        """A job of a node that died."""
        await self.memory.insert([NewJob("work", '"orphan"', max_attempts=5)])
        await self.memory.beat(Node(id="dead"), 0.01, join=True)
        await self.memory.fetch("default", 1, node="dead")
        await asyncio.sleep(0.1)

    async def _serve(self) -> None:
        """Run, and once more where the store was away at the start."""
        while True:
            try:
                return await self.jobs.run()
            except StoreClosed:  # a stop came before the end of the start
                return None
            except (StoreError, ConnectionError):
                continue

    async def _everything(self) -> None:
        drafts = [Draft("work", key, JobOpts(idempotency_key=key)) for key in BULK]
        await self._surely("bulk", lambda: self.jobs.enqueue_many(drafts))
        for key in ("flaky", "nap", "steps", "parent", "doomed"):
            await self._enqueue(key)
        await self._enqueue("stranger", "a worker that nobody knows")
        await self._surely("pause", lambda: self.jobs.pause_queue("side"))
        await self._enqueue("paused", queue="side")
        await self._surely("resume", lambda: self.jobs.resume_queue("side"))
        edited = await self._enqueue("edited", unique_key="edited", delay=1000)
        again = await self._enqueue("same as edited", unique_key="edited")
        assert (again.id, again.duplicate) == (edited.id, True)
        with pytest.raises(UniqueConflict):
            await self._enqueue("refused", unique_key="edited", unique_strategy=UniqueStrategy.REJECT)
        await self._change("edit", lambda: self.jobs.edit(edited.id, delay=0))
        await self._enqueue("elder", unique_key="heir", delay=1000)
        await self._enqueue("heir", unique_key="heir", unique_strategy=UniqueStrategy.CANCEL_EXISTING)
        never = await self._enqueue("never", delay=1000)
        await self._change("cancel", lambda: self.jobs.cancel(never.id))
        deleted = await self._enqueue("deleted", delay=1000)
        await self._change("delete", lambda: self.jobs.delete(deleted.id))
        held = await self._enqueue("held")
        await self._until(self._is_held)
        await self._change("cancel held", lambda: self.jobs.cancel(held.id))
        await self._surely("wait", lambda: self._ended(held))
        await self._surely("counts", self.jobs.counts)
        await self._surely("find", self.jobs.find)

    async def _meet(self, keys: list[str]) -> None:
        """Only a Supervisor that has all its slots brings this to an end."""
        self._all_inside.clear()
        queues = [queue for queue, limit in LIMITS.items() for _ in range(limit)]
        drafts = [
            Draft("work", key, JobOpts(idempotency_key=key, queue=queue))
            for key, queue in zip(keys, queues, strict=True)
        ]
        await self._surely("meet", lambda: self.jobs.enqueue_many(drafts))
        await self._until(self._all_ended)

    # --- the application ---

    @property
    def is_over(self) -> bool:
        """Whether the Supervisor has been stopped."""
        return self.serving is not None and self.serving.done()

    async def _enqueue(self, key: str, worker: str = "work", **options: Any) -> Job[Any]:
        job: Job[Any] = await self._surely(key, lambda: self.jobs.enqueue(worker, key, idempotency_key=key, **options))
        return job

    async def _ended(self, job: Job[Any]) -> None:
        """Wait for it where there is somebody to bring it to its end."""
        try:
            await self.jobs.wait(job, timeout=GUARD)
        except TimeoutError:
            assert self.is_over

    async def _change(self, name: str, change: Callable[[], Awaitable[Any]]) -> None:
        """What a lost answer told of has come about, and cannot be asked for again."""
        try:
            await self._surely(name, change)
        except (IllegalTransition, JobNotFound):
            assert self.points.struck

    async def _surely(self, name: str, ask: Callable[[], Awaitable[Any]]) -> Any:
        """Ask until there is an answer, whatever becomes of the store and of the one who asks."""

        async def asking() -> Any:
            call_as(name)
            return await ask()

        while True:
            task = asyncio.get_running_loop().create_task(asking())
            await asyncio.wait({task})
            if not task.cancelled() and not isinstance(task.exception(), (StoreError, ConnectionError)):
                return task.result()
            await asyncio.sleep(1)

    async def _until(self, fact: Callable[[], Awaitable[bool]]) -> None:
        """Wait for a fact, unless there is nobody left to bring it about."""
        async with asyncio.timeout(GUARD):
            while not self.is_over and not await fact():
                await asyncio.sleep(0.5)

    # --- what has become of it ---

    async def rows(self) -> list[Job[Any]]:
        return await self.memory.select(JobQuery(limit=1000, newest_first=False))

    async def _all_ended(self) -> bool:
        return all(state in FINAL for _, state in await self.memory.tally())

    async def _is_held(self) -> bool:
        return self._held.is_set()

    async def wrongs(self, spare: Mapping[str | None, int], refusals: int = 0) -> list[str]:
        """Jobs that are not stored once, did not end as they should, or ran other than so often and `spare` more.

        So many as `refusals` may have been discarded since the store refused what was to be written of them.
        """
        stored = await self.rows()
        rows = {job.args: job for job in stored}
        counts = Counter(job.args for job in stored)
        wrong = [f"{key} is stored {count} times" for key, count in counts.items() if count > 1]
        told = Counter(event.job.args for event in self.events if isinstance(event, JobCompleted))
        refused = {key for key, job in rows.items() if job.last_error and job.last_error.type == "SettlementRefused"}
        if len(refused) > refusals:
            wrong.append(f"settlements refused: {refused}")
        for key in ENDS.keys() - refused:
            (state, runs), job = ENDS[key], rows.get(key)
            if job is None or job.state is not state:
                wrong.append(f"{key} is {job!r}, not {state.name}")
            if told[key] > 1 or (self.was_clean and told[key] != (state is JobState.completed)):
                wrong.append(f"{key} was told of {told[key]} times")
            least = 0 if self.was_cut and key == "held" else runs
            most = runs + spare.get(key, 0) + (self.was_cut and key in MEETING)
            if not least <= self.runs[key] <= most:
                wrong.append(f"{key} ran {self.runs[key]} times, not {runs}")
        return wrong
