"""A worker process that ends on SIGTERM, in the documented way.

python worker.py FILE

Lines: `ready`; `began ID`, `ended ID` for each job.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import suppress
from random import Random

from jobs_async import Supervisor, current_context


def say(*words: object) -> None:
    """One write, so that a thread cannot come between."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


async def main(path: str) -> None:
    jobs = Supervisor(f"sqlite:///{path}", queues={"default": 5}, shutdown_timeout=0.05, poll_interval=0.05)

    @jobs.worker
    async def brief() -> None:
        job = current_context().job
        say("began", job.id)
        await asyncio.sleep(Random(job.id).expovariate(1 / 0.1))
        say("ended", job.id)

    @jobs.worker
    def plain() -> None:
        job = current_context().job
        say("began", job.id)
        time.sleep(Random(job.id).uniform(0, 0.05))
        say("ended", job.id)

    host = asyncio.create_task(jobs.run())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, host.cancel)
    say("ready")
    with suppress(asyncio.CancelledError):
        await host


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
