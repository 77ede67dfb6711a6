"""A query as SQL: conditions joined from fixed texts, every value a parameter."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jobs_async.core.job import JobState
from jobs_async.stores import rows
from jobs_async.stores.sql import statements

if TYPE_CHECKING:
    from datetime import datetime

    from jobs_async.core.query import JobQuery
    from jobs_async.core.store import Clock

SQL = statements("jobs_async.stores.sqlite")
"""Every statement this store makes, by name."""

_RUNNING = (JobState.executing,)


def select(query: JobQuery, clock: Clock) -> tuple[str, dict[str, Any]]:
    """The statement that answers a query, and its parameters."""
    running = query.orphaned or query.older_than is not None or query.states == _RUNNING
    by_id = "+id" if running else "id"  # the + leads past the order of the table, to the index of running jobs
    where = " AND ".join(condition for wanted, condition in _conditions(query, by_id, running) if wanted)
    order = f"ORDER BY {by_id} {'DESC' if query.newest_first else 'ASC'}"
    text = f"SELECT * FROM jobs_async_jobs AS job WHERE {where} {order} LIMIT :limit"  # noqa: S608
    return text, _params(query, clock)


def may_scan(query: JobQuery) -> bool:
    """Whether the answer may take reading the whole table: no condition leads to few rows by an index."""
    by_index = query.ids is not None or query.external_id is not None or query.orphaned
    return not by_index and query.older_than is None and query.states != _RUNNING


def _conditions(query: JobQuery, by_id: str, running: bool) -> list[tuple[bool, str]]:
    """Every condition there is, and whether it was asked for."""
    states = ", ".join(str(int(state)) for state in query.states or ())
    return [
        (True, "true"),
        (query.ids is not None, "id IN (SELECT value FROM json_each(:ids))"),
        (running, "state = 1"),  # spelt out, for the index of running jobs
        (query.states is not None and query.states != _RUNNING, f"state IN ({states})"),
        (query.queue is not None, "queue IN (SELECT value FROM json_each(:queues))"),
        (query.worker is not None, "worker IN (SELECT value FROM json_each(:workers))"),
        (query.tags is not None, SQL["has_tags"]),
        (query.external_id is not None, "external_id IN (SELECT value FROM json_each(:external_ids))"),
        (query.correlation_id is not None, "correlation_id = :correlation_id"),
        (query.inserted_since is not None, "inserted_at >= :inserted_since"),
        (query.inserted_before is not None, "inserted_at < :inserted_before"),
        (query.ended_since is not None, "completed_at >= :ended_since"),
        (query.ended_before is not None, "completed_at < :ended_before"),
        (query.error is not None, "instr(errors ->> '$[#-1].error', :error)"),
        (query.args is not None, SQL["has_args"]),
        (query.due, SQL["is_due" if query.queue is None else "is_due_in"]),
        (query.node is not None, "node = :node"),
        (query.after is not None, f"{by_id} {'<' if query.newest_first else '>'} :after"),
        (query.orphaned, SQL["is_orphaned"]),
        (query.older_than is not None, "attempted_at < :started_before"),
    ]


def _params(query: JobQuery, clock: Clock) -> dict[str, Any]:
    (boot, uptime), now = clock.uptime(), clock.now()
    return {
        "ids": rows.dumps(list(query.ids or ())),
        "queues": rows.dumps(query.queues),
        "workers": rows.dumps(query.workers),
        "tags": rows.dumps(query.tags),
        "external_ids": rows.dumps(query.external_ids),
        "correlation_id": query.correlation_id,
        "inserted_since": _micros(query.inserted_since),
        "inserted_before": _micros(query.inserted_before),
        "ended_since": _micros(query.ended_since),
        "ended_before": _micros(query.ended_before),
        "error": query.error,
        "args": rows.dumps(query.args),
        "now": rows.micros(now),
        "node": query.node,
        "after": query.after,
        "boot": boot,
        "uptime": uptime,
        "started_before": rows.micros(now - timedelta(seconds=query.age or 0)),
        "limit": query.limit,
    }


def _micros(at: datetime | None) -> int | None:
    return None if at is None else rows.micros(at)
