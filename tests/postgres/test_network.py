"""F4: a network that fails in every way between a store and its server. Nothing hangs, nothing is lost."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

from jobs_async import (
    ConstantBackoff,
    Job,
    JobContext,
    JobOpts,
    JobQuery,
    JobState,
    StoreError,
    Supervisor,
)
from jobs_async.core.hint import Hint
from jobs_async.core.records import Record
from jobs_async.core.store import Node, Tick
from jobs_async.runtime import supervisor
from jobs_async.stores.postgres import PostgresStore
from tests.conftest import Measured
from tests.postgres.pace import hurried as hurried
from tests.postgres.pace import patient as patient
from tests.postgres.proxy import Proxy
from tests.postgres.remains import no_backends, no_open_transaction
from tests.postgres.remains import nothing_left as nothing_left
from tests.postgres.support import PROGRAMS, ask, connected, done, new, until

GUARD = 60.0
LONGEST = 12.0
"""Seconds that nothing that is awaited may take, whatever the network does."""

pytestmark = pytest.mark.usefixtures("nothing_left")


def now() -> float:
    return asyncio.get_running_loop().time()


class Calls:
    """Every call there is of a store, on jobs of their own."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self._node = Node(id="ours")

    async def prepare(self) -> None:
        """What some calls need to be about."""
        await self._store.beat(self._node, 60, join=True)
        await self._store.insert([new() for _ in range(4)])
        self.claimed = (await self._store.fetch("default", 2, node="ours")).jobs

    def all(self) -> dict[str, Callable[[], Awaitable[Any]]]:
        store, first = self._store, self.claimed[0]
        return {
            "insert": lambda: store.insert([new()]),
            "insert under a key": lambda: store.insert([new(unique_key="key")]),
            "insert at a tick": lambda: store.insert([new()], tick=Tick("tick", first.inserted_at)),
            "fetch": lambda: store.fetch("default", 1, node="ours"),
            "apply": lambda: store.apply([done(first)]),
            "apply several": lambda: store.apply([done(job) for job in [*self.claimed, first]]),
            "select": lambda: store.select(JobQuery()),
            "delete": lambda: store.delete([first.id]),
            "purge": lambda: store.purge([JobState.completed], 0),
            "tally": store.tally,
            "set_queue": lambda: store.set_queue("other", paused=True),
            "queues": store.queues,
            "beat": lambda: store.beat(self._node, 60),
            "nodes": store.nodes,
            "put_records": lambda: store.put_records([Record("kind", "key", "1")]),
            "get_records": lambda: store.get_records("kind"),
            "drop_records": lambda: store.drop_records("kind"),
            "schema_version": store.schema_version,
            "the lifeline": lambda: asyncio.to_thread(self._renew),
        }

    def _renew(self) -> bool:
        life = self._store.lifeline()
        try:
            return life.renew("ours", 60)
        finally:
            life.close()


async def outcome(call: Awaitable[Any]) -> tuple[float, BaseException | None]:
    """How long it took, and what it raised."""
    began = now()
    try:
        async with asyncio.timeout(GUARD):
            await call
    except Exception as error:
        return now() - began, error
    return now() - began, None


async def freeze_every_call(dsn: str, *, connected_before: bool) -> float:
    """The longest that any call of a store took while nothing passed; afterwards all of them work."""
    async with Proxy(dsn) as proxy, PostgresStore(proxy.dsn) as store:
        calls = Calls(store)
        await calls.prepare()
        if connected_before:
            for call in calls.all().values():
                await call()
        proxy.freeze()
        if not connected_before:
            proxy.reset()
        asked = [*calls.all().items()] * IN_A_ROW
        outcomes = await asyncio.gather(*(outcome(call()) for _, call in asked))
        worked = [
            name for (name, _), (_, error) in zip(asked, outcomes, strict=True) if not isinstance(error, StoreError)
        ]
        assert not worked, "all of them end, each in an error of ours"
        proxy.heal()
        async with asyncio.timeout(GUARD):
            for call in calls.all().values():
                await call()
    await no_backends(dsn)
    return max(seconds for seconds, _ in outcomes)


IN_A_ROW = 4
"""How often each call is made, for some wait for each other."""


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("connected_before", [True, False])
async def test_f4_row_14_every_call_of_a_store_ends_though_its_connection_never_thaws(
    pg_dsn: str, *, connected_before: bool
) -> None:
    await freeze_every_call(pg_dsn, connected_before=connected_before)


