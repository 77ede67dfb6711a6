"""What is kept beside jobs: small documents by kind and key. A second seam, which a store may do without."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from msgspec import Struct

from jobs_async.core import codec, limits
from jobs_async.core.errors import OptionError
from jobs_async.core.query import MAX_PAGE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs_async.core.limits import Seconds


class Record(Struct, frozen=True):
    """A document: JSON text under a key that is unique within its kind; `at` is when it was written last.

    Raises:
        OptionError: the kind or the key is no name.
    """

    kind: str
    key: str
    value: str
    at: datetime | None = None

    def __post_init__(self) -> None:
        limits.name(self.kind, "the kind of a record")
        limits.name(self.key, "the key of a record")

    @classmethod
    def of(cls, kind: str, key: str, value: object) -> Record:
        """A record of any JSON value.

        Raises:
            ArgsError: it is not JSON any reader can load, or longer than 1 MiB.
            OptionError: the kind or the key is no name.
        """
        return cls(kind, key, codec.dumps(value, "record"))

    @property
    def document(self) -> object:
        """The value, parsed anew at each read."""
        return codec.loads(self.value)

    def __repr__(self) -> str:
        return f"Record({self.kind!r}, {self.key!r})"


@runtime_checkable
class Records(Protocol):
    """What the built-in stores implement beside `Store`; features that need it say so where it is missing."""

    async def put_records(self, records: Sequence[Record], *, only_new: bool = False) -> list[bool]:
        """Write all or none, stamped now; whether each was written. With `only_new` what is there stays as it is."""
        ...

    async def get_records(
        self,
        kind: str,
        *,
        keys: Sequence[str] | None = None,
        prefix: str = "",
        after: str | None = None,
        limit: int = MAX_PAGE,
    ) -> list[Record]:
        """Up to `limit` records of a kind, in the order of their keys' code points; those behind the key `after`."""
        ...

    async def drop_records(
        self,
        kind: str,
        *,
        keys: Sequence[str] | None = None,
        older_than: Seconds | datetime | None = None,
        limit: int = MAX_PAGE,
    ) -> int:
        """Remove up to `limit` records of a kind, by key, or by having been written strictly before; how many."""
        ...


def records_of(store: object) -> Records:
    """A store's records.

    Raises:
        OptionError: it keeps none.
    """
    if not isinstance(store, Records):
        raise OptionError(f"{limits.type_name(store)} keeps no records, which this needs; see core/records.py")
    return store
