"""The public face: registers workers, starts and stops, and runs beside a server (zzz_jobs: Supervisor)."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from jobs_async.core import binding, context, limits
from jobs_async.core.errors import OptionError, StoreClosed
from jobs_async.core.workers import WorkerDef, collect
from jobs_async.runtime.drain import Drain, DrainReport
from jobs_async.runtime.engine import Engine, Settings, ShutdownReport
from jobs_async.runtime.producer import CLOSE_SECONDS
from jobs_async.runtime.queues import Queue, concurrency_of, retention_of
from jobs_async.runtime.registrar import Registrar
from jobs_async.tasks import to_the_end

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping
    from random import Random
    from types import ModuleType

    from jobs_async.core.instrument import Instrument
    from jobs_async.core.job import Job, JobState
    from jobs_async.core.lifecycle import Transition
    from jobs_async.core.limits import Seconds
    from jobs_async.core.schedule import CronEntry
    from jobs_async.core.store import Clock, Store
    from jobs_async.telemetry import Telemetry

T = TypeVar("T")
START_GRACE = 4.0
"""Seconds a start that is under way has left when a stop comes."""

logger = logging.getLogger("jobs_async")


class Supervisor(Registrar):
    """Runs the jobs of its queues, each queue on its own: one that is full or broken holds up no other.

    `store` is a Store or a URL ("memory://", "sqlite:///jobs.db"). `queues` maps names to concurrency, or lists Queues;
    {} makes a producer and operator that runs nothing. `instruments` stand around the storing of jobs and around
    handlers. Durations are seconds or timedeltas: `poll_interval` between two looks for jobs that other processes
    stored (those stored here start at once), `shutdown_timeout` for running jobs at a stop, `heartbeat` and `lease` of
    this node (a lease is at least 4 heartbeats), `rescue_interval` between two searches for the jobs of dead nodes,
    which are discarded after `max_rescues`. A thread watches the event loop: it reports what blocks it for more than a
    second, and keeps the lease while it is blocked, for `max_stall` seconds; None: there is no such thread, and a block
    as long as the lease costs the running jobs. A handler that runs for longer than `slow_after` is reported once, with
    where it is; None: none is. `retention` is how long ended jobs are kept, one duration for all or one for each final
    state; what is not named there is kept for ever, as everything is by default.

    Raises:
        OptionError: something is out of bounds.
        WorkerError: something in `workers` is no worker, or two have one name.
    """

    def __init__(
        self,
        store: Store | str = "memory://",
        *,
        queues: Mapping[str, int] | Iterable[Queue] | None = None,
        workers: Iterable[WorkerDef | ModuleType] = (),
        telemetry: Telemetry | None = None,
        instruments: Iterable[Instrument] = (),
        poll_interval: Seconds = 1.0,
        shutdown_timeout: Seconds = 30.0,
        heartbeat: Seconds = 5.0,
        lease: Seconds = 30.0,
        rescue_interval: Seconds = 10.0,
        max_rescues: int = 3,
        max_stall: Seconds | None = 300.0,
        slow_after: Seconds | None = 60.0,
        retention: Seconds | Mapping[JobState, Seconds] | None = None,
        strict: bool = False,
        clock: Clock | None = None,
        rng: Random | None = None,
    ) -> None:
        super().__init__(store, telemetry=telemetry, instruments=instruments, strict=strict, clock=clock, rng=rng)
        self._queues = concurrency_of(queues)
        self._settings = Settings(
            poll_interval=limits.seconds(poll_interval, "poll_interval", low=0.001),
            shutdown_timeout=limits.seconds(shutdown_timeout, "shutdown_timeout"),
            heartbeat=limits.seconds(heartbeat, "heartbeat", low=0.001),
            lease=limits.seconds(lease, "lease", low=0.004),
            rescue_interval=limits.seconds(rescue_interval, "rescue_interval", low=0.001),
            max_rescues=limits.integer(max_rescues, "max_rescues", 0),
            max_stall=None if max_stall is None else limits.seconds(max_stall, "max_stall"),
            slow_after=None if slow_after is None else limits.seconds(slow_after, "slow_after", exclusive=True),
            retention=retention_of(retention),
        )
        if self._settings.lease < 4 * self._settings.heartbeat:
            raise OptionError("lease must be at least 4 heartbeats, so that a late beat costs no job")
        self._starting = asyncio.Lock()
        self._starter: asyncio.Task[Any] | None = None
        self._stops = 0
        self._stopping: asyncio.Task[ShutdownReport] | None = None
        self._shutdown_report: ShutdownReport | None = None
        self._drains: list[Drain] = []
        self._lives_to_drain = False
        for one in collect(workers):
            self._register(one)

    def __repr__(self) -> str:
        life = "running" if self.is_running else "stopped" if self._was_stopped else "not started"
        return f"{type(self).__name__}({self.store!r}, queues={self._queues!r}, {life})"

    # --- life time ---

    @property
    def _runs_queues(self) -> bool:
        return bool(self._queues)

    @property
    def shutdown_report(self) -> ShutdownReport | None:
        """What the last stop left behind, whoever asked for it; None before the first."""
        return self._shutdown_report

    @property
    def stuck(self) -> tuple[int, ...]:
        """The jobs here whose handlers go on 3 seconds after they were told to end: threads, and those that swallow
        their cancellation. Each keeps its slot until it ends.
        """
        return () if self._engine is None else self._engine.stuck

    @property
    def served(self) -> Mapping[str, int]:
        """The queues that are run here, and how many jobs of each at once unless `scale_queue` says otherwise."""
        return MappingProxyType(self._queues)

    def serve(self, queues: Mapping[str, int | None]) -> None:
        """Run these queues instead, from the next start on; None: as many jobs as before, or 10. {}: run nothing.

        Raises:
            OptionError: these are no queues, or it is running.
        """
        if self._engine is not None:
            raise OptionError("the queues of a Supervisor that is running cannot be changed; stop it first")
        before = self._queues
        self._queues = concurrency_of(
            {name: before.get(name, 10) if limit is None else limit for name, limit in queues.items()}
        )

    async def start(self) -> None:
        """Open the store where nobody has, and run. Harmless while running; after a stop it starts anew.

        Raises:
            StoreError: the store cannot be opened, or a stop came before the end of the start; nothing was started.
            WorkerError: a worker's annotations cannot be resolved or stored.
        """
        stops = self._stops
        async with self._starting:
            if self._lives:
                return
            if self._stops != stops:
                raise StoreClosed("the Supervisor was stopped before it had started")
            await self._begin(self._start(), self._end)

    async def _begin(self, work: Coroutine[Any, Any, T], undo: Callable[[], Coroutine[Any, Any, object]]) -> T:
        """Start in a task that a stop can call off; where nobody waits for it any longer, leave nothing of it running.

        Raises:
            StoreClosed: it was called off.
        """
        starter: asyncio.Task[T] = asyncio.get_running_loop().create_task(work, name="jobs_async start")
        self._starter = starter
        try:
            await asyncio.wait({starter})
        except asyncio.CancelledError:
            starter.cancel()
            await to_the_end(self._undo(starter, undo))
            raise
        finally:
            self._starter = None
        if starter.cancelled():
            raise StoreClosed("the Supervisor was stopped before it had started")
        return starter.result()

    async def _undo(self, starter: asyncio.Task[Any], undo: Callable[[], Coroutine[Any, Any, object]]) -> None:
        await asyncio.wait({starter})
        await undo()

    async def _start(self) -> None:
        for worker in self._workers.values():
            binding.attach(worker, self)
            if self._queues and worker.opts.queue not in self._queues:
                logger.info("jobs of %s go to queue %s, which is not run here", worker.name, worker.opts.queue)
        await self._ensure_open()
        try:
            engine = self._made(crons=self._crons)
            await engine.start()
        except BaseException:
            await self._close_store()
            raise
        self._engine, self._was_stopped = engine, False
        binding.changed()

    def _made(self, crons: Mapping[str, CronEntry] | None) -> Engine:
        return Engine(
            self,
            queues=self._queues,
            workers=self._workers,
            settings=self._settings,
            telemetry=self.telemetry,
            settled=self._settled,
            crons=crons,
        )

    def _settled(self, step: Transition, job: Job[Any]) -> None:
        self._waiters.settled(job)
        for drain in self._drains:
            drain.settled(step)

    async def stop(self) -> ShutdownReport:
        """Claim no more, let running jobs finish for `shutdown_timeout` seconds, cancel the rest, hand them back.

        Ends within `shutdown_timeout` + 6 seconds, whatever the store does; a start that it meets has 5 more. Called
        again, or by several at once, it waits for the same end. A job whose handler would not end stays executing and
        is rescued after the lease. Cancelling the caller does not cancel the stop.
        """
        if self._stopping is None or self._stopping.done():
            self._stopping = asyncio.get_running_loop().create_task(self._stop(), name="jobs_async stop")
        stopping = self._stopping
        await asyncio.wait({stopping})
        return stopping.result()

    def hurry(self) -> None:
        """Give running jobs no more time in the stop that is under way, or in the next one: cancel them at once.

        They still have 3 seconds to clean up. Nothing to do where nothing runs.
        """
        if self._engine is not None:
            self._engine.hurry()

    async def _stop(self) -> ShutdownReport:
        self._stops += 1  # whoever waits for the lock to start is called off as well
        if (engine := self._engine) is not None:
            engine.ask_to_stop()  # a drain may hold the lock
        if (starter := self._starter) is not None:
            await asyncio.wait({starter}, timeout=START_GRACE)
            starter.cancel()
            await asyncio.wait({starter}, timeout=CLOSE_SECONDS)
            if not starter.done():
                return (
                    ShutdownReport()
                )  # it stands before a store that does not answer, and ends without having started
        async with self._starting:  # a start that is under way comes first
            if engine is not None:  # also that of a drain, which has put it away by itself
                self._was_stopped = True
                binding.detach(self)
            report = await self._end()
            return report if engine is None else engine.report

    async def _end(self) -> ShutdownReport:
        engine, report = self._engine, ShutdownReport()
        if engine is not None:
            engine.ask_to_stop()
            await engine.ended()
            report = self._shutdown_report = engine.report
            self._engine, self._was_stopped = None, True
            binding.detach(self)
        self._waiters.close()
        await self._close_store()
        return report

    async def drain(self, *, with_scheduled: bool = False, timeout: Seconds | None = None) -> DrainReport:
        """Run jobs until nothing in the queues of this Supervisor could start and nothing runs; for tests and batches.

        A running Supervisor goes on as before. One that was not started runs for as long as this takes, fires no cron
        ticks and keeps its store open. Paused queues do not count, nor do jobs whose time has not come:
        `with_scheduled` brings those forward, each once an attempt. After a timeout a running Supervisor goes on; one
        that was not started ends as by a stop, which may take `shutdown_timeout` more.

        Raises:
            OptionError: this Supervisor runs no queues, or it was called from a job here, whose end it would wait for.
            TimeoutError: `timeout` seconds have passed.
            StoreClosed: this Supervisor was stopped meanwhile.
        """
        if not self._queues:
            raise OptionError("a Supervisor without queues has nothing to drain")
        if getattr(context.current.get(None), "host", None) is self:
            raise OptionError("drain() inside a job would wait for the end of that very job")
        seconds = None if timeout is None else limits.seconds(timeout, "timeout")
        try:
            async with asyncio.timeout(seconds):
                return await self._drain_here(with_scheduled)
        except TimeoutError:
            raise TimeoutError(f"the queues were not drained after {seconds} seconds; what is left, waits") from None

    async def _drain_here(self, with_scheduled: bool) -> DrainReport:
        stops = self._stops
        if self._engine is None or not self._lives or self._lives_to_drain:
            async with self._starting:
                if self._stops != stops:
                    raise StoreClosed("the Supervisor was stopped before its queues were drained")
                if self._engine is None or not self._lives:
                    return await self._drain_alone(with_scheduled)
        return await self._drain(self._engine, with_scheduled)

    async def _drain_alone(self, with_scheduled: bool) -> DrainReport:
        """Live for as long as it takes."""
        try:
            engine = await self._begin(self._start_to_drain(), self._leave)
            return await self._drain(engine, with_scheduled)
        finally:
            await to_the_end(self._leave())

    async def _start_to_drain(self) -> Engine:
        for worker in self._workers.values():
            binding.attach(worker, self)
        await self._ensure_open()
        engine = self._made(crons=None)
        await engine.start()
        self._engine, self._lives_to_drain = engine, True
        binding.changed()
        return engine

    async def _drain(self, engine: Engine, with_scheduled: bool) -> DrainReport:
        drain = Drain(self.store, engine, list(self._queues), with_scheduled=with_scheduled)
        self._drains.append(drain)
        try:
            return await drain.run()
        finally:
            self._drains.remove(drain)

    async def _leave(self) -> None:
        """The end of an engine that lived for a drain."""
        if self._engine is not None:
            self._engine.ask_to_stop()
            await self._engine.ended()
            self._shutdown_report = self._engine.report
        self._engine, self._lives_to_drain = None, False
        if self._was_stopped:
            binding.detach(self)
        binding.changed()

    async def run(self) -> None:
        """Start, and come back when stopped: a task to be run beside a server. Cancelling it stops."""
        async with self:
            engine = self._engine
            if engine is not None:
                await engine.ended()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        """Stop, to the end, even where the caller is cancelled again and again while it waits."""
        await to_the_end(self.stop())

    @asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncGenerator[None]:
        """For `Starlette(lifespan=jobs.lifespan)` and `FastAPI(lifespan=jobs.lifespan)`."""
        async with self:
            yield
