"""The status page, for one tick of its clock: fired as the scheduler does, for no test waits for a minute to pass."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from examples.cron_app import SITES, make
from jobs_async import JobState, SqliteStore
from jobs_async.core.store import Tick

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


async def test_a_tick_checks_each_site_once_however_many_programs_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def probe(url: str) -> bool:
        return url.endswith(".org")

    nodes = [make(SqliteStore(tmp_path / "status.db"), probe) for _ in range(2)]
    async with nodes[0], nodes[1]:
        for node in nodes:
            await node.insert_tick(node.crons["check_all"], Tick("check_all", NOON))
        await nodes[0].drain(timeout=20)
        await nodes[1].drain(timeout=20)
        counts = await nodes[0].counts()
    assert counts == {("default", JobState.completed): 1 + len(SITES)}
    assert sorted(capsys.readouterr().out.splitlines()) == [
        "2026-03-01T12:00:00+00:00  https://example.net does not answer",
        "2026-03-01T12:00:00+00:00  https://example.org is up",
    ]


def test_the_schedule_is_that_of_the_text(tmp_path: Path) -> None:
    jobs = make(SqliteStore(tmp_path / "status.db"))
    spring = datetime(2026, 3, 29, tzinfo=UTC)
    assert jobs.crons["forget"].next_after(spring) == datetime(2026, 3, 29, 1, tzinfo=UTC), "half past two is skipped"
    assert jobs.crons["check_all"].next_after(NOON) == NOON.replace(minute=1)
