"""Connections of our own: made when first needed, made anew after every loss, each call with a deadline.

A call that does not come back in time is ended by cutting the connection, never by cancelling the driver in the middle
of its protocol; and a connection that may be in doubt is cut, not used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, TypeVar

import asyncpg

from jobs_async.core.errors import JobsError, StoreClosed, StoreTimeout
from jobs_async.stores.postgres.errors import is_passing, typed
from jobs_async.stores.postgres.server import CALL_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from jobs_async.stores.postgres.server import Server
    from jobs_async.stores.postgres.session import Session

T = TypeVar("T")
Do = Callable[["Session"], Awaitable[T]]

TRIES = 5
"""How often a transaction that was in the way of another is tried."""
GOODBYE_SECONDS = 0.5


class Line:
    """One connection, used by one task at a time."""

    def __init__(self, server: Server, settings: dict[str, str]) -> None:
        self._server = server
        self._settings = settings
        self._session: Session | None = None
        self._struck = False

    async def call(self, do: Do[T], *, atomic: bool = False, seconds: float = CALL_SECONDS) -> T:
        """Have `do` talk to the database, in a transaction where `atomic`; not to be cancelled: run it in a task.

        Raises:
            StoreTimeout: it took more than `seconds`, and may have come through.
            StoreError: what PostgreSQL refuses, as an error of ours.
        """
        session = await self._ready()
        self._struck = False
        timer = asyncio.get_running_loop().call_later(seconds, self._strike)
        try:
            if atomic or self._server.pooler:
                return await self._transaction(session, do)
            return await do(session)
        except BaseException as error:
            self._drop_in_doubt(error)
            if self._struck:
                raise StoreTimeout(f"PostgreSQL did not answer within {seconds:g} seconds") from error
            if isinstance(error, Exception):
                raise typed(error) from error
            raise
        finally:
            timer.cancel()

    async def _transaction(self, session: Session, do: Do[T]) -> T:
        connection = session.connection
        for tried in range(1, TRIES + 1):
            await connection.execute(self._server.begin(self._settings))
            try:
                answer = await do(session)
                await connection.execute("COMMIT")
            except Exception as error:
                if not connection.is_closed() and connection.is_in_transaction():
                    await connection.execute("ROLLBACK")
                if not is_passing(error) or tried == TRIES:
                    raise
            else:
                return answer
        raise AssertionError("unreachable")

    async def reach(self) -> None:
        """Connect where that is needed; raises why that is not possible."""
        await self._ready()

    async def _ready(self) -> Session:
        if self._session is None or self._session.connection.is_closed():
            self._session = await self._server.ready(self._settings)
        return self._session

    def _strike(self) -> None:
        self._struck = True
        self.cut()

    def _drop_in_doubt(self, error: BaseException) -> None:
        """Keep a connection on which the server has answered, and which holds no transaction."""
        session = self._session
        answered = isinstance(error, (asyncpg.PostgresError, asyncpg.exceptions.DataError, JobsError))
        if session is not None and not (answered and _is_at_rest(session)):
            self.cut()

    def cut(self) -> None:
        """Let go at once."""
        session, self._session = self._session, None
        if session is not None:
            session.connection.terminate()

    async def close(self) -> None:
        """Say goodbye, shortly."""
        session, self._session = self._session, None
        if session is not None and not session.connection.is_closed():
            with suppress(Exception):
                await session.connection.close(timeout=GOODBYE_SECONDS)
            session.connection.terminate()


def _is_at_rest(session: Session) -> bool:
    return not session.connection.is_closed() and not session.connection.is_in_transaction()


class Lines:
    """A few connections for whoever needs one for a moment."""

    def __init__(self, server: Server, settings: dict[str, str], size: int) -> None:
        self._server = server
        self._settings = settings
        self._free = asyncio.Semaphore(size)
        self._idle: list[Line] = []
        self._busy: set[Line] = set()
        self._size = size
        self._closed = False

    @asynccontextmanager
    async def one(self) -> AsyncGenerator[Line]:
        """A line to oneself.

        Raises:
            StoreTimeout: all were busy for 8 seconds.
        """
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._free.acquire()
        except TimeoutError:
            text = f"all {self._size} connections were busy for {CALL_SECONDS:g} seconds: raise pool_size"
            raise StoreTimeout(text) from None
        try:
            if self._closed:
                raise StoreClosed("the store is closed")
            line = self._idle.pop() if self._idle else Line(self._server, self._settings)
            self._busy.add(line)
            try:
                yield line
            finally:
                self._busy.discard(line)
                self._idle.append(line)
        finally:
            self._free.release()

    async def close(self) -> None:
        """Cut what is busy, say goodbye on what is idle."""
        self._closed = True
        for line in list(self._busy):
            line.cut()
        idle, self._idle = self._idle, []
        await asyncio.gather(*(line.close() for line in idle))
