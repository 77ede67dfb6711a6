"""The one writer of a SQLite file in this process: everybody hands it work and awaits a future.

No caller's cancellation reaches a transaction, and what is waiting when the writer comes round shares one commit. A
foreign lock is waited for in short tries, so that it never holds up the connection's thread; a transaction that fails
is repeated piece by piece, so that an error reaches only its cause.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

from jobs_async.clock import stopwatch
from jobs_async.core.errors import JobsError, StoreBusy, StoreClosed, StoreError, WriteRefused
from jobs_async.stores.rows import Rows, instant, micros
from jobs_async.stores.sql import statements, with_rows
from jobs_async.stores.sqlite.log import LOOK_AGAIN, Log

if TYPE_CHECKING:
    import aiosqlite

    from jobs_async.stores.session import Params

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Row = tuple[Any, ...]

SQL = statements("jobs_async.stores.sqlite")
"""Every statement this store makes, by name."""
BUSY_WAIT = 0.25
"""Seconds SQLite itself waits for a foreign lock, in the connection's thread."""
PATIENCE = 10.0
"""Seconds a piece of work waits for a foreign lock before its caller is told."""
MAX_GROUP = 200
MAX_ROWS = 512
"""Rows of a batch in one statement."""

_REFUSALS = (sqlite3.IntegrityError, sqlite3.DataError, sqlite3.InterfaceError, ValueError, TypeError, OverflowError)
"""What SQLite or its driver will say again however often it is asked."""


class Session:
    """How a piece of work talks to the database; it never begins or commits."""

    mapping = Rows(micros, instant)

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection

    async def rows(self, sql: str, params: Params | Sequence[Any] = ()) -> list[Row]:
        """Run one statement to its end, in one visit to the connection's thread."""
        return cast("list[Row]", await self._connection.execute_fetchall(sql, cast("Any", params)))

    async def run(self, statement: str, params: Params | Sequence[Any] = ()) -> list[Row]:
        return await self.rows(SQL[statement], params)

    async def hold(self, keys: Sequence[str]) -> None:
        """Whoever may write at all has the whole database to himself."""

    async def batch(self, statement: str, batch: Sequence[tuple[Any, ...]]) -> list[Row]:
        """Run a statement that takes a batch at `:rows`; few shapes of it, so that SQLite prepares it seldom.

        A batch is filled up with rows of nulls to a power of two, which the statements leave out.
        """
        rows: list[Row] = []
        width = len(batch[0])
        for start in range(0, len(batch), MAX_ROWS):
            part = batch[start : start + MAX_ROWS]
            count = 1 << (len(part) - 1).bit_length()
            params = [value for row in part for value in row] + [None] * (width * (count - len(part)))
            rows += await self.rows(with_rows(SQL[statement], count, width), params)
        return rows


Work = Callable[[Session, list[Item]], Awaitable[list[Answer]]]
"""Serves any number of like requests at once; answers in their order."""


@dataclass(slots=True, eq=False)
class _Piece:
    work: Work[Any, Any]
    item: Any
    future: asyncio.Future[Any]
    single: bool
    give_up_at: float
    advice: str


class _DoubtfulCommit(Exception):
    """A commit failed, and may have come through all the same: what it held must not be written again."""