@pytest.mark.soak
async def test_f4_row_14_no_call_of_a_store_takes_12_seconds(pg_dsn: str, measured: Measured) -> None:
    longest = max([await freeze_every_call(pg_dsn, connected_before=before) for before in (True, False)])
    assert longest <= LONGEST
    measured(
        "F4, frozen for good", f"19 calls of a store, {IN_A_ROW} of each at once", f"the longest took {longest:.1f} s"
    )


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("sslmode", ["disable", "prefer", "require"])
async def test_f4_a_server_that_takes_the_call_and_says_nothing_is_given_up(pg_dsn: str, sslmode: str) -> None:
    async with Proxy(pg_dsn) as proxy:
        proxy.freeze()
        store = PostgresStore(f"{proxy.dsn}?sslmode={sslmode}")
        _, error = await outcome(store.open())
        assert isinstance(error, StoreError)
        assert not store.is_open
        proxy.heal()
        if sslmode != "require":  # which this server cannot do
            async with store:
                assert not await store.tally()
    await no_backends(pg_dsn)


@pytest.mark.usefixtures("patient")
async def test_f4_what_waits_for_a_frozen_server_ends_when_the_store_is_closed(pg_dsn: str) -> None:
    async with Proxy(pg_dsn) as proxy, PostgresStore(proxy.dsn) as store:
        calls = Calls(store)
        await calls.prepare()
        proxy.freeze()
        here = [(name, call) for name, call in calls.all().items() if name not in ALONE]
        asked = [asyncio.get_running_loop().create_task(outcome(call())) for _, call in here]
        await until(lambda: made(proxy, CONNECTIONS))
        async with asyncio.timeout(GUARD):
            await store.close()
            outcomes = await asyncio.gather(*asked)
        assert all(isinstance(error, StoreError) for _, error in outcomes)
        await until(lambda: nobody_is_left(proxy))
    await no_backends(pg_dsn)


ALONE = {"schema_version", "the lifeline"}
"""Calls on a connection of their own, that do not end with the store."""


async def test_f4_an_open_that_is_called_off_leaves_the_store_closed(pg_dsn: str) -> None:
    async with Proxy(pg_dsn) as proxy:
        store = PostgresStore(proxy.dsn)
        await store.open()
        await store.close()
        proxy.freeze()
        opening = asyncio.get_running_loop().create_task(store.open())
        await until(lambda: made(proxy, 1))
        opening.cancel()
        proxy.heal()
        await asyncio.wait({opening})
        assert opening.cancelled()
        assert not store.is_open
    await no_backends(pg_dsn)


# --- jobs, while the network is bad ---


async def reset(proxy: Proxy, seconds: float) -> None:
    await again_and_again(proxy.reset, seconds)


async def half_close(proxy: Proxy, seconds: float) -> None:
    await again_and_again(proxy.half_close, seconds)


async def freeze(proxy: Proxy, seconds: float) -> None:
    proxy.freeze()
    await asyncio.sleep(seconds)


async def swallow(proxy: Proxy, seconds: float) -> None:
    """Connections that a box on the way has forgotten: new ones work."""
    proxy.swallow()
    await asyncio.sleep(seconds)


async def delay(proxy: Proxy, seconds: float) -> None:
    proxy.delay = seconds / 20
    await asyncio.sleep(seconds)


async def trickle(proxy: Proxy, seconds: float) -> None:
    proxy.chunk, proxy.delay = 64, 0.005
    await asyncio.sleep(seconds)


async def again_and_again(strike: Callable[[], None], seconds: float) -> None:
    until = now() + seconds
    while now() < until:
        strike()
        await asyncio.sleep(0.2)


WEATHERS = [reset, half_close, freeze, swallow, delay, trickle]


class Shop:
    """A node, and an application that asks again for what it got no answer to; both behind one proxy."""

    def __init__(self, dsn: str, **options: Any) -> None:
        pace: dict[str, Any] = {"poll_interval": 0.1, "heartbeat": 1, "rescue_interval": 1, "shutdown_timeout": 1}
        self.jobs = Supervisor(PostgresStore(dsn), queues={"default": 8}, **(pace | options))
        self.jobs.register_worker("work", self._work, opts=JobOpts(max_attempts=9), retry_strategy=ConstantBackoff(0.1))
        self.runs: Counter[str] = Counter()
        self.longest = 0.0
        self.asking: list[asyncio.Task[tuple[float, BaseException | None]]] = []
        self.began = asyncio.Event()

    async def _work(self, key: str, _ctx: JobContext) -> None:
        self.runs[key] += 1
        self.began.set()
        if key.startswith("long"):
            await asyncio.sleep(GUARD)
        await asyncio.sleep(0.02)

    async def ask(self, call: Callable[[], Awaitable[Any]]) -> Any:
        """Until there is an answer."""
        while True:
            began = now()
            try:
                return await call()
            except StoreError:
                await asyncio.sleep(0.05)
            finally:
                self.longest = max(self.longest, now() - began)

    async def enqueue(self, key: str) -> Job[Any]:
        job: Job[Any] = await self.ask(lambda: self.jobs.enqueue("work", key, idempotency_key=key))
        return job

    async def produce(self, enough: asyncio.Event) -> list[str]:
        """Jobs until it is enough; their keys."""
        keys: list[str] = []
        while not enough.is_set():
            keys.append(f"key {len(keys)}")
            await self.enqueue(keys[-1])
            await self.ask(self.jobs.counts)
            await asyncio.sleep(0.02)
        return keys


