"""Who wants something of a world: callers, customers and operators."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from jobs_async import Draft, Job, Supervisor, UniqueConflict
from jobs_async.core.options import NewJob
from tests.simulation.deeds import MAX_LIMIT, QUEUES, draft, mind, note
from tests.simulation.ledger import now
from tests.simulation.process import KILLED, Process

if TYPE_CHECKING:
    from tests.simulation.world import World

WISHES = {"cancel": 5, "retry": 4, "delete": 2, "edit": 3, "pause": 1, "resume": 3, "scale": 2}


async def caller(world: World) -> None:
    """Enqueues: inside some process, or behind the back of all."""
    while not world.is_calm:
        await world.rest(0.5, 7)
        process = world.rng.choice([None, *world.living()])
        tags = [world.tag() for _ in range(world.rng.choice((1, 1, 1, 2)))]
        await enqueue(world, process, [draft(world, tag) for tag in tags], tags)


async def enqueue(world: World, process: Process | None, drafts: list[Draft[Any]], tags: list[str]) -> list[Job[Any]]:
    """What was accepted; without a process nobody is told, and the next poll finds it."""
    answer: Any
    if process is not None:
        answer = await process.ask(process.jobs.enqueue_many(drafts))
    else:
        try:
            answer = await world.store.insert([NewJob.of(one.worker, one.args_json, one.opts) for one in drafts])
        except UniqueConflict as conflict:
            answer = conflict
    return note(world, tags, answer)


async def customer(world: World) -> None:
    """Waits for jobs, wherever they run."""
    while not world.is_calm:
        await world.rest(2, 10)
        if (living := world.living()) and world.ledger.rows:
            process, job_id = world.rng.choice(living), world.rng.choice(list(world.ledger.rows))
            answer = await process.ask(process.jobs.wait(job_id, timeout=world.rng.uniform(1, 20)))
            if isinstance(answer, Job):
                world.ledger.waits.append((now(), answer))
            elif not isinstance(answer, TimeoutError):
                mind(world, answer)


async def operator(world: World) -> None:
    """Meddles."""
    while not world.is_calm:
        await world.rest(0.5, 5)
        if (living := world.living()) and world.ledger.rows:
            process, job_id = world.rng.choice(living), world.rng.choice(list(world.ledger.rows))
            name, queue = world.draw(WISHES), world.rng.choice(list(QUEUES))
            world.ledger.say(f"{name} job {job_id} or queue {queue}, through {process.name}")
            answer = await process.ask(_wish(world, process.jobs, name, job_id, queue))
            world.ledger.facts[name] += not isinstance(answer, BaseException) and answer != KILLED
            mind(world, answer)


def _wish(world: World, jobs: Supervisor, name: str, job_id: int, queue: str) -> Coroutine[Any, Any, Any]:
    match name:
        case "cancel":
            return jobs.cancel(job_id)
        case "retry":
            return jobs.retry(job_id)
        case "delete":
            return jobs.delete(job_id)
        case "edit":
            return jobs.edit(job_id, queue=queue, priority=world.rng.randint(-2, 2), delay=world.rng.uniform(0, 9))
        case "pause":
            return jobs.pause_queue(queue)
        case "resume":
            return jobs.resume_queue(queue)
        case _:
            return jobs.scale_queue(queue, world.rng.choice((None, 1, 2, MAX_LIMIT)))
