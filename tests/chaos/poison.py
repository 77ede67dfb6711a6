"""F18: jobs that kill whoever runs them."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any

from jobs_async import ConstantBackoff, Draft, ExponentialBackoff, JobState
from tests.chaos.fleet import LEASE, Fleet, Place, until_asked_to_stop
from tests.chaos.ledger import violations
from tests.chaos.scenario import Report, main

MAX_RESCUES = 3


def poison(place: Place, *, bad: int = 10, good: int = 1000, lease: float = LEASE, base: float = 15.0) -> Report:
    """Bad jobs among good ones, and one process that is started again whenever it dies.

    `base` is that of the good jobs' back-off, otherwise the default one; 0: they wait exactly as the bad ones do.
    """
    dice = place.dice()
    drafts = [Draft("bad")] * bad + [Draft("good", dice.uniform(0, 0.005)) for _ in range(good)]
    dice.shuffle(drafts)
    deaths = 0
    with Fleet(place) as fleet:
        fleet.enqueue(*drafts)
        while not place.is_done():
            process = fleet.start(work, lease, base)
            fleet.until("it is dead, or all is done", partial(_is_over, place, process))
            if not process.is_alive():
                fleet.bury(process)
                deaths += 1
        fleet.stop()
    history = place.history(lease)
    wrong = violations(history)
    runs: dict[str, list[int]] = {"bad": [], "good": []}
    for job_id, worker, state in place.ask("SELECT id, worker, state FROM jobs_async_jobs"):
        runs[worker].append(len(history.runs.get(job_id, [])))
        if state != (JobState.discarded if worker == "bad" else JobState.completed):
            wrong.append(f"job {job_id}, a {worker} one, ended {JobState(state).name}")
    if max(runs["bad"]) > MAX_RESCUES + 1:
        wrong.append("bad jobs ran too often")
    return {
        "deaths": deaths,
        "bad_runs": sorted(runs["bad"]),
        "good_repeated": sum(runs["good"]) - good,
        "violations": wrong,
    }


def _is_over(place: Place, process: BaseProcess) -> bool:
    return not process.is_alive() or place.is_done()


async def work(place: Place, lease: float, base: float) -> None:
    async def live_on(seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def die(_args: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    soon = ConstantBackoff(0.1)
    later = ExponentialBackoff(base) if base else soon
    workers = [
        place.worker("good", live_on, retry_strategy=later),
        place.worker("bad", die, retry_strategy=soon),
    ]
    pace: dict[str, Any] = {"lease": lease, "heartbeat": lease / 4, "rescue_interval": lease / 4}
    async with place.supervisor(*workers, max_rescues=MAX_RESCUES, **pace):
        await until_asked_to_stop()


if __name__ == "__main__":
    main(poison)
