"""A small shop: its Supervisor, and what a request does."""

from __future__ import annotations

import tasks

from jobs_async import Supervisor

jobs = Supervisor("sqlite:///shop.db", queues={"default": 10, "mail": 2}, workers=[tasks])


async def place_order(order: int, cents: int) -> int:
    """The id of the job that charges for it."""
    job = await tasks.charge.enqueue(order, cents)
    await jobs.enqueue("ask_for_review", {"order": order}, delay=7 * tasks.DAY, tags=["review"])
    return job.id
