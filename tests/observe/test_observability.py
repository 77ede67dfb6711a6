"""What is measured where, and how it is rendered: off, on, in registries of its own, under hostile names."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client import Counter as ForeignCounter

from jobs_async import JobEnqueued, OptionError, Supervisor, Telemetry
from jobs_async.inprocess import JobQueue, JobResultStatus, NoopObserver, ObservedJobContext, ObservedJobRunner
from jobs_async.observe import Observability
from jobs_async.observe.families import OVERFLOW
from jobs_async.observe.metrics import Metrics
from tests.observe.support import NOON, job, numbers, parsed, samples, serving, value

HOSTILE = ['quote"d', "back\\slash", "new\nline", "\\n", '{a="b"} 1', "täglich 🦊", "", "  ", "x" * 255]


def on(**settings: Any) -> Observability:
    return Observability("shop", **settings).prometheus()


class Named:
    """A job that succeeds or fails."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self.name = name
        self._error = error

    def run(self) -> str:
        if self._error is not None:
            raise self._error
        return "done"


def finish(observability: Observability, name: str, status: JobResultStatus, seconds: float) -> None:
    """One run of an ObservedJobRunner, as its observer hears of it."""
    observer = observability.job_observer()
    observer.on_job_started(ObservedJobContext("id", name))
    observer.on_job_finished(ObservedJobContext("id", name, duration=seconds), status)


# --- off ---


def test_off_by_default_nothing_is_rendered_and_nothing_done() -> None:
    observability = Observability("shop").max_series(5)
    handler = observability.telemetry_handler()
    handler(JobEnqueued(job=job(), at=NOON))
    assert observability.job_runner().run(Named("a")) == "done"
    assert isinstance(observability.job_observer(), NoopObserver)
    assert (observability.render(), observability.registry, observability.metrics) == ("", None, None)


def test_off_prometheus_client_is_not_even_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    without_client(monkeypatch)
    observability = Observability("shop")
    observability.telemetry_handler()
    observability.job_runner()
    observability.asgi()
    assert observability.render() == ""


