"""The shipped state machine, run against every store of the house."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from jobs_async.core.store import Store
from jobs_async.stores.memory import MemoryStore
from jobs_async.stores.sqlite import SqliteStore
from jobs_async.testing import FakeClock
from jobs_async.testing.machine import store_machine
from tests.cluster import VERSIONS
from tests.conftest import Measured
from tests.postgres.support import EmptiedStore


def _settings(examples: int, steps: int = 30) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


def _fresh_files(directory: Path) -> Callable[[FakeClock], Store]:
    """A new file for each example; the one before is removed."""

    def make(clock: FakeClock) -> Store:
        rmtree(directory)
        directory.mkdir()
        return SqliteStore(directory / "jobs.db", clock=clock)

    return make


@pytest.fixture
def fast_path(tmp_path: Path):
    """A folder in memory where the system has one: every commit is synced, which is not what is tested here."""
    shared = Path("/dev/shm")
    if not shared.is_dir():
        yield tmp_path / "model"
        return
    directory = Path(mkdtemp(dir=shared))
    yield directory / "model"
    rmtree(directory)


@pytest.mark.timeout(600)
def test_memory_store() -> None:
    run_state_machine_as_test(store_machine(lambda clock: MemoryStore(clock=clock)), settings=_settings(300))


@pytest.mark.timeout(600)
def test_sqlite_store(fast_path: Path) -> None:
    fast_path.mkdir()
    run_state_machine_as_test(store_machine(_fresh_files(fast_path)), settings=_settings(150))


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_sqlite_store_for_long(fast_path: Path, measured: Measured) -> None:
    fast_path.mkdir()
    run_state_machine_as_test(store_machine(_fresh_files(fast_path)), settings=_settings(500, 50))
    measured("F10 model", "500 × 50 random calls, SQLite", "differences 0")


@pytest.mark.timeout(600)
def test_postgres_store(pg_dsn: str) -> None:
    run_state_machine_as_test(store_machine(lambda clock: EmptiedStore(pg_dsn, clock)), settings=_settings(40))


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("pg_version", VERSIONS, indirect=True)
def test_postgres_store_for_long(pg_dsn: str, pg_version: int, measured: Measured) -> None:
    run_state_machine_as_test(store_machine(lambda clock: EmptiedStore(pg_dsn, clock)), settings=_settings(200, 40))
    measured("F10 model", f"200 × 40 random calls, PostgreSQL {pg_version}", "differences 0")
