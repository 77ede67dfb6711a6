"""Which ticks of a cron entry are still to be fired, to the second; judged by walking from minute to minute."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import islice
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs_async import CronError, Draft, JobOpts, OptionError, UniqueStrategy
from jobs_async.core.cron import CronExpr
from jobs_async.core.options import NewJob
from jobs_async.core.schedule import LATEST, ON_TIME, CronEntry
from tests.conftest import Measured
from tests.core.test_cron import (
    ZONES,
    changes,
    cronsim_after,
    cronsim_errs,
    firings,
    near,
    random_expression,
    zone_of,
)

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)
WORK: Draft[Any] = Draft("work")


def entry(text: str = "0 * * * *", name: str = "hourly", draft: Draft[Any] = WORK, **options: Any) -> CronEntry:
    return CronEntry(name, CronExpr.parse(text, **options), draft)


# --- what is an entry ---


@pytest.mark.parametrize("name", ["", "x" * 256, "two\nlines", "\ud800", 7, None, b"nightly"])
def test_what_is_no_name_is_refused(name: Any) -> None:
    with pytest.raises(OptionError, match="the name of a cron entry"):
        entry(name=name)


@pytest.mark.parametrize("name", ["x" * 255, "nightly", "für Élise", "a b"])
def test_what_is_a_name_is_accepted(name: str) -> None:
    assert entry(name=name).name == name


@pytest.mark.parametrize("catch_up", ["all", "", None, True, "Latest"])
def test_another_way_to_catch_up_is_refused(catch_up: Any) -> None:
    with pytest.raises(CronError, match='"latest" or "none"'):
        CronEntry("hourly", CronExpr.parse("0 * * * *"), WORK, catch_up)


@pytest.mark.parametrize(
    "opts", [JobOpts(scheduled_at=NOON), JobOpts(idempotency_key="k")], ids=["scheduled_at", "idempotency_key"]
)
def test_options_of_a_single_job_are_refused(opts: JobOpts) -> None:
    with pytest.raises(OptionError, match="belongs to a single job"):
        entry(draft=Draft("work", None, opts))


def test_all_other_options_are_accepted() -> None:
    opts = JobOpts(
        queue="q",
        priority=1,
        max_attempts=2,
        delay=3,
        timeout_seconds=4,
        unique_key="k",
        unique_strategy=UniqueStrategy.REJECT,
        correlation_id="c",
        external_id="e",
        tags=["t"],
        meta={"m": 1},
    )
    assert entry(draft=Draft("work", None, opts)).draft.opts is opts


# --- the series ---


def test_the_series_is_the_name_with_the_schedule_and_nothing_else() -> None:
    """A new schedule begins a new series; other work at the same times continues the old one."""
    again = CronEntry("hourly", CronExpr.parse(" 0  * * *\t*"), Draft("other", {"a": 1}), "none")
    assert again.series == entry().series
    others = [
        entry(name="other"),
        entry("1 * * * *"),
        entry(timezone="Europe/Paris"),
        entry(timezone=3600),
        entry(day_or=False),
    ]
    assert len({one.series for one in (entry(), *others)}) == 6


def test_no_series_is_the_name_of_an_entry() -> None:
    """Both are names of ticks, and must not meet."""
    with pytest.raises(OptionError):
        entry(name=entry().series)


# --- which tick is due ---


def latest_by_walking(expr: CronExpr, since: datetime, now: datetime, late: timedelta) -> datetime | None:
    """By definition: the last matching minute after that of `since`, not after `now`, not older than `late`."""
    minute = now.replace(second=0, microsecond=0)
    while minute > since and minute >= now - late:
        if expr.matches(minute):
            return minute
        minute -= MINUTE
    return None


TEXTS = ("* * * * *", "*/2 * * * *", "7,8,9 * * * *", "0 * * * *", "30 2 * * *", "*/5 2 * * *", "15 1-3 * * *")
AROUND_CHANGES = {
    "UTC": NOON,
    "Europe/Paris": datetime(2026, 3, 29, 1, tzinfo=UTC),
    "America/Chicago": datetime(2026, 11, 1, 7, tzinfo=UTC),
    "Australia/Lord_Howe": datetime(2026, 4, 4, 15, tzinfo=UTC),
}


@given(
    st.sampled_from(TEXTS),
    st.sampled_from(sorted(AROUND_CHANGES)),
    st.integers(-7200, 7200),
    st.one_of(st.integers(0, 200), st.integers(0, 4000)),
    st.sampled_from([LATEST, ON_TIME, timedelta(0), timedelta(hours=1)]),
)
@settings(max_examples=300, deadline=None)
@example("* * * * *", "UTC", 0, 0, LATEST)
@example("0 * * * *", "UTC", -1, 1, timedelta(0))
def test_the_latest_tick_is_the_one_that_walking_finds(
    text: str, zone: str, second: int, passed: int, late: timedelta
) -> None:
    expr = CronExpr.parse(text, timezone=zone)
    since = AROUND_CHANGES[zone] + second * SECOND
    now = since + passed * SECOND
    found = CronEntry("walk", expr, WORK).latest(since, now, late)
    assert found == latest_by_walking(expr, since, now, late)


@pytest.mark.parametrize("late", [LATEST, ON_TIME])
def test_a_tick_is_due_from_its_instant_to_the_last_microsecond_of_the_window(late: timedelta) -> None:
    hourly, since, instant = entry(), NOON - timedelta(minutes=40), timedelta(microseconds=1)
    assert hourly.latest(since, NOON - instant, late) is None
    assert hourly.latest(since, NOON, late) == NOON
    assert hourly.latest(since, NOON + late, late) == NOON
    assert hourly.latest(since, NOON + late + instant, late) is None


def test_a_tick_in_the_minute_up_to_which_all_is_dealt_with_is_not_due_again() -> None:
    minutely = entry("* * * * *")
    assert minutely.latest(NOON, NOON + 59 * SECOND, LATEST) is None
    assert minutely.latest(NOON + 59 * SECOND, NOON + MINUTE, LATEST) == NOON + MINUTE


def test_of_several_missed_ticks_the_last_is_due() -> None:
    assert entry("*/2 * * * *").latest(NOON, NOON + 9 * MINUTE, LATEST) == NOON + 8 * MINUTE


def test_after_a_year_away_only_the_window_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[datetime] = []
    next_after = CronExpr.next_after

    def count(self: CronExpr, at: datetime) -> datetime:
        asked.append(at)
        return next_after(self, at)

    monkeypatch.setattr(CronExpr, "next_after", count)
    assert entry("* * * * *").latest(NOON - timedelta(days=365), NOON, LATEST) == NOON
    assert len(asked) <= 13


def test_a_naive_instant_is_refused() -> None:
    with pytest.raises(ValueError, match="naive"):
        entry().next_after(NOON.replace(tzinfo=None))


# --- the job of a tick ---


def test_the_job_of_a_tick_says_of_which_entry_and_which_instant_it_is() -> None:
    new = NewJob("work", "{}", meta={"mine": 1, "cron": "forged"}, priority=3)
    job = entry().at_tick(new, NOON.astimezone(ZoneInfo("Asia/Kathmandu")))
    assert job.meta == {"mine": 1, "cron": "hourly", "cron_at": "2026-06-01T12:00:00+00:00"}
    assert job.scheduled_at == NOON
    assert (job.worker, job.args_json, job.priority) == ("work", "{}", 3)
    assert new.meta == {"mine": 1, "cron": "forged"}, "the meta of the entry itself stays as it is"


def test_a_delay_counts_from_when_the_tick_is_fired() -> None:
    job = entry().at_tick(NewJob("work", "{}", delay=60.0), NOON)
    assert (job.delay, job.scheduled_at) == (60.0, None)


def test_no_delay_is_none() -> None:
    assert entry().at_tick(NewJob("work", "{}", delay=0.0), NOON).scheduled_at == NOON


# --- the expressions underneath ---


@pytest.mark.soak
def test_f16_row_35_a_hundred_thousand_random_expressions_fire_as_cronsim_has_them(measured: Measured) -> None:
    """What tests/core/test_cron.py asks of 2,200 expressions, of many more."""
    rng, compared = Random("row 35"), 0
    while compared < 100_000:
        zone = ZONES[compared % len(ZONES)]
        meant, after = random_expression(rng), near(rng, changes(zone))
        if cronsim_errs(meant, zone) or (expr := parsed(meant.text, zone)) is None:
            continue
        expected = list(islice(cronsim_after(meant.text, after, zone_of(zone)), 2))
        assert list(islice(firings(expr, after), 2)) == expected, (meant.text, zone, after)
        compared += 1
    measured("F16", f"{compared:,} random expressions in {len(ZONES)} zones, around clock changes", "all as cronsim")


def parsed(text: str, zone: str | int) -> CronExpr | None:
    """None for a date that never comes."""
    try:
        return CronExpr.parse(text, timezone=zone)
    except CronError:
        return None


def test_row_35_either_day_field_is_enough_and_both_are_needed_only_where_that_is_asked_for() -> None:
    june = NOON.replace(day=1, hour=0)
    either, both = (entry("0 0 13 * FRI", day_or=day_or) for day_or in (True, False))
    assert [at.day for at in walk(either, june, 4)] == [5, 12, 13, 19]
    assert [(at.month, at.day) for at in walk(both, june, 2)] == [(11, 13), (8, 13)]


def walk(one: CronEntry, at: datetime, count: int) -> list[datetime]:
    return list(islice(firings(one.expression, at), count))
