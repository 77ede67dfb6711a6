"""The schema: numbered migrations, forward only, all of them under one lock of the database."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

from jobs_async.core.errors import SchemaError
from jobs_async.stores.postgres.dialect import in_schema
from jobs_async.stores.postgres.errors import BEHIND
from jobs_async.stores.sql import migrations, split

if TYPE_CHECKING:
    from jobs_async.stores.postgres.server import Server
    from jobs_async.stores.postgres.session import Session

PACKAGE = "jobs_async.stores.postgres"
NEWEST = migrations(PACKAGE)[-1][0]
SETTINGS = {"lock_timeout": "60s", "statement_timeout": "0", "idle_in_transaction_session_timeout": "60s"}
SECONDS = 600.0

_LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('jobs_async migrations', 0))"
_TABLE = """\
CREATE TABLE IF NOT EXISTS jobs_async_migrations (
    version integer NOT NULL PRIMARY KEY,
    compatible_with integer NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)"""
_HOLDS = "SELECT to_regclass(:name) IS NOT NULL"
_VERSION = "SELECT coalesce(max(version), 0), coalesce(max(compatible_with), 0) FROM jobs_async_migrations"
_COMPATIBLE = re.compile(r"^-- compatible with: (\d+)$", re.MULTILINE)


def statements(schema: str, since: int) -> list[str]:
    """What brings a schema from a version up to date, to be run in one transaction."""
    wanted: list[str] = []
    for number, script in migrations(PACKAGE):
        if number > since:
            compatible = _COMPATIBLE.search(script)
            note = f"INSERT INTO jobs_async_migrations VALUES ({number}, {compatible[1] if compatible else number})"  # noqa: S608
            wanted += [*split(script), note]
    if not wanted:
        return []
    # where it is there already, nobody needs the right to create one
    create = [] if schema == '"public"' else [f"CREATE SCHEMA IF NOT EXISTS {schema}"]
    return [_LOCK, *create, *(in_schema(sql, schema) for sql in (_TABLE, *wanted))]


def script(schema: str, since: int) -> str:
    """The same as text for psql."""
    if not (wanted := statements(schema, since)):
        return ""
    return ";\n\n".join(["BEGIN", *wanted, "COMMIT"]) + ";\n"


async def version(session: Session, schema: str) -> tuple[int, int]:
    """The newest migration that was applied, and the oldest version of the schema that code must know to use it."""
    ((there,),) = await session.rows(_HOLDS, {"name": f"{schema}.jobs_async_migrations"})
    if not there:
        return 0, 0
    ((newest, compatible),) = await session.rows(_VERSION)
    return cast("int", newest), cast("int", compatible)


async def migrate(session: Session, schema: str) -> list[int]:
    """Bring the schema up to date inside the transaction that is open; the numbers of what was applied."""
    await session.rows(_LOCK)
    since, compatible = await version(session, schema)
    _refuse_too_new(compatible)
    for sql in statements(schema, since):
        await session.connection.execute(sql)
    return [number for number, _ in migrations(PACKAGE) if number > since]


async def check(session: Session, server: Server) -> None:
    """See that this code and the schema fit.

    Raises:
        SchemaError: the schema is missing, older, or too new for this version of the package.
    """
    stored, compatible = await version(session, server.schema)
    _refuse_too_new(compatible)
    if stored < NEWEST:
        raise SchemaError(f"the schema is at version {stored}, this jobs_async needs {NEWEST}: {BEHIND}")


def _refuse_too_new(compatible: int) -> None:
    if compatible > NEWEST:
        raise SchemaError(f"the schema needs a jobs_async that knows version {compatible}, this one knows {NEWEST}")
