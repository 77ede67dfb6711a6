"""Cron expressions: a small grammar of our own, instants computed by croniter, clock changes handled around it.

    minute 0-59   hour 0-23   day of month 1-31   month 1-12 or jan-dec   weekday 0-7 or sun-sat (0 and 7 are Sunday)

A field is a comma list of `*`, `N`, `N-M`, `*/S` and `N-M/S`; nothing else is accepted. A field that starts with `*`
is a wildcard, so `*/2` is one too (the rule of Vixie's and Debian's cron).

* Days: when neither day field is a wildcard a date matches either of them, otherwise it must match both.
* Clock changes: when neither minute nor hour is a wildcard the entry names fixed times, and each fires exactly once: at
  the first instant after the gap if the clocks skip it (several of them there fire as one), at the first of the two if
  they repeat it. Any other entry follows elapsed time: it fires in both passes of a repeated hour, and times that the
  clocks skip do not happen.

Origin: zzz_jobs: cron-scheduling, which knew fixed offsets only and asked a date to match both day fields.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from typing import TYPE_CHECKING, final
from zoneinfo import ZoneInfo

from jobs_async.core import limits
from jobs_async.core.errors import CronError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MAX_TEXT = 512  # every minute, hour, day, month and weekday written out takes 363
_HORIZON_YEARS = 50  # the longest wait of all is 40 years: 29 February on a given weekday, across the year 2100
_ONE_MINUTE = timedelta(minutes=1)
_LONGEST_MONTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


@final
@dataclass(frozen=True, slots=True)
class _Field:
    """What may stand in one of the five fields. `size` counts its distinct values: 7 weekdays within the bounds 0-7."""

    name: str
    low: int
    high: int
    size: int
    names: Mapping[str, int] = field(default_factory=dict[str, int])

    def parse(self, text: str) -> frozenset[int]:
        values = (value for item in text.split(",") for value in self._item(item))
        return frozenset(self.low + (value - self.low) % self.size for value in values)

    def render(self, values: frozenset[int]) -> str:
        return "*" if len(values) == self.size else ",".join(map(str, sorted(values)))

    def _item(self, item: str) -> range:
        body, slash, step = item.partition("/")
        first, dash, last = body.partition("-")
        if body == "*":
            low, high = self.low, self.high
        elif dash:
            low, high = self._value(first, item), self._value(last, item)
            if low > high:
                raise self._refusal(item, "is a reversed range")
        else:
            low = high = self._value(first, item)
            if slash:
                raise self._refusal(item, "is a single value with a step")
        return range(low, high + 1, self._step(step, item) if slash else 1)

    def _value(self, text: str, item: str) -> int:
        named = self.names.get(text.lower())
        value = self._number(text, item) if named is None else named
        if not self.low <= value <= self.high:
            raise self._refusal(item, "is out of range")
        return value

    def _step(self, text: str, item: str) -> int:
        step = self._number(text, item)
        if step == 0:
            raise self._refusal(item, "has step 0")
        return step

    def _number(self, text: str, item: str) -> int:
        if re.fullmatch("[0-9]+", text) is None:
            raise self._refusal(item, "is empty" if not item else f"is malformed at {text!r}")
        return int(text)

    def _refusal(self, item: str, problem: str) -> CronError:
        values = f"{self.low}-{self.high}"
        if self.names:
            first, *_, last = self.names
            values += f" or {first}-{last}"
        return CronError(
            f"cron field {self.name}: {item!r} {problem}; allowed are N, N-M, N-M/S, * and */S, "
            f"in comma lists, with values {values}"
        )


def _names(text: str, first: int) -> Mapping[str, int]:
    return {name: number for number, name in enumerate(text.split(), first)}


_MINUTE = _Field("minute", 0, 59, 60)
_HOUR = _Field("hour", 0, 23, 24)
_DAY = _Field("day of month", 1, 31, 31)
_MONTH = _Field("month", 1, 12, 12, _names("jan feb mar apr may jun jul aug sep oct nov dec", 1))
_WEEKDAY = _Field("weekday", 0, 7, 7, _names("sun mon tue wed thu fri sat", 0))


@final
@dataclass(frozen=True, slots=True)
class _Schedule:
    """What an expression means on a wall calendar that knows no zones."""

    fields: str
    either_day: bool
    elapsed: bool

    @classmethod
    def parse(cls, parts: list[str], day_or: bool) -> _Schedule:
        if len(parts) != 5:
            names = "minute, hour, day of month, month, weekday"
            raise CronError(f"a cron expression has five fields ({names}), not {len(parts)}: {' '.join(parts)!r}")
        minute, hour, day, month, weekday = parts
        minutes, hours, days = _MINUTE.parse(minute), _HOUR.parse(hour), _DAY.parse(day)
        months, weekdays = _MONTH.parse(month), _WEEKDAY.parse(weekday)
        either_day = day_or and not day.startswith("*") and not weekday.startswith("*")
        if either_day and (len(days) == _DAY.size or len(weekdays) == _WEEKDAY.size):
            days, weekdays = _DAY.parse("*"), _WEEKDAY.parse("*")  # one lists every day, so either of them does
        if not either_day and min(days) > max(_LONGEST_MONTHS[number - 1] for number in months):
            raise CronError(f"cron {' '.join(parts)!r} never fires: no month of {month!r} has a day of {day!r}")
        # Plain numbers only: croniter would read `5-5` as every value, and `*/2` as no wildcard.
        rendered = (_MINUTE.render(minutes), _HOUR.render(hours), _DAY.render(days))
        fields = " ".join((*rendered, _MONTH.render(months), _WEEKDAY.render(weekdays)))
        return cls(fields, either_day, elapsed=minute.startswith("*") or hour.startswith("*"))

    def after(self, local: datetime) -> Iterator[datetime]:
        """The matching wall-clock minutes after `local`, ascending; naive in, naive out."""
        from croniter import croniter

        times = croniter(self.fields, local, day_or=self.either_day, max_years_between_matches=_HORIZON_YEARS)
        with suppress(ValueError, OverflowError):  # the year 10000
            yield from times.all_next(datetime)


@final
@dataclass(frozen=True, slots=True)
class CronExpr:
    """A checked cron expression in its time zone. Made by `parse`; usable as a key; never reads a clock.

    `text` is the expression with single spaces; `timezone` is the IANA name, or the offset in seconds, or "UTC" for an
    offset of 0; `zone` is the same as a tzinfo. Parsing `text` again with `timezone` and `day_or` gives an equal value.
    """

    text: str
    timezone: str | int
    day_or: bool
    zone: tzinfo = field(repr=False, compare=False)
    _schedule: _Schedule = field(repr=False, compare=False)

    @classmethod
    def parse(cls, text: str, *, timezone: str | int | tzinfo = "UTC", day_or: bool = True) -> CronExpr:
        """Check an expression of five fields split by spaces or tabs, or one of @hourly, @daily, @midnight, @weekly,
        @monthly, @yearly, @annually; case does not matter. What is accepted fires sooner or later.

        The time zone is an IANA name, a `ZoneInfo`, an offset from UTC in seconds (EST is -18000) or a
        `datetime.timezone`. With `day_or=False` a date must match both day fields, as in zzz_jobs.

        Raises:
            CronError: naming the field, the item and what is allowed; also for dates that never come (31 February)
                and for an unknown time zone.
        """
        if not isinstance(text, str):
            raise CronError(f"a cron expression is a string, not {limits.type_name(text)}")
        if not isinstance(day_or, bool):
            raise CronError("day_or must be True or False")
        if len(text) > _MAX_TEXT:
            raise CronError(f"a cron expression has at most {_MAX_TEXT} characters, not {len(text):,}")
        parts = _split(text)
        schedule = _Schedule.parse(_expand_alias(parts), day_or)
        name, zone = _resolve(timezone)
        return cls(" ".join(parts), name, day_or, zone, schedule)

    def matches(self, at: datetime) -> bool:
        """Whether the entry fires in the minute of `at`: exactly when `next_after` of the minute before says so.

        Raises:
            ValueError: `at` is a naive datetime.
        """
        minute = _minute_of(at)
        return self._after(minute - _ONE_MINUTE) == minute

    def next_after(self, at: datetime) -> datetime:
        """The first instant after the minute of `at` at which the entry fires: a whole minute, in UTC.

        Raises:
            ValueError: `at` is a naive datetime.
            CronError: Python's calendar (year 9999) ends before; until then there always is a next instant.
        """
        instant = self._after(_minute_of(at))
        if instant is None:
            raise CronError(f"cron {self.text!r} does not fire again after {at}")
        return instant

    def __str__(self) -> str:
        return self.text

    def _after(self, minute: datetime) -> datetime | None:
        with suppress(OverflowError):  # local time outside the years 1 to 9999
            local = minute.astimezone(self.zone)
            # While an hour runs that will be repeated, wall-clock times already over come again: look from before them.
            repeated = max(_offset(local.replace(fold=0)) - _offset(local.replace(fold=1)), timedelta(0))
            wall = local.replace(tzinfo=None, fold=0)
            found = (self._first(minute, start) for start in {wall, wall - repeated})
            return min((instant for instant in found if instant is not None), default=None)
        return None

    def _first(self, minute: datetime, start: datetime) -> datetime | None:
        instants = (instant for local in self._schedule.after(start) for instant in self._firings(local))
        return next((instant for instant in instants if instant > minute), None)

    def _firings(self, local: datetime) -> list[datetime]:
        """The instants at which a matching wall-clock minute fires, ascending: none, one or two."""
        instants = _instants(local, self.zone)
        if self._schedule.elapsed:
            return instants
        while not instants:
            local += _ONE_MINUTE
            instants = _instants(local, self.zone)
        return instants[:1]


def _split(text: str) -> list[str]:
    return [part for part in text.replace("\t", " ").split(" ") if part]


def _expand_alias(parts: list[str]) -> list[str]:
    if len(parts) != 1 or not parts[0].startswith("@"):
        return parts
    text = _ALIASES.get(parts[0].lower())
    if text is None:
        raise CronError(f"unknown cron alias {parts[0]!r}; allowed are {', '.join(_ALIASES)}")
    return _split(text)


def _resolve(given: str | int | tzinfo) -> tuple[str | int, tzinfo]:
    name = given.key if isinstance(given, ZoneInfo) else str(given) if isinstance(given, bool) else given
    if isinstance(name, timezone):
        seconds, rest = divmod(name.utcoffset(None), timedelta(seconds=1))
        name = name if rest else seconds
    with suppress(KeyError, ValueError, OverflowError, OSError):  # OSError: the name of a folder
        if name in ("UTC", 0):
            return "UTC", UTC
        if isinstance(name, str):
            return name, ZoneInfo(name)
        if isinstance(name, int):
            return name, timezone(timedelta(seconds=name))
    raise CronError(
        f"unknown time zone {str(given)[:80]!r}; allowed are an IANA name known to the system's zone database or the "
        "tzdata package, a ZoneInfo, or a fixed offset in whole seconds of less than a day"
    )


def _minute_of(at: datetime) -> datetime:
    if at.utcoffset() is None:
        raise ValueError(f"naive datetime {at}: give it a tzinfo")
    return at.astimezone(UTC).replace(second=0, microsecond=0)


def _offset(at: datetime) -> timedelta:
    return at.utcoffset() or timedelta(0)


def _instants(local: datetime, zone: tzinfo) -> list[datetime]:
    """When clocks in `zone` show `local`, ascending: never in a gap, twice in a fold."""
    folds = (local.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    shown = {instant for instant in folds if instant.astimezone(zone).replace(tzinfo=None) == local}
    return sorted(map(_ceil, shown))


def _ceil(instant: datetime) -> datetime:
    """The whole minute of UTC inside a minute of local time: offsets had seconds until 1972."""
    floor = instant.replace(second=0, microsecond=0)
    return floor if floor == instant else floor + _ONE_MINUTE
