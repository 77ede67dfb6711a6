"""Two nodes that live share one file: each job runs once, however many there are and however long they take."""

from __future__ import annotations

import asyncio

from jobs_async import Draft, JobState
from tests.chaos.fleet import LEASE, Fleet, Place, until_asked_to_stop
from tests.chaos.ledger import violations
from tests.chaos.scenario import Report, main


def once(place: Place, *, jobs: int = 1000, seconds: float = 0.0, limit: int = 8, lease: float = LEASE) -> Report:
    """Every job is claimed once, and both nodes do their share."""
    with Fleet(place) as fleet:
        for _ in range(2):
            fleet.start(work, limit, lease)
        fleet.until("both nodes live", lambda: len(place.history().nodes) == 2)
        fleet.enqueue(*[Draft("work", seconds)] * jobs)
        fleet.until("all jobs have ended", place.is_done)
        fleet.stop()
    history = place.history(lease)
    wrong = violations(history)
    for row in history.rows.values():
        if (row.state, row.attempt, row.claim, len(history.runs[row.id])) != (JobState.completed, 1, 1, 1):
            wrong.append(f"{row}, which ran {len(history.runs[row.id])} times")
    shares = [sum(runs[0].pid == pid for runs in history.runs.values()) for pid in history.pids]
    if len(shares) != 2:
        wrong.append("one node did everything")
    return {"shares": shares, "duplicates": len(history.repeated()), "violations": wrong}


async def work(place: Place, limit: int, lease: float) -> None:
    async def body(seconds: float) -> None:
        await asyncio.sleep(seconds)

    pace = {"lease": lease, "heartbeat": lease / 4, "rescue_interval": lease / 4}
    async with place.supervisor(place.worker("work", body), limit=limit, **pace):
        await until_asked_to_stop()


if __name__ == "__main__":
    main(once)
