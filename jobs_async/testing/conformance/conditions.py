"""Reading by what a job is called, carries, says and waits for: each condition at its edges."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

from jobs_async.core.job import DEFERRED, FINAL, LIVE, WAITING, JobState
from jobs_async.core.lifecycle import rerun
from jobs_async.core.outcome import Completed, Failed, Failure
from jobs_async.core.store import JobQuery, Store
from jobs_async.testing.conformance.scene import (
    BOOM,
    ELSEWHERE,
    LONG,
    applied,
    ids,
    in_state,
    new,
    running,
    settled,
    waiting,
)
from jobs_async.testing.conformance.values import HOSTILE

if TYPE_CHECKING:
    from jobs_async.testing.clock import FakeClock

TICK = timedelta(microseconds=1)
FIRST = datetime(1, 1, 1, tzinfo=UTC)
LAST = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
ALIKE = (
    ('""',),
    ('"a"',),
    ('"A"',),
    ('"1"',),
    ('"1.0"',),
    ('"true"',),
    ('"null"',),
    ('"[]"',),
    ('"naïve 漢字 🦊"', '"na\\u00efve \\u6f22\\u5b57 \\ud83e\\udd8a"'),
    ('"e\u0301"',),
    ('"é"',),
    ('"it\'s \\"quoted\\" \\\\ % _ * $\\n"', '"it\\u0027s \\u0022quoted\\u0022 \\u005c % _ * $\\u000a"'),
    ("0", "0.0", "-0.0"),
    ("1", "1.0"),
    ("-1", "-1.0"),
    ("0.1",),
    ("1.5",),
    ("1e22",),
    ("9007199254740992", "9007199254740992.0"),
    ("9007199254740993",),
    ("9223372036854775807",),
    ("-9223372036854775808",),
    ("true",),
    ("false",),
    ("null",),
)
"""Scalars as JSON; those of a line are one value, those of two lines are two."""
NESTED = ("[]", "{}", "[1]", "[null]", '["a"]', '{"a":1}', "[[]]")
NO_OBJECTS = ("null", "true", "1", '"a"', "[]", "[1]", '["a"]', '[["a",1]]', '[{"a":1}]')
KEYS = ("", " ", "a", "A", "a.b", "$", "$.a", "[0]", "a[0]", "#-1", "key", "value", *HOSTILE)


async def _asked(store: Store, **conditions: Any) -> list[int]:
    return ids(await store.select(JobQuery(**conditions)))


async def _with_args(store: Store, args_json: str) -> int:
    return (await store.insert([new("work", args_json)]))[0].id


async def a_name_is_one_or_several(store: Store, clock: FakeClock) -> None:
    """Queue, worker and external id: one of the names must fit, and fit whole."""
    for field in ("queue", "worker", "external_id"):
        a, b, c = ids(await store.insert([new(**{field: f"{field} {letter}"}) for letter in "abc"]))
        assert await _asked(store, **{field: f"{field} a"}) == [a]
        assert await _asked(store, **{field: [f"{field} a", f"{field} c", "unknown"]}) == [c, a]
        assert await _asked(store, **{field: iter([f"{field} b", f"{field} b"])}) == [b]
        for nobody in ([], ["unknown"], field, f"{field} ", f"{field} A", f"{field} _", f"{field} %", "default work"):
            assert await _asked(store, **{field: nobody}) == []


async def an_external_id_may_be_shared(store: Store, clock: FakeClock) -> None:
    """By jobs in any state, which all answer to it; a job without one answers to none."""
    jobs = [await in_state(store, state, queue=state.name, external_id="order 7") for state in JobState]
    await waiting(store)
    await waiting(store, external_id="order 70")
    found = await store.select(JobQuery(external_id="order 7", newest_first=False))
    assert found == jobs
    assert {(job.external_id, job.correlation_id) for job in found} == {("order 7", None)}
    assert await _asked(store, external_id="order 7", states=FINAL, newest_first=False) == [
        job.id for job in jobs if job.state in FINAL
    ]


async def a_correlation_id_finds_its_jobs(store: Store, clock: FakeClock) -> None:
    """Whole, and upper and lower case told apart."""
    a, b, *_ = ids(await store.insert([new(correlation_id=name) for name in ("one", "one", "One", "one 2", None)]))
    assert await _asked(store, correlation_id="one") == [b, a]
    assert await _asked(store, correlation_id="on_") == []


async def all_tags_must_be_there(store: Store, clock: FakeClock) -> None:
    """Whole and in any order; a tag is no part of another, and no tags are asked of every job."""
    given = ((), ("red",), ("reddish", "red"), ("Red", "1"), HOSTILE)
    none, red, both, upper, odd = ids(await store.insert([new(tags=tags) for tags in given]))
    wanted = {
        ("red",): [both, red],
        ("red", "red"): [both, red],
        ("reddish",): [both],
        ("red", "reddish"): [both],
        ("red", "Red"): [],
        ("Red",): [upper],
        ("1",): [upper],
        ("re",): [],
        ("r%",): [],
        ("unknown",): [],
        HOSTILE: [odd],
        (): [odd, upper, both, red, none],
    }
    for tags, found in wanted.items():
        assert await _asked(store, tags=tags) == found
    for tag in HOSTILE:
        assert await _asked(store, tags=[tag]) == [odd]


async def times_of_insertion_are_exact(store: Store, clock: FakeClock) -> None:
    """From `since` on and strictly before `before`, to the microsecond, in whatever zone they are written."""
    jobs: list[int] = []
    for _ in range(3):
        jobs += ids(await store.insert([new()]))
        clock.advance(TICK)
    a, b, c = jobs
    at = (clock.now() - 2 * TICK).astimezone(timezone(timedelta(hours=5, minutes=30)))
    assert await _asked(store, inserted_since=at) == [c, b]
    assert await _asked(store, inserted_before=at) == [a]
    assert await _asked(store, inserted_since=at, inserted_before=at + TICK) == [b]
    assert await _asked(store, inserted_since=at, inserted_before=at) == []
    assert await _asked(store, inserted_since=FIRST, inserted_before=LAST) == [c, b, a]
    assert await _asked(store, inserted_since=LAST) == await _asked(store, inserted_before=FIRST) == []


async def times_of_the_end_are_exact(store: Store, clock: FakeClock) -> None:
    """As those of insertion, for each way to end."""
    for state in sorted(FINAL):
        job = await in_state(store, state, queue=state.name)
        at = clock.now()
        assert await _asked(store, ended_since=at) == [job.id]
        assert await _asked(store, ended_since=at, ended_before=at + TICK) == [job.id]
        assert await _asked(store, ended_since=at + TICK) == []
        assert job.id not in await _asked(store, ended_before=at)
        clock.advance(60)
    assert len(await _asked(store, ended_since=FIRST, ended_before=LAST)) == len(FINAL)


async def what_never_ended_has_no_time_of_its_end(store: Store, clock: FakeClock) -> None:
    """Nor has a job that ended and was put back to work; an end is no insertion."""
    for state in LIVE:
        await in_state(store, state, queue=state.name)
    clock.advance(60)
    ended = await settled(store, await running(store), Completed())
    assert await _asked(store, ended_since=FIRST) == await _asked(store, ended_before=LAST) == [ended.id]
    assert ended.id not in await _asked(store, inserted_before=clock.now())
    await applied(store, rerun(ended))
    assert await _asked(store, ended_since=FIRST) == await _asked(store, ended_before=LAST) == []


async def an_error_is_a_text_within_the_latest(store: Store, clock: FakeClock) -> None:
    """Within its "Type: message" alone; earlier errors, the type's full name and the frames are not looked at."""
    await waiting(store, queue="never failed")
    job = await running(store)
    for kind in ("First", "Second"):
        await settled(store, job, Failed(Failure(f"app.{kind}", f"{kind}: boom", (f"app.py:7:{kind.lower()}",))))
        [job] = (await store.fetch("default", 1, node=None)).jobs
    for text in ("Second: boom", "Second", "boom", "d: b", ":"):
        assert await _asked(store, error=text) == [job.id]
    for text in ("First", "app", "second", "BOOM", "boom ", "Second: boom!"):
        assert await _asked(store, error=text) == []
    await settled(store, job, Completed())
    assert await _asked(store, error="Second", states=[JobState.completed]) == [job.id]


