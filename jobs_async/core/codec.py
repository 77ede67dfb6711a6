"""The one JSON of the house: what is accepted here can be read by every store and every reader.

String keys, finite numbers, integers of 64 bits, no NUL, at most 64 levels deep, at most 1 MiB.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import msgspec

from jobs_async.core.errors import ArgsError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAX_BYTES = 1_048_576
MAX_DEPTH = 64
INT_MIN, INT_MAX = -(2**63), 2**63 - 1

_encoder = msgspec.json.Encoder()
_loads = msgspec.json.Decoder().decode
_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBER = b"0" * 19


def loads(text: str | bytes) -> Any:
    """Parse stored JSON."""
    return _loads(text)


def dumps(value: object, what: str = "args") -> str:
    """Strict JSON of plain values, as given by name: every key and number is looked at.

    Raises:
        ArgsError: naming the rule that `value` breaks; the value itself is not shown.
    """
    _walk(value, what)
    return finish(encode(value, what), value, what, walked=True)


def encode(value: object, what: str, enc_hook: Any = None) -> bytes:
    """msgspec's JSON, every failure of it turned into an ArgsError."""
    try:
        if enc_hook is None:
            return _encoder.encode(value)
        return msgspec.json.encode(value, enc_hook=enc_hook)
    except ArgsError:  # from the hook
        raise
    except (TypeError, ValueError, OverflowError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        reason = "holds text that is not valid Unicode" if isinstance(error, UnicodeError) else _plain(error)
        raise ArgsError(f"{what} cannot be stored as JSON: {reason}") from None


def finish(data: bytes, value: object, what: str, *, walked: bool = False) -> str:
    """Check size and the few things msgspec lets through; walk the parsed text only where a byte makes it suspect.

    msgspec writes NaN and infinities as `null`, so a `null` may hide one: then the value itself is walked.
    """
    if len(data) > MAX_BYTES:
        raise ArgsError(f"{what} must be at most {MAX_BYTES:,} bytes of JSON, not {len(data):,}; store a reference")
    text = data.decode()
    if not walked:
        if "null" in text:
            _refuse_nan(value, what)
        deep = text.count("[") + text.count("{") > MAX_DEPTH
        if deep or "\\u0000" in text or data.translate(_DIGITS_TO_ZERO).find(_LONG_NUMBER) >= 0:
            _walk(_loads(data), what)
    return text


def _walk(value: object, what: str) -> None:
    """Look at every key and number, without recursion."""
    stack: list[tuple[object, int]] = [(value, 1)]
    while stack:
        item, depth = stack.pop()
        if item is None or isinstance(item, (str, int, float)):
            _check_scalar(item, what)
            continue
        if depth > MAX_DEPTH:
            raise ArgsError(f"{what} must be at most {MAX_DEPTH} levels deep")
        if isinstance(item, dict):
            mapping = cast("dict[object, object]", item)
            _check_keys(mapping, what)
            stack.extend((child, depth + 1) for child in mapping.values())
        elif isinstance(item, (list, tuple)):
            stack.extend((child, depth + 1) for child in cast("Iterable[object]", item))
        else:
            stack.append((_builtin(item, what), depth + 1))


def _check_scalar(item: str | float | None, what: str) -> None:
    if isinstance(item, str):
        if "\0" in item:
            raise ArgsError(f"{what} must not hold NUL characters")
    elif isinstance(item, float):
        if not math.isfinite(item):
            raise ArgsError(f"{what} must hold finite numbers, not NaN or infinity")
    elif item is not None and not INT_MIN <= item <= INT_MAX:
        raise ArgsError(f"{what} must hold integers of 64 bits; send a larger one as a string")


def _check_keys(mapping: Mapping[object, object], what: str) -> None:
    for key in mapping:
        if not isinstance(key, str) or "\0" in key:
            raise ArgsError(f"{what} must have string keys without NUL, not {type(key).__name__}")


def _builtin(item: object, what: str) -> object:
    """What a date, a dataclass or another value msgspec knows is made of."""
    try:
        return msgspec.to_builtins(item)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ArgsError(f"{what} cannot be stored as JSON: {_plain(error)}") from None


def _refuse_nan(value: object, what: str) -> None:
    """Look for a number that msgspec has written as `null`; values of foreign kinds went through their own hook."""
    try:
        plain = msgspec.to_builtins(value, enc_hook=lambda _item: None, str_keys=True)
    except (TypeError, ValueError, RecursionError):
        return
    _walk(plain, what)


def _plain(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"it is more than {MAX_DEPTH} levels deep, or contains itself"
    if isinstance(error, TypeError):
        return str(error)
    return "it holds a value JSON has no form for"
