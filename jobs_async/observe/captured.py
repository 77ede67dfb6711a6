"""Log lines of one attempt, kept with its job: gathered in memory while it runs, stored in one piece when it ends."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import msgspec

from jobs_async.core import limits
from jobs_async.core.context import current
from jobs_async.core.errors import OptionError
from jobs_async.core.events import (
    JobCancelled,
    JobCompleted,
    JobDiscarded,
    JobFailed,
    JobInterrupted,
    JobSnoozed,
    StaleSettlement,
)
from jobs_async.core.instrument import Instrument
from jobs_async.core.job import Job
from jobs_async.core.query import MAX_PAGE
from jobs_async.core.records import Record, records_of
from jobs_async.observe.attempts import Attempt, AttemptLog, Key, line_of
from jobs_async.telemetry import QueueHandler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from jobs_async.core.context import JobContext
    from jobs_async.core.events import Event
    from jobs_async.core.limits import Seconds

KIND = "attempt_log"
"""The kind of the records."""
MAX_LINES, MAX_BYTES = 10_000, 131_072
"""What an attempt may be allowed at most: as JSON it fits into a record, whatever characters it is made of."""
MAX_ATTEMPTS = 1_000
"""Attempts whose lines are in memory; beyond that the oldest is forgotten."""
BATCH = 16
"""Attempts that are stored together."""
WRITE_SECONDS = 5.0
"""How long the store may take for a batch, or for the removal of old records."""
SWEEP_EVERY, SWEEP_SIZE = 300.0, 500
"""Seconds between two removals of old records, and how many one removes."""

MAX_ID = 2**63 - 1

ENDINGS = (JobCompleted, JobFailed, JobDiscarded, JobCancelled, JobSnoozed, JobInterrupted, StaleSettlement)
"""Events after which an attempt has no more to say."""


class CapturedLogs(Instrument):
    """Keeps what is logged while an attempt runs, and stores it beside its job when the attempt has ended.

        captured = CapturedLogs(store)
        telemetry.attach(captured)
        jobs = Supervisor(store, telemetry=telemetry, instruments=[captured])
        ...
        for attempt in await captured.of(job): ...

    It is one object in two places: as an instrument it learns that an attempt begins, as a telemetry handler that it
    has ended. Use one for each store. With the first attempt it puts a handler of its own on the logger; `close`, or
    the end of `with captured:`, takes it away.

    An attempt keeps its last lines, up to `lines` of them and `bytes` of UTF-8, and counts those that were dropped.
    Memory is bounded whatever happens: of more than 1,000 attempts at a time, the oldest is forgotten. Records older
    than `keep` are removed now and then.

    Jobs do not wait for any of this. A batch is given to the store once, in the background; what it does not take
    within 5 seconds is given up and counted in `lost`.

    What a line says is kept as it is: an application that logs secrets has them in its store.

    Raises:
        OptionError: the store keeps no records, or a number is out of its bounds.
    """

    def __init__(
        self,
        store: object,
        *,
        lines: int = 200,
        bytes: int = 65_536,
        level: int | str = logging.INFO,
        keep: Seconds = timedelta(days=7),
        logger: str = "",
    ) -> None:
        self._records = records_of(store)
        self._lines = limits.integer(lines, "lines", 1, MAX_LINES)
        self._bytes = limits.integer(bytes, "bytes", 256, MAX_BYTES)
        self._keep = limits.seconds(keep, "keep", exclusive=True)
        self._logger = logging.getLogger(logger)
        self._tap = _Tap(self._hear, level)
        self._closed = False
        self._attempts: dict[Key, Attempt] = {}
        self._ended: deque[Key] = deque()
        self._changing = threading.RLock()  # a finalizer that logs may come in between
        self._background = QueueHandler(self._write)
        self._swept: float | None = None
        self.lost = 0
        """Attempts whose lines were forgotten, or not taken by the store."""

    def __repr__(self) -> str:
        return f"CapturedLogs({limits.type_name(self._records)})"

    def __enter__(self) -> CapturedLogs:
        self._closed = False
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the handler off the logger. Attempts that begin from now on are not captured; what is there is kept."""
        self._closed = True
        self._logger.removeHandler(self._tap)

    # --- the life of an attempt ---

    def running(self, ctx: JobContext) -> AbstractContextManager[object]:
        """An attempt begins. Its lines are captured until its outcome is told, so the runtime's own last words on it,
        such as the traceback of a failure, are among them.
        """
        if not self._closed:
            attempt = Attempt(ctx.job.id, ctx.attempt, ctx.job.claim, self._lines, self._bytes)
            with self._changing:
                while len(self._attempts) >= MAX_ATTEMPTS:
                    oldest = self._attempts.pop(next(iter(self._attempts)))
                    self.lost += oldest.has_lines
                self._attempts[attempt.key] = attempt
            self._logger.addHandler(self._tap)  # again, should somebody have configured logging anew
        return nullcontext()

    def _hear(self, record: logging.LogRecord) -> None:
        """A line was logged, by whomever."""
        ctx = current.get(None)
        if ctx is not None and not self._closed:
            attempt = self._attempts.get((ctx.job.id, ctx.job.claim))
            if attempt is not None and not attempt.is_over:
                line = line_of(record, self._bytes)
                with self._changing:
                    attempt.add(line)

    def __call__(self, event: Event) -> None:
        """An event was told. Lines of an attempt that has ended are stored soon."""
        if not isinstance(event, ENDINGS):
            return
        key = event.job.id, event.job.claim
        with self._changing:
            attempt = self._attempts.get(key)
            if attempt is None or attempt.is_over:
                return
            attempt.is_over = True
            if not attempt.has_lines:
                del self._attempts[key]
                return
            self._ended.append(key)
        self._background(event)

    # --- the store ---

    async def flush(self) -> None:
        """Wait until the lines of ended attempts are stored, or given up. A Supervisor that stops waits for it, within
        a second.
        """
        await self._background.flush()

    async def of(self, job: Job[Any] | int, *, after: int = 0, limit: int = 100) -> list[AttemptLog]:
        """What the attempts of a job have logged, oldest first; those that logged nothing are not among them.

        At most `limit` of them, those with a claim above `after`. What this process has not stored yet, of attempts
        that still run too, is there as well.

        Raises:
            OptionError: the job is neither a Job nor an id, or a number is out of its bounds.
            StoreError: the store cannot answer.
        """
        job_id = limits.integer(job.id if isinstance(job, Job) else job, "a job's id", 0, MAX_ID)
        limits.integer(after, "after", 0, MAX_ID)
        limits.integer(limit, "limit", 1, MAX_PAGE)
        here = self._here(job_id, after)
        prefix, behind = f"{job_id:020d}/", _name((job_id, after))
        records = await self._records.get_records(KIND, prefix=prefix, after=behind, limit=limit)
        stored = (msgspec.json.decode(record.value, type=AttemptLog) for record in records)
        found = here | {log.claim: log for log in stored}
        return [found[claim] for claim in sorted(found)][:limit]

    def _here(self, job_id: int, after: int) -> dict[int, AttemptLog]:
        with self._changing:
            mine = [attempt for key, attempt in self._attempts.items() if key[0] == job_id and key[1] > after]
            return {attempt.claim: attempt.log() for attempt in mine if attempt.has_lines}

    async def _write(self, _event: Event) -> None:
        """Store what has ended; one call may do the work of many events."""
        while batch := self._next_batch():
            try:
                records = [Record.of(KIND, _name(key), log) for key, log in batch.items()]
                async with asyncio.timeout(WRITE_SECONDS):
                    await self._records.put_records(records)
            except BaseException:
                self.lost += len(batch)
                raise
            finally:
                self._drop(batch)
        await self._sweep()

    def _next_batch(self) -> dict[Key, AttemptLog]:
        batch: dict[Key, AttemptLog] = {}
        with self._changing:
            while self._ended and len(batch) < BATCH:
                key = self._ended.popleft()
                if key in self._attempts:
                    batch[key] = self._attempts[key].log()
        return batch

    def _drop(self, keys: Iterable[Key]) -> None:
        with self._changing:
            for key in keys:
                self._attempts.pop(key, None)

    async def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._swept is None or now - self._swept >= SWEEP_EVERY:
            self._swept = now
            async with asyncio.timeout(WRITE_SECONDS):
                if await self._records.drop_records(KIND, older_than=self._keep, limit=SWEEP_SIZE) == SWEEP_SIZE:
                    self._swept = None  # there is more: the next write goes on with it


