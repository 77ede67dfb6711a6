"""Enqueues, runs, reads and operates on a file while its disk is full, and says what happens.

    python full_disk.py FILE

Commands on standard input: `full` and `free` (no write of this process to any file gets through, or all do again),
`go` (what runs may end), `try` (every operation once). Its end stops the program.

Lines: `stored N`, `refused N ERROR` of an enqueue; `ran N`; `read`, `unread ERROR`; `did VERB`, `failed VERB ERROR`;
`event TYPE`. N numbers the jobs. An ERROR that no user should meet has an exclamation mark.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any

from jobs_async import Event, JobQuery, JobState, SqliteStore, StoreError, Supervisor, Telemetry
from jobs_async.core.events import JobEvent, JobRescued, StaleSettlement

HELD = 3
"""So many of the first jobs end only when they are let go."""


def say(*words: object) -> None:
    """One write, so that nothing comes between."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def named(error: Exception) -> str:
    return type(error).__name__ if isinstance(error, StoreError) else f"{type(error).__name__}!"


class Program:
    def __init__(self, path: str) -> None:
        telemetry = Telemetry()
        telemetry.attach(self._told)
        self.path = path
        self.jobs = Supervisor(f"sqlite:///{path}", telemetry=telemetry, poll_interval=0.1, heartbeat=0.5)
        self.jobs.register_worker("number", self._run)
        self.producer = Supervisor(f"sqlite:///{path}", queues={})
        self.go, self.enough = asyncio.Event(), asyncio.Event()
        self.free = resource.getrlimit(resource.RLIMIT_FSIZE)

    async def _told(self, event: Event) -> None:
        if not isinstance(event, JobEvent) or isinstance(event, (JobRescued, StaleSettlement)):
            say("event", event.type)

    async def _run(self, number: Any, _ctx: object) -> None:
        if number < HELD:
            await self.go.wait()
        say("ran", number)

    async def enqueue(self) -> None:
        """Jobs of every kind, some of them due when the disk is full; from elsewhere, so it wakes nobody here."""
        for number in count():
            if self.enough.is_set():
                return
            options: dict[str, Any] = {"delay": number % 40 / 10} if number >= HELD and number % 2 else {}
            if number % 3 == 0:
                options["unique_key"] = f"job {number}"
            if number % 5 == 0:
                options["idempotency_key"] = f"job {number}"
            try:
                await self.producer.enqueue("number", number, **options)
            except Exception as error:
                say("refused", number, named(error))
            else:
                say("stored", number)
            await asyncio.sleep(0.02)

    async def read(self) -> None:
        while not self.enough.is_set():
            try:
                await self.jobs.counts()
                await self.jobs.find(JobQuery(limit=5))
                await self.jobs.store.nodes()
            except Exception as error:
                say("unread", named(error))
            else:
                say("read")
            await asyncio.sleep(0.05)

    async def try_all(self) -> None:
        """Each operation that writes."""

        async def open_another() -> None:
            async with SqliteStore(f"{self.path}.other"):
                pass

        jobs, store = self.jobs, self.jobs.store
        later = await jobs.find(JobQuery(states=[JobState.scheduled], limit=1))
        job_id = later[0].id
        verbs: dict[str, Callable[[], Awaitable[object]]] = {
            "edit": lambda: jobs.edit(job_id, priority=1),
            "cancel": lambda: jobs.cancel(job_id),
            "retry": lambda: jobs.retry(job_id),
            "delete": lambda: jobs.delete(job_id),
            "pause": lambda: jobs.pause_queue("other"),
            "resume": lambda: jobs.resume_queue("other"),
            "scale": lambda: jobs.scale_queue("other", 5),
            "purge": lambda: store.delete_completed(3600),
            "fetch": lambda: store.fetch("default", 1, node="nobody"),
            "open": open_another,
        }
        for verb, do in verbs.items():
            try:
                await do()
            except Exception as error:
                say("failed", verb, named(error))
            else:
                say("did", verb)
        say("tried")

    async def listen(self) -> None:
        hard = self.free[1]
        while line := await asyncio.to_thread(sys.stdin.readline):
            match line.strip():
                case "full":
                    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
                    say("full")
                case "free":
                    resource.setrlimit(resource.RLIMIT_FSIZE, self.free)
                    say("free")
                case "go":
                    self.go.set()
                case "try":
                    await self.try_all()

    async def main(self) -> None:
        async with self.producer, self.jobs:
            async with asyncio.TaskGroup() as busy:
                busy.create_task(self.enqueue())
                busy.create_task(self.read())
                await self.listen()
                self.enough.set()
            await self.drain()

    async def drain(self) -> None:
        """Until all that was stored has run."""
        while any(state is not JobState.completed for _, state in await self.jobs.counts()):
            await asyncio.sleep(0.05)


if __name__ == "__main__":
    asyncio.run(Program(sys.argv[1]).main())
