"""Small documents beside the jobs, in this process."""

from __future__ import annotations

from collections import defaultdict
from itertools import islice
from typing import TYPE_CHECKING

from msgspec.structs import replace

from jobs_async.core.query import MAX_PAGE
from jobs_async.core.store import cutoff

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from jobs_async.core.limits import Seconds
    from jobs_async.core.records import Record
    from jobs_async.core.store import Clock


class MemoryRecords:
    """The half of a MemoryStore that knows nothing of jobs; as `Records` has it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._records: defaultdict[str, dict[str, Record]] = defaultdict(dict)

    async def put_records(self, records: Sequence[Record], *, only_new: bool = False) -> list[bool]:
        now = self._clock.now()
        written: list[bool] = []
        for record in records:
            kept = self._records[record.kind]
            written.append(not (only_new and record.key in kept))
            if written[-1]:
                kept[record.key] = replace(record, at=now)
        return written

    async def get_records(
        self,
        kind: str,
        *,
        keys: Sequence[str] | None = None,
        prefix: str = "",
        after: str | None = None,
        limit: int = MAX_PAGE,
    ) -> list[Record]:
        kept = self._records[kind]
        chosen = sorted(kept if keys is None else kept.keys() & set(keys))
        found = (kept[key] for key in chosen if key.startswith(prefix) and (after is None or key > after))
        return list(islice(found, limit))

    async def drop_records(
        self,
        kind: str,
        *,
        keys: Sequence[str] | None = None,
        older_than: Seconds | datetime | None = None,
        limit: int = MAX_PAGE,
    ) -> int:
        kept = self._records[kind]
        before = None if older_than is None else cutoff(older_than, self._clock.now())
        chosen = list(kept if keys is None else kept.keys() & set(keys))
        old = ((at, key) for key in chosen if (at := kept[key].at) is not None and (before is None or at < before))
        doomed = sorted(old)[:limit]
        for _, key in doomed:
            del kept[key]
        return len(doomed)
