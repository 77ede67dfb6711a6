"""What the parts of the runtime need of the Supervisor they live in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from random import Random

    from jobs_async.core.job import Job
    from jobs_async.core.options import Draft
    from jobs_async.core.schedule import CronEntry
    from jobs_async.core.store import Clock, Store, Tick
    from jobs_async.runtime.instruments import Instruments


class Host(Protocol):
    """A Supervisor, seen from inside."""

    store: Store
    clock: Clock
    rng: Random
    instruments: Instruments

    async def enqueue(self, draft: Draft[Any], /, *, connection: object = None) -> Job[Any]: ...

    async def insert_tick(self, entry: CronEntry | None, tick: Tick) -> list[Job[Any]]: ...


class Timed(Protocol):
    """What has a store and a clock."""

    store: Store
    clock: Clock


def clock_of(host: Timed) -> Clock:
    """The store's where it has one that all nodes share: a node whose own is wrong shall fire no tick early."""
    shared: Clock | None = getattr(host.store, "shared_clock", None)
    return shared or host.clock
