"""The schema of a store that has one: a third seam, which a store may do without."""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Migrates(Protocol):
    """What a store offers whose schema is brought up to date by numbered migrations, forward only.

    All of it works on a store that was not opened, and leaves it so.
    """

    async def schema_version(self) -> tuple[int, int]:
        """The number of the last migration that was applied, 0 where there is no schema yet, and of the newest known.

        Writes nothing and creates nothing.

        Raises:
            StoreError: the database does not answer, or is none.
        """
        ...

    async def fits(self) -> bool:
        """Whether this version of the package can work with the schema as it is: it is up to date, or newer in a way
        that does no harm, as while a deploy is under way.

        Raises:
            StoreError: the database does not answer, or is none.
        """
        ...

    def migration_sql(self, since: int = 0) -> str:
        """A script that brings a schema at version `since` up to date, for the database's own shell.

        It applies all of it or nothing, and takes note of what it has applied. Empty where there is nothing to do.
        """
        ...

    async def migrate(self) -> list[int]:
        """Bring the schema up to date; the numbers of the migrations applied, in order. Many processes may at once.

        Raises:
            SchemaError: the schema is newer than this version of the package, or not ours.
            StoreError: the database does not answer, or is none.
        """
        ...
