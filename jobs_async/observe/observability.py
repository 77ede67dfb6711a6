"""What is to be measured, and where it comes out (nidus-jobs: Observability)."""

from __future__ import annotations

import copy
import re
import threading
from typing import TYPE_CHECKING, Any, cast

from jobs_async.core import limits
from jobs_async.core.errors import OptionError
from jobs_async.inprocess import NoopObserver, ObservedJobRunner
from jobs_async.observe.adapters import AdapterObserver
from jobs_async.observe.asgi import MetricsApp
from jobs_async.observe.families import Gauge
from jobs_async.observe.fold import EventFold
from jobs_async.observe.metrics import Metrics, named
from jobs_async.observe.runs import CallFold, RunObserver

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from jobs_async.inprocess import JobObserver, SpanFactory
    from jobs_async.observe.calls import CallObserver
    from jobs_async.telemetry import Handler

SERVICE = ("service", "version", "environment")

_PREFIX = re.compile(r"[a-zA-Z][a-zA-Z0-9_]*_")


class Observability:
    """The metrics of one service. Nothing is measured until `prometheus()` says so.

    An Observability is never changed: `prometheus`, `max_series` and `without_job_metrics` return another one, which
    has counted nothing yet. What it hands out may be used from any thread.

        observability = Observability("shop", version="1.4").prometheus()
        telemetry.attach(observability.telemetry_handler())
        print(observability.render())

    `service`, `version` and `environment` are the labels of a metric `jobs_service_info`. A `prefix`, such as
    `shop_`, stands in the names of all metrics where otherwise `jobs_` and `nidus_` do.

    Raises:
        OptionError: one of them is not 1 to 255 bytes of text, or the prefix not of letters, digits and underscores,
            beginning with a letter and ending with an underscore.
    """

    def __init__(
        self,
        service: str,
        *,
        version: str | None = None,
        environment: str | None = None,
        prefix: str | None = None,
    ) -> None:
        self._service = limits.name(service, "service")
        self._version = "" if version is None else limits.name(version, "version")
        self._environment = "" if environment is None else limits.name(environment, "environment")
        self._prefix = None if prefix is None else _prefix(prefix)
        self._is_on = False
        self._given: CollectorRegistry | None = None
        self._per_job = True
        self._max_series: int | None = None
        self._begin()

    def __repr__(self) -> str:
        return f"Observability({self._service!r}, {'on' if self._is_on else 'off'})"

    # --- what is to be measured ---

    def prometheus(self, registry: CollectorRegistry | None = None) -> Observability:
        """One that measures, into `registry` (`prometheus_client.REGISTRY`, say) or one of its own.

        Raises:
            OptionError: prometheus_client is not installed, or this is no registry.
        """
        _require_prometheus()
        if registry is not None and not callable(getattr(registry, "register", None)):
            raise OptionError(f"a registry is a prometheus_client.CollectorRegistry, not {limits.type_name(registry)}")
        return self._with(is_on=True, given=registry)

    def without_job_metrics(self) -> Observability:
        """One that leaves out what is counted job by job; what it tells of queues and of the runtime stays."""
        return self._with(per_job=False)

    def max_series(self, number: int | None) -> Observability:
        """One that tells so many names apart in each metric; what comes beyond is counted as `<overflow>`.

        A name is what is counted: a queue and worker, a queue and node, a queue, a node, or a job. None, as by
        default: all are told apart.

        Raises:
            OptionError: the number is none from 1 on.
        """
        return self._with(max_series=None if number is None else limits.integer(number, "max_series", 1))

    def _with(self, **changes: Any) -> Observability:
        other = copy.copy(self)
        for name, value in changes.items():
            setattr(other, f"_{name}", value)
        other._begin()
        return other

    def _begin(self) -> None:
        """Metrics are made when they are first asked for, so that the steps in between leave none in a registry."""
        self._making = threading.Lock()
        self._made: tuple[Metrics, CollectorRegistry, EventFold] | None = None

    def _make(self) -> tuple[Metrics, CollectorRegistry, EventFold] | None:
        if not self._is_on:
            return None
        with self._making:
            if self._made is None:
                from jobs_async.observe import prometheus

                registry = prometheus.CollectorRegistry() if self._given is None else self._given
                metrics = Metrics(per_job=self._per_job, max_series=self._max_series, prefix=self._prefix)
                prometheus.register([self._info(), *metrics], registry)
                self._made = metrics, registry, EventFold(metrics)
            return self._made

    def _info(self) -> Gauge:
        info = Gauge(named("jobs_service_info", self._prefix), "What is measured here; always 1.", SERVICE)
        info.put(self, {(self._service, self._version, self._environment): 1.0})
        return info

    # --- what measures ---

    def telemetry_handler(self) -> Handler:
        """What to attach to a Telemetry, the same one each time; it does nothing where this is off.

        Raises:
            OptionError: the registry that was given has metrics of these names; so do all that follow.
        """
        made = self._make()
        return _ignore if made is None else made[2]

    def job_observer(self) -> JobObserver:
        """What to give to an ObservedJobRunner; it does nothing where this is off."""
        made = self._make()
        return RunObserver(made[0]) if made is not None and self._per_job else NoopObserver()

    def job_runner(self) -> ObservedJobRunner:
        """A runner of single jobs that are measured."""
        return ObservedJobRunner(self.job_observer())

    def store_observer(self, adapter: str = "store") -> CallObserver:
        """What to give to an ObservedStore, whose calls are then measured under this name; it does nothing where this
        is off.

        Raises:
            OptionError: the name is none.
        """
        made, name = self._make(), limits.name(adapter, "adapter")
        return _ignore if made is None else CallFold(made[0], name)

    def adapter_observer(self, *, span: SpanFactory | None = None) -> AdapterObserver:
        """What measures calls of others in your own code; `span` makes a span for each, also where this is off."""
        made = self._make()
        return AdapterObserver(None if made is None else made[0], span)

    # --- where it comes out ---

    @property
    def metrics(self) -> Metrics | None:
        """What is measured, for sources of your own such as Gauges; None where this is off."""
        made = self._make()
        return None if made is None else made[0]

    @property
    def registry(self) -> CollectorRegistry | None:
        """The registry that has these metrics; None where this is off."""
        made = self._make()
        return None if made is None else made[1]

    def render(self) -> str:
        """Everything in the registry, in the text format of Prometheus; empty where this is off."""
        made = self._make()
        if made is None:
            return ""
        from jobs_async.observe import prometheus

        return prometheus.text(made[1])

    def asgi(self) -> MetricsApp:
        """An ASGI app that serves `render()`, whatever the path: mount it, or run it by itself."""
        return MetricsApp(self.render)


def _prefix(given: str) -> str:
    if not _PREFIX.fullmatch(limits.name(given, "prefix")):
        raise OptionError("prefix must be letters, digits and underscores, from a letter to an underscore, as in shop_")
    return given


def _require_prometheus() -> None:
    try:
        from jobs_async.observe import prometheus as prometheus
    except ModuleNotFoundError as error:
        if cast("str", error.name).partition(".")[0] != "prometheus_client":
            raise
        raise OptionError("metrics for Prometheus need prometheus_client: install jobs-async[prometheus]") from None


def _ignore(_event: object) -> None:
    """Nobody measures."""
