"""What handlers wrote down, what the store says, and what must be true of the two together.

A ledger is a file of lines `KIND id attempt claim pid ns node`, each appended by one write, so that a kill leaves whole
lines; where a job has no node there is none. The kinds: A a job was accepted, B a handler began, E it came to its end,
X it was broken off by an error or a cancellation, S its settlement was refused as stale, K a process was killed. Times
are nanoseconds since boot, the clock by which leases are judged.

Calls to enqueue are lines `KIND number size caller pid ns`: T one was tried, Y it was answered.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from jobs_async.core.job import FINAL, LIVE, Job, JobState

SECOND = 1_000_000_000


def now() -> int:
    """Nanoseconds since boot, alike in every process."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Ledger:
    """Where processes write down what they do."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def mark(self, kind: str, *jobs: Job[Any]) -> None:
        at = f"{os.getpid()} {now()}"
        lines = [f"{kind} {job.id} {job.attempt} {job.claim} {at} {job.node or ''}".rstrip() for job in jobs]
        os.write(self._file, "".join(f"{line}\n" for line in lines).encode())

    def killed(self, pid: int) -> None:
        os.write(self._file, f"K 0 0 0 {pid} {now()}\n".encode())

    def call(self, kind: str, number: int, size: int, caller: int) -> None:
        """A call to enqueue so many jobs was made, or answered."""
        os.write(self._file, f"{kind} {number} {size} {caller} {os.getpid()} {now()}\n".encode())

    @property
    def length(self) -> int:
        """Where the next line begins."""
        return os.fstat(self._file).st_size

    def close(self) -> None:
        os.close(self._file)


class Mark(NamedTuple):
    kind: str
    id: int
    attempt: int
    claim: int
    pid: int
    ns: int
    node: str | None = None


def marks(lines: Iterable[str]) -> Iterator[Mark]:
    for line in lines:
        kind, *rest = line.split()
        job_id, attempt, claim, pid, ns = map(int, rest[:5])
        yield Mark(kind, job_id, attempt, claim, pid, ns, *rest[5:])


@dataclass
class Run:
    """One call of a handler."""

    id: int
    attempt: int
    claim: int
    pid: int
    began: int
    node: str | None = None
    ended: int | None = None
    broken_off: int | None = None

    def is_over(self, at: int) -> bool:
        """Whether the handler did nothing any more at that time, however it ended."""
        over = self.broken_off if self.ended is None else self.ended
        return over is not None and over <= at


class Row(NamedTuple):
    """What the store says of a job."""

    id: int
    state: JobState
    attempt: int
    claim: int
    rescues: int
    node: str | None
    unique_key: str | None


class Node(NamedTuple):
    """A process under one id, and the instant at which its lease runs out, or ran out for good."""

    host: str
    pid: int
    expires: int


class Snapshot(NamedTuple):
    """All that a store says at one moment."""

    at: int
    rows: dict[int, Row]
    nodes: dict[str, Node]


@dataclass
class History:
    """All that is known of some jobs, from both sides."""

    lease: float
    at: int = field(default_factory=now)
    accepted: set[int] = field(default_factory=set)
    runs: dict[int, list[Run]] = field(default_factory=dict)
    killed: dict[int, int] = field(default_factory=dict)
    stale: list[Mark] = field(default_factory=list)
    rows: dict[int, Row] = field(default_factory=dict)
    nodes: Mapping[str, Node] = field(default_factory=dict)

    def note(self, lines: Iterable[Mark]) -> None:
        """Take in the lines of a ledger."""
        open_runs: dict[tuple[int, int, int], Run] = {}
        for mark in lines:
            key = mark.id, mark.claim, mark.pid
            match mark.kind:
                case "A":
                    self.accepted.add(mark.id)
                case "B":
                    open_runs[key] = Run(mark.id, mark.attempt, mark.claim, mark.pid, mark.ns, mark.node)
                    self.runs.setdefault(mark.id, []).append(open_runs[key])
                case "E":
                    open_runs[key].ended = mark.ns
                case "X":
                    open_runs[key].broken_off = mark.ns
                case "S":
                    self.stale.append(mark)
                case "K":
                    self.killed[mark.pid] = mark.ns

    def look(self, snapshot: Snapshot) -> None:
        """Take in what the store says."""
        self.at, self.rows, self.nodes = snapshot

    def repeated(self) -> list[tuple[Run, Run]]:
        """Runs of a job that was claimed before, each with the one of the claim before it.

        That one may have begun later: where a process stood still between a claim and its begin.
        """
        return [pair for runs in self.runs.values() for pair in pairwise(sorted(runs, key=lambda run: run.claim))]

    @property
    def pids(self) -> set[int]:
        """The processes that ran anything."""
        return {run.pid for runs in self.runs.values() for run in runs}

    def counts(self) -> dict[str, int]:
        """How many jobs are in which state."""
        return dict(Counter(row.state.name for row in self.rows.values()))


# --- the invariants: each yields what contradicts it ---


def I1(history: History) -> Iterator[str]:
    """Every accepted job ends in a final state."""
    for job_id in history.accepted:
        row = history.rows.get(job_id)
        if row is None:
            yield f"job {job_id} was accepted and is not in the store"
        elif row.state not in FINAL:
            yield f"job {job_id} is {row.state.name}"


def I2(history: History) -> Iterator[str]:
    """A completed job came to its end at least once."""
    for row in history.rows.values():
        if row.state is JobState.completed and all(run.ended is None for run in history.runs.get(row.id, [])):
            yield f"job {row.id} is completed and never came to its end"


def I3(history: History) -> Iterator[str]:
    """A job has no more runs than attempts, save those broken off, which may be refunded; and no claim has two."""
    for job_id, runs in history.runs.items():
        attempts = history.rows[job_id].attempt if job_id in history.rows else 0
        if len([run for run in runs if run.broken_off is None]) > attempts:
            yield f"job {job_id} ran {len(runs)} times in {attempts} attempts"
        if len({run.claim for run in runs}) < len(runs):
            yield f"job {job_id} ran twice under one claim"


def I4(history: History) -> Iterator[str]:
    """A run begins before the one before it has ended only where the lease of that one's node has run out by then."""
    by_pid: dict[int, int] = {}
    for node in history.nodes.values():
        by_pid[node.pid] = min(node.expires, by_pid.get(node.pid, node.expires))
    for first, second in history.repeated():
        owner = history.nodes.get(first.node or "")
        expires = by_pid.get(first.pid, history.at) if owner is None else owner.expires
        if not first.is_over(second.began) and second.began < expires:
            early = (expires - second.began) / SECOND
            yield f"job {second.id} ran again {early:.3f} s before process {first.pid} was taken for dead"


