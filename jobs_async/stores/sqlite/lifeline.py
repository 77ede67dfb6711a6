"""Renewing a lease from a thread, on a connection of its own: the event loop, and with it aiosqlite, may be blocked."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from jobs_async.stores import rows
from jobs_async.stores.sqlite.writer import BUSY_WAIT, SQL

if TYPE_CHECKING:
    from jobs_async.core.store import Clock


class SqliteLifeline:
    """Connects when it is first needed, which for most processes is never."""

    def __init__(self, path: str, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._connection: sqlite3.Connection | None = None

    def renew(self, node: str, ttl: float) -> bool:
        if self._connection is None:
            self._connection = sqlite3.connect(self._path, timeout=BUSY_WAIT, isolation_level=None)
        now, (boot, uptime) = rows.micros(self._clock.now()), self._clock.uptime()
        lease = {"id": node, "boot": boot, "uptime": uptime, "ttl": ttl, "now": now}
        return bool(self._connection.execute(SQL["prolong_node"], lease).fetchall())

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
