"""Who is told of runs, and how: hooks around each run, whose trouble is never the job's."""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol

from jobs_async.core import limits
from jobs_async.inprocess.calling import is_async, is_cancelled, without_coroutine
from jobs_async.inprocess.errors import JobTypeError

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobs_async.inprocess.context import JobResultStatus, ObservedJobContext

P = ParamSpec("P")

HOOKS = ("on_job_started", "on_job_finished")

logger = logging.getLogger("jobs_async.inprocess")


class JobObserver(Protocol):
    """Told of each run of an ObservedJobRunner: once before it, and once after it whatever came of it.

    The run waits for both, so be quick, or use a channel. A hook that raises is logged, and breaks nothing. Hooks may
    be `async def` where all runs are `run_async`.
    """

    def on_job_started(self, context: ObservedJobContext, /) -> object: ...

    def on_job_finished(self, context: ObservedJobContext, status: JobResultStatus, /) -> object:
        """`context.duration` says how many seconds the job took."""
        ...


class NoopObserver:
    """Is told, and does nothing."""

    def on_job_started(self, context: ObservedJobContext, /) -> None: ...

    def on_job_finished(self, context: ObservedJobContext, status: JobResultStatus, /) -> None: ...


def check_observer(observer: object) -> None:
    """Make sure that it can be told.

    Raises:
        JobTypeError: it lacks a hook.
    """
    for hook in HOOKS:
        if isinstance(observer, type) or not callable(getattr(observer, hook, None)):
            raise JobTypeError(f"an observer is an object with the methods {' and '.join(HOOKS)}")


def has_async_hooks(observer: object) -> bool:
    """Whether telling it takes an event loop."""
    return any(is_async(getattr(observer, hook)) for hook in HOOKS)


def refuse_async_hooks(observer: object) -> None:
    """Make sure that it can be told without an event loop.

    Raises:
        JobTypeError: it has async hooks.
    """
    if has_async_hooks(observer):
        who = limits.type_name(observer)
        raise JobTypeError(f"{who} has async hooks, which a sync run cannot await; use run_async, or plain methods")


def tell(hook: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a sync hook."""
    try:
        without_coroutine(hook(*args, **kwargs), "the hook")
    except Exception as error:
        _failed(hook, error)


async def tell_async(hook: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> None:
    """Call a hook of either kind, in the calling task."""
    try:
        answer: Any = hook(*args, **kwargs)
        if inspect.isawaitable(answer):
            await answer
    except asyncio.CancelledError as error:
        if is_cancelled():
            raise
        _failed(hook, error)
    except Exception as error:
        _failed(hook, error)


def _failed(hook: object, error: BaseException) -> None:
    name = getattr(hook, "__qualname__", limits.type_name(hook))
    logger.error("job observer hook %s failed", name, exc_info=error)
