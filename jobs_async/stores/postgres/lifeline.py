"""Renewing a lease from a thread, on a loop and a connection of its own: the loop of the store may be blocked."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from jobs_async.stores.postgres.line import Line
from jobs_async.stores.postgres.server import SETTINGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from jobs_async.stores.postgres.server import Server
    from jobs_async.stores.postgres.session import Session
    from jobs_async.stores.session import Params

RENEW_SECONDS = 3.0


class PostgresLifeline:
    """Connects when it is first needed, which for most processes is never."""

    def __init__(self, server: Server, times: Callable[[], Params]) -> None:
        self._line = Line(server, SETTINGS)
        self._times = times
        self._loop: asyncio.AbstractEventLoop | None = None

    def renew(self, node: str, ttl: float) -> bool:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
        lease = {"id": node, "ttl": ttl, **self._times()}

        async def prolong(session: Session) -> bool:
            return bool(await session.run("prolong_node", lease))

        return self._loop.run_until_complete(self._line.call(prolong, seconds=RENEW_SECONDS))

    def close(self) -> None:
        if self._loop is not None:
            self._loop.run_until_complete(self._line.close())
            self._loop.close()
            self._loop = None
