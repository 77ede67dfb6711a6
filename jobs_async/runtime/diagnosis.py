"""Why jobs do not run: what any store says of its queues, nodes and jobs, read for somebody who waits.

Every question is bounded: counts, and pages of jobs. What only one kind of store can know, its `diagnose` adds.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from jobs_async.core.health import Finding
from jobs_async.core.job import WAITING, Job, JobState
from jobs_async.core.query import MAX_PAGE, JobQuery
from jobs_async.core.store import Node, QueueInfo
from jobs_async.runtime.patience import in_time

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jobs_async.core.store import Clock, Store

SAMPLE = 100
"""Jobs of a queue, those that were stored first, which are looked at one by one."""
MAX_QUEUES = 50
"""Queues that are looked into, those with the most jobs that wait."""
LONG_WAIT = 30.0
"""Seconds a job may be due and wait before its queue counts as held up."""
LATE_BEAT = 15.0
"""Seconds since its last sign of life after which a node is worth a line: three heartbeats, by default."""
RESCUED_WITHIN = 60.0
"""Seconds after the last beat of a node within which others have rescued its jobs, by default."""
MAX_SKEW = 5.0
"""Seconds by which the clocks of this process and of the store may differ."""
MANY_RETRIES = 100

_SEVERITY = {"error": 0, "warning": 1, "info": 2}


async def diagnose(store: Store, clock: Clock) -> list[Finding]:
    """What keeps jobs from running, the worst first; one "jobs-flow" where nothing does.

    Raises:
        StoreError: the store does not answer.
    """
    scene, skewed = await _look(store, clock)
    found = [*skewed, *_of_nodes(scene), *await _of_orphans(store, scene), *_of_retries(scene)]
    waiting: list[_Line] = []
    for queue in scene.busiest():
        line = await _line(store, scene, queue)
        waiting += [line] if line.count else []
        found += await _of_queue(store, scene, line) if line.count else []
    known = {one.code for one in found}
    found += [one for one in await in_time(store.diagnose()) if one.code not in known]
    if all(one.level == "info" for one in found):
        found.append(_flow(scene, waiting))
    return sorted(found, key=lambda one: _SEVERITY[one.level])


class _Scene(Struct, frozen=True):
    """What there is at one moment, the store's own."""

    now: datetime
    counts: Mapping[tuple[str, JobState], int]
    said: Mapping[str, QueueInfo]
    nodes: Sequence[Node]

    @property
    def alive(self) -> list[Node]:
        return [node for node in self.nodes if node.alive]

    def servers(self, queue: str) -> list[Node]:
        return [node for node in self.alive if queue in node.queues]

    def busiest(self) -> list[str]:
        """The queues with the most jobs that wait, due or not."""
        waiting: Counter[str] = Counter()
        for (queue, state), count in self.counts.items():
            if state in WAITING:
                waiting[queue] += count
        return [queue for queue, _ in waiting.most_common(MAX_QUEUES)]

    def seconds_since(self, at: datetime) -> float:
        return max(0.0, (self.now - at).total_seconds())


class _Line(Struct, frozen=True):
    """The jobs of a queue that are due and wait: how many at least, those that came first, the longest wait."""

    queue: str
    count: int
    first: Sequence[Job[Any]]
    oldest: float

    def __str__(self) -> str:
        waits = "waits" if self.count == 1 else "wait"
        return f"{_jobs(self.count)} {waits} in queue {self.queue!r}, the oldest for {_span(self.oldest)}"


async def _look(store: Store, clock: Clock) -> tuple[_Scene, list[Finding]]:
    """The scene, and whether the store's time is ours: a stranger's beat changes nothing, and is answered with it."""
    before = clock.now()
    now = (await in_time(store.beat(Node(id=uuid.uuid4().hex), 0.0))).now
    after = clock.now()
    scene = _Scene(now, await in_time(store.tally()), await in_time(store.queues()), await in_time(store.nodes()))
    skew = (before - now if now < before else max(now, after) - after).total_seconds()
    if skew <= MAX_SKEW:
        return scene, []
    way = "ahead of" if now < before else "behind"
    text = f"this machine's clock is {_span(skew)} {way} the store's"
    advice = "set the clocks by NTP: jobs with scheduled_at= start that much too early or late, delay= is not affected"
    return scene, [Finding("warning", "clock-skew", text, advice)]


def _of_nodes(scene: _Scene) -> Iterator[Finding]:
    if not scene.alive:
        text = "no node is alive: nobody runs jobs"
        yield Finding("error", "no-live-node", text, "start one: jobs-async run APP, or the application that has it")
    for node in scene.alive:
        if node.beat_at is not None and (late := scene.seconds_since(node.beat_at)) > LATE_BEAT:
            text = f"{_named(node)} gave its last sign of life {_span(late)} ago"
            advice = "it is frozen, or cannot reach the store; when its lease runs out, others rescue its jobs"
            yield Finding("warning", "beat-late", text, advice)


async def _of_orphans(store: Store, scene: _Scene) -> list[Finding]:
    """Jobs of dead nodes that somebody should have rescued by now."""
    page = await in_time(store.select(JobQuery(orphaned=True, newest_first=False, limit=MAX_PAGE)))
    beaten = {node.id: node.beat_at for node in scene.nodes}
    left = [job for job in page if _dead_for(scene, job, beaten.get(job.node or "")) > RESCUED_WITHIN]
    if not left:
        return []
    count = _jobs(len(left), more=len(page) == MAX_PAGE)
    text = f"{count} of dead nodes still executing on paper, the first {left[0].id} ({left[0].worker})"
    if scene.alive:
        advice = "live nodes should rescue them every 10 s: look into their logs for `the search for lost jobs`"
    else:
        advice = "start a node: each looks for such jobs every 10 s, whatever queues it runs"
    return [Finding("error", "jobs-not-rescued", text, advice)]


