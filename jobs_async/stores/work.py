"""What is done inside a transaction: statements in their order, each a question or a guarded write."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from jobs_async.core import lifecycle
from jobs_async.core.errors import UniqueConflict
from jobs_async.core.job import FINAL, Job, JobState
from jobs_async.core.lifecycle import NO_PATCH
from jobs_async.core.options import NewJob, UniqueStrategy
from jobs_async.core.store import Beat, Node, QueueInfo, Tick
from jobs_async.stores import rows

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jobs_async.core.lifecycle import Transition
    from jobs_async.stores.session import Params, Row, Session

TICKS_KEPT = timedelta(days=7)
DEAD_NODES_KEPT = 86_400.0
"""Seconds for which an expired lease can still be looked at."""


# --- jobs in ---


async def insert_plain(session: Session, new: Sequence[NewJob], now: datetime) -> list[Job[Any]]:
    """Insert jobs that carry no key."""
    if not new:
        return []
    jobs = [lifecycle.born(item, 0, now) for item in new]
    ids = sorted(row[0] for row in await session.batch("insert", [session.mapping.to_row(job) for job in jobs]))
    return [replace(job, id=job_id) for job, job_id in zip(jobs, ids, strict=True)]


async def insert_keyed(session: Session, new: Sequence[NewJob], tick: Tick | None, now: datetime) -> list[Job[Any]]:
    """Insert jobs that may carry keys, and spend their tick; all of them, or an error and none."""
    if tick is not None and not await _spend(session, tick):
        return []
    await session.hold(_keys(new))
    jobs: list[Job[Any]] = []
    for wave in _waves(new):
        jobs += await _insert_wave(session, wave, now)
    if tick is not None and jobs:
        await session.run("link_tick", {**_tick(session, tick), "job_id": jobs[0].id})
    return jobs


def _keys(new: Sequence[NewJob]) -> list[str]:
    """Every key that a batch is about to take, told apart by its kind."""
    unique = [unique_hold(item.unique_key) for item in new if item.unique_key is not None]
    return [*unique, *(f"idempotency {rows.dumps(pair)}" for item in new if (pair := _idempotent(item)))]


def unique_hold(key: str) -> str:
    """What is held so that nobody else can take a unique key."""
    return f"unique {key}"


def _waves(new: Sequence[NewJob]) -> list[list[NewJob]]:
    """Cut a batch wherever a key comes again, so that within a wave each job meets only what is stored."""
    waves: list[list[NewJob]] = [[]]
    seen: set[object] = set()
    for item in new:
        keys = {key for key in (item.unique_key, _idempotent(item)) if key is not None}
        if seen & keys:
            waves.append([])
            seen = set()
        seen |= keys
        waves[-1].append(item)
    return waves


async def _insert_wave(session: Session, wave: Sequence[NewJob], now: datetime) -> list[Job[Any]]:
    live, stored = await _twins(session, wave)
    found: dict[int, Job[Any]] = {}
    replaced: dict[int, Job[Any]] = {}
    gone: dict[int, Job[Any]] = {}
    for index, item in enumerate(wave):
        same = stored.get(_idempotent(item))
        holder = live.get(item.unique_key)
        if same is not None:
            found[index] = replace(gone.get(same.id, same), duplicate=True)
        elif holder is None:
            continue
        elif item.unique_strategy is UniqueStrategy.IGNORE_NEW:
            found[index] = replace(holder, duplicate=True)
        elif item.unique_strategy is UniqueStrategy.REJECT:
            raise UniqueConflict(holder)
        else:
            replaced[index] = holder
            gone[holder.id] = lifecycle.replaced(holder, now)
    if replaced:
        await session.batch("apply", [session.mapping.to_change(job, gone[job.id]) for job in replaced.values()])
    fresh = iter(await insert_plain(session, [item for index, item in enumerate(wave) if index not in found], now))
    jobs = [found[index] if index in found else next(fresh) for index in range(len(wave))]
    for index, old in replaced.items():
        jobs[index] = replace(jobs[index], replaces=old.id)
    return jobs


async def _twins(
    session: Session, wave: Sequence[NewJob]
) -> tuple[dict[str | None, Job[Any]], dict[tuple[str, str] | None, Job[Any]]]:
    """The live jobs that hold the wave's unique keys, and the jobs that have its idempotency keys."""
    unique = [item.unique_key for item in wave if item.unique_key is not None]
    idempotent = [pair for item in wave if (pair := _idempotent(item)) is not None]
    if not unique and not idempotent:
        return {}, {}
    keys = {"unique_keys": rows.dumps(unique), "idempotency_keys": rows.dumps(idempotent)}
    jobs = [session.mapping.to_job(row) for row in await session.run("twins", keys)]
    live: dict[str | None, Job[Any]] = {
        job.unique_key: job for job in jobs if job.unique_key is not None and job.state not in FINAL
    }
    stored: dict[tuple[str, str] | None, Job[Any]] = {
        (job.worker, job.idempotency_key): job for job in jobs if job.idempotency_key is not None
    }
    return live, stored


def _idempotent(item: NewJob) -> tuple[str, str] | None:
    return None if item.idempotency_key is None else (item.worker, item.idempotency_key)


async def _spend(session: Session, tick: Tick) -> bool:
    if not await session.run("spend_tick", {**_tick(session, tick), "late": tick.late}):
        return False
    before = session.mapping.stamp(tick.at - TICKS_KEPT)
    await session.run("forget_ticks", {"name": tick.name, "before": before})
    return True


def _tick(session: Session, tick: Tick) -> dict[str, object]:
    return {"name": tick.name, "at": session.mapping.stamp(tick.at)}


# --- what becomes of them ---


