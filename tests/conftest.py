"""What every test may ask for: a real PostgreSQL, and a row in the table at the end of `make soak`."""

from __future__ import annotations

import os
import platform
import signal
import sqlite3
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import VERSIONS, ClusterError, Home, PgServer, shared

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background of a shell: what we start is not
    signal.signal(signal.SIGINT, signal.default_int_handler)


Measured = Callable[[str, str, str], None]

_ROWS = pytest.StashKey[list[tuple[str, str, str]]]()
_HOME = pytest.StashKey[Home]()
_HOME_OF_RUN = "jobs_async_home"


@pytest.fixture(scope="session")
def pg_versions(pytestconfig: pytest.Config) -> Callable[[int], PgServer]:
    """The server of a version, 16 or 18: one for the whole run, started by whoever asks first, in whichever process.

    Others use it too: leave it running, and connect to databases of your own. A test that harms its server starts a
    `tests.cluster.PgCluster`. A test that asks fails if there is no PostgreSQL.
    """

    def server(version: int) -> PgServer:
        try:
            return shared(_home(pytestconfig), version)
        except ClusterError as error:
            pytest.fail(str(error), pytrace=False)

    return server


@pytest.fixture(scope="session")
def pg_version(request: pytest.FixtureRequest) -> int:
    """The version `pg_cluster` and `pg_dsn` are of: the newest.

    To take both: `@pytest.mark.parametrize("pg_version", VERSIONS, indirect=True)`, from `tests.cluster`.
    """
    return getattr(request, "param", VERSIONS[-1])


@pytest.fixture(scope="session")
def pg_cluster(pg_versions: Callable[[int], PgServer], pg_version: int) -> PgServer:
    """The shared server, see `pg_versions`."""
    return pg_versions(pg_version)


@pytest.fixture
def pg_dsn(pg_cluster: PgServer) -> Iterator[str]:
    """The DSN of an empty database of the test's own on the shared server."""
    with pg_cluster.database() as dsn:
        yield dsn


def _home(config: pytest.Config) -> Path:
    """Of this run's servers: it belongs to the process that outlives the workers."""
    if (given := getattr(config, "workerinput", None)) is not None:
        return Path(given[_HOME_OF_RUN])
    if _HOME not in config.stash:
        config.stash[_HOME] = Home()
    return config.stash[_HOME].path


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_configure_node(node: Any) -> None:
    node.workerinput[_HOME_OF_RUN] = str(_home(node.config))


def pytest_unconfigure(config: pytest.Config) -> None:
    if home := config.stash.get(_HOME, None):
        home.close()


@pytest.fixture
def measured(request: pytest.FixtureRequest) -> Measured:
    """Puts a row into the table: which fault, under what load, with what result. Short runs leave none."""

    def note(fault: str, load: str, result: str) -> None:
        if request.node.get_closest_marker("soak"):
            request.config.stash.setdefault(_ROWS, []).append((fault, load, result))

    return note


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Hostile text in what a test logged must not stop the report on its way out of a worker process."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "replace").decode()) for name, text in report.sections]
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = config.stash.get(_ROWS, [])
    if rows:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        python, sqlite = platform.python_version(), sqlite3.sqlite_version
        terminalreporter.section("measured")
        terminalreporter.write_line(f"{date.today()}, Python {python}, SQLite {sqlite}, {cores} cores\n")
        for line in _aligned([("fault", "load", "result"), *rows]):
            terminalreporter.write_line(line)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