def without_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the extra is not installed."""
    real = builtins.__import__

    def importing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "prometheus_client":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.partition(".")[0] == "prometheus_client"]:
        monkeypatch.delitem(sys.modules, name)
    import jobs_async.observe

    monkeypatch.delitem(sys.modules, "jobs_async.observe.prometheus", raising=False)
    monkeypatch.delattr(jobs_async.observe, "prometheus", raising=False)
    monkeypatch.setattr(builtins, "__import__", importing)


def test_without_the_client_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    without_client(monkeypatch)
    with pytest.raises(OptionError, match=r"install jobs-async\[prometheus\]"):
        Observability("shop").prometheus()


# --- runs in this process ---

GOLDEN = """\
# HELP jobs_service_info What is measured here; always 1.
# TYPE jobs_service_info gauge
jobs_service_info{environment="",service="shop",version=""} 1.0
# HELP nidus_jobs_started_total Runs that began.
# TYPE nidus_jobs_started_total counter
nidus_jobs_started_total{job="send \\"a\\\\b\\nc\\""} 2.0
# HELP nidus_jobs_finished_total Runs that ended.
# TYPE nidus_jobs_finished_total counter
nidus_jobs_finished_total{job="send \\"a\\\\b\\nc\\"",status="failure"} 1.0
nidus_jobs_finished_total{job="send \\"a\\\\b\\nc\\"",status="success"} 1.0
# HELP nidus_job_duration_seconds How long a run took.
# TYPE nidus_job_duration_seconds histogram
"""
ROW = 'nidus_job_duration_seconds{}{{job="send \\"a\\\\b\\nc\\"",{}status="{}"}} {}\n'
LES = "0.005 0.010 0.025 0.050 0.100 0.250 0.500 1.000 2.500 5.000 10.000 +Inf".split()


def test_runs_are_rendered_as_in_the_source() -> None:
    observability = on()
    name = 'send "a\\b\nc"'
    finish(observability, name, JobResultStatus.SUCCESS, 0.012)
    finish(observability, name, JobResultStatus.FAILURE, 60.0)
    rows = []
    for status, at_most, total in [("failure", LES[11], "60.0"), ("success", LES[2], "0.012")]:
        rows += [
            ROW.format("_bucket", f'le="{le}",', status, f"{float(i >= LES.index(at_most))}")
            for i, le in enumerate(LES)
        ]
        rows += [ROW.format("_count", "", status, "1.0"), ROW.format("_sum", "", status, total)]
    assert observability.render().startswith(GOLDEN + "".join(rows) + "# HELP jobs_enqueued_total")


def test_a_runner_measures_what_it_runs_and_a_queue_alone_does_not() -> None:
    observability = on()
    runner = observability.job_runner()
    assert isinstance(runner, ObservedJobRunner)
    queue = JobQueue()
    queue.push(Named("a"))
    queue.push(Named("b", ValueError("no")))
    queue.run_all()
    assert not [key for key in numbers(observability.render()) if key[0].startswith("nidus")]
    queue.run_all_observed(runner)
    text = observability.render()
    assert value(text, "nidus_jobs_started_total", job="a") == 1
    assert value(text, "nidus_jobs_finished_total", job="a", status="success") == 1
    assert value(text, "nidus_jobs_finished_total", job="b", status="failure") == 1
    assert value(text, "nidus_job_duration_seconds_count", job="b", status="failure") == 1


def test_beyond_max_series_new_names_overflow_and_known_ones_go_on() -> None:
    observability = on().max_series(2)
    for name in ["a", "b", "c", "d", "a"]:
        finish(observability, name, JobResultStatus.SUCCESS, 0.1)
    text = observability.render()
    started = {name: value(text, "nidus_jobs_started_total", job=name) for name in ("a", "b", OVERFLOW)}
    assert started == {"a": 2, "b": 1, OVERFLOW: 2}
    assert value(text, "nidus_job_duration_seconds_count", job=OVERFLOW, status="success") == 2
    with pytest.raises(KeyError):
        value(text, "nidus_jobs_started_total", job="c")


# --- text ---


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_come_back_as_they_are(name: str) -> None:
    observability = on()
    finish(observability, name, JobResultStatus.SUCCESS, 0.1)
    observability.telemetry_handler()(JobEnqueued(job=job(queue=name, worker=name), at=NOON))
    text = observability.render()
    assert value(text, "nidus_jobs_started_total", job=name) == 1
    assert value(text, "jobs_enqueued_total", queue=name, worker=name) == 1


def test_a_name_that_cannot_be_encoded_does_not_cost_the_page() -> None:
    observability = on()
    finish(observability, "lone \ud800", JobResultStatus.SUCCESS, 0.1)
    assert value(observability.render(), "nidus_jobs_started_total", job="lone ?") == 1


def test_every_type_is_told_before_there_are_numbers() -> None:
    text = on().render()
    for name in ("nidus_jobs_started_total counter", "jobs_run_seconds histogram", "jobs_queue_depth gauge"):
        assert f"# TYPE {name}\n" in text
    assert len(parsed(text)) == text.count("# TYPE ")


def test_nothing_is_labelled_by_a_job_s_id() -> None:
    observability = on()
    observability.telemetry_handler()(JobEnqueued(job=job(id=987654), at=NOON))
    assert "987654" not in observability.render()


def test_the_service_is_told() -> None:
    text = on(version="1.4", environment="test").render()
    assert value(text, "jobs_service_info", service="shop", version="1.4", environment="test") == 1


# --- settings ---


def test_a_setting_makes_another_one_and_leaves_the_first_as_it_was() -> None:
    off = Observability("shop")
    first = off.prometheus()
    finish(first, "a", JobResultStatus.SUCCESS, 0.1)
    second = first.max_series(1).without_job_metrics()
    assert off.render() == ""
    assert value(first.render(), "nidus_jobs_started_total", job="a") == 1
    assert "nidus" not in second.render()


def test_two_with_registries_of_their_own_know_nothing_of_each_other() -> None:
    one, two = on(), on()
    finish(one, "a", JobResultStatus.SUCCESS, 0.1)
    assert one.registry is not two.registry
    assert 'job="a"' in one.render()
    assert 'job="a"' not in two.render()


def test_a_registry_that_is_given_keeps_what_it_has() -> None:
    registry = CollectorRegistry()
    ForeignCounter("orders", "Orders.", registry=registry).inc(3)
    observability = Observability("shop").prometheus(registry)
    assert observability.registry is registry
    assert value(observability.render(), "orders_total") == 3


def test_settings_after_a_registry_was_given_leave_nothing_in_it() -> None:
    registry = CollectorRegistry()
    observability = Observability("shop").prometheus(registry).max_series(3).without_job_metrics()
    assert observability.render().count("# TYPE jobs_queue_depth ") == 1


def test_two_into_one_registry_are_refused() -> None:
    registry = CollectorRegistry()
    Observability("shop").prometheus(registry).telemetry_handler()
    second = Observability("other").prometheus(registry)
    for use in (second.telemetry_handler, second.job_observer, second.render):
        with pytest.raises(OptionError, match="one of its own"):
            use()


def test_a_prefix_stands_in_every_name_where_the_usual_words_do() -> None:
    usual = {family.name for family in Metrics()}
    prefixed = [family.name for family in Metrics(prefix="jobs_async_")]
    assert set(prefixed) == {"jobs_async_" + name.partition("_")[2] for name in usual}
    assert len(set(prefixed)) == len(usual)
    assert {name.partition("_")[0] for name in usual} == {"jobs", "nidus"}
    observability = on(prefix="jobs_async_", version="1.4").max_series(5)
    observability.telemetry_handler()(JobEnqueued(job=job(), at=NOON))
    finish(observability, "a", JobResultStatus.SUCCESS, 0.25)
    text = observability.render()
    assert value(text, "jobs_async_enqueued_total", queue="default", worker="resize") == 1
    assert value(text, "jobs_async_jobs_finished_total", job="a", status="success") == 1
    assert value(text, "jobs_async_job_duration_seconds_sum", job="a", status="success") == 0.25
    assert value(text, "jobs_async_service_info", service="shop", version="1.4", environment="") == 1
    assert all(name.startswith("jobs_async_") for name, _ in numbers(text))


def test_two_with_prefixes_of_their_own_share_a_registry() -> None:
    registry = CollectorRegistry()
    one, two = (Observability("shop", prefix=prefix).prometheus(registry) for prefix in ("one_", "two_"))
    finish(one, "a", JobResultStatus.SUCCESS, 1)
    finish(two, "a", JobResultStatus.SUCCESS, 2)
    for text in (one.render(), two.render()):
        assert value(text, "one_job_duration_seconds_sum", job="a", status="success") == 1
        assert value(text, "two_job_duration_seconds_sum", job="a", status="success") == 2


@pytest.mark.parametrize("prefix", ["", "_", "shop", "1_", "_shop_", "sh-op_", "shop:_", "shop_\n", "täglich_", 7])
def test_a_prefix_that_would_make_bad_names_is_refused(prefix: Any) -> None:
    with pytest.raises(OptionError, match="prefix"):
        Observability("shop", prefix=prefix)


def test_without_job_metrics_neither_runs_nor_jobs_are_counted() -> None:
    observability = on().without_job_metrics()
    assert isinstance(observability.job_observer(), NoopObserver)
    observability.telemetry_handler()(JobEnqueued(job=job(), at=NOON))
    names = {sample.name for sample in samples(observability.render())}
    assert "jobs_enqueued_total" not in names
    assert "jobs_lease_lost_total" in names


@pytest.mark.parametrize(
    "make",
    [
        lambda: Observability(""),
        lambda: Observability("shop", version="a\nb"),
        lambda: Observability("shop", environment=3),  # type: ignore[arg-type]
        lambda: Observability("shop").max_series(0),
        lambda: Observability("shop").max_series("many"),  # type: ignore[arg-type]
        lambda: Observability("shop").prometheus("registry"),  # type: ignore[arg-type]
    ],
)
def test_what_makes_no_sense_is_refused(make: Any) -> None:
    with pytest.raises(OptionError):
        make()


def test_no_limit_can_be_said() -> None:
    observability = on().max_series(1).max_series(None)
    for name in "abc":
        finish(observability, name, JobResultStatus.SUCCESS, 0.1)
    assert value(observability.render(), "nidus_jobs_started_total", job="c") == 1


# --- a whole life ---


async def test_the_jobs_of_a_supervisor_are_counted() -> None:
    observability = on()
    telemetry = Telemetry()
    telemetry.attach(observability.telemetry_handler())
    async with Supervisor(telemetry=telemetry) as jobs:

        @jobs.worker(max_attempts=1)
        async def halve(number: int) -> int:
            if number % 2:
                raise ValueError("odd")
            return number // 2

        await jobs.wait(await halve.enqueue(4))
        await jobs.wait(await halve.enqueue(3))
    text = observability.render()
    here = {"queue": "default", "worker": "halve"}
    assert value(text, "jobs_enqueued_total", **here) == 2
    assert value(text, "jobs_finished_total", **here, outcome="completed") == 1
    assert value(text, "jobs_finished_total", **here, outcome="discarded") == 1
    assert value(text, "jobs_finished_total", **here, outcome="failed") == 0
    assert value(text, "jobs_wait_seconds_count", **here) == 2
    assert value(text, "jobs_wait_seconds_sum", **here) < 20
    assert value(text, "jobs_run_seconds_bucket", **here, le="+Inf") >= 1


# --- over HTTP ---


async def test_a_server_gets_the_page() -> None:
    observability = on()
    finish(observability, "täglich", JobResultStatus.SUCCESS, 0.1)
    async with serving(observability.asgi()) as client:
        answer = await client.get("/metrics")
        assert (answer.status_code, answer.text) == (200, observability.render())
        assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        head = await client.head("/metrics")
        assert (head.status_code, head.text) == (200, "")
        assert head.headers["content-length"] == answer.headers["content-length"]
        refused = await client.post("/metrics")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")


async def test_where_it_is_off_the_page_is_empty() -> None:
    async with serving(Observability("shop").asgi()) as client:
        answer = await client.get("/metrics")
        assert (answer.status_code, answer.text) == (200, "")


async def said(scope: dict[str, Any]) -> list[Any]:
    """What the app sends where nobody stands between."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("it has nothing to ask")

    await on().asgi()(scope, receive, send)
    return sent


async def test_a_head_is_answered_without_a_body() -> None:
    start, body = await said({"type": "http", "method": "HEAD"})
    assert dict(start["headers"])[b"content-length"] != b"0"
    assert body == {"type": "http.response.body", "body": b""}


async def test_a_web_socket_is_closed() -> None:
    assert await said({"type": "websocket"}) == [{"type": "websocket.close"}]
