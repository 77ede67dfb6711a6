"""Taking part in a transaction of the application's, where a store has such a thing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobs_async.core.errors import OptionError

if TYPE_CHECKING:
    from jobs_async.core.store import Store


async def joined(store: Store, primitive: str, given: object, connection: object) -> list[Any]:
    """What a primitive of a store answers, done inside the transaction that is open on `connection`.

    Raises:
        OptionError: the store has no transactions to join, or not with this connection.
        StoreError: the store says that something else is wrong.
    """
    call: Any = getattr(store, primitive)
    try:
        return list(await call(given, connection=connection))
    except TypeError as error:
        if "connection" not in str(error):
            raise
        raise OptionError(
            f"{type(store).__name__} has no transactions to join with connection=; a SqliteStore or PostgresStore has"
        ) from None
