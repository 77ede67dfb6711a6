"""Thousands of worlds go through a storm of kills, cuts, faults and meddling: none loses a job, or runs one wrongly."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import Measured
from tests.simulation.run import fingerprint, judge, simulate

ROOT = Path(__file__).parents[2]
BATCH = 50
SEEDS = 500
SOAK = 10_000

HAPPENS = {
    *("kill", "stop", "cut off", "lease_lost", "job_rescued", "stale_settlement", "job_stuck", "job_interrupted"),
    *("accepted", "refused", "unknown", "duplicate", "replaces"),
    *("returned", "died", "ValueError", "Snooze", "Cancel", "Discard", "SystemExit", "CancelledError"),
    *("job_completed", "job_failed", "job_discarded", "job_cancelled", "job_snoozed"),
    *("cancel", "retry", "delete", "edit", "pause", "resume", "scale", "store_failing", "store_recovered"),
}


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_f11_whatever_happens_no_invariant_breaks(first: int) -> None:
    assert judge(range(first, first + BATCH)) == {}


@pytest.mark.soak
def test_f11_nor_in_ten_thousand_worlds(measured: Measured) -> None:
    found: dict[int, list[str]] = {}
    for first in range(0, SOAK, BATCH):
        found |= judge(range(first, first + BATCH))
    measured("F11", f"{SOAK:,} worlds of 2 or 3 processes in a storm of 30 s", f"{len(found)} broke an invariant")
    assert found == {}


def test_everything_happens_that_is_to_be_survived() -> None:
    facts: Counter[str] = Counter()
    for seed in range(60):
        facts += simulate(seed).facts
    assert facts.keys() >= HAPPENS


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_f11_the_same_seed_is_the_same_world_in_any_process(seed: int) -> None:
    first = simulate(seed)
    simulate(seed + 1)
    assert simulate(seed).trace == first.trace
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "tests.simulation.run", str(seed)],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.stdout.endswith(f"trace {fingerprint(first)}\n"), done.stderr


def test_another_seed_is_another_world() -> None:
    assert len({fingerprint(simulate(seed)) for seed in range(10)}) == 10
