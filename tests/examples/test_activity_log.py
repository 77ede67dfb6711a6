"""The activity log, in a terminal and without one, at twenty times its speed."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from examples.activity_log import main


@pytest.mark.parametrize("terminal", [False, True])
async def test_the_log_tells_what_happened_and_the_program_ends(terminal: bool) -> None:
    screen = io.StringIO()
    log = await main(speed=20, console=Console(file=screen, force_terminal=terminal, width=100))
    shown = screen.getvalue()
    assert "available 0  executing 0  completed 6  discarded 3" in shown
    assert "Enqueued: echo" in shown
    assert re.search(r"Completed: slow in \d+ms", shown)
    assert "Failed: failing - RuntimeError: as announced (attempt 1)" in shown
    assert "Discarded: failing - RuntimeError: as announced" in shown
    assert ("activity" in shown) is terminal
    assert len(log.latest(100)) == 16
    assert log.latest() == log.latest(100)[:10]
