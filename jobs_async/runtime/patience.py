"""No answer of a store is waited for without end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from jobs_async.core.errors import StoreError, StoreTimeout

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")

STORE_SECONDS = 11.0
"""How long one call may take: a second more than the SQLite store waits for a foreign lock, to let it say so."""
LATE = 0.5
"""Seconds by which the event loop may miss a deadline before it counts as blocked itself."""


async def in_time(call: Awaitable[T]) -> T:
    """The answer of a store; what it does may still come through where it comes too late.

    Where the event loop was blocked when the time was up, the answer may be there already, and gets another second.

    Raises:
        StoreTimeout: it took too long.
        StoreError: the store says that something else did.
    """
    loop = asyncio.get_running_loop()
    due, timeout = loop.time() + STORE_SECONDS, asyncio.timeout(None)

    def strike() -> None:
        now = loop.time()
        timeout.reschedule(now + 1.0 if now - due > LATE else now)

    timer = loop.call_at(due, strike)
    try:
        async with timeout:
            return await call
    except TimeoutError as error:
        if timeout.expired():
            raise StoreTimeout(f"the store did not answer within {STORE_SECONDS:g} seconds") from error
        raise StoreError(f"the store timed out: {error}") from error
    finally:
        timer.cancel()
