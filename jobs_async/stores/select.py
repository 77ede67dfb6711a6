"""A query as SQL: conditions joined from fixed texts, every value a parameter."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from jobs_async.core.job import JobState
from jobs_async.stores.rows import dumps

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from jobs_async.core.query import JobQuery
    from jobs_async.stores.rows import Rows
    from jobs_async.stores.session import Params

_RUNNING = (JobState.executing,)


def select(query: JobQuery, sql: Mapping[str, str]) -> str:
    """The statement that answers a query, of one database's conditions."""
    running = query.orphaned or query.older_than is not None or query.states == _RUNNING
    by_id = "+id" if running else "id"  # the + leads past the order of the table, to the index of running jobs
    where = " AND ".join(condition for wanted, condition in _conditions(query, sql, by_id, running) if wanted)
    order = f"ORDER BY {by_id} {'DESC' if query.newest_first else 'ASC'}"
    return f"SELECT * FROM jobs_async_jobs AS job WHERE {where} {order} LIMIT :limit"  # noqa: S608


def may_scan(query: JobQuery) -> bool:
    """Whether the answer may take reading the whole table: no condition leads to few rows by an index."""
    by_index = query.ids is not None or query.external_id is not None or query.orphaned
    return not by_index and query.older_than is None and query.states != _RUNNING


def _conditions(query: JobQuery, sql: Mapping[str, str], by_id: str, running: bool) -> list[tuple[bool, str]]:
    """Every condition there is, and whether it was asked for."""
    states = ", ".join(str(int(state)) for state in query.states or ())
    in_states = f"state IN ({states})" if states else "false"
    return [
        (True, "true"),
        (query.ids is not None, sql["is_one_of"]),
        (running, "state = 1"),  # spelt out, for the index of running jobs
        (query.states is not None and query.states != _RUNNING, in_states),
        (query.queue is not None, sql["in_queues"]),
        (query.worker is not None, sql["has_worker"]),
        (query.tags is not None, sql["has_tags"]),
        (query.external_id is not None, sql["has_external_id"]),
        (query.correlation_id is not None, "correlation_id = :correlation_id"),
        (query.inserted_since is not None, "inserted_at >= :inserted_since"),
        (query.inserted_before is not None, "inserted_at < :inserted_before"),
        (query.ended_since is not None, "completed_at >= :ended_since"),
        (query.ended_before is not None, "completed_at < :ended_before"),
        (query.error is not None, sql["has_error"]),
        (query.args is not None, sql["has_args"]),
        (query.due, sql["is_due" if query.queue is None else "is_due_in"]),
        (query.node is not None, "node = :node"),
        (query.after is not None, f"{by_id} {'<' if query.newest_first else '>'} :after"),
        (query.orphaned, sql["is_orphaned"]),
        (query.older_than is not None, "attempted_at < :started_before"),
    ]


def params(query: JobQuery, mapping: Rows, now: datetime) -> Params:
    """What a query asks for, as parameters of its statement."""
    return {
        "ids": dumps(list(query.ids or ())),
        "queues": dumps(query.queues),
        "workers": dumps(query.workers),
        "tags": dumps(query.tags),
        "external_ids": dumps(query.external_ids),
        "correlation_id": query.correlation_id,
        "inserted_since": _stamp(mapping, query.inserted_since),
        "inserted_before": _stamp(mapping, query.inserted_before),
        "ended_since": _stamp(mapping, query.ended_since),
        "ended_before": _stamp(mapping, query.ended_before),
        "error": query.error,
        "args": dumps(query.args),
        "now": mapping.stamp(now),
        "node": query.node,
        "after": query.after,
        "started_before": mapping.stamp(now - timedelta(seconds=query.age or 0)),
        "limit": query.limit,
    }


def _stamp(mapping: Rows, at: datetime | None) -> Any:
    return None if at is None else mapping.stamp(at)
