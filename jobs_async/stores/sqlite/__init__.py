"""SQLite through aiosqlite. `store` is the seam; `writer` owns the transactions, `work` is what happens in them."""

from jobs_async.stores.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
