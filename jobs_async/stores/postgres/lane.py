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

from jobs_async.core.errors import StoreClosed, StoreError, WriteRefused
from jobs_async.stores.postgres.line import Line
from jobs_async.stores.postgres.server import CALL_SECONDS

if TYPE_CHECKING:
    from jobs_async.stores.postgres.server import Server
    from jobs_async.stores.postgres.session import Session

Item = TypeVar("Item")
Answer = TypeVar("Answer")
Work = Callable[["Session", list[Item]], Awaitable[Sequence[Answer]]]
"""Serves like requests in one statement; answers in their order."""

MAX_GROUP = 500
FIRST_PAUSE, MAX_PAUSE = 0.05, 0.5


@dataclass(slots=True, eq=False)
class _Piece:
    work: Work[Any, Any]
    item: Any
    future: asyncio.Future[Any]
    merge: bool
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
        merge: bool = False,
        atomic: bool = False,
        patience: float = CALL_SECONDS,
    ) -> Answer:
        """Have `work` serve `item`; with `merge` together with whatever else waits for the same work.

        While the server cannot be reached it is tried again for `patience` seconds.

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
        self._queue.append(_Piece(work, item, future, merge, atomic, loop.time() + patience))
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
            self._line.cut()
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=seconds)
        await self._line.close()

    async def _run(self) -> None:
        try:
            while self._queue or not self._closing:
                await self._wake.wait()
                self._wake.clear()
                while self._queue:
                    await self._serve(self._group())
        finally:
            self._closing = True
            for piece in self._queue:
                _answer(piece.future, error=StoreClosed("the store was closed before this could be done"))

    def _group(self) -> list[_Piece]:
        """The next piece, and what may travel with it."""
        first = self._queue.popleft()
        group = [first]
        while first.merge and self._queue and len(group) < MAX_GROUP and self._queue[0].work == first.work:
            group.append(self._queue.popleft())
        return group

    async def _serve(self, group: list[_Piece]) -> None:
        first = group[0]
        try:
            await self._reach(first.give_up_at)
            answers = await self._line.call(
                lambda session: first.work(session, [piece.item for piece in group]), atomic=first.atomic
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

    async def _reach(self, give_up_at: float) -> None:
        """Connect where that is needed, again and again until then."""
        pause = FIRST_PAUSE
        while True:
            try:
                return await self._line.reach()
            except StoreError:
                if self._closing or self._loop.time() + pause >= give_up_at:
                    raise
            await asyncio.sleep(pause)
            pause = min(2 * pause, MAX_PAUSE)


def _answer(future: asyncio.Future[Any], result: Any = None, error: Exception | None = None) -> None:
    """Tell the caller, unless it was cancelled and no longer listens."""
    if future.done() or future.get_loop().is_closed():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)
