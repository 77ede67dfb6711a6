"""Where the database is, and how a connection to it is made ready."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import asyncpg

from jobs_async.core.errors import OptionError, StoreError
from jobs_async.stores.postgres.errors import refused_at_the_door
from jobs_async.stores.postgres.session import Session

if TYPE_CHECKING:
    from jobs_async.stores.postgres.hints import Hints

Connect = Callable[[], Awaitable[Any]]

CONNECT_SECONDS = 3.0
CALL_SECONDS = 8.0
"""How long one call may take: less than a Supervisor waits for a store, so that the store says what is wrong."""

SETTINGS = {
    "statement_timeout": f"{CALL_SECONDS:g}s",
    "lock_timeout": "2s",
    "idle_in_transaction_session_timeout": "10s",  # of a process that was frozen in one; ours never wait for long
    "default_transaction_isolation": "read committed",
    "jit": "off",
}
HOT = {**SETTINGS, "enable_seqscan": "off", "enable_bitmapscan": "off"}
"""For statements that are to find few rows by an index, however empty the table was when they were planned."""
CLAIMING = {**HOT, "enable_sort": "off"}
SETTLING = {**HOT, "lock_timeout": "250ms"}
"""A row that somebody's transaction holds must not hold up the settlement of all others."""
_NOT_LOCAL = ("default_transaction_isolation", "jit")
"""Said otherwise, by BEGIN; and what asyncpg, when it looks up a type, finds and then sets for the whole session."""
ASKING = {**SETTINGS, "plan_cache_mode": "force_custom_plan"}
"""For questions of every kind: none keeps the plan that was right while the table was empty."""

_HOST_IS_OUT = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.exceptions.TargetServerAttributeNotMatched,
)


class Server:
    """How one store reaches its database; connections are made by `connect`, or to `dsn`."""

    def __init__(self, dsn: str | None, connect: Connect | None, schema: str, hints: Hints, *, pooler: bool) -> None:
        if (dsn is None) is (connect is None):
            raise OptionError("PostgresStore takes a dsn or connect=, and not both")
        if connect is not None and not callable(connect):
            raise OptionError("connect= must be an async function that returns an asyncpg connection")
        self._hosts = [] if dsn is None else one_by_one(_checked(dsn))
        self._connect = connect
        self.schema = schema
        self.pooler = pooler
        self.hints = hints

    async def connect(self) -> asyncpg.Connection[Any]:
        """A new connection.

        Raises:
            StoreError: the server refused, or cannot be reached.
            StoreTimeout: it took more than 3 seconds.
        """
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                made = self._connect() if self._connect is not None else self._dial()
                connection: asyncpg.Connection[Any] = await made
        except ValueError as error:  # whose text may hold part of the dsn
            raise refused_at_the_door(error) from None
        except Exception as error:
            raise refused_at_the_door(error) from error
        if not isinstance(connection, asyncpg.Connection):
            raise StoreError(f"connect= must return an asyncpg connection, not {type(connection).__name__}")
        return connection

    async def _dial(self) -> asyncpg.Connection[Any]:
        """To the first host that takes us. Each has its share of the time, for one that has died may not even refuse;
        who took us last is asked first.
        """
        more: dict[str, Any] = {"statement_cache_size": 0} if self.pooler else {}
        hosts = self._hosts
        for dsn in hosts:
            try:
                connection: asyncpg.Connection[Any] = await asyncpg.connect(
                    dsn, timeout=CONNECT_SECONDS / len(hosts), **more
                )
            except _HOST_IS_OUT:
                if dsn is hosts[-1]:
                    raise
            else:
                self._hosts = [dsn, *(other for other in hosts if other is not dsn)]
                return connection
        raise AssertionError("a dsn has a host")

    async def ready(self, settings: dict[str, str]) -> Session:
        """A new connection with settings of its own; a pooler would hand them to others, so there is none there."""
        connection = await self.connect()
        if not self.pooler:
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    await connection.execute(_set(settings))
            except BaseException as error:
                connection.terminate()
                if isinstance(error, Exception):
                    raise refused_at_the_door(error) from error
                raise
        return Session(connection, self.schema, self.hints)

    def begin(self, settings: dict[str, str]) -> str:
        """How a transaction begins."""
        return f"BEGIN ISOLATION LEVEL READ COMMITTED; {_set(settings, 'LOCAL ')}" if self.pooler else "BEGIN"


def _set(settings: dict[str, str], how: str = "") -> str:
    """Fixed names and values of ours, in one message."""
    chosen = {name: value for name, value in settings.items() if not (how and name in _NOT_LOCAL)}
    return "; ".join(f"SET {how}{name} = '{value}'" for name, value in chosen.items())


def _checked(dsn: object) -> str:
    if not isinstance(dsn, str) or not dsn.startswith(("postgresql://", "postgres://", "postgresql+asyncpg://")):
        raise OptionError("a dsn is a string such as postgresql://user@host/database")
    return dsn.replace("postgresql+asyncpg://", "postgresql://", 1)


def one_by_one(dsn: str) -> list[str]:
    """A dsn for each of its hosts; given them all, the driver waits for the first until the time is up."""
    try:
        parts = urlsplit(dsn)
    except ValueError:
        return [dsn]  # the driver will say so
    user, at, hosts = parts.netloc.rpartition("@")
    if "," not in hosts:
        return [dsn]
    return [parts._replace(netloc=f"{user}{at}{host}").geturl() for host in hosts.split(",")]
