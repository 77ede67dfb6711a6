"""Our SQL as PostgreSQL takes it: tables in a schema, parameters by number."""

from __future__ import annotations

import re
from functools import lru_cache

from jobs_async.core import limits
from jobs_async.core.errors import OptionError
from jobs_async.stores.sql import statements

SQL = statements("jobs_async.stores.postgres")
"""Every statement this store makes, by name."""

MAX_SCHEMA_BYTES = 63

_TABLE = re.compile(r"\bjobs_async_(?:jobs|ticks|queues|nodes|records|migrations)\b")
_PARAMETER = re.compile(r"(?<!:):([a-z_]+)")


def schema_name(value: object) -> str:
    """A schema's name, quoted for SQL.

    Raises:
        OptionError: PostgreSQL would refuse it, or cut it off.
    """
    name = limits.name(value, "schema")
    if len(name.encode()) > MAX_SCHEMA_BYTES:
        raise OptionError(f"schema must be at most {MAX_SCHEMA_BYTES} bytes long")
    return '"' + name.replace('"', '""') + '"'


def in_schema(sql: str, schema: str) -> str:
    """The text with every table of ours named in full; `schema` is quoted already."""
    return _TABLE.sub(lambda table: f"{schema}.{table[0]}", sql)


@lru_cache(1024)
def numbered(sql: str, schema: str) -> tuple[str, tuple[str, ...]]:
    """The text that asyncpg takes, and the names of its parameters in their order."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    return in_schema(_PARAMETER.sub(number, sql), schema), tuple(names)
