"""A small world in a storm: processes on one store, callers, operators and misfortune.

Time is virtual and every choice is drawn from the seed, so a world can be lived through again, line by line.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from contextvars import Context
from itertools import count
from random import Random
from typing import Any, cast

from jobs_async import Draft, JobOpts
from jobs_async.core.job import FINAL
from jobs_async.testing.faults import Fault, odds
from tests.simulation.deeds import PROBE, QUEUES
from tests.simulation.ledger import PROCESS, Ledger, Witness, now
from tests.simulation.people import caller, customer, enqueue, operator
from tests.simulation.process import POLL, Process

STORM = 30.0
"""Seconds in which anything goes wrong that can; after it, what is under way comes to its end."""
SETTLED = 20.0
"""Seconds of calm after which nothing of the storm is under way, not even a call that comes late."""
GUARD = 300.0
"""Seconds of calm after which a job that has not ended is taken for one that never will."""

FATES = {"kill": 4, "stop": 3, "cut off": 3, "nothing": 1}
"""What befalls a process; where several things may happen here, the numbers say how often."""


class World:
    """Made for one seed, lived once."""

    def __init__(self, seed: int, ledger: Ledger) -> None:
        self.seed = seed
        self.rng = Random(f"world {seed}")
        self.ledger = ledger
        self.store = Witness(ledger)
        self._processes: dict[str, Process] = {}
        self._calm = asyncio.Event()
        self._numbers = count(1)
        severity = self.rng.choice((0, 1, 2, 3))
        self._is_late = 0.01 * severity
        self._gusts = odds(
            self.rng,
            slow=0.05 * severity,
            fail=0.05 * severity,
            lose=0.05 * severity,
            hang=0.02 * severity,
            seconds=self.rng.choice((1, 10)),
        )
        self._breeze = odds(self.rng, slow=self.rng.choice((0.0, 0.1, 0.4)), seconds=0.03)

    async def live(self) -> None:
        """From the first start to the last stop."""
        loop = asyncio.get_running_loop()
        loop.set_task_factory(cast(Any, self._adopt))
        loop.set_exception_handler(lambda _, context: self.ledger.surprises.append(str(context)))
        people = [caller(self), caller(self), customer(self), operator(self)]
        places = [self._place(name) for name in "ABC"[: self.rng.randint(2, 3)]]
        tasks = [loop.create_task(work) for work in (*places, *people)]
        await asyncio.sleep(STORM)
        self._calm_down()
        for task in tasks:
            await task
        await self._until_idle()
        await self._probe()
        for task in [loop.create_task(process.stop()) for process in self.living()]:
            await task
        await self._look_back()

    # --- the weather ---

    @property
    def is_calm(self) -> bool:
        return self._calm.is_set()

    def weather(self, call: int, primitive: str) -> Fault | None:
        """What a call meets on its way to the store."""
        if not self.is_calm:
            if self.rng.random() < self._is_late:
                return Fault(before=self.rng.uniform(5, 15), goes_on=True)
            if gust := self._gusts(call, primitive):
                return gust
        return self._breeze(call, primitive)

    def _calm_down(self) -> None:
        self.ledger.say("the storm is over")
        self.ledger.calm_at = now()
        self._calm.set()
        for process in self.living():
            process.is_cut_off = False

    async def _until_idle(self) -> None:
        """Every job has ended, and every handler."""
        await asyncio.sleep(SETTLED)
        for queue in QUEUES:
            await self.store.set_queue(queue, paused=False, limit=0)
        while now() < self.ledger.calm_at + GUARD and not (
            all(job.state in FINAL for job in self.ledger.rows.values()) and all(run.end for run in self.ledger.runs)
        ):
            await asyncio.sleep(1)

    async def _probe(self) -> None:
        """What is enqueued beside an idle runner starts at once, also while that is waiting for an answer."""
        self._breeze = odds(self.rng, slow=1, seconds=0.03)
        for process in self.living():
            for _ in range(3):
                await asyncio.sleep(self.rng.uniform(0, 0.05))
                options = JobOpts(queue=self.rng.choice(list(QUEUES)), tags=[tag := self.tag()])
                for job in await enqueue(self, process, [Draft("common", PROBE, options)], [tag]):
                    self.ledger.probes[job.id] = now()
        await asyncio.sleep(POLL)

    async def _look_back(self) -> None:
        self.ledger.over_at = now()
        await asyncio.sleep(60)  # time for deaf handlers of dead processes to end, and for the last lease to run out
        self.ledger.left = [f"node of {self.ledger.processes[n.id]}" for n in await self.store.nodes() if n.alive]
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        self.ledger.left += sorted(f"{task.get_name()}: {task.get_coro()}" for task in tasks)

    # --- processes ---

    def living(self) -> list[Process]:
        return [process for process in self._processes.values() if not process.is_dead]

    def _adopt(self, loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any) -> Any:
        """A task belongs to the process it was made in, and dies with it."""
        task = asyncio.Task(work, loop=loop, **options)
        context: Context | None = options.get("context")
        if process := self._processes.get(PROCESS.get() if context is None else context[PROCESS]):
            process.tasks.append(task)
        return task

    async def _place(self, name: str) -> None:
        """One process after the other, until one lives to see the calm."""
        for number in count(1):
            process = self._processes[f"{name}{number}"] = Process(self, f"{name}{number}")
            await self._fare(process)
            if not process.is_dead:
                return
            await self.rest(0, 6)

    async def _fare(self, process: Process) -> None:
        """What happens to one process, to its death or to the calm."""
        while not process.is_dead:
            await process.start()
            await self.rest(3, 25)
            if self.is_calm:
                return
            fate = self.draw(FATES)
            self.ledger.say(f"{fate} {process.name}")
            self.ledger.facts[fate] += 1
            match fate:
                case "kill":
                    process.kill()
                case "stop":
                    await process.stop()
                    await self.rest(0, 6)
                case "cut off":
                    process.is_cut_off = True
                    await self.rest(1, 35)
                    process.is_cut_off = False

    # --- dice ---

    def draw(self, weights: Mapping[str, int]) -> str:
        return self.rng.choices(list(weights), list(weights.values()))[0]

    def tag(self) -> str:
        """By which a job is known from the call that brought it."""
        return f"order-{next(self._numbers)}"

    async def rest(self, low: float, high: float) -> None:
        """A while, or until the calm."""
        try:
            async with asyncio.timeout(self.rng.uniform(low, high)):
                await self._calm.wait()
        except TimeoutError:
            return
