"""Stores by address: "memory://", "sqlite:///jobs.db" or "postgresql://user@host/database"."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import unquote

from jobs_async.core.errors import OptionError

if TYPE_CHECKING:
    from jobs_async.core.store import Clock, Store


def store_from_url(url: str, clock: Clock | None = None) -> Store:
    """Make the store a URL names, on the system's clock or another; its driver is imported only now.

    `sqlite:///jobs.db` is a path from the working folder, `sqlite:////var/lib/jobs.db` an absolute one. What a
    `postgresql://` address may say is asyncpg's matter.

    Raises:
        OptionError: no store goes by such a URL. The message does not repeat it, for it may hold a password.
    """
    scheme, found, rest = url.partition("://")
    if scheme == "memory" and found and not rest:
        from jobs_async.stores.memory import MemoryStore

        return MemoryStore(clock=clock)
    if scheme == "sqlite" and rest.startswith("/") and len(rest) > 1:
        from jobs_async.stores.sqlite import SqliteStore

        return SqliteStore(unquote(rest[1:]), clock=clock)
    if scheme in ("postgresql", "postgres", "postgresql+asyncpg") and rest:
        from jobs_async.stores.postgres import PostgresStore

        return PostgresStore(url, clock=clock)
    raise OptionError(
        "a store's URL is memory://, sqlite:///path/of/a/file.db (four slashes for an absolute path) or "
        "postgresql://user@host/database"
    )
