"""The connection of a driver that an application's own connection stands for."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from jobs_async.core.errors import OptionError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

_turns: dict[int, tuple[asyncio.Lock, list[None]]] = {}
"""By the id of a connection that somebody works on or waits for: whose turn it is, and how many there are."""


def of_this_task(connection: object) -> object:
    """The session that SQLAlchemy's async_scoped_session has for the task at hand; anything else as it is.

    To be asked before the work goes to a task of its own, where it would be another session.
    """
    alchemy: Any = sys.modules.get("sqlalchemy.ext.asyncio")
    if alchemy is None or not isinstance(connection, alchemy.async_scoped_session):
        return connection
    theirs: Any = connection
    session: object = theirs.registry()
    return session


@asynccontextmanager
async def borrowed(connection: object) -> AsyncGenerator[Any]:
    """What SQLAlchemy's AsyncSession or AsyncConnection works on, anything else as it is; to oneself among those who
    borrow it here, for the statements of one must not mix with another's.

    Raises:
        OptionError: SQLAlchemy says that it is closed, not connected yet, or in use in another task.
    """
    lock, users = _turns.setdefault(id(connection), (asyncio.Lock(), []))
    users.append(None)
    try:
        async with lock:
            yield await _driver_connection(connection)
    finally:
        users.pop()
        if not users:
            del _turns[id(connection)]


async def _driver_connection(connection: Any) -> object:
    """SQLAlchemy begins its transaction with the driver at its first statement only; so one is made here, for what is
    done on the driver's connection is to be part of it.
    """
    alchemy: Any = sys.modules.get("sqlalchemy.ext.asyncio")
    if alchemy is None or not isinstance(connection, (alchemy.AsyncSession, alchemy.AsyncConnection)):
        return connection
    refusals: Any = sys.modules["sqlalchemy.exc"]
    try:
        if isinstance(connection, alchemy.AsyncSession):
            connection = await connection.connection()
        await connection.exec_driver_sql("SELECT 1")
        return (await connection.get_raw_connection()).driver_connection
    except refusals.PendingRollbackError:
        raise  # the application's own business, which it knows how to deal with
    except refusals.InvalidRequestError as error:
        raise OptionError(f"connection= cannot be used: {str(error).partition('.')[0]}") from error
