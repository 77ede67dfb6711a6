"""The shipped checks, run against every store of the house."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs_async.core.store import Store
from jobs_async.stores.memory import MemoryStore
from jobs_async.stores.sqlite import SqliteStore
from jobs_async.testing import FakeClock
from jobs_async.testing.conformance import CHECKS, Check

STORES: dict[str, Callable[[FakeClock, Path], Store]] = {
    "memory": lambda clock, _: MemoryStore(clock=clock),
    "sqlite": lambda clock, directory: SqliteStore(directory / "jobs.db", clock=clock),
}


@pytest.mark.parametrize("store_name", STORES)
@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
async def test_conformance(check: Check, store_name: str, tmp_path: Path) -> None:
    clock = FakeClock()
    async with STORES[store_name](clock, tmp_path) as store:
        await check(store, clock)


def test_every_check_states_its_promise_under_its_own_name() -> None:
    names = [check.__name__ for check in CHECKS]
    assert len(names) == len(set(names))
    for check in CHECKS:
        assert check.__doc__, f"{check.__name__} does not say what it proves"
        assert list(inspect.signature(check).parameters) == ["store", "clock"]
