"""How what is done in a transaction talks to a database, whichever it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from jobs_async.stores.rows import Rows

Row = Sequence[Any]
Params = Mapping[str, Any]


class Session(Protocol):
    """One connection, for as long as somebody has it to himself."""

    @property
    def mapping(self) -> Rows:
        """How jobs become rows of this database."""
        ...

    async def run(self, statement: str, params: Params = ...) -> Sequence[Row]:
        """Run a statement of this database's `queries.sql`, by name; of the parameters it takes those it mentions."""
        ...

    async def batch(self, statement: str, batch: Sequence[tuple[Any, ...]]) -> Sequence[Row]:
        """Run a statement that takes a batch."""
        ...

    async def hold(self, keys: Sequence[str]) -> None:
        """Let no other transaction insert under these keys until the end of this one."""
        ...
