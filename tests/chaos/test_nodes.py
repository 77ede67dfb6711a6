"""Nodes as real processes on one host: who has died, who has not, and who runs what. They mostly wait, so together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.chaos.scenario import Playing, play, playing
from tests.conftest import Measured

Stories = dict[str, Playing]


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stories]:
    with ExitStack() as stack:

        def begin(name: str, **options: float) -> Playing:
            return stack.enter_context(playing(name, tmp_path_factory.mktemp(name), **options))

        yield {
            "blocked": begin("stall", seconds=5.0),
            "wedged": begin("stall", seconds=5.0, max_stall=1.0),
            "restarted": begin("rescue", within=3.5),
            "stranger": begin("strangers"),
            "long": begin("once", jobs=2, seconds=8.0, limit=1, lease=0.8),
        }


def test_f21_row_64_a_handler_that_blocks_its_loop_runs_once_and_its_neighbours_too(stories: Stories) -> None:
    report = stories["blocked"].report()
    assert set(report["runs"].values()) == {1}
    assert report["refused"] == 0
    assert 0 < report["told_after"] <= 1.5


def test_f21_beyond_max_stall_the_other_node_takes_over_and_the_late_settlement_is_refused(stories: Stories) -> None:
    report = stories["wedged"].report()
    assert set(report["runs"].values()) == {2}
    assert report["refused"] >= 1
    assert 0 < report["told_after"] <= 1.5


def test_row_2_a_node_restarted_on_its_host_rescues_what_it_ran_before_within_lease_and_sweep(stories: Stories) -> None:
    assert 0 < stories["restarted"].report()["again_after"] <= 3.5, "2 s, 0.5 s, and a second for a busy machine"


def test_row_12_a_node_frees_jobs_whose_worker_it_does_not_know_and_leaves_them_to_others(stories: Stories) -> None:
    assert stories["stranger"].report()["states"] == {"completed": 10}


def test_row_18_a_job_ten_leases_long_runs_once(stories: Stories) -> None:
    report = stories["long"].report()
    assert (report["shares"], report["duplicates"]) == ([1, 1], 0)


def test_row_23_two_processes_never_claim_one_row(tmp_path: Path) -> None:
    report = play("once", tmp_path, jobs=600)
    assert sum(report["shares"]) == 600
    assert report["duplicates"] == 0


@pytest.mark.soak
def test_row_18_a_job_ten_leases_long_runs_once_at_length(tmp_path: Path, measured: Measured) -> None:
    report = play("once", tmp_path, jobs=2, seconds=20.0, limit=1)
    measured("row 18", "jobs of 20 s under a lease of 2 s, 2 processes", f"duplicates {report['duplicates']}")


@pytest.mark.soak
def test_row_1_at_the_default_pace_a_killed_nodes_jobs_run_again_within_45_seconds(
    tmp_path: Path, measured: Measured
) -> None:
    report = play("rescue", tmp_path, lease=30.0, beat=5.0, sweep=10.0, within=45.0)
    measured("row 1", "kill -9 of a node, lease 30 s, heartbeat 5 s", f"runs again after {report['again_after']} s")
