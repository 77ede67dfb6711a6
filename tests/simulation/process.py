"""One process of a world: a Supervisor behind a line of its own to the store."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextvars import copy_context
from random import Random
from typing import TYPE_CHECKING, Any

from jobs_async import Event, FullJitterBackoff, JobContext, Supervisor, Telemetry
from jobs_async.core.events import JobEvent
from jobs_async.testing.faults import Fault, FaultyStore
from jobs_async.testing.loop import LoopClock
from tests.simulation.deeds import QUEUES, behave
from tests.simulation.ledger import PROCESS, now

if TYPE_CHECKING:
    from tests.simulation.world import World

POLL = 5.0
LEASE = 20.0
RESCUE = 10.0
GRACE = 8.0
STOP_WITHIN = GRACE + 6
KILLED = "killed"


class Process:
    """Once killed, nothing it does gets through to the store, and nothing it says counts."""

    def __init__(self, world: World, name: str) -> None:
        self.name = name
        self.is_cut_off = False
        self.tasks: list[asyncio.Task[Any]] = []
        self._world = world
        self._ledger = world.ledger
        self._line = FaultyStore(world.store, self._plan)
        telemetry = Telemetry()
        telemetry.attach(self._hear)
        self.jobs = Supervisor(
            self._line,
            queues=QUEUES,
            telemetry=telemetry,
            poll_interval=POLL,
            shutdown_timeout=GRACE,
            max_stall=None,
            lease=LEASE,
            rescue_interval=RESCUE,
            clock=LoopClock(),
            rng=Random(f"{world.seed} {name}"),
        )
        for worker in ("common", "rare") if name.startswith("A") else ("common",):
            self.jobs.register_worker(worker, self._handle, retry_strategy=FullJitterBackoff(1, 8))

    @property
    def is_dead(self) -> bool:
        return self.name in self._ledger.dead

    def spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """A task of this process."""
        context = copy_context()
        context.run(PROCESS.set, self.name)
        return asyncio.get_running_loop().create_task(work, context=context)

    async def ask(self, work: Coroutine[Any, Any, Any]) -> Any:
        """What a caller in this process is told: an answer, or the error; KILLED where it did not live to hear it."""
        task = self.spawn(work)
        await asyncio.wait({task})
        return KILLED if task.cancelled() else task.exception() or task.result()

    async def start(self) -> None:
        """However often it takes."""
        while not self.jobs.is_running:
            await self.ask(self.jobs.start())
            await asyncio.sleep(0.5)

    async def stop(self) -> None:
        began = now()
        report = await self.ask(self.jobs.stop())
        self._ledger.stops.append((self.name, now() - began))
        self._ledger.say(f"stopped: {report}")

    def kill(self) -> None:
        self._line.cut()
        self._ledger.dead.add(self.name)
        for run in self._ledger.runs:
            if run.process == self.name:
                self._ledger.end(run, "died")
        for task in self.tasks:
            task.cancel()

    def _plan(self, call: int, primitive: str) -> Fault | None:
        return Fault(error=ConnectionError) if self.is_cut_off else self._world.weather(call, primitive)

    def _hear(self, event: Event) -> asyncio.Task[None] | None:
        """Says what happened; sometimes it dawdles, or fails."""
        if self.is_dead:
            return None
        self._ledger.facts[event.type] += 1
        self._ledger.say(f"{event.type} {event.job.id}" if isinstance(event, JobEvent) else event.type)
        dice = 1.0 if self._world.is_calm else self._world.rng.random()
        if dice < 0.01:
            raise ValueError("on purpose")
        return self.spawn(asyncio.sleep(100 * dice)) if dice < 0.06 else None

    async def _handle(self, args: Any, context: JobContext) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.append(task)
        if self.is_dead:
            return None
        run = self._ledger.begin(context.job)
        end = "returned"
        try:
            return await behave(self._world, args, context)
        except BaseException as error:
            end = type(error).__name__
            raise
        finally:
            self._ledger.end(run, end)
