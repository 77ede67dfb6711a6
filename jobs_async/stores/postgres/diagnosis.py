"""What the server alone can know of why jobs do not run, or soon will not: one quick question each."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg

from jobs_async.core.health import Finding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    from jobs_async.stores.postgres.session import Session

MAX_SKEW = 1.0
"""Seconds by which this machine's clock and the server's may differ."""
OLD_TRANSACTION = 300.0
"""Seconds after which an open transaction is worth a line: what it may still look at, no vacuum removes."""
MANY_TRANSACTIONS = 100_000
"""Transactions that a replication slot may hold back."""
MANY_DEAD = 10_000
"""Dead rows of the jobs table below which their number says nothing."""
OLD_VACUUM = 600.0
"""Seconds since the last vacuum of a table that is full of dead rows."""
NEARLY_ALL = 0.9
"""The part of the server's connections from which on new ones may soon be refused."""

_VACUUM = "no vacuum removes what died since, and claims get slower"


async def ask(session: Session, schema: str, statement: str) -> list[Finding]:
    """One of the `QUESTIONS`; nothing where this role may not ask it, or this server has no such thing."""
    asked = {
        "age": OLD_TRANSACTION,
        "held_back": MANY_TRANSACTIONS,
        "dead": MANY_DEAD,
        "vacuum": OLD_VACUUM,
        "jobs_table": f"{schema}.jobs_async_jobs",
    }
    try:
        return [*QUESTIONS[statement](await session.run(statement, asked))]
    except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedObjectError, asyncpg.UndefinedTableError):
        return []


async def ask_clock(session: Session, now: Callable[[], datetime]) -> list[Finding]:
    """How far `now` is from the server's clock, at the least."""
    before = now()
    ((told,),) = await session.run("server_time")
    after = now()
    off = (before - told if told < before else min(after - told, timedelta(0))).total_seconds()
    if abs(off) <= MAX_SKEW:
        return []
    text = f"this machine's clock is {_span(abs(off))} {'ahead of' if off > 0 else 'behind'} the server's"
    advice = "set it by NTP: jobs go by the server's clock, but a scheduled_at= that is computed here is that much off"
    return [Finding("warning", "clock-skew", text, advice)]


def of_ear(*, listens: bool, pooler: bool, deaf: bool) -> Iterator[Finding]:
    """Whether the store hears what other processes say, and if it does not, why."""
    if pooler:
        text = "the store goes through a transaction pooler, and hears no hints: jobs of others are found by polling"
        yield Finding("info", "postgres-pooler", text, "give nodes a direct address where that is too late")
    elif not listens:
        text = "hints between processes are off (listen=False): jobs of others are found by polling"
        yield Finding("info", "postgres-hints-off", text, "leave listen=True unless the server knows no LISTEN")
    elif deaf:
        text = "notifications of PostgreSQL are not heard here: jobs of others are found by polling"
        advice = "behind a transaction pooler say pooler=True; else the log says why"
        yield Finding("warning", "postgres-deaf", text, advice)


def of_schema(stored: int, compatible: int, newest: int) -> Iterator[Finding]:
    """Whether the schema is the one that this version of the package was written for."""
    if stored < newest:
        text = f"the schema is at version {stored}, this jobs_async knows {newest}"
        yield Finding("error", "postgres-schema-behind", text, "run `jobs-async migrate`")
    elif compatible > newest:
        text = f"the schema needs a jobs_async that knows version {compatible}, this one knows {newest}"
        yield Finding("error", "postgres-schema-newer", text, "upgrade jobs-async here")
    elif stored > newest:
        text = f"the schema is at version {stored}, newer than {newest}, and still fits this jobs_async"
        yield Finding("info", "postgres-schema-newer", text, "upgrade jobs-async here when the deploy comes to it")


def _of_standby(rows: Sequence[Any]) -> Iterator[Finding]:
    ((recovers, reads_only),) = rows
    if recovers or reads_only:
        what = "a standby" if recovers else "set to read-only transactions"
        text = f"the server is {what}: nothing can be stored, claimed or settled"
        yield Finding("error", "postgres-standby", text, "connect to the primary, as target_session_attrs=primary does")


def _of_transactions(rows: Sequence[Any]) -> Iterator[Finding]:
    for pid, state, seconds in rows:
        text = f"process {pid} has had a transaction open for {_span(seconds)} ({state}): {_VACUUM}"
        yield Finding("warning", "postgres-old-transaction", text, f"end it: SELECT pg_terminate_backend({pid})")


def _of_prepared(rows: Sequence[Any]) -> Iterator[Finding]:
    for (seconds,) in rows:
        text = f"a prepared transaction has waited for its end for {_span(seconds)}: {_VACUUM}"
        advice = "see pg_prepared_xacts, then COMMIT PREPARED or ROLLBACK PREPARED"
        yield Finding("warning", "postgres-prepared-transaction", text, advice)


def _of_slots(rows: Sequence[Any]) -> Iterator[Finding]:
    for name, behind in rows:
        text = f"replication slot {name!r} holds back {behind:,} transactions: {_VACUUM}"
        yield Finding("warning", "postgres-slot", text, "let its consumer catch up, or drop a slot that nobody reads")


def _of_dead(rows: Sequence[Any]) -> Iterator[Finding]:
    for live, dead, seconds in rows:
        last = "it was never vacuumed" if seconds is None else f"its last vacuum is {_span(seconds)} ago"
        text = f"the jobs table has {dead:,} dead rows beside {live:,} live ones, and {last}"
        advice = "see whether autovacuum is on and gets through, or VACUUM it by hand"
        yield Finding("warning", "postgres-dead-rows", text, advice)


def _of_connections(rows: Sequence[Any]) -> Iterator[Finding]:
    ((used, most),) = rows
    if used >= NEARLY_ALL * most:
        text = f"{used} of the server's {most} connections are in use: new nodes may be refused"
        advice = "raise max_connections, run fewer processes, or go through a pooler (pooler=True)"
        yield Finding("warning", "postgres-connections", text, advice)


def _span(seconds: float) -> str:
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


QUESTIONS: dict[str, Callable[[Sequence[Any]], Iterator[Finding]]] = {
    "reads_only": _of_standby,
    "old_transactions": _of_transactions,
    "old_prepared": _of_prepared,
    "holding_slots": _of_slots,
    "dead_rows": _of_dead,
    "connections": _of_connections,
}
"""Statements, and what their answers mean."""
