"""Every metric there is, by its name. Never labelled by job: a label is a series, and series are kept for ever.

The names of runs in this process are the source's (nidus-jobs: Observability), those of the runtime begin with `jobs_`.
A prefix stands in the place of `nidus_` and `jobs_`.
"""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

from jobs_async.observe.families import Counter, Gauge, Histogram

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jobs_async.observe.families import Family

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds in seconds, as the source has them."""
LONG_BUCKETS = (*BUCKETS, 30.0, 60.0, 300.0, 1800.0)
"""A background job may take, and wait, longer than a request does."""
STALL_BUCKETS = (1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

JOB = ("queue", "worker")


def named(name: str, prefix: str | None) -> str:
    """The name of a metric under a prefix, or as it is."""
    return name if prefix is None else prefix + name.partition("_")[2]


class Metrics:
    """The families of one Observability, in the order in which they are rendered.

    Without `per_job` those are left out that count runs and jobs one by one.
    """

    def __init__(self, *, per_job: bool = True, max_series: int | None = None, prefix: str | None = None) -> None:
        self.per_job = per_job
        self.max_series = max_series
        self.lock = threading.Lock()
        """Of all counters and histograms."""
        counter = partial(Counter, max_series=max_series, lock=self.lock)
        histogram = partial(Histogram, max_series=max_series, lock=self.lock)
        gauge = partial(Gauge, max_series=max_series)

        # runs of an ObservedJobRunner
        self.runs_started = counter("nidus_jobs_started_total", "Runs that began.", ("job",))
        self.runs_finished = counter("nidus_jobs_finished_total", "Runs that ended.", ("job",), ("status",))
        self.run_duration = histogram(
            "nidus_job_duration_seconds",
            "How long a run took.",
            ("job",),
            ("status",),
            bounds=BUCKETS,
            le="{:.3f}".format,
        )

        # calls of an ObservedStore
        self.operations = counter(
            "nidus_adapter_operations_total", "Calls of a store.", ("adapter", "operation"), ("status",)
        )
        self.operation_duration = histogram(
            "nidus_adapter_operation_duration_seconds",
            "How long a call of a store took.",
            ("adapter", "operation"),
            ("status",),
            bounds=BUCKETS,
            le="{:.3f}".format,
        )

        # jobs of a Supervisor, one by one
        self.enqueued = counter("jobs_enqueued_total", "Jobs stored.", JOB)
        self.duplicates = counter("jobs_duplicates_total", "Enqueues that met a job of their key.", JOB)
        self.finished = counter(
            "jobs_finished_total", "Attempts that ended, by what became of them.", JOB, ("outcome",)
        )
        self.run = histogram(
            "jobs_run_seconds", "How long a handler ran that ended by itself.", JOB, bounds=LONG_BUCKETS
        )
        self.wait = histogram(
            "jobs_wait_seconds", "How long a job was due before its first attempt.", JOB, bounds=LONG_BUCKETS
        )
        self.slow = counter("jobs_slow_total", "Handlers that ran for longer than slow_after.", JOB)
        self.stuck = counter("jobs_stuck_total", "Handlers that went on after they were told to end.", JOB)

        # the runtime
        self.stalls = histogram(
            "jobs_loop_stall_seconds", "How long the event loop did not turn, over a second.", bounds=STALL_BUCKETS
        )
        self.leases_lost = counter("jobs_lease_lost_total", "Times this process was taken for dead.")
        self.store_failing = gauge("jobs_store_failing", "1 while the store fails, else 0.")
        self.cron_tick = gauge(
            "jobs_cron_last_tick_timestamp_seconds", "The latest tick whose job was stored here.", ("entry",)
        )
        self.cron_success = gauge(
            "jobs_cron_last_success_timestamp_seconds", "When a job of the entry was completed here last.", ("entry",)
        )
        self.loop_lag = gauge("jobs_loop_lag_seconds", "How late the event loop was, at worst since the last sample.")

        # what all processes share, told by one of them
        self.depth = gauge("jobs_queue_depth", "Jobs in the store.", ("queue",), ("state",), merge=sum)
        self.oldest = gauge("jobs_queue_oldest_seconds", "How long the oldest waiting job has been due.", ("queue",))
        self.limit = gauge("jobs_queue_limit", "Jobs that all nodes together may run at once.", ("queue",), merge=sum)
        self.paused = gauge("jobs_queue_paused", "1 while the queue is paused, else 0.", ("queue",))
        self.executing = gauge("jobs_executing", "Jobs that run.", ("queue", "node"), merge=sum)
        self.heartbeat = gauge("jobs_node_heartbeat_timestamp_seconds", "When a live node last beat.", ("node",))

        for family in self:
            family.name = named(family.name, prefix)

    def __iter__(self) -> Iterator[Family[Any]]:
        if self.per_job:
            yield from (self.runs_started, self.runs_finished, self.run_duration)
            yield from (self.enqueued, self.duplicates, self.finished, self.run, self.wait, self.slow, self.stuck)
            yield from (self.operations, self.operation_duration)
        yield from (self.stalls, self.leases_lost, self.store_failing, self.cron_tick, self.cron_success)
        yield from (self.loop_lag,)
        yield from (self.depth, self.oldest, self.limit, self.paused, self.executing, self.heartbeat)
