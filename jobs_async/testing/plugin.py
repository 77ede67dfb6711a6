"""Fixtures for pytest, found by it wherever the package is installed: `jobs`, `jobs_store` and what they are made of.

They are no async fixtures, so any plugin that runs async tests will do.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from typing import TYPE_CHECKING

import pytest

from jobs_async.stores.memory import MemoryStore
from jobs_async.stores.sqlite import SqliteStore
from jobs_async.testing.clock import TravelClock
from jobs_async.testing.harness import Harness

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import ModuleType

    from jobs_async.core.store import Store
    from jobs_async.core.workers import WorkerDef
    from jobs_async.runtime.supervisor import Supervisor

POSTGRES = os.environ.get("JOBS_TEST_PG_DSN")
"""The address of a PostgreSQL database in which tests may create and drop schemas."""
STORES = ("memory", "sqlite", "postgres") if POSTGRES else ("memory", "sqlite")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "jobs_inline: the `jobs` fixture runs each job that is due before its enqueue returns"
    )


@pytest.fixture
def jobs_workers() -> Sequence[WorkerDef | ModuleType]:
    """The workers of the `jobs` fixture: override it in a conftest.py to return your modules of workers."""
    return []


@pytest.fixture
def jobs_app() -> Supervisor | None:
    """The Supervisor of the application, if the `jobs` fixture shall stand in for it: override it to return yours."""
    return None


@pytest.fixture
def jobs_clock() -> TravelClock:
    """The time of `jobs` and `jobs_store`: real, and `jobs_clock.advance(seconds)` puts it forward."""
    return TravelClock()


@pytest.fixture
def jobs(
    request: pytest.FixtureRequest,
    jobs_workers: Sequence[WorkerDef | ModuleType],
    jobs_app: Supervisor | None,
    jobs_clock: TravelClock,
) -> Iterator[Harness]:
    """A Harness on a MemoryStore, with your `jobs_workers`; inline where the test is marked `jobs_inline`."""
    inline = request.node.get_closest_marker("jobs_inline") is not None
    with Harness(workers=jobs_workers, stands_in_for=jobs_app, inline=inline, clock=jobs_clock) as harness:
        yield harness


@pytest.fixture(params=STORES)
def jobs_store(request: pytest.FixtureRequest, tmp_path: Path, jobs_clock: TravelClock) -> Iterator[Store]:
    """Each kind of store in turn, empty and not open, on the time of `jobs_clock`:

    async with Harness(jobs_store, clock=jobs_clock, workers=[...]) as jobs:

    PostgreSQL is among them where JOBS_TEST_PG_DSN names a database; each test has a schema of its own there.
    """
    if request.param == "memory":
        yield MemoryStore(clock=jobs_clock)
    elif request.param == "sqlite":
        yield SqliteStore(tmp_path / "jobs.db", clock=jobs_clock)
    else:
        from jobs_async.stores.postgres import PostgresStore, drop_schema

        schema = f"jobs_test_{uuid.uuid4().hex}"
        yield PostgresStore(POSTGRES, schema=schema, clock=jobs_clock)
        asyncio.run(drop_schema(str(POSTGRES), schema))
