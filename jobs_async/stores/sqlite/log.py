"""The write-ahead log: SQLite lets it grow while somebody reads an old state, and shrinks it when it next comes round.

That may be never, in a process that has nothing more to write. So the writer looks after it while it is long.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobs_async.stores.sqlite.writer import Session

LONG = 6_000_000
"""Bytes; SQLite itself keeps it at about four million."""
LOOK_AGAIN = 1.0
"""Seconds until the next try while it is long."""


class Log:
    """The log beside a database file."""

    def __init__(self, path: str) -> None:
        self._path = f"{path}-wal"

    @property
    def is_long(self) -> bool:
        try:
            return os.stat(self._path).st_size > LONG
        except OSError:
            return False

    async def shorten(self, session: Session) -> None:
        """Cut it where nobody needs it any longer; a reader that comes in between is waited for, as for a lock."""
        with suppress(Exception):
            ((busy, length, copied),) = await session.rows("PRAGMA wal_checkpoint(PASSIVE)")
            if not busy and length == copied:
                await session.rows("PRAGMA wal_checkpoint(TRUNCATE)")