def I5(history: History) -> Iterator[str]:
    """The row is that of the highest claim, and a completed one's is the claim of a run that came to its end."""
    for row in history.rows.values():
        runs = history.runs.get(row.id, [])
        highest = max((run.claim for run in runs), default=0)
        if highest > row.claim:
            yield f"job {row.id} ran under claim {highest} and its row says {row.claim}"
        if row.state is JobState.completed and all(run.claim != row.claim or run.ended is None for run in runs):
            yield f"job {row.id} is completed under claim {row.claim}, which came to no end"


def I6(history: History) -> Iterator[str]:
    """No two live jobs have one unique key."""
    live = Counter(row.unique_key for row in history.rows.values() if row.unique_key and row.state in LIVE)
    for key, count in live.items():
        if count > 1:
            yield f"{count} live jobs have the key {key}"


def I8(history: History) -> Iterator[str]:
    """Nothing executes in the name of a node that has been dead for two leases: whose lease ran out one lease ago."""
    for row in history.rows.values():
        if row.state is not JobState.executing or row.node is None:
            continue
        expires = history.nodes[row.node].expires if row.node in history.nodes else 0
        late = (history.at - expires) / SECOND
        if late > history.lease:
            yield f"job {row.id} executes on a node whose lease ran out {late:.1f} s ago"


ALWAYS = (I6, I8)
"""What holds at every instant and needs the store alone."""
FINALLY = (I1, I2, I3, I4, I5, I6, I8)
"""What holds when all is done."""


def violations(history: History, invariants: Iterable[Any] = FINALLY) -> list[str]:
    return [f"{invariant.__name__}: {text}" for invariant in invariants for text in invariant(history)]
