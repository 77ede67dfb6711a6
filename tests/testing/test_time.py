"""Time that a test moves, and cron entries that it fires by hand."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from jobs_async import CronError, JobContext, JobState, OptionError, Supervisor, worker
from jobs_async.testing import Harness

GUARD = 20.0
HOUR = 3600.0


@worker(context=True)
async def report(ctx: JobContext) -> str:
    return str(ctx.job.meta["cron_at"])


async def test_an_entry_of_the_application_is_fired_by_hand_as_at_its_next_tick_or_any_other() -> None:
    app = Supervisor(workers=[report])
    app.register_cron("nightly", "0 2 * * *", report, timezone="Europe/Berlin", tags=["night"])
    with Harness(stands_in_for=app) as jobs:
        tick = app.crons["nightly"].next_after(jobs.clock.now())
        job = await jobs.fire_cron("nightly")
        assert (job.meta["cron"], job.tags) == ("nightly", ("night",))
        assert (await jobs.drain()).completed == 1
        assert await jobs.result(job) == tick.isoformat()
        again = await jobs.fire_cron("nightly", at=datetime(2026, 7, 1, tzinfo=UTC))
        assert (await jobs.run_one(again)).result == "2026-07-01T00:00:00+00:00"
        with pytest.raises(CronError, match="no cron entry named 'weekly'"):
            await jobs.fire_cron("weekly")
        with pytest.raises(OptionError, match="naive"):
            await jobs.fire_cron("nightly", at=datetime(2026, 7, 1))
    assert list(app.crons) == ["nightly"]


async def test_time_passes_for_a_harness_that_is_started_and_its_handlers_go_on() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    @worker
    async def long() -> int:
        begun.set()
        await go_on.wait()
        return 1

    @worker
    async def tick() -> None: ...

    async with Harness(workers=[long, tick], poll_interval=60) as jobs, asyncio.timeout(GUARD):
        jobs.register_cron("hourly", "0 * * * *", tick)
        await jobs.start()
        job = await long.enqueue()
        later = await tick.options(delay=HOUR).enqueue()
        await begun.wait()
        later_tick = jobs.crons["hourly"].next_after(jobs.clock.now() + timedelta(hours=1))
        jobs.advance((later_tick - jobs.clock.now()).total_seconds() + 1)
        assert (await jobs.wait(later)).state is JobState.completed
        while not [one for one in await jobs.find() if one.meta.get("cron") == "hourly"]:
            await asyncio.sleep(0.01)
        go_on.set()
        ended = await jobs.wait(job)
        assert (ended.result, ended.attempt, ended.rescues) == (1, 1, 0)
        [node] = await jobs.nodes()
        assert node.alive
        await jobs.pause_queue("default")
        assert (await jobs.queues())["default"].paused
