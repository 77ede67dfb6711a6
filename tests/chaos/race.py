"""F17: unique and idempotency keys while processes insert, withdraw, repeat, delete, run and die."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Coroutine, Sequence
from functools import partial
from random import Random
from typing import Any

from jobs_async import (
    Cancel,
    ConstantBackoff,
    Discard,
    Draft,
    IllegalTransition,
    Job,
    JobNotFound,
    JobOpts,
    JobQuery,
    JobState,
    Snooze,
    StoreBusy,
    Supervisor,
    UniqueConflict,
    UniqueStrategy,
)
from jobs_async.core.job import LIVE, replace
from tests.chaos.database import PATIENCE, Database
from tests.chaos.fleet import Fleet, Place, until_asked_to_stop
from tests.chaos.ledger import I1, I2, I5, I6, I8, violations
from tests.chaos.scenario import Report, main

LIMIT = 8
WORKERS = "left", "right"
"""Each has idempotency keys of its own; they share the unique ones."""
REACH = 300
"""How many of the latest jobs are meddled with."""
BULK = 8
"""The most jobs of one call."""

HIDDEN = "IntegrityError", "UNIQUE", "UniqueViolation", "Deadlock", "Serialization"
"""What a database says when transactions meet; nobody must hear it, nor find it in a log."""

NAMED, GONE, AGAIN, ASKED, WITHDRAWN = "N", "G", "R", "Q", "C"
"""Kinds of marks beside the ledger's own: an answer named this job; somebody is about to delete it, to run it again, or
to ask it to end; it was cancelled or replaced while it waited or ran."""

logger = logging.getLogger("chaos")


def race(
    place: Place, *, procs: int = 4, tasks: int = 50, keys: int = 2000, jobs: int = 10_000, kills: int = 20
) -> Report:
    """Kill a process each time its share of `jobs` has been inserted, and start another in its place."""
    dice, reader = place.dice(), Reader(place.database)
    wrong: list[str] = []
    with Fleet(place) as fleet:
        racers = [fleet.start(take_part, tasks, keys) for _ in range(procs)]
        for number in range(1, kills + 1):
            fleet.until("more is inserted", partial(reader.sees, jobs * number // (kills + 1)))
            index = dice.randrange(procs)
            fleet.kill(racers[index])
            wrong += place.check_now()
            racers[index] = fleet.start(take_part, tasks, keys)
        fleet.until("all is inserted", lambda: reader.sees(jobs))
        place.enough()
        fleet.until("all jobs have ended", lambda: reader.sees(jobs) and place.is_done(), 2 * PATIENCE)
        fleet.stop()
        reader.sees(jobs)
    answers = Answers(place)
    return {
        "inserted": reader.inserted,
        "looks": reader.looks,
        "deadlocks": place.database.deadlocks(),
        **answers.counts,
        "violations": [*wrong, *sorted(reader.wrong), *answers.wrong, *_complaints(place)],
    }


def _complaints(place: Place) -> list[str]:
    """Errors that reached a caller, and broken constraints wherever they were logged."""
    texts = [(line["logger"], line["text"]) for line in place.logged()]
    return [text for who, text in texts if who == logger.name or any(word in text for word in HIDDEN)]


class Reader:
    """Looks at the rows themselves, not through the indexes that are to keep them apart, a snapshot at a time."""

    TWINS = """
        SELECT 'live jobs have the unique key ' || unique_key, count(*) FROM {jobs}
        WHERE unique_key IS NOT NULL AND state IN (0, 1, 3, 6) GROUP BY unique_key HAVING count(*) > 1
        UNION ALL
        SELECT 'jobs of ' || worker || ' have the idempotency key ' || idempotency_key, count(*)
        FROM {jobs}
        WHERE idempotency_key IS NOT NULL GROUP BY worker, idempotency_key HAVING count(*) > 1
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self.looks = self.inserted = 0
        self.wrong: set[str] = set()

    def sees(self, jobs: int) -> bool:
        """Look once; whether so many jobs have been inserted by now."""
        twins = self._database.ask(self.TWINS.format(jobs=self._database.jobs))
        self.wrong |= {f"{count} {what}" for what, count in twins}
        [(self.inserted,)] = self._database.ask(self._database.last_id)
        self.looks += 1
        return self.inserted >= jobs


