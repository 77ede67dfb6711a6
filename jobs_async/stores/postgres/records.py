"""Small documents beside the jobs, in the same schema."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar

from jobs_async.core.query import MAX_PAGE
from jobs_async.core.records import Record
from jobs_async.core.store import cutoff
from jobs_async.stores.rows import dumps

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from jobs_async.core.limits import Seconds
    from jobs_async.core.store import Clock
    from jobs_async.stores.postgres.line import Do
    from jobs_async.stores.postgres.session import Session

T = TypeVar("T")


class PostgresRecords:
    """The half of a PostgresStore that knows nothing of jobs; as `Records` has it."""

    _clock: Clock

    @abstractmethod
    async def _visit(self, do: Do[T], *, atomic: bool = False) -> T: ...

    async def put_records(self, records: Sequence[Record], *, only_new: bool = False) -> list[bool]:
        now = self._clock.now()

        async def put(session: Session) -> list[bool]:
            given = [
                {"kind": one.kind, "key": one.key, "value": one.value, "now": now, "only_new": only_new}
                for one in records
            ]
            await session.hold(sorted({f"record {one.kind} {one.key}" for one in records}))
            return [bool(await session.run("put_record", each)) for each in given]

        return await self._visit(put, atomic=True) if records else []

    async def get_records(
        self,
        kind: str,
        *,
        keys: Sequence[str] | None = None,
        prefix: str = "",
        after: str | None = None,
        limit: int = MAX_PAGE,
    ) -> list[Record]:
        asked = _asked(kind, keys, limit, prefix=prefix, after=after)

        async def get(session: Session) -> list[Record]:
            return [Record(*row) for row in await session.run("get_records", asked)]

        return await self._visit(get)

    async def drop_records(
        self,
        kind: str,
        *,
        keys: Sequence[str] | None = None,
        older_than: Seconds | datetime | None = None,
        limit: int = MAX_PAGE,
    ) -> int:
        before = None if older_than is None else cutoff(older_than, self._clock.now())
        asked = _asked(kind, keys, limit, before=before)

        async def drop(session: Session) -> int:
            return len(await session.run("drop_records", asked))

        return await self._visit(drop)


def _asked(kind: str, keys: Sequence[str] | None, limit: int, **more: Any) -> dict[str, Any]:
    """The parameters of a question or a removal."""
    return {"kind": kind, "keys": None if keys is None else dumps(list(keys)), "limit": limit, **more}
