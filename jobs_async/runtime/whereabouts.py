"""Where a handler is right now: the calls of a coroutine that waits, or of a thread, innermost last.

task.get_coro() ── cr_await ──► coroutine ── ag_await ──► async generator ── cr_await ──► a future: the end
"""

from __future__ import annotations

import gc
import sys
from pathlib import PurePath
from types import AsyncGeneratorType, CoroutineType, FrameType, GeneratorType
from typing import TYPE_CHECKING

from jobs_async.core.outcome import storable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MAX_CALLS = 10
"""Calls that are told, the innermost ones."""
MAX_DEPTH = 1_000
"""Coroutines that are followed; a chain is longer only where it is endless."""
OURS = "jobs_async.runtime"
"""Whose calls are left out: how we came to the handler says nothing about it."""

_PARTS: dict[type, tuple[str, str]] = {
    CoroutineType: ("cr_frame", "cr_await"),
    AsyncGeneratorType: ("ag_frame", "ag_await"),
    GeneratorType: ("gi_frame", "gi_yieldfrom"),
}
"""Where each kind keeps its own frame, and what it waits for."""
_WRAPPERS = ("async_generator_asend", "async_generator_athrow", "coroutine_wrapper")


def of_coroutine(work: object) -> tuple[str, ...]:
    """The last calls of something that is being awaited, each "file:line:function"; () when it has ended."""
    return _told(_awaited_frames(work))


def of_thread(ident: int | None, home: str) -> tuple[str, ...]:
    """The last calls of a thread, back to our function named `home`; () where it is not in a call of that."""
    frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]  # how one thread looks at another
    frame = frames.get(ident) if ident is not None else None
    calls: list[FrameType] = []
    while frame is not None:
        if frame.f_code.co_name == home and _is_ours(frame):
            return _told(reversed(calls[:-1]))  # the outermost is the one that unpacks the arguments
        calls.append(frame)
        frame = frame.f_back
    return ()


def _awaited_frames(work: object) -> Iterator[FrameType]:
    for _ in range(MAX_DEPTH):
        frame_of, next_of = _PARTS.get(type(work), ("", ""))
        frame: FrameType | None = getattr(work, frame_of, None)
        if frame is not None:
            yield frame
        work = getattr(work, next_of, None) if next_of else _wrapped(work)
        if work is None:
            return


def _wrapped(work: object) -> object:
    """What `__anext__()` and `__await__()` of the language wrap; they show it to nobody but the garbage collector."""
    if type(work).__name__ not in _WRAPPERS:
        return None
    return next((one for one in gc.get_referents(work) if type(one) in _PARTS), None)


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__", "")).startswith(OURS)


def _told(frames: Iterable[FrameType]) -> tuple[str, ...]:
    calls = [frame for frame in frames if not _is_ours(frame)]
    return tuple(_call(frame) for frame in calls[-MAX_CALLS:])


def _call(frame: FrameType) -> str:
    code = frame.f_code
    return storable(f"{PurePath(code.co_filename).name}:{frame.f_lineno or 0}:{code.co_name}", 255)
