"""Work that must not be left half done."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from anyio import CancelScope

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


async def to_the_end(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in a task of its own and wait until it has ended, however often the caller is cancelled meanwhile.

    A cancellation of the caller is raised afterwards. Whoever uses this sees to it that the work is bounded.
    """
    task = asyncio.get_running_loop().create_task(work)
    cancelled: asyncio.CancelledError | None = None
    with CancelScope(shield=True):  # a cancelled scope of anyio would cancel us anew in each turn of the loop
        while not task.done():
            try:
                await asyncio.wait({task})
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # looked at, so that it is not reported as never retrieved
        raise cancelled
    return task.result()


async def finish_anyway(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` in a task of its own; where the caller is cancelled it is so at once, and the work goes on."""
    task = asyncio.get_running_loop().create_task(work)
    _unattended.add(task)
    task.add_done_callback(_unattended.discard)
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError:
        task.add_done_callback(_look_at)
        raise
    return task.result()


_unattended: set[asyncio.Task[Any]] = set()
"""Held here, for the event loop itself does not hold its tasks."""


def _look_at(task: asyncio.Task[Any]) -> None:
    """So that an error nobody waits for is not reported as never retrieved."""
    if not task.cancelled():
        task.exception()
