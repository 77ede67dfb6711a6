"""Real processes on one file: killed, poisoned, held up. Each scenario checks the ledger against the store itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.chaos.scenario import play
from tests.conftest import Measured

Load = dict[str, Any]


def short_and_full(short: Load, full: Load) -> pytest.MarkDecorator:
    long = pytest.param(full, marks=pytest.mark.soak)
    return pytest.mark.parametrize("load", [short, long], ids=["short", "full"])


@short_and_full({"kills": 10, "jobs": 1500}, {"seed": 2})
def test_f1_rows_1_5_38_processes_killed_at_work_lose_nothing(tmp_path: Path, measured: Measured, load: Load) -> None:
    report = play("kill", tmp_path, **load)
    kills = report["kills"]
    assert report["accepted"] >= report["jobs"]
    assert report["kills_at_work"] == kills, "killing who has nothing to do proves nothing"
    assert 0 < report["duplicates"] <= report["bound"]
    measured(
        "F1",
        f"{kills} × kill -9 of 4 processes, {report['accepted']:,} jobs",
        f"lost {report['lost']}, stuck {report['stuck']}, duplicates {report['duplicates']} of at most "
        f"{report['bound']}, file sound {kills}/{kills}, {report['took']:.0f} s",
    )


@short_and_full({"bad": 1, "good": 50, "lease": 0.8, "base": 3}, {"seed": 2})
def test_f18_row_26_a_job_that_kills_its_process_runs_four_times_and_its_neighbours_are_completed(
    tmp_path: Path, measured: Measured, load: Load
) -> None:
    report = play("poison", tmp_path, **load)
    assert report["deaths"] >= 4
    assert max(report["bad_runs"]) == 4
    measured(
        "F18",
        f"{report['bad']} jobs that kill their process among {report['good']:,} good ones",
        f"{report['deaths']} deaths, bad runs {report['bad_runs']}, good ones all completed, {report['took']:.0f} s",
    )


@pytest.mark.soak
def test_f18_neighbours_of_a_poison_survive_it_though_they_are_tried_again_when_it_is(tmp_path: Path) -> None:
    """A strategy without jitter sends them into one process with it again and again, which must not be their end."""
    play("poison", tmp_path, seed=3, bad=1, good=50, lease=1, base=0)


@short_and_full({"jobs": 1000, "pin": 3}, {"seed": 2})
def test_f6_rows_23_71_72_nobody_meets_a_lock_nothing_runs_twice_and_the_log_comes_down_again(
    tmp_path: Path, measured: Measured, load: Load
) -> None:
    report = play("contention", tmp_path, **load)
    assert report["accepted"] >= report["jobs"]
    assert report["states"].keys() == {"completed", "cancelled"}
    assert report["wal_peak"] > 8 * 2**20, "a log that was short all the time proves nothing"
    measured(
        "F6",
        f"2 nodes, operator, 500 enqueues/s, reader pinned {report['pin']:g} s, {report['accepted']:,} jobs",
        f"duplicates {report['duplicates']}, errors raised {report['raised']}, log MB {', '.join(report['wal'])}",
    )


@pytest.mark.soak
def test_f6_row_72_one_idle_node_at_the_default_pace_brings_the_log_down_again(
    tmp_path: Path, measured: Measured
) -> None:
    report = play("contention", tmp_path, seed=3, jobs=1000, pin=8, nodes=1, beat=5)
    measured("F6", "the same, 1 node, heartbeat 5 s", f"log MB {', '.join(report['wal'])}")
