"""A query as SQL: conditions joined from fixed texts, every value a parameter."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jobs_async.core.job import JobState
from jobs_async.stores import rows
from jobs_async.stores.sql import statements

if TYPE_CHECKING:
    from jobs_async.core.store import Clock, JobQuery

SQL = statements("jobs_async.stores.sqlite")
"""Every statement this store makes, by name."""

_RUNNING = {JobState.executing}


def select(query: JobQuery, clock: Clock) -> tuple[str, dict[str, Any]]:
    """The statement that answers a query, and its parameters."""
    (boot, uptime), now = clock.uptime(), clock.now()
    states = None if query.states is None else set(query.states)
    running = query.orphaned or query.older_than is not None or states == _RUNNING
    by_id = "+id" if running else "id"  # the + leads past the order of the table, to the index of running jobs
    where = [
        condition
        for wanted, condition in (
            (query.ids is not None, "id IN (SELECT value FROM json_each(:ids))"),
            (running, "state = 1"),  # spelt out, for that index
            (states is not None and states != _RUNNING, "state IN (SELECT value FROM json_each(:states))"),
            (query.queue is not None, "queue = :queue"),
            (query.worker is not None, "worker = :worker"),
            (query.node is not None, "node = :node"),
            (query.after is not None, f"{by_id} {'<' if query.newest_first else '>'} :after"),
            (query.orphaned, SQL["is_orphaned"]),
            (query.older_than is not None, "attempted_at < :since"),
            (True, "true"),
        )
        if wanted
    ]
    order = f"ORDER BY {by_id} {'DESC' if query.newest_first else 'ASC'}"
    text = f"SELECT * FROM jobs_async_jobs AS job WHERE {' AND '.join(where)} {order} LIMIT :limit"  # noqa: S608
    return text, {
        "ids": rows.dumps(list(query.ids or ())),
        "states": rows.dumps(sorted(states or ())),
        "queue": query.queue,
        "worker": query.worker,
        "node": query.node,
        "after": query.after,
        "boot": boot,
        "uptime": uptime,
        "since": rows.micros(now - timedelta(seconds=query.older_than or 0)),
        "limit": query.limit,
    }