def _name(key: Key) -> str:
    """The key of a record: a job's are together, in the order of its attempts."""
    job_id, claim = key
    return f"{job_id:020d}/{claim:010d}"


class _Tap(logging.Handler):
    """Passes records on, each thread one at a time: what is logged on the way is not captured.

    It takes no lock of its own: text is made by the application's code, which may wait for another thread that logs.
    """

    def __init__(self, hear: Callable[[logging.LogRecord], None], level: int | str) -> None:
        try:
            super().__init__(level)
        except (TypeError, ValueError) as error:
            raise OptionError(f"level: {error}") from None
        self._least, self.level = self.level, logging.NOTSET
        self._hear = hear
        self._busy = threading.local()

    def handle(self, record: logging.LogRecord) -> bool:
        with suppress(Exception):  # whoever logs must not fail for it
            self._speak_up(record)
            if record.levelno >= self._least and not getattr(self._busy, "now", False):
                self._busy.now = True
                try:
                    self._hear(record)
                finally:
                    self._busy.now = False
        return True

    def _speak_up(self, record: logging.LogRecord) -> None:
        """A program that has not configured logging sees its warnings on stderr. Our presence must not change that."""
        last = logging.lastResort
        if last is not None and record.levelno >= last.level and self._is_alone(logging.getLogger(record.name)):
            last.handle(record)

    def _is_alone(self, logger: logging.Logger | None) -> bool:
        while logger is not None:
            if any(handler is not self for handler in logger.handlers):
                return False
            logger = logger.parent if logger.propagate else None
        return True
