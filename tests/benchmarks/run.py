"""Measure workloads beside their raw limits, round-robin in one run, and print JSON.

    python tests/benchmarks/run.py [--rounds 5] [WORKLOAD ...]

A figure is jobs per second; a ratio is the median of the per-round ratios of a workload to its limit, for a noisy
machine slows both. Limits are what the same work costs without a library: see `limits.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import platform
import resource
import sqlite3
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from jobs_async import Draft, MemoryStore, SqliteStore, Store, Supervisor
from tests.benchmarks import limits as raw
from tests.benchmarks.observers import OBSERVERS

MEMORY_JOBS, SQLITE_JOBS, SOAK_JOBS = 30_000, 10_000, 1_000_000


async def drain(store: Store, jobs: int, concurrency: int) -> float:
    """Seconds from the first handler's start until the last job is durably completed."""
    supervisor = Supervisor(store, queues={"default": concurrency})
    began, left, done = 0.0, jobs, asyncio.Event()

    async def noop(_args: object, _ctx: object) -> None:
        nonlocal began, left
        began = began or time.perf_counter()
        left -= 1
        if not left:
            done.set()

    supervisor.register_worker("noop", noop)
    async with store:
        for start in range(0, jobs, 1000):
            await supervisor.enqueue_many([Draft("noop") for _ in range(min(1000, jobs - start))])
        await supervisor.start()
        await done.wait()
        report = await supervisor.stop()
        ended = time.perf_counter()
        assert report.is_clean, report
        counts = {state.name: n for (_, state), n in (await store.tally()).items()}
        assert counts.keys() == {"completed"}, counts
    return ended - began


def memory_drain(concurrency: int) -> float:
    return MEMORY_JOBS / asyncio.run(drain(MemoryStore(MEMORY_JOBS), MEMORY_JOBS, concurrency))


def sqlite_drain(concurrency: int) -> float:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        return SQLITE_JOBS / asyncio.run(drain(SqliteStore(f"{folder}/jobs.db"), SQLITE_JOBS, concurrency))


def sqlite_enqueue() -> float:
    """One at a time, each durable before the next."""

    async def main(path: str) -> float:
        async with SqliteStore(path) as store:
            supervisor = Supervisor(store, queues={})
            began = time.perf_counter()
            for _ in range(500):
                await supervisor.enqueue("noop", {})
            return 500 / (time.perf_counter() - began)

    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        return asyncio.run(main(f"{folder}/jobs.db"))


WORKLOADS: dict[str, tuple[Callable[[], float], Callable[[], float], float]] = {
    "memory-drain-10": (lambda: memory_drain(10), lambda: raw.task_group(MEMORY_JOBS, 10), 0.2),
    "memory-drain-100": (lambda: memory_drain(100), lambda: raw.task_group(MEMORY_JOBS, 100), 0.2),
    "sqlite-enqueue": (sqlite_enqueue, lambda: raw.aiosqlite_enqueue(500), 0.4),
    "sqlite-drain-10": (lambda: sqlite_drain(10), lambda: raw.sqlite_drain(SQLITE_JOBS, 10), 0.15),
    "sqlite-drain-100": (lambda: sqlite_drain(100), lambda: raw.sqlite_drain(SQLITE_JOBS, 100), 0.25),
}
"""Name: the workload, its raw limit, and the ratio it must reach."""


def compare(name: str, rounds: int) -> dict[str, object]:
    ours, limit, goal = WORKLOADS[name]
    pairs: list[tuple[float, float]] = []
    cpu: list[float] = []
    for _ in range(rounds):
        gc.collect()
        ceiling = limit()
        gc.collect()
        began = time.process_time()
        pairs.append((ours(), ceiling))
        cpu.append(time.process_time() - began)
    ratios = sorted(ours / ceiling for ours, ceiling in pairs)
    ratio = statistics.median(ratios)
    return {
        "workload": name,
        "jobs_per_s": round(statistics.median(ours for ours, _ in pairs)),
        "limit_per_s": round(statistics.median(ceiling for _, ceiling in pairs)),
        "ratio": round(ratio, 3),
        "ratio_spread": [round(ratios[0], 3), round(ratios[-1], 3)],
        "goal": goal,
        "reached": ratio >= goal,
        "process_cpu_s": round(statistics.median(cpu), 3),
    }


def soak(jobs: int) -> dict[str, object]:
    """A million jobs through one memory store: what grows after the first fifth?"""

    async def main() -> dict[str, object]:
        store = MemoryStore()
        supervisor = Supervisor(store, queues={"default": 100})
        finished = 0
        marks: dict[int, int] = {}

        async def noop(_args: object, _ctx: object) -> None:
            nonlocal finished
            finished += 1

        supervisor.register_worker("noop", noop)
        began = time.perf_counter()
        async with supervisor:
            for start in range(0, jobs, 1000):
                await supervisor.enqueue_many([Draft("noop") for _ in range(1000)])
                while finished < start:  # a batch ahead at most
                    await asyncio.sleep(0)
                if start in {jobs // 5, jobs - 1000}:
                    gc.collect()
                    marks[start] = _rss()
            while finished < jobs:
                await asyncio.sleep(0.001)
        seconds = time.perf_counter() - began
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        return {
            "workload": "memory-soak",
            "jobs": jobs,
            "jobs_per_s": round(jobs / seconds),
            "growth_mb_after_first_fifth": round((marks[jobs - 1000] - marks[jobs // 5]) / 2**20, 1),
            "goal_mb": 20,
            "tasks_left": len(left),
            "threads_left": threading.active_count() - 1,
        }

    return asyncio.run(main())


def _rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(name: str, rounds: int) -> dict[str, object]:
    if name in OBSERVERS:
        return OBSERVERS[name](rounds)
    return soak(SOAK_JOBS) if name == "memory-soak" else compare(name, rounds)


def main() -> None:
    every = [*WORKLOADS, *OBSERVERS, "memory-soak"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workloads", nargs="*", metavar="WORKLOAD", help=", ".join(every))
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    results = [measure(name, chosen.rounds) for name in chosen.workloads or every]
    machine = {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version, "machine": platform.machine()}
    print(json.dumps({**machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
