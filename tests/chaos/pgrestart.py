"""F3: the server dies at once, again and again, under processes that enqueue and processes that work."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial
from random import Random
from typing import Any

from tests.chaos.callers import Calls, call_on
from tests.chaos.fleet import Fleet, Place, until_asked_to_stop
from tests.chaos.ledger import SECOND, now, violations
from tests.chaos.scenario import Report, main

NODES, CALLERS, LIMIT = 4, 2, 4
LEASE, HEARTBEAT = 15.0, 1.0
"""Longer than the server is away."""
RATE = 150.0
"""Jobs a second of each caller."""

logger = logging.getLogger("chaos")


def pgrestart(
    place: Place, *, restarts: int = 20, every: float = 3.0, mode: str = "immediate", within: float = 5.0
) -> Report:
    """Each time all nodes claim again within so many seconds after the server is ready; and no job runs twice."""
    dice = place.dice()
    away: list[float] = []
    back: list[float] = []
    with Fleet(place) as fleet:
        nodes = [fleet.start(work) for _ in range(NODES)]
        pids = {node.pid for node in nodes}
        callers = [fleet.start(call_on, seconds_of, RATE) for _ in range(CALLERS)]
        fleet.until("all of them work", partial(have_begun, place, pids, 0))
        for _ in range(restarts):
            time.sleep(dice.uniform(0.5, 1.5) * every)
            began = now()
            place.server.restart(mode)
            ready, start = now(), place.ledger.length
            fleet.until("all claim again", partial(have_begun, place, pids, start))
            away.append((ready - began) / SECOND)
            back.append((max(first_begins(place, start).values()) - ready) / SECOND)
        place.enough()
        fleet.until("all calls have ended", lambda: not any(caller.is_alive() for caller in callers))
        fleet.until("all jobs have ended", place.is_done)
        wrong = place.check_now()
        fleet.stop()
    history, calls = place.history(LEASE), Calls(place)
    repeated = len(history.repeated())
    leases_lost = sum("lost its lease" in line["text"] for line in place.logged())
    wrong += violations(history) + calls.wrong + place.left_behind()
    wrong += [line["text"] for line in place.logged() if line["logger"] == logger.name]
    wrong += [f"all nodes claimed again after {seconds:.1f} s" for seconds in back if seconds > within]
    if repeated and not leases_lost:
        wrong.append(f"{repeated} jobs ran again, and no lease was lost")
    return {
        "accepted": len(history.accepted),
        "calls": calls.made,
        "unknown": dict(calls.unknown),
        "lost": len(history.accepted - history.rows.keys()),
        "repeated": repeated,
        "leases_lost": leases_lost,
        "away": [round(seconds, 1) for seconds in away],
        "back_after": [round(seconds, 1) for seconds in back],
        "states": history.counts(),
        "violations": wrong,
    }


def have_begun(place: Place, pids: set[int | None], start: int) -> bool:
    return pids <= first_begins(place, start).keys()


def first_begins(place: Place, start: int) -> dict[int, int]:
    """When each process first began a job in what the ledger says from there on."""
    began: dict[int, int] = {}
    for mark in place.marks(start):
        if mark.kind == "B":
            began.setdefault(mark.pid, mark.ns)
    return began


def seconds_of(dice: Random) -> float:
    return dice.uniform(0, 0.1)


# --- inside the processes ---


async def work(place: Place) -> None:
    async def body(seconds: float) -> None:
        await asyncio.sleep(seconds)

    pace: dict[str, Any] = {"lease": LEASE, "heartbeat": HEARTBEAT}
    async with place.supervisor(place.worker("work", body), limit=LIMIT, **pace) as jobs:
        await until_asked_to_stop()
        if not jobs.is_running:
            logger.error("a Supervisor has stopped by itself")


if __name__ == "__main__":
    main(pgrestart, "postgres", durable=True)
