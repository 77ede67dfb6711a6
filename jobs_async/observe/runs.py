"""Metrics of single runs of an ObservedJobRunner and single calls of an ObservedStore (nidus-jobs: N43, N45)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobs_async.observe.adapters import count_call

if TYPE_CHECKING:
    from jobs_async.inprocess import JobResultStatus, ObservedJobContext
    from jobs_async.observe.calls import StoreCall
    from jobs_async.observe.metrics import Metrics


class RunObserver:
    """Counts runs that begin and end, and how long they take. May be told from any thread."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def on_job_started(self, context: ObservedJobContext, /) -> None:
        self._metrics.runs_started.add((context.job_name,))

    def on_job_finished(self, context: ObservedJobContext, status: JobResultStatus, /) -> None:
        key = (context.job_name, status.value)
        self._metrics.runs_finished.add(key)
        self._metrics.run_duration.observe(key, context.duration or 0.0)


class CallFold:
    """Counts the calls of one store, and how long they take."""

    def __init__(self, metrics: Metrics, adapter: str) -> None:
        self._metrics = metrics
        self._adapter = adapter

    def __call__(self, call: StoreCall) -> None:
        count_call(self._metrics, self._adapter, call.operation, call.seconds, succeeded=call.succeeded)
