"""The ear of a store: a connection that listens, tested by words of its own, made anew after every loss.

What was said while nobody listened is lost, so each time it hears again it tells that anything may have happened.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING

import asyncpg

from jobs_async.core.errors import StoreError
from jobs_async.core.hint import Hint
from jobs_async.stores.postgres.errors import typed
from jobs_async.stores.postgres.server import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from jobs_async.stores.postgres.server import Server

ECHO_EVERY = 15.0
ECHO_SECONDS = 3.0
FIRST_PAUSE, MAX_PAUSE = 0.1, 5.0
CLOSE_SECONDS = 0.5

logger = logging.getLogger("jobs_async")


class Listener:
    """Hands on what other processes say, from its making to `close`. Without it all works as well, by polling.

    `say` says a word on another connection: behind a pooler who listens may hear himself, and nobody else.
    """

    def __init__(self, server: Server, tell: Callable[[Hint], None], say: Callable[[str], Awaitable[object]]) -> None:
        self._server = server
        self._tell = tell
        self._say = say
        self._echo = asyncio.Event()
        self._lost = asyncio.Event()
        self._hears = asyncio.Event()
        self._is_told = False
        self._task = asyncio.get_running_loop().create_task(self._run(), name="jobs_async postgres listener")

    @property
    def is_deaf(self) -> bool:
        """Whether the last word of its own did not come back."""
        return not self._hears.is_set()

    async def hears(self, seconds: float) -> bool:
        """Whether it hears, or will within so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._hears.wait()
        return self._hears.is_set()

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.wait({self._task}, timeout=CLOSE_SECONDS)

    async def _run(self) -> None:
        pause = FIRST_PAUSE
        while True:
            try:
                await self._listen()
            except asyncpg.FeatureNotSupportedError as error:
                return self._report(typed(error))
            except Exception as error:
                self._report(typed(error))
            pause = min(2 * pause, MAX_PAUSE) if self.is_deaf else FIRST_PAUSE
            self._hears.clear()
            await asyncio.sleep(pause)

    async def _listen(self) -> None:
        """Until the connection is lost, or does not hear itself."""
        session = await self._server.ready(SETTINGS)
        connection = session.connection
        try:
            self._lost.clear()
            connection.add_termination_listener(lambda _: self._lost.set())
            async with asyncio.timeout(ECHO_SECONDS):
                await connection.add_listener(self._server.hints.channel, self._heard)
            while not self._lost.is_set():
                await self._hear_oneself()
                with suppress(TimeoutError):
                    async with asyncio.timeout(ECHO_EVERY):
                        await self._lost.wait()
        finally:
            connection.terminate()

    async def _hear_oneself(self) -> None:
        self._echo.clear()
        async with asyncio.timeout(ECHO_SECONDS):
            await self._say(self._server.hints.echo)
            await self._echo.wait()
        if self._is_told:
            self._is_told = False
            logger.warning("notifications of PostgreSQL are heard again")
        if self.is_deaf:
            self._hears.set()
            self._pass_on(Hint("anything"))

    def _heard(self, _connection: object, _pid: int, _channel: str, payload: object) -> None:
        text = str(payload)
        if text == self._server.hints.echo:
            self._echo.set()
        elif (hint := self._server.hints.heard(text)) is not None:
            self._pass_on(hint)

    def _pass_on(self, hint: Hint) -> None:
        try:
            self._tell(hint)
        except Exception:
            logger.exception("a hint of PostgreSQL could not be followed")

    def _report(self, error: Exception) -> None:
        self._hears.clear()
        if not self._is_told:
            self._is_told = True
            reason = error if isinstance(error, StoreError) else type(error).__name__
            logger.warning("notifications of PostgreSQL are not heard (%s); queues are polled meanwhile", reason)
