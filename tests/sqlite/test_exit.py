"""A forgotten close never keeps the interpreter alive."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sqlite.support import ask, can_be_written_at_once, running

WHATS = ("store", "busy_store", "supervisor", "producer")
QUIET = ("store", "producer")
"""With nothing under way there is nothing to complain about either."""
HOWS = {"returns": 0, "raises": 1, "exits": 3}


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("what", WHATS)
def test_row_73_a_process_that_closes_nothing_ends_by_itself_within_2_seconds(path: Path, what: str, how: str) -> None:
    with running("forgotten", path, what, how) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "leaving\n", process.communicate()[1]
        _, err = process.communicate(timeout=2)
    assert process.returncode == HOWS[how], err
    if what in QUIET:
        assert err.count("Traceback") == (how == "raises")
    assert can_be_written_at_once(path)
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]


def test_row_73_a_store_that_was_collected_unclosed_ends_with_the_process_too(path: Path) -> None:
    with running("forgotten", path, "store", "collects") as process:
        process.communicate(timeout=10)
    assert process.returncode == 0
    assert ask(path, "SELECT count(*) FROM jobs_async_jobs") == [(1,)]
