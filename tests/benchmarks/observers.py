"""What watching jobs costs: pairs of runs that differ in a handler alone, one after the other, in turns first.

A noisy machine slows both of a pair, so a figure is the median of the differences, or of the ratios, of all pairs.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from jobs_async import Draft, Event, MemoryStore, QueueHandler, SqliteStore, Store, Supervisor, Telemetry
from jobs_async.observe import Observability
from jobs_async.telemetry import Handler

MEMORY_JOBS, SQLITE_JOBS = 10_000, 3_000
CONCURRENCY = 100
PAIRS = 9
"""At least so many, whatever is asked for."""
EXPORT_SECONDS = 0.1
LOOK_AGAIN = 0.002
"""Seconds between two looks at whether all is completed."""


class Took(Struct, frozen=True):
    """What a run took, from the first enqueue until the last job is completed in the store."""

    cpu: float
    """Seconds of this process, all its threads."""
    drain: float
    """Seconds since the Supervisor was started, when all jobs were stored."""


async def run(store: Store, jobs: int, handler: Handler | None) -> Took:
    telemetry = Telemetry()
    if handler is not None:
        telemetry.attach(handler)
    supervisor = Supervisor(store, queues={"default": CONCURRENCY}, telemetry=telemetry)

    async def noop(_args: object, _ctx: object) -> None: ...

    supervisor.register_worker("noop", noop)
    async with store:
        cpu = time.process_time()
        for start in range(0, jobs, 1000):
            await supervisor.enqueue_many([Draft("noop") for _ in range(min(1000, jobs - start))])
        began = time.perf_counter()
        await supervisor.start()
        while {state.name for _, state in await store.tally()} != {"completed"}:
            await asyncio.sleep(LOOK_AGAIN)
        took = Took(time.process_time() - cpu, time.perf_counter() - began)
        assert (await supervisor.stop()).is_clean
    return took


def in_memory(handler: Handler) -> Took:
    return asyncio.run(run(MemoryStore(MEMORY_JOBS), MEMORY_JOBS, handler))


def in_a_file(handler: Handler | None) -> Took:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        return asyncio.run(run(SqliteStore(f"{folder}/jobs.db"), SQLITE_JOBS, handler))


def ignore(_event: Event) -> None: ...


def pairs(watched: Callable[[], Took], plain: Callable[[], Took], number: int) -> list[tuple[Took, Took]]:
    """One pair more than is told of, for the first is slow; who goes first takes turns."""
    found: list[tuple[Took, Took]] = []
    for pair in range(max(number, PAIRS) + 1):
        took: dict[Callable[[], Took], Took] = {}
        for one in (watched, plain) if pair % 2 else (plain, watched):
            gc.collect()
            took[one] = one()
        found.append((took[watched], took[plain]))
    return found[1:]


def prometheus_handler(rounds: int) -> dict[str, object]:
    """CPU time of a job that the handler of Prometheus takes, above that of a handler that does nothing."""

    def measured() -> Took:
        return in_memory(Observability("benchmark").prometheus().telemetry_handler())

    found = pairs(measured, lambda: in_memory(ignore), rounds)
    costs = sorted((one.cpu - other.cpu) / MEMORY_JOBS * 1e6 for one, other in found)
    return {
        "workload": "prometheus-handler",
        "cpu_us_per_job": round(statistics.median(costs), 2),
        "cpu_us_per_job_spread": [round(costs[0], 2), round(costs[-1], 2)],
        "cpu_us_per_job_without": round(statistics.median(other.cpu for _, other in found) / MEMORY_JOBS * 1e6, 1),
        "pairs": len(found),
    }


def slow_exporter(rounds: int) -> dict[str, object]:
    """Jobs per second with a sink behind a QueueHandler that sleeps on every event, to those that nobody watches."""

    def exporting() -> Took:
        over = threading.Event()

        def export(_event: Event) -> None:
            if not over.is_set():
                time.sleep(EXPORT_SECONDS)

        try:
            return in_a_file(QueueHandler(export))
        finally:
            over.set()  # what waits is passed on at once

    found = pairs(exporting, lambda: in_a_file(None), rounds)
    ratios = sorted(other.drain / one.drain for one, other in found)
    ratio = statistics.median(ratios)
    return {
        "workload": "slow-exporter",
        "jobs_per_s": round(SQLITE_JOBS / statistics.median(one.drain for one, _ in found)),
        "jobs_per_s_without": round(SQLITE_JOBS / statistics.median(other.drain for _, other in found)),
        "ratio": round(ratio, 3),
        "ratio_spread": [round(ratios[0], 3), round(ratios[-1], 3)],
        "goal": 0.95,
        "reached": ratio >= 0.95,
        "pairs": len(found),
    }


OBSERVERS: dict[str, Callable[[int], dict[str, object]]] = {
    "prometheus-handler": prometheus_handler,
    "slow-exporter": slow_exporter,
}