COMPLETED = "SELECT args #>> '{}', count(*) FROM jobs_async_jobs WHERE state = 2 GROUP BY 1"


async def weather_passes(
    dsn: str, weather: Callable[[Proxy, float], Awaitable[None]], seconds: float
) -> tuple[int, float, float]:
    """How many jobs were stored meanwhile, how soon one ran afterwards, and the longest that anything took."""
    async with Proxy(dsn) as proxy:
        shop, enough = Shop(proxy.dsn), asyncio.Event()
        async with shop.jobs:
            producing = asyncio.get_running_loop().create_task(shop.produce(enough))
            await shop.began.wait()
            await weather(proxy, seconds)
            if weather is not swallow:
                proxy.heal()
            healed_at = now()
            async with asyncio.timeout(GUARD):
                await shop.ask(lambda: shop.jobs.enqueue("work", "after", idempotency_key="after"))
                await until(lambda: has_run(shop, "after"))
                recovered = now() - healed_at
                enough.set()
                keys = {*await producing, "after"}
                await until(lambda: all_completed(dsn, keys))
        assert all(shop.runs[key] == 1 for key in keys), "no lease was lost, so nothing runs twice"
        stopped = shop.jobs.shutdown_report
        assert stopped is not None
        assert stopped.is_clean
    await no_backends(dsn)
    return len(keys), recovered, shop.longest


async def has_run(shop: Shop, key: str) -> bool:
    return shop.runs[key] > 0


async def all_completed(dsn: str, keys: set[str]) -> bool:
    return dict(await ask(dsn, COMPLETED)) == dict.fromkeys(keys, 1)


@pytest.mark.usefixtures("hurried")
@pytest.mark.parametrize("weather", WEATHERS)
async def test_f4_jobs_are_stored_once_and_run_once_whatever_the_network_does(
    pg_dsn: str, weather: Callable[[Proxy, float], Awaitable[None]]
) -> None:
    await weather_passes(pg_dsn, weather, 0.7)


@pytest.mark.soak
@pytest.mark.parametrize("weather", WEATHERS)
async def test_f4_no_await_takes_12_seconds_and_work_goes_on_within_5(
    pg_dsn: str, measured: Measured, weather: Callable[[Proxy, float], Awaitable[None]]
) -> None:
    stored, recovered, longest = await weather_passes(pg_dsn, weather, 10.0)
    measured(
        f"F4, {weather.__name__}",
        f"10 s, {stored} jobs",
        f"lost 0, run twice 0, longest await {longest:.1f} s, work again {recovered:.1f} s afterwards",
    )
    assert longest <= LONGEST
    assert recovered <= (5.0 if weather is not swallow else LONGEST)


# --- the end, while nothing passes ---


async def idle(shop: Shop, proxy: Proxy) -> None:
    proxy.freeze()


async def busy(shop: Shop, proxy: Proxy) -> None:
    """A job is running, and nobody can be told of it."""
    await shop.enqueue("long")
    await shop.began.wait()
    proxy.freeze()


async def asking(shop: Shop, proxy: Proxy) -> None:
    """Many wait for one of the pool's connections, which are only being made."""
    proxy.freeze()
    proxy.reset()
    shop.asking = [asyncio.get_running_loop().create_task(outcome(shop.jobs.counts())) for _ in range(8)]
    await until(lambda: made(proxy, 3))


async def made(proxy: Proxy, count: int) -> bool:
    return len(proxy.links) >= count


@pytest.mark.parametrize("scene", [idle, busy, asking])
@pytest.mark.usefixtures("patient")
async def test_f4_row_49_a_frozen_connection_holds_up_no_stop(
    pg_dsn: str, scene: Callable[[Shop, Proxy], Awaitable[None]]
) -> None:
    async with Proxy(pg_dsn) as proxy:
        shop = Shop(proxy.dsn, shutdown_timeout=0.2)
        await shop.jobs.start()
        await shop.jobs.counts()
        await scene(shop, proxy)
        async with asyncio.timeout(GUARD):
            await shop.jobs.stop()
        assert not shop.jobs.store.is_open
        for _, error in await asyncio.gather(*shop.asking):
            assert isinstance(error, StoreError)
        await until(lambda: nobody_is_left(proxy))
    await no_backends(pg_dsn)


