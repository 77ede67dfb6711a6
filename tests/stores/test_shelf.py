"""What `ShelfStore` promises: each conformance check, and the state machine."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings

from jobs_async import Store
from jobs_async.testing import FakeClock
from jobs_async.testing.conformance import CHECKS
from jobs_async.testing.machine import store_machine
from tests.stores.shelf import ShelfStore

SHELVES = TemporaryDirectory()  # gone when the tests are over
numbers = count()


def fresh(clock: FakeClock) -> ShelfStore:
    return ShelfStore(Path(SHELVES.name) / f"{next(numbers)}.db", clock=clock)


@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
def test_conformance(check: Callable[[Store, FakeClock], Awaitable[None]]) -> None:
    async def run() -> None:
        clock = FakeClock()
        async with fresh(clock) as store:
            await check(store, clock)

    asyncio.run(run())


TestMachine = store_machine(fresh).TestCase
TestMachine.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)