class Answers:
    """What callers were told, beside what the file says in the end."""

    def __init__(self, place: Place) -> None:
        told: dict[str, list[int]] = {kind: [] for kind in "ABEKSX" + NAMED + GONE + AGAIN + ASKED + WITHDRAWN}
        for mark in place.marks():
            told[mark.kind].append(mark.id)
        history = place.history()
        gone, again, rows = set(told[GONE]), set(told[AGAIN]), history.rows
        history.accepted -= gone
        self.wrong = violations(history, (I1, I2, I5, I6, I8))
        for job_id in set(told[NAMED]) - gone - rows.keys():
            self.wrong.append(f"job {job_id} was named by an answer and never existed")
        for job_id in (set(told[WITHDRAWN]) & rows.keys()) - again:
            if rows[job_id].state is not JobState.cancelled:
                self.wrong.append(f"job {job_id} was cancelled and is {rows[job_id].state.name} in the end")
        self.counts = {
            "accepted": len(told["A"]),
            "named": len(told[NAMED]),
            "withdrawn": len(told[WITHDRAWN]),
            "again": len(told[AGAIN]),
            "deleted": len(told[GONE]),
            "refused": len(history.stale),
            "rescued": sum(row.rescues > 0 for row in rows.values()),
            "states": history.counts(),
        }


# --- inside the processes ---


async def take_part(place: Place, tasks: int, keys: int) -> None:
    """Race until it is enough, and go on working until asked to stop."""
    workers = [
        place.worker(name, partial(live, place.dice()), retry_strategy=ConstantBackoff(0.05)) for name in WORKERS
    ]
    async with place.supervisor(*workers, limit=LIMIT, max_rescues=50) as jobs:
        async with asyncio.TaskGroup() as group:
            racer = Racer(place, jobs, keys)
            for _ in range(tasks):
                group.create_task(racer.race())
        await until_asked_to_stop()


async def live(dice: Random, _args: object) -> None:
    """One run, in one of the ways that a run can go; one in five is long enough to be met while it runs."""
    fate = dice.random()
    await asyncio.sleep(0.5 if fate > 0.8 else 0.005 * fate)
    if fate < 0.1:
        raise Snooze(fate)
    if fate < 0.3:
        raise RuntimeError("tried again soon")
    if fate < 0.35:
        raise dice.choice([Cancel, Discard])


