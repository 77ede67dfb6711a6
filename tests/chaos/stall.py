"""F21: a handler blocks the event loop of its node for longer than the lease."""

from __future__ import annotations

import asyncio
import time

from jobs_async import Draft, JobState, current_context
from tests.chaos.fleet import Fleet, Place, until_asked_to_stop
from tests.chaos.ledger import SECOND, violations
from tests.chaos.scenario import Report, main

NEIGHBOURS = 6
TOLD_WITHIN = 1.5
"""Seconds from the begin of a stall to its line in the log."""


def stall(place: Place, *, seconds: float = 5.0, max_stall: float = 300.0) -> Report:
    """One of two nodes is blocked: within `max_stall` that costs nobody anything, beyond it the other takes over."""
    runs_expected = 1 if seconds < max_stall else 2
    with Fleet(place) as fleet:
        for _ in range(2):
            fleet.start(work, seconds, max_stall)
        fleet.until("both nodes live", lambda: len(place.history().nodes) == 2)
        fleet.enqueue(*[Draft("neighbour")] * NEIGHBOURS, Draft("block"))
        fleet.until("all jobs have ended", place.is_done)
        if runs_expected > 1:
            fleet.until("late settlements were refused", lambda: place.history().stale)
        fleet.stop()
    history = place.history()
    wrong = violations(history)
    blocker = max(history.accepted)
    blocked = history.runs[blocker][0]
    for row in history.rows.values():
        runs = history.runs[row.id]
        if row.state is not JobState.completed or len(runs) != runs_expected:
            wrong.append(f"job {row.id} is {row.state.name} and ran {len(runs)} times")
        if runs[0].pid != blocked.pid:
            wrong.append(f"job {row.id} is no neighbour of the one that blocked")
        if any(run.pid == blocked.pid for run in runs[1:]):
            wrong.append(f"job {row.id} ran again where the loop was blocked")
    refused = [mark.claim for mark in history.stale if mark.id == blocker]
    if refused != [blocked.claim] * (runs_expected - 1):
        wrong.append(f"refused were settlements under the claims {refused}")
    told = [
        (line["ns"] - blocked.began) / SECOND
        for line in place.logged()
        if line["pid"] == blocked.pid and "time.sleep(seconds)  # the blocker" in line["text"]
    ]
    if not told or min(told) > TOLD_WITHIN:
        wrong.append(f"the stack of the blocker was logged {told} seconds after the block began")
    return {
        "runs": {job_id: len(runs) for job_id, runs in history.runs.items()},
        "refused": len(history.stale),
        "told_after": round(min(told, default=-1.0), 2),
        "violations": wrong,
    }


async def work(place: Place, seconds: float, max_stall: float) -> None:
    async def block(_args: object) -> None:
        job = current_context().job
        if job.attempt == 1:
            time.sleep(seconds)  # the blocker
            return
        async with asyncio.timeout(2 * seconds):  # still running when the settlement of the first run comes
            while job.id not in {mark.id for mark in place.history().stale}:
                await asyncio.sleep(0.05)

    async def live_on(_args: object) -> None:
        await asyncio.sleep(0.2)

    workers = [place.worker("block", block), place.worker("neighbour", live_on)]
    async with place.supervisor(*workers, limit=NEIGHBOURS + 1, max_stall=max_stall):
        await until_asked_to_stop()


if __name__ == "__main__":
    main(stall)
