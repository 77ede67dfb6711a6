"""A status page that keeps itself up to date: cron entries beside ordinary jobs, in a file that survives restarts.

    python examples/cron_app.py [status.db]

Every minute the sites are checked, one job each; every night at half past two in Paris, whatever the clocks do, old
results go. Start it twice on the same file: each minute is still checked once. Stop one, or both for a while: what was
missed in the last ten minutes is caught up with. Ctrl-C ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

from jobs_async import JobState, SqliteStore, Supervisor, current_context

SITES = ("https://example.org", "https://example.net")

Probe = Callable[[str], Awaitable[bool]]


async def answers(url: str) -> bool:
    """Whether anybody listens there."""
    try:
        async with asyncio.timeout(5):
            _, writer = await asyncio.open_connection(urlsplit(url).hostname, 443)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True


def make(store: SqliteStore, probe: Probe = answers) -> Supervisor:
    """The workers and their schedule."""
    jobs = Supervisor(store)

    @jobs.worker(max_attempts=2)
    async def check(url: str, due: str) -> bool:
        up = await probe(url)
        print(f"{due}  {url} {'is up' if up else 'does not answer'}")
        return up

    @jobs.cron("* * * * *")
    async def check_all() -> None:
        due = current_context().job.meta["cron_at"]
        await jobs.enqueue_many(check.options(unique_key=f"check:{url}").draft(url, due) for url in SITES)

    @jobs.cron("30 2 * * *", timezone="Europe/Paris", catch_up="none")
    async def forget() -> None:
        await jobs.store.purge([JobState.completed, JobState.discarded], timedelta(days=7))

    return jobs


async def main(path: Path) -> None:
    jobs = make(SqliteStore(path))
    for name, entry in jobs.crons.items():
        print(f"{name}: {entry.expression} ({entry.expression.timezone})")
    await jobs.run()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else "status.db")))
