"""Processes that enqueue whatever happens to the server, and what must be true of each of their calls."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

from jobs_async import Draft, JobOpts, JobState, StoreError, Supervisor, UniqueStrategy
from jobs_async.core.errors import SchemaError, StoreClosed, WriteRefused
from tests.chaos.fleet import Place

TRIED, ANSWERED = "T", "Y"
MOST_WAITING = 1_000
"""Jobs that wait, beyond which a caller has a rest."""
BULK = 20
"""The most jobs of one call."""
KEYS = 50
A_MOMENT = 0.05

Arguments = Callable[[Random], Any]

logger = logging.getLogger("chaos")


async def call_on(place: Place, arguments: Arguments, rate: float, tasks: int = 8) -> None:
    """Enqueue so many jobs a second, until it is enough."""
    async with at_last(place.supervisor(queues={})) as jobs, asyncio.TaskGroup() as group:
        caller = Caller(place, jobs, arguments, rate)
        group.create_task(caller.look())
        for _ in range(tasks):
            group.create_task(caller.call_on())


@asynccontextmanager
async def at_last(jobs: Supervisor) -> AsyncGenerator[Supervisor]:
    """Runs from the first start that meets a server: whoever looks after processes starts them again and again."""
    while not jobs.is_running:
        try:
            await jobs.start()
        except StoreError as error:
            see_to(error)
            await asyncio.sleep(A_MOMENT)
    async with jobs:
        yield jobs


class Caller:
    """Writes down each call before it is made, and when it was answered; under a key, what was in vain is repeated."""

    def __init__(self, place: Place, jobs: Supervisor, arguments: Arguments, rate: float) -> None:
        self._place = place
        self._jobs = jobs
        self._arguments = arguments
        self._rate = rate
        self._dice = place.dice()
        self._calls = self._made = self._waiting = 0

    async def look(self) -> None:
        """How many jobs wait, as far as that is to be had."""
        while not self._place.is_enough:
            try:
                self._waiting = (await self._jobs.counts()).get(("default", JobState.available), 0)
            except StoreError as error:
                see_to(error)
            await asyncio.sleep(5 * A_MOMENT)

    async def call_on(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        ways = [self._one, self._many, self._idempotent, self._unique]
        while not self._place.is_enough:
            if self._waiting > MOST_WAITING or self._made > (loop.time() - began) * self._rate:
                await asyncio.sleep(A_MOMENT)
            else:
                [way] = self._dice.choices(ways, [4, 2, 1, 1])
                await way()

    async def _one(self) -> None:
        await self._call(1)

    async def _many(self) -> None:
        await self._call(self._dice.randint(2, BULK))

    async def _idempotent(self) -> None:
        """Made again and again under one key, until it is answered."""
        key = f"{self._place.number}-{self._calls}"
        while not await self._call(1, key, idempotency_key=key):
            await asyncio.sleep(A_MOMENT)

    async def _unique(self) -> None:
        strategy = self._dice.choice([UniqueStrategy.IGNORE_NEW, UniqueStrategy.CANCEL_EXISTING])
        await self._call(1, unique_key=f"key-{self._dice.randrange(KEYS)}", unique_strategy=strategy)

    async def _call(self, size: int, name: str | None = None, **options: Any) -> bool:
        """Whether the call was answered; its jobs bear its name."""
        number, self._calls, self._made = self._calls, self._calls + 1, self._made + size
        caller, ledger = self._place.number, self._place.ledger
        opts = JobOpts(external_id=f"{caller}-{number}", max_attempts=50, **options)
        drafts = [Draft("work", self._arguments(self._dice), opts) for _ in range(size)]
        ledger.call(TRIED, number, size, caller)
        try:
            jobs = await (self._jobs.enqueue_many(drafts) if size > 1 else self._alone(drafts[0]))
        except StoreError as error:
            see_to(error)
            return False
        except Exception as error:
            logger.exception("raised to a caller: %s", type(error).__name__)
            return False
        fresh = [job for job in jobs if not job.duplicate]
        ledger.mark("A", *fresh)
        if fresh or name is None:
            ledger.call(ANSWERED, number, len(fresh), caller)
        else:
            self._place.ledger.call(ANSWERED, int(str(jobs[0].external_id).split("-")[1]), 1, caller)
        return True

    async def _alone(self, draft: Draft[Any]) -> list[Any]:
        return [await self._jobs.enqueue(draft)]


def see_to(error: StoreError) -> None:
    """A server that is away is an answer; that what it was asked is wrong, or in the way of others, is none."""
    hidden = ("Deadlock", "UniqueViolation", "Serialization")
    if isinstance(error, (WriteRefused, SchemaError, StoreClosed)) or any(word in str(error) for word in hidden):
        logger.error("raised to a caller: %s: %s", type(error).__name__, error)


class Calls:
    """What became of each call, beside what the store has of it in the end."""

    def __init__(self, place: Place) -> None:
        asked = "SELECT external_id, count(*) FROM jobs_async_jobs WHERE external_id IS NOT NULL GROUP BY external_id"
        stored = dict(place.ask(asked))
        tried = {f"{mark.claim}-{mark.id}": mark.attempt for mark in place.marks() if mark.kind == TRIED}
        answered = {f"{mark.claim}-{mark.id}": mark.attempt for mark in place.marks() if mark.kind == ANSWERED}
        self.wrong: list[str] = []
        self.unknown: Counter[str] = Counter()
        for name, size in tried.items():
            rows = stored.pop(name, 0)
            if name not in answered:
                self.unknown["stored" if rows else "not stored"] += 1
                if rows not in (0, size):
                    self.wrong.append(f"of {size} jobs of call {name}, which was not answered, {rows} were stored")
            elif rows != answered[name]:
                self.wrong.append(f"call {name} was answered with {answered[name]} jobs, and {rows} are stored")
        self.wrong += [f"call {name} was never made, and has {rows} jobs" for name, rows in stored.items()]
        self.made, self.answered = len(tried), len(answered)