class Racer:
    """Does any of the things that can be done to jobs, and notes the answers."""

    def __init__(self, place: Place, jobs: Supervisor, keys: int) -> None:
        self._place = place
        self._jobs = jobs
        self._keys = keys
        self._dice = place.dice()
        self._latest = 0

    async def race(self) -> None:
        """One thing after the other; only the errors that a caller must expect are taken for answers."""
        deeds = {
            self._insert: 12,
            self._insert_many: 4,
            self._cancel: 2,
            self._retry: 4,
            self._delete: 2,
            self._cancel_many: 1,
            self._retry_many: 1,
            self._delete_many: 1,
        }
        while not self._place.is_enough:
            [deed] = self._dice.choices(list(deeds), list(deeds.values()))
            await self._unharmed(deed())

    async def _unharmed(self, deed: Coroutine[Any, Any, None]) -> None:
        try:
            await deed
        except (JobNotFound, IllegalTransition, StoreBusy):
            pass
        except Exception as error:
            logger.exception("raised to a caller: %s", type(error).__name__)

    # --- jobs in ---

    async def _insert(self) -> None:
        await self._enqueue([self._draft(self._key())])

    async def _insert_many(self) -> None:
        """Few keys for many jobs: some meet each other in the batch."""
        keys = [self._key() for _ in range(self._dice.randint(1, BULK // 2))]
        await self._enqueue([self._draft(self._dice.choice(keys)) for _ in range(self._dice.randint(2, BULK))])

    def _key(self) -> int:
        """Some keys are used far more than others."""
        return int(self._keys * self._dice.random() ** 3)

    def _draft(self, key: int) -> Draft[Any]:
        """An even key is a unique one, an odd one an idempotency key; a few jobs have both."""
        dice = self._dice
        options: dict[str, Any] = {"delay": dice.uniform(0, 0.5)} if dice.random() < 0.2 else {}
        both = dice.random() < 0.1
        if both or key % 2 == 0:
            options |= {"unique_key": f"key-{key // 2}", "unique_strategy": dice.choice(list(UniqueStrategy))}
        if both or key % 2:
            options["idempotency_key"] = f"key-{key // 2}"
        return Draft(dice.choice(WORKERS), None, JobOpts(**options))

    async def _enqueue(self, drafts: Sequence[Draft[Any]]) -> None:
        try:
            jobs = await self._jobs.enqueue_many(drafts)
        except UniqueConflict as conflict:
            self._check_conflict(drafts, conflict.job)
            return
        self._latest = max(self._latest, *(job.id for job in jobs))
        for draft, job in zip(drafts, jobs, strict=True):
            self._check_answer(draft.opts, job)
        ledger = self._place.ledger
        ledger.mark("A", *(job for job in jobs if not job.duplicate))
        ledger.mark(NAMED, *(job for job in jobs if job.duplicate))
        ledger.mark(WITHDRAWN, *(replace(job, id=job.replaces) for job in jobs if job.replaces is not None))

    def _check_answer(self, opts: JobOpts, job: Job[Any]) -> None:
        """Whoever is named in place of a new job has its idempotency key; or has its unique one, is live and let be."""
        if not job.duplicate:
            is_right = (job.unique_key, job.idempotency_key) == (opts.unique_key, opts.idempotency_key)
        elif opts.idempotency_key is not None and job.idempotency_key == opts.idempotency_key:
            is_right = True
        else:
            is_right = opts.unique_strategy is UniqueStrategy.IGNORE_NEW and _holds(job, opts.unique_key)
        if not is_right:
            logger.error("%r was answered with %r under %s", opts.given, job, (job.unique_key, job.idempotency_key))

    def _check_conflict(self, drafts: Sequence[Draft[Any]], twin: Job[Any]) -> None:
        """One of these jobs was to be refused, and the twin is live under its key.

        A twin out of the same batch went with it, so only one whose key the batch has once must have existed.
        """
        met = Counter(draft.opts.unique_key for draft in drafts)
        strict = {draft.opts.unique_key for draft in drafts if draft.opts.unique_strategy is UniqueStrategy.REJECT}
        if twin.unique_key not in strict or not _holds(twin, twin.unique_key):
            logger.error("refused because of %r under %s, wanted %s", twin, twin.unique_key, strict)
        elif met[twin.unique_key] == 1:
            self._place.ledger.mark(NAMED, twin)

    # --- what becomes of them ---

    def _some_id(self) -> int:
        return self._dice.randint(max(0, self._latest - REACH), self._latest)

    async def _some_job(self) -> Job[Any]:
        return await self._jobs.get(self._some_id())

    async def _some_jobs(self, kind: str) -> JobQuery:
        """Whoever they are, it is marked what is about to happen to them."""
        jobs = await self._jobs.find(JobQuery(ids=[self._some_id() for _ in range(BULK)]))
        self._place.ledger.mark(kind, *jobs)
        return JobQuery(ids=[job.id for job in jobs], states=list(JobState))

    async def _cancel(self) -> None:
        job = await self._jobs.cancel(await self._some_job())
        if job.state is JobState.cancelled:
            self._place.ledger.mark(WITHDRAWN, job)

    async def _retry(self) -> None:
        job = await self._some_job()
        self._place.ledger.mark(AGAIN, job)
        try:
            await self._jobs.retry(job)
        except UniqueConflict as conflict:
            self._place.ledger.mark(NAMED, conflict.job)
            if conflict.job.id == job.id or not _holds(conflict.job, job.unique_key):
                logger.error("%r was not run again because of %r", job, conflict.job)

    async def _delete(self) -> None:
        job = await self._some_job()
        self._place.ledger.mark(GONE, job)
        await self._jobs.delete(job)

    async def _cancel_many(self) -> None:
        await self._jobs.cancel_all(await self._some_jobs(ASKED))

    async def _retry_many(self) -> None:
        await self._jobs.retry_all(await self._some_jobs(AGAIN))

    async def _delete_many(self) -> None:
        await self._jobs.delete_all(await self._some_jobs(GONE))


def _holds(job: Job[Any], key: str | None) -> bool:
    return job.state in LIVE and job.unique_key == key


if __name__ == "__main__":
    main(race)
