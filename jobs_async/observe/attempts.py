"""The log lines of one attempt: what is kept of a record, and how many."""

from __future__ import annotations

from collections import deque
from datetime import datetime
from typing import TYPE_CHECKING

from msgspec import Struct

from jobs_async.observe.logs import clean, exception_of, instant_of, message_of

if TYPE_CHECKING:
    import logging

MAX_LINE_BYTES = 8_192
"""Where a single line is cut, so that no line pushes out all others."""
LINE_COST = 64
"""Bytes a line counts beside its text and the name of its logger."""

Key = tuple[int, int]
"""The id of a job and its claim, which no two attempts share."""


class LogLine(Struct, frozen=True, array_like=True):
    """One log line; an exception's traceback is part of its text."""

    at: datetime
    level: str
    logger: str
    text: str

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M:%S}Z {self.level:<7} {self.logger} {self.text}"


class AttemptLog(Struct, frozen=True):
    """The last lines of one attempt, oldest first, and how many came before them and are dropped."""

    job_id: int
    attempt: int
    claim: int
    lines: tuple[LogLine, ...]
    dropped: int = 0


class Attempt:
    """The last lines of an attempt, within bounds."""

    __slots__ = ("_bytes", "_kept", "_left", "_max_lines", "attempt", "claim", "dropped", "is_over", "job_id")

    def __init__(self, job_id: int, attempt: int, claim: int, lines: int, room: int) -> None:
        self.job_id, self.attempt, self.claim = job_id, attempt, claim
        self.is_over = False
        self.dropped = 0
        self._kept: deque[tuple[LogLine, int]] = deque()
        self._max_lines = lines
        self._left = room

    @property
    def key(self) -> Key:
        return self.job_id, self.claim

    @property
    def has_lines(self) -> bool:
        return bool(self._kept)

    def add(self, line: LogLine) -> None:
        cost = _size(line)
        self._kept.append((line, cost))
        self._left -= cost
        while self._left < 0 or len(self._kept) > self._max_lines:
            _, given_back = self._kept.popleft()
            self._left += given_back
            self.dropped += 1

    def log(self) -> AttemptLog:
        lines = tuple(line for line, _ in self._kept)
        return AttemptLog(self.job_id, self.attempt, self.claim, lines, self.dropped)


def line_of(record: logging.LogRecord, room: int) -> LogLine:
    """A record as it is kept."""
    exception = exception_of(record)
    text = message_of(record) + ("\n" + exception if exception else "")
    logger, level = _cut(clean(record.name), 64), _cut(clean(record.levelname), 32)
    return LogLine(instant_of(record), level, logger, _cut(text, min(MAX_LINE_BYTES, room - LINE_COST - 96)))


def _cut(text: str, size: int) -> str:
    """At most so many bytes of UTF-8."""
    if len(text) <= size // 4:
        return text
    data = text.encode()
    return text if len(data) <= size else data[: size - 3].decode(errors="ignore") + "…"


def _size(line: LogLine) -> int:
    return LINE_COST + len(line.level.encode()) + len(line.logger.encode()) + len(line.text.encode())