class Batch:
    """Transitions to be applied in order, cut into stretches that one statement each can write."""

    __slots__ = ("relives", "stretches")

    def __init__(self, steps: Sequence[Transition]) -> None:
        self.stretches = _stretches(steps)
        self.relives = [step for step in steps if step.job.unique_key and step.job.state in FINAL]

    def is_single(self, max_rows: int) -> bool:
        """Is applying these one statement, where it takes up to `max_rows`?"""
        return len(self.stretches) == 1 and len(self.stretches[0]) <= max_rows and not self.relives


async def apply_steps(session: Session, batch: Batch, now: datetime) -> list[Job[Any] | None]:
    """Compare and set, in order; a second step for a job may build on the first, so it is a statement of its own."""
    if batch.relives:
        await _refuse_second_life(session, batch.relives)
    return [job for stretch in batch.stretches for job in await _apply_alike(session, stretch, now)]


async def apply_within(session: Session, steps: Sequence[Transition], now: datetime) -> list[Job[Any] | None]:
    """As `apply_steps`, in a transaction that goes on: its keys are held before its rows, as an insert holds them, or
    two transactions could wait for each other.
    """
    await session.hold([unique_hold(step.job.unique_key) for step in steps if step.job.unique_key is not None])
    return await apply_steps(session, Batch(steps), now) if steps else []


def _stretches(steps: Sequence[Transition]) -> list[list[Transition]]:
    """Consecutive steps of one kind and without a job named twice."""
    stretches: list[list[Transition]] = []
    seen: set[int] = set()
    kind = None
    for step in steps:
        ends = _just_ends(step)
        if ends is not kind or step.job.id in seen:
            kind = ends
            seen.clear()
            stretches.append([])
        seen.add(step.job.id)
        stretches[-1].append(step)
    return stretches


def _just_ends(step: Transition) -> bool:
    """A run that has come to its end: most steps are, and need to touch few columns, so few indexes."""
    return (
        step.job.state is JobState.executing
        and step.target in FINAL
        and step.patch is NO_PATCH
        and not step.attempt_delta
        and not step.rescue_delta
    )


async def _apply_alike(session: Session, steps: Sequence[Transition], now: datetime) -> list[Job[Any] | None]:
    """In the order of their ids: two who lock the same rows in opposite orders would wait for each other."""
    after = [lifecycle.advance(step.job, step, now) for step in steps]
    if _just_ends(steps[0]):
        ends = [session.mapping.to_end(step, job) for step, job in zip(steps, after, strict=True)]
        found = await session.batch("end", sorted(ends))
    else:
        changes = [session.mapping.to_change(step.job, job, step) for step, job in zip(steps, after, strict=True)]
        found = await session.batch("apply", sorted(changes))
    written = {row[0]: row for row in found}
    return [_as_written(job, written.get(job.id)) for job in after]


def _as_written(job: Job[Any], row: Row | None) -> Job[Any] | None:
    """The record with what patches of others have made of it meanwhile."""
    if row is None:
        return None
    _, args_json, priority, progress = row
    if progress is None and job.progress is None and priority == job.priority and args_json == job.args_json:
        return job
    return replace(job, args_json=args_json, priority=priority, progress=rows.to_progress(progress))


async def _refuse_second_life(session: Session, steps: Sequence[Transition]) -> None:
    """Two live jobs of one unique key must not come to be by running a finished one again."""
    back = [step for step in steps if step.target not in FINAL]
    if not back:
        return
    taken_up = [step.job.unique_key for step in back if step.job.unique_key is not None]
    await session.hold([unique_hold(key) for key in taken_up])
    keys = {"unique_keys": rows.dumps(taken_up), "idempotency_keys": "[]"}
    holders = [session.mapping.to_job(row) for row in await session.run("twins", keys)]
    asked = {"ids": rows.dumps([step.job.id for step in back])}
    stored = [session.mapping.to_job(row) for row in await session.run("by_ids", asked)]
    fresh = {job.id: job for job in stored}
    taken = {job.unique_key: job for job in holders if job.state not in FINAL}  # it may have ended as we waited for it
    for step in back:
        row = fresh.get(step.job.id)
        if row is None or not lifecycle.fits(row, step.job):
            continue
        holder = taken.setdefault(row.unique_key, row)
        if holder.id != row.id:
            raise UniqueConflict(holder)


# --- queues and nodes ---


def to_queues(found: Sequence[Row]) -> dict[str, QueueInfo]:
    """What was said about queues, by name."""
    return {name: QueueInfo(bool(paused), slots) for name, paused, slots in found}


async def set_queue(session: Session, name: str, paused: bool | None, limit: int | None) -> bool:
    """Say something about a queue; whether that changed anything."""
    await session.hold([f"queue {name}"])
    before = to_queues(await session.run("queues")).get(name, QueueInfo())
    after = before.updated(paused, limit)
    await session.run("set_queue", {"name": name, "paused": after.paused, "slots": after.limit})
    return after != before


async def beat(session: Session, node: Node, ttl: float, now: datetime, lease: Params, *, join: bool) -> Beat:
    """Write a sign of life, and read what it is answered with; `lease` is the time by which leases are judged."""
    life = {**lease, "id": node.id, "ttl": ttl, "now": session.mapping.stamp(now), "info": rows.dumps(node)}
    if join:
        await session.run("forget_nodes", {**lease, "kept": DEAD_NODES_KEPT})
    alive = bool(await session.run("join_node" if join else "renew_node", life))
    asked: Sequence[Row] = await session.run("asked_to_cancel", {"id": node.id}) if alive else []
    return Beat(alive and ttl > 0, now, tuple(job_id for (job_id,) in asked))
