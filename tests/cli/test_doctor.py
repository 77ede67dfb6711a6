"""Why jobs do not run: each finding where it is due and nowhere else, and the command that shows them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from jobs_async import Finding, Job, JobOpts, JobQuery, MemoryStore, SqliteStore, StoreBusy, Supervisor
from jobs_async.cli.main import main
from jobs_async.core.lifecycle import decide
from jobs_async.core.outcome import Failed, Failure
from jobs_async.core.store import Node, Store
from jobs_async.observe import ObservedStore
from jobs_async.runtime import diagnosis
from jobs_async.testing import FakeClock
from jobs_async.testing.faults import Fault, FaultyStore, at_call
from tests.sqlite.support import change

HOUR = 3600.0


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, clock: FakeClock):
    one: Store = (
        MemoryStore(clock=clock) if request.param == "memory" else SqliteStore(tmp_path / "jobs.db", clock=clock)
    )
    async with one:
        yield one


class Shop:
    """A store, and nodes that say of themselves what a test wants."""

    def __init__(self, store: Store, clock: FakeClock) -> None:
        self.store = store
        self.clock = clock
        self.jobs = Supervisor(store, queues={}, clock=clock)

    async def node(self, name: str = "a", workers: Sequence[str] = ("work",), ttl: float = HOUR, **queues: int) -> Node:
        node = Node(id=name, host="shop", pid=7, queues=queues or {"default": 2}, workers=tuple(workers))
        await self.store.beat(node, ttl, join=True)
        return node

    async def beat(self, name: str, **queues: int) -> None:
        """A sign of life of a node that is there."""
        await self.store.beat(Node(id=name, queues=queues, workers=("work",)), HOUR)

    async def put(self, worker: str = "work", **options: Any) -> Job[Any]:
        return await self.store.enqueue(worker, None, JobOpts(**options))

    async def fail(self, queue: str) -> None:
        """A job that failed once and waits for another attempt."""
        await self.put(queue=queue)
        (job,) = (await self.store.fetch(queue, 1, node="a")).jobs
        await self.store.apply([decide(job, Failed(Failure("E", "no")), HOUR)])

    async def found(self) -> list[Finding]:
        return list(await self.jobs.diagnose())

    async def codes(self) -> list[str]:
        return [one.code for one in await self.found()]


@pytest.fixture
def shop(store: Store, clock: FakeClock) -> Shop:
    return Shop(store, clock)


async def test_where_nothing_is_wrong_it_says_so_in_one_line(shop: Shop) -> None:
    await shop.node("a")
    await shop.node("b", mail=1)
    await shop.put()
    await shop.put(queue="mail")
    await shop.put(delay=3600)
    shop.clock.advance(12)
    await shop.beat("a", default=1)
    await shop.beat("b", mail=1)
    (flow,) = await shop.found()
    assert flow == Finding("info", "jobs-flow", "jobs flow: 2 waiting, oldest 12s, 2 nodes")


async def test_nobody_is_there(shop: Shop) -> None:
    await shop.node("gone", ttl=1)
    shop.clock.advance(2)
    assert await shop.codes() == ["no-live-node"]
    await shop.put()
    nobody, unserved = await shop.found()
    assert (nobody.level, nobody.code) == ("error", "no-live-node")
    assert (unserved.code, unserved.text) == ("queue-not-served", "1 job waits in queue 'default', the oldest for 0 s")
    await shop.node()
    assert await shop.codes() == ["jobs-flow"]


async def test_a_queue_is_paused(shop: Shop) -> None:
    await shop.node(default=1, mail=1)
    await shop.store.pause("mail")
    assert await shop.codes() == ["jobs-flow"], "nothing waits there"
    await shop.put(queue="mail")
    await shop.put(queue="mail")
    shop.clock.advance(200)
    await shop.beat("a", mail=1)
    (paused,) = await shop.found()
    assert (paused.level, paused.code) == ("warning", "queue-paused")
    assert paused.text == "2 jobs wait in queue 'mail', the oldest for 3 min: it is paused"
    assert "resume_queue('mail')" in paused.advice


async def test_a_queue_is_run_nowhere(shop: Shop) -> None:
    await shop.node(default=1)
    await shop.put(queue="mail", delay=1)
    assert await shop.codes() == ["jobs-flow"], "it is not due"
    shop.clock.advance(2)
    (unserved,) = await shop.found()
    assert (unserved.level, unserved.code) == ("error", "queue-not-served")
    assert unserved.text == "1 job waits in queue 'mail', the oldest for 1 s, which no live node runs"
    assert "--queues mail" in unserved.advice


async def test_a_worker_is_unknown_or_elsewhere(shop: Shop) -> None:
    await shop.node("a", workers=["work"], default=1)
    await shop.node("b", workers=["resize"], images=1)
    await shop.put("work")
    await shop.put("resize")
    await shop.put("typo")
    await shop.put("typo")
    elsewhere, unknown = await shop.found()
    assert (elsewhere.level, elsewhere.code, unknown.level, unknown.code) == (
        "error",
        "worker-elsewhere",
        "error",
        "worker-unknown",
    )
    assert elsewhere.text.startswith("1 job in queue 'default' for worker 'resize'")
    assert unknown.text.startswith("2 jobs in queue 'default' for worker 'typo', which no live node knows")


async def test_all_slots_are_taken(shop: Shop) -> None:
    await shop.node("a", default=1)
    await shop.node("b", default=2)
    for _ in range(5):
        await shop.put()
    assert len((await shop.store.fetch("default", 1, node="a")).jobs) == 1
    assert len((await shop.store.fetch("default", 2, node="b")).jobs) == 2
    shop.clock.advance(diagnosis.LONG_WAIT)
    await shop.beat("a", default=1)
    await shop.beat("b", default=2)
    assert await shop.codes() == ["jobs-flow"], "it is not long enough"
    shop.clock.advance(1)
    (full,) = await shop.found()
    assert (full.level, full.code) == ("warning", "queue-full")
    assert full.text == "2 jobs wait in queue 'default', the oldest for 31 s: all 3 slots on 2 nodes are taken"


async def test_slots_are_free_and_yet_nobody_takes_the_jobs(shop: Shop) -> None:
    await shop.node(default=2)
    for _ in range(2):
        await shop.put()
    await shop.store.fetch("default", 1, node="a")
    shop.clock.advance(31)
    await shop.beat("a", default=2)
    (stuck,) = await shop.found()
    assert (stuck.level, stuck.code) == ("warning", "jobs-not-claimed")
    assert (
        stuck.text == "1 job waits in queue 'default', the oldest for 31 s, although 1 node runs it and slots are free"
    )


async def test_a_beat_is_late(shop: Shop) -> None:
    await shop.node("0123456789abcdef")
    shop.clock.advance(diagnosis.LATE_BEAT)
    assert await shop.codes() == ["jobs-flow"]
    shop.clock.advance(1)
    (late,) = await shop.found()
    assert (late.level, late.code) == ("warning", "beat-late")
    assert late.text == "node 01234567 (shop, process 7) gave its last sign of life 16 s ago"


async def test_jobs_of_dead_nodes_are_not_rescued(shop: Shop) -> None:
    await shop.node("dead", ttl=30)
    job = await shop.put()
    await shop.store.fetch("default", 1, node="dead")
    shop.clock.advance(diagnosis.RESCUED_WITHIN)
    await shop.node("a")
    assert await shop.codes() == ["jobs-flow"]
    shop.clock.advance(1)
    (left,) = await shop.found()
    assert (left.level, left.code) == ("error", "jobs-not-rescued")
    assert left.text == f"1 job of dead nodes still executing on paper, the first {job.id} (work)"
    assert "the search for lost jobs" in left.advice
    await shop.store.beat(Node(id="a"), 0)
    left = next(one for one in await shop.found() if one.code == "jobs-not-rescued")
    assert left.advice.startswith("start a node")


async def test_retries_pile_up(shop: Shop) -> None:
    await shop.node(default=5, mail=5)
    queues = ["mail" if number % 10 == 0 else "default" for number in range(diagnosis.MANY_RETRIES)]
    for queue in queues[1:]:
        await shop.fail(queue)
    assert await shop.codes() == ["jobs-flow"]
    await shop.fail(queues[0])
    flow, retries = sorted(await shop.found(), key=lambda one: one.code)
    assert (flow.code, retries.code, retries.level) == ("jobs-flow", "many-retries", "info")
    assert retries.text == "100 jobs failed and wait for another attempt (default 90, mail 10)"


@pytest.mark.parametrize("seconds", [-3600, 3600])
async def test_clocks_differ(seconds: float, clock: FakeClock) -> None:
    ours = FakeClock()
    ours.jump(seconds)
    store = MemoryStore(clock=clock)
    await Shop(store, clock).node()
    found = await Supervisor(store, queues={}, clock=ours).diagnose()
    (skew,) = found
    assert (skew.level, skew.code) == ("warning", "clock-skew")
    assert skew.text == f"this machine's clock is 60 min {'behind' if seconds < 0 else 'ahead of'} the store's"
    ours.jump(-seconds + 4)
    assert [one.code for one in await Supervisor(store, queues={}, clock=ours).diagnose()] == ["jobs-flow"]


async def test_what_a_store_alone_knows_is_added_and_the_worst_comes_first(clock: FakeClock) -> None:
    class Knowing(MemoryStore):
        async def diagnose(self) -> list[Finding]:
            return [Finding("info", "i", "i"), Finding("error", "e", "e"), Finding("warning", "w", "w")]

    store = Knowing(clock=clock)
    await Shop(store, clock).node()
    for one in (store, ObservedStore(store)):
        found = await Supervisor(one, queues={}, clock=clock).diagnose()
        assert [finding.code for finding in found] == ["e", "w", "i"]


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
async def test_it_says_when_the_store_does_not_answer(clock: FakeClock, number: int) -> None:
    faulty = FaultyStore(MemoryStore(clock=clock), at_call(number, Fault(error=StoreBusy("locked"))))
    with pytest.raises(StoreBusy):
        await Supervisor(faulty, queues={}, clock=clock).diagnose()


async def test_it_leaves_no_trace(shop: Shop) -> None:
    await shop.put()
    before = await shop.store.select(JobQuery())
    await shop.found()
    assert await shop.store.nodes() == []
    assert await shop.store.select(JobQuery()) == before


async def test_it_reads_pages_and_never_a_million_rows(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ever so many jobs in ever so many queues it asks so many questions, each for a page."""
    monkeypatch.setattr(diagnosis, "MAX_QUEUES", 3)
    asked: list[JobQuery] = []

    class Counted(MemoryStore):
        async def select(self, query: JobQuery) -> list[Job[Any]]:
            asked.append(query)
            return await super().select(query)

    store = Counted(max_jobs=None, clock=clock)
    shop = Shop(store, clock)
    await shop.node(q5=1, q6=1, q7=1)
    for number in range(8):
        for _ in range(number * 40):
            await shop.put(queue=f"q{number}")
    clock.advance(31)
    found = await shop.found()
    assert [one.code for one in found if one.code != "beat-late"] == ["jobs-not-claimed"] * 3
    assert "280 jobs" in next(one.text for one in found if "'q7'" in one.text)
    assert len(asked) <= 1 + 2 * 3
    assert all(query.limit <= 1000 for query in asked)


