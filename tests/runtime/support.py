"""A Supervisor on virtual time, and a telemetry handler that can be waited for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

from jobs_async import Event, Job, MemoryStore, Supervisor, Telemetry
from jobs_async.core.events import JobEvent
from jobs_async.testing.loop import LoopClock, run_virtual

GUARD = 100_000.0
"""Virtual seconds after which a fact is taken for one that never comes."""


class Seen:
    """Every event, and the means to wait for one."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._news = asyncio.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self._news.set()

    def of(self, kind: type[Event], job: Job[Any] | None = None) -> list[Any]:
        return [
            event
            for event in self.events
            if isinstance(event, kind) and (job is None or (isinstance(event, JobEvent) and event.job.id == job.id))
        ]

    async def wait(self, kind: type[Event], job: Job[Any] | None = None, count: int = 1) -> Any:
        async with asyncio.timeout(GUARD):
            while len(self.of(kind, job)) < count:
                self._news.clear()
                await self._news.wait()
        return self.of(kind, job)[count - 1]

    def types(self, job: Job[Any] | None = None) -> list[str]:
        return [event.type for event in self.of(JobEvent, job)]


class World:
    """One store on virtual time and the Supervisors made on it."""

    def __init__(self) -> None:
        self.clock = LoopClock()
        self.store = MemoryStore(clock=self.clock)
        self.seen = Seen()

    def supervisor(self, store: Any = None, **options: Any) -> Supervisor:
        telemetry = options.pop("telemetry", None) or Telemetry()
        telemetry.attach(self.seen)
        options.setdefault("rng", Random(7))
        options.setdefault("max_stall", None)  # a watchdog lives in real time
        return Supervisor(store or self.store, telemetry=telemetry, clock=self.clock, **options)


def now() -> float:
    """Virtual seconds since the test began."""
    return asyncio.get_running_loop().time()


def virtual(test: Callable[[World], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run an async test that takes a World on a loop whose time is virtual; nothing may be left running."""

    async def main() -> None:
        world = World()
        await test(world)
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for _ in range(3):  # what was cancelled has its last word
            await asyncio.sleep(0)
        left = [task for task in left if not task.done()]
        assert not left, left

    def run() -> None:
        run_virtual(main())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run
