"""Runs the jobs of a file that others control, until its standard input is closed.

    python controlled.py FILE FOLDER        what `held` jobs wait for is a file of their name in FOLDER

Says `ready` once it runs. What the handlers saw is in the jobs themselves, as progress and result.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from jobs_async import JobContext, Supervisor, current_context
from tests.sqlite.support import until


def supervisor(path: str, folder: Path) -> Supervisor:
    jobs = Supervisor(
        f"sqlite:///{path}", queues={"default": 10, "scaled": 4}, heartbeat=0.05, lease=10, poll_interval=0.02
    )
    running: set[int] = set()

    @jobs.worker
    async def echo(text: str) -> str:
        return text

    @jobs.worker
    async def held(until_there: str) -> int:
        """Say how many ran at once when this one began."""
        running.add(current_context().job.id)
        peak = len(running)

        async def is_there() -> bool:
            return (folder / until_there).exists()

        try:
            await until(is_there)
        finally:
            running.discard(current_context().job.id)
        return peak

    @jobs.worker(context=True)
    async def polite(ctx: JobContext) -> str:
        """Come to an end when told to, and say how far it was."""
        assert ctx.deadline is not None
        await ctx.progress(0.25, ctx.deadline.isoformat())
        await ctx.cancelled.wait()
        return "as far as I got"

    @jobs.worker(context=True)
    async def deaf(ctx: JobContext) -> str:
        """Hear it, leave a file named `told`, and go on."""
        await ctx.progress(0.25, "not told")
        await ctx.cancelled.wait()
        (folder / "told").touch()
        await asyncio.Event().wait()
        return "never"

    return jobs


async def main(path: str, folder: str) -> None:
    async with supervisor(path, Path(folder)):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
