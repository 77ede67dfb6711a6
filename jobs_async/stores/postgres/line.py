"""Connections of our own: made when first needed, made anew after every loss, each call with a deadline.

A call that does not come back in time is ended by cutting the connection, never by cancelling the driver in the middle
of its protocol; and a connection that may be in doubt is cut, not used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

from jobs_async.core.errors import StoreClosed, StoreError, StoreTimeout
from jobs_async.stores.postgres.errors import leaves_usable, may_repeat, refused_at_the_door, typed
from jobs_async.stores.postgres.server import CALL_SECONDS, CONNECT_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from jobs_async.stores.postgres.server import Server
    from jobs_async.stores.postgres.session import Session

T = TypeVar("T")
Do = Callable[["Session"], Awaitable[T]]

TRIES = 5
"""How often a transaction that was in the way of another is tried."""
GOODBYE_SECONDS = 0.5
FIRST_PAUSE, MAX_PAUSE = 0.05, 0.5
"""Seconds between two attempts to connect."""
MIN_SECONDS = 0.5
"""What a call that has waited long for its turn is given all the same."""


class Line:
    """One connection, used by one task at a time."""

    def __init__(self, server: Server, settings: dict[str, str]) -> None:
        self._server = server
        self._settings = settings
        self._session: Session | None = None
        self._dialing: asyncio.Timeout | None = None
        self._struck = False
        self._ended = False

    async def call(self, do: Do[T], *, atomic: bool = False, seconds: float = CALL_SECONDS) -> T:
        """Have `do` talk to the database, in a transaction where `atomic`; not to be cancelled: run it in a task.

        What was in the way of another transaction is tried again, so `do` may be called several times.

        Raises:
            StoreTimeout: it took more than `seconds`, connecting included, and may have come through.
            StoreClosed: the line was ended meanwhile.
            StoreError: what PostgreSQL refuses, as an error of ours.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + seconds
        session = await self._ready(seconds)
        self._struck = False
        timer = loop.call_at(give_up_at, self._strike)
        try:
            return await self._insist(session, do, atomic=atomic or self._server.pooler)
        except BaseException as error:
            self._drop_in_doubt(error)
            if self._struck:
                raise StoreTimeout(f"PostgreSQL did not answer within {seconds:.1f} seconds") from error
            if self._ended:
                raise StoreClosed("the store was closed in the middle of this; it may be written") from None
            if isinstance(error, Exception):
                raise typed(error) from None  # the driver's own text quotes what it was given, and keys
            raise
        finally:
            timer.cancel()

    async def _insist(self, session: Session, do: Do[T], *, atomic: bool) -> T:
        for _ in range(TRIES - 1):
            try:
                return await (self._transaction(session, do) if atomic else do(session))
            except Exception as error:
                if not may_repeat(error):
                    raise
        return await (self._transaction(session, do) if atomic else do(session))

    async def _transaction(self, session: Session, do: Do[T]) -> T:
        connection = session.connection
        await connection.execute(self._server.begin(self._settings))
        try:
            answer = await do(session)
            await connection.execute("COMMIT")
        except Exception:
            if not connection.is_closed() and connection.is_in_transaction():
                await connection.execute("ROLLBACK")
            raise
        return answer

    async def reach(self, give_up_at: float, is_over: Callable[[], bool]) -> None:
        """Connect where that is needed, again and again until then; raises why that is not possible."""
        loop, pause = asyncio.get_running_loop(), FIRST_PAUSE
        while True:
            try:
                await self._ready(max(MIN_SECONDS, give_up_at - loop.time()))
                return
            except StoreError:
                if is_over() or loop.time() + pause >= give_up_at:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE)

    async def _ready(self, seconds: float) -> Session:
        if self._session is None or self._session.connection.is_closed():
            try:
                async with asyncio.timeout(min(seconds, CONNECT_SECONDS)) as self._dialing:
                    self._session = await self._server.ready(self._settings)
            except TimeoutError as error:
                if self._ended:
                    raise StoreClosed("the store was closed before this could be done") from None
                raise refused_at_the_door(error) from error
            finally:
                self._dialing = None
        return self._session

    def _strike(self) -> None:
        self._struck = True
        self.cut()

    def _drop_in_doubt(self, error: BaseException) -> None:
        """Keep a connection on which the server has answered, and which holds no transaction."""
        session = self._session
        if session is not None and not (leaves_usable(error) and _is_at_rest(session)):
            self.cut()

    def end(self) -> None:
        """Cut for good: the store is being closed."""
        self._ended = True
        self.cut()

    def cut(self) -> None:
        """Let go at once, also of a connection that is only being made."""
        session, self._session = self._session, None
        if self._dialing is not None and not self._dialing.expired():
            self._dialing.reschedule(asyncio.get_running_loop().time())
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
        self._visits = set[asyncio.Task[Any] | None]()
        self._size = size
        self._closed = False

    async def call(self, do: Do[T], *, atomic: bool = False) -> T:
        """As `Line.call`, on whichever is free; waiting for one is part of the time. Only in a task of its own.

        Raises:
            StoreTimeout: all were busy for 8 seconds, too.
        """
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + CALL_SECONDS
        visit = asyncio.current_task()
        self._visits.add(visit)
        try:
            async with self._one() as line:
                await line.reach(give_up_at, lambda: self._closed)
                return await line.call(do, atomic=atomic, seconds=max(MIN_SECONDS, give_up_at - loop.time()))
        finally:
            self._visits.discard(visit)

    @asynccontextmanager
    async def _one(self) -> AsyncGenerator[Line]:
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
                if self._closed:
                    line.cut()
                else:
                    self._idle.append(line)
        finally:
            self._free.release()

    async def close(self) -> None:
        """Cut what is busy, say goodbye on what is idle."""
        self._closed = True
        for line in list(self._busy):
            line.end()
        idle, self._idle = self._idle, []
        await asyncio.gather(*(line.close() for line in idle))
        if visits := [visit for visit in self._visits if visit is not None]:  # which have been cut, and end at once
            await asyncio.wait(visits, timeout=GOODBYE_SECONDS)
