"""Run some jobs here and now, and watch them: no store, no Supervisor, no retries.

    python examples/in_process.py

A program that closes the books of a day has three things to do, and wants to know which of them failed. A runner tells
an observer about each, through a channel, so that a slow sink would hold up no job.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from jobs_async.inprocess import (
    AsyncJobQueue,
    Finished,
    JobError,
    JobEventReceiver,
    JobReport,
    ObservedJobRunner,
    Started,
    job_observer_channel,
)


@dataclass
class SendDigest:
    """A job that awaits; what it needs to know, it holds."""

    to: str
    name: str = "send_digest"

    async def run(self) -> None:
        if "@" not in self.to:
            raise JobError(f"{self.to!r} is no address")
        await asyncio.sleep(0)


class AddUp:
    """A plain job, which may go into the same queue."""

    name = "add_up"

    def run(self) -> int:
        return sum(range(100))


async def print_events(receiver: JobEventReceiver) -> None:
    """The slow sink: goes on until nobody can send any more."""
    async for event in receiver:
        match event:
            case Started(context):
                print(f"{context.job_name} started for {context.attributes['day']}")
            case Finished(context, status):
                print(f"{context.job_name} finished: {status}")


async def close_books(day: str) -> JobReport:
    """Run the jobs of a day, and print what happens."""
    queue = AsyncJobQueue()
    queue.push(AddUp())
    queue.push(SendDigest("ada@example.org"))
    queue.push(SendDigest("nobody"))

    observer, receiver = job_observer_channel()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(print_events(receiver))
        report = await queue.run_all_observed(ObservedJobRunner(observer).context("day", day))
        observer.close()
    return report


async def main() -> None:
    report = await close_books("2026-03-01")
    print("completed:", *report.completed)
    for failure in report.failed:
        print(f"failed: {failure.job}, {failure.error}")


if __name__ == "__main__":
    asyncio.run(main())
