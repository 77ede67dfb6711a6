"""What watching jobs costs: rounds of runs that differ in a handler alone, one after the other.

A noisy machine slows all of a round, so a figure is the median of the differences, or of the ratios, of all rounds.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from jobs_async import Draft, Event, MemoryStore, QueueHandler, SqliteStore, Store, Supervisor, Telemetry
from jobs_async.observe import Observability
from jobs_async.telemetry import Handler

MEMORY_JOBS, SQLITE_JOBS = 4_000, 1_500
CONCURRENCY = 100
ROUNDS = 21
"""At least so many, whatever is asked for: runs are short, and a few of them always meet a busy machine."""
EXPORT_SECONDS = 0.1
GOAL = 0.95
"""The share of jobs per second that a slow exporter must leave."""
CPU_GOAL = 10.0
"""Microseconds of this process that the handler of Prometheus may take for a job."""
LOOK_AGAIN = 0.002
"""Seconds between two looks at whether all is completed."""


class Took(Struct, frozen=True):
    """What a run took, from the first enqueue until the last job is completed in the store."""

    cpu: float
    """Seconds of this process, all its threads."""
    drain: float
    """Seconds since the Supervisor was started, when all jobs were stored."""


logging.getLogger("jobs_async.telemetry").setLevel(logging.ERROR)  # that a sink is too slow is the point


async def run(store: Store, jobs: int, handler: Handler | None, then: Callable[[], object] = bool) -> Took:
    """`then` is called when the last job is completed, before the stop."""
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
        then()
        assert (await supervisor.stop()).is_clean
    return took


def in_memory(handler: Handler | None) -> Took:
    return asyncio.run(run(MemoryStore(MEMORY_JOBS), MEMORY_JOBS, handler))


def in_a_file(handler: Handler | None, then: Callable[[], object] = bool) -> Took:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        return asyncio.run(run(SqliteStore(f"{folder}/jobs.db"), SQLITE_JOBS, handler, then))


def ignore(_event: Event) -> None: ...


def in_turns(arms: Sequence[Callable[[], Took]], rounds: int) -> list[list[Took]]:
    """What each arm took in each round. Who goes first takes turns, and the first round, which is slow, is left out."""
    found: list[list[Took]] = []
    for number in range(max(rounds, ROUNDS) + 1):
        took: dict[int, Took] = {}
        for turn in range(len(arms)):
            arm = (number + turn) % len(arms)
            gc.collect()
            took[arm] = arms[arm]()
        found.append([took[arm] for arm in range(len(arms))])
    return found[1:]


def summary(name: str, numbers: Sequence[float], digits: int) -> dict[str, object]:
    """The median, and between what half of the numbers are."""
    low, median, high = (round(number, digits) for number in statistics.quantiles(numbers, n=4))
    return {name: median, f"{name}_quartiles": [low, high]}


def prometheus_handler(rounds: int) -> dict[str, object]:
    """CPU time of a job that the handler of Prometheus takes, above that of none, and of one that does nothing."""

    def measured() -> Took:
        return in_memory(Observability("benchmark").prometheus().telemetry_handler())

    found = in_turns([lambda: in_memory(None), lambda: in_memory(ignore), measured], rounds)
    added = [(ours.cpu - none.cpu) / MEMORY_JOBS * 1e6 for none, _, ours in found]
    return {
        "workload": "prometheus-handler",
        **summary("cpu_us_per_job", added, 2),
        **summary(
            "cpu_us_per_job_above_noop_handler",
            [(ours.cpu - noop.cpu) / MEMORY_JOBS * 1e6 for _, noop, ours in found],
            2,
        ),
        **summary("cpu_us_per_job_without", [none.cpu / MEMORY_JOBS * 1e6 for none, _, _ in found], 1),
        "goal": CPU_GOAL,
        "reached": statistics.median(added) <= CPU_GOAL,
        "rounds": len(found),
    }


def exporting() -> Took:
    """A sink that sleeps on every event, behind a QueueHandler."""
    over = threading.Event()

    def export(_event: Event) -> None:
        if not over.is_set():
            time.sleep(EXPORT_SECONDS)

    return in_a_file(QueueHandler(export), over.set)


def slow_exporter(rounds: int) -> dict[str, object]:
    """Jobs per second with a slow exporter, to those that nobody watches, and to those with a handler that does
    nothing: the difference of the two ratios is what events as such cost.
    """
    found = in_turns([lambda: in_a_file(None), lambda: in_a_file(ignore), exporting], rounds)
    ratios = [none.drain / slow.drain for none, _, slow in found]
    return {
        "workload": "slow-exporter",
        **summary("jobs_per_s", [SQLITE_JOBS / slow.drain for _, _, slow in found], 0),
        **summary("jobs_per_s_without", [SQLITE_JOBS / none.drain for none, _, _ in found], 0),
        **summary("ratio", ratios, 3),
        **summary("ratio_to_noop_handler", [noop.drain / slow.drain for _, noop, slow in found], 3),
        **summary("cpu_us_per_job", [(slow.cpu - none.cpu) / SQLITE_JOBS * 1e6 for none, _, slow in found], 1),
        **summary("cpu_ratio_to_noop_handler", [noop.cpu / slow.cpu for _, noop, slow in found], 3),
        "goal": GOAL,
        "reached": statistics.median(ratios) >= GOAL,
        "rounds": len(found),
    }


OBSERVERS: dict[str, Callable[[int], dict[str, object]]] = {
    "prometheus-handler": prometheus_handler,
    "slow-exporter": slow_exporter,
}
