"""The tests of the shop, one of each kind. In this folder: `pytest`."""

from __future__ import annotations

import pytest
import shop
import tasks

from jobs_async import JobState
from jobs_async.core.store import Store
from jobs_async.testing import Harness, TravelClock, assert_enqueued, crash_at_each_await, perform, refute_enqueued


async def test_a_handler_is_a_function() -> None:
    await tasks.send_receipt(7)
    assert tasks.outbox == ["receipt for order 7"]


async def test_a_job_from_its_arguments_to_its_result(jobs: Harness) -> None:
    job = await perform(tasks.charge, {"order": 7, "cents": 1999})
    assert (job.state, job.result) == (JobState.completed, "19.99")
    await assert_enqueued(tasks.send_receipt, {"order": 7}, queue="mail")


async def test_an_order_enqueues_what_it_should(jobs: Harness) -> None:
    await shop.place_order(7, 1999)
    await assert_enqueued(tasks.charge, {"order": 7})
    await assert_enqueued(tasks.ask_for_review, tags=["review"], delay=7 * tasks.DAY)
    await refute_enqueued(tasks.send_receipt)


async def test_an_order_with_all_that_follows(jobs: Harness) -> None:
    await shop.place_order(7, 1999)
    report = await jobs.drain()
    assert (report.completed, report.discarded) == (2, 0)
    assert tasks.payments.made == [(7, 1999)]
    assert tasks.outbox == ["receipt for order 7"]


@pytest.mark.jobs_inline
async def test_an_order_inline(jobs: Harness) -> None:
    charge = await shop.place_order(7, 1999)
    assert (await shop.jobs.get(charge)).state is JobState.completed
    assert tasks.outbox == ["receipt for order 7"]


async def test_a_week_later(jobs: Harness) -> None:
    await shop.place_order(7, 1999)
    await jobs.drain()
    jobs.advance(7 * tasks.DAY)
    await jobs.drain()
    assert tasks.outbox[-1] == "how do you like order 7?"


async def test_a_charge_that_dies_on_the_way_charges_once(jobs: Harness) -> None:
    async for crash in crash_at_each_await(tasks.charge, {"order": 7, "cents": 1999}):
        await jobs.drain()
        assert tasks.payments.made == [(7, 1999)], crash
        assert tasks.outbox == ["receipt for order 7"], crash


async def test_on_each_kind_of_store(jobs_store: Store, jobs_clock: TravelClock) -> None:
    async with Harness(jobs_store, clock=jobs_clock, stands_in_for=shop.jobs) as jobs:
        await shop.place_order(7, 1999)
        jobs_clock.advance(7 * tasks.DAY)
        await jobs.drain()
    assert len(tasks.outbox) == 2
