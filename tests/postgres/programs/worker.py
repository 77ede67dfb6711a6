"""A worker process in the middle of a job: DSN, seconds of grace. Ends by SIGTERM."""

from __future__ import annotations

import asyncio
import signal
import sys

from jobs_async import Supervisor
from jobs_async.stores.postgres import PostgresStore


async def main(dsn: str, grace: float) -> None:
    jobs = Supervisor(PostgresStore(dsn), queues={"default": 2}, poll_interval=0.1, shutdown_timeout=grace)

    @jobs.worker
    async def work() -> None:
        print("at work", flush=True)
        await asyncio.sleep(600)

    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, asked.set)
    async with jobs:
        await work.enqueue()
        await asked.wait()


asyncio.run(main(sys.argv[1], float(sys.argv[2])))
