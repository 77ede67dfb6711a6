"""Fleets on a PostgreSQL of their own: its processes are killed, it dies itself, and everything at once."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from jobs_async import JobState, PostgresStore
from jobs_async.core.lifecycle import decide, rerun
from jobs_async.core.outcome import Completed
from jobs_async.testing.conformance.scene import new
from tests.chaos.database import PATIENCE
from tests.chaos.scenario import play, playing
from tests.chaos.test_faults import Load, short_and_full
from tests.conftest import Measured


@short_and_full({"kills": 4, "jobs": 400}, {"seed": 2})
def test_f2_row_1_processes_killed_at_work_lose_nothing_and_leave_no_connection_behind(
    tmp_path: Path, measured: Measured, load: Load
) -> None:
    report = play("kill", tmp_path, store="postgres", **load)
    kills = report["kills"]
    assert report["accepted"] >= report["jobs"]
    few = kills < 10  # these may by chance strike who has nothing to do
    assert report["kills_at_work"] == kills or few, "killing who has nothing to do proves nothing"
    assert report["duplicates"] <= report["bound"]
    assert report["duplicates"] or few
    assert 0 < len(report["connections"]) <= 4, "the living hold some, unless one was just born; the dead none"
    measured(
        "F2",
        f"{kills} × kill -9 of 4 processes, {report['accepted']:,} jobs",
        f"lost {report['lost']}, stuck {report['stuck']}, duplicates {report['duplicates']} of at most "
        f"{report['bound']}, connections of the living {report['connections']}, of the dead 0, {report['took']:.0f} s",
    )


@short_and_full({"restarts": 2, "every": 1.0, "within": PATIENCE}, {"seed": 2})
def test_f3_a_server_that_dies_again_and_again_costs_no_job_and_no_second_run(
    tmp_path: Path, measured: Measured, load: Load
) -> None:
    report = play("pgrestart", tmp_path, **load)
    assert len(report["back_after"]) == report["restarts"]
    few = report["restarts"] < 10  # these may by chance fall between two calls
    assert report["unknown"] or few, "restarts that nobody noticed prove nothing"
    measured(
        "F3",
        f"{report['restarts']} × immediate restart, 4 processes at work, 2 that enqueue, {report['accepted']:,} jobs",
        f"lost {report['lost']}, unanswered calls {report['unknown']}, half stored 0, run again {report['repeated']}, "
        f"leases lost {report['leases_lost']}, all claim again {max(report['back_after']):.1f} s after the server is "
        f"ready, {report['took']:.0f} s",
    )


@short_and_full({"tasks": 10, "keys": 60, "jobs": 300, "kills": 1}, {"seed": 2})
def test_f17_rows_36_37_38_39_processes_that_race_for_keys_meet_typed_errors_only_and_no_key_has_two_jobs(
    tmp_path: Path, measured: Measured, load: Load
) -> None:
    report = play("race", tmp_path, store="postgres", **load)
    for what in ("named", "withdrawn", "again", "deleted", "refused"):
        assert report[what] > 0, f"a race in which nothing is {what} proves little"
    assert report["looks"] > report["kills"]
    measured(
        "F17",
        f"{report['procs']} processes × {report['tasks']} tasks, {report['keys']:,} keys, {report['kills']} × kill -9",
        f"{report['inserted']:,} jobs inserted, {report['named']:,} met, {report['rescued']} rescued, twins 0 in "
        f"{report['looks']:,} looks, errors raised 0, deadlocks {report['deadlocks']}, {report['took']:.0f} s",
    )


@pytest.mark.soak
def test_all_faults_at_once_for_ten_minutes(tmp_path: Path, measured: Measured) -> None:
    with playing("storm", tmp_path, seed=2) as one:
        report = one.report(1800)
    assert report["faults"].keys() == {"kill", "dismiss", "hold", "cut", "restart", "freeze"}
    for what in ("repeated", "stale", "leases_lost", "ticks", "looks"):
        assert report[what] > 0, f"a storm without {what} proves little"
    measured(
        "all",
        f"{report['nodes']} processes, {report['minutes']:g} minutes of {sum(report['faults'].values())} faults, "
        f"{report['accepted']:,} jobs",
        f"lost {report['lost']}, I1 to I9 hold, run again {report['repeated']}, outcomes refused {report['stale']}, "
        f"leases lost {report['leases_lost']}, ticks {report['ticks']}, twice 0, nothing executed for the dead after "
        f"{report['recovered_after'][0]} s; {report['faults']}",
    )


@pytest.mark.soak
def test_row_1_at_the_default_pace_a_killed_nodes_jobs_run_again_within_45_seconds(
    tmp_path: Path, measured: Measured
) -> None:
    report = play("rescue", tmp_path, store="postgres", lease=30.0, beat=5.0, sweep=10.0, within=45.0)
    measured("row 1", "kill -9 of a node, lease 30 s, heartbeat 5 s", f"runs again after {report['again_after']} s")


async def until_somebody_waits(connection: asyncpg.Connection[Any]) -> None:
    """For a lock, in this database."""
    waits = "datname = current_database() AND wait_event_type = 'Lock'"
    while not await connection.fetchval(f"SELECT count(*) FROM pg_stat_activity WHERE {waits}"):
        await connection.execute("SELECT pg_stat_clear_snapshot()")


async def test_row_37_a_job_runs_again_though_the_holder_of_its_key_was_live_when_that_was_asked(pg_dsn: str) -> None:
    """The holder ends while the question for it waits for its row; what it was before must not count."""
    async with asyncio.timeout(PATIENCE), PostgresStore(pg_dsn) as store:
        [old] = await store.insert([new(unique_key="k")])
        [claimed] = (await store.fetch("default", 1, node=None)).jobs
        [ended] = await store.apply([decide(claimed, Completed())])
        assert ended is not None
        [holder] = await store.insert([new(unique_key="k")])
        connection: asyncpg.Connection[Any] = await asyncpg.connect(pg_dsn)
        try:
            async with connection.transaction():
                end = "UPDATE jobs_async_jobs SET state = 2, completed_at = now() WHERE id = $1"
                await connection.execute(end, holder.id)
                again = asyncio.ensure_future(store.apply([rerun(ended)]))
                await until_somebody_waits(connection)
            [job] = await again
        finally:
            await connection.close()
        assert job is not None
        assert (job.id, job.state) == (old.id, JobState.available)
