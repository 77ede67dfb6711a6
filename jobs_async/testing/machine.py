"""A store held against a model of itself: any sequence of calls must leave both alike.

    TestMyStore = store_machine(lambda clock: MyStore(clock=clock)).TestCase

This module needs hypothesis; nothing else of the package does.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Sequence
from datetime import timedelta
from itertools import chain, count, product
from typing import Any, ClassVar, TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, MultipleResults, RuleBasedStateMachine, initialize, invariant, multiple, rule
from msgspec.structs import replace

from jobs_async.core.errors import IllegalTransition, UniqueConflict
from jobs_async.core.job import DEFERRED, Job, JobState, Progress
from jobs_async.core.lifecycle import (
    NO_PATCH,
    Patch,
    Transition,
    cancel,
    decide,
    edit,
    rerun,
)
from jobs_async.core.options import NewJob, UniqueStrategy
from jobs_async.core.outcome import (
    Cancelled,
    Completed,
    Discarded,
    Failed,
    Failure,
    Interrupted,
    Lost,
    Outcome,
    Snoozed,
)
from jobs_async.core.store import RESCUE_TEXT, JobQuery, Node, QueueInfo, Store, Tick, rescue
from jobs_async.testing.clock import START, FakeClock
from jobs_async.testing.model import Model, identity, plain

T = TypeVar("T")
Step = Callable[[Job[Any]], Transition]

_PAGE = 8
LOST = "rescued: node lost"
ORPHANS = JobQuery(orphaned=True)


def _one_of_each(**fields: Sequence[object]) -> st.SearchStrategy[dict[str, Any]]:
    """Fields with any combination of these values, in a single draw."""
    return st.sampled_from([dict(zip(fields, values, strict=True)) for values in product(*fields.values())])


def _new(place: dict[str, Any], keys: dict[str, Any], times: dict[str, Any], marks: dict[str, Any]) -> NewJob:
    return NewJob(args_json="{}", **place, **keys, **times, **marks)


def _ends(outcome: Outcome) -> Step:
    return lambda job: decide(job, outcome, 15.0)


def _patches(**changes: Any) -> Step:
    return lambda job: Transition(job, job.state, patch=Patch(**changes))


def _gives_up(job: Job[Any]) -> Transition:
    return Transition(job, JobState.discarded, error=Failure("Tool", "Tool: given up"))


_BOOM = Failure("ValueError", "ValueError: boom", ("app.py:7:work",))
_OUTCOMES: dict[str, Step] = {
    "complete": _ends(Completed()),
    "return 0": _ends(Completed("0")),
    "fail": _ends(Failed(_BOOM)),
    "discard": _ends(Discarded(_BOOM)),
    "cancel with a result": _ends(Cancelled("enough", "[1]")),
    "snooze": _ends(Snoozed(30)),
    "snooze for no time": _ends(Snoozed(0)),
    "interrupt": _ends(Interrupted()),
    "interrupt for a while": _ends(Interrupted(5)),
    "lose": _ends(Lost()),
}
_WISHES: dict[str, Step] = {
    "cancel": cancel,
    "run again": rerun,
    "give up": _gives_up,
    "move forward": _patches(priority=-2),
    "tell progress": _patches(progress=Progress(0.5, "half")),
    "edit": lambda job: edit(job, Patch(args_json='{"edited":true}', priority=2, max_attempts=3)),
    "move to another queue": lambda job: edit(job, Patch(queue="b")),
    "put off": lambda job: edit(job, NO_PATCH, 45.0),
    "let be due": lambda job: edit(job, NO_PATCH, 0.0),
}
_FOR_RUNS = st.sampled_from([*sorted(_OUTCOMES), "cancel"])
"""What happens to a run. A wish to cancel is among it, for it comes between a run and its end."""
_QUEUES = st.sampled_from(["a", "b"])
_KEYS = [None, None, "k", "l"]
_NEW = st.builds(
    # few draws of many fields: what hypothesis spends on each is most of a step's time
    _new,
    _one_of_each(worker=["x", "y"], queue=["a", "b"], priority=[0, -1, 1]),
    _one_of_each(unique_key=_KEYS, unique_strategy=list(UniqueStrategy), idempotency_key=_KEYS),
    _one_of_each(delay=[None, None, 0.0, 5.0, 60.0], max_attempts=[20, 2, 1]),
    _one_of_each(external_id=[None, "e", "f"], tags=[(), ("t",), ("t", "u")]),
)
_QUERIES = _one_of_each(
    queue=[None, "a"], worker=[None, "x"], orphaned=[False, True], older_than=[None, None, 0.0, 5.0]
)
_CONDITIONS: list[dict[str, Any]] = [
    {"due": True},
    {"due": True, "queue": ["b", "c"]},
    {"queue": ["a", "c"], "worker": ["y", "x"]},
    {"tags": ["t"]},
    {"tags": ["u", "t"]},
    {"external_id": "e"},
    {"external_id": ["e", "f"], "due": True},
    {"error": "boom"},
    {"error": LOST},
    {"args": {"edited": True}},
    {"args": {"edited": 1}},
    {"inserted_since": START + timedelta(seconds=5)},
    {"inserted_before": START + timedelta(seconds=5)},
    {"ended_since": START + timedelta(seconds=5)},
    {"ended_before": START + timedelta(seconds=5)},
]
_PAGES = _one_of_each(newest_first=[True, False], limit=[100, 2, 1])
_TICKS = st.builds(
    Tick,
    st.sampled_from(["hourly", "nightly"]),
    st.sampled_from([START, START + timedelta(microseconds=1)]),
    st.sampled_from([None, "hourly", "nightly"]),
)
_STATES = st.sets(st.sampled_from(JobState), max_size=4)
_MOVES: dict[str, Callable[[FakeClock], None]] = {
    "a second": lambda clock: clock.advance(1),
    "five seconds": lambda clock: clock.advance(5),
    "a minute": lambda clock: clock.advance(60),
    "a day": lambda clock: clock.advance(90_000),
    "set forward": lambda clock: clock.jump(100_000),
    "set back": lambda clock: clock.jump(-100_000),
    "reboot": lambda clock: clock.reboot(),
}


class StoreMachine(RuleBasedStateMachine):
    """Calls a store and the model alike, and compares everything after each call."""

    make_store: ClassVar[Callable[[FakeClock], Store]]

    jobs: Bundle[Job[Any]] = Bundle("jobs")
    running: Bundle[Job[Any]] = Bundle("running")
    nodes: Bundle[str] = Bundle("nodes")

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.model = Model(self.clock)
        self.names = count(1)
        self.runner = asyncio.Runner()
        self.loop = self.runner.get_loop()
        self.store = type(self).make_store(self.clock)
        self.run(self.store.open())

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(call)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()

    @initialize(target=jobs)
    def begin_with_a_job(self) -> Job[Any]:
        return self._insert([NewJob("x", "{}", queue="a")], None)[0]

    @initialize(targets=(jobs, running))
    def begin_with_a_run(self) -> Job[Any]:
        self._insert([NewJob("x", "{}", queue="c")], None)
        return self._fetch("c", 1, None)[0]

    @initialize(target=nodes)
    def begin_with_a_node(self) -> str:
        return self._join(61.5)

    @rule(target=jobs, new=st.lists(_NEW, min_size=1, max_size=3))
    def insert(self, new: list[NewJob]) -> MultipleResults[Job[Any]]:
        return multiple(*self._insert(new, None))

    @rule(target=jobs, new=st.lists(_NEW, max_size=2), tick=_TICKS)
    def insert_a_tick(self, new: list[NewJob], tick: Tick) -> MultipleResults[Job[Any]]:
        return multiple(*self._insert(new, tick))

    def _insert(self, new: list[NewJob], tick: Tick | None) -> list[Job[Any]]:
        try:
            answer = self.run(self.store.insert(new, tick=tick))
        except UniqueConflict as conflict:
            self._must_conflict(new, tick, conflict)
            return []
        given = (job.id for job in answer if not job.duplicate)
        expected = self.model.insert(new, tick, chain(given, count(self.model.last_id + 1)))
        assert answer == expected, f"inserted {plain(new)}, got {plain(answer)} instead of {plain(expected)}"
        return answer

    def _must_conflict(self, new: list[NewJob], tick: Tick | None, conflict: UniqueConflict) -> None:
        try:
            self.model.insert(new, tick, count(self.model.last_id + 1))
        except UniqueConflict as expected:
            # a holder that was inserted by the refused batch itself has an id nobody can know
            assert conflict.job == expected.job or expected.job.id > self.model.last_id
        else:
            raise AssertionError(f"the store raised {conflict!r} without a reason")

    @rule(targets=(jobs, running), queue=_QUEUES, limit=st.integers(1, 3))
    def fetch(self, queue: str, limit: int) -> MultipleResults[Job[Any]]:
        return multiple(*self._fetch(queue, limit, None))

    @rule(targets=(jobs, running), queue=_QUEUES, limit=st.integers(1, 3), node=nodes)
    def fetch_for_a_node(self, queue: str, limit: int, node: str) -> MultipleResults[Job[Any]]:
        return multiple(*self._fetch(queue, limit, node))

    def _fetch(self, queue: str, limit: int, node: str | None) -> list[Job[Any]]:
        fetched = self.run(self.store.fetch(queue, limit, node=node))
        if not self.model.may_fetch(queue, node):
            assert fetched.jobs == []
            self._adopt_staging(queue)
            return []
        jobs, next_due = self.model.fetch(queue, limit, node)
        assert fetched.jobs == jobs
        if next_due is not None:
            assert fetched.next_due is not None
            assert fetched.next_due <= next_due, "told to look again when the next job is late"
        return jobs

    def _adopt_staging(self, queue: str) -> None:
        """A fetch that may hand out nothing may make due jobs available all the same."""
        for job in self.run(self.store.select(JobQuery(queue=queue, states=[JobState.available]))):
            known = self.model.jobs[job.id]
            if known.state in DEFERRED and known.scheduled_at <= self.clock.now():
                self.model.jobs[job.id] = replace(known, state=JobState.available)

    @rule(
        target=jobs,
        steps=st.lists(
            st.tuples(running, _FOR_RUNS) | st.tuples(jobs, st.sampled_from(sorted(_WISHES))),
            min_size=1,
            max_size=4,
        ),
    )
    def apply(self, steps: list[tuple[Job[Any], str]]) -> MultipleResults[Job[Any]]:
        return multiple(*self._apply(list(_legal(steps))))

    def _apply(self, steps: list[Transition]) -> list[Job[Any]]:
        may, must = self.model.conflicts(steps)
        try:
            answer = self.run(self.store.apply(steps))
        except UniqueConflict:
            assert may, "the store refused a second life beside nobody"
            return []
        assert not must, "two live jobs hold one unique key"
        assert answer == self.model.apply(steps)
        return [job for job in answer if job is not None]

    @rule(target=nodes, ttl=st.sampled_from([5.5, 61.5]))
    def join(self, ttl: float) -> str:
        return self._join(ttl)

    def _join(self, ttl: float) -> str:
        node = f"node-{next(self.names)}"
        self._beat(node, ttl, join=True)
        return node

    @rule(node=nodes, ttl=st.sampled_from([5.5, 61.5, 0.0]))
    def beat(self, node: str, ttl: float) -> None:
        self._beat(node, ttl)

    def _beat(self, node: str, ttl: float, *, join: bool = False) -> None:
        beat = self.run(self.store.beat(Node(id=node), ttl, join=join))
        expected = self.model.beat(node, ttl, join=join)
        assert (beat.alive, beat.now) == (expected.alive, expected.now)
        if beat.alive:
            assert sorted(beat.cancel) == list(expected.cancel)

    @rule(move=st.sampled_from(sorted(_MOVES)))
    def time_passes(self, move: str) -> None:
        _MOVES[move](self.clock)

    @rule()
    def rescue_orphans(self) -> None:
        assert self.run(rescue(self.store, ORPHANS, LOST, 3)) == self.model.rescue(ORPHANS, Lost(3, LOST))

    @rule(seconds=st.sampled_from([0, 5, 60]))
    def rescue_stuck(self, seconds: int) -> None:
        query = JobQuery(states=[JobState.executing], older_than=seconds, limit=1000)
        assert self.run(self.store.rescue_stuck(seconds)) == self.model.rescue(query, Lost(1000, RESCUE_TEXT))

    @rule(queue=_QUEUES, paused=st.sampled_from([None, True, False]), limit=st.sampled_from([None, 1, 2]))
    def set_queue(self, queue: str, paused: bool | None, limit: int | None) -> None:
        answer = self.run(self.store.set_queue(queue, paused=paused, limit=limit))
        assert answer is self.model.set_queue(queue, paused, limit)

    @rule(jobs=st.lists(jobs, min_size=1, max_size=3), states=st.none() | _STATES)
    def delete(self, jobs: list[Job[Any]], states: set[JobState] | None) -> None:
        ids = [job.id for job in jobs]
        assert self.run(self.store.delete(ids, states=states)) == self.model.delete(ids, states)

    @rule(states=_STATES, seconds=st.sampled_from([0, 5]), limit=st.sampled_from([1, 1000]))
    def purge(self, states: set[JobState], seconds: int, limit: int) -> None:
        doomed = self.model.ended(states, self.clock.now() - timedelta(seconds=seconds))
        removed = self.run(self.store.purge(states, seconds, limit))
        kept = {job.id for job in self.run(self.store.select(JobQuery(ids=sorted(doomed), limit=1000)))}
        assert removed == len(doomed - kept) == min(limit, len(doomed))
        self.model.forget(doomed - kept)

    @rule(
        some=st.none() | st.lists(jobs, max_size=4),
        states=st.none() | _STATES,
        after=st.none() | jobs,
        conditions=_QUERIES,
        page=_PAGES,
    )
    def select(
        self,
        some: list[Job[Any]] | None,
        states: set[JobState] | None,
        after: Job[Any] | None,
        conditions: dict[str, Any],
        page: dict[str, Any],
    ) -> None:
        ids = None if some is None else [job.id for job in some]
        query = JobQuery(ids=ids, states=states, after=None if after is None else after.id, **conditions, **page)
        assert self.run(self.store.select(query)) == self.model.select(query)

    @rule(page=_PAGES)
    def select_by_each_condition(self, page: dict[str, Any]) -> None:
        for conditions in _CONDITIONS:
            query = JobQuery(**conditions, **page)
            assert self.run(self.store.select(query)) == self.model.select(query), query

    @invariant()
    def store_and_model_are_alike(self) -> None:
        self.run(self._compare())

    async def _compare(self) -> None:
        jobs = page = await self.store.select(JobQuery(newest_first=False, limit=_PAGE))
        while len(page) == _PAGE:
            page = await self.store.select(JobQuery(after=page[-1].id, newest_first=False, limit=_PAGE))
            jobs = jobs + page
        assert jobs == sorted(self.model.jobs.values(), key=identity)
        assert dict(await self.store.tally()) == Counter((job.queue, job.state) for job in jobs)
        said = {name: info for name, info in (await self.store.queues()).items() if info != QueueInfo()}
        assert said == {name: info for name, info in self.model.queues.items() if info != QueueInfo()}
        listed = {node.id: node.alive for node in await self.store.nodes()}
        assert listed == {node: self.model.is_alive(node) for node in listed}
        assert {node for node in self.model.leases if self.model.is_alive(node)} <= set(listed)


def _legal(steps: Sequence[tuple[Job[Any], str]]) -> Iterator[Transition]:
    """The steps that the life cycle knows; a handle may be in any state."""
    for job, name in steps:
        try:
            yield (_OUTCOMES | _WISHES)[name](job)
        except IllegalTransition:
            continue


def store_machine(make_store: Callable[[FakeClock], Store]) -> type[RuleBasedStateMachine]:
    """A hypothesis state machine for one kind of store; each example opens a fresh one and closes it."""
    return type("StoreMachine", (StoreMachine,), {"make_store": staticmethod(make_store)})
