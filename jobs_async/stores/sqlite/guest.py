"""Inserting on a connection of the application's own: part of its transaction, or all of one where none is open."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, cast

import aiosqlite

from jobs_async.core.errors import OptionError, SchemaError, StoreBusy, StoreError
from jobs_async.stores import work
from jobs_async.stores.sqlite.writer import Row, Session, is_busy

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence
    from datetime import datetime

    from jobs_async.core.job import Job
    from jobs_async.core.options import NewJob
    from jobs_async.core.store import Tick
    from jobs_async.stores.session import Params

_locks: weakref.WeakKeyDictionary[aiosqlite.Connection, asyncio.Lock] = weakref.WeakKeyDictionary()
"""One insert at a time on a connection, for its steps must not mix with another's."""


class Guest(Session):
    """A session that leaves the application's row factory alone."""

    async def rows(self, sql: str, params: Params | Sequence[Any] = ()) -> list[Row]:
        async with self._connection.cursor() as cursor:
            cursor.row_factory = None
            await cursor.execute(sql, cast("Any", params))
            return [tuple(row) for row in await cursor.fetchall()]


async def insert(
    connection: object, path: str, new: Sequence[NewJob], tick: Tick | None, now: datetime
) -> list[Job[Any]]:
    """Insert all of these inside the open transaction, or none. Commit and rollback stay the application's.

    Raises:
        OptionError: this is no open aiosqlite connection.
        SchemaError: it leads to another database.
        StoreBusy: another connection holds, or has used, the right to write.
    """
    if not isinstance(connection, aiosqlite.Connection):
        raise OptionError(f"connection= must be an aiosqlite connection, not {type(connection).__name__}")
    try:
        _ = connection.in_transaction
    except ValueError:  # aiosqlite's word for it
        raise OptionError("connection= is closed") from None
    session = Guest(connection)
    async with _locks.setdefault(connection, asyncio.Lock()):
        try:
            await _refuse_another_file(session, path)
            async with _all_or_nothing(connection, session):
                return await work.insert_keyed(session, new, tick, now)
        except sqlite3.Error as error:
            if is_busy(error):
                text = "another connection holds, or has used, the right to write; begin yours with BEGIN IMMEDIATE"
                raise StoreBusy(text) from error
            raise StoreError(f"SQLite refused the insert on connection=: {error}") from error


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
