"""The loop of the simulation: time that costs nothing, and an order of things that a seed decides."""

from __future__ import annotations

import asyncio

import pytest

from jobs_async.testing.loop import run_virtual

TEN = list(range(10))


async def order_of_ten() -> list[int]:
    """In which order ten tasks come that could all come first."""
    came: list[int] = []

    async def come(number: int) -> None:
        await asyncio.sleep(0)
        came.append(number)

    async with asyncio.TaskGroup() as group:
        for number in TEN:
            group.create_task(come(number))
    return came


def test_without_a_seed_who_is_first_comes_first() -> None:
    assert run_virtual(order_of_ten()) == TEN


def test_a_seed_shuffles_what_is_ready_and_always_alike() -> None:
    orders = [run_virtual(order_of_ten(), seed) for seed in range(20)]
    assert all(sorted(order) == TEN for order in orders)
    assert len({tuple(order) for order in orders}) == 20
    assert orders == [run_virtual(order_of_ten(), seed) for seed in range(20)]


def test_every_order_of_three_is_found() -> None:
    async def three() -> tuple[int, ...]:
        return tuple(number for number in await order_of_ten() if number < 3)

    assert len({run_virtual(three(), seed) for seed in range(100)}) == 6


def test_no_seed_lets_anything_come_before_its_time() -> None:
    async def alarms() -> list[float]:
        rang: list[float] = []
        loop = asyncio.get_running_loop()
        for seconds in (3, 1, 3600, 2):
            loop.call_later(seconds, lambda: rang.append(loop.time()))
        await asyncio.sleep(4000)
        return rang

    for seed in range(20):
        assert run_virtual(alarms(), seed) == [1, 2, 3, 3600]


def test_a_deadlock_is_said_and_not_waited_for() -> None:
    async def wait_for_nothing() -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="deadlock"):
        run_virtual(wait_for_nothing(), 1)
