"""Working on a connection of the application's own: part of its transaction, or all of one where none is open."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from jobs_async.core.errors import OptionError
from jobs_async.stores.drivers import driver_connection
from jobs_async.stores.postgres.errors import is_passing, typed
from jobs_async.stores.postgres.session import Session

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from jobs_async.stores.postgres.server import Server


@asynccontextmanager
async def guest(connection: object, server: Server) -> AsyncGenerator[Session]:
    """A session on somebody else's connection; what is done there is done, or undone, as a whole.

    Commit and rollback stay the application's, and so do conflicts between transactions: they are raised as the
    driver has them, for whoever repeats the transaction.

    Raises:
        OptionError: this is no open connection of asyncpg, or of SQLAlchemy through asyncpg.
    """
    driver = await driver_connection(connection)
    if not isinstance(driver, (asyncpg.Connection, PoolConnectionProxy)):
        raise OptionError(f"connection= must be an asyncpg connection, not {type(driver).__name__}")
    ours = cast("asyncpg.Connection[Any]", driver)
    if ours.is_closed():
        raise OptionError("connection= is closed")
    begin, undo, end = (
        ("SAVEPOINT jobs_async", "ROLLBACK TO jobs_async; RELEASE jobs_async", "RELEASE jobs_async")
        if ours.is_in_transaction()
        else ("BEGIN", "ROLLBACK", "COMMIT")
    )
    try:
        await ours.execute(begin)
        try:
            yield Session(ours, server.schema, server.hints)
        except BaseException:
            if not ours.is_closed():
                await ours.execute(undo)
            raise
        await ours.execute(end)
    except Exception as error:
        if is_passing(error):
            raise
        raise typed(error) from error
