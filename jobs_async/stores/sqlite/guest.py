"""Working on a connection of the application's own: part of its transaction, or all of one where none is open."""

from __future__ import annotations

import os
import sqlite3
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

import aiosqlite

from jobs_async.core.errors import OptionError, SchemaError, StoreBusy, StoreError
from jobs_async.stores.drivers import borrowed, of_this_task
from jobs_async.stores.sqlite.writer import Row, Session, is_busy
from jobs_async.tasks import to_the_end

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

    from jobs_async.stores.session import Params

T = TypeVar("T")


class Guest(Session):
    """A session that leaves the application's row factory alone."""

    async def rows(self, sql: str, params: Params | Sequence[Any] = ()) -> list[Row]:
        async with self._connection.cursor() as cursor:
            cursor.row_factory = None
            await cursor.execute(sql, cast("Any", params))
            return [tuple(row) for row in await cursor.fetchall()]


async def visit(connection: object, path: str, do: Callable[[Session], Awaitable[T]]) -> T:
    """Have `do` work inside the open transaction, all of it or nothing. Commit and rollback stay the application's.

    Raises:
        OptionError: this is no open connection of aiosqlite, or of SQLAlchemy through aiosqlite.
        SchemaError: it leads to another database.
        StoreBusy: another connection holds, or has used, the right to write.
    """
    return await to_the_end(_visit(of_this_task(connection), path, do))


async def _visit(connection: object, path: str, do: Callable[[Session], Awaitable[T]]) -> T:
    async with borrowed(connection) as driver:
        session = Guest(_checked(driver))
        try:
            await _refuse_another_file(session, path)
            async with _all_or_nothing(driver, session):
                return await do(session)
        except sqlite3.Error as error:
            if is_busy(error):
                text = "another connection holds, or has used, the right to write; begin yours with BEGIN IMMEDIATE"
                raise StoreBusy(text) from error
            raise StoreError(f"SQLite refused what was to be done on connection=: {error}") from error


def _checked(driver: object) -> aiosqlite.Connection:
    if not isinstance(driver, aiosqlite.Connection):
        text = "connection= must be one of aiosqlite, or of SQLAlchemy through aiosqlite"
        raise OptionError(f"{text}, not {type(driver).__name__}")
    try:
        _ = driver.in_transaction
    except ValueError:  # aiosqlite's word for it
        raise OptionError("connection= is closed") from None
    return driver


@asynccontextmanager
async def _all_or_nothing(connection: aiosqlite.Connection, session: Session) -> AsyncGenerator[None]:
    """A savepoint in an open transaction; where none is open, begin as the connection itself would."""
    if connection.in_transaction:
        begin, undo, end = (
            "SAVEPOINT jobs_async",
            ["ROLLBACK TO jobs_async", "RELEASE jobs_async"],
            "RELEASE jobs_async",
        )
    else:
        begin, undo, end = "BEGIN IMMEDIATE", ["ROLLBACK"], "COMMIT" if connection.isolation_level is None else ""
    await session.rows(begin)
    try:
        yield
    except BaseException:
        for statement in undo:
            if connection.in_transaction:
                await session.rows(statement)
        raise
    if end:
        await session.rows(end)


async def _refuse_another_file(session: Session, path: str) -> None:
    """Raises SchemaError, also where one of the files is gone."""
    files = [file for _, name, file in await session.rows("PRAGMA database_list") if name == "main"]
    if not files or not files[0] or not _is_same(files[0], path):
        raise SchemaError(f"connection= leads to another database than {path!r}")


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