async def an_error_is_compared_and_never_matched(store: Store, clock: FakeClock) -> None:
    """Quotes, wildcards, backslashes, line breaks and composed letters stand for themselves, in the text and in job."""
    texts = (*HOSTILE, "first\nsecond\r\n\tthird", "\x01\x1b[31m\x7f\x85", "x" * 2048)
    jobs: dict[str, int] = {}
    for text in texts:
        job = await settled(store, await running(store, max_attempts=1), Failed(Failure("E", text)))
        jobs[text] = job.id
    for wanted in (*texts, *"%_*?\\'\"\n\r\t🦊é", "e\u0301", "NAÏVE", "first\nsecond", "first\\nsecond", "\\n", "\x7f"):
        found = [jobs[text] for text in texts if wanted in text]
        assert await _asked(store, error=wanted, newest_first=False) == found, f"{wanted!r} found other jobs"


async def an_argument_is_equal_as_json(store: Store, clock: FakeClock) -> None:
    """1 is 1.0 and not True, None is not missing, a text is no number, and what holds others equals nothing."""
    for text in NESTED:
        await _with_args(store, f'{{"v":{text}}}')
    await _with_args(store, "{}")
    jobs = {text: await _with_args(store, f'{{"v":{text}}}') for alike in ALIKE for text in alike}
    for alike in ALIKE:
        for text in alike:
            found = await _asked(store, args={"v": json.loads(text)}, newest_first=False)
            assert found == [jobs[same] for same in alike], f"{text} found other jobs"


