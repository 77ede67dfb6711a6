"""The shipped checks, run against every store of the house."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from jobs_async.core.store import Store
from jobs_async.stores.memory import MemoryStore
from jobs_async.stores.sqlite import SqliteStore
from jobs_async.testing import FakeClock
from jobs_async.testing.conformance import CHECKS, Check, fence, unique, values
from tests.cluster import VERSIONS, PgServer
from tests.postgres.support import EmptiedStore

STORES: dict[str, Callable[[FakeClock, Path], Store]] = {
    "memory": lambda clock, _: MemoryStore(clock=clock),
    "sqlite": lambda clock, directory: SqliteStore(directory / "jobs.db", clock=clock),
}
QUICK = [module.__name__ for module in (fence, unique, values)]
"""What an older PostgreSQL is asked each time; the rest takes long."""


@pytest.mark.parametrize("store_name", STORES)
@pytest.mark.parametrize("check", CHECKS, ids=[check.__name__ for check in CHECKS])
async def test_conformance(check: Check, store_name: str, tmp_path: Path) -> None:
    clock = FakeClock()
    async with STORES[store_name](clock, tmp_path) as store:
        await check(store, clock)


@pytest.fixture(scope="module")
def databases(pg_versions: Callable[[int], PgServer]) -> Iterator[Callable[[int], str]]:
    """The DSN of a database of this module on the server of a version."""
    with ExitStack() as stack:
        yield cache(lambda version: stack.enter_context(pg_versions(version).database()))


def _asked() -> Iterator[Any]:
    for version in VERSIONS:
        for check in CHECKS:
            quick = version == VERSIONS[-1] or check.__module__ in QUICK
            marks = () if quick else pytest.mark.soak
            yield pytest.param(version, check, id=f"{check.__name__}-{version}", marks=marks)


@pytest.mark.parametrize(("version", "check"), list(_asked()))
async def test_conformance_of_postgres(check: Check, version: int, databases: Callable[[int], str]) -> None:
    clock = FakeClock()
    async with EmptiedStore(databases(version), clock) as store:
        await check(store, clock)


def test_every_check_states_its_promise_under_its_own_name() -> None:
    names = [check.__name__ for check in CHECKS]
    assert len(names) == len(set(names))
    for check in CHECKS:
        assert check.__doc__, f"{check.__name__} does not say what it proves"
        assert list(inspect.signature(check).parameters) == ["store", "clock"]