async def nobody_is_left(proxy: Proxy) -> bool:
    """Whether the store has let go of every connection, which a frozen link learns of when it thaws."""
    proxy.heal()
    return not proxy.links


@pytest.mark.soak
@pytest.mark.parametrize("scene", [idle, busy, asking])
async def test_f4_row_49_a_stop_on_a_frozen_connection_takes_6_seconds_more_than_its_grace(
    pg_dsn: str, measured: Measured, scene: Callable[[Shop, Proxy], Awaitable[None]]
) -> None:
    async with Proxy(pg_dsn) as proxy:
        shop = Shop(proxy.dsn, shutdown_timeout=2)
        await shop.jobs.start()
        await shop.jobs.counts()
        await scene(shop, proxy)
        began = now()
        await shop.jobs.stop()
        took = now() - began
        await asyncio.gather(*shop.asking)
        await until(lambda: nobody_is_left(proxy))
    await no_backends(pg_dsn)
    measured(f"F4, stop while frozen, {scene.__name__}", "a grace of 2 s", f"took {took:.1f} s")
    assert took <= 2 + 6


@pytest.mark.usefixtures("hurried")
async def test_f4_a_stop_calls_off_a_start_that_stands_before_a_frozen_server(
    pg_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "START_GRACE", 0.1)
    async with Proxy(pg_dsn) as proxy:
        proxy.freeze()
        shop = Shop(proxy.dsn, shutdown_timeout=0.2)
        starting = asyncio.get_running_loop().create_task(outcome(shop.jobs.start()))
        await until(lambda: made(proxy, 1))
        async with asyncio.timeout(GUARD):
            await shop.jobs.stop()
        _, error = await starting
        assert isinstance(error, StoreError)
        await until(lambda: nobody_is_left(proxy))
        async with shop.jobs:
            await shop.enqueue("again")
            await until(lambda: has_run(shop, "again"))
    await no_backends(pg_dsn)