# --- the command ---


def invoke(*arguments: object, **environment: str) -> Any:
    return CliRunner().invoke(main, ["doctor", *map(str, arguments)], env=environment)


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store of a file in which a job waits that nobody runs."""

    async def prepare() -> None:
        async with SqliteStore(tmp_path / "jobs.db") as store:
            await store.enqueue("work", {"password": "xyzzy"}, JobOpts(queue="mail"))

    asyncio.run(prepare())
    return f"sqlite:///{tmp_path}/jobs.db"


def test_the_command_prints_one_line_a_finding_with_tabs_and_ends_with_4(url: str) -> None:
    result = invoke("--store", url)
    assert result.exit_code == 4
    lines = [line.split("\t") for line in result.output.splitlines()]
    assert [line[:2] for line in lines] == [["error", "no-live-node"], ["error", "queue-not-served"]]
    assert all(len(line) == 4 and line[3] for line in lines)
    assert "xyzzy" not in result.output


def test_the_command_prints_one_json_document(url: str, tmp_path: Path) -> None:
    result = invoke("--store", url, "--json")
    document = json.loads(result.output)
    assert (result.exit_code, document["ok"]) == (4, False)
    assert document["findings"][0].keys() == {"level", "code", "text", "advice"}

    async def begin() -> None:
        async with SqliteStore(tmp_path / "jobs.db") as store:
            await store.beat(Node(id="n", queues={"mail": 1}, workers=("work",)), 60, join=True)

    asyncio.run(begin())
    result = invoke(JOBS_STORE=url)
    assert result.exit_code == 0
    assert result.output.startswith("info\tjobs-flow\tjobs flow: 1 waiting, oldest ")
    assert json.loads(invoke("--json", JOBS_STORE=url).output)["ok"] is True


def test_a_terminal_gets_a_table(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs_async.cli.output.is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    output = invoke("--store", url).output
    assert "\t" not in output
    assert "what to do" in output.splitlines()[0]
    assert "queue-not-served" in output


def test_a_store_that_cannot_be_used_is_exit_code_5(url: str, tmp_path: Path) -> None:
    result = invoke("--store", f"sqlite:///{tmp_path}/nowhere/jobs.db")
    assert (result.exit_code, result.output.split("\t")[1]) == (5, "schema-behind")
    (tmp_path / "text.db").write_text("no database " * 100)
    result = invoke("--store", f"sqlite:///{tmp_path}/text.db", "--json")
    assert (result.exit_code, json.loads(result.output)["findings"][0]["code"]) == (5, "store-unreachable")
    change(tmp_path / "jobs.db", "INSERT INTO jobs_async_migrations VALUES (999, 'now')")
    result = invoke("--store", url)
    assert (result.exit_code, result.output.split("\t")[1]) == (5, "schema-behind")
    assert "upgrade jobs-async" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["tests.cli.programs.shop:jobs", "--store", "memory://"],
        ["--store", "redis://secret@host"],
        ["nowhere:jobs"],
    ],
)
def test_what_is_no_target_is_a_usage_error(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JOBS_APP", raising=False)
    monkeypatch.delenv("JOBS_STORE", raising=False)
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert "secret" not in result.output


async def test_a_real_supervisor_has_nothing_wrong(tmp_path: Path) -> None:
    async with Supervisor(SqliteStore(tmp_path / "jobs.db")) as jobs:
        assert [one.code for one in await jobs.diagnose()] == ["jobs-flow"]
