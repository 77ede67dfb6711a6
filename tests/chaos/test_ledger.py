"""The checker of the fault tests finds each thing that it is there to find."""

from __future__ import annotations

import pytest

from jobs_async.core.job import JobState
from tests.chaos.ledger import SECOND, History, Node, Row, marks, violations

DEAD, ALIVE, AGAIN = 10, 20, 30
"""Processes: the lease of the first runs out at second 2, that of the second at second 9. It is second 8.

The third lost a lease that ran out at second 2, and has another until second 9.
"""

SOUND = "A 1 0 0 1 0, B 1 1 1 10 1, K 0 0 0 10 1, B 1 2 2 20 3, E 1 2 2 20 4"
"""Killed in its first run, and done in the second."""


def row(state: str = "completed", attempt: int = 2, claim: int = 2, node: str = "alive", key: str | None = None) -> Row:
    return Row(1, JobState[state], attempt, claim, 1, node, key)


def history(ledger: str, *rows: Row) -> History:
    """A ledger with times in seconds."""
    one = History(lease=2.0, at=8 * SECOND)
    one.note(mark._replace(ns=mark.ns * SECOND) for mark in marks(ledger.split(", ")))
    one.rows = {number: row._replace(id=number) for number, row in enumerate(rows, 1)}
    one.nodes = {"dead": Node("here", DEAD, 2 * SECOND), "alive": Node("here", ALIVE, 9 * SECOND)}
    one.nodes |= {"before": Node("here", AGAIN, 2 * SECOND), "after": Node("here", AGAIN, 9 * SECOND)}
    return one


def test_a_sound_history_contradicts_nothing() -> None:
    assert violations(history(SOUND, row())) == []


EARLY = "A 1 0 0 1 0, B 1 1 1 10 0, B 1 2 2 20 1, E 1 2 2 20 4"
OVERLAP = "A 1 0 0 1 0, B 1 1 1 30 1 {node}, B 1 2 2 20 4 alive, E 1 1 1 30 5 {node}, E 1 2 2 20 6 alive"
LATE = "A 1 0 0 1 0, B 1 2 2 20 3 alive, B 1 1 1 30 4 {node}, E 1 1 1 30 5 {node}, E 1 2 2 20 6 alive"
UNENDED = "A 1 0 0 1 0, B 1 1 1 20 1"


@pytest.mark.parametrize(
    ("found", "ledger", "rows"),
    [
        ("I1: job 1 was accepted and is not in the store", "A 1 0 0 1 0", []),
        ("I1: job 1 is retryable", SOUND, [row("retryable")]),
        ("I2: job 1 is completed and never came to its end", UNENDED, [row(attempt=1, claim=1)]),
        ("I3: job 1 ran 2 times in 1 attempts", SOUND, [row(attempt=1)]),
        ("I3: job 1 ran twice under one claim", SOUND.replace("1 2 2 20", "1 2 1 20"), [row(claim=1)]),
        ("I4: job 1 ran again 1.000 s before process 10 was taken for dead", EARLY, [row()]),
        ("I4: job 1 ran again 6.000 s before process 20 was taken for dead", SOUND.replace("10", "20"), [row()]),
        ("I4: job 1 ran again 5.000 s before process 30 was taken for dead", OVERLAP.format(node="after"), [row()]),
        ("I4: job 1 ran again 6.000 s before process 30 was taken for dead", LATE.format(node="after"), [row()]),
        ("I5: job 1 ran under claim 2 and its row says 1", SOUND, [row("discarded", claim=1)]),
        ("I5: job 1 is completed under claim 3, which came to no end", SOUND, [row(attempt=3, claim=3)]),
        ("I6: 2 live jobs have the key k", "K 0 0 0 1 1", [row("available", key="k"), row("scheduled", key="k")]),
        ("I8: job 1 executes on a node whose lease ran out 6.0 s ago", SOUND, [row("executing", node="dead")]),
        ("I8: job 1 executes on a node whose lease ran out 8.0 s ago", SOUND, [row("executing", node="gone")]),
    ],
)
def test_each_contradiction_is_found(found: str, ledger: str, rows: list[Row]) -> None:
    assert found in violations(history(ledger, *rows))


def test_a_run_may_overlap_one_whose_lease_had_run_out() -> None:
    late = "A 1 0 0 1 0, B 1 1 1 10 1, B 1 2 2 20 3, E 1 1 1 10 4, E 1 2 2 20 5"
    assert violations(history(late, row())) == []
    assert violations(history(OVERLAP.format(node="before"), row())) == []
    assert violations(history(LATE.format(node="before"), row())) == [], "it stood still in between"


def test_a_run_that_was_broken_off_is_over_and_its_attempt_may_be_refunded() -> None:
    refunded = "A 1 0 0 1 0, B 1 1 1 20 1, X 1 1 1 20 2, B 1 1 2 20 3, E 1 1 2 20 4"
    assert violations(history(refunded, row(attempt=1))) == []
