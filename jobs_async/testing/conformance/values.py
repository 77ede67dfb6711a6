"""Values at their edges: text, numbers, times."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from jobs_async.core.errors import JobNotFound
from jobs_async.core.job import JobState, Progress
from jobs_async.core.lifecycle import Patch, Transition, decide
from jobs_async.core.limits import INT32_MAX, INT32_MIN
from jobs_async.core.outcome import Completed, Failed, Failure
from jobs_async.core.store import JobQuery, QueueInfo, Store, Tick
from jobs_async.testing.conformance.scene import applied, dump, ids, joined, new, raised, settled, stored, waiting

if TYPE_CHECKING:
    from jobs_async.testing.clock import FakeClock

HOSTILE = (
    "'; DROP TABLE jobs; --",
    'it\'s "quoted" `twice`',
    "back\\slash \\n \\u0000 \\",
    "100% _ * ? [a-z]",
    "$1 :name @p {0} %s",
    "<script>alert('x')</script> &amp;",
    "naïve 漢字 🦊🏳️‍🌈 e\u0301",
    "\u202eright to left\u200b",
    " blank at both ends ",
    "null",
    "0",
    "[1]",
    '{"a":1}',
    "é" * 127,
    "x" * 255,
)
ID_EDGES = (2**63 - 1, -(2**63), 2**53 + 1, 2**31, 0, -1)


async def text_comes_back_as_it_went(store: Store, clock: FakeClock) -> None:
    """In every field that takes text, whatever it holds."""
    for number, text in enumerate(HOSTILE):
        draft = new(
            text,
            json.dumps({text: [text]}, ensure_ascii=number % 2 == 0),
            queue=text,
            unique_key=text,
            idempotency_key=text,
            correlation_id=text,
            external_id=text,
            tags=(text, "plain", text),
            meta={text: {"text": text}},
        )
        [job] = await store.insert([draft], tick=Tick(text, clock.now()))
        assert await store.insert([draft], tick=Tick(text, clock.now())) == []
        await joined(store, text, host=text, version=text, queues={text: 1}, workers=(text,))
        [claimed] = (await store.fetch(text, 5, node=text)).jobs
        assert (claimed.worker, claimed.queue, claimed.unique_key, claimed.idempotency_key) == (text,) * 4
        assert (claimed.correlation_id, claimed.external_id, claimed.node) == (text, text, text)
        assert claimed.args == {text: [text]}
        assert (claimed.tags, claimed.meta) == ((text, "plain", text), {text: {"text": text}})
        assert claimed.args_json == job.args_json
        for fields in (("queue",), ("worker",), ("correlation_id",), ("external_id",), ("node",), ("queue", "worker")):
            conditions: dict[str, Any] = dict.fromkeys(fields, text)
            assert await store.select(JobQuery(**conditions)) == [claimed]
        assert (await store.insert([draft]))[0].id == job.id
        known = {node.id: node for node in await store.nodes()}[text]
        assert (known.host, known.version, dict(known.queues), known.workers) == (text, text, {text: 1}, (text,))
    assert len(await dump(store)) == len(HOSTILE)


async def text_of_a_run_comes_back_as_it_went(store: Store, clock: FakeClock) -> None:
    """Errors, frames, notes, results and queue names; line breaks and control characters too."""
    for text in (*HOSTILE, "first\nsecond\r\n\tthird", "\x01\x1b[31m\x7f\x85", "x" * 2000):
        await store.insert([new()])
        [job] = (await store.fetch("default", 1, node=None)).jobs
        patch = Patch(progress=Progress(0.1, text), args_json=json.dumps(text))
        told = await applied(store, Transition(job, job.state, patch=patch))
        assert (told.progress, told.args) == (Progress(0.1, text), text)
        failed = await settled(store, told, Failed(Failure(text, text, (text, text))))
        assert await stored(store, job) == failed
        [error] = failed.errors
        assert (error.type, error.error, error.frames) == (text, text, (text, text))
        [again] = (await store.fetch("default", 1, node=None)).jobs
        ended = await settled(store, again, Completed(json.dumps([text])))
        assert (await stored(store, job)).result == ended.result == [text]
    for text in HOSTILE:
        await store.set_queue(text, paused=True, limit=3)
    assert await store.queues() == dict.fromkeys(HOSTILE, QueueInfo(paused=True, limit=3))


async def text_means_nothing_to_a_search(store: Store, clock: FakeClock) -> None:
    """Names are compared, never matched: no wildcard, no folding of case."""
    await store.insert([new("Work", queue="Queue", external_id="Order"), new("w%", queue="q_", external_id="o%")])
    for text in ("work", "w_", "%", "*", "Wor", "Work "):
        assert await store.select(JobQuery(worker=text)) == []
    for text in ("order", "o_", "%", "*", "Orde", "Order "):
        assert await store.select(JobQuery(external_id=text)) == []
    for text in ("queue", "q%", "__", "?", "Queue "):
        assert await store.select(JobQuery(queue=text)) == []
        assert (await store.fetch(text, 1, node=None)).jobs == []


async def priorities_reach_both_ends(store: Store, clock: FakeClock) -> None:
    """All 32 bits, ordered as numbers."""
    order = [INT32_MIN, INT32_MIN + 1, -10, -9, -1, 0, 1, 2, 10, INT32_MAX - 1, INT32_MAX]
    jobs = await store.insert([new(priority=priority, max_attempts=INT32_MAX) for priority in reversed(order)])
    claimed = (await store.fetch("default", 100, node=None)).jobs
    assert [job.priority for job in claimed] == order
    assert ids(claimed) == ids(reversed(jobs))
    assert {job.max_attempts for job in claimed} == {INT32_MAX}


async def times_are_exact_and_aware(store: Store, clock: FakeClock) -> None:
    """From the year 1 to the year 9999, to the microsecond, and read back in UTC."""
    past = [
        datetime(1, 1, 1, tzinfo=UTC),
        datetime(1883, 11, 18, 12, 3, 58, 1, tzinfo=UTC),
        datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        datetime(1970, 1, 1, tzinfo=UTC),
        clock.now() - timedelta(microseconds=1),
    ]
    ahead = [
        clock.now() + timedelta(microseconds=1),
        datetime(2038, 1, 19, 3, 14, 8, 654321, tzinfo=UTC),
        datetime(2096, 2, 29, 1, 2, 3, 999999, tzinfo=UTC),
        datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    ]
    jobs = await store.insert([new(scheduled_at=at) for at in past + ahead])
    for at, job, kept in zip(past + ahead, jobs, await dump(store), strict=True):
        assert kept == job
        assert kept.scheduled_at == at
        assert kept.state is (JobState.available if at in past else JobState.scheduled)
        for time in (kept.scheduled_at, kept.inserted_at):
            assert time.utcoffset() == timedelta()
    clock.advance(0.000001)
    assert ids((await store.fetch("default", 100, node=None)).jobs) == ids(jobs[: len(past) + 1])


async def far_times_tell_when_to_look_again(store: Store, clock: FakeClock) -> None:
    """`next_due` is a number of seconds however far ahead."""
    at = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    await waiting(store, scheduled_at=at)
    next_due = (await store.fetch("default", 1, node=None)).next_due
    assert next_due is not None
    assert abs(next_due - (at - clock.now()).total_seconds()) < 0.001


async def instants_keep_their_microseconds(store: Store, clock: FakeClock) -> None:
    """Every stamp that a store makes: inserted, claimed, failed, ended."""
    for step in (0.000001, 0.1, 0.999999, 12_345.678901):
        clock.advance(step)
        await store.insert([new()])
        [job] = (await store.fetch("default", 1, node=None)).jobs
        failed = await settled(store, job, Failed(Failure("E", "E")), 0.000003)
        kept = await stored(store, failed)
        assert (kept.inserted_at, kept.attempted_at, kept.errors[0].at) == (clock.now(),) * 3
        assert kept.scheduled_at == clock.now() + timedelta(microseconds=3)
        clock.advance(0.000003)
        [job] = (await store.fetch("default", 1, node=None)).jobs
        await store.apply([decide(job, Completed())])
        assert (await stored(store, job)).completed_at == clock.now()


async def any_64_bit_id_may_be_asked_for(store: Store, clock: FakeClock) -> None:
    """Ids nobody has are unknown, not an error."""
    job = await waiting(store)
    assert await store.select(JobQuery(ids=ID_EDGES)) == []
    assert await store.select(JobQuery(ids=[*ID_EDGES, job.id])) == [job]
    assert await store.delete(ID_EDGES) == 0
    assert await store.select(JobQuery(after=2**63 - 1)) == [job]
    assert await store.select(JobQuery(after=-(2**63), newest_first=False)) == [job]
    for edge in ID_EDGES:
        await raised(JobNotFound, store.get(edge))
