"""A connection to a file of jobs: settings, schema, and that a forgotten one keeps no interpreter alive."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import threading
import weakref
from contextlib import closing, suppress
from pathlib import Path

import aiosqlite

from jobs_async.clock import stopwatch
from jobs_async.core.errors import SchemaError, StoreBusy, StoreError
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
_IS_THERE = "SELECT 1 FROM sqlite_schema WHERE name = 'jobs_async_migrations'"
_VERSION = "SELECT coalesce(max(version), 0) FROM jobs_async_migrations"
_KNOWN = migrations("jobs_async.stores.sqlite")
NEWEST = _KNOWN[-1][0]
"""The number of the last migration this version of the package knows."""
OPEN_ADVICE = "open the Supervisor before you begin a transaction of your own"


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


def unopened(path: str, error: sqlite3.Error) -> StoreError:
    """What is raised where a file cannot be opened or made ready."""
    if is_busy(error):
        return StoreBusy(f"{path!r} cannot be made ready: {error}; {OPEN_ADVICE}")
    return StoreError(f"cannot open {path!r}: {error}")


async def migrate(connection: aiosqlite.Connection) -> list[int]:
    """Bring the schema up to date, once however many processes open the file at the same time; what was applied.

    Raises:
        SchemaError: the file was written by a newer version of this package.
    """
    session = Session(connection)
    if await _version(session) == NEWEST:
        return []  # as nearly always, and without a lock
    await _patiently(session, "BEGIN IMMEDIATE")
    try:
        await session.rows(_MIGRATIONS)
        version = await _version(session)
        if version > NEWEST:
            raise SchemaError(f"the file has schema {version}, this version knows up to {NEWEST}: upgrade jobs_async")
        missing = [(number, text) for number, text in _KNOWN if number > version]
        for number, text in missing:
            for statement in split(text):
                await session.rows(statement)
            await session.rows(_APPLIED, {"version": number})
        await session.rows("COMMIT")
    except BaseException:
        if connection.in_transaction:
            await session.rows("ROLLBACK")
        raise
    return [number for number, _ in missing]


async def _version(session: Session) -> int:
    """Of the schema; 0 of a file that has none yet."""
    if not await session.rows(_IS_THERE):
        return 0
    ((version,),) = await session.rows(_VERSION)
    return int(version)


def stored_version(path: str) -> int:
    """As `_version`, without making anything ready; waits a quarter of a second at most."""
    if not os.path.exists(path):
        return 0
    address = Path(path).absolute().as_uri() + "?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=BUSY_WAIT)) as connection:
        if not connection.execute(_IS_THERE).fetchall():
            return 0
        ((version,),) = connection.execute(_VERSION).fetchall()
        return int(version)


def script(since: int) -> str:
    """What `migrate` does to a file at version `since`, for SQLite's own shell; empty where it does nothing."""
    missing = [(number, text) for number, text in _KNOWN if number > since]
    if not missing:
        return ""
    parts = [f"-- migration {number}\n\n{text.strip()}\n\n{_noted(number)};" for number, text in missing]
    return "\n\n".join(["BEGIN IMMEDIATE;", _MIGRATIONS.strip() + ";", *parts, "COMMIT;"]) + "\n"


def _noted(number: int) -> str:
    return _APPLIED.replace(":version", str(number))


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
