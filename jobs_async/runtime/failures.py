"""Turning any exception, however hostile, into a Failure that every store can keep."""

from __future__ import annotations

from pathlib import PurePath
from traceback import StackSummary, walk_tb
from typing import TYPE_CHECKING

from jobs_async.core.outcome import Failure, storable

if TYPE_CHECKING:
    from types import TracebackType

MAX_FRAMES = 5


class Told(Exception):
    """What a handler raised in another process, as that process has described it.

    `trace` is its traceback as text; `is_final` says that it is not to be tried again.
    """

    def __init__(self, failure: Failure, trace: str = "", *, is_final: bool = False) -> None:
        super().__init__(failure.error)
        self.failure = failure
        self.trace = trace
        self.is_final = is_final


def failure_of(error: BaseException, text: str | None = None) -> Failure:
    """Type, message and last frames; never raises, whatever `str(error)` does."""
    if isinstance(error, Told):
        return error.failure
    kind = type(error).__name__
    if text is None:
        message = _message(error)
        text = f"{kind}: {message}" if message else kind
    return Failure(storable(kind, 255), storable(text), _frames(error.__traceback__))


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return "(its message could not be read)"


def _frames(trace: TracebackType | None) -> tuple[str, ...]:
    try:
        stack = StackSummary.extract(walk_tb(trace), lookup_lines=False)
        last = [frame for frame in stack if "jobs_async/runtime" not in frame.filename][-MAX_FRAMES:]
        return tuple(storable(f"{PurePath(f.filename).name}:{f.lineno}:{f.name}", 255) for f in last)
    except Exception:
        return ()
