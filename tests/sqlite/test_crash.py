"""`kill -9` at any instant costs nothing that was acknowledged."""

from __future__ import annotations

import time
from collections import defaultdict
from pathlib import Path
from random import Random

import pytest

from jobs_async.core.job import JobState
from jobs_async.stores.sqlite import SqliteStore
from tests.sqlite.support import ask, can_be_written_at_once, running

pytestmark = pytest.mark.parametrize("kills", [12, pytest.param(100, marks=pytest.mark.soak)])

LONGEST = 0.15
"""Seconds from the first write to the latest kill."""


async def test_row_1_a_process_killed_at_any_instant_loses_nothing_it_acknowledged(path: Path, kills: int) -> None:
    said: dict[str, set[tuple[int, ...]]] = defaultdict(set)
    rng = Random(20250314)
    for number in range(kills):
        killed_after = rng.uniform(0, LONGEST)
        for word, *numbers in _run_and_kill(path, seed=number, after=killed_after):
            said[word].add(tuple(int(digits) for digits in numbers))
        where = f"kill {number}, after {killed_after:.4f} s"
        assert can_be_written_at_once(path), where
        async with SqliteStore(path) as store:
            tally = await store.tally()
        assert ask(path, "PRAGMA integrity_check") == [("ok",)], where
        stored = {job_id: rest for job_id, *rest in ask(path, "SELECT id, state, claim, attempt FROM jobs_async_jobs")}
        completed = {job_id for job_id, (state, _, _) in stored.items() if state == JobState.completed}
        assert {job_id for (job_id,) in said["new"]} <= stored.keys(), where
        assert {job_id for (job_id,) in said["done"]} <= completed, where
        assert completed <= {job_id for job_id, _ in said["try"]}, where
        assert said["try"] <= said["claim"], where
        assert all(stored[job_id][1] >= claim for job_id, claim in said["claim"]), where
        assert all(state == JobState.available or claim == attempt > 0 for state, claim, attempt in stored.values())
        assert sum(tally.values()) == len(stored), where
    assert len(said["done"]) > kills, "too little was done to prove anything"


def _run_and_kill(path: Path, *, seed: int, after: float) -> list[list[str]]:
    """The whole lines of a program that was killed some time after it began to work."""
    with running("crash", path, seed) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "ready\n", process.stderr.read()
        time.sleep(after)
        process.kill()
        lines = [line.split() for line in process.stdout]
        err = process.stderr.read()
        assert not err, err
        return lines
