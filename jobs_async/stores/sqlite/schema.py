"""The schema of a file of jobs, for whoever looks at it or brings it up to date before the application starts."""

from __future__ import annotations

import sqlite3

from jobs_async.stores.sqlite import file
from jobs_async.tasks import to_the_end


class SqliteSchema:
    """The part of a SqliteStore that needs no more than its path; as `Migrates` has it."""

    _path: str

    async def schema_version(self) -> tuple[int, int]:
        try:
            return file.stored_version(self._path), file.NEWEST
        except sqlite3.Error as error:
            raise file.unopened(self._path, error) from error

    async def fits(self) -> bool:
        stored, newest = await self.schema_version()
        return stored == newest

    def migration_sql(self, since: int = 0) -> str:
        return file.script(since)

    async def migrate(self) -> list[int]:
        return await to_the_end(self._migrate())

    async def _migrate(self) -> list[int]:
        connection = None
        try:
            connection = await file.connect(self._path)
            return await file.migrate(connection)
        except sqlite3.Error as error:
            raise file.unopened(self._path, error) from error
        finally:
            await file.disconnect(connection)
