"""What names, numbers, durations and instants are acceptable; refused at the call, never truncated."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import cast

from jobs_async.core.errors import OptionError

MAX_NAME_BYTES = 255
MAX_TAGS = 32
MAX_META_BYTES = 65_536
INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
MAX_SECONDS = 100 * 366 * 86_400.0
"""A hundred years: the longest duration anything here accepts."""

Seconds = float | timedelta


def type_name(value: object) -> str:
    """How a refused value is named in a message: by its type, for the value may be a secret."""
    return type(value).__name__


def name(value: object, what: str) -> str:
    """1 to 255 bytes of UTF-8 without control characters."""
    if not isinstance(value, str):
        raise OptionError(f"{what} must be a string, not {type_name(value)}")
    if value.isascii():
        size = len(value)
    else:
        try:
            size = len(value.encode())
        except UnicodeEncodeError:
            raise OptionError(f"{what} must be valid Unicode") from None
    if not 1 <= size <= MAX_NAME_BYTES:
        raise OptionError(f"{what} must be 1 to {MAX_NAME_BYTES} bytes long, not {size}")
    if not value.isprintable() and any(ord(char) < 32 or 127 <= ord(char) < 160 for char in value):
        raise OptionError(f"{what} must not hold control characters")
    return value if type(value) is str else str.__str__(value)  # a driver takes no subclass


def integer(value: object, what: str, low: int = INT32_MIN, high: int = INT32_MAX) -> int:
    """A whole number within 32 bits, or narrower."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise OptionError(f"{what} must be an integer, not {type_name(value)}")
    if not low <= value <= high:
        raise OptionError(f"{what} must be from {low} to {high}, not {value}")
    return int(value)


def seconds(value: object, what: str, *, low: float = 0.0, exclusive: bool = False) -> float:
    """A duration in seconds, from a number or a timedelta."""
    if isinstance(value, timedelta):
        number = value.total_seconds()
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        number = _float(value, what)
    else:
        raise OptionError(f"{what} must be seconds or a timedelta, not {type_name(value)}")
    if not math.isfinite(number) or number > MAX_SECONDS:
        raise OptionError(f"{what} must be a finite number of seconds, at most a hundred years")
    if number < low or (exclusive and number == low):
        raise OptionError(f"{what} must be {'more than' if exclusive else 'at least'} {low:g} seconds, not {number:g}")
    return number


def _float(value: float, what: str) -> float:
    try:
        return float(value)
    except OverflowError:
        raise OptionError(f"{what} must be a finite number of seconds, at most a hundred years") from None


def instant(value: object, what: str) -> datetime:
    """An aware datetime, turned to UTC; naive ones are refused, for their zone would be a guess."""
    if not isinstance(value, datetime):
        raise OptionError(f"{what} must be a datetime, not {type_name(value)}")
    if value.utcoffset() is None:
        raise OptionError(f"{what} must carry a time zone, for example datetime.now(UTC); naive datetimes are refused")
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise OptionError(f"{what} is outside the years 1 to 9999 in UTC") from None


def tags(value: object) -> tuple[str, ...]:
    """At most 32 names."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise OptionError(f"tags must be a sequence of strings, not {type_name(value)}")
    checked = tuple(name(tag, "a tag") for tag in cast("Iterable[object]", value))
    if len(checked) > MAX_TAGS:
        raise OptionError(f"tags must be at most {MAX_TAGS}, not {len(checked)}")
    return checked