@contextmanager
def running(program: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """A program in a process of its own, gone at the end whatever happens."""
    command = [sys.executable, str(PROGRAMS / f"{program}.py"), *map(str, args)]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.soak
async def test_f4_row_49_a_process_on_a_frozen_connection_ends_when_it_is_told_to(
    pg_dsn: str, measured: Measured
) -> None:
    grace = 3
    async with Proxy(pg_dsn) as proxy:
        with running("worker", proxy.dsn, grace) as process:
            assert process.stdout is not None
            assert await asyncio.to_thread(process.stdout.readline) == "at work\n"
            proxy.freeze()
            began = now()
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(GUARD):
                code = await asyncio.to_thread(process.wait)
            took = now() - began
        measured("F4, SIGTERM while frozen", f"a grace of {grace} s", f"ended after {took:.1f} s")
        assert code == 0
        assert took <= grace + 6 + 1, "a second for a process to end"
        await until(lambda: nobody_is_left(proxy))
    await no_backends(pg_dsn)


# --- the ear ---


async def hear(store: PostgresStore, dsn: str, heard: list[Hint]) -> None:
    """Wait until what another store says is heard."""
    heard.clear()
    async with PostgresStore(dsn) as other:

        async def is_heard() -> bool:
            await other.insert([new()])
            return Hint("work", "default") in heard

        await until(is_heard)


async def lose_the_ear(dsn: str) -> float:
    """How long it takes until a listener on a connection where nothing passes has another one."""
    async with Proxy(dsn) as proxy, PostgresStore(proxy.dsn) as store:
        heard: list[Hint] = []
        enough = store.wakes(heard.append)
        await hear(store, dsn, heard)
        began = now()
        proxy.swallow(b"LISTEN")
        await until(lambda: said_twice(proxy))
        took = now() - began
        await hear(store, dsn, heard)
        enough()
    await no_backends(dsn)
    return took


async def said_twice(proxy: Proxy) -> bool:
    """Whether a second connection listens, and hears."""
    return any(b"LISTEN" in link.said and link.flows.is_set() for link in proxy.links)


@pytest.mark.usefixtures("hurried")
async def test_f4_row_41_a_listener_whose_connection_is_dead_gets_another_one(pg_dsn: str) -> None:
    await lose_the_ear(pg_dsn)


@pytest.mark.soak
async def test_f4_row_41_a_dead_listener_is_noticed_within_20_seconds(pg_dsn: str, measured: Measured) -> None:
    took = await lose_the_ear(pg_dsn)
    measured("F4, a dead LISTEN", "its connection swallows all", f"another one listens after {took:.1f} s")
    assert took <= 20


# --- cut at any byte ---

BATCH = 3


class Ledger:
    """Store calls, each asked again until it is answered, and what must be true of them afterwards."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self._answered: list[int] = []

    async def write(self) -> None:
        store = self._store
        async with asyncio.TaskGroup() as group:
            for name in "ab":
                group.create_task(self._insert(name))
        node = Node(id="ours")
        await self._surely(lambda: store.beat(node, 600, join=True))
        keyed = [
            new("keyed", unique_key=f"unique {n}", idempotency_key=f"key {n}", queue="keyed") for n in range(BATCH)
        ]
        await self._surely(lambda: store.insert(keyed))
        await self._surely(lambda: store.set_queue("other", paused=True))
        await self._surely(lambda: store.put_records([Record("kind", f"key {n}", "1") for n in range(BATCH)]))
        fetched = await self._surely(lambda: store.fetch("keyed", BATCH, node=node.id))
        ours = fetched.jobs or await store.select(JobQuery(queue="keyed"))  # claimed, and the answer got lost
        steps = [done(job) for job in ours]
        await self._surely(lambda: store.apply([*steps, *steps]))  # two statements, so a transaction

    async def _insert(self, name: str) -> None:
        """Once: without a key nobody can tell whether what got no answer is stored."""
        with suppress(StoreError):
            jobs = await self._store.insert([new(name) for _ in range(BATCH)])
            self._answered += [job.id for job in jobs]

    async def _surely(self, call: Callable[[], Awaitable[Any]]) -> Any:
        async with asyncio.timeout(GUARD):
            while True:
                with suppress(StoreError):
                    return await call()
                await asyncio.sleep(0)

    async def wrongs(self) -> list[str]:
        jobs = await self._store.select(JobQuery(limit=1000))
        count = Counter(job.worker for job in jobs)
        states = [job.state for job in jobs if job.worker == "keyed"]
        records = await self._store.get_records("kind")
        wrong = [f"{name} is half done" for name in "ab" if count[name] not in (0, BATCH)]
        if states != [JobState.completed] * BATCH:
            wrong.append(f"under keys there are {states}")
        if len(records) != BATCH:
            wrong.append(f"there are {len(records)} records")
        if not (await self._store.queues())["other"].paused:
            wrong.append("the queue is not paused")
        if not set(self._answered) <= {job.id for job in jobs}:
            wrong.append("what was answered is not stored")
        return wrong


async def cut_at_each(dsn: str, places: range) -> int:
    """Cut the first connections of a store at each of these bytes; how many cuts there were."""
    cuts = 0
    async with Proxy(dsn) as proxy, connected(dsn) as direct:
        for place in places:
            cuts_before = proxy.cuts
            proxy.cut(place, CONNECTIONS)
            store = PostgresStore(proxy.dsn)
            ledger = Ledger(store)
            async with asyncio.timeout(GUARD):
                while not store.is_open:
                    with suppress(StoreError):
                        await store.open()
                await ledger.write()
            assert proxy.cuts > cuts_before or place > LONG_CONVERSATION
            proxy.heal()
            assert not await ledger.wrongs(), f"cut at byte {place}"
            await store.close()
            await no_open_transaction(dsn)
            await direct.execute(EMPTY)
            cuts += proxy.cuts - cuts_before
    await no_backends(dsn)
    return cuts


CONNECTIONS = 6
"""That are cut in a scene, one after the other: that of the opening, those of lanes, some of the pool."""
LONG_CONVERSATION = 2500
"""Bytes that no connection of a short scene need exceed."""
EMPTY = "; ".join(f"DELETE FROM jobs_async_{name}" for name in ("jobs", "queues", "nodes", "records"))


async def test_f4_a_connection_that_is_cut_at_some_byte_leaves_nothing_half_done(pg_dsn: str) -> None:
    await cut_at_each(pg_dsn, range(64, 4097, 700))


@pytest.mark.soak
@pytest.mark.timeout(1200)
async def test_f4_a_connection_that_is_cut_at_any_eighth_byte_leaves_nothing_half_done(
    pg_dsn: str, measured: Measured
) -> None:
    places = range(0, 4097, 8)
    cuts = await cut_at_each(pg_dsn, places)
    measured("F4, cut after N bytes", f"{len(places)} N from 0 to {places[-1]}, {cuts} connections cut", "half done 0")
