"""No answer of a store is waited for without end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from jobs_async.core.errors import StoreTimeout

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")

STORE_SECONDS = 11.0
"""How long one call may take: a second more than the SQLite store waits for a foreign lock, to let it say so."""


async def in_time(call: Awaitable[T]) -> T:
    """The answer of a store; what it does may still come through where it comes too late.

    Raises:
        StoreTimeout: it took too long.
    """
    try:
        async with asyncio.timeout(STORE_SECONDS):
            return await call
    except TimeoutError as error:
        raise StoreTimeout(f"the store did not answer within {STORE_SECONDS:g} seconds") from error