class Writer:
    """Runs pieces of work, many to a transaction, in the order in which they came."""

    def __init__(self, connection: aiosqlite.Connection, log: Log) -> None:
        self._connection = connection
        self._session = Session(connection)
        self._log = log
        self._tidying: asyncio.TimerHandle | None = None
        self._queue: list[_Piece] = []
        self._wake = asyncio.Event()
        self._closing = False
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run(), name="jobs_async sqlite writer")

    async def do(
        self,
        work: Work[Item, Answer],
        item: Item,
        *,
        single: bool = False,
        patience: float = PATIENCE,
        advice: str = "",
    ) -> Answer:
        """Have `work` serve `item` in a transaction, together with what else waits for the same `work`.

        `single` says that the work is one statement, which needs no transaction of its own. Once begun it is
        finished and committed, or rolled back, even where the caller is cancelled.

        Raises:
            StoreBusy: somebody else held the database for `patience` seconds; `advice` says what to do.
            StoreClosed: the store was closed.
            StoreError: this is not the event loop in which it was opened.
        """
        if self._closing:
            raise StoreClosed("the store is closed")
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            raise StoreError("the store was opened in another event loop; call it there, or from a thread through it")
        future: asyncio.Future[Answer] = loop.create_future()
        self._queue.append(_Piece(work, item, future, single, stopwatch() + patience, advice))
        self._wake.set()
        return await future

    @property
    def is_alive(self) -> bool:
        return not self._task.done()

    async def close(self) -> None:
        """Finish what was handed in, then end."""
        self._closing = True
        self._wake.set()
        await asyncio.wait({self._task})
        _refuse(self._queue)
        self._queue = []

    async def _run(self) -> None:
        group: list[_Piece] = []
        try:
            while self._queue or not self._closing:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    group, self._queue = self._queue[:MAX_GROUP], self._queue[MAX_GROUP:]
                    self._queue[:0] = await self._commit(group)
                await self._tidy()
        finally:
            self._closing = True
            if self._tidying is not None:
                self._tidying.cancel()
            for piece in group:
                _answer(piece.future, error=StoreError("the store ended in the middle of this; it may be written"))
            _refuse(self._queue)

    async def _tidy(self) -> None:
        """Shorten the log when it has been long for a while, and come back while it is."""
        if self._tidying is not None and self._loop.time() > self._tidying.when() - 0.01:
            await self._log.shorten(self._session)
            self._tidying = None
        if self._tidying is None and self._log.is_long:
            self._tidying = self._loop.call_later(LOOK_AGAIN, self._wake.set)

    async def _commit(self, group: list[_Piece]) -> list[_Piece]:
        """Run a group in one transaction; what met a foreign lock comes back, to be tried again."""
        try:
            results = await self._transaction(group)
        except _DoubtfulCommit as error:
            for piece in group:
                _answer(piece.future, error=StoreError(str(error)))
            return []
        except Exception as error:
            if is_busy(error):
                return self._refuse_all(group) if self._closing else self._patient(group)
            if len(group) == 1:
                _answer(group[0].future, error=typed(error))
                return []
            return [piece for each in group for piece in await self._commit([each])]
        for piece, result in results.items():
            _answer(piece.future, result)
        return []

    async def _transaction(self, group: list[_Piece]) -> dict[_Piece, Any]:
        if self._connection.in_transaction:  # a rollback that failed: nothing may join what it left
            await self._session.rows("ROLLBACK")
        works: dict[Work[Any, Any], list[_Piece]] = {}
        for piece in group:
            works.setdefault(piece.work, []).append(piece)
        if len(group) == 1 and group[0].single:
            return await self._serve(works)
        await self._session.rows("BEGIN IMMEDIATE")
        try:
            results = await self._serve(works)
            try:
                await self._session.rows("COMMIT")
            except Exception as error:
                if is_busy(error):
                    raise
                raise _DoubtfulCommit(f"SQLite could not commit: {error}") from error
        except BaseException:  # a cancelled COMMIT may have come through: then there is nothing to roll back
            with suppress(Exception):
                if self._connection.in_transaction:
                    await self._session.rows("ROLLBACK")
            raise
        return results

    async def _serve(self, works: dict[Work[Any, Any], list[_Piece]]) -> dict[_Piece, Any]:
        results: dict[_Piece, Any] = {}
        for work, pieces in works.items():
            answers = await work(self._session, [piece.item for piece in pieces])
            results.update(zip(pieces, answers, strict=True))
        return results

    def _patient(self, group: Iterable[_Piece]) -> list[_Piece]:
        now = stopwatch()
        still: list[_Piece] = []
        for piece in group:
            if now >= piece.give_up_at:
                text = "the database is locked by somebody else's transaction"
                _answer(piece.future, error=StoreBusy(f"{text}{piece.advice}"))
            elif not piece.future.done():
                still.append(piece)
        return still

    def _refuse_all(self, group: Iterable[_Piece]) -> list[_Piece]:
        """Nobody waits for a foreign lock any longer."""
        waiting, self._queue = [*group, *self._queue], []
        _refuse(waiting)
        return []


def _refuse(pieces: Iterable[_Piece]) -> None:
    for piece in pieces:
        _answer(piece.future, error=StoreClosed("the store was closed before this could be written"))


def _answer(future: asyncio.Future[Any], result: Any = None, error: Exception | None = None) -> None:
    """Tell the caller, unless it was cancelled and no longer listens."""
    if future.done() or future.get_loop().is_closed():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def is_busy(error: BaseException) -> bool:
    """Did a foreign lock, and nothing else, stop this statement?"""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def typed(error: Exception) -> Exception:
    if isinstance(error, JobsError):
        return error
    if isinstance(error, _REFUSALS):
        return WriteRefused(f"SQLite refused: {type(error).__name__}")
    return StoreError(f"SQLite refused: {error}").with_traceback(error.__traceback__)
