"""How functions of either colour are called, and whose a CancelledError is."""

from __future__ import annotations

import asyncio
import inspect
from typing import TYPE_CHECKING, Any, TypeVar

from jobs_async.core import limits
from jobs_async.inprocess.errors import JobTypeError

if TYPE_CHECKING:
    from jobs_async.inprocess.protocols import Job

T = TypeVar("T")


def refuse_async(job: Job, instead: str) -> None:
    """Keep a job that awaits from being called where nothing can await it.

    Raises:
        JobTypeError: its `run` is async; the text says to use `instead`.
    """
    if is_async(job.run):
        raise JobTypeError(f"the run method of {limits.type_name(job)} is async; use {instead}")


def call(job: Job[T]) -> T:
    """Run a sync job.

    Raises:
        JobTypeError: its `run` handed out a coroutine, which is closed.
    """
    return without_coroutine(job.run(), "the run method")


async def call_async(job: Job[Any]) -> Any:
    """Run a job of either kind, in the calling task; a sync one holds up the event loop meanwhile."""
    result = job.run()
    return await result if inspect.isawaitable(result) else result


def is_async(function: object) -> bool:
    """Whether calling it makes something to await, as far as can be told before the call."""
    method = getattr(type(function), "__call__", None)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(method)


def without_coroutine(answer: T, whose: str) -> T:
    """What a sync call has answered, unless that is a coroutine that nobody would await."""
    if inspect.iscoroutine(answer):
        answer.close()
        raise JobTypeError(f"{whose} returned a coroutine, which nothing awaits here; make it an async def")
    return answer


def is_cancelled() -> bool:
    """Whether somebody has asked the running task to end; a CancelledError without that is somebody's own."""
    return cancellations() > 0


def cancellations() -> int:
    """How many requests to end the running task has not answered yet."""
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