async def an_argument_is_found_by_its_whole_name(store: Store, clock: FakeClock) -> None:
    """Whatever the name holds: it is no path, and upper and lower case are told apart."""
    await _with_args(store, '{"x":{"a":"yes","a.b":"yes","":"yes"},"a b":["yes"]}')
    for number, key in enumerate(KEYS):
        job = await _with_args(store, json.dumps({key: "yes"}, ensure_ascii=number % 2 == 0))
        assert await _asked(store, args={key: "yes"}) == [job]
        assert await _asked(store, args={key: "no"}) == await _asked(store, args={f"{key}x": "yes"}) == []


async def all_arguments_must_fit(store: Store, clock: FakeClock) -> None:
    """Each by its own name; others may be there, and where no argument is asked for every job fits."""
    one = await _with_args(store, '{"a":1,"b":2,"c":[3]}')
    two = await _with_args(store, '{"a":2,"b":1}')
    assert await _asked(store, args={"a": 1, "b": 2}) == await _asked(store, args={"b": 2}) == [one]
    assert await _asked(store, args={"a": 2, "b": 1}) == [two]
    assert await _asked(store, args={"a": 1, "b": 1}) == await _asked(store, args={"a": 1, "d": None}) == []
    everyone = [await _with_args(store, text) for text in NO_OBJECTS]
    assert await _asked(store, args={}) == [*everyone[::-1], two, one]


async def arguments_without_names_are_never_found(store: Store, clock: FakeClock) -> None:
    """A list or a scalar has no argument of any name, not even a number for one."""
    for text in NO_OBJECTS:
        await _with_args(store, text)
    for key in ("", "0", "a", "$", "null"):
        for value in (None, True, 1, "a"):
            assert await _asked(store, args={key: value}) == []


async def due_jobs_are_those_that_could_start(store: Store, clock: FakeClock) -> None:
    """Available ones, and from the very instant on those that wait for a time; in any queue, or in those asked for."""
    jobs = {state: (await in_state(store, state, queue=state.name)).id for state in JobState}
    now = [jobs[JobState.available]]
    everyone = sorted((jobs[state] for state in WAITING), reverse=True)
    queues = [state.name for state in JobState]
    for step, due in ((0, now), (LONG - 0.000001, now), (0.000001, everyone), (1, everyone)):
        clock.advance(step)
        assert await _asked(store, due=True) == await _asked(store, due=True, queue=queues) == due
        for state, job in jobs.items():
            assert await _asked(store, due=True, queue=state.name) == ([job] if job in due else [])
            assert await _asked(store, due=True, states=[state]) == ([job] if job in due else [])
    assert await _asked(store, due=True, states=DEFERRED, queue=["available", "scheduled"]) == [
        jobs[JobState.scheduled]
    ]
    assert await _asked(store, due=True, queue=[]) == []


async def _paged(store: Store, conditions: dict[str, Any], *, newest_first: bool) -> list[int]:
    """Everything that meets the conditions, in pages of three; all but the last must be full."""
    seen: list[int] = []
    while len(page := await _asked(store, after=seen[-1] if seen else None, newest_first=newest_first, **conditions)):
        assert len(seen) % 3 == 0, "a page that is not the last was not full"
        assert page[0] not in seen, "a page began with a job already seen"
        seen += page
    return seen


async def pages_of_each_condition_are_full(store: Store, clock: FakeClock) -> None:
    """In both directions, for one condition and for all: jobs in between that are not meant take no place."""
    start = clock.now()
    wanted: list[int] = []
    sign = {"queue": ELSEWHERE, "external_id": "e", "correlation_id": "c", "tags": ("t",)}
    for _ in range(7):
        clock.jump(1)
        wanted += ids(await store.insert([new("wanted", '{"a":1}', **sign)]))
        clock.jump(-1)
        await store.insert([new(delay=LONG), new("crowd", '{"a":2}', delay=LONG)])
    clock.jump(1)
    for job in (await store.fetch(ELSEWHERE, 10, node=None)).jobs:
        await settled(store, job, Failed(BOOM))
    conditions = {**sign, "worker": "wanted", "args": {"a": 1}, "error": "boom", "inserted_since": start + TICK}
    await _must_page(store, wanted, {**conditions, "due": True})
    for job in (await store.fetch(ELSEWHERE, 10, node=None)).jobs:
        await settled(store, job, Completed())
    await _must_page(store, wanted, {**conditions, "ended_since": start, "ended_before": LAST})


async def _must_page(store: Store, wanted: list[int], conditions: dict[str, Any]) -> None:
    for asked in (*({name: value} for name, value in conditions.items()), conditions):
        for newest_first in (True, False):
            found = await _paged(store, {**asked, "limit": 3}, newest_first=newest_first)
            assert found == wanted[:: -1 if newest_first else 1], f"pages of {', '.join(asked)} hold other jobs"
