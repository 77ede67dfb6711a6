"""SQL as text that can be pasted into a shell: each database's package holds named statements and migrations."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

_BLOCK = re.compile(r"^-- name: (\w+)\n", re.MULTILINE)
_MIGRATION = re.compile(r"^(\d{3})_\w+\.sql$")


def statements(package: str) -> dict[str, str]:
    """The statements of a package's `queries.sql`, by name."""
    parts = _BLOCK.split((files(package) / "queries.sql").read_text(encoding="utf-8"))
    return {name: text.strip() for name, text in zip(parts[1::2], parts[2::2], strict=True)}


@cache
def migrations(package: str) -> tuple[tuple[int, str], ...]:
    """A package's migrations, numbered from 1, forward only."""
    found = ((_MIGRATION.match(file.name), file) for file in files(package).iterdir())
    return tuple(sorted((int(match[1]), file.read_text(encoding="utf-8")) for match, file in found if match))


def split(script: str) -> list[str]:
    """The statements of a migration; each ends with a semicolon at the end of a line."""
    bare = "\n".join(line for line in script.splitlines() if not line.lstrip().startswith("--"))
    return [statement.strip() for statement in re.split(r";\s*(?:\n|$)", bare) if statement.strip()]


@cache
def with_rows(statement: str, count: int, width: int) -> str:
    """A statement whose `:rows` takes `count` rows of `width` parameters."""
    row = f"({', '.join('?' * width)})"
    return statement.replace(":rows", ", ".join([row] * count))