def _dead_for(scene: _Scene, job: Job[Any], beaten: datetime | None) -> float:
    """Seconds since the job's node was heard of; it cannot have died before it claimed the job."""
    heard = [at for at in (beaten, job.attempted_at) if at is not None]
    return scene.seconds_since(max(heard)) if heard else 0.0


def _of_retries(scene: _Scene) -> Iterator[Finding]:
    by_queue = Counter(
        {queue: count for (queue, state), count in scene.counts.items() if state is JobState.retryable and count}
    )
    if by_queue.total() >= MANY_RETRIES:
        most = ", ".join(f"{queue} {count:,}" for queue, count in by_queue.most_common(3))
        text = f"{_jobs(by_queue.total())} failed and wait for another attempt ({most})"
        advice = "see why: jobs.find(JobQuery(states=[JobState.retryable])), and the last_error of each"
        yield Finding("info", "many-retries", text, advice)


# --- one queue ---


async def _line(store: Store, scene: _Scene, queue: str) -> _Line:
    first = await in_time(store.select(JobQuery(queue=queue, due=True, newest_first=False, limit=SAMPLE)))
    deferred = sum(job.state is not JobState.available for job in first)
    available = scene.counts.get((queue, JobState.available), 0)
    ages = [scene.seconds_since(max(job.scheduled_at, job.inserted_at)) for job in first]
    count = max(available, len(first) - deferred) + deferred if first else 0
    return _Line(queue, count, first, max(ages, default=0.0))


async def _of_queue(store: Store, scene: _Scene, line: _Line) -> list[Finding]:
    """Why the jobs of a queue that are due do not start."""
    if scene.said.get(line.queue, QueueInfo()).paused:
        advice = f"when they may run: await jobs.resume_queue({line.queue!r})"
        return [Finding("warning", "queue-paused", f"{line}: it is paused", advice)]
    servers = scene.servers(line.queue)
    if not servers and not scene.alive:
        return [Finding("error", "queue-not-served", str(line), "start a node, see above")]
    if not servers:
        advice = f"let a node run it: jobs-async run APP --queues {line.queue}, or queues= of its Supervisor"
        return [Finding("error", "queue-not-served", f"{line}, which no live node runs", advice)]
    found = list(_of_workers(scene, line, servers))
    if not found and line.oldest > LONG_WAIT:
        found.append(await _of_slots(store, line, servers))
    return found


def _of_workers(scene: _Scene, line: _Line, servers: Sequence[Node]) -> Iterator[Finding]:
    """Workers that are not where their jobs are."""
    known, here = _workers(scene.alive), _workers(servers)
    for worker, count in sorted(Counter(job.worker for job in line.first).items()):
        jobs = _jobs(count, more=len(line.first) == SAMPLE)
        if worker not in known:
            text = f"{jobs} in queue {line.queue!r} for worker {worker!r}, which no live node knows"
            advice = "register it where the queue is run, before the jobs are claimed: what nobody knows is discarded"
            yield Finding("error", "worker-unknown", text, advice)
        elif worker not in here:
            text = f"{jobs} in queue {line.queue!r} for worker {worker!r}, known only where this queue is not run"
            advice = "run the queue where the worker is registered, or register it where the queue is run"
            yield Finding("error", "worker-elsewhere", text, advice)


async def _of_slots(store: Store, line: _Line, servers: Sequence[Node]) -> Finding:
    """Where jobs wait for long although everything is there to run them."""
    query = JobQuery(states=[JobState.executing], queue=line.queue, limit=MAX_PAGE)
    page = await in_time(store.select(query))
    running = Counter(job.node for job in page)
    slots = sum(node.queues[line.queue] for node in servers)
    nodes = f"{len(servers)} node{'s' * (len(servers) > 1)}"
    if len(page) == MAX_PAGE or all(running[node.id] >= node.queues[line.queue] for node in servers):
        text = f"{line}: all {slots} slots on {nodes} are taken"
        advice = "raise the limit (jobs.scale_queue), start another process, or find out what takes so long"
        return Finding("warning", "queue-full", text, advice)
    text = f"{line}, although {nodes} run{'s' * (len(servers) == 1)} it and slots are free"
    advice = "jobs of higher priority come first; if there are none, look into the nodes' logs for a store that fails"
    return Finding("warning", "jobs-not-claimed", text, advice)


def _flow(scene: _Scene, waiting: Sequence[_Line]) -> Finding:
    count, oldest = sum(line.count for line in waiting), max((line.oldest for line in waiting), default=0.0)
    nodes = len(scene.alive)
    text = f"jobs flow: {count:,} waiting, oldest {oldest:.0f}s, {nodes} node{'s' * (nodes != 1)}"
    return Finding("info", "jobs-flow", text)


# --- words ---


def _workers(nodes: Iterable[Node]) -> set[str]:
    return {worker for node in nodes for worker in node.workers}


def _named(node: Node) -> str:
    return f"node {node.id[:8]} ({node.host or 'no host'}, process {node.pid})"


def _jobs(count: int, *, more: bool = False) -> str:
    return f"{count:,}{' or more' * more} job{'s' * (count != 1)}"


def _span(seconds: float) -> str:
    """A duration as one says it."""
    for size, unit in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
