"""Working on a connection of the application's own: part of its transaction, or all of one where none is open."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from jobs_async.core.errors import OptionError
from jobs_async.stores.drivers import borrowed, of_this_task
from jobs_async.stores.postgres.errors import is_passing, typed
from jobs_async.stores.postgres.session import Session

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from jobs_async.stores.postgres.server import Server


@asynccontextmanager
async def guest(connection: object, server: Server) -> AsyncGenerator[Session]:
    """A session on somebody else's connection; what is done there is done, or undone, as a whole.

    Commit and rollback stay the application's, and so do conflicts between transactions: they are raised as the
    driver has them, for whoever repeats the transaction. How long a lock is waited for is the connection's own affair.

    Raises:
        OptionError: this is no open connection of asyncpg, or of SQLAlchemy through asyncpg; or one in use elsewhere.
    """
    async with borrowed(of_this_task(connection)) as driver:
        if not isinstance(driver, (asyncpg.Connection, PoolConnectionProxy)):
            text = "connection= must be one of asyncpg, or of SQLAlchemy through asyncpg"
            raise OptionError(f"{text}, not {type(driver).__name__}")
        ours = cast("asyncpg.Connection[Any]", driver)
        try:
            if ours.is_closed():
                raise OptionError("connection= is closed")
            async with _all_or_nothing(ours):
                yield Session(ours, server.schema, server.hints.of_guest())
        except Exception as error:
            if is_passing(error):
                raise
            if isinstance(error, asyncpg.InterfaceError) and not isinstance(error, ValueError):
                raise OptionError(f"connection= cannot be used: {error}".partition("\n")[0]) from error
            raise typed(error) from None  # the driver's own text quotes what it was given, and keys


@asynccontextmanager
async def _all_or_nothing(connection: asyncpg.Connection[Any]) -> AsyncGenerator[None]:
    begin, undo, end = (
        ("SAVEPOINT jobs_async", "ROLLBACK TO jobs_async; RELEASE jobs_async", "RELEASE jobs_async")
        if connection.is_in_transaction()
        else ("BEGIN", "ROLLBACK", "COMMIT")
    )
    await connection.execute(begin)
    try:
        yield
        await connection.execute(end)
    except BaseException:
        if not connection.is_closed() and connection.is_in_transaction():
            await connection.execute(undo)
        raise
