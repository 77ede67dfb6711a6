"""The connection of a driver that an application's own connection stands for."""

from __future__ import annotations

from typing import Any, cast


async def driver_connection(connection: object) -> object:
    """What SQLAlchemy's AsyncSession or AsyncConnection works on; anything else as it is.

    SQLAlchemy begins its transaction with the driver at its first statement only; so one is made here, for what is
    done on the driver's connection is to be part of it.
    """
    if not any(base.__module__.partition(".")[0] == "sqlalchemy" for base in type(connection).__mro__):
        return connection
    is_session = not hasattr(type(connection), "get_raw_connection")
    theirs = cast("Any", connection)
    if is_session:
        theirs = await theirs.connection()
    await theirs.exec_driver_sql("SELECT 1")
    return (await theirs.get_raw_connection()).driver_connection
