"""What handlers do when they are called, and what is asked of them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from jobs_async import (
    Cancel,
    Discard,
    Draft,
    Job,
    JobContext,
    JobOpts,
    JobsError,
    Snooze,
    UniqueConflict,
    UniqueStrategy,
)
from tests.simulation.ledger import Call, now

if TYPE_CHECKING:
    from tests.simulation.world import World

QUEUES = {"a": 3, "b": 2}
MAX_LIMIT = 4
"""The most that an operator lets a queue run at once."""
DEEDS = {
    "return": 3,
    "work": 6,
    "fail": 4,
    "snooze": 2,
    "cancel": 1,
    "discard": 1,
    "hang": 2,
    "be deaf": 2,
    "enqueue": 2,
    "tell": 2,
    "exit": 1,
    "cut itself": 1,
}
AFTER_THE_STORM = {"return": 6, "fail": 1}
PROBE = {"probe": True}


async def behave(world: World, args: Any, context: JobContext) -> Any:
    """What a handler does this time."""
    if args == PROBE:
        return None
    deed = world.draw(AFTER_THE_STORM if world.is_calm else DEEDS)
    world.ledger.say(f"job {context.job.id} is going to {deed}")
    match deed:
        case "work":
            await asyncio.sleep(world.rng.uniform(0, 6))
        case "fail":
            await asyncio.sleep(world.rng.uniform(0, 1))
            raise ValueError("on purpose")
        case "snooze":
            raise Snooze(world.rng.uniform(0, 8))
        case "cancel":
            raise Cancel
        case "discard":
            raise Discard
        case "hang":
            await asyncio.sleep(10_000)
        case "be deaf":
            await _hear_nothing(world.rng.uniform(1, 25))
        case "enqueue":
            await _enqueue_within(world, context)
        case "tell":
            await context.progress(world.rng.random())
        case "exit":
            raise SystemExit
        case "cut itself":
            raise asyncio.CancelledError
    return deed


async def _enqueue_within(world: World, context: JobContext) -> None:
    tag = world.tag()
    try:
        note(world, [tag], [await context.enqueue(draft(world, tag))])
    except BaseException as error:
        note(world, [tag], error)
        raise


async def _hear_nothing(seconds: float) -> None:
    """Not even a cancellation."""
    until = now() + seconds
    while now() < until:
        try:
            await asyncio.sleep(until - now())
        except asyncio.CancelledError:
            continue


def draft(world: World, tag: str) -> Draft[Any]:
    rng = world.rng
    options: dict[str, Any] = {
        "tags": [tag],
        "queue": rng.choice(list(QUEUES)),
        "priority": rng.randint(-1, 1),
        "max_attempts": rng.choice((1, 2, 3, 5)),
        "timeout_seconds": rng.choice((3, 10, 30)),
    }
    if rng.random() < 0.3:
        options["delay"] = rng.uniform(0, 12)
    if rng.random() < 0.35:
        options |= {"unique_key": rng.choice("uvw"), "unique_strategy": rng.choice(list(UniqueStrategy))}
    if rng.random() < 0.2:
        options["idempotency_key"] = rng.choice("ij")
    return Draft(world.draw({"common": 16, "rare": 3, "unknown": 1}), {}, JobOpts(**options))


def note(world: World, tags: list[str], answer: Any) -> list[Job[Any]]:
    """Write down what a caller was told."""
    ledger, jobs = world.ledger, answer if isinstance(answer, list) else []
    word = "accepted" if jobs else "refused" if isinstance(answer, UniqueConflict) else "unknown"
    ledger.calls.append(Call(tags, word, jobs))
    ledger.facts[word] += 1
    ledger.facts["duplicate"] += sum(job.duplicate for job in jobs)
    ledger.facts["replaces"] += sum(job.replaces is not None for job in jobs)
    if not jobs:
        mind(world, answer)
    return jobs


def mind(world: World, answer: Any) -> None:
    """Errors of the house and of the line are the weather; any other is a bug."""
    weather = (JobsError, ConnectionError, asyncio.CancelledError)
    if isinstance(answer, BaseException) and not isinstance(answer, weather):
        world.ledger.surprises.append(f"somebody was told {answer!r}")
