"""Queries: what they refuse, what they keep to themselves, and which jobs they accept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict
from rich.pretty import pretty_repr

from jobs_async import Job, JobQuery, JobState, OptionError
from jobs_async.core.job import ErrorRecord
from jobs_async.core.limits import MAX_TAGS
from jobs_async.core.query import MAX_PAGE

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
SECRET = "hunter2"
SURROGATE = "\ud800"
NAMES = ("queue", "worker", "external_id")
TIMES = ("inserted_since", "inserted_before", "ended_since", "ended_before")

REFUSED: list[tuple[str, Any]] = [
    *[(field, value) for field in NAMES for value in (5, b"q", "", "q" * 256, "a\nb", SURROGATE, [""], ["q", 5], True)],
    *[(field, value) for field in TIMES for value in (NOW.replace(tzinfo=None), NOW.date(), 0.0, "2026-03-01", True)],
    *[(field, value) for field in ("correlation_id", "node") for value in (5, ["one"], SURROGATE)],
    *[("states", value) for value in ("available", ["available"], [0], 0, [None], [JobState.available, 1])],
    *[("tag", value) for value in ("red", 5, [5], [""], ["a\0"], [SURROGATE], [f"t{n}" for n in range(MAX_TAGS + 1)])],
    *[("error", value) for value in ("", "x" * 2049, 5, b"boom", ["boom"], SURROGATE)],
    *[("older_than", value) for value in (-1, math.nan, math.inf, "5", True, timedelta(seconds=-1))],
    *[("limit", value) for value in (0, -1, MAX_PAGE + 1, 2.0, "5", True, None)],
    *[("ids", value) for value in (5, "12", ["1"], [1.0], [True], [None])],
    *[("after", value) for value in ("5", 1.0, True, 2**63, -(2**63) - 1)],
    *[(field, value) for field in ("due", "orphaned", "newest_first") for value in ("yes", 1, None)],
]
REFUSED_ARGS: list[Any] = [
    *[{"password": value} for value in ([SECRET], {"a": SECRET}, SECRET.encode(), NOW, JobState, 2**63, -(2**63) - 1)],
    *[{"password": value} for value in (math.nan, math.inf, -math.inf, SECRET + SURROGATE)],
    *[{key: SECRET} for key in (5, None, True, b"password", SURROGATE)],
    *[SECRET, [SECRET], [("password", SECRET)], 5, True],
]


@pytest.mark.parametrize(("field", "value"), REFUSED)
def test_what_is_no_condition_is_refused_by_its_name(field: str, value: Any) -> None:
    with pytest.raises(OptionError, match=field):
        JobQuery(**{"tags" if field == "tag" else field: value})


@pytest.mark.parametrize("args", REFUSED_ARGS, ids=repr)
def test_arguments_that_are_none_are_refused_without_their_values(args: Any) -> None:
    with pytest.raises(OptionError, match="args") as caught:
        JobQuery(args=args)
    shown = f"{caught.value} {caught.value!r}"
    assert SECRET not in shown
    assert str(2**63) not in shown
    assert caught.value.__cause__ is None or caught.value.__suppress_context__


def test_an_unknown_condition_is_a_type_error() -> None:
    unknown: Any = {"qeue": "mail"}
    with pytest.raises(TypeError):
        JobQuery(**unknown)
    positional: Any = [1]
    with pytest.raises(TypeError):
        JobQuery(*positional)


@pytest.mark.parametrize("limit", [1, 100, MAX_PAGE])
def test_a_page_holds_up_to_a_thousand(limit: int) -> None:
    assert JobQuery(limit=limit).limit == limit


def test_the_defaults_ask_for_the_newest_hundred() -> None:
    given = {name: value for name, value in asdict(JobQuery()).items() if value is not None}
    assert given == {"due": False, "orphaned": False, "newest_first": True, "limit": 100}


# --- what is kept of a condition ---


def test_conditions_are_kept_in_one_form() -> None:
    zone = timezone(timedelta(hours=5, minutes=30))
    one = JobQuery(
        queue="mail",
        worker=(name for name in ("a", "b")),
        external_id=["x"],
        tags=iter(["t"]),
        states={JobState.scheduled, JobState.available},
        inserted_since=NOW,
        older_than=timedelta(minutes=1),
        args={"a": 1},
    )
    other = JobQuery(
        queue=["mail"],
        worker=["a", "b"],
        external_id="x",
        tags=("t",),
        states=[JobState.available, JobState.scheduled, JobState.available],
        inserted_since=NOW.astimezone(zone),
        older_than=60,
        args={"a": 1},
    )
    assert one == other
    assert (one.queues, one.workers, one.external_ids, one.tags) == (("mail",), ("a", "b"), ("x",), ("t",))
    assert (one.states, one.age) == ((JobState.available, JobState.scheduled), 60.0)
    assert JobQuery() == JobQuery()
    changes: dict[str, Any] = {"queue": "mail", "due": True, "limit": 5, "newest_first": False, "args": {"a": 1}}
    for field, value in changes.items():
        assert JobQuery(**{field: value}) != JobQuery(), field


def test_what_was_not_asked_is_none() -> None:
    query = JobQuery()
    assert (query.queues, query.workers, query.external_ids, query.age) == (None,) * 4


def test_no_condition_can_be_changed() -> None:
    query = JobQuery(queue="mail")
    for field in asdict(query):
        with pytest.raises(AttributeError):
            setattr(query, field, None)
    with pytest.raises(AttributeError):
        query.queues = ("other",)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "values", "change"),
    [
        ("ids", [1], lambda values: values.append(2)),
        ("states", [JobState.available], lambda values: values.clear()),
        ("queue", ["mail"], lambda values: values.append("other")),
        ("worker", ["send"], lambda values: values.clear()),
        ("external_id", {"x"}, lambda values: values.add("y")),
        ("tags", ["t"], lambda values: values.append("u")),
        ("args", {"a": 1}, lambda values: values.update(a=2, b=3)),
    ],
)
def test_what_it_was_made_from_may_change_and_it_does_not(
    field: str, values: Any, change: Callable[[Any], object]
) -> None:
    query, before = JobQuery(**{field: values}), JobQuery(**{field: type(values)(values)})
    change(values)
    assert query == before


# --- what it shows ---


@pytest.mark.parametrize("show", [repr, str, pretty_repr, "{}".format, lambda query: repr([query])])
def test_no_argument_is_shown_only_its_name(show: Callable[[object], str]) -> None:
    shown = show(JobQuery(queue="mail", args={"password": SECRET, "amount": 271828, "account": "hunter2@example.com"}))
    assert "password" in shown
    assert SECRET not in shown
    assert "271828" not in shown


def test_the_repr_tells_what_was_asked() -> None:
    assert repr(JobQuery()) == "JobQuery()"
    query = JobQuery(queue="mail", args={"b": 1, "a": None}, due=True, newest_first=False, limit=5)
    assert repr(query) == "JobQuery(queue=('mail',), args=['a', 'b'], due=True, newest_first=False, limit=5)"
    assert repr(JobQuery(after=0, older_than=0)) == "JobQuery(older_than=0.0, after=0)"


# --- which jobs it accepts ---


def job_of(**fields: Any) -> Job[Any]:
    given = {"state": JobState.available, "queue": "q", "worker": "w", "args_json": "{}", "attempt": 1, **fields}
    return Job(**{"id": 3, "scheduled_at": NOW, "inserted_at": NOW, "priority": 0, "max_attempts": 20, **given})


def errors(*texts: str) -> tuple[ErrorRecord, ...]:
    return tuple(ErrorRecord(attempt=n, type="E", error=text) for n, text in enumerate(texts, 1))


INSTANTS = [NOW - timedelta(seconds=5), NOW - MICROSECOND, NOW, NOW + MICROSECOND]
SCALARS: list[Any] = [None, True, False, 0, 1, 1.0, 0.5, "", "1", "a"]
ARGS: list[Any] = [[], [1], 1, None, "a", *[{"a": value} for value in (*SCALARS, [], {}, [1])], {"a": 1, "b": None}]
JOBS = st.builds(
    job_of,
    id=st.sampled_from([1, 2, 3]),
    state=st.sampled_from(JobState),
    queue=st.sampled_from("qr"),
    worker=st.sampled_from("wv"),
    args_json=st.sampled_from([json.dumps(args) for args in ARGS]),
    tags=st.sampled_from([(), ("t",), ("t", "u"), ("tu",)]),
    external_id=st.sampled_from([None, "x", "y"]),
    correlation_id=st.sampled_from([None, "c", "d"]),
    node=st.sampled_from([None, "n", "m"]),
    scheduled_at=st.sampled_from(INSTANTS),
    inserted_at=st.sampled_from(INSTANTS),
    attempted_at=st.sampled_from([None, *INSTANTS]),
    completed_at=st.sampled_from([None, *INSTANTS]),
    errors=st.sampled_from([(), errors("One: a"), errors("One: a", "Two: b")]),
)
CONDITIONS: dict[str, list[Any]] = {
    "ids": [[], [1], [3, 1]],
    "states": [[], [JobState.available], [JobState.executing], [JobState.scheduled, JobState.retryable]],
    "queue": [[], "q", ["q", "r"]],
    "worker": [[], "w", ["w", "v"]],
    "tags": [[], ["t"], ["u", "t"]],
    "external_id": [[], "x", ["x", "y"]],
    "correlation_id": ["c"],
    **dict.fromkeys(TIMES, INSTANTS),
    "error": ["One", "Two", "two", "b", ": ", "E"],
    "args": [{}, *[{"a": value} for value in SCALARS], {"b": None}, {"a": 1, "b": None}],
    "due": [False, True],
    "node": ["n"],
    "older_than": [0, 5, 0.000001],
    "after": [0, 1, 2, 9],
    "newest_first": [False, True],
}
QUERIES = st.sets(st.sampled_from(sorted(CONDITIONS)), max_size=3).flatmap(
    lambda names: st.fixed_dictionaries({name: st.sampled_from(CONDITIONS[name]) for name in sorted(names)})
)


def as_list(value: Any) -> list[Any]:
    return [value] if isinstance(value, str) else list(value)


def kinds(value: Any) -> str:
    """A JSON value with its kind, numbers in one form."""
    return json.dumps(float(value) if type(value) in (int, float) else value)


def has_args(job: Job[Any], wanted: dict[str, Any]) -> bool:
    if not wanted:
        return True
    held = job.args if isinstance(job.args, dict) else {}
    return {(key, kinds(value)) for key, value in wanted.items()} <= {(key, kinds(held[key])) for key in held}


def could_start(job: Job[Any]) -> bool:
    waits = job.state in (JobState.scheduled, JobState.retryable)
    return job.state is JobState.available or (waits and not job.scheduled_at > NOW)


def runs_since(job: Job[Any]) -> datetime:
    """When the run began that is still going on; in the future where there is none."""
    return (job.state is JobState.executing and job.attempted_at) or NOW + timedelta(days=1)


def ended(job: Job[Any], low: datetime, high: datetime) -> bool:
    return job.completed_at is not None and low <= job.completed_at < high


EVER = datetime.max.replace(tzinfo=UTC)
NEVER = datetime.min.replace(tzinfo=UTC)
ORACLE: dict[str, Callable[[Job[Any], Any, dict[str, Any]], bool]] = {
    "ids": lambda job, ids, _: job.id in ids,
    "states": lambda job, states, _: job.state in states,
    "queue": lambda job, names, _: job.queue in as_list(names),
    "worker": lambda job, names, _: job.worker in as_list(names),
    "tags": lambda job, tags, _: all(tag in job.tags for tag in tags),
    "external_id": lambda job, names, _: job.external_id in as_list(names),
    "correlation_id": lambda job, name, _: job.correlation_id == name,
    "inserted_since": lambda job, at, _: not job.inserted_at < at,
    "inserted_before": lambda job, at, _: not job.inserted_at >= at,
    "ended_since": lambda job, at, _: ended(job, at, EVER),
    "ended_before": lambda job, at, _: ended(job, NEVER, at),
    "error": lambda job, text, _: bool(job.errors) and job.errors[-1].error.count(text) > 0,
    "args": lambda job, wanted, _: has_args(job, wanted),
    "due": lambda job, due, _: not due or could_start(job),
    "node": lambda job, node, _: job.node == node,
    "older_than": lambda job, seconds, _: runs_since(job) < NOW - timedelta(seconds=seconds),
    "after": lambda job, last, asked: job.id < last if asked.get("newest_first", True) else job.id > last,
    "newest_first": lambda _job, _value, _: True,
}


def test_the_oracle_knows_every_condition() -> None:
    fields = set(asdict(JobQuery())) - {"orphaned", "limit"}
    assert fields == ORACLE.keys() == CONDITIONS.keys()


@settings(max_examples=500)
@given(job=JOBS, asked=QUERIES)
def test_a_job_is_accepted_where_every_condition_holds(job: Job[Any], asked: dict[str, Any]) -> None:
    expected = all(ORACLE[name](job, value, asked) for name, value in asked.items())
    assert JobQuery(**asked).accepts(job, NOW) is expected


@pytest.mark.parametrize("name", sorted(CONDITIONS))
@settings(max_examples=30)
@given(job=JOBS)
def test_each_condition_alone(name: str, job: Job[Any]) -> None:
    for value in CONDITIONS[name]:
        assert JobQuery(**{name: value}).accepts(job, NOW) is ORACLE[name](job, value, {name: value}), value


def test_every_job_meets_no_condition() -> None:
    for state in JobState:
        assert JobQuery().accepts(job_of(state=state), NOW)
    assert JobQuery(orphaned=True).accepts(job_of(), NOW), "who is dead cannot be told from a job"
