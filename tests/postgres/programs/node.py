"""A node, and nothing else: `python node.py DSN [PAUSE]` runs jobs at a quick pace until its input ends."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from jobs_async import JobContext, Supervisor

OPTIONS = json.loads(sys.argv[2]) if len(sys.argv) > 2 else {}

jobs = Supervisor(sys.argv[1], **OPTIONS)


@jobs.worker
async def where() -> int:
    return os.getpid()


@jobs.worker(context=True, timeout_seconds=None)
async def linger(ctx: JobContext) -> int:
    """Until the process is killed; in its second life it ends."""
    if ctx.attempt == 1:
        await asyncio.Event().wait()
    return os.getpid()


async def main() -> None:
    async with jobs:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


asyncio.run(main())
