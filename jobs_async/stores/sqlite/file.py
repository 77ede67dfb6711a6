"""A connection to a file of jobs: settings, schema, and that a forgotten one keeps no interpreter alive."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import weakref
from contextlib import closing, suppress

import aiosqlite

from jobs_async.clock import stopwatch
from jobs_async.core.errors import SchemaError
from jobs_async.stores.sql import migrations, split
from jobs_async.stores.sqlite.writer import BUSY_WAIT, PATIENCE, Session, is_busy

_SETTINGS = (
    "PRAGMA synchronous = FULL",
    "PRAGMA journal_size_limit = 4194304",
    "PRAGMA cache_size = -16000",  # KiB: the indexes of what is live and the end of the table
)
_MIGRATIONS = """
CREATE TABLE IF NOT EXISTS jobs_async_migrations (version INTEGER NOT NULL PRIMARY KEY, applied_at TEXT NOT NULL) STRICT
"""
_APPLIED = "INSERT INTO jobs_async_migrations VALUES (:version, datetime('now'))"


async def connect(path: str) -> aiosqlite.Connection:
    """Open a connection in autocommit and WAL mode, each commit synced."""
    _try(path)
    connection = await aiosqlite.connect(path, timeout=BUSY_WAIT, isolation_level=None)
    _let_go_at_exit(connection)
    session = Session(connection)
    try:
        await _patiently(session, "PRAGMA journal_mode = WAL")
        for setting in _SETTINGS:
            await session.rows(setting)
    except BaseException:
        await connection.close()
        raise
    return connection


def _try(path: str) -> None:
    """Fail here, within milliseconds, rather than in aiosqlite's thread, which a failed connect leaves to its fate."""
    with closing(sqlite3.connect(path, timeout=BUSY_WAIT)) as connection:
        connection.execute("PRAGMA schema_version").fetchall()


async def disconnect(*connections: aiosqlite.Connection | None) -> None:
    """Close what is open; a connection that is closed already does not mind."""
    for connection in connections:
        if connection is not None:
            with suppress(aiosqlite.Error, ValueError):
                await connection.close()


async def migrate(connection: aiosqlite.Connection) -> None:
    """Bring the schema up to date, once however many processes open the file at the same time.

    Raises:
        SchemaError: the file was written by a newer version of this package.
    """
    session, known = Session(connection), migrations("jobs_async.stores.sqlite")
    if await _version(session) == known[-1][0]:
        return  # as nearly always, and without a lock
    await _patiently(session, "BEGIN IMMEDIATE")
    try:
        await session.rows(_MIGRATIONS)
        version = await _version(session)
        if version > known[-1][0]:
            raise SchemaError(
                f"the file has schema {version}, this version knows up to {known[-1][0]}: upgrade jobs_async"
            )
        for number, script in known:
            if number > version:
                for statement in split(script):
                    await session.rows(statement)
                await session.rows(_APPLIED, {"version": number})
        await session.rows("COMMIT")
    except BaseException:
        if connection.in_transaction:
            await session.rows("ROLLBACK")
        raise


async def _version(session: Session) -> int:
    """Of the schema; 0 of a file that has none yet."""
    if not await session.rows("SELECT 1 FROM sqlite_schema WHERE name = 'jobs_async_migrations'"):
        return 0
    ((version,),) = await session.rows("SELECT coalesce(max(version), 0) FROM jobs_async_migrations")
    return int(version)


async def _patiently(session: Session, sql: str) -> None:
    """Run a statement that has to wait for foreign locks."""
    give_up_at = stopwatch() + PATIENCE
    while True:
        try:
            await session.rows(sql)
        except aiosqlite.OperationalError as error:
            if not is_busy(error) or stopwatch() >= give_up_at:
                raise
            await asyncio.sleep(0.01)
        else:
            return


_open_connections: weakref.WeakSet[aiosqlite.Connection] = weakref.WeakSet()
_watch_lock = threading.Lock()
_watch: threading.Thread | None = None


def _let_go_at_exit(connection: aiosqlite.Connection) -> None:
    """aiosqlite's thread is no daemon, so the interpreter would wait for ever for one that nobody closed."""
    global _watch  # noqa: PLW0603  # one watcher for the process, whichever store comes first
    with _watch_lock:
        _open_connections.add(connection)
        if _watch is None or not _watch.is_alive():
            _watch = threading.Thread(target=_stop_after_main, name="jobs_async exit", daemon=True)
            _watch.start()


def _stop_after_main() -> None:
    threading.main_thread().join()
    for connection in list(_open_connections):
        connection.stop()  # pyright: ignore[reportUnknownMemberType]
