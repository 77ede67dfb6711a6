"""A node is killed in the middle of its jobs, and another starts on the same host at once."""

from __future__ import annotations

import asyncio
from typing import Any

from jobs_async import Draft, current_context
from tests.chaos.fleet import HEARTBEAT, LEASE, RESCUE_INTERVAL, Fleet, Place, until_asked_to_stop
from tests.chaos.ledger import SECOND, violations
from tests.chaos.scenario import Report, main

JOBS = 5


def rescue(
    place: Place, *, lease: float = LEASE, beat: float = HEARTBEAT, sweep: float = RESCUE_INTERVAL, within: float = 3.5
) -> Report:
    """All that the dead one was running runs again within so many seconds."""
    pace: dict[str, Any] = {"lease": lease, "heartbeat": beat, "rescue_interval": sweep}
    with Fleet(place) as fleet:
        fleet.enqueue(*[Draft("work")] * JOBS)
        first = fleet.start(work, pace)
        fleet.until("all jobs run", lambda: len(place.history().runs) == JOBS)
        fleet.kill(first)
        fleet.start(work, pace)
        fleet.until("all jobs have ended", place.is_done)
        fleet.stop()
    history = place.history(lease)
    wrong = violations(history)
    [killed_at] = history.killed.values()
    again = [(second.began - killed_at) / SECOND for _, second in history.repeated()]
    if len(again) != JOBS or max(again) > within:
        wrong.append(f"of {JOBS} jobs these ran again, so many seconds after the kill: {again}")
    if len(history.nodes) != 2 or len({node.host for node in history.nodes.values()}) != 1:
        wrong.append(f"it takes two nodes on one host: {history.nodes}")
    return {"again_after": round(max(again, default=-1.0), 2), "violations": wrong}


async def work(place: Place, pace: dict[str, Any]) -> None:
    async def body(_args: object) -> None:
        if current_context().attempt == 1:
            await asyncio.Event().wait()

    async with place.supervisor(place.worker("work", body), **pace):
        await until_asked_to_stop()


if __name__ == "__main__":
    main(rescue)
