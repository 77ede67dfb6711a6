"""An application for `jobs-async run tests.cli.programs.shop:jobs`.

SHOP_FILE is where its jobs are, and beside it the files that some of them wait for, and `ledger`, to which each job
writes a line when it begins and one when it ends; SHOP_GRACE its shutdown_timeout.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from pathlib import Path

from jobs_async import Supervisor, current_context

FILE = Path(os.environ["SHOP_FILE"])

jobs = Supervisor(
    f"sqlite:///{FILE}",
    queues={"default": 2, "mail": 3},
    shutdown_timeout=float(os.environ.get("SHOP_GRACE", "60")),
    poll_interval=0.05,
    heartbeat=0.25,
    lease=float(os.environ.get("SHOP_LEASE", "2")),
    rescue_interval=0.25,
)
nothing = Supervisor(f"sqlite:///{FILE}", queues={})
crons = Supervisor("memory://", queues={})
crons.register_cron("yearly", "0 0 1 1 *", "brief")


def make() -> Supervisor:
    return jobs


async def make_later() -> Supervisor:
    return jobs


def make_badly() -> Supervisor:
    raise ValueError("no settings")


def note(event: str) -> None:
    """One write, so that processes do not come between."""
    job = current_context().job
    with open(FILE.with_name("ledger"), "ab", buffering=0) as ledger:
        ledger.write(f"{event} {job.id} {job.worker} {os.getpid()}\n".encode())


def is_there(name: str) -> bool:
    return FILE.with_name(name).exists()


@jobs.worker
async def brief() -> None:
    note("began")
    await asyncio.sleep(0.01)
    note("ended")


@jobs.worker
async def gated() -> None:
    """Ends when it is let go, or cancelled."""
    note("began")
    try:
        while not is_there("go"):
            await asyncio.sleep(0.005)
        note("ended")
    except asyncio.CancelledError:
        note("cut")
        raise


@jobs.worker
def deaf() -> None:
    """A thread that nobody can end."""
    note("began")
    while not is_there("enough"):
        time.sleep(0.005)


@jobs.worker
async def blocks() -> None:
    """Holds up the event loop."""
    note("began")
    while not is_there("enough"):
        time.sleep(0.005)


@jobs.worker
async def leaves_a_thread() -> None:
    threading.Thread(target=wait_for_ever).start()


def wait_for_ever() -> None:
    while not is_there("enough"):
        time.sleep(0.005)


@jobs.worker(max_attempts=1)
async def fails() -> None:
    raise OSError("no")
