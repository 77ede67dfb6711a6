"""A few jobs in a database, in real time, from its opening to the end; many scenes may be played at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import pytest

from jobs_async import (
    ConstantBackoff,
    Draft,
    IllegalTransition,
    Job,
    JobContext,
    JobNotFound,
    JobOpts,
    JobState,
    StoreClosed,
    StoreError,
    Supervisor,
    UniqueConflict,
    UniqueStrategy,
)
from jobs_async.core.job import FINAL
from jobs_async.core.store import Store
from tests.faults.statements import Fault, Statement, Statements, current
from tests.sqlite.support import until

SOON = 1.5
"""Seconds after which what has not come about is left to another Supervisor."""
GUARD = 30.0
"""Seconds after which a fact that does not come is a failure."""

PAIR, BURST = ["pair 0", "pair 1"], ["burst 0", "burst 1", "burst 2"]
ENDS: dict[str, tuple[JobState, range]] = {
    "one": (JobState.completed, range(1, 2)),
    **dict.fromkeys(PAIR, (JobState.completed, range(1, 2))),
    "flaky": (JobState.completed, range(2, 3)),
    "steps": (JobState.completed, range(1, 3)),
    "stranger": (JobState.discarded, range(1)),
    "reserved": (JobState.cancelled, range(1)),
    "held": (JobState.cancelled, range(2)),
}
"""How each job ends that is asked for under a key until it is stored, and after how many runs."""


class Row(NamedTuple):
    key: str
    state: JobState
    refused: bool
    """Whether it was discarded because the database refused its outcome."""


class Place(Protocol):
    """Where a scene is played, seen by somebody who has nothing to do with the library."""

    def store(self) -> Store:
        """A new one, on what is there."""
        ...

    async def rows(self) -> list[Row]:
        """Every job."""
        ...

    async def is_free(self) -> bool:
        """Whether no transaction is open."""
        ...

    async def wrongs(self) -> list[str]:
        """What is damaged, and what a store that was closed still holds."""
        ...


class Scene:
    """One database, the Supervisor that meets a fault, and the application that enqueues into it."""

    def __init__(
        self,
        place: Place,
        target: Statement | None = None,
        fault: Callable[[Scene], Fault] | None = None,
        refusals: int = 0,
    ) -> None:
        """So many as `refusals` outcomes may have been refused."""
        self.place = place
        self._refusals = refusals
        self.runs: Counter[str] = Counter()
        self.statements = Statements(target, fault and fault(self))
        self.wrong: list[str] = []
        self.errors: list[StoreError] = []
        self._jobs = self._supervisor()
        self._serving: asyncio.Task[None] | None = None
        self._asking: set[asyncio.Task[Any]] = set()
        self._answered: list[Job[Any]] = []
        self._held = asyncio.Event()

    def _supervisor(self) -> Supervisor:
        jobs = Supervisor(
            self.place.store(),
            queues={"default": 4},
            poll_interval=0.02,
            heartbeat=0.1,
            lease=5,
            rescue_interval=1,
            shutdown_timeout=2,
            max_stall=None,
        )
        jobs.register_worker("work", self._work, opts=JobOpts(max_attempts=5), retry_strategy=ConstantBackoff(0.05))
        return jobs

    async def _work(self, key: str, ctx: JobContext) -> None:
        self.runs[key] += 1
        match key:
            case "flaky" if self.runs[key] == 1:
                raise OSError
            case "steps":
                await ctx.progress(0.5)
            case "held":
                self._held.set()
                await ctx.cancelled.wait()

    # --- what can happen ---

    def cancel_callers(self) -> None:
        for task in self._asking:
            task.cancel()

    def cancel_run(self) -> None:
        assert self._serving is not None
        self._serving.cancel()

    def stop_soon(self) -> None:
        self._stopping = asyncio.get_running_loop().create_task(self._jobs.stop())

    # --- the course of events ---

    async def play(self) -> None:
        """Everything, then a stop; what a fault has left undone is finished by another Supervisor."""
        current.set(self.statements)
        self._serving = asyncio.get_running_loop().create_task(self._serve())
        try:
            await self._everything()
        except TimeoutError:
            self.wrong.append("it came to a standstill")
        if self.statements.is_awaited:
            await self._soon(self.statements.struck.wait())
        await self._check_that_it_is_free()
        self.statements.phase = "end"
        await self._jobs.stop()
        await asyncio.wait({self._serving})
        self.statements.is_on = False
        if not await self._has_none_live():
            await self._finish()
        await self._look_at_what_has_become_of_it()

    async def _finish(self) -> None:
        """Another Supervisor, which takes no fault, does what is left."""
        async with asyncio.timeout(GUARD):
            while True:
                with suppress(StoreError):
                    async with self._supervisor():
                        await self._soon(until(self._has_none_live), GUARD)
                    return

    async def _serve(self) -> None:
        """Run, and once more where the store could not be opened or joined."""
        while True:
            try:
                return await self._jobs.run()
            except StoreClosed:  # a stop came before the end of the start
                return None
            except StoreError:
                continue

    async def _everything(self) -> None:
        one = await self._enqueue("one")
        drafts = [Draft("work", key, JobOpts(idempotency_key=key)) for key in PAIR]
        pair = await self._surely(lambda: self._jobs.enqueue_many(drafts))
        await asyncio.gather(*[self._enqueue_without_key(key) for key in BURST])
        flaky = await self._enqueue("flaky")
        steps = await self._enqueue("steps")
        stranger = await self._enqueue("stranger", "a worker that nobody knows")
        reserved = await self._enqueue("reserved", unique_key="reserved", delay=1000)
        with pytest.raises(UniqueConflict):
            await self._enqueue("refused", unique_key="reserved", unique_strategy=UniqueStrategy.REJECT)
        await self._change(lambda: self._jobs.cancel(reserved.id))
        deleted = await self._enqueue("deleted", delay=1000)
        await self._change(lambda: self._jobs.delete(deleted.id))
        await self._surely(lambda: self._jobs.pause_queue("other"))
        held = await self._enqueue("held")
        await self._soon(self._held.wait())
        await self._change(lambda: self._jobs.cancel(held.id))
        await self._surely(self._jobs.counts)
        jobs = one, *pair, *self._answered, flaky, steps, stranger, held
        await asyncio.gather(*[self._ended(job) for job in jobs])

    # --- the application ---

    async def _enqueue(self, key: str, worker: str = "work", **options: Any) -> Job[Any]:
        job: Job[Any] = await self._surely(lambda: self._jobs.enqueue(worker, key, idempotency_key=key, **options))
        return job

    async def _enqueue_without_key(self, key: str) -> None:
        """Once: without a key nobody can tell whether what got no answer is stored."""
        self._answered += await self._ask(lambda: self._jobs.enqueue("work", key)) or ()

    async def _change(self, change: Callable[[], Awaitable[Any]]) -> None:
        """What a lost answer told of has come about, and cannot be asked for again."""
        with suppress(IllegalTransition, JobNotFound):
            await self._surely(change)

    async def _ended(self, job: Job[Any]) -> None:
        with suppress(TimeoutError):
            await self._surely(lambda: self._jobs.wait(job, timeout=SOON))

    async def _surely(self, ask: Callable[[], Awaitable[Any]]) -> Any:
        """Ask until there is an answer, whatever becomes of the store and of the one who asks."""
        async with asyncio.timeout(GUARD):
            while (answer := await self._ask(ask)) is None:
                await asyncio.sleep(0.01)
        return answer[0]

    async def _ask(self, ask: Callable[[], Awaitable[Any]]) -> tuple[Any] | None:
        """Ask once."""

        async def asking() -> Any:
            return await ask()

        task = asyncio.get_running_loop().create_task(asking())
        self._asking.add(task)
        try:
            await asyncio.wait({task})
        finally:
            self._asking.discard(task)
            task.cancel()
        if task.cancelled():
            return None
        if isinstance(error := task.exception(), StoreError):
            self.errors.append(error)
            return None
        return (task.result(),)

    async def _soon(self, fact: Awaitable[Any], seconds: float = SOON) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await fact

    # --- what has become of it ---

    async def _check_that_it_is_free(self) -> None:
        """The Supervisor's own store can write, and a stranger can: no transaction was left open."""
        try:
            async with asyncio.timeout(GUARD):
                await self._surely(lambda: self._jobs.resume_queue("other"))
                await until(self.place.is_free)
        except TimeoutError:
            self.wrong.append("a transaction was left open")

    async def _has_none_live(self) -> bool:
        return all(row.state in FINAL for row in await self.place.rows())

    async def _look_at_what_has_become_of_it(self) -> None:
        rows = await self.place.rows()
        stored = Counter(row.key for row in rows)
        states = {row.key: row.state for row in rows}
        refused = {row.key for row in rows if row.refused}
        if len(refused) > self._refusals:
            self.wrong.append(f"outcomes were refused: {refused}")
        self.wrong += [f"{key} is stored {count} times" for key, count in stored.items() if count > 1]
        for key, (state, runs) in ENDS.items():
            if key in refused:
                continue
            if states.get(key) is not state:
                self.wrong.append(f"{key} is {states.get(key)!r}, not {state.name}")
            if self.runs[key] not in runs:
                self.wrong.append(f"{key} ran {self.runs[key]} times")
        for key in BURST:
            if self.runs[key] != stored[key] and stored[key] < 2:
                self.wrong.append(f"{key} ran {self.runs[key]} times")
        states |= dict.fromkeys(refused, JobState.completed)
        self.wrong += [f"{job!r} was answered, and is not stored" for job in self._lost(states)]
        self.wrong += await self.place.wrongs()

    def _lost(self, states: dict[str, JobState]) -> list[Job[Any]]:
        return [job for job in self._answered if states.get(job.args) is not JobState.completed]
