"""F5: one of two nodes is cut off from the server for longer than its lease, and comes back."""

from __future__ import annotations

import asyncio
import ctypes
import os
import subprocess
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from jobs_async import Draft, JobContext, JobOpts, StaleSettlement, Supervisor
from jobs_async.stores.postgres import PostgresStore
from tests.conftest import Measured
from tests.postgres.node import GUARD, Node, pace
from tests.postgres.proxy import Proxy
from tests.postgres.remains import no_backends
from tests.postgres.remains import nothing_left as nothing_left
from tests.postgres.support import ask, until

RUNNING = 4
"""Jobs that the one is running when it is cut off."""
WAITING = 6
"""Jobs that wait meanwhile in a queue that nobody else runs."""

pytestmark = pytest.mark.usefixtures("nothing_left")

Act = Callable[[], Awaitable[object]]


class Away(NamedTuple):
    """A way to the server that can be shut."""

    dsn: str
    enter: Callable[[], object]
    shut: Act
    heal: Act


@asynccontextmanager
async def behind_a_proxy(dsn: str) -> AsyncGenerator[Away]:
    async with Proxy(dsn) as proxy:

        async def shut() -> None:
            proxy.freeze()

        async def heal() -> None:
            proxy.heal()

        yield Away(proxy.dsn, lambda: None, shut, heal)


class Pair:
    """What the two nodes run, and who ran what."""

    def __init__(self) -> None:
        self.runs: Counter[tuple[str, str]] = Counter()
        self.over = asyncio.Event()

    def register(self, name: str) -> Callable[[Supervisor], object]:
        async def work(key: str, ctx: JobContext) -> None:
            self.runs[name, key] += 1
            if key == "held" and name == "first":
                await asyncio.sleep(HOLD)

        return lambda jobs: jobs.register_worker("work", work)


HOLD = 0.5
"""Seconds a job runs on the one that is cut off: it ends while nothing passes."""

IDS = "SELECT id FROM jobs_async_nodes WHERE expires_at > clock_timestamp()"
CLAIMED = "SELECT count(*) FROM jobs_async_jobs WHERE queue = 'only first' AND node = $1"
RESCUED = """
    SELECT count(*), min(extract(epoch FROM attempted_at)), max(extract(epoch FROM attempted_at))
    FROM jobs_async_jobs WHERE queue = 'default' AND attempt = 2 AND state = 2
"""
ALL_DONE = "SELECT count(*) FROM jobs_async_jobs WHERE state = 2"
NOW = "SELECT extract(epoch FROM clock_timestamp())"


class Seen(NamedTuple):
    rescued_after: tuple[float, float]
    """Seconds from the cut to the first and to the last second run."""
    claimed: int
    """Jobs that the node has claimed whose lease had run out."""
    refused: int


async def cut_off(dsn: str, away: Away, lease: float) -> Seen:
    """For three leases, with claims, signs of life and outcomes under way."""
    pair = Pair()
    both: dict[str, Any] = {"queues": {"default": RUNNING}, **pace(lease)}
    here = {**both, "queues": {"default": RUNNING, "only first": RUNNING}}

    async def is_done() -> bool:
        return await ask(dsn, ALL_DONE) == [(RUNNING + WAITING,)]

    async def are_running() -> bool:
        return pair.runs["first", "held"] == RUNNING

    async def are_refused() -> bool:
        return len(first.of(StaleSettlement)) == RUNNING

    async with (
        Node(away.dsn, pair.register("first"), enter=away.enter, **here) as first,
        Supervisor(PostgresStore(dsn), queues={}) as asking,
    ):
        ((old,),) = await ask(dsn, IDS)
        await asking.enqueue_many([Draft("work", "held")] * RUNNING)
        await until(are_running)
        await away.shut()
        ((shut_at,),) = await ask(dsn, NOW)
        async with Node(dsn, pair.register("second"), **both):
            await asking.enqueue_many([Draft("work", "waiting", JobOpts(queue="only first"))] * WAITING)
            await asyncio.sleep(3 * lease)
            await away.heal()
            await until(are_refused, GUARD)
            await until(is_done, GUARD)
        ((rescued, earliest, latest),) = await ask(dsn, RESCUED)
        assert rescued == RUNNING
        ((claimed,),) = await ask(dsn, CLAIMED, old)
    await no_backends(dsn)
    assert pair.runs == {("first", "held"): RUNNING, ("second", "held"): RUNNING, ("first", "waiting"): WAITING}
    return Seen((float(earliest - shut_at), float(latest - shut_at)), claimed, len(first.of(StaleSettlement)))


async def test_f5_a_node_that_is_cut_off_claims_nothing_and_settles_nothing_once_its_lease_has_run_out(
    pg_dsn: str,
) -> None:
    async with behind_a_proxy(pg_dsn) as away:
        seen = await cut_off(pg_dsn, away, lease=1.0)
    assert (seen.claimed, seen.refused) == (0, RUNNING)


# --- a real network ---

_CLONE_NEWNET = 0x40000000
HERE, THERE = "10.231.7.1", "10.231.7.2"


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextmanager
def network() -> Iterator[str]:
    """A namespace with an address of its own, and a wire between the two; the wire's name on this side."""
    name, wire = f"jobs-{os.getpid()}", f"jv{os.getpid() % 100_000}"
    ip("netns", "add", name)
    try:
        ip("link", "add", wire, "type", "veth", "peer", "name", "far", "netns", name)
        ip("addr", "add", f"{HERE}/30", "dev", wire)
        ip("link", "set", wire, "up")
        ip("-n", name, "addr", "add", f"{THERE}/30", "dev", "far")
        ip("-n", name, "link", "set", "far", "up")
        yield wire
    finally:
        ip("netns", "del", name)


def enter() -> None:
    """Have the sockets of this thread, and of those it starts, be in the namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/run/netns/jobs-{os.getpid()}").open() as there:
        if libc.setns(there.fileno(), _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_f5_a_node_whose_wire_is_pulled(pg_dsn: str, measured: Measured) -> None:
    lease, cycles, seen = 2.0, 10, list[Seen]()
    for _ in range(cycles):
        await ask(pg_dsn, "DROP SCHEMA public CASCADE")
        await ask(pg_dsn, "CREATE SCHEMA public")
        with network() as wire:
            async with Proxy(pg_dsn, HERE) as relay:

                async def shut(wire: str = wire) -> None:
                    ip("link", "set", wire, "down")

                async def heal(wire: str = wire) -> None:
                    ip("link", "set", wire, "up")

                seen.append(await cut_off(pg_dsn, Away(relay.dsn, enter, shut, heal), lease))
    first, last = min(one.rescued_after[0] for one in seen), max(one.rescued_after[1] for one in seen)
    refused = sum(one.refused for one in seen)
    measured(
        "F5, the wire is pulled",
        f"{cycles} times for {3 * lease:g} s, lease {lease:g} s",
        f"claims of the dead 0, rescued after {first:.1f} to {last:.1f} s, late outcomes refused "
        f"{refused} of {cycles * RUNNING}",
    )
    assert not sum(one.claimed for one in seen)
    assert refused == cycles * RUNNING
    assert last <= 2 * lease + 1, "and a second for a busy machine"
