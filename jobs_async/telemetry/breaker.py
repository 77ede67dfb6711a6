"""What stops a broken handler from being called again and again."""

from __future__ import annotations

FAILURES = 3
"""Failures in a row that open a circuit."""
REST = 60.0
"""Seconds for which it stays open."""


class Breaker:
    """One circuit: closed while its handler works, open for a while after three failures in a row.

    The first call after the rest is a trial: one more failure opens the circuit again.
    """

    __slots__ = ("_failures", "_until", "has_failed")

    def __init__(self) -> None:
        self.has_failed = False
        """Whether the last call of it failed; where not, there is nothing to ask."""
        self._failures = 0
        self._until = float("-inf")

    def is_open(self, now: float) -> bool:
        """Whether to leave the handler alone; `now` are seconds of whatever clock, always the same one."""
        return now < self._until

    def worked(self) -> None:
        self._failures, self.has_failed = 0, False

    def failed(self, now: float) -> bool:
        """Count a failure; True where it opens the circuit."""
        self._failures, self.has_failed = self._failures + 1, True
        if self._failures < FAILURES:
            return False
        self._until = now + REST
        return True
