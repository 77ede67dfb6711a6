"""PostgreSQL through asyncpg. `store` is the seam; `line` owns connections, `lane` what must not wait for one."""

try:
    import asyncpg as asyncpg
except ImportError as error:
    raise ImportError("PostgresStore needs asyncpg: install jobs-async[postgres]", name="asyncpg") from error

from jobs_async.stores.postgres.store import PostgresStore, drop_schema

__all__ = ["PostgresStore", "drop_schema"]
