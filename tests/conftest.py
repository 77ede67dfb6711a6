"""What the long tests measured, as one table at the end of `make soak`."""

from __future__ import annotations

import os
import platform
import signal
import sqlite3
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import date

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in the background of a shell: what we start is not
    signal.signal(signal.SIGINT, signal.default_int_handler)


Measured = Callable[[str, str, str], None]

_ROWS = pytest.StashKey[list[tuple[str, str, str]]]()


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
