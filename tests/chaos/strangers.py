"""A node whose workers nobody else knows is killed, and a stranger looks after its jobs."""

from __future__ import annotations

import asyncio

from jobs_async import Draft, JobOpts, JobState, current_context
from tests.chaos.fleet import Fleet, Place, until_asked_to_stop
from tests.chaos.ledger import violations
from tests.chaos.scenario import Report, main

JOBS = 5


def strangers(place: Place) -> Report:
    """The stranger frees them without knowing what they are, and leaves them to whoever knows."""
    with Fleet(place) as fleet:
        fleet.enqueue(*[Draft("letter", None, JobOpts(queue="letter"))] * JOBS)
        expert = fleet.start(work, "letter")
        fleet.until("all letters are being written", lambda: len(place.history().runs) == JOBS)
        stranger = fleet.start(work, "parcel")
        fleet.kill(expert)
        fleet.until("the stranger has freed them", lambda: place.count("state = 0 AND rescues = 1") == JOBS)
        fleet.enqueue(*[Draft("parcel", None, JobOpts(queue="parcel"))] * JOBS)
        fleet.until("the stranger has done work of his own", lambda: place.count("completed_at IS NOT NULL") == JOBS)
        fleet.start(work, "letter")
        fleet.until("all jobs have ended", place.is_done)
        fleet.stop()
    history = place.history()
    wrong = violations(history)
    for job_id, worker, state in place.ask("SELECT id, worker, state FROM jobs_async_jobs"):
        at_the_stranger = [run.pid == stranger.pid for run in history.runs[job_id]]
        if state != JobState.completed or at_the_stranger != ([False, False] if worker == "letter" else [True]):
            wrong.append(f"{worker} {job_id} is {JobState(state).name}; it ran at the stranger's: {at_the_stranger}")
    return {"states": history.counts(), "violations": wrong}


async def work(place: Place, what: str) -> None:
    async def body(_args: object) -> None:
        if what == "letter" and current_context().attempt == 1:
            await asyncio.Event().wait()

    async with place.supervisor(place.worker(what, body), queues={what: JOBS}):
        await until_asked_to_stop()


if __name__ == "__main__":
    main(strangers)
