"""Small documents beside the jobs, in the same file and behind the same writer."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from jobs_async.core.query import MAX_PAGE
from jobs_async.core.records import Record
from jobs_async.core.store import cutoff
from jobs_async.stores import rows
from jobs_async.stores.sqlite.writer import SQL

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from jobs_async.core.limits import Seconds
    from jobs_async.core.store import Clock
    from jobs_async.stores.session import Params
    from jobs_async.stores.sqlite.writer import Row, Session, Writer


class SqliteRecords:
    """The half of a SqliteStore that knows nothing of jobs; as `Records` has it."""

    _clock: Clock

    @abstractmethod
    def _open_writer(self) -> Writer: ...

    @abstractmethod
    async def _read(self, sql: str, params: Params | Sequence[Any] = ()) -> list[Row]: ...

    @abstractmethod
    async def _change(self, statement: str, params: dict[str, Any]) -> list[Row]: ...

    async def put_records(self, records: Sequence[Record], *, only_new: bool = False) -> list[bool]:
        if not records:
            return []
        return await self._open_writer().do(self._put_records, (records, only_new))

    async def _put_records(self, session: Session, given: list[tuple[Sequence[Record], bool]]) -> list[list[bool]]:
        return [await _put(session, records, only_new, self._clock.now()) for records, only_new in given]

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
        return _to_records(await self._read(SQL["get_records"], asked))

    async def drop_records(
        self,
        kind: str,
        *,
        keys: Sequence[str] | None = None,
        older_than: Seconds | datetime | None = None,
        limit: int = MAX_PAGE,
    ) -> int:
        before = None if older_than is None else rows.micros(cutoff(older_than, self._clock.now()))
        return len(await self._change("drop_records", _asked(kind, keys, limit, before=before)))


async def _put(session: Session, records: Sequence[Record], only_new: bool, now: datetime) -> list[bool]:
    at = {"now": rows.micros(now), "only_new": int(only_new)}
    given = [{"kind": one.kind, "key": one.key, "value": one.value, **at} for one in records]
    return [bool(await session.run("put_record", each)) for each in given]


def _asked(kind: str, keys: Sequence[str] | None, limit: int, **more: Any) -> dict[str, Any]:
    """The parameters of a question or a removal."""
    return {"kind": kind, "keys": None if keys is None else rows.dumps(list(keys)), "limit": limit, **more}


def _to_records(found: Sequence[Row]) -> list[Record]:
    return [Record(kind, key, value, rows.instant(at)) for kind, key, value, at in found]
