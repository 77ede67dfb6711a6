"""Every statement that the PostgreSQL store makes is a point where a fault can strike, on the wire or in the server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import asyncpg
import pytest

from jobs_async.stores.postgres.dialect import SQL, numbered
from tests.faults.statements import Do, Fault, current

_SCHEMA = re.compile(r'"\w+"\.')
_QUOTED = re.compile(r'"[^"]*"')
_NAMES = {_SCHEMA.sub("", numbered(text, '"s"')[0]): name for name, text in SQL.items()}

On = Callable[["asyncpg.Connection[Any]", Do], Awaitable[Any]]


class Asked:
    """A statement that is about to be made, on its connection."""

    def __init__(self, connection: asyncpg.Connection[Any], do: Do) -> None:
        self.connection = connection
        self._do = do

    async def __call__(self) -> Any:
        return await self._do()


def name_of(sql: str) -> str:
    """What our SQL calls a statement, otherwise its first words."""
    return _NAMES.get(_SCHEMA.sub("", sql)) or " ".join(_QUOTED.sub("", sql).split()[:2]).rstrip(";")


@contextmanager
def watched() -> Iterator[None]:
    """Have the statements that PostgreSQL is asked for in every scene pass by."""
    with pytest.MonkeyPatch.context() as patch:
        for method in ("fetch", "execute"):
            patch.setattr(asyncpg.Connection, method, _passing_by(getattr(asyncpg.Connection, method)))
        yield


def _passing_by(original: Any) -> Any:
    async def method(self: asyncpg.Connection[Any], query: str, *args: Any, **options: Any) -> Any:
        statements = current.get(None)
        if statements is None:
            return await original(self, query, *args, **options)
        asked = Asked(self, lambda: original(self, query, *args, **options))
        return await statements.pass_by(name_of(query), asked)

    return method


# --- what can strike ---


def _on_connection(strike: On) -> Fault:
    async def fault(do: Do) -> Any:
        return await strike(cast("Asked", do).connection, do)

    return fault


def failing(code: str) -> Fault:
    """The server refuses the statement, with this SQLSTATE; a transaction that is open can only be undone."""
    raising = f"DO $$ BEGIN RAISE EXCEPTION 'on purpose' USING ERRCODE = '{code}'; END $$"
    return _on_connection(lambda connection, _: _quietly(connection, raising))


def dying() -> Fault:
    """The server ends this connection."""
    return _on_connection(lambda connection, _: _quietly(connection, "SELECT pg_terminate_backend(pg_backend_pid())"))


def hanging(seconds: float) -> Fault:
    """The server does not answer, for so long."""

    async def strike(connection: asyncpg.Connection[Any], do: Do) -> Any:
        await _quietly(connection, f"SELECT pg_sleep({seconds})")
        return await do()

    return _on_connection(strike)


def broken(*, after: bool) -> Fault:
    """The connection breaks once the statement is under way, whose answer gets lost; or once it is there."""

    async def strike(connection: asyncpg.Connection[Any], do: Do) -> Any:
        transport: asyncio.Transport = cast("Any", connection)._transport
        if after:
            await do()
            transport.abort()
            raise asyncpg.ConnectionDoesNotExistError("on purpose")
        asyncio.get_running_loop().call_soon(transport.abort)
        return await do()

    return _on_connection(strike)


async def _quietly(connection: asyncpg.Connection[Any], sql: str) -> Any:
    """Not as a statement of the scene."""
    token = current.set(None)  # type: ignore[arg-type]
    try:
        return await connection.execute(sql)
    finally:
        current.reset(token)
