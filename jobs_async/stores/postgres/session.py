"""How a piece of work talks to PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from jobs_async.stores.postgres.dialect import SQL, numbered
from jobs_async.stores.rows import Rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import asyncpg

    from jobs_async.stores.postgres.hints import Hints
    from jobs_async.stores.session import Params, Row

MAX_ROWS = 5_000
"""Rows of a batch in one statement."""

_NOTHING: Mapping[str, Any] = {}


def _as_it_is(at: datetime) -> datetime:
    return at


def _aware(at: datetime) -> datetime:
    """asyncpg keeps the first and the last instant there is as infinities, and reads those without a zone."""
    return at if at.tzinfo else at.replace(tzinfo=UTC)


class Session:
    """One connection while somebody has it to himself; it never begins or commits."""

    mapping = Rows(_as_it_is, _aware)

    def __init__(self, connection: asyncpg.Connection[Any], schema: str, hints: Hints) -> None:
        self.connection = connection
        self._schema = schema
        self._hints = hints

    async def run(self, statement: str, params: Params = _NOTHING) -> Sequence[Row]:
        return await self.rows(SQL[statement], params)

    async def rows(self, sql: str, params: Params = _NOTHING) -> Sequence[Row]:
        """Run a statement that was put together from ours."""
        text, names = numbered(sql, self._schema)
        return cast("Sequence[Row]", await self.connection.fetch(text, *[params[name] for name in names]))

    async def batch(self, statement: str, batch: Sequence[tuple[Any, ...]]) -> Sequence[Row]:
        text, _ = numbered(SQL[statement], self._schema)
        rows: list[Row] = []
        for start in range(0, len(batch), MAX_ROWS):
            columns: list[Any] = list(zip(*batch[start : start + MAX_ROWS], strict=True))
            if statement == "insert":
                columns += [self._hints.channel, self._hints.work(set(columns[1]))]
            rows += await self.connection.fetch(text, *columns)
        return rows

    async def hold(self, keys: Sequence[str]) -> None:
        if keys:
            await self.run("hold", {"keys": keys})
