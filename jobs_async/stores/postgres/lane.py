"""What must be fast holds a connection of its own: a task works through what is handed in, in order.

Callers await a future, so nobody's cancellation reaches a statement; and inserts that wait while one is on its way
travel together in the next (natural batching: no timer, no delay when idle).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from jobs_async.core.errors import StoreClosed, StoreError, StoreTimeout, WriteRefused
from jobs_async.stores.postgres.line import MIN_SECONDS, Line
from jobs_async.stores.postgres.server import CALL_SECONDS
from jobs_async.stores.postgres.session import MAX_ROWS

if TYPE_CHECKING:
    from jobs_async.stores.postgres.server import Server
    from jobs_async.stores.postgres.session import Session

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Work = Callable[["Session", list[Item]], Awaitable[Sequence[Answer]]]
"""Serves like requests in one statement; answers in their order."""


@dataclass(slots=True, eq=False)
class _Piece:
    work: Work[Any, Any]
    item: Any
    future: asyncio.Future[Any]
    weight: int
    atomic: bool
    give_up_at: float


class Lane:
    """One connection and the task that uses it."""

    def __init__(self, server: Server, settings: dict[str, str], name: str) -> None:
        self._line = Line(server, settings)
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Piece] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._task = self._loop.create_task(self._run(), name=f"jobs_async postgres {name}")

    async def do(
        self,
        work: Work[Item, Answer],
        item: Item,
        *,
        weight: int = 0,
        atomic: bool = False,
        patience: float = CALL_SECONDS,
    ) -> Answer:
        """Have `work` serve `item`; one with a `weight` together with what else waits for the same work, up to 5,000.

        Waiting for its turn, for a server that cannot be reached and for the answer takes `patience` seconds in all,
        or little more.

        Raises:
            StoreClosed: the store was closed.
            StoreError: this is not the event loop in which it was opened; or as `Line.call`.
        """
        if self._closing:
            raise StoreClosed("the store is closed")
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            raise StoreError("the store was opened in another event loop; call it there, or from a thread through it")
        future: asyncio.Future[Answer] = loop.create_future()
        self._queue.append(_Piece(work, item, future, weight, atomic, loop.time() + patience))
        self._wake.set()
        return await future

    @property
    def is_alive(self) -> bool:
        return not self._task.done()

    async def close(self, seconds: float) -> None:
        """Finish what was handed in, for so long, then end."""
        self._closing = True
        self._wake.set()
        await asyncio.wait({self._task}, timeout=seconds)
        if not self._task.done():
            self._refuse()
            self._line.end()  # which ends what it is about, without a cancellation
            await asyncio.wait({self._task}, timeout=seconds)
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=seconds)
        await self._line.close()

    async def _run(self) -> None:
        try:
            while self._queue or not self._closing:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    if self._queue[0].give_up_at <= self._loop.time():
                        late = self._queue.popleft()
                        _answer(late.future, error=StoreTimeout("PostgreSQL was busy, or away, until it was too late"))
                    else:
                        await self._serve(self._group())
        finally:
            self._closing = True
            self._refuse()

    def _refuse(self) -> None:
        while self._queue:
            piece = self._queue.popleft()
            _answer(piece.future, error=StoreClosed("the store was closed before this could be done"))

    def _group(self) -> list[_Piece]:
        """The next piece, and what fits into one statement with it."""
        first = self._queue.popleft()
        group, weight = [first], first.weight
        while first.weight and self._queue and self._queue[0].work == first.work:
            weight += self._queue[0].weight
            if weight > MAX_ROWS:
                break
            group.append(self._queue.popleft())
        return group

    async def _serve(self, group: list[_Piece]) -> None:
        first = group[0]
        try:
            await self._line.reach(first.give_up_at, lambda: self._closing)
            answers = await self._line.call(
                lambda session: first.work(session, [piece.item for piece in group]),
                atomic=first.atomic,
                seconds=max(MIN_SECONDS, first.give_up_at - self._loop.time()),
            )
        except asyncio.CancelledError:
            for piece in group:
                _answer(piece.future, error=StoreError("the store ended in the middle of this; it may be written"))
            raise
        except Exception as error:
            if len(group) > 1 and isinstance(error, WriteRefused):
                for piece in group:  # so that a refusal reaches only its cause
                    await self._serve([piece])
                return
            for piece in group:
                _answer(piece.future, error=error)
            return
        for piece, answer in zip(group, answers, strict=True):
            _answer(piece.future, answer)


def _answer(future: asyncio.Future[Any], result: Any = None, error: Exception | None = None) -> None:
    """Tell the caller, unless it was cancelled and no longer listens."""
    if future.done() or future.get_loop().is_closed():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
