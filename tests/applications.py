"""Connections as applications have them, of each kind that `connection=` takes, all to be used alike."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol

import aiosqlite
import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)


class Application(Protocol):
    """Somebody with a transaction of his own; `given` is what he gives to `connection=`."""

    given: Any

    async def begin(self) -> None: ...

    async def execute(self, sql: str) -> Any: ...

    async def commit(self) -> None: ...

    async def rollback(self) -> None: ...


class OnAsyncpg:
    def __init__(self, connection: Any) -> None:
        self.given = connection

    async def begin(self) -> None:
        self._transaction = self.given.transaction()
        await self._transaction.start()

    async def execute(self, sql: str) -> Any:
        return await self.given.fetch(sql)

    async def commit(self) -> None:
        await self._transaction.commit()

    async def rollback(self) -> None:
        await self._transaction.rollback()


class OnAiosqlite:
    def __init__(self, connection: aiosqlite.Connection) -> None:
        self.given = connection

    async def begin(self) -> None:
        await self.given.execute("BEGIN IMMEDIATE")

    async def execute(self, sql: str) -> Any:
        return await self.given.execute_fetchall(sql)

    async def commit(self) -> None:
        await self.given.commit()

    async def rollback(self) -> None:
        await self.given.rollback()


class OnSqlAlchemy:
    """It begins by itself, at the first statement."""

    def __init__(self, given: Any) -> None:
        self.given = given

    async def begin(self) -> None: ...

    async def execute(self, sql: str) -> Any:
        return await self.given.execute(text(sql))

    async def commit(self) -> None:
        await self.given.commit()

    async def rollback(self) -> None:
        await self.given.rollback()


Open = Callable[[str], AbstractAsyncContextManager[Application]]
"""An application on the database of a DSN, or of a URL of SQLAlchemy."""


@asynccontextmanager
async def on_asyncpg(dsn: str) -> AsyncGenerator[Application]:
    connection = await asyncpg.connect(dsn)
    try:
        yield OnAsyncpg(connection)
    finally:
        connection.terminate()


@asynccontextmanager
async def on_pool(dsn: str) -> AsyncGenerator[Application]:
    async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool, pool.acquire() as connection:
        yield OnAsyncpg(connection)


@asynccontextmanager
async def on_aiosqlite(address: str) -> AsyncGenerator[Application]:
    path = address.removeprefix("sqlite+aiosqlite:///")
    async with aiosqlite.connect(path, isolation_level=None, timeout=30) as connection:
        yield OnAiosqlite(connection)


class Unit(AsyncSession):
    """Of an application that has added to SQLAlchemy's own."""


def url(dsn: str) -> str:
    """As SQLAlchemy writes it, for the driver we speak to."""
    return dsn.replace("postgresql://", "postgresql+asyncpg://", 1)


@asynccontextmanager
async def engine_of(dsn: str, **options: Any) -> AsyncGenerator[AsyncEngine]:
    engine = create_async_engine(url(dsn), **options)
    try:
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def on_connection(dsn: str) -> AsyncGenerator[Application]:
    async with engine_of(dsn) as engine, engine.connect() as connection:
        yield OnSqlAlchemy(connection)


@asynccontextmanager
async def on_session(dsn: str) -> AsyncGenerator[Application]:
    async with engine_of(dsn) as engine, AsyncSession(engine) as session:
        yield OnSqlAlchemy(session)


@asynccontextmanager
async def on_subclass(dsn: str) -> AsyncGenerator[Application]:
    async with engine_of(dsn) as engine, Unit(engine) as session:
        yield OnSqlAlchemy(session)


@asynccontextmanager
async def on_scoped_session(dsn: str) -> AsyncGenerator[Application]:
    """Of one task, as in web applications: another task would get another session."""
    async with engine_of(dsn) as engine:
        session = async_scoped_session(async_sessionmaker(engine), scopefunc=asyncio.current_task)
        try:
            yield OnSqlAlchemy(session)
        finally:
            await session.remove()


SQLALCHEMY: dict[str, Open] = {
    "AsyncConnection": on_connection,
    "AsyncSession": on_session,
    "a subclass of AsyncSession": on_subclass,
    "async_scoped_session": on_scoped_session,
}
SQLITE: dict[str, Open] = {"aiosqlite": on_aiosqlite, **SQLALCHEMY}
POSTGRES: dict[str, Open] = {"asyncpg": on_asyncpg, "a pool of asyncpg": on_pool, **SQLALCHEMY}


@asynccontextmanager
async def transaction(app: Application) -> AsyncGenerator[Any]:
    """Committed at the end, rolled back on an error."""
    await app.begin()
    try:
        yield app.given
    except BaseException:
        await app.rollback()
        raise
    await app.commit()
